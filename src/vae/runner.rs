//! The model on a device: training steps, evaluation, encoding and decoding.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor, OutputId, ProgramId, Report};
use crate::runtime::gpu::{Gpu, Span};
use crate::runtime::graph::{Arena, Graph, initial};
use crate::runtime::kernel::Kernel;
use crate::runtime::op::{Gather, MicroBatch, StepScalars};
use crate::runtime::plan;
use crate::runtime::plan::{Memory, Plan};
use crate::runtime::sys::platform::block_on;
use crate::runtime::tensor::rng::{self, Stream};
use crate::vae::model::{Mode, VaeConfig};

mod share;

/// Where a model runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU reference.
    Cpu,
    /// A GPU or a software driver.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// Returns device, driver and backend as text.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Cpu => CpuExecutor::<f32>::within(None).describe(),
            Self::Gpu(gpu) => gpu.adapter_info().to_string(),
        }
    }

    /// Returns whether the device computes on the CPU: the reference, or a software driver.
    #[must_use]
    pub fn is_software(&self) -> bool {
        match self {
            Self::Cpu => true,
            Self::Gpu(gpu) => gpu.adapter_info().device_type == "cpu",
        }
    }
}

/// Hyperparameters of a training step. Kernels compute with them in single precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparams {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay (AdamW).
    pub weight_decay: f64,
    /// Weight of the KL term.
    pub beta: f64,
    /// KL divergence in nats below which a latent dimension costs nothing more; 0 for none.
    pub free_bits: f64,
    /// Largest global gradient norm; 0 disables clipping.
    pub clip: f64,
}

impl Default for Hyperparams {
    /// Learning rate 1e-3, weight decay 1e-4, beta 1, no free bits, no clipping.
    fn default() -> Self {
        Self { lr: 1e-3, weight_decay: 1e-4, beta: 1.0, free_bits: 0.0, clip: 0.0 }
    }
}

/// Results of a training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Index of the step, from 0.
    pub step: u64,
    /// Total loss: recon + beta * kl, where free bits count for dimensions below them.
    pub total: f32,
    /// Reconstruction term.
    pub recon: f32,
    /// KL term.
    pub kl: f32,
    /// Mean squared error of the decoded images.
    pub mse: f32,
    /// Global gradient norm before clipping.
    pub grad_norm: f32,
    /// Whether loss and gradients were finite and the update was made.
    pub finite: bool,
}

/// Executor of a model, with what it takes to add programs.
#[derive(Debug)]
enum Engine {
    Cpu(CpuExecutor<f32>),
    Gpu(Box<GpuExecutor>, plan::Options),
}

#[cfg(feature = "statistics")]
impl Device {
    /// Returns an executor for graphs other than the model's.
    pub(crate) fn executor(&self, options: &plan::Options) -> Result<Box<dyn Executor>> {
        Ok(match Engine::new(self, options)? {
            Engine::Cpu(exec) => Box::new(exec),
            Engine::Gpu(exec, _) => exec,
        })
    }
}

impl Engine {
    fn new(device: &Device, options: &plan::Options) -> Result<Self> {
        Ok(match device {
            Device::Cpu => Self::Cpu(CpuExecutor::within(options.budget)),
            Device::Gpu(gpu) => {
                let budget = [options.budget, gpu.available_memory()].into_iter().flatten().min();
                let options = plan::Options { budget, ..options.clone() };
                Self::Gpu(Box::new(GpuExecutor::new(Arc::clone(gpu), &options)?), options)
            }
        })
    }

    fn get(&self) -> &dyn Executor {
        match self {
            Self::Cpu(exec) => exec,
            Self::Gpu(exec, _) => exec.as_ref(),
        }
    }

    fn get_mut(&mut self) -> &mut dyn Executor {
        match self {
            Self::Cpu(exec) => exec,
            Self::Gpu(exec, _) => exec.as_mut(),
        }
    }

    async fn reports(&mut self, wait: bool) -> Result<Vec<Report>> {
        match self {
            Self::Cpu(exec) => exec.reports(wait),
            Self::Gpu(exec, _) => exec.reports_async(wait).await,
        }
    }

    async fn oldest_reports(&mut self) -> Result<Vec<Report>> {
        match self {
            Self::Cpu(exec) => exec.oldest_reports(),
            Self::Gpu(exec, _) => exec.oldest_reports_async().await,
        }
    }

