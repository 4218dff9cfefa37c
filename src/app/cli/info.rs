//! `vae-wgpu info`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::runs::Run;
use super::values;
use super::values::non_empty;
use super::{ModelArgs, TrainingPlanArgs, print};
use crate::app::io::model;
use crate::runtime::gpu::{Gpu, Options, Select};
use crate::runtime::graph::{Graph, Tensor};
use crate::runtime::kernel::Profile;
use crate::runtime::plan;
use crate::runtime::plan::Plan;
use crate::vae::model::{Mode, VaeConfig};

#[derive(Args, Debug)]
pub(super) struct InfoArgs {
    /// Run folder, its name if it is in `runs`, or a file with weights; without it the options below define the model.
    #[arg(value_name = "RUN|FILE", conflicts_with_all = ["channels", "blocks", "latent_dim", "norm"], value_parser = values::run(), value_hint = ValueHint::AnyPath)]
    trained: Option<PathBuf>,
    /// Batch size to plan for.
    #[arg(long, alias = "batch-size", value_name = "N", default_value = "128")]
    batch: NonZeroUsize,
    /// Plan for a device (auto, an index, or part of a name) instead of WebGPU's default limits.
    #[arg(long, value_name = "auto|N|NAME", value_parser = non_empty::<Select>)]
    device: Option<Select>,
    /// Also print the name and shape of every tensor.
    #[arg(long)]
    layers: bool,
    /// Also print every dispatch of a training step.
    #[arg(long)]
    dispatches: bool,
    /// Print one JSON object.
    #[arg(long, conflicts_with_all = ["layers", "dispatches"])]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: TrainingPlanArgs,
}

impl InfoArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let batch = self.batch.get();
        let model = self.trained.as_deref().map(model::load).transpose()?;
        let run = self.trained.as_deref().filter(|path| path.is_dir()).map(Run::of).transpose()?;
        let config =
            model.as_ref().map_or_else(|| self.model.config(VaeConfig::default()), |model| Ok(model.config))?;
        let gpu = match &self.device {
            Some(select) => Some(Gpu::open(&Options { select: select.clone(), ..Options::default() })?),
            None => None,
        };
        let options = self.plan.options(gpu.as_ref().map(Gpu::adapter_info), &config, &[(batch, Mode::Train)])?;
        let profile = gpu.as_ref().map_or(Profile::WEBGPU, |gpu| *gpu.profile());
        drop(gpu);
        let (graph, plan) = config.plan(batch, Mode::Train, &profile, &options)?;
        let path = model.as_ref().map(|model| model.path.as_path());
        if self.json {
            print(serde_json::to_string_pretty(&object(path, run.as_ref(), &config, &graph, &plan)?)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(run) = &run {
            print(run.describe())?;
        }
        if let Some(path) = path {
            print(format_args!("model:   {}", path.display()))?;
        }
        print(format_args!("parameters: {}", graph.parameter_count()))?;
        print_cost(&config, &graph, batch)?;
        print_plan("as planned", &plan)?;
        let other = plan::Options { fuse: !options.fuse, budget: None, ..options.clone() };
        let name = if other.fuse { "fused" } else { "not fused" };
        print_plan(name, &config.plan(batch, Mode::Train, &profile, &other)?.1)?;
        print_untrained(&graph)?;
        print(format_args!("device memory at batch {batch}:\n{}", plan.memory))?;
        print_kernels(&plan)?;
        if self.layers {
            print_tensors(&graph)?;
        }
        if self.dispatches {
            for placed in &plan.dispatches {
                print(format_args!("{} x{}", placed.label, placed.dispatch.workgroups))?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The same as a JSON object.
fn object(
    path: Option<&Path>,
    run: Option<&Run>,
    config: &VaeConfig,
    graph: &Graph,
    plan: &Plan,
) -> anyhow::Result<Value> {
    let (forward, step) = (config.graph(1, Mode::Evaluate)?.cost()?, graph.cost()?);
    let tensor = |tensor: &Tensor| json!({"name": tensor.name, "shape": tensor.spec.torch_dims()});
    let kernels = kernels(plan)
        .into_iter()
        .map(|((kernel, variant), dispatches)| json!({"kernel": kernel, "variant": variant, "dispatches": dispatches}));
    Ok(json!({
        "model": path.map(|path| path.to_string_lossy()),
        "run": run,
        "config": config,
        "parameters": graph.parameter_count(),
        "flop_forward": forward.flop,
        "flop_step": step.flop,
        "dispatches": plan.dispatches.len(),
        "memory_bytes": plan.memory.total(),
        "kernels": kernels.collect::<Vec<_>>(),
        "tensors": graph.params().iter().map(tensor).collect::<Vec<_>>(),
    }))
}

fn print_tensors(graph: &Graph) -> anyhow::Result<()> {
    print(format_args!("{:<58} {:<22} {:>10}", "tensor", "shape", "values"))?;
    for tensor in graph.params() {
        let dims = tensor.spec.torch_dims();
        print(format_args!("{:<58} {:<22} {:>10}", tensor.name, format!("{dims:?}"), tensor.spec.len()))?;
    }
    Ok(())
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
