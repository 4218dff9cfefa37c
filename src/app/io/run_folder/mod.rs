//! The folder of a run: its lock, its start and end, its configuration.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use self::paths::{FILES, RECONSTRUCTIONS, SAMPLES, TENSORBOARD, WEIGHTS, is_of_an_epoch};
use crate::app::io::atomic;
use crate::app::io::atomic::{FolderLock, LOCK, LockState};
use crate::app::io::run_config::{RunConfig, quoted};
use crate::app::io::tensorboard;
use crate::error::{Error, Result, printable};

mod history;
mod paths;

/// A run folder, opened for writing (locked) or for reading.
#[derive(Debug)]
pub struct RunFolder {
    path: PathBuf,
    state: State,
    /// Last field, so that `state` is dropped under the lock.
    lock: Option<FolderLock>,
}

/// State of the run in the folder.
#[derive(Debug)]
enum State {
    /// The run has begun.
    Begun,
    /// An old run will be overwritten.
    Old,
    /// The folder is empty and is removed unless the run begins.
    New(Reserved),
}

/// A folder with only its lock. Dropping it removes the lock, and the folder if it was created for the run.
#[derive(Debug)]
struct Reserved {
    path: PathBuf,
    /// Whether the folder was created for the run.
    created: bool,
}

impl Reserved {
    /// Keeps the folder.
    fn keep(mut self) {
        self.path.clear();
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        // A leftover file is harmless.
        let _ = fs::remove_file(self.path.join(LOCK));
        if self.created {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Folder in which runs are created unless another one is named.
pub const RUNS: &str = "runs";

impl RunFolder {
    /// Creates and locks the folder of a new run: `out`, or `runs/<date>-<n>` with the first free n. The folder above it is created too, but
    /// none above that. An existing folder must be empty, or contain a run that `force` allows to overwrite. Nothing in it changes before
    /// [`RunFolder::begin`].
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be created, is in use, or must not be overwritten.
    pub fn create(out: Option<&Path>, force: bool) -> Result<Self> {
        let Some(path) = out else { return Self::next(Path::new(RUNS), &today()) };
        let created = !path.exists();
        if created {
            atomic::create_parent(path)?;
            fs::create_dir_all(path).map_err(Error::file("create folder", path))?;
        }
        let taken = Self::is_taken(path, force)?;
        let lock = FolderLock::take(path)?;
        let state = if taken { State::Old } else { State::New(Reserved { path: path.to_owned(), created }) };
        Ok(Self { path: path.to_owned(), state, lock: Some(lock) })
    }

    /// Checks what [`RunFolder::create`] would reject, and changes nothing.
    ///
    /// # Errors
    /// As [`RunFolder::create`].
    pub fn check(out: Option<&Path>, force: bool) -> Result<()> {
        match out {
            Some(path) if path.exists() => Self::is_taken(path, force).map(|_| ()),
            Some(path) => atomic::check_writable(path),
            None => Ok(()),
        }
    }

    /// Returns whether there is a run to overwrite, and an error if there are other files, or a run and not `force`.
    fn is_taken(path: &Path, force: bool) -> Result<bool> {
        if path.is_file() {
            let why = "it is a file, and a run needs a folder. Pass another --out";
            return Err(Error::file("start a run in", path)(io::Error::new(ErrorKind::NotADirectory, why)));
        }
        let taken = entries(path)?.any(|entry| entry.file_name() != LOCK);
        let run = [LOCK, FILES[0]].iter().any(|name| path.join(name).exists());
        if taken && !(force && run) {
            let why = match run {
                true => {
                    "the folder contains a run. Pass --force to overwrite it, another --out, or continue it with --resume"
                }
                false => "the folder is not empty and contains no run. Pass another --out",
            };
            return Err(Error::file("start a run in", path)(io::Error::new(ErrorKind::DirectoryNotEmpty, why)));
        }
        Ok(taken)
    }

    /// Begins the run: removes the files of an overwritten run, and no others.
    ///
    /// # Errors
    /// [`Error::File`] if a file cannot be removed or a folder cannot be created.
    pub fn begin(&mut self) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Begun) {
            State::Begun => {}
            State::New(reserved) => reserved.keep(),
            State::Old => {
                for name in FILES {
                    remove(&self.path.join(name))?;
                }
                let is_event_file = |name: &OsStr| tensorboard::number(name).is_some();
                self.remove_files(SAMPLES, is_of_an_epoch)?;
                self.remove_files(RECONSTRUCTIONS, is_of_an_epoch)?;
                self.remove_files(WEIGHTS, is_of_an_epoch)?;
                self.remove_files(TENSORBOARD, is_event_file)?;
            }
        }
        self.make_folders()
    }

    /// Removes the files of a folder in the run, if it is there, whose names belong to a run.
    fn remove_files(&self, folder: &str, own: impl Fn(&OsStr) -> bool) -> Result<()> {
        let folder = self.path.join(folder);
        if !folder.is_dir() {
            return Ok(());
        }
        let mut files = entries(&folder)?.filter(|entry| own(&entry.file_name()));
        files.try_for_each(|entry| remove(&entry.path()))
    }

    fn next(runs: &Path, date: &str) -> Result<Self> {
        fs::create_dir_all(runs).map_err(Error::file("create folder", runs))?;
        for n in 1u32.. {
            let path = runs.join(format!("{date}-{n}"));
            // Only one of two processes can create the same folder.
            match fs::create_dir(&path) {
                Ok(()) => {
                    let lock = FolderLock::take(&path)?;
                    let reserved = Reserved { path: path.clone(), created: true };
                    return Ok(Self { path, state: State::New(reserved), lock: Some(lock) });
                }
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::file("create folder", &path)(error)),
            }
        }
        Err(Error::bug("no free name for a run folder"))
    }

