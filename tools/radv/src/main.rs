//! Compiles the kernels that the default model runs on a GPU with ACO, the shader compiler of Mesa's RADV driver, and writes
//! registers, waves and instruction counts as a Markdown report. No AMD hardware is needed.
//!
//!     radv-report docs/gpu-report.md [FAMILY...]
//!
//! Fails if a kernel of the default plan spills registers, or has fewer waves than [`report::FEWEST_WAVES`] without a reason in
//! [`report::REASONS`].

mod isa;
mod kernels;
mod radv;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};

/// Values of `RADV_FORCE_FAMILY`: RDNA 2, RDNA 3 and GCN 5.
const FAMILIES: [&str; 3] = ["navi21", "gfx1100", "vega10"];

fn run() -> Result<Vec<String>> {
    let mut arguments = std::env::args().skip(1);
    let path: PathBuf = arguments.next().context("usage: radv-report REPORT.md [FAMILY...]")?.into();
    let mut families: Vec<String> = arguments.collect();
    if families.is_empty() {
        families = FAMILIES.map(str::to_owned).to_vec();
    }
    let kernels = kernels::all()?;
    let mut generations = Vec::new();
    for family in &families {
        eprintln!("{family}: {} pipelines", kernels.len());
        let device = radv::Device::open(family)?;
        let compiled = kernels.iter().map(|kernel| {
            device
                .compile(kernel)
                .with_context(|| format!("{family}: {}/{}", kernel.kernel.name, kernel.kernel.variant))
        });
        generations.push(report::Generation {
            family: family.clone(),
            device: device.name.clone(),
            statistics: compiled.collect::<Result<_>>()?,
        });
    }
    let report = report::write(&kernels, &generations);
    std::fs::write(&path, report.text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(report.faults)
}

fn main() -> ExitCode {
    match run() {
        Ok(faults) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(faults) => {
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("radv-report: {error:#}");
            ExitCode::FAILURE
        }
    }
}
