//! The model on a device: training steps, evaluation, encoding and decoding, each over programs of fixed batch sizes.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::exec::{CpuExecutor, Data, Executor, GpuExecutor, ProgramId};
use crate::runtime::gpu::{Gpu, Span};
use crate::runtime::graph::{Arena, Graph};
use crate::runtime::op::StepScalars;
use crate::runtime::plan;
use crate::runtime::plan::Memory;
use crate::vae::model::{Mode, VaeConfig};

/// Where a model runs.
#[derive(Clone, Debug)]
pub enum Device {
    /// The CPU reference.
    Cpu,
    /// A GPU (or a software driver).
    Gpu(Arc<Gpu>),
}

/// What a training step needs from its caller.
#[derive(Clone, Copy, Debug)]
pub struct StepInput<'a> {
    /// ImageDecode of the batch, `[batch, c, h, w]`.
    pub images: &'a [u8],
    /// Standard normal noise, `[batch, latent]`.
    pub eps: &'a [f32],
    /// Learning rate of this step.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Weight of the KL term.
    pub beta: f64,
    /// Largest global gradient norm; 0 is off.
    pub clip: f64,
}

/// What a training step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Step, from 0.
    pub step: u64,
    /// Total loss: recon + beta * kl.
    pub total: f32,
    /// Reconstruction term.
    pub recon: f32,
    /// KL term.
    pub kl: f32,
    /// Global gradient norm before clipping.
    pub grad_norm: f32,
    /// Whether loss and gradients were finite and the update was made.
    pub finite: bool,
}

/// A model on a device.
#[derive(Debug)]
pub struct Runner {
    exec: Box<dyn Executor>,
    config: VaeConfig,
    programs: Vec<((usize, Mode), ProgramId)>,
    memory: Option<Memory>,
    dispatches: usize,
    variants: BTreeMap<String, String>,
    step: u64,
    /// Ticket and step of training steps that have not been reported.
    pending: Vec<(u64, u64)>,
}

impl Runner {
    /// Puts the model on a device, with a program for each batch size and mode. All tensors are zero until [`Runner::init`] or
    /// [`Runner::upload`].
    pub fn new(
        config: VaeConfig,
        programs: &[(usize, Mode)],
        device: &Device,
        options: &plan::Options,
    ) -> Result<Self> {
        let mut variants = BTreeMap::new();
        let mut ids = Vec::new();
        let (exec, memory, dispatches): (Box<dyn Executor>, _, _) = match device {
            Device::Cpu => {
                let mut exec = CpuExecutor::<f32>::within(options.budget);
                for &(batch, mode) in programs {
                    ids.push(exec.add(config.graph(batch, mode)?)?);
                }
                (Box::new(exec), None, 0)
            }
            Device::Gpu(gpu) => {
                let budget = [options.budget, gpu.available_memory()].into_iter().flatten().min();
                let options = &plan::Options { budget, ..options.clone() };
                let mut planned = Vec::new();
                let mut memory = None::<Memory>;
                let mut dispatches = 0;
                for &(batch, mode) in programs {
                    let (graph, plan) = config.plan(batch, mode, gpu.profile(), options)?;
                    for kernel in plan.dispatches.iter().map(|placed| placed.dispatch.kernel) {
                        let known: &mut String = variants.entry(kernel.name.to_owned()).or_default();
                        if !known.split(", ").any(|v| v == kernel.variant) {
                            known.push_str(if known.is_empty() { "" } else { ", " });
                            known.push_str(kernel.variant);
                        }
                    }
                    if memory.is_none_or(|m| m.total() < plan.memory.total()) {
                        memory = Some(plan.memory);
                        dispatches = plan.dispatches.len();
                    }
                    planned.push((graph, plan));
                }
                let mut exec = GpuExecutor::new(Arc::clone(gpu), options)?;
                for (graph, plan) in planned {
                    ids.push(exec.add_planned(graph, plan)?);
                }
                (Box::new(exec), memory, dispatches)
            }
        };
        Ok(Self {
            exec,
            config,
            programs: programs.iter().copied().zip(ids).collect(),
            memory,
            dispatches,
            variants,
            step: 0,
            pending: Vec::new(),
        })
    }

