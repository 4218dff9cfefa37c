//! `vae-wgpu bench`.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};

use super::{DeviceArgs, ModelArgs, TrainingPlanArgs, adapter, print, values};
use crate::app::bench::step::{IN_FLIGHT, StepBench, StepTimes};
use crate::app::bench::{PassBench, ProductSummary, RooflineRow, matching, workloads};
use crate::runtime::gpu::roofline;
use crate::runtime::sys::memory;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::Device;

#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Time whole training steps on random images: from the end of one to the end of the next, with two in flight as in training.
    Step(StepArgs),
    /// Time each kernel of a training step by itself and compare it with the measured roofline of the device.
    ///
    /// Each row names an operation, a pass, and the shapes of its first operand and its result. `count` is the number of runs per step.
    /// `roof%` is the share of the limit that binds the kernel: the measured multiply-add rate, or the measured copy bandwidth.
    Kernels(KernelsArgs),
}

#[derive(Args, Debug)]
struct StepArgs {
    /// Batch size.
    #[arg(long, alias = "batch-size", value_name = "N", default_value = "32")]
    batch: NonZeroUsize,
    /// Number of timed steps.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    steps: u32,
    /// Number of warm-up steps before the timed ones.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    warmup: u32,
    /// Learning rate.
    #[arg(long, value_name = "RATE", default_value_t = 0.01, value_parser = values::non_negative)]
    lr: f64,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: TrainingPlanArgs,
}

#[derive(Args, Debug)]
struct KernelsArgs {
    /// Batch size.
    #[arg(long, alias = "batch-size", value_name = "N", default_value = "32")]
    batch: NonZeroUsize,
    /// Time only kernels whose name contains this, e.g. conv2d or backward_weight.
    #[arg(long, value_name = "FILTER", value_parser = values::non_empty::<String>)]
    only: Option<String>,
    /// Print JSON lines: one object with the adapter and its roofline, then one per kernel.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: TrainingPlanArgs,
}

impl BenchArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.what {
            What::Step(args) => args.run(),
            What::Kernels(args) => args.run(),
        }
    }
}

impl StepArgs {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let (started, batch) = (Instant::now(), self.batch.get());
        let config = self.model.config(VaeConfig::default())?;
        let device = self.device.open_for_models(!self.json)?;
        let options = self.plan.options(adapter(&device), &config, &[(batch, Mode::Train)])?;
        let mut bench = StepBench::new(config, batch, self.lr, &device, &options)?;
        let warmup = bench.steps(self.warmup)?;
        let warmup_s = started.elapsed().as_secs_f64();
        let timed = bench.steps(self.steps)?;
        let ends = warmup.iter().chain(&timed).next().zip(timed.last());
        let Some(((first, last), times)) = ends.zip(StepTimes::of(&timed)) else { anyhow::bail!("no step was timed") };
        let StepTimes { median: ms, min: min_ms, encode: encode_ms } = times;
        let (runner, gflops) = (bench.runner(), bench.gflops(ms)?);
        let images_per_s = batch as f64 / ms * 1e3;
        let dispatches = runner.dispatches();
        let peak_rss_mb = memory::peak_resident().map(|bytes| bytes as f64 / f64::from(1 << 20));
        // Measured last, because its buffers are large and it heats up the device.
        let roof_pct = match &device {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(100.0 * gflops / roofline(gpu)?.gflops),
        };
        if self.json {
            print(serde_json::json!({
                "peer": "vae-wgpu", "version": env!("CARGO_PKG_VERSION"), "backend": runner.describe(), "batch": batch,
                "warmup_s": warmup_s, "step_ms_median": ms, "step_ms_min": min_ms,
                "images_per_s": images_per_s, "peak_rss_mb": peak_rss_mb,
                "loss_first": first.loss, "loss_last": last.loss, "steps": self.steps,
                "dispatches": dispatches, "in_flight": IN_FLIGHT, "encode_ms": encode_ms, "gflops": gflops, "roof_pct": roof_pct,
            }))?;
        } else {
            let roof =
                roof_pct.map(|pct| format!(" ({pct:.1} % of the measured multiply-add rate)")).unwrap_or_default();
            print(format_args!(
                "{}: batch {batch}, {IN_FLIGHT} steps in flight, step median {ms:.1} ms, min {min_ms:.1} ms, {images_per_s:.1} images/s, {gflops:.1} GFLOP/s{roof}, encoding {encode_ms:.1} ms, {dispatches} dispatches, start and warm-up {warmup_s:.1} s, loss {:.4} -> {:.4}",
                runner.describe(),
                first.loss,
                last.loss
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Samples per kernel; the median counts.
const SAMPLES: usize = 5;
/// Length of a sample.
const SAMPLE: Duration = Duration::from_millis(20);

impl KernelsArgs {
    fn run(&self) -> anyhow::Result<ExitCode> {
        let (config, batch) = (self.model.config(VaeConfig::default())?, self.batch.get());
        let Device::Gpu(gpu) = self.device.open()? else {
            anyhow::bail!(
                "cannot measure kernels: the CPU reference has none. Choose a GPU adapter with --device; `vae-wgpu devices` lists them"
            )
        };
        let options = self.plan.options(Some(gpu.adapter_info()), &config, &[(batch, Mode::Train)])?;
        let (graph, _) = config.plan(batch, Mode::Train, gpu.profile(), &options)?;
        let workloads = matching(workloads(&graph)?, self.only.as_deref())?;
        let roof = roofline(&gpu)?;
        if self.json {
            print(serde_json::json!({
                "version": env!("CARGO_PKG_VERSION"), "adapter": gpu.adapter_info().to_string(), "roof": roof, "batch": batch,
            }))?;
        } else {
            print(format_args!("adapter: {}", gpu.adapter_info()))?;
            print(format_args!(
                "roof: {:.1} GFLOP/s multiply-add, {:.2} GB/s copy (read + write); batch {}",
                roof.gflops, roof.copy_gb_s, batch
            ))?;
            print(RooflineRow::heading())?;
        }
        let mut lines = Vec::new();
        for workload in &workloads {
            let variant = options.variant(workload.op.as_ref(), &workload.pass)?;
            let bench = PassBench::new(&gpu, workload, variant)?;
            let seconds = bench.time(SAMPLES, SAMPLE)?;
            let product = PassBench::of_product(&gpu, workload, variant)?;
            let product = product.map(|bench| bench.time(SAMPLES, SAMPLE)).transpose()?;
            let line = RooflineRow::new(workload, &bench.variant, seconds, product, &roof);
            if self.json {
                print(serde_json::to_string(&line)?)?;
            } else {
                print(&line)?;
            }
            lines.push(line);
        }
        if let (false, Some(summary)) = (self.json, ProductSummary::of(&lines)) {
            print(summary)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
