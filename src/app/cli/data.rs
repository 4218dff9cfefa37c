//! `vae-wgpu data`, and the options with which every command opens a data set.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args, Command, ValueHint};
use indicatif::{ProgressBar, ProgressStyle};

use super::values::{image_size, non_empty};
use super::{eprintln_lossy, is_quiet, note, print};
use crate::app::data::{DataSpec, FetchProgress, ImageOptions, Opened, Summary};
use crate::app::figures::{counted, grouped};
use crate::error::{Error, printable};
use crate::vae::data::{Dataset, Description, Statistics};
use crate::vae::model::VaeConfig;
use crate::vae::train::Settings;

/// Choice of a data set.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Data set")]
pub(super) struct DatasetArgs {
    /// Folder of PNG or JPEG images, CIFAR-10 or CIFAR-100 as binary files or archive, folder with MNIST's IDX files, or `shapes` for the
    /// built-in data set [default: CIFAR-10 from ./datasets/cifar-10-batches-bin, else the user's cache, else a download].
    #[arg(long, value_name = "PATH|shapes", value_parser = non_empty::<DataSpec>, value_hint = ValueHint::AnyPath)]
    data: Option<DataSpec>,
    /// Crop the images of a folder to squares and resize them to this height and width: 32, 64 or 128 [default: 32].
    #[arg(long, value_name = "PIXELS", value_parser = image_size)]
    image_size: Option<usize>,
    /// Reject a folder with a broken image. Otherwise up to 10 broken images, or 1 % of the files if that is more, are skipped with a
    /// warning.
    #[arg(long, hide_short_help = true)]
    strict: bool,
    /// Use only the first N training images [default: all].
    #[arg(long, value_name = "N")]
    train_limit: Option<NonZeroUsize>,
    /// Use only the first N test images [default: all].
    #[arg(long, value_name = "N")]
    val_limit: Option<NonZeroUsize>,
}

/// Names the defaults of these options in the help of a command on a trained model.
pub(super) fn with_defaults_of_run(command: Command) -> Command {
    let defaults = [
        ("data", "that of the run"),
        ("image_size", "that of the model"),
        ("train_limit", "as many as the run, of its data set"),
        ("val_limit", "as many as the run, of its data set"),
    ];
    defaults.into_iter().fold(command, |command, (id, default)| {
        command.mut_arg(id, |arg| {
            let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
            let what = help.split(" [default").next().unwrap_or_default();
            arg.help(format!("{what} [default: {default}]"))
        })
    })
}

