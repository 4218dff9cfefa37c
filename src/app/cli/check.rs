//! `vae-wgpu check`.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::{DeviceArgs, print};
use crate::app::check::{Check, CheckOutcome, Comparison, bisect, suite};
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
        if self.bisect {
            let Some(gpu) = &gpu else {
                anyhow::bail!(
                    "cannot bisect: --bisect compares a GPU with the CPU reference. Choose a GPU adapter with --device; `vae-wgpu devices` lists them"
                );
            };
            self.print_adapter(Some(gpu))?;
            return self.bisect(gpu);
        }
        let filter = self.filter.as_deref().unwrap_or_default();
        let wanted = |check: &Check| check.to_string().contains(filter) && (gpu.is_some() || !check.needs_gpu());
        let checks: Vec<_> = suite()?.into_iter().filter(wanted).collect();
        if checks.is_empty() {
            anyhow::bail!("no check matches `{filter}`");
        }
        self.print_adapter(gpu.as_deref())?;
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for check in checks {
            match self.run_check(&check, gpu.as_deref())? {
                Verdict::Passed => passed += 1,
                Verdict::Failed => failed += 1,
                Verdict::NotApplicable => skipped += 1,
            }
        }
        if !self.json {
            print(format_args!("{passed} passed, {failed} failed, {skipped} not applicable"))?;
        }
        if passed + failed == 0 {
            anyhow::bail!("no check that matches `{filter}` can run on this device");
        }
        Ok(ExitCode::from(u8::from(failed > 0)))
    }

    fn print_adapter(&self, gpu: Option<&Gpu>) -> anyhow::Result<()> {
        match gpu {
            _ if self.json => Ok(()),
            Some(gpu) => print(format_args!("adapter: {}", gpu.adapter_info())),
            None => print("adapter: none, checking only the CPU reference"),
        }
    }

    /// Runs a check and prints its result.
    fn run_check(&self, check: &Check, gpu: Option<&Gpu>) -> anyhow::Result<Verdict> {
        let (verdict, tensors, why) = match check.run(gpu) {
            Ok(CheckOutcome::Ran(tensors)) if !tensors.is_empty() && tensors.iter().all(Comparison::passed) => {
                (Verdict::Passed, tensors, None)
            }
            Ok(CheckOutcome::Ran(tensors)) => (Verdict::Failed, tensors, None),
            Ok(CheckOutcome::NotApplicable(why)) => (Verdict::NotApplicable, Vec::new(), Some(why)),
            Err(error) => (Verdict::Failed, Vec::new(), Some(error.to_string())),
        };
        if self.json {
            print(json!({ "check": check.to_string(), "verdict": verdict.name(), "why": why, "tensors": tensors }))?;
            return Ok(verdict);
        }
        match why {
            Some(why) => print(format_args!("{:<14} {check}: {why}", verdict.name()))?,
            None => {
                let worst = tensors.iter().map(|tensor| tensor.share).fold(0.0, f64::max);
                print(format_args!("{:<14} {check} ({worst:.0} % of the error limit)", verdict.name()))?;
            }
        }
        for tensor in tensors.iter().filter(|tensor| self.verbose || !tensor.passed()) {
            print(format_args!("    {tensor}"))?;
        }
        Ok(verdict)
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

#[derive(Clone, Copy)]
enum Verdict {
    Passed,
    Failed,
    NotApplicable,
}

impl Verdict {
    fn name(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::NotApplicable => "not applicable",
        }
    }
}

/// Batch size of `--bisect`; small, because the reference is slow.
const BISECT_BATCH: usize = 4;
