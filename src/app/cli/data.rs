//! `vae-wgpu data`, and the options with which every command opens a data set.

use std::io::Write;
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};

use super::out;
use super::values::given;
use crate::app::data::{DataSpec, Progress};
use crate::vae::data::{Dataset, Description, Statistics};

/// Options that choose a data set.
#[derive(Args, Debug, Clone)]
pub(super) struct DatasetArgs {
    /// CIFAR-10's folder or archive (default: ./datasets/cifar-10-batches-bin, then the cache, then a download), or the built-in shapes.
    #[arg(long, value_name = "PATH|shapes", value_parser = given::<DataSpec>)]
    data: Option<DataSpec>,
    /// Use the first N training images alone.
    #[arg(long, value_name = "N")]
    train_limit: Option<NonZeroUsize>,
    /// Use the first N test images alone.
    #[arg(long, value_name = "N")]
    val_limit: Option<NonZeroUsize>,
}

impl DatasetArgs {
    /// What a run was started with.
    pub(super) fn new(
        data: Option<&str>,
        train_limit: Option<usize>,
        val_limit: Option<usize>,
    ) -> anyhow::Result<Self> {
        let data = data.map(str::parse).transpose()?;
        let limit = |n: Option<usize>| n.and_then(NonZeroUsize::new);
        Ok(Self { data, train_limit: limit(train_limit), val_limit: limit(val_limit) })
    }

    /// The data set, to be found from any folder.
    pub(super) fn spec(&self) -> Option<String> {
        let spec = match self.data.as_ref()? {
            DataSpec::Path(path) => DataSpec::Path(std::path::absolute(path).unwrap_or_else(|_| path.clone())),
            other => other.clone(),
        };
        Some(spec.to_string())
    }

    /// Numbers of training and test images to use.
    pub(super) fn limits(&self) -> (Option<usize>, Option<usize>) {
        (self.train_limit.map(NonZeroUsize::get), self.val_limit.map(NonZeroUsize::get))
    }

    /// Opens the data set; a download shows its progress on stderr unless `quiet`.
    pub(super) fn open(&self, quiet: bool) -> anyhow::Result<Dataset> {
        let spec = self.data.clone().unwrap_or_default();
        let mut meter = Meter::new(quiet);
        let opened = crate::app::data::open(&spec, &mut |progress| meter.show(progress));
        meter.bar.finish_and_clear();
        Ok(opened?.limited(self.train_limit.map(NonZeroUsize::get), self.val_limit.map(NonZeroUsize::get))?)
    }
}

/// A bar on a terminal, a line for each stage elsewhere.
struct Meter {
    bar: ProgressBar,
    lines: bool,
    said: Option<&'static str>,
}

impl Meter {
    fn new(quiet: bool) -> Self {
        let bar = if quiet { ProgressBar::hidden() } else { ProgressBar::no_length() };
        Self { lines: !quiet && bar.is_hidden(), bar, said: None }
    }

    fn show(&mut self, progress: Progress) {
        let stage = match progress {
            Progress::Waiting => "waiting for another process that downloads CIFAR-10",
            Progress::Downloading { done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
                "downloading CIFAR-10"
            }
            Progress::Verifying => "verifying the checksum",
            Progress::Unpacking => "unpacking",
        };
        if self.said.replace(stage) == Some(stage) {
            return;
        }
        let template = match progress {
            Progress::Downloading { .. } => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            _ => "{msg} ...",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(stage);
        if self.lines {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "{stage}");
        }
    }
}

/// Download a data set where it is missing, verify it, and describe it.
#[derive(Args, Debug)]
pub(super) struct DataArgs {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

impl DataArgs {
    /// Every picture is read.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let description = self.dataset.open(false)?.describe()?;
        if self.json {
            out(serde_json::to_string_pretty(&description)?)?;
        } else {
            print(&description)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn print(data: &Description) -> anyhow::Result<()> {
    out(format_args!("{} ({}), {}x{}x{}", data.name, data.provenance, data.channels, data.height, data.width))?;
    out(format_args!("{:<12} {:>8} {:>8}", "class", "train", "test"))?;
    let counts = data.train.histogram.iter().zip(&data.test.histogram);
    for (class, (train, test)) in data.classes.iter().zip(counts) {
        out(format_args!("{class:<12} {train:>8} {test:>8}"))?;
    }
    out(format_args!("{:<12} {:>8} {:>8}", "all", data.train.images, data.test.images))?;
    let channels = |values: &[f64]| values.iter().map(|v| format!("{v:.4}")).collect::<Vec<_>>().join(" ");
    let line = |half: &str, s: &Statistics| {
        out(format_args!(
            "{half}: mean {}, standard deviation {} (by channel, of 1)",
            channels(&s.mean),
            channels(&s.std)
        ))
    };
    line("train", &data.train)?;
    line("test", &data.test)
}
