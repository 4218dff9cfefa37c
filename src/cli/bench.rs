//! `vae-wgpu bench`.

use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Subcommand};

use super::{DeviceArgs, ModelArgs, PlanArgs, out};
use crate::exec::{Runner, StepInput};
use crate::model::Mode;
use crate::rng::{self, Purpose};

/// Measure the training step.
#[derive(Args, Debug)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    /// Time whole training steps on random pictures, the loss read back after each.
    Step(StepArgs),
}

#[derive(Args, Debug)]
struct StepArgs {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: PlanArgs,
    /// Pictures in a batch.
    #[arg(long, default_value_t = 32)]
    batch: usize,
    /// Timed steps.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Steps before the timed ones.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Learning rate.
    #[arg(long, default_value_t = 0.01)]
    lr: f64,
    /// Print one line of JSON.
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        match &self.what {
            What::Step(args) => args.run(),
        }
    }
}

impl StepArgs {
    fn run(&self) -> anyhow::Result<ExitCode> {
        if self.steps == 0 {
            anyhow::bail!("--steps must be at least 1");
        }
        let started = Instant::now();
        let config = self.model.config()?;
        let device = self.device.open()?;
        let mut runner = Runner::new(config, &[(self.batch, Mode::Train)], &device, &self.plan.options()?)?;
        runner.init(0)?;
        let mut noise = rng::stream(1, Purpose::Check, 0);
        let pixels = config.images(self.batch).len();
        let images: Vec<u8> =
            rng::uniforms(&mut noise, pixels, 1.0)?.iter().map(|v| (v * 127.5 + 127.5) as u8).collect();
        let mut step = |runner: &mut Runner| {
            let eps = rng::normals(&mut noise, self.batch * config.latent_dim);
            let input = StepInput { images: &images, eps: &eps, lr: self.lr, weight_decay: 1e-2, beta: 1.0, clip: 0.0 };
            let begun = Instant::now();
            runner.train(self.batch, &input)?;
            let encode_ms = begun.elapsed().as_secs_f64() * 1e3;
            let report = runner.reports(true)?.pop();
            let report = report.ok_or_else(|| anyhow::anyhow!("a step without a report"))?;
            anyhow::Ok((begun.elapsed().as_secs_f64() * 1e3, encode_ms, report.total))
        };
        let mut first = None;
        for _ in 0..self.warmup {
            let (_, _, loss) = step(&mut runner)?;
            first.get_or_insert(loss);
        }
        let warmup_s = started.elapsed().as_secs_f64();
        let mut timed = Vec::new();
        for _ in 0..self.steps {
            timed.push(step(&mut runner)?);
        }
        let (Some(&(_, _, last)), Some(&(_, _, first_timed))) = (timed.last(), timed.first()) else {
            anyhow::bail!("no step was timed")
        };
        let first = first.unwrap_or(first_timed);
        let median = |mut v: Vec<f64>| {
            v.sort_by(f64::total_cmp);
            f64::midpoint(v[(v.len() - 1) / 2], v[v.len() / 2])
        };
        let ms = median(timed.iter().map(|t| t.0).collect());
        let min = timed.iter().map(|t| t.0).fold(f64::INFINITY, f64::min);
        let encode = median(timed.iter().map(|t| t.1).collect());
        let gflops = runner.graph()?.cost()?.flop / ms / 1e6;
        let dispatches = runner.dispatches();
        if self.json {
            out(serde_json::json!({
                "peer": "vae-wgpu", "version": env!("CARGO_PKG_VERSION"), "backend": runner.describe(), "batch": self.batch,
                "warmup_s": warmup_s, "step_ms_median": ms, "step_ms_min": min,
                "images_per_s": self.batch as f64 / ms * 1e3, "peak_rss_mb": peak_rss_mb(),
                "loss_first": first, "loss_last": last, "steps": self.steps,
                "dispatches": dispatches, "encode_ms": encode, "gflops": gflops,
            }))?;
        } else {
            out(format_args!(
                "{}: batch {}, step median {ms:.1} ms, min {min:.1} ms, {:.1} images/s, {gflops:.1} GFLOP/s, encoding {encode:.1} ms, {dispatches} dispatches, start and warm-up {warmup_s:.1} s, loss {first:.4} -> {last:.4}",
                runner.describe(),
                self.batch,
                self.batch as f64 / ms * 1e3
            ))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Largest resident memory of this process so far in MB, where the system tells (Linux).
fn peak_rss_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}
