//! `vae-wgpu data`, and the options with which every command opens a data set.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::values::non_empty;
use super::{eprintln_lossy, print};
use crate::app::data::{DataSpec, FetchProgress};
use crate::vae::data::{Dataset, Description, Statistics};

/// Choice of a data set.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Data set")]
pub(super) struct DatasetArgs {
    /// Folder or archive of CIFAR-10, or `shapes` for the built-in data set [default: ./datasets/cifar-10-batches-bin, else the user's
    /// cache, else a download].
    #[arg(long, value_name = "PATH|shapes", value_parser = non_empty::<DataSpec>)]
    data: Option<DataSpec>,
    /// Use only the first N training images.
    #[arg(long, value_name = "N")]
    train_limit: Option<NonZeroUsize>,
    /// Use only the first N test images.
    #[arg(long, value_name = "N")]
    val_limit: Option<NonZeroUsize>,
}

impl DatasetArgs {
    /// Returns the data set that a run was started with.
    pub(super) fn new(
        data: Option<&str>,
        train_limit: Option<usize>,
        val_limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let data = data.map(str::parse).transpose()?;
        let limit = |n: Option<usize>| n.and_then(NonZeroUsize::new);
        Ok(Self { data, train_limit: limit(train_limit), val_limit: limit(val_limit) })
    }

    /// Returns the data set as stored in a run: a path is made absolute.
    pub(super) fn spec(&self) -> Option<String> {
        let spec = match self.data.as_ref()? {
            DataSpec::Path(path) => DataSpec::Path(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            other => other.clone(),
        };
        Some(spec.to_string())
    }

    /// Returns the numbers of training and test images to use.
    pub(super) fn limits(&self) -> (Option<usize>, Option<usize>) {
        (self.train_limit.map(NonZeroUsize::get), self.val_limit.map(NonZeroUsize::get))
    }

    /// Opens the data set; a download shows its progress on stderr unless `quiet`.
    pub(super) fn open(&self, quiet: bool) -> anyhow::Result<Dataset> {
        let spec = self.data.clone().unwrap_or_default();
        let mut meter = FetchBar::new(quiet);
        let opened = crate::app::data::open(&spec, &mut |progress| meter.show(progress));
        meter.bar.finish_and_clear();
        Ok(opened?.limited(self.train_limit.map(NonZeroUsize::get), self.val_limit.map(NonZeroUsize::get))?)
    }
}

/// A progress bar on a terminal, otherwise one line per stage.
struct FetchBar {
    bar: ProgressBar,
    lines: bool,
    stage: Option<&'static str>,
}

impl FetchBar {
    fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
        Self { lines: !quiet && bar.is_hidden(), bar, stage: None }
    }

    fn show(&mut self, progress: FetchProgress) {
        let stage = match progress {
            FetchProgress::Waiting => "waiting for another process to download CIFAR-10",
            FetchProgress::Downloading { done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
                "downloading CIFAR-10"
            }
            FetchProgress::Verifying => "verifying the checksum",
            FetchProgress::Unpacking => "unpacking",
        };
        if self.stage.replace(stage) == Some(stage) {
            return;
        }
        let template = match progress {
            FetchProgress::Downloading { .. } => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            _ => "{msg} ...",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(stage);
        if self.lines {
            eprintln_lossy(stage);
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct DataArgs {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dataset: DatasetArgs,
}

impl DataArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let description = self.dataset.open(false)?.describe()?;
        if self.json {
            print(serde_json::to_string_pretty(&description)?)?;
        } else {
            print_description(&description)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print_description(data: &Description) -> anyhow::Result<()> {
    print(format_args!("{} ({}), {}x{}x{}", data.name, data.provenance, data.channels, data.height, data.width))?;
    print(format_args!("{:<12} {:>8} {:>8}", "class", "train", "test"))?;
    let counts = data.train.histogram.iter().zip(&data.test.histogram);
    for (class, (train, test)) in data.classes.iter().zip(counts) {
        print(format_args!("{class:<12} {train:>8} {test:>8}"))?;
    }
    print(format_args!("{:<12} {:>8} {:>8}", "all", data.train.images, data.test.images))?;
    let channels = |values: &[f64]| values.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ");
    let line = |half: &str, s: &Statistics| {
        print(format_args!(
            "{half}: mean {}, standard deviation {} (per channel, pixels from 0 to 1)",
            channels(&s.mean),
            channels(&s.std)
        ))
    };
    line("train", &data.train)?;
    line("test", &data.test)
}
