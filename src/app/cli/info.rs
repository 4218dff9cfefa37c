//! `vae-wgpu info`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};

use super::values;
use super::values::non_empty;
use super::{ModelArgs, TrainingPlanArgs, print};
use crate::app::io::model;
use crate::runtime::gpu::{Gpu, Options, Select};
use crate::runtime::graph::Graph;
use crate::runtime::kernel::Profile;
use crate::runtime::plan;
use crate::runtime::plan::Plan;
use crate::vae::model::{Mode, VaeConfig};

#[derive(Args, Debug)]
pub(super) struct InfoArgs {
    /// Run folder or model.safetensors of a trained model; without it the options below define the model.
    #[arg(value_name = "RUN|FILE", conflicts_with_all = ["channels", "blocks", "latent_dim", "norm"], value_parser = values::run(), value_hint = ValueHint::AnyPath)]
    trained: Option<PathBuf>,
    /// Batch size to plan for.
    #[arg(long, value_name = "N", default_value = "128")]
    batch: NonZeroUsize,
    /// Plan for a device (auto, an index, or part of a name) instead of WebGPU's default limits.
    #[arg(long, value_name = "auto|N|NAME", value_parser = non_empty::<Select>)]
    device: Option<Select>,
    /// Also print every dispatch of a training step.
    #[arg(long)]
    dispatches: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: TrainingPlanArgs,
}

impl InfoArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let batch = self.batch.get();
        let config = match &self.trained {
            Some(path) => {
                let model = model::load(path)?;
                print(format_args!("model: {}", model.path.display()))?;
                model.config
            }
            None => self.model.config(VaeConfig::default())?,
        };
        let gpu = match &self.device {
            Some(select) => Some(Gpu::open(&Options { select: select.clone(), ..Options::default() })?),
            None => None,
        };
        let options = self.plan.options(gpu.as_ref().map(Gpu::adapter_info), &config, &[(batch, Mode::Train)])?;
        let profile = gpu.as_ref().map_or(Profile::WEBGPU, |gpu| *gpu.profile());
        drop(gpu);
        let (graph, plan) = config.plan(batch, Mode::Train, &profile, &options)?;
        print_tensors(&graph)?;
        print_cost(&config, &graph, batch)?;
        print_plan("as planned", &plan)?;
        let other = plan::Options { fuse: !options.fuse, budget: None, ..options.clone() };
        let name = if other.fuse { "fused" } else { "not fused" };
        print_plan(name, &config.plan(batch, Mode::Train, &profile, &other)?.1)?;
        print_untrained(&graph)?;
        print(format_args!("device memory at batch {batch}:\n{}", plan.memory))?;
        print_kernels(&plan)?;
        if self.dispatches {
            for placed in &plan.dispatches {
                print(format_args!("{} x{}", placed.label, placed.dispatch.workgroups))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_tensors(graph: &Graph) -> anyhow::Result<()> {
    print(format_args!("{:<58} {:<22} {:>10}", "tensor", "shape", "values"))?;
    for tensor in graph.params() {
        let dims = tensor.spec.torch_dims();
        print(format_args!("{:<58} {:<22} {:>10}", tensor.name, format!("{dims:?}"), tensor.spec.len()))?;
    }
    print(format_args!("parameters: {}", graph.parameter_count()))
}

fn print_cost(config: &VaeConfig, step: &Graph, batch: usize) -> anyhow::Result<()> {
    let (forward, step) = (config.graph(1, Mode::Evaluate)?.cost()?, step.cost()?);
    print(format_args!(
        "cost: {:.1} MFLOP per image forward, {:.1} MFLOP per image and training step; {:.2} GFLOP and {:.2} GB of operands per step at batch {batch}",
        forward.flop / 1e6,
        step.flop / 1e6 / batch as f64,
        step.flop / 1e9,
        step.bytes / 1e9
    ))
}

fn print_plan(name: &str, plan: &Plan) -> anyhow::Result<()> {
    print(format_args!(
        "{name}: {} dispatches per training step, {}, {:.1} MiB of activations and gradients",
        plan.dispatches.len(),
        plan.traffic(),
        plan.memory.slots as f64 / f64::from(1 << 20)
    ))
}

/// Prints the number of parameters with a gradient of zero, which are not trained.
fn print_untrained(graph: &Graph) -> anyhow::Result<()> {
    let biases = graph.zero_grad_params();
    if biases.is_empty() {
        return Ok(());
    }
    let values: usize = biases.iter().map(|&i| graph.params()[i].spec.len()).sum();
    print(format_args!(
        "not trained: {} biases ({values} values) before a batch norm, because their gradient is exactly zero",
        biases.len()
    ))
}

/// Prints the number of dispatches of each kernel and variant.
fn print_kernels(plan: &Plan) -> anyhow::Result<()> {
    print("kernels:")?;
    for ((name, variant), count) in kernels(plan) {
        print(format_args!("  {count:>4} x {name} ({variant})"))?;
    }
    Ok(())
}

/// Returns the number of dispatches of each kernel and variant.
pub(super) fn kernels(plan: &Plan) -> BTreeMap<(&'static str, &'static str), usize> {
    let mut kernels = BTreeMap::new();
    for placed in &plan.dispatches {
        *kernels.entry((placed.dispatch.kernel.name, placed.dispatch.kernel.variant)).or_default() += 1;
    }
    kernels
}
