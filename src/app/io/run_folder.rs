//! The folder of a run: its files by name, who may write to it, and its settings.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::app::io::atomic;
use crate::app::io::atomic::{FolderLock, LOCK, LockState};
use crate::app::viz::image_grid::{Grid, Pictures, save_png};
use crate::error::{Error, Result};

/// Version of the layout of `config.json`.
const FORMAT: u32 = 1;

/// `config.json`: what a run was started with and on. `S` is the program's own settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunConfig<S> {
    /// Version of the layout of this file.
    pub format: u32,
    /// Version of vae-wgpu.
    pub version: String,
    /// Adapter, driver and backend.
    pub device: String,
    /// The variant of each kernel.
    pub kernels: BTreeMap<String, String>,
    /// Everything that was chosen.
    pub settings: S,
}

impl<S> RunConfig<S> {
    /// A configuration of this version of the program.
    pub fn new(device: String, kernels: BTreeMap<String, String>, settings: S) -> Self {
        Self { format: FORMAT, version: env!("CARGO_PKG_VERSION").to_owned(), device, kernels, settings }
    }
}

impl<S: DeserializeOwned> RunConfig<S> {
    /// Takes it from the bytes of `config.json`; `path` is for the message.
    ///
    /// # Errors
    /// [`Error::File`] where they make no sense or have unknown fields, [`Error::Checkpoint`] where they are of another format.
    pub fn from_json(bytes: &[u8], path: &Path) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let malformed = |error: serde_json::Error| Error::malformed("parse", path, error);
        let Version { format } = serde_json::from_slice(bytes).map_err(malformed)?;
        if format != FORMAT {
            return Err(Error::Checkpoint {
                path: path.to_owned(),
                what: "format".to_owned(),
                expected: FORMAT.to_string(),
                found: format.to_string(),
                hint: "it was written by another version of vae-wgpu".to_owned(),
            });
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }
}

/// A run folder, to write to (under its lock) or to look at.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    state: State,
    /// Last: what happens when a folder is left happens under the lock.
    lock: Option<FolderLock>,
}

/// What there is of the run.
#[derive(Debug)]
enum State {
    /// One that has begun.
    Begun,
    /// One to be overwritten.
    Old,
    /// None; the folder goes when it is left so.
    New(Reserved),
}

/// A folder that holds nothing but its lock. A run that does not begin in it leaves no trace.
#[derive(Debug)]
struct Reserved {
    path: PathBuf,
    /// Whether the folder was made for the run.
    made: bool,
}