    async fn read(&mut self, output: OutputId) -> Result<Vec<f32>> {
        match self {
            Self::Cpu(exec) => exec.read(output),
            Self::Gpu(exec, _) => exec.read_async(output).await,
        }
    }

    async fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        match self {
            Self::Cpu(exec) => exec.download(arena),
            Self::Gpu(exec, _) => exec.download_async(arena).await,
        }
    }
}

/// Images or latent vectors, with the class of each for a conditional model. Other models ignore the classes.
///
/// Slices and vectors convert to values without classes; a pair converts to values and classes.
#[derive(Clone, Copy, Debug)]
pub struct Labelled<'a, T> {
    /// Values, one item after the other.
    pub values: &'a [T],
    /// Class of each item.
    pub labels: &'a [u8],
}

impl<'a, T> From<&'a [T]> for Labelled<'a, T> {
    fn from(values: &'a [T]) -> Self {
        Self { values, labels: &[] }
    }
}

impl<'a, T> From<&'a Vec<T>> for Labelled<'a, T> {
    fn from(values: &'a Vec<T>) -> Self {
        Self { values, labels: &[] }
    }
}

impl<'a, T, const N: usize> From<&'a [T; N]> for Labelled<'a, T> {
    fn from(values: &'a [T; N]) -> Self {
        Self { values, labels: &[] }
    }
}

impl<'a, T> From<(&'a Vec<T>, &'a Vec<u8>)> for Labelled<'a, T> {
    fn from((values, labels): (&'a Vec<T>, &'a Vec<u8>)) -> Self {
        Self { values, labels }
    }
}

/// Classes as one-hot vectors, `[labels.len(), classes]`.
pub(crate) fn one_hot(labels: &[u8], classes: usize) -> Result<Vec<f32>> {
    let mut vectors = vec![0.0; labels.len() * classes];
    for (row, &label) in vectors.chunks_exact_mut(classes).zip(labels) {
        let cell = row.get_mut(usize::from(label));
        *cell.ok_or_else(|| Error::argument("class", format!("less than {classes}"), label))? = 1.0;
    }
    Ok(vectors)
}

/// A model on a device.
///
/// Graphs have a fixed batch size, so there is a program for each batch size and mode. Programs share parameters, running
/// statistics and memory. A program is compiled when it is first needed; [`Runner::new`] and [`Runner::prepare`] compile ahead.
///
/// Methods that wait for the device come in pairs: an `async` one, which also works in a browser, and one that blocks on it.
///
/// ```
/// use vae_wgpu::prelude::*;
///
/// let config = VaeConfig { channels: 4, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
/// let mut runner = Runner::new(config, &[(2, Mode::Train)], &Device::Cpu, &PlanOptions::default())?;
/// runner.init(0)?;
/// let images = vec![128; 2 * 3 * 32 * 32];
/// runner.train(&images, &Hyperparams::default())?;
/// assert!(runner.reports(true)?[0].finite);
/// assert_eq!(runner.decode(&[0.0, 0.0])?.len(), 3 * 32 * 32);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Runner {
    engine: Engine,
    config: VaeConfig,
    programs: Vec<((usize, Mode), ProgramId)>,
    memory: Option<Memory>,
    dispatches: usize,
    variants: BTreeMap<String, String>,
    seed: u64,
    step: u64,
    /// Ticket and step of training steps that have not been reported.
    pending: Vec<(u64, u64)>,
    /// Micro-batches of the next step that have run, and their number once the first has.
    accumulated: (usize, usize),
    /// Index of the step whose runs are timed, and the times of its runs but the last.
    timed: Option<(u64, Vec<Span>)>,
}

