//! The file of `vae-wgpu check --report`: what is in it besides the checks, and when it is written.

use std::path::Path;
use std::time::{Duration, Instant};

use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

use super::{DeviceArgs, eprintln_lossy};
use crate::app::bench::step::{StepBench, StepTimes};
use crate::app::check::{Fact, REPORTED_BATCH, Report};
use crate::app::figures::grouped;
use crate::app::io::atomic;
use crate::runtime::gpu::{Gpu, roofline};
use crate::runtime::plan;
use crate::vae::model::VaeConfig;

/// Extensions of the file.
pub(super) const KINDS: &[&str] = &["md", "txt"];
/// The file is written this often while checks run, so that a crash of the driver leaves most of it.
const EVERY: Duration = Duration::from_secs(5);
/// Warm-up steps and timed steps.
const WARMUP: u32 = 2;
const STEPS: u32 = 5;
const LEARNING_RATE: f64 = 0.01;

/// The commit of the build, which build scripts pass.
const COMMIT: Option<&str> = option_env!("VAE_WGPU_COMMIT");

/// A report that is written to a file.
pub(super) struct ReportFile<'a> {
    path: &'a Path,
    written: Option<Instant>,
}

impl<'a> ReportFile<'a> {
    pub(super) fn new(path: &'a Path) -> anyhow::Result<Self> {
        atomic::create_parent(path)?;
        Ok(Self { path, written: None })
    }

    pub(super) fn save(&mut self, report: &Report) -> crate::Result<()> {
        atomic::save_atomic(self.path, report.to_string().as_bytes())?;
        self.written = Some(Instant::now());
        Ok(())
    }

    /// Saves a report that is not complete, unless that was done a moment ago.
    pub(super) fn save_sometimes(&mut self, report: &Report) -> crate::Result<()> {
        if self.written.is_some_and(|written| written.elapsed() < EVERY) { Ok(()) } else { self.save(report) }
    }
}

/// Returns a report without speed and results.
pub(super) fn begin(gpu: Option<&Gpu>, filter: Option<&str>) -> anyhow::Result<Report> {
    let mut about: Vec<Fact> = Vec::new();
    if let Some(filter) = filter {
        about.push(("filter", format!("only checks whose name contains `{filter}`; no training step was timed")));
    }
    let debug = if cfg!(debug_assertions) { ", without optimisation" } else { "" };
    about.extend([
        ("date", jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()),
        ("version", format!("{}, commit {}{debug}", env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or("unknown"))),
    ]);
    about.extend(system());
    let Some(gpu) = gpu else {
        about.push(("adapter", "none, only the CPU reference was checked".to_owned()));
        return Ok(Report { about, ..Report::default() });
    };
    let mut report = Report { about, ..Report::default() };
    report.add_device(gpu)?;
    Ok(report)
}

/// Operating system, processor and memory.
fn system() -> Vec<Fact> {
    let what =
        RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    let system = System::new_with_specifics(what);
    let os = System::long_os_version().unwrap_or_else(|| std::env::consts::OS.to_owned());
    let kernel = System::kernel_version().map(|version| format!(", kernel {version}")).unwrap_or_default();
    let processor = system.cpus().first().map(|cpu| cpu.brand().trim()).filter(|brand| !brand.is_empty());
    let memory = system.total_memory() as f64 / f64::from(1 << 30);
    vec![
        ("system", format!("{os}{kernel}, {}", std::env::consts::ARCH)),
        ("processor", format!("{}, {} threads, {memory:.1} GiB", processor.unwrap_or("unknown"), system.cpus().len())),
    ]
}

/// Measures the peak rates of the device and, if `with_step`, a training step of the default model. A failure becomes a part of the
/// report and a warning.
pub(super) fn speed(device: &DeviceArgs, gpu: &Gpu, with_step: bool, verbose: bool) -> Vec<Fact> {
    let mut facts: Vec<Fact> = Vec::new();
    let failed = |what: &'static str, error: &dyn std::fmt::Display| {
        eprintln_lossy(format_args!("warning: {what} could not be measured: {error}"));
        (what, format!("**not measured**: {error}"))
    };
    match roofline(gpu) {
        Ok(roof) => facts.extend([
            ("multiply-add rate", format!("{:.1} GFLOP/s", roof.gflops)),
            ("copy bandwidth", format!("{:.2} GB/s (read + write)", roof.copy_gb_s)),
        ]),
        Err(error) => facts.push(failed("the peak rates of the device", &error)),
    }
    if with_step {
        match step(device, verbose) {
            Ok(text) => facts.push(("training step", text)),
            Err(error) => facts.push(failed("the training step", &format_args!("{error:#}"))),
        }
    }
    facts
}

/// Times a training step of the default model on a device of its own, so that a device that a check has lost does no harm.
fn step(device: &DeviceArgs, verbose: bool) -> anyhow::Result<String> {
    let device = device.open_for_models(verbose)?;
    let mut bench =
        StepBench::new(VaeConfig::default(), REPORTED_BATCH, LEARNING_RATE, &device, &plan::Options::default())?;
    bench.steps(WARMUP)?;
    let steps = bench.steps(STEPS)?;
    let Some(StepTimes { median, min, encode }) = StepTimes::of(&steps) else { anyhow::bail!("no step was timed") };
    let loss = steps.last().map_or(f32::NAN, |step| step.loss);
    Ok(format!(
        "default model, batch {REPORTED_BATCH}: median {median:.1} ms, min {min:.1} ms of {STEPS} steps; {:.1} images/s, {:.1} GFLOP/s, encoding {encode:.1} ms, {} dispatches, loss {loss:.4}",
        REPORTED_BATCH as f64 / median * 1e3,
        bench.gflops(median)?,
        grouped(bench.runner().dispatches() as u64),
    ))
}
