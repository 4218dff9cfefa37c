//! The model on a device: training steps, evaluation, encoding and decoding.

use std::collections::BTreeMap;

use self::engine::Engine;
use crate::error::{Error, Result};
use crate::runtime::exec::{Data, Executor, ProgramId};
use crate::runtime::gpu::{Gpu, Span};
use crate::runtime::graph::{Arena, Graph, initial};
use crate::runtime::kernel::Kernel;
use crate::runtime::op::Exchanges;
use crate::runtime::plan;
use crate::runtime::plan::{Memory, Plan};
use crate::runtime::sys::platform::block_on;
use crate::vae::model::{Mode, VaeConfig};

mod device;
mod engine;
mod infer;
mod labelled;
mod share;
mod train;

pub use self::device::Device;
pub use self::infer::BatchEvaluation;
pub use self::labelled::Labelled;
pub(crate) use self::labelled::one_hot;
pub(crate) use self::train::noise;
pub use self::train::{Hyperparams, StepReport};

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
        self.run_exchanging(program, report, Exchanges::None)
    }

    fn run_exchanging(&mut self, program: ProgramId, report: &[&str], exchanges: Exchanges<'_>) -> Result<u64> {
        let outputs = report.iter().map(|name| self.engine.get().output(program, name)).collect::<Result<Vec<_>>>()?;
        self.engine.get_mut().run_exchanging(program, &outputs, exchanges)
    }
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