impl Reserved {
    /// The run begins: the folder stays.
    fn keep(mut self) {
        self.path.clear();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // What stays is only untidy.
        let _ = fs::remove_file(self.path.join(LOCK));
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// The files of a run, in the order in which an overwritten run loses them: first what would let it be resumed.
const FILES: [&str; 9] = [
    "checkpoint.safetensors",
    "model.safetensors",
    "config.json",
    "metrics.csv",
    "epochs.csv",
    "reconstruction_history.png",
    "training_loss.png",
    "grad_norm.png",
    "learning_rate.png",
];
/// Folders of a run that hold one picture an epoch.
const SAMPLES: &str = "samples";
const RECONSTRUCTIONS: &str = "reconstructions";

impl RunFolder {
    /// A folder for a new run: `out`, or `runs/<date>-<n>` with the first free n. It must be new or empty, or hold a run and `force` be
    /// given. Until the run begins nothing in it is touched.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be made, is taken, or another process writes to it.
    pub fn create(out: Option<&Path>, force: bool) -> Result<Self> {
        let Some(path) = out else { return Self::next(Path::new("runs"), &today()) };
        let made = !path.exists();
        fs::create_dir_all(path).map_err(Error::file("create the folder", path))?;
        let taken = entries(path)?.any(|entry| entry.file_name() != LOCK);
        let run = [LOCK, FILES[0]].iter().any(|name| path.join(name).exists());
        if taken && !(force && run) {
            let why = match run {
                true => "it is not empty: give --force to overwrite the run in it, or another --out",
                false => "it is not empty and holds no run: give another --out",
            };
            return Err(Error::file("start a run in", path)(io::Error::new(ErrorKind::DirectoryNotEmpty, why)));
        }
        let lock = FolderLock::take(path)?;
        let state = if taken { State::Old } else { State::New(Reserved { path: path.to_owned(), made }) };
        Ok(Self { path: path.to_owned(), state, lock: Some(lock) })
    }

    /// The run begins: the files of the one that is overwritten are removed, and only those.
    ///
    /// # Errors
    /// [`Error::File`] where that cannot be done.
    pub fn begin(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Begun) {
            State::Begun => {}
            State::New(reserved) => reserved.keep(),
            State::Old => {
                for name in FILES {
                    remove(&self.path.join(name))?;
                }
                for folder in [SAMPLES, RECONSTRUCTIONS].map(|name| self.path.join(name)) {
                    if folder.is_dir() {
                        let mut files = entries(&folder)?.filter(|entry| is_of_an_epoch(&entry.file_name()));
                        files.try_for_each(|entry| remove(&entry.path()))?;
                    }
                }
            }
        }
        self.make_folders()
    }

    fn next(runs: &Path, date: &str) -> Result<Self> {
        fs::create_dir_all(runs).map_err(Error::file("create the folder", runs))?;
        for n in 1u32.. {
            let path = runs.join(format!("{date}-{n}"));
            // Two processes cannot both make the same folder.
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = FolderLock::take(&path)?;
                    let reserved = Reserved { path: path.clone(), made: true };
                    return Ok(Self { path, state: State::New(reserved), lock: Some(lock) });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::file("create the folder", &path)(error)),
            }
        }
        Err(Error::bug("no free name for a run folder"))
    }

    fn make_folders(&self) -> Result<()> {
        for folder in [SAMPLES, RECONSTRUCTIONS].map(|name| self.path.join(name)) {
            fs::create_dir_all(&folder).map_err(Error::file("create the folder", &folder))?;
        }
        Ok(())
    }

    /// Makes the folder anew where somebody removed it, empty but for the lock, and tells whether there is a run to be written to it.
    ///
    /// # Errors
    /// [`Error::RunFolderLost`] where another run was there since, [`Error::File`] where it cannot be made.
    pub fn restore(&mut self) -> Result<bool> {
        let taken = || Error::RunFolderLost { path: self.path.clone() };
        match self.lock.as_ref().map(FolderLock::state) {
            Some(LockState::Replaced) => return Err(taken()),
            Some(LockState::Removed) => {
                fs::create_dir_all(&self.path).map_err(Error::file("create the folder", &self.path))?;
                self.lock = Some(FolderLock::take(&self.path).map_err(|error| match error {
                    Error::File { source, .. } if source.kind() == ErrorKind::ResourceBusy => taken(),
                    other => other,
                })?);
            }
            Some(LockState::Held) | None => {}
        }
        let gone = matches!(self.config().try_exists(), Ok(false));
        if gone {
            self.make_folders()?;
        }
        Ok(gone)
    }

    /// The folder of a run that is to go on.
    ///
    /// # Errors
    /// [`Error::File`] where there is none, it has no checkpoint, or another process writes to it.
    pub fn resume(path: &Path) -> Result<Self> {
        let run = Self::view(path)?;
        fs::metadata(run.checkpoint()).map_err(Error::file("find", &run.checkpoint()))?;
        let lock = FolderLock::take(path)?;
        run.make_folders()?;
        Ok(Self { lock: Some(lock), ..run })
    }

    /// The folder of a run to look at, which it may be running in.
    ///
    /// # Errors
    /// [`Error::File`] where there is no run.
    pub fn view(path: &Path) -> Result<Self> {
        let run = Self { path: path.to_owned(), state: State::Begun, lock: None };
        match fs::metadata(run.config()) {
            Ok(_) => Ok(run),
            Err(error) => {
                let why = format!("it has no config.json ({error}); `vae-wgpu train --out` makes run folders");
                Err(Error::file("find a run in", path)(io::Error::new(error.kind(), why)))
            }
        }
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// `metrics.csv`: a row a step.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.csv")
    }

    /// `epochs.csv`: a row an epoch.
    #[must_use]
    pub fn epochs(&self) -> PathBuf {
        self.path.join("epochs.csv")
    }

    /// `model.safetensors`: the weights of the best validation loss.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// `checkpoint.safetensors`: everything to go on.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// `reconstruction_history.png`: see [`RunFolder::save_reconstructions`].
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join("reconstruction_history.png")
    }

    /// `training_loss.png`.
    #[must_use]
    pub fn training_loss(&self) -> PathBuf {
        self.path.join("training_loss.png")
    }

    /// `grad_norm.png`.
    #[must_use]
    pub fn grad_norm(&self) -> PathBuf {
        self.path.join("grad_norm.png")
    }

    /// `learning_rate.png`.
    #[must_use]
    pub fn learning_rate(&self) -> PathBuf {
        self.path.join("learning_rate.png")
    }

    /// `samples/epoch_NN.png`: samples from fixed noise.
    #[must_use]
    pub fn samples(&self, epoch: u64) -> PathBuf {
        self.path.join(SAMPLES).join(format!("epoch_{epoch:02}.png"))
    }

    /// `reconstructions/epoch_NN.png`: a column of the history without loss; epoch 0 is the originals.
    #[must_use]
    pub fn reconstructions(&self, epoch: u64) -> PathBuf {
        self.path.join(RECONSTRUCTIONS).join(format!("epoch_{epoch:02}.png"))
    }

    /// Writes an epoch's reconstructions (those of epoch 0 are the originals) as a column of their own, then the history anew:
    /// a row a picture, the originals, then a column an epoch; of long runs every second epoch, every fourth and so on, and the
    /// last. A kill between the two loses nothing, and a run resumed at an earlier epoch starts its columns there; those of
    /// epochs that are not there, or are of other pictures, stay blank.
    ///
    /// # Errors
    /// [`Error::File`] where they cannot be written.
    pub fn save_reconstructions(&self, epoch: u64, pictures: &Pictures) -> Result<()> {
        pictures.save_strip(&self.reconstructions(epoch))?;
        let fits = |column: &Pictures| column.size() == pictures.size() && column.len() == pictures.len();
        let column = |epoch| Pictures::load_strip(&self.reconstructions(epoch)).ok().filter(fits);
        let columns: Vec<_> = columns(epoch).into_iter().map(column).collect();
        let grid = Grid { scale: 2, ..Grid::default() };
        save_png(&self.history(), &grid.draw_columns(&columns)?)
    }

    /// Writes `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save_config<S: Serialize>(&self, config: &RunConfig<S>) -> Result<()> {
        let path = self.config();
        let json = serde_json::to_string_pretty(config).map_err(|e| Error::malformed("write", &path, e))?;
        atomic::save_atomic(&path, (json + "\n").as_bytes())
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// As [`RunConfig::from_json`], and [`Error::File`] where it cannot be read.
    pub fn load_config<S: DeserializeOwned>(&self) -> Result<RunConfig<S>> {
        let path = self.config();
        RunConfig::from_json(&atomic::read(&path)?, &path)
    }
}

