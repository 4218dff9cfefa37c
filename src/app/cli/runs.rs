//! `vae-wgpu runs`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};
use serde::Serialize;

use super::terminal::{cut, stdout_width};
use super::{eprintln_lossy, note, print};
use crate::app::io::csv;
use crate::app::io::run_config::RunConfig;
use crate::app::io::run_folder::{RUNS, RunFolder};
use crate::error::Error;
use crate::vae::train::Settings;
use crate::vae::train::rows::EpochRow;

#[derive(Args, Debug)]
pub(super) struct RunsArgs {
    /// Folder with run folders.
    #[arg(value_name = "DIR", default_value = RUNS, value_hint = ValueHint::DirPath)]
    folder: PathBuf,
    /// Print one JSON object per run.
    #[arg(long)]
    json: bool,
}

/// Summary of a run: a line of the list.
#[derive(Serialize)]
pub(super) struct Run {
    name: String,
    data: String,
    /// Local time of the start; unknown for runs of version 0.1.0.
    started: Option<String>,
    epochs_done: u64,
    epochs: u64,
    /// Lowest validation loss and its epoch; none before the first epoch ends.
    best: Option<f64>,
    best_epoch: Option<u64>,
    device: String,
    /// Size of all files.
    bytes: u64,
    /// Images of a micro-batch.
    batch_size: usize,
    /// Micro-batches of a training step.
    accumulate: usize,
}

impl RunsArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let mut folders = match fs::read_dir(&self.folder).and_then(Iterator::collect::<Result<Vec<_>, _>>) {
            // There is none before the first run.
            Err(error) if error.kind() == ErrorKind::NotFound && self.folder == Path::new(RUNS) => Vec::new(),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                anyhow::bail!(
                    "cannot list {}: no folder has this name. Pass a folder with run folders",
                    self.folder.display()
                );
            }
            folders => folders.map_err(Error::file("list", &self.folder))?,
        };
        folders.sort_by_key(fs::DirEntry::file_name);
        let paths = folders.iter().map(fs::DirEntry::path).filter(|path| path.join("config.json").is_file());
        // The folder may be a run itself.
        let paths = Some(self.folder.clone()).filter(|folder| RunFolder::is_run(folder)).into_iter().chain(paths);
        let mut runs = Vec::new();
        for path in paths {
            match Run::of(&path) {
                Ok(run) => runs.push(run),
                Err(error) => eprintln_lossy(format_args!("warning: {error:#}")),
            }
        }
        if self.json {
            for run in &runs {
                print(serde_json::to_string(run)?)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        if runs.is_empty() {
            note(format_args!("no runs in {}", self.folder.display()));
            return Ok(ExitCode::SUCCESS);
        }
        let width = |cell: fn(&Run) -> &str, title: &str| {
            runs.iter().map(|run| cell(run).chars().count()).max().unwrap_or(0).max(title.len())
        };
        let (name, data) = (width(|run| &run.name, "run"), width(|run| &run.data, "data"));
        // The names of devices are long.
        let width = stdout_width().unwrap_or(usize::MAX);
        let titles = format!(
            "{:<name$}  {:<data$}  {:>9}  {:>8}  {:>5}  {:>8}  device",
            "run", "data", "epochs", "best", "epoch", "MiB"
        );
        print(cut(&titles, width))?;
        for run in &runs {
            let epochs = format!("{}/{}", run.epochs_done, run.epochs);
            let best = run.best.map_or_else(|| "-".to_owned(), |best| format!("{best:.4}"));
            let best_epoch = run.best_epoch.map_or_else(|| "-".to_owned(), |epoch| epoch.to_string());
            let line = format!(
                "{:<name$}  {:<data$}  {epochs:>9}  {best:>8}  {best_epoch:>5}  {:>8.1}  {}",
                run.name,
                run.data,
                run.bytes as f64 / f64::from(1 << 20),
                run.device
            );
            print(cut(&line, width))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Run {
    /// Reads the summary of the run in a folder.
    pub(super) fn of(path: &Path) -> crate::Result<Self> {
        let folder = RunFolder::view(path)?;
        let config: RunConfig<Settings> = folder.load_config()?;
        let table = folder.epochs();
        let rows: Vec<EpochRow> = if table.exists() { csv::read(&table)? } else { Vec::new() };
        let best = rows.iter().min_by(|a, b| a.val_total.total_cmp(&b.val_total));
        Ok(Self {
            name: folder.name(),
            data: config.settings.data.clone().unwrap_or_else(|| "CIFAR-10".to_owned()),
            started: config.starts.first().map(|start| start.time.clone()),
            epochs_done: rows.len() as u64,
            epochs: config.settings.epochs,
            best: best.map(|row| row.val_total),
            best_epoch: best.map(|row| row.epoch),
            device: config.device,
            bytes: bytes(path),
            batch_size: config.settings.batch_size,
            accumulate: config.settings.accumulate,
        })
    }

    /// Images of a micro-batch, and micro-batches of a training step.
    pub(super) fn micro_batches(&self) -> (usize, usize) {
        (self.batch_size, self.accumulate)
    }

    /// Describes the run in a few lines.
    pub(super) fn describe(&self) -> String {
        let best = match (self.best, self.best_epoch) {
            (Some(best), Some(epoch)) => format!("validation loss {best:.4} in epoch {epoch}"),
            _ => "none before the first epoch ends".to_owned(),
        };
        let mib = self.bytes as f64 / f64::from(1 << 20);
        let started = self.started.as_deref().unwrap_or("unknown");
        format!(
            "run:     {}, {mib:.1} MiB\nstarted: {started}\ndata:    {}\nepochs:  {} of {}\nbest:    {best}\ndevice:  {}",
            self.name, self.data, self.epochs_done, self.epochs, self.device
        )
    }
}

/// Size of the files below a folder; those that cannot be read count nothing.
fn bytes(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let size = |entry: fs::DirEntry| match entry.metadata() {
        Ok(metadata) if metadata.is_dir() => bytes(&entry.path()),
        Ok(metadata) => metadata.len(),
        Err(_) => 0,
    };
    entries.filter_map(Result::ok).map(size).sum()
}