impl Runner {
    /// Puts the model on a device and compiles `programs`, of which there must be one at least: the batch size and mode of the
    /// first use, such as `(64, Mode::Train)`. All tensors are zero until [`Runner::init`] or [`Runner::upload`].
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] with the largest batch that fits if a program needs more memory than there is,
    /// [`Error::InvalidArgument`] for an invalid configuration, and errors of the device.
    pub fn new(
        config: VaeConfig,
        programs: &[(usize, Mode)],
        device: &Device,
        options: &plan::Options,
    ) -> Result<Self> {
        let mut runner = Self::without_programs(config, device, options)?;
        runner.prepare(programs)?;
        Ok(runner)
    }

    /// Like [`Runner::new`], for a browser: other tasks run between kernels, and [`Gpu::on_compiled`] reports each when it is ready.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub async fn new_async(
        config: VaeConfig,
        programs: &[(usize, Mode)],
        device: &Device,
        options: &plan::Options,
    ) -> Result<Self> {
        let mut runner = Self::without_programs(config, device, options)?;
        runner.prepare_async(programs).await?;
        Ok(runner)
    }

    fn without_programs(config: VaeConfig, device: &Device, options: &plan::Options) -> Result<Self> {
        Ok(Self {
            engine: Engine::new(device, options)?,
            config,
            programs: Vec::new(),
            memory: None,
            dispatches: 0,
            variants: BTreeMap::new(),
            seed: 0,
            step: 0,
            pending: Vec::new(),
            accumulated: (0, 0),
            timed: None,
        })
    }

    /// Compiles programs that do not exist yet. All are planned before the first one is compiled.
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub fn prepare(&mut self, programs: &[(usize, Mode)]) -> Result<()> {
        let missing = self.missing(programs);
        match &mut self.engine {
            Engine::Cpu(exec) => {
                for (batch, mode) in missing {
                    let id = exec.add(self.config.graph(batch, mode)?)?;
                    self.programs.push(((batch, mode), id));
                }
            }
            Engine::Gpu(exec, options) => {
                let planned = planned(&self.config, &missing, exec.gpu(), options)?;
                for (program, (graph, plan)) in missing.into_iter().zip(planned) {
                    let kernels: Vec<_> = plan.dispatches.iter().map(|bound| bound.dispatch.kernel).collect();
                    let memory = plan.memory;
                    let id = exec.add_planned(graph, plan)?;
                    record_variants(&mut self.variants, &kernels);
                    if self.memory.is_none_or(|largest| largest.total() < memory.total()) {
                        (self.memory, self.dispatches) = (Some(memory), kernels.len());
                    }
                    self.programs.push((program, id));
                }
            }
        }
        Ok(())
    }

    /// Like [`Runner::prepare`], for a browser, as [`Runner::new_async`].
    ///
    /// # Errors
    /// As [`Runner::new`].
    pub async fn prepare_async(&mut self, programs: &[(usize, Mode)]) -> Result<()> {
        if let Engine::Gpu(exec, options) = &self.engine {
            let planned = planned(&self.config, &self.missing(programs), exec.gpu(), options)?;
            let dispatches = planned.iter().flat_map(|(_, plan)| &plan.dispatches).map(|bound| &bound.dispatch);
            exec.gpu().compile_async(dispatches).await?;
        }
        self.prepare(programs)?;
        match &self.engine {
            // A browser reports now that it could not allocate a buffer.
            Engine::Gpu(exec, _) => exec.gpu().wait_async().await,
            Engine::Cpu(_) => Ok(()),
        }
    }

    /// Returns the programs that do not exist yet, each once.
    fn missing(&self, programs: &[(usize, Mode)]) -> Vec<(usize, Mode)> {
        let mut missing = Vec::new();
        for program in programs {
            if !missing.contains(program) && !self.programs.iter().any(|(known, _)| known == program) {
                missing.push(*program);
            }
        }
        missing
    }

    /// Initializes all tensors from the seed. Optimizer states are zero, and the next step is step 0. The seed also determines the
    /// noise of [`Runner::train`].
    ///
    /// # Errors
    /// Errors of the device.
    pub fn init(&mut self, seed: u64) -> Result<()> {
        for arena in [Arena::Params, Arena::States] {
            let first = initial(self.graph()?, arena, seed)?;
            self.engine.get_mut().upload(arena, &first)?;
        }
        for arena in [Arena::OptimizerState(0), Arena::OptimizerState(1)] {
            if self.uses(arena)? {
                let zeros: Vec<_> = self.graph()?.params().iter().map(|tensor| vec![0.0; tensor.spec.len()]).collect();
                self.engine.get_mut().upload(arena, &zeros)?;
            }
        }
        self.resume(seed, 0);
        Ok(())
    }

    /// Whether a program uses an arena.
    fn uses(&self, arena: Arena) -> Result<bool> {
        for (_, program) in &self.programs {
            if self.engine.get().graph(*program)?.arenas().contains(&arena) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Returns the configuration of the model.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Returns the memory of the largest program, or `None` for the CPU reference.
    #[must_use]
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// Returns the variants in use, by kernel. Empty for the CPU reference.
    #[must_use]
    pub fn variants(&self) -> &BTreeMap<String, String> {
        &self.variants
    }

    /// Returns the number of dispatches of the largest program, 0 for the CPU reference.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.dispatches
    }

    /// Returns device, driver and backend as text.
    #[must_use]
    pub fn describe(&self) -> String {
        self.engine.get().describe()
    }

    /// Returns the graph of the first program, with the names and shapes of all tensors.
    ///
    /// # Errors
    /// [`Error::Graph`] if there is no program.
    pub fn graph(&self) -> Result<&Graph> {
        let (_, first) = self.programs.first().ok_or_else(|| Error::Graph("the runner has no program".into()))?;
        self.engine.get().graph(*first)
    }

    /// Returns the index of the next training step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Continues an earlier run, whose parameters, states and optimizer states have been uploaded: sets its seed and the index of the
    /// next training step. Steps that were not reported yet, and micro-batches of a step that was not completed, are forgotten.
    pub fn resume(&mut self, seed: u64, step: u64) {
        (self.seed, self.step) = (seed, step);
        self.pending.clear();
        self.accumulated = (0, 0);
        self.timed = None;
    }

    /// Replaces the tensors of an arena, each in PyTorch's order.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if their number or lengths are not those of the graph.
    pub fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
        self.engine.get_mut().upload(arena, tensors)
    }

    /// Returns the tensors of an arena, each in PyTorch's order. Waits for the device.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        block_on(self.download_async(arena))
    }

    /// Like [`Runner::download`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::download`].
    pub async fn download_async(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        self.engine.download(arena).await
    }

    /// Returns the program for a batch size and mode, compiled if it is new.
    fn program(&mut self, batch: usize, mode: Mode) -> Result<ProgramId> {
        let find =
            |runner: &Self| runner.programs.iter().find(|(program, _)| *program == (batch, mode)).map(|(_, id)| *id);
        if find(self).is_none() {
            self.prepare(&[(batch, mode)])?;
        }
        find(self).ok_or_else(|| Error::bug("a program that was added is missing"))
    }

    /// Returns how many items of `size` values `len` values are.
    fn batch(what: &str, len: usize, size: usize) -> Result<usize> {
        if len == 0 || !len.is_multiple_of(size) {
            return Err(Error::argument(what, format!("a multiple of {size} values"), len));
        }
        Ok(len / size)
    }

    fn image_batch(&self, images: Labelled<'_, u8>) -> Result<usize> {
        Self::batch("images", images.values.len(), self.config.images(1).len())
    }

    /// Writes the classes of a batch as one-hot vectors, if the model is conditional.
    fn write_labels(&mut self, program: ProgramId, labels: &[u8], batch: usize) -> Result<()> {
        let classes = self.config.classes;
        if classes == 0 {
            return Ok(());
        }
        if labels.len() != batch {
            return Err(Error::argument("number of classes of a batch", batch, labels.len()));
        }
        self.write(program, "labels", Data::F32(&one_hot(labels, classes)?))
    }

    fn write_images(&mut self, program: ProgramId, images: Labelled<'_, u8>) -> Result<()> {
        self.write(program, "images", Data::U8(images.values))?;
        self.write_labels(program, images.labels, self.image_batch(images)?)
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data<'_>) -> Result<()> {
        let input = self.engine.get().input(program, input)?;
        self.engine.get_mut().write(input, data)
    }

    async fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        let output = self.engine.get().output(program, output)?;
        self.engine.read(output).await
    }

    fn run(&mut self, program: ProgramId, report: &[&str]) -> Result<u64> {
        self.run_with(program, report, None)
    }

    fn run_with(&mut self, program: ProgramId, report: &[&str], gather: Option<Gather<'_>>) -> Result<u64> {
        let outputs = report.iter().map(|name| self.engine.get().output(program, name)).collect::<Result<Vec<_>>>()?;
        let exec = self.engine.get_mut();
        match gather {
            None => exec.run(program, &outputs),
            Some(gather) => exec.run_exchanging(program, &outputs, gather),
        }
    }

    /// Starts a training step on `images` (bytes, `[batch, c, h, w]`) and returns its index. The results come later, from
    /// [`Runner::reports`]. The noise is a function of the seed given to [`Runner::init`] and of the step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of bytes is not that of whole images, and as [`Runner::new`].
    pub fn train<'a>(&mut self, images: impl Into<Labelled<'a, u8>>, hyper: &Hyperparams) -> Result<u64> {
        let images = images.into();
        let noise = noise(self.seed, self.step, self.image_batch(images)? * self.config.latent_dim);
        self.train_with_noise(images, &noise, hyper)
    }

    /// Like [`Runner::train`], with standard normal noise of the caller, `[batch, latent]`.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn train_with_noise<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        hyper: &Hyperparams,
    ) -> Result<u64> {
        let images = images.into();
        let program = self.program(self.image_batch(images)?, Mode::Train)?;
        // Micro-batches of a step that was not completed belong to no step.
        self.accumulated = (0, 0);
        self.write_batch(program, images, eps, hyper)?;
        self.start_update(program, hyper)
    }

    /// Starts a training step like [`Runner::train_with_noise`], in micro-batches of `size` images, of which the last may have fewer.
    /// Loss and gradient are means over all images of the step, added as [`MicroBatch`] defines; batch statistics are those of each
    /// micro-batch.
    ///
    /// # Errors
    /// As [`Runner::train`]; [`Error::InvalidArgument`] for more micro-batches than
    /// [`MAX_MICRO_BATCHES`](crate::runtime::op::MAX_MICRO_BATCHES).
    pub fn train_accumulated<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        size: usize,
        hyper: &Hyperparams,
    ) -> Result<u64> {
        let Labelled { values, labels } = images.into();
        let of = self.image_batch(values.into())?;
        if size == 0 {
            return Err(Error::argument("images of a micro-batch", "at least 1", size));
        }
        let latent = self.config.latent_dim;
        if eps.len() != of * latent {
            return Err(Error::argument("number of noise values", of * latent, eps.len()));
        }
        let size = size.min(of);
        let count = of.div_ceil(size);
        // A model without classes has no labels.
        let mut labels = labels.chunks(size);
        let parts = values.chunks(size * (values.len() / of)).zip(eps.chunks(size * latent));
        for (index, (values, eps)) in parts.enumerate() {
            let micro_batch = MicroBatch { index, count, images: size.min(of - index * size), of };
            self.accumulate(Labelled { values, labels: labels.next().unwrap_or_default() }, eps, micro_batch, hyper)?;
        }
        self.update(hyper)
    }

    /// Starts the forward and backward pass of a micro-batch, and adds loss and gradients to those of the micro-batches of the step before
    /// it. They come in order, from index 0; [`Runner::update`] ends the step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a micro-batch out of order, and as [`Runner::train_with_noise`].
    pub fn accumulate<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
    ) -> Result<()> {
        self.accumulate_in(Mode::Accumulate, images.into(), eps, micro_batch, hyper, None)
    }

    /// Runs the program of a micro-batch: that of `mode` with the number of micro-batches of the step, or more.
    fn accumulate_in(
        &mut self,
        mode: fn(usize) -> Mode,
        images: Labelled<'_, u8>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
        gather: Option<Gather<'_>>,
    ) -> Result<()> {
        micro_batch.check()?;
        let MicroBatch { index, count, .. } = micro_batch;
        let (done, all) = self.accumulated;
        if index > 0 && (index, count) != (done, all) {
            let expected = format!("{done} of {all}, or 0 to start a step");
            return Err(Error::argument("index of the next micro-batch", expected, format!("{index} of {count}")));
        }
        let batch = self.image_batch(images)?;
        if batch != micro_batch.images {
            return Err(Error::argument("images of a micro-batch", micro_batch.images, batch));
        }
        let program = self.program_for(batch, count, mode)?;
        self.write_batch(program, images, eps, hyper)?;
        self.write(program, "micro_batch", Data::F32(&micro_batch.to_array()))?;
        self.run_timed(program, &[], gather)?;
        self.accumulated = (index + 1, count);
        Ok(())
    }

    /// Starts the update that ends a training step of several micro-batches, and returns the index of the step. The results come later,
    /// from [`Runner::reports`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a micro-batch of the step is missing, and errors of the device.
    pub fn update(&mut self, hyper: &Hyperparams) -> Result<u64> {
        let (done, all) = self.accumulated;
        if done == 0 || done < all {
            return Err(Error::argument("number of micro-batches before the update", all.max(1), done));
        }
        let program = self.program(1, Mode::Update)?;
        let step = self.start_update(program, hyper)?;
        self.accumulated = (0, 0);
        Ok(step)
    }

    /// Returns the program of a mode for steps of `count` micro-batches: one for longer steps does too.
    fn program_for(&mut self, batch: usize, count: usize, mode: fn(usize) -> Mode) -> Result<ProgramId> {
        let suits = |&&((size, known), _): &&((usize, Mode), ProgramId)| {
            size == batch && known.most().is_some_and(|most| most >= count && known == mode(most))
        };
        match self.programs.iter().find(suits) {
            Some((_, program)) => Ok(*program),
            None => self.program(batch, mode(count)),
        }
    }

    /// Writes images, noise and the weights of the loss terms.
    fn write_batch(
        &mut self,
        program: ProgramId,
        images: Labelled<'_, u8>,
        eps: &[f32],
        hyper: &Hyperparams,
    ) -> Result<()> {
        self.write_images(program, images)?;
        self.write(program, "eps", Data::F32(eps))?;
        self.write(program, "objective", Data::F32(&[hyper.beta as f32, hyper.free_bits as f32]))
    }

    /// Runs a program that ends with the update of the next step, and returns the index of the step.
    fn start_update(&mut self, program: ProgramId, hyper: &Hyperparams) -> Result<u64> {
        let optimizer = self.engine.get().graph(program)?.optimizer();
        let adam = optimizer.ok_or_else(|| Error::bug("a training graph without optimizer"))?;
        let (bias_correction1, bias_correction2) = adam.bias_corrections(self.step);
        let scalars = StepScalars {
            lr: hyper.lr as f32,
            bias_correction1,
            bias_correction2,
            weight_decay: hyper.weight_decay as f32,
            clip: hyper.clip as f32,
        };
        self.write(program, "hyperparams", Data::F32(&scalars.to_array()))?;
        let ticket = self.run_timed(program, &["terms", "norm"], None)?;
        let step = self.step;
        self.pending.push((ticket, step));
        self.step += 1;
        Ok(step)
    }

    /// Requests times of the dispatches of the next training step. Returns `false` if the device has no timestamps.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn time_next(&mut self) -> Result<bool> {
        let able = self.engine.get_mut().time_next()?;
        self.timed = able.then(|| (self.step, Vec::new()));
        Ok(able)
    }

    /// Returns the times of the last timed step, once. Waits for the device. The runs of several micro-batches follow each other without the
    /// time between them.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn spans(&mut self) -> Result<Vec<Span>> {
        let (_, mut spans) = self.timed.take().unwrap_or_default();
        self.append_spans(&mut spans)?;
        Ok(spans)
    }

    /// Runs a program of a training step, timed if times were requested: all runs of a step are, each after the one before.
    fn run_timed(&mut self, program: ProgramId, report: &[&str], gather: Option<Gather<'_>>) -> Result<u64> {
        let later_run = |(step, _): &mut (u64, _)| *step == self.step && self.accumulated.0 > 0;
        if let Some((step, mut spans)) = self.timed.take_if(later_run) {
            self.append_spans(&mut spans)?;
            self.engine.get_mut().time_next()?;
            self.timed = Some((step, spans));
        }
        self.run_with(program, report, gather)
    }

    /// Appends the times of the last timed run.
    fn append_spans(&mut self, spans: &mut Vec<Span>) -> Result<()> {
        let end = spans.iter().filter_map(|span| Some(span.begin_ns? + span.ns?)).fold(0.0, f64::max);
        let last = self.engine.get_mut().spans()?;
        spans.extend(last.into_iter().map(|span| Span { begin_ns: span.begin_ns.map(|at| at + end), ..span }));
        Ok(())
    }

    /// Returns the reports of finished training steps, oldest first; with `wait`, of all steps started so far.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn reports(&mut self, wait: bool) -> Result<Vec<StepReport>> {
        block_on(self.reports_async(wait))
    }

    /// Like [`Runner::reports`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::reports`].
    pub async fn reports_async(&mut self, wait: bool) -> Result<Vec<StepReport>> {
        let reports = self.engine.reports(wait).await?;
        self.of_steps(reports)
    }

    /// Waits for the report of the oldest step, while the device works on later ones, and returns it with those that are ready too, oldest
    /// first.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn oldest_reports(&mut self) -> Result<Vec<StepReport>> {
        block_on(self.oldest_reports_async())
    }

    /// Like [`Runner::oldest_reports`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::oldest_reports`].
    pub async fn oldest_reports_async(&mut self) -> Result<Vec<StepReport>> {
        let reports = self.engine.oldest_reports().await?;
        self.of_steps(reports)
    }

    fn of_steps(&mut self, reports: Vec<Report>) -> Result<Vec<StepReport>> {
        let mut steps = Vec::new();
        for report in reports {
            let Some(at) = self.pending.iter().position(|(ticket, _)| *ticket == report.ticket) else { continue };
            let (_, step) = self.pending.remove(at);
            let [terms, norm] = report.values.as_slice() else { return Err(Error::bug("a report of another kind")) };
            let (&[total, recon, kl, mse], &[grad_norm, flag, ..]) = (terms.as_slice(), norm.as_slice()) else {
                return Err(Error::bug("a report of another length"));
            };
            steps.push(StepReport { step, total, recon, kl, mse, grad_norm, finite: flag == 1.0 });
        }
        Ok(steps)
    }

    /// Evaluates a batch with running statistics: loss terms, the posterior and the decoded images. `images`: bytes,
    /// `[batch, c, h, w]`; `eps`: noise, `[batch, latent]`.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn evaluate<'a>(&mut self, images: impl Into<Labelled<'a, u8>>, eps: &[f32], beta: f64) -> Result<Evaluation> {
        block_on(self.evaluate_async(images, eps, beta))
    }

    /// Like [`Runner::evaluate`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn evaluate_async<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        beta: f64,
    ) -> Result<Evaluation> {
        let images = images.into();
        let losses = self.losses_async(images, eps, beta).await?;
        let program = self.program(self.image_batch(images)?, Mode::Evaluate)?;
        Ok(Evaluation { mean: self.read(program, "mean").await?, ..losses })
    }

    /// Like [`Runner::evaluate`], without reading the images back, which takes time: `mean` is empty.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn losses<'a>(&mut self, images: impl Into<Labelled<'a, u8>>, eps: &[f32], beta: f64) -> Result<Evaluation> {
        block_on(self.losses_async(images, eps, beta))
    }

    /// Like [`Runner::losses`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn losses_async<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        beta: f64,
    ) -> Result<Evaluation> {
        let images = images.into();
        let program = self.program(self.image_batch(images)?, Mode::Evaluate)?;
        self.write_images(program, images)?;
        self.write(program, "eps", Data::F32(eps))?;
        self.write(program, "objective", Data::F32(&[beta as f32, 0.0]))?;
        self.run(program, &[])?;
        let terms = self.read(program, "terms").await?;
        let &[total, recon, kl, mse] = terms.as_slice() else { return Err(Error::bug("loss terms of another length")) };
        let (kl_dims, h) = (self.read(program, "kl_dims").await?, self.read(program, "h").await?);
        Ok(Evaluation { total, recon, kl, mse, kl_dims, h, mean: Vec::new() })
    }

    /// Encodes images (bytes, `[batch, c, h, w]`) to `h`, `[batch, 2 * latent]`: mu, then log_std.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn encode<'a>(&mut self, images: impl Into<Labelled<'a, u8>>) -> Result<Vec<f32>> {
        block_on(self.encode_async(images))
    }

    /// Like [`Runner::encode`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn encode_async<'a>(&mut self, images: impl Into<Labelled<'a, u8>>) -> Result<Vec<f32>> {
        let images = images.into();
        let program = self.program(self.image_batch(images)?, Mode::Encode)?;
        self.write_images(program, images)?;
        self.run(program, &[])?;
        self.read(program, "h").await
    }

    /// Decodes latent vectors, `[batch, latent]`, to mean images, `[batch, c, h, w]` with values around -1 to 1.
    ///
    /// # Errors
    /// As [`Runner::train`], for the number of latent values.
    pub fn decode<'a>(&mut self, z: impl Into<Labelled<'a, f32>>) -> Result<Vec<f32>> {
        block_on(self.decode_async(z))
    }

    /// Like [`Runner::decode`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn decode_async<'a>(&mut self, z: impl Into<Labelled<'a, f32>>) -> Result<Vec<f32>> {
        let z = z.into();
        let batch = Self::batch("latent vectors", z.values.len(), self.config.latent_dim)?;
        let program = self.program(batch, Mode::Decode)?;
        self.write(program, "z", Data::F32(z.values))?;
        self.write_labels(program, z.labels, batch)?;
        self.run(program, &[])?;
        self.read(program, "mean").await
    }

    /// Draws `count` latent vectors from the prior and decodes them. Returns mean images, as [`Runner::decode`].
    ///
    /// # Errors
    /// As [`Runner::decode`].
    pub fn sample(&mut self, count: usize, seed: u64) -> Result<Vec<f32>> {
        block_on(self.sample_async(count, seed))
    }

    /// Like [`Runner::sample`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::decode`].
    pub async fn sample_async(&mut self, count: usize, seed: u64) -> Result<Vec<f32>> {
        let z = rng::normals(&mut rng::stream(seed, Stream::Sample, 0), count * self.config.latent_dim);
        self.decode_async(&z).await
    }

    /// Returns the name of the first parameter, running statistic or gradient that contains NaN or infinity.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn first_non_finite(&mut self) -> Result<Option<String>> {
        block_on(self.first_non_finite_async())
    }

    /// Like [`Runner::first_non_finite`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::first_non_finite`].
    pub async fn first_non_finite_async(&mut self) -> Result<Option<String>> {
        for arena in [Arena::Params, Arena::States, Arena::Grads] {
            let tensors = self.download_async(arena).await?;
            let bad = tensors.iter().position(|t| t.iter().any(|v| !v.is_finite()));
            if let Some(i) = bad {
                let name = self.graph()?.tensors(arena).get(i).map(|t| t.name.clone()).unwrap_or_default();
                return Ok(Some(if arena == Arena::Grads { format!("the gradient of {name}") } else { name }));
            }
        }
        Ok(None)
    }
}

