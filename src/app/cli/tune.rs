//! `vae-wgpu tune`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueHint};
use serde_json::{Value, json};

use super::output::{bar, check_output};
use super::{DeviceArgs, ModelArgs, note, print, values};
use crate::app::bench::tune::{MARGIN, Measured, VariantTable, choices, tune};
use crate::app::bench::{matching, workloads};
use crate::app::io::atomic::{create_parent, save_atomic};
use crate::runtime::plan;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::Device;

#[derive(Args, Debug)]
pub(super) struct TuneArgs {
    /// Batch size of the training runs that the table is for.
    #[arg(long, alias = "batch-size", value_name = "N", default_value = "128")]
    batch: NonZeroUsize,
    /// Time only kernels whose name contains this, e.g. conv2d or backward_weight.
    #[arg(long, value_name = "FILTER", value_parser = values::non_empty::<String>)]
    only: Option<String>,
    /// Write the table to this .json file, for --variants.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    /// Print one JSON object per kernel.
    #[arg(long)]
    json: bool,
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
        if !self.json {
            print(format_args!("adapter: {}", gpu.adapter_info()))?;
        }
        let bar = bar(choices.len(), "timing kernels");
        let (mut tuned, mut before, mut after, mut better) = (Vec::new(), 0.0, 0.0, 0);
        for workload in &choices {
            let row = tune(&gpu, workload, ROUNDS, SAMPLE)?;
            bar.inc(1);
            let Some(row) = row else { continue };
            let (best, default) = row.best_and_default();
            before += default * row.count as f64;
            after += best * row.count as f64;
            better += usize::from(row.best != row.default);
            let text = if self.json { object(&workload.name, &row).to_string() } else { lines(&workload.name, &row) };
            bar.suspend(|| print(text))?;
            tuned.push(row);
        }
        bar.finish_and_clear();
        if !self.json {
            let (kernels, margin) = (tuned.len(), 100.0 * MARGIN);
            print(format_args!("{better} of {kernels} kernels gain more than {margin:.0} %"))?;
            print(format_args!(
                "time per step: {before:.1} ms with the defaults, {after:.1} ms with the best variants"
            ))?;
        }
        if let Some(file) = &self.out {
            create_parent(file)?;
            save_atomic(file, VariantTable::new(gpu.adapter_info(), &tuned).to_json()?.as_bytes())?;
            note(format_args!("table: {0}. Use it with --variants {0} --batch-size {1}", file.display(), self.batch));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Describes a measured kernel in two lines that fit 80 columns: its shapes, and its times.
fn lines(name: &str, row: &Measured) -> String {
    let (best, default) = row.best_and_default();
    let gain = 100.0 * (1.0 - best / default);
    let Measured { count, default: before, best: after, .. } = row;
    let times = if before == after {
        format!("{before} {default:.3} ms is the best")
    } else {
        format!("{before} {default:.3} ms, {after} {best:.3} ms: {gain:.1} % less")
    };
    format!("{name}\n  {count:>3} per step  {times}")
}

/// The same as a JSON object, with the times of all variants.
fn object(name: &str, row: &Measured) -> Value {
    json!({"name": name, "count": row.count, "default": row.default, "best": row.best, "ms": row.ms})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measured_kernels_fit_80_columns() {
        let name = "conv2d.backward_weight [128, 256, 16, 16] -> [256, 256, 3, 3]";
        let row = |best| Measured {
            key: name.into(),
            count: 12,
            default: "tiled",
            best,
            ms: [("tiled", 123.456), ("subgroup_tex_8", 100.0)].into(),
        };
        let better = lines(name, &row("subgroup_tex_8"));
        assert!(better.ends_with("12 per step  tiled 123.456 ms, subgroup_tex_8 100.000 ms: 19.0 % less"), "{better}");
        for text in [better, lines(name, &row("tiled"))] {
            assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        }
        assert_eq!(object(name, &row("tiled"))["ms"]["subgroup_tex_8"], 100.0);
    }
}
