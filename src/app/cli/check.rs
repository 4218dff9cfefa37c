//! `vae-wgpu check`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{DeviceArgs, print};
use crate::app::check::{Check, CheckOutcome, bisect, suite};
use crate::runtime::gpu::Gpu;
use crate::runtime::plan;
use crate::vae::model::VaeConfig;
use crate::vae::runner::Device;

#[derive(Args, Debug)]
pub(super) struct CheckArgs {
    /// Run only checks whose name contains this, e.g. conv2d or backward.
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Print one line per tensor with its error relative to the limit.
    #[arg(long, short)]
    verbose: bool,
    /// Print one JSON object per check.
    #[arg(long)]
    json: bool,
    /// Run a training step of the default model instead, and report the first tensor where GPU and reference disagree.
    #[arg(long, conflicts_with = "filter")]
    bisect: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl CheckArgs {
    /// Returns exit code 1 if a check fails; fails itself if none matches.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let gpu = match self.device.open()? {
            Device::Cpu => None,
            Device::Gpu(gpu) => Some(gpu),
        };
        if self.bisect && gpu.is_none() {
            anyhow::bail!(
                "cannot bisect: --bisect compares a GPU with the CPU reference. Choose a GPU adapter with --device; `vae-wgpu devices` lists them"
            );
        }
        let wanted = |check: &Check| {
            self.filter.as_ref().is_none_or(|f| check.to_string().contains(f.as_str()))
                && (gpu.is_some() || !check.needs_gpu())
        };
        let checks: Vec<_> = if self.bisect { Vec::new() } else { suite()?.into_iter().filter(wanted).collect() };
        if checks.is_empty() && !self.bisect {
            anyhow::bail!("no check matches `{}`", self.filter.as_deref().unwrap_or_default());
        }
        if !self.json {
            match &gpu {
                Some(gpu) => print(format_args!("adapter: {}", gpu.adapter_info()))?,
                None => print("adapter: none, checking only the CPU reference")?,
            }
        }
        if let (true, Some(gpu)) = (self.bisect, &gpu) {
            return self.bisect(gpu);
        }
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for check in checks {
            let name = check.to_string();
            let (verdict, lines, why) = match check.run(gpu.as_deref()) {
                Ok(CheckOutcome::Ran(lines)) => {
                    let good = !lines.is_empty() && lines.iter().all(crate::app::check::Comparison::passed);
                    (if good { "ok" } else { "FAILED" }, lines, None)
                }
                Ok(CheckOutcome::NotApplicable(why)) => ("not applicable", Vec::new(), Some(why)),
                Err(error) => ("FAILED", Vec::new(), Some(error.to_string())),
            };
            match verdict {
                "ok" => passed += 1,
                "FAILED" => failed += 1,
                _ => skipped += 1,
            }
            if self.json {
                print(json!({ "check": name, "verdict": verdict, "why": why, "tensors": lines }))?;
                continue;
            }
            let worst = lines.iter().map(|l| l.share).fold(0.0, f64::max);
            match why {
                Some(why) => print(format_args!("{verdict:<14} {name}: {why}"))?,
                None => print(format_args!("{verdict:<14} {name} ({worst:.0} % of the error limit)"))?,
            }
            for line in lines.iter().filter(|l| self.verbose || !l.passed()) {
                print(format_args!("    {line}"))?;
            }
        }
        if !self.json {
            print(format_args!("{passed} passed, {failed} failed, {skipped} not applicable"))?;
        }
        if passed + failed == 0 {
            anyhow::bail!(
                "no check that matches `{}` can run on this device",
                self.filter.as_deref().unwrap_or_default()
            );
        }
        Ok(ExitCode::from(u8::from(failed > 0)))
    }

    fn bisect(&self, gpu: &Arc<Gpu>) -> anyhow::Result<ExitCode> {
        let distances = bisect(gpu, &VaeConfig::default(), BISECT_BATCH, &plan::Options::default())?;
        for distance in distances.iter().filter(|_| self.verbose) {
            print(distance)?;
        }
        let first = distances.iter().find(|distance| !distance.passed());
        if self.json {
            print(json!({ "tensors": distances.len(), "first": first }))?;
        } else {
            match first {
                Some(first) => print(format_args!("GPU and reference disagree at {first}"))?,
                None => print(format_args!("all {} tensors of a training step agree", distances.len()))?,
            }
        }
        Ok(ExitCode::from(u8::from(first.is_some() || distances.is_empty())))
    }
}

/// Batch size of `--bisect`; small, because the reference is slow.
const BISECT_BATCH: usize = 4;
