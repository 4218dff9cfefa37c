//! `vae-wgpu tune`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};

use super::output::check_output;
use super::{DeviceArgs, ModelArgs, eprintln_lossy, print, values};
use crate::app::bench::tune::{MARGIN, VariantTable, choices, tune};
use crate::app::bench::{matching, workloads};
use crate::app::io::atomic::{create_parent, save_atomic};
use crate::runtime::plan;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::Device;

#[derive(Args, Debug)]
pub(super) struct TuneArgs {
    /// Batch size of the training runs that the table is for.
    #[arg(long, value_name = "N", default_value = "128")]
    batch: NonZeroUsize,
    /// Time only kernels whose name contains this, e.g. conv2d or backward_weight.
    #[arg(long, value_name = "FILTER", value_parser = values::non_empty::<String>)]
    only: Option<String>,
    /// Write the table to this .json file, for --variants.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// Samples per variant; the median counts.
const ROUNDS: usize = 5;
/// Length of a sample.
const SAMPLE: Duration = Duration::from_millis(20);

impl TuneArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let config = self.model.config(VaeConfig::default())?;
        if let Some(file) = &self.out {
            check_output(file, &["json"])?;
        }
        let Device::Gpu(gpu) = self.device.open()? else {
            anyhow::bail!(
                "cannot tune: the CPU reference has no variants to choose from. Choose a GPU adapter with --device; `vae-wgpu devices` lists them"
            )
        };
        let (graph, _) = config.plan(self.batch.get(), Mode::Train, gpu.profile(), &plan::Options::default())?;
        let workloads = matching(workloads(&graph)?, self.only.as_deref())?;
        let choices = choices(gpu.profile(), workloads)?;
        if choices.is_empty() {
            anyhow::bail!("no kernel with a choice of variants matches `{}`", self.only.as_deref().unwrap_or_default());
        }
        print(format_args!("adapter: {}", gpu.adapter_info()))?;
        print(format_args!(
            "{:<78} {:>5} {:<14} {:>9} {:<14} {:>9} {:>7}",
            "kernel", "count", "default", "ms", "best", "ms", "gain"
        ))?;
        let (mut tuned, mut before, mut after, mut better) = (Vec::new(), 0.0, 0.0, 0);
        for workload in &choices {
            let Some(row) = tune(&gpu, workload, ROUNDS, SAMPLE)? else { continue };
            let (best, default) = row.best_and_default();
            before += default * row.count as f64;
            after += best * row.count as f64;
            better += usize::from(row.best != row.default);
            print(format_args!(
                "{:<78} {:>5} {:<14} {default:>9.3} {:<14} {best:>9.3} {:>5.1} %",
                workload.name,
                row.count,
                row.default,
                row.best,
                100.0 * (1.0 - best / default)
            ))?;
            tuned.push(row);
        }
        print(format_args!(
            "{better} of {} kernels gain more than {:.0} %; time per step: {before:.1} ms with the defaults, {after:.1} ms with the best variants",
            tuned.len(),
            100.0 * MARGIN
        ))?;
        if let Some(file) = &self.out {
            create_parent(file)?;
            save_atomic(file, VariantTable::new(gpu.adapter_info(), &tuned).to_json()?.as_bytes())?;
            eprintln_lossy(format_args!(
                "table: {0}. Use it with --variants {0} --batch-size {1}",
                file.display(),
                self.batch
            ));
        }
        Ok(ExitCode::SUCCESS)
    }
}