impl DatasetArgs {
    /// Returns the data set of a run with the images that it used. `self` has the options of this call, which take precedence.
    pub(super) fn of_run(&self, run: &Settings) -> anyhow::Result<Self> {
        let data = run.data.as_deref().map(str::parse).transpose()?;
        let limit = |here: Option<NonZeroUsize>, run: Option<usize>| here.or(run.and_then(NonZeroUsize::new));
        Ok(Self {
            data,
            image_size: self.image_size.or(run.image_size),
            strict: self.strict,
            train_limit: limit(self.train_limit, run.train_limit),
            val_limit: limit(self.val_limit, run.val_limit),
        })
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

    /// Returns the requested size of the images of a folder.
    pub(super) fn image_size(&self) -> Option<usize> {
        self.image_size
    }

    /// Opens the data set. The images of a folder become input of `model`, or without one get the requested size. Shows progress and a
    /// summary of a folder on stderr unless `quiet`, and warns about skipped files.
    pub(super) fn open(&self, quiet: bool, model: Option<&VaeConfig>) -> anyhow::Result<Opened> {
        let quiet = quiet || is_quiet();
        let spec = self.data.clone().unwrap_or_default();
        if let (Some(size), Some(model)) = (self.image_size, model.filter(|m| Some(m.image_size) != self.image_size)) {
            let expected = format!("{}, the size of the model's images", model.image_size);
            return Err(Error::argument("--image-size", expected, size).into());
        }
        let default = ImageOptions::default();
        let size = model.map(|m| m.image_size).or(self.image_size).unwrap_or(default.size);
        let options = ImageOptions { size, channels: model.map(|m| m.image_channels), strict: self.strict };
        let mut meter = FetchBar::new(quiet);
        let opened = crate::app::data::open(&spec, &options, &mut |progress| meter.show(progress));
        meter.bar.finish_and_clear();
        let Opened { dataset, images } = opened?;
        match &images {
            Some(summary) => summarize(&dataset, summary, quiet),
            None => {
                let (_, found, _) = dataset.train.size();
                if let Some(size) = self.image_size.filter(|size| *size != found) {
                    let expected = format!("{found} for {}; only a folder of images is resized", dataset.name);
                    return Err(Error::argument("--image-size", expected, size).into());
                }
            }
        }
        let (train, test) = self.limits();
        Ok(Opened { dataset: dataset.limited(train, test)?, images })
    }
}

/// Prints what was read from a folder of images unless `quiet`, and warnings about what was left out.
fn summarize(dataset: &Dataset, summary: &Summary, quiet: bool) {
    const NAMED: usize = 5;
    let list = |names: &[String], all: usize| {
        let more = all.saturating_sub(NAMED);
        let more = if more > 0 { format!(" and {} more", grouped(more as u64)) } else { String::new() };
        names.join(", ") + &more
    };
    let Summary { images, files, skipped, runs, in_memory } = summary;
    if !skipped.is_empty() {
        let named: Vec<_> = skipped.iter().take(NAMED).map(|path| printable(path.display())).collect();
        eprintln_lossy(format_args!(
            "warning: {} of {} image files cannot be decoded and are skipped: {}",
            grouped(skipped.len() as u64),
            grouped(*files as u64),
            list(&named, skipped.len())
        ));
    }
    if !runs.is_empty() {
        let named: Vec<_> = runs.iter().take(NAMED).map(|path| printable(path.display())).collect();
        eprintln_lossy(format_args!("warning: the images of runs are left out: {}", list(&named, runs.len())));
    }
    if quiet {
        return;
    }
    let ((c, h, w), classes) = (dataset.train.size(), dataset.train.classes());
    let named: Vec<_> = classes.iter().take(NAMED).cloned().collect();
    let memory =
        in_memory.map_or_else(|| "decoded anew for each epoch".to_owned(), |b| format!("{} in memory", bytes(b)));
    let skipped = match skipped.len() {
        0 => String::new(),
        count => format!(", {} skipped", counted(count as u64, "file")),
    };
    eprintln_lossy(format_args!(
        "data    {} images of {c}x{h}x{w}: {memory}{skipped}; classes: {}",
        grouped(*images as u64),
        list(&named, classes.len())
    ));
}

/// Formats a number of bytes: `1.2 GB`.
fn bytes(bytes: u64) -> String {
    match bytes as f64 {
        b if b < 1e6 => format!("{:.1} kB", b / 1e3),
        b if b < 1e9 => format!("{:.1} MB", b / 1e6),
        b => format!("{:.1} GB", b / 1e9),
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
            FetchProgress::Verified => "checksum ok",
            FetchProgress::Unpacking => "unpacking",
            FetchProgress::Decoding { done, total } => {
                self.bar.set_length(total);
                self.bar.set_position(done);
                "reading images"
            }
        };
        if self.stage.replace(stage) == Some(stage) {
            return;
        }
        let template = match progress {
            FetchProgress::Downloading { .. } => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            FetchProgress::Decoding { .. } => "{msg} {wide_bar} {pos}/{len} {eta}",
            _ => "{msg} ...",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        self.bar.set_message(stage);
        if matches!(progress, FetchProgress::Verified) && (self.lines || !self.bar.is_hidden()) {
            // Stays when the bar has gone.
            self.bar.suspend(|| note(stage));
        } else if self.lines && !matches!(progress, FetchProgress::Decoding { .. }) {
            // A summary follows the decoding of images.
            note(stage);
        }
    }
}

#[derive(Args, Debug)]
pub(super) struct DataArgs {
    /// The data set, as for --data.
    #[arg(value_name = "PATH|shapes", value_parser = non_empty::<DataSpec>, value_hint = ValueHint::AnyPath, conflicts_with = "data")]
    path: Option<DataSpec>,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    dataset: DatasetArgs,
}

impl DataArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut dataset = self.dataset.clone();
        dataset.data = self.path.clone().or(dataset.data);
        let description = dataset.open(self.json, None)?.dataset.describe()?;
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