    fn make_folders(&self) -> Result<()> {
        for folder in [SAMPLES, RECONSTRUCTIONS].map(|name| self.path.join(name)) {
            fs::create_dir_all(&folder).map_err(Error::file("create folder", &folder))?;
        }
        Ok(())
    }

    /// Recreates the folder if it was removed. Returns whether the files of the run are missing and must be written again.
    ///
    /// # Errors
    /// [`Error::RunFolderLost`] if another run has taken the folder, [`Error::File`] if it cannot be created.
    pub fn restore(&mut self) -> Result<bool> {
        let taken = || Error::RunFolderLost { path: self.path.clone() };
        match self.lock.as_ref().map(FolderLock::state) {
            Some(LockState::Replaced) => return Err(taken()),
            Some(LockState::Removed) => {
                fs::create_dir_all(&self.path).map_err(Error::file("create folder", &self.path))?;
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

    /// Opens and locks the folder of a run to resume.
    ///
    /// # Errors
    /// [`Error::File`] if there is no run or checkpoint, or another process is writing to it.
    pub fn resume(path: &Path) -> Result<Self> {
        let run = Self::view(path)?;
        fs::metadata(run.checkpoint())
            .map_err(Error::file("find", &run.checkpoint()))
            .map_err(|error| run.without_checkpoint(error))?;
        let lock = FolderLock::take(path)?;
        run.make_folders()?;
        Ok(Self { lock: Some(lock), ..run })
    }

    /// Adds to an error about the checkpoint what can be done without it.
    pub(crate) fn without_checkpoint(&self, error: Error) -> Error {
        if !self.model().exists() {
            return error;
        }
        let model = quoted(&self.model().to_string_lossy());
        error.with_way_out(format_args!("A new run can start from the weights of this one: train --init {model}"))
    }

    /// Opens the folder of a run for reading; the run may be in progress, and its `config.json` may be lost.
    ///
    /// # Errors
    /// [`Error::File`] if there is no run.
    pub fn view(path: &Path) -> Result<Self> {
        let run = Self { path: path.to_owned(), state: State::Begun, lock: None };
        match fs::metadata(run.config()) {
            Ok(_) => Ok(run),
            // Only some commands need the configuration.
            Err(error)
                if error.kind() == ErrorKind::NotFound && (run.checkpoint().exists() || run.model().exists()) =>
            {
                Ok(run)
            }
            Err(error) => {
                let is_missing = |error: &io::Error| error.kind() == ErrorKind::NotFound;
                let cause = if is_missing(&error) { String::new() } else { format!(": {error}") };
                // The folder of all runs is easily taken for one of them.
                let mut inside = fs::read_dir(path).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
                let why = match inside.find(|path| path.join("config.json").is_file()) {
                    Some(run) => format!("it contains runs, such as {}. Name one of them", printable(run.display())),
                    None if fs::metadata(path).is_err_and(|error| is_missing(&error)) => {
                        "it does not exist. `vae-wgpu runs` lists the runs in `runs`".to_owned()
                    }
                    None if path.is_file() => "it is a file. Name the folder of the run".to_owned(),
                    None => format!("it has no readable config.json{cause}. Create a run with `vae-wgpu train --out`"),
                };
                Err(Error::file("find a run in", path)(io::Error::new(error.kind(), why)))
            }
        }
    }

    /// Returns whether a path is that of a run, whose configuration can be read.
    #[must_use]
    pub fn is_run(path: &Path) -> bool {
        let run = Self { path: path.to_owned(), state: State::Begun, lock: None };
        // First without reading: `path` may be any folder of many files.
        run.config().is_file() && run.load_config::<serde_json::Value>().is_ok()
    }

    /// Returns the folder of the run that a path belongs to, whether or not there is a file: one of those that a run writes.
    #[must_use]
    pub fn of_file(path: &Path) -> Option<PathBuf> {
        let name = path.file_name()?;
        // The folder of a relative path of one name.
        let here = |folder: &Path| if folder == Path::new("") { PathBuf::from(".") } else { folder.to_owned() };
        let folder = here(path.parent()?);
        // The prior of a model has its name in front: last.prior.safetensors.
        let is_file =
            FILES.iter().any(|file| name == OsStr::new(file) || name.to_string_lossy().ends_with(&format!(".{file}")));
        if is_file {
            return Some(folder).filter(|folder| Self::is_run(folder));
        }
        let of_epochs =
            [SAMPLES, RECONSTRUCTIONS, WEIGHTS].iter().any(|name| folder.file_name() == Some(OsStr::new(name)));
        let run = here(folder.parent()?);
        (of_epochs && is_of_an_epoch(name) && Self::is_run(&run)).then_some(run)
    }

    /// Returns whether a process, this or another, is writing to the folder.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.lock.is_some() || FolderLock::is_taken(&self.path)
    }

    /// Writes `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn save_config<S: Serialize>(&self, config: &RunConfig<S>) -> Result<()> {
        let path = self.config();
        let json = serde_json::to_string_pretty(config).map_err(|e| Error::malformed("write", &path, e))?;
        atomic::save_atomic(&path, (json + "\n").as_bytes())
    }

    /// Reads `config.json`.
    ///
    /// # Errors
    /// As [`RunConfig::from_json`], and [`Error::File`] if it cannot be read.
    pub fn load_config<S: DeserializeOwned>(&self) -> Result<RunConfig<S>> {
        let path = self.config();
        let bytes = atomic::read(&path).map_err(|error| {
            if path.exists() || !self.checkpoint().exists() {
                return error;
            }
            let run = quoted(&self.path().to_string_lossy());
            error.with_way_out(format_args!("`vae-wgpu train --resume {run}` writes it again"))
        })?;
        RunConfig::from_json(&bytes, &path)
    }
}

fn entries(folder: &Path) -> Result<impl Iterator<Item = fs::DirEntry>> {
    Ok(fs::read_dir(folder).map_err(Error::file("list", folder))?.flatten())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Returns the local date, e.g. `2026-01-31`.
fn today() -> String {
    jiff::Zoned::now().date().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Settings {
        lr: f64,
        flip: bool,
    }

    fn config() -> RunConfig<Settings> {
        let kernels = [("conv2d.forward".to_owned(), "subgroup_tex_8".to_owned())].into();
        RunConfig::new("llvmpipe".to_owned(), kernels, Settings { lr: 0.1 + 0.2, flip: true })
    }

    #[test]
    fn default_folders_are_numbered() {
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
    fn only_force_overwrites_a_run_and_only_its_files() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("a/b");
        let mut run = RunFolder::create(Some(&out), false).unwrap();
        run.begin().unwrap();
        run.save_config(&config()).unwrap();
        fs::create_dir(run.tensorboard()).unwrap();
        let events = run.tensorboard().join("events.out.tfevents.1700000000.vae-wgpu");
        let mine = [out.join("mine.txt"), run.tensorboard().join("events.out.tfevents.1700000000.mine")];
        let files = [run.checkpoint(), run.samples(1), run.originals(), run.reconstructions(1), run.metrics(), events];
        for path in files.iter().chain(&mine) {
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
        for gone in files.iter().chain([&run.config()]) {
            assert!(!gone.exists(), "{}", gone.display());
        }
        assert!(mine.iter().all(|path| path.exists()) && out.join("run.lock").exists());
    }

    #[test]
    fn run_that_does_not_begin_leaves_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("run");
        drop(RunFolder::create(Some(&out), false).unwrap());
        assert!(!out.exists());
        drop(RunFolder::next(dir.path(), "2026-01-31").unwrap());
        fs::create_dir(&out).unwrap();
        drop(RunFolder::create(Some(&out), false).unwrap());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(fs::read_dir(&out).unwrap().count(), 0, "an empty folder that was there stays");
        // A leftover lock file alone is not a run.
        fs::write(out.join(LOCK), "").unwrap();
        RunFolder::create(Some(&out), false).unwrap().begin().unwrap();
        assert!(out.join(LOCK).exists());
    }

    #[cfg(unix)]
    #[test]
    fn folder_of_another_run_is_not_restored() {
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
    fn config_round_trips_and_unknown_keys_fail() {
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
}
