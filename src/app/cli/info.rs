//! `vae-wgpu info`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::Path;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::inference::BATCH;
use super::runs::Run;
use super::values;
use super::values::non_empty;
use super::{ModelArgs, TrainingPlanArgs, print};
use crate::app::io::model::Origin;
use crate::runtime::gpu::{Gpu, Options, Select};
use crate::runtime::graph::{Graph, Tensor};
use crate::runtime::kernel::Profile;
use crate::runtime::op::Cost;
use crate::runtime::plan;
use crate::runtime::plan::{Plan, Traffic};
use crate::vae::model::{Mode, VaeConfig};

#[derive(Args, Debug)]
pub(super) struct InfoArgs {
    /// Run folder, its name if it is in `runs`, a file with weights, or `pretrained`; without it the options below define the model.
    #[arg(value_name = "RUN|FILE", conflicts_with_all = ["channels", "blocks", "latent_dim", "norm", "likelihood"], value_parser = values::model(), value_hint = ValueHint::AnyPath)]
    trained: Option<Origin>,
    /// Batch size to plan for [default: that of the run, else 128].
    #[arg(long, alias = "batch-size", value_name = "N")]
    batch: Option<NonZeroUsize>,
    /// Plan for training steps of K micro-batches of --batch images, as `train --accumulate` does [default: that of the run, else 1].
    #[arg(long, value_name = "K", value_parser = values::micro_batches())]
    accumulate: Option<usize>,
    /// Plan for a device (auto, an index, or part of a name) instead of a GPU with WebGPU's default limits.
    #[arg(long, value_name = "auto|N|NAME", value_parser = non_empty::<Select>)]
    device: Option<Select>,
    /// Also print the name and shape of every tensor.
    #[arg(long)]
    layers: bool,
    /// Also print every dispatch of a training step and its work; with --accumulate, those of a micro-batch and of the update.
    ///
    /// `iterations` are those that the busiest invocation makes one after the other. `macs` are the multiply-adds that the tiles of a
    /// matrix product compute, and `useful` the share that the product consists of. `bytes` are those of all tensors bound.
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
        let model = self.trained.as_ref().map(Origin::load).transpose();
        let run = self.trained.as_ref().and_then(Origin::folder).map(Run::of).transpose();
        if let (Err(_), Ok(Some(run)), false) = (&model, &run, self.json) {
            // What is known of a run whose weights cannot be read.
            print(run.describe())?;
        }
        let (model, run) = (model?, run?);
        let default = run.as_ref().map_or((BATCH, 1), Run::micro_batches);
        let (batch, accumulate) =
            (self.batch.map_or(default.0, NonZeroUsize::get), self.accumulate.unwrap_or(default.1));
        let config =
            model.as_ref().map_or_else(|| self.model.config(VaeConfig::default()), |model| Ok(model.config))?;
        let gpu = match &self.device {
            Some(select) => Some(Gpu::open(&Options { select: select.clone(), ..Options::default() })?),
            None => None,
        };
        let options = self.plan.options(gpu.as_ref().map(Gpu::adapter_info), &config, &[(batch, Mode::Train)])?;
        let profile = gpu.as_ref().map_or(Profile::WEBGPU, |gpu| *gpu.profile());
        let planned_for = match &gpu {
            Some(gpu) => gpu.adapter_info().to_string(),
            None => "a GPU with WebGPU's default limits".to_owned(),
        };
        drop(gpu);
        let plan = |options: &plan::Options| StepPlan::new(&config, batch, accumulate, &profile, options);
        let step = plan(&options)?;
        let path = model.as_ref().map(|model| model.path.as_path());
        if self.json {
            let mut object = object(path, run.as_ref(), &config, &step)?;
            object["planned_for"] = planned_for.into();
            print(serde_json::to_string_pretty(&object)?)?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(run) = &run {
            print(run.describe())?;
        }
        if let Some(path) = path {
            print(format_args!("model:   {}", path.display()))?;
        }
        print(format_args!("parameters: {}", step.graph.parameter_count()))?;
        let hint = if self.device.is_none() { " (--device auto: for the one of this machine)" } else { "" };
        print(format_args!("planned for: {planned_for}{hint}"))?;
        print_cost(&config, &step, batch)?;
        print_plan("as planned", &step)?;
        let other = plan::Options { fuse: !options.fuse, budget: None, ..options.clone() };
        let name = if other.fuse { "fused" } else { "not fused" };
        print_plan(name, &plan(&other)?)?;
        print_untrained(&step.graph)?;
        print(format_args!("device memory at batch {batch}:\n{}", step.plan.memory))?;
        print_kernels(&step)?;
        if self.layers {
            print_tensors(&step.graph)?;
        }
        if self.dispatches {
            print_dispatches(&step)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The plan of a training step: one graph, or one for each micro-batch and one for the update.
struct StepPlan {
    micro_batches: usize,
    graph: Graph,
    plan: Plan,
    update: Option<(Graph, Plan)>,
}

impl StepPlan {
    fn new(
        config: &VaeConfig,
        batch: usize,
        micro_batches: usize,
        profile: &Profile,
        options: &plan::Options,
    ) -> crate::Result<Self> {
        let plan = |batch, mode| config.plan(batch, mode, profile, options);
        let ((graph, plan), update) = match micro_batches {
            1 => (plan(batch, Mode::Train)?, None),
            most => (plan(batch, Mode::Accumulate(most))?, Some(plan(1, Mode::Update)?)),
        };
        Ok(Self { micro_batches, graph, plan, update })
    }

    /// The graphs and plans of the step, and how often each runs.
    fn runs(&self) -> impl Iterator<Item = (usize, &Graph, &Plan)> {
        let update = self.update.iter().map(|(graph, plan)| (1, graph, plan));
        std::iter::once((self.micro_batches, &self.graph, &self.plan)).chain(update)
    }

    fn cost(&self) -> crate::Result<Cost> {
        let mut total = Cost::default();
        for (times, graph, _) in self.runs() {
            let cost = graph.cost()?;
            total.flop += times as f64 * cost.flop;
            total.bytes += times as f64 * cost.bytes;
        }
        Ok(total)
    }

    fn dispatches(&self) -> usize {
        self.runs().map(|(times, _, plan)| times * plan.dispatches.len()).sum()
    }

    fn traffic(&self) -> Traffic {
        let mut total = Traffic::default();
        for (times, _, plan) in self.runs() {
            let (times, Traffic { loaded, stored, copied }) = (times as u64, plan.traffic());
            total.loaded += times * loaded;
            total.stored += times * stored;
            total.copied += times * copied;
        }
        total
    }

    /// Returns the number of dispatches of each kernel and variant.
    fn kernels(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut all = BTreeMap::new();
        for (times, _, plan) in self.runs() {
            for (kernel, dispatches) in plan.kernels() {
                *all.entry(kernel).or_default() += times * dispatches;
            }
        }
        all
    }
}

/// The same as a JSON object.
fn object(path: Option<&Path>, run: Option<&Run>, config: &VaeConfig, step: &StepPlan) -> anyhow::Result<Value> {
    let (forward, cost) = (config.graph(1, Mode::Evaluate)?.cost()?, step.cost()?);
    let tensor = |tensor: &Tensor| json!({"name": tensor.name, "shape": tensor.spec.torch_dims()});
    let kernels = step
        .kernels()
        .into_iter()
        .map(|((kernel, variant), dispatches)| json!({"kernel": kernel, "variant": variant, "dispatches": dispatches}));
    Ok(json!({
        "model": path.map(|path| path.to_string_lossy()),
        "run": run,
        "config": config,
        "parameters": step.graph.parameter_count(),
        "flop_forward": forward.flop,
        "flop_step": cost.flop,
        "dispatches": step.dispatches(),
        "memory_bytes": step.plan.memory.total(),
        "kernels": kernels.collect::<Vec<_>>(),
        "tensors": step.graph.params().iter().map(tensor).collect::<Vec<_>>(),
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

fn print_cost(config: &VaeConfig, step: &StepPlan, batch: usize) -> anyhow::Result<()> {
    let (forward, cost) = (config.graph(1, Mode::Evaluate)?.cost()?, step.cost()?);
    let micro_batches = match step.micro_batches {
        1 => String::new(),
        count => format!("{count} x "),
    };
    print(format_args!(
        "cost: {:.1} MFLOP per image forward, {:.1} MFLOP per image and training step; {:.2} GFLOP and {:.2} GB of operands per step at batch {micro_batches}{batch}",
        forward.flop / 1e6,
        cost.flop / 1e6 / (step.micro_batches * batch) as f64,
        cost.flop / 1e9,
        cost.bytes / 1e9
    ))
}

fn print_plan(name: &str, step: &StepPlan) -> anyhow::Result<()> {
    print(format_args!(
        "{name}: {} dispatches per training step, {}, {:.1} MiB of activations and gradients",
        step.dispatches(),
        step.traffic(),
        step.plan.memory.slots as f64 / f64::from(1 << 20)
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

/// Prints the work of every dispatch.
fn print_dispatches(step: &StepPlan) -> anyhow::Result<()> {
    let plans = || step.runs().map(|(_, _, plan)| plan);
    let width = plans().flat_map(|plan| &plan.dispatches).map(|bound| bound.label.len()).max().unwrap_or(0);
    print(format_args!(
        "{:<width$} {:>10} {:>11} {:>10} {:>12} {:>6} {:>12}",
        "dispatch", "workgroups", "invocations", "iterations", "macs", "useful", "bytes"
    ))?;
    let (mut issued, mut useful) = (0, 0);
    for (bound, traffic) in plans().flat_map(Plan::traffics) {
        let (dispatch, work) = (&bound.dispatch, bound.dispatch.work);
        let product = match work.issued {
            0 => format!("{:>12} {:>6}", "", ""),
            macs => format!("{macs:>12} {:>6.2}", work.useful as f64 / macs as f64),
        };
        print(format_args!(
            "{:<width$} {:>10} {:>11} {:>10} {product} {:>12}",
            bound.label,
            dispatch.workgroups,
            dispatch.invocations(),
            work.iterations,
            traffic.total()
        ))?;
        issued += work.issued;
        useful += work.useful;
    }
    let count: usize = plans().map(|plan| plan.dispatches.len()).sum();
    let bytes = plans().map(Plan::traffic).sum::<Traffic>().total();
    print(format_args!(
        "{count} dispatches, {:.2} G multiply-adds, of which {:.2} G useful, {:.2} GB",
        issued as f64 / 1e9,
        useful as f64 / 1e9,
        bytes as f64 / 1e9
    ))
}

/// Prints the number of dispatches of each kernel and variant.
fn print_kernels(step: &StepPlan) -> anyhow::Result<()> {
    print("kernels:")?;
    for ((name, variant), count) in step.kernels() {
        print(format_args!("  {count:>4} x {name} ({variant})"))?;
    }
    Ok(())
}