/// Most columns of the history.
const MOST_COLUMNS: u64 = 64;

/// Epochs that the history shows after `epoch`: multiples of the least power of two that makes them few enough, and the last.
fn columns(epoch: u64) -> Vec<u64> {
    let mut apart = 1;
    while epoch / apart > MOST_COLUMNS - 2 {
        apart *= 2;
    }
    let mut columns: Vec<_> = (0..=epoch / apart).map(|i| i * apart).collect();
    columns.extend((!epoch.is_multiple_of(apart)).then_some(epoch));
    columns
}

fn entries(folder: &Path) -> Result<impl Iterator<Item = fs::DirEntry>> {
    Ok(fs::read_dir(folder).map_err(Error::file("list", folder))?.flatten())
}

/// Whether a file is called `epoch_NN.png`.
fn is_of_an_epoch(name: &OsStr) -> bool {
    let number = name.to_str().and_then(|name| name.strip_prefix("epoch_")?.strip_suffix(".png"));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// The local date, `2026-01-31`.
fn today() -> String {
    jiff::Zoned::now().date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        lr: f64,
        flip: bool,
    }

    fn config() -> RunConfig<Settings> {
        let kernels = [("conv2d.forward".to_owned(), "lanes".to_owned())].into();
        RunConfig::new("llvmpipe".to_owned(), kernels, Settings { lr: 0.1 + 0.2, flip: true })
    }

    fn pictures(first: u8) -> Pictures {
        Pictures::from_bytes(&(0..30).map(|i| first + i).collect::<Vec<_>>(), [3, 1, 1]).unwrap()
    }

    #[test]
    fn default_folders_count_up() {
        let dir = tempfile::tempdir().unwrap();
        let runs = dir.path().join("runs");
        let mut first = RunFolder::next(&runs, "2026-01-31").unwrap();
        first.begin().unwrap();
        let second = RunFolder::next(&runs, "2026-01-31").unwrap();
        assert!(first.path().ends_with("2026-01-31-1") && second.path().ends_with("2026-01-31-2"));
        assert!(first.samples(3).ends_with("samples/epoch_03.png") && first.samples(3).parent().unwrap().is_dir());
        let date = today();
        assert!(date.len() == 10 && date.starts_with("20"), "{date}");
    }

    #[test]
    fn a_run_is_overwritten_only_by_force_and_only_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        let mut run = RunFolder::create(Some(&out), false).unwrap();
        run.begin().unwrap();
        run.save_config(&config()).unwrap();
        for path in [run.checkpoint(), run.samples(1), run.reconstructions(0), run.metrics(), out.join("mine.txt")] {
            fs::write(path, "x").unwrap();
        }
        let busy = RunFolder::create(Some(&out), true).unwrap_err().to_string();
        assert!(busy.starts_with("cannot lock "), "{busy}");
        assert!(run.checkpoint().exists());
        drop(run);
        let error = RunFolder::create(Some(&out), false).unwrap_err();
        assert!(matches!(error, Error::File { source, .. } if source.to_string().contains("--force")));
        drop(RunFolder::create(Some(&out), true).unwrap());
        let mut run = RunFolder::create(Some(&out), true).unwrap();
        assert!(run.checkpoint().exists() && run.samples(1).exists(), "the new run has not begun");
        run.begin().unwrap();
        for gone in [run.config(), run.checkpoint(), run.samples(1), run.reconstructions(0), run.metrics()] {
            assert!(!gone.exists(), "{}", gone.display());
        }
        assert!(out.join("mine.txt").exists() && out.join("run.lock").exists());
    }

    #[test]
    fn a_run_that_does_not_begin_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        drop(RunFolder::create(Some(&out), false).unwrap());
        assert!(!out.exists());
        drop(RunFolder::next(dir.path(), "2026-01-31").unwrap());
        fs::create_dir(&out).unwrap();
        drop(RunFolder::create(Some(&out), false).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "an empty folder that was there stays");
        // A lock alone, which a kill left behind, is no run.
        fs::write(out.join(LOCK), "").unwrap();
        RunFolder::create(Some(&out), false).unwrap().begin().unwrap();
        assert!(out.join(LOCK).exists());
    }

    #[cfg(unix)]
    #[test]
    fn a_folder_that_another_run_took_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        let begin = || {
            let mut run = RunFolder::create(Some(&out), false).unwrap();
            run.begin().unwrap();
            run.save_config(&config()).unwrap();
            run
        };
        let mut run = begin();
        assert!(!run.restore().unwrap());
        fs::remove_file(out.join(LOCK)).unwrap();
        assert!(!run.restore().unwrap() && RunFolder::create(Some(&out), true).is_err(), "locked again");
        fs::remove_dir_all(&out).unwrap();
        assert!(run.restore().unwrap());
        fs::remove_dir_all(&out).unwrap();
        let other = begin();
        for _ in 0..2 {
            assert!(matches!(run.restore(), Err(Error::RunFolderLost { path }) if path == out));
        }
        drop(other);
        assert!(matches!(run.restore(), Err(Error::RunFolderLost { .. })), "the other run is over, but there");
    }

    #[test]
    fn only_runs_can_be_viewed_and_resumed() {
        let dir = tempfile::tempdir().unwrap();
        assert!(RunFolder::view(dir.path()).is_err() && RunFolder::resume(&dir.path().join("none")).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let mut run = RunFolder::create(Some(dir.path()), false).unwrap();
        run.begin().unwrap();
        run.save_config(&config()).unwrap();
        assert!(RunFolder::view(dir.path()).is_ok() && RunFolder::resume(dir.path()).is_err());
        fs::write(run.checkpoint(), "x").unwrap();
        assert!(RunFolder::resume(dir.path()).unwrap_err().to_string().starts_with("cannot lock "));
        drop(run);
        assert!(RunFolder::resume(dir.path()).is_ok());
    }

    #[test]
    fn settings_come_back_and_strangers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFolder::create(Some(dir.path()), false).unwrap();
        run.begin().unwrap();
        run.save_config(&config()).unwrap();
        assert_eq!(run.load_config::<Settings>().unwrap(), config());
        let text = fs::read_to_string(run.config()).unwrap();
        for (from, to, expected) in [
            ("\"flip\"", "\"flop\"", "cannot parse"),
            ("\"format\": 1", "\"format\": 2", "expected 1, found 2"),
            ("\"version\"", "\"extra\": 1, \"version\"", "cannot parse"),
            ("{", "", "cannot parse"),
        ] {
            fs::write(run.config(), text.replacen(from, to, 1)).unwrap();
            let error = run.load_config::<Settings>().unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn the_history_of_a_long_run_is_thinned_out() {
        assert_eq!(columns(0), [0]);
        assert_eq!(columns(3), [0, 1, 2, 3]);
        assert_eq!(columns(62), (0..=62).collect::<Vec<_>>());
        assert_eq!(columns(64), (0..=32).map(|i| 2 * i).collect::<Vec<_>>());
        assert_eq!(columns(65)[31..], [62, 64, 65]);
        for epoch in [63, 127, 1000, 999_999_999, u64::MAX] {
            let columns = columns(epoch);
            assert!(columns.len() as u64 <= MOST_COLUMNS && columns[0] == 0 && columns.last() == Some(&epoch));
            assert!(columns.is_sorted() && columns.len() > 30);
        }
    }

    #[test]
    fn the_history_is_the_same_after_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        let history = |out: &Path, epochs: &[u64]| {
            let mut run = RunFolder::create(Some(out), true).unwrap();
            run.begin().unwrap();
            for &epoch in epochs {
                run.save_reconstructions(epoch, &pictures(10 * epoch as u8)).unwrap();
            }
            fs::read(run.history()).unwrap()
        };
        let expected = history(&whole, &[0, 1, 2, 3]);
        // Killed after epoch 3 but before its checkpoint: epochs 2 and 3 come again.
        assert_eq!(history(&parts, &[0, 1, 2, 3, 2, 3]), expected);
        // A column that was lost stays blank and moves nothing.
        let blank = history(&parts, &[0, 3]);
        let size = |png: &[u8]| image::load_from_memory(png).unwrap().into_rgb8().dimensions();
        assert_eq!(size(&blank), size(&expected));
    }
}