/// Results of evaluating a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Total loss: recon + beta * kl.
    pub total: f32,
    /// Reconstruction term.
    pub recon: f32,
    /// KL term.
    pub kl: f32,
    /// Mean squared error of the decoded images.
    pub mse: f32,
    /// KL divergence of each latent dimension in nats, averaged over the batch.
    pub kl_dims: Vec<f32>,
    /// `[batch, 2 * latent]`: mu, then log_std.
    pub h: Vec<f32>,
    /// Decoded images, `[batch, c, h, w]`.
    pub mean: Vec<f32>,
}

/// Plans programs for a device.
fn planned(
    config: &VaeConfig,
    programs: &[(usize, Mode)],
    gpu: &Gpu,
    options: &plan::Options,
) -> Result<Vec<(Graph, Plan)>> {
    programs.iter().map(|&(batch, mode)| config.plan(batch, mode, gpu.profile(), options)).collect()
}

/// Returns `count` values of standard normal noise; a shorter request returns the beginning of the same values.
pub(crate) fn noise(seed: u64, index: u64, count: usize) -> Vec<f32> {
    rng::normals(&mut rng::stream(seed, Stream::Noise, index), count)
}

/// Adds the variants of kernels to the list of those in use.
fn record_variants(variants: &mut BTreeMap<String, String>, kernels: &[&Kernel]) {
    for kernel in kernels {
        let known = variants.entry(kernel.name.to_owned()).or_default();
        if !known.split(", ").any(|variant| variant == kernel.variant) {
            known.push_str(if known.is_empty() { "" } else { ", " });
            known.push_str(kernel.variant);
        }
    }
}

/// Returns the batch sizes that `count` items take, `batch` at a time: `batch`, and what remains.
pub(crate) fn batch_sizes(count: usize, batch: usize) -> impl Iterator<Item = usize> {
    [if count < batch { 0 } else { batch }, count % batch].into_iter().filter(|&size| size > 0)
}
