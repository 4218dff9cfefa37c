//! `vae-wgpu check`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, ValueHint};
use serde_json::json;

use super::check_report::{self, ReportFile};
use super::output::{Counter, check_output};
use super::{DeviceArgs, is_broken_pipe, note, print};
use crate::app::check::{Check, CheckResult, Report, Tally, bisect, suite};
use crate::app::figures::counted;
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
    /// Write a report to attach to an issue: system, adapter, results of the checks, and speed (.md or .txt).
    ///
    /// Besides running the checks, it measures the peak rates of the device and times training steps of the default model. All of it
    /// takes 5 to 10 minutes with a software driver on two cores. With FILTER the report has only these checks and no training step.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with = "bisect")]
    report: Option<PathBuf>,
    /// Run a training step of the default model instead, and report the first tensor where GPU and reference disagree.
    #[arg(long, conflicts_with = "filter")]
    bisect: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

impl CheckArgs {
    /// Returns exit code 1 if a check fails; fails itself if none matches.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        if let Some(path) = &self.report {
            check_output(path, check_report::KINDS)?;
        }
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
        let gpu = gpu.as_deref();
        let filter = self.filter.as_deref().unwrap_or_default();
        let wanted = |check: &Check| check.to_string().contains(filter) && (gpu.is_some() || !check.needs_gpu());
        let checks: Vec<_> = suite()?.into_iter().filter(wanted).collect();
        if checks.is_empty() {
            anyhow::bail!("no check matches `{filter}`");
        }
        self.print_adapter(gpu)?;
        let mut report = Report::default();
        let mut file = None;
        if let Some(path) = &self.report {
            (report, file) = (check_report::begin(gpu, self.filter.as_deref())?, Some(ReportFile::new(path)?));
            self.announce(checks.len(), gpu);
        }
        let mut counter = Counter::new(checks.len(), "checking", !self.json);
        for check in &checks {
            if let Some(file) = &mut file {
                report.running = Some((checks.len(), check.to_string()));
                file.save_sometimes(&report)?;
            }
            let result = CheckResult::of(check, gpu);
            match counter.suspend(|| self.print_result(&result)) {
                // A report does not depend on a reader of stdout.
                Err(error) if file.is_some() && is_broken_pipe(&error) => {}
                printed => printed?,
            }
            counter.advance();
            report.results.push(result);
        }
        counter.finish();
        report.running = None;
        let tally = Tally::of(&report.results);
        if let Some(file) = &mut file {
            file.save(&report)?;
            if let Some(gpu) = gpu {
                report.speed = check_report::speed(&self.device, gpu, self.filter.is_none(), !self.json);
                file.save(&report)?;
            }
        }
        if !self.json {
            if let Some(path) = &self.report {
                note(format_args!("report: {}", path.display()));
            }
            print(tally)?;
        }
        if tally.passed + tally.failed == 0 {
            anyhow::bail!("no check that matches `{filter}` can run on this device");
        }
        Ok(ExitCode::from(u8::from(tally.failed > 0)))
    }

    /// Says what a report takes before the work begins.
    fn announce(&self, checks: usize, gpu: Option<&Gpu>) {
        if self.json {
            return;
        }
        let checks = counted(checks as u64, "check");
        let more = match (gpu, &self.filter) {
            (None, _) => "",
            (Some(_), Some(_)) => ", then peak rates",
            (Some(_), None) => {
                ", then peak rates and training steps: 5 to 10 minutes with a software driver on two cores"
            }
        };
        note(format_args!("report: {checks}{more}"));
    }

    fn print_adapter(&self, gpu: Option<&Gpu>) -> anyhow::Result<()> {
        match gpu {
            _ if self.json => Ok(()),
            Some(gpu) => print(format_args!("adapter: {}", gpu.adapter_info())),
            None => print("adapter: none, checking only the CPU reference"),
        }
    }

    /// Prints the result of a check, with the tensors that failed.
    fn print_result(&self, result: &CheckResult) -> anyhow::Result<()> {
        if self.json {
            let CheckResult { name, verdict, why, tensors } = result;
            return print(json!({ "check": name, "verdict": verdict.name(), "why": why, "tensors": tensors }));
        }
        print(result)?;
        for tensor in result.tensors.iter().filter(|tensor| self.verbose || !tensor.passed()) {
            print(format_args!("    {tensor}"))?;
        }
        Ok(())
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