    /// First values of all tensors, from the seed alone; moments are zero and the next step is step 0.
    pub fn init(&mut self, seed: u64) -> Result<()> {
        for arena in [Arena::Params, Arena::States] {
            let first = crate::runtime::graph::initial(self.graph()?, arena, seed)?;
            self.exec.upload(arena, &first)?;
        }
        self.step = 0;
        Ok(())
    }

    /// The sizes of the model.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        &self.config
    }

    /// Memory of the largest program, where the device has a plan.
    #[must_use]
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// The variants of each kernel in use, by its name; empty for the CPU reference.
    #[must_use]
    pub fn variants(&self) -> &BTreeMap<String, String> {
        &self.variants
    }

    /// Dispatches of the largest program, where the device has a plan.
    #[must_use]
    pub fn dispatches(&self) -> usize {
        self.dispatches
    }

    /// Device, driver and backend, for people.
    #[must_use]
    pub fn describe(&self) -> String {
        self.exec.describe()
    }

    /// The graph of the first program: the names and shapes of all tensors.
    pub fn graph(&self) -> Result<&Graph> {
        let (_, first) = self.programs.first().ok_or_else(|| Error::Graph("the runner has no program".into()))?;
        self.exec.graph(*first)
    }

    /// Number of the next training step.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Sets the number of the next training step, after uploading the state of an earlier run.
    pub fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// Replaces the tensors of a arena.
    pub fn upload(&mut self, arena: Arena, tensors: &[Vec<f32>]) -> Result<()> {
        self.exec.upload(arena, tensors)
    }

    /// The tensors of a arena.
    pub fn download(&mut self, arena: Arena) -> Result<Vec<Vec<f32>>> {
        self.exec.download(arena)
    }

    fn program(&self, batch: usize, mode: Mode) -> Result<ProgramId> {
        let found = self.programs.iter().find(|(program, _)| *program == (batch, mode));
        found.map(|(_, id)| *id).ok_or_else(|| {
            let known: Vec<_> = self.programs.iter().map(|((b, m), _)| format!("{m:?} {b}")).collect();
            Error::Unknown { kind: "program", name: format!("{mode:?} {batch}"), known: known.join(", ") }
        })
    }

    fn write(&mut self, program: ProgramId, input: &str, data: Data<'_>) -> Result<()> {
        self.exec.write(self.exec.input(program, input)?, data)
    }

    fn read(&mut self, program: ProgramId, output: &str) -> Result<Vec<f32>> {
        self.exec.read(self.exec.output(program, output)?)
    }

    /// Starts a training step on `batch` pictures; its report comes later, from [`Runner::reports`].
    pub fn train(&mut self, batch: usize, input: &StepInput<'_>) -> Result<u64> {
        let program = self.program(batch, Mode::Train)?;
        self.write(program, "images", Data::U8(input.images))?;
        self.write(program, "eps", Data::F32(input.eps))?;
        let adam =
            self.exec.graph(program)?.optimizer().ok_or_else(|| Error::bug("a training graph without optimizer"))?;
        let (bias_correction1, bias_correction2) = adam.bias_corrections(self.step);
        let scalars = StepScalars {
            lr: input.lr as f32,
            bias_correction1,
            bias_correction2,
            weight_decay: input.weight_decay as f32,
            clip: input.clip as f32,
        };
        self.write(program, "beta", Data::F32(&[input.beta as f32]))?;
        self.write(program, "hyperparams", Data::F32(&scalars.to_array()))?;
        let report = [self.exec.output(program, "terms")?, self.exec.output(program, "norm")?];
        let ticket = self.exec.run(program, &report)?;
        let step = self.step;
        self.pending.push((ticket, step));
        self.step += 1;
        Ok(step)
    }

    /// Has the device time the dispatches of the next run; `false` where it cannot.
    pub fn time_next(&mut self) -> Result<bool> {
        self.exec.time_next()
    }

    /// The times of the run that was timed last, once. Waits.
    pub fn spans(&mut self) -> Result<Vec<Span>> {
        self.exec.spans()
    }

    /// Reports of finished training steps, oldest first; with `wait`, of all steps so far.
    pub fn reports(&mut self, wait: bool) -> Result<Vec<StepReport>> {
        let mut reports = Vec::new();
        for report in self.exec.reports(wait)? {
            let Some(at) = self.pending.iter().position(|(ticket, _)| *ticket == report.ticket) else { continue };
            let (_, step) = self.pending.remove(at);
            let [terms, norm] = report.values.as_slice() else { return Err(Error::bug("a report of another kind")) };
            let ([total, recon, kl], [grad_norm, flag, ..]) = (terms.as_slice(), norm.as_slice()) else {
                return Err(Error::bug("a report of another length"));
            };
            let finite = *flag == 1.0;
            reports.push(StepReport { step, total: *total, recon: *recon, kl: *kl, grad_norm: *grad_norm, finite });
        }
        Ok(reports)
    }

    /// Loss terms (total, recon, kl), `h` (`[batch, 2 * latent]`: mu, then log_std) and `mean` (`[batch, c, h, w]`) of a batch with
    /// running statistics.
    pub fn evaluate(&mut self, batch: usize, images: &[u8], eps: &[f32], beta: f64) -> Result<Evaluation> {
        let losses = self.losses(batch, images, eps, beta)?;
        let mean = self.read(self.program(batch, Mode::Evaluate)?, "mean")?;
        Ok(Evaluation { mean, ..losses })
    }

    /// The same without the pictures, whose reading back takes time: `mean` is empty.
    pub fn losses(&mut self, batch: usize, images: &[u8], eps: &[f32], beta: f64) -> Result<Evaluation> {
        let program = self.program(batch, Mode::Evaluate)?;
        self.write(program, "images", Data::U8(images))?;
        self.write(program, "eps", Data::F32(eps))?;
        self.write(program, "beta", Data::F32(&[beta as f32]))?;
        self.exec.run(program, &[])?;
        let terms = self.read(program, "terms")?;
        let &[total, recon, kl] = terms.as_slice() else { return Err(Error::bug("loss terms of another length")) };
        Ok(Evaluation { total, recon, kl, h: self.read(program, "h")?, mean: Vec::new() })
    }

    /// `h` (`[batch, 2 * latent]`: mu, then log_std) of pictures.
    pub fn encode(&mut self, batch: usize, images: &[u8]) -> Result<Vec<f32>> {
        let program = self.program(batch, Mode::Encode)?;
        self.write(program, "images", Data::U8(images))?;
        self.exec.run(program, &[])?;
        self.read(program, "h")
    }

    /// The mean picture (`[batch, c, h, w]`, -1 to 1) for latent numbers (`[batch, latent]`).
    pub fn decode(&mut self, batch: usize, z: &[f32]) -> Result<Vec<f32>> {
        let program = self.program(batch, Mode::Decode)?;
        self.write(program, "z", Data::F32(z))?;
        self.exec.run(program, &[])?;
        self.read(program, "mean")
    }

    /// The first gradient or parameter that holds NaN or infinity, by name: what to tell after a step that was not finite.
    pub fn first_non_finite(&mut self) -> Result<Option<String>> {
        for arena in [Arena::Params, Arena::States, Arena::Grads] {
            let tensors = self.exec.download(arena)?;
            let bad = tensors.iter().position(|t| t.iter().any(|v| !v.is_finite()));
            if let Some(i) = bad {
                let name = self.graph()?.tensors(arena).get(i).map(|t| t.name.clone()).unwrap_or_default();
                return Ok(Some(if arena == Arena::Grads { format!("the gradient of {name}") } else { name }));
            }
        }
        Ok(None)
    }
}

/// What evaluating a batch gave.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// Total loss: recon + beta * kl.
    pub total: f32,
    /// Reconstruction term.
    pub recon: f32,
    /// KL term.
    pub kl: f32,
    /// `[batch, 2 * latent]`: mu, then log_std.
    pub h: Vec<f32>,
    /// `[batch, c, h, w]`.
    pub mean: Vec<f32>,
}
