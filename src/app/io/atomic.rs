//! Files that are there whole or not at all, and the lock of a folder.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// End of the names of scratch files; [`FolderLock::take`] removes those that a kill left behind.
const SCRATCH: &str = ".scratch";

/// Replaces a file by `bytes`, atomically: they go to a scratch file in the same folder, which is synced, renamed over `path`, and the
/// folder is synced. A kill or a power cut at any moment leaves either the old file or the new one, whole.
///
/// # Errors
/// [`Error::File`]; the old file is untouched, and no scratch file is left.
pub fn save_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        file.write_all(head)?;
        fault::point(path);
        file.write_all(tail)
    })
}

/// Tells whether [`save_atomic`] could write `path` now; leaves no trace.
///
/// # Errors
/// [`Error::File`] where it could not.
pub fn check_writable(path: &Path) -> Result<()> {
    let path = &behind_links(path);
    let (scratch, file) = create_scratch(folder_of(path), path)?;
    drop(file);
    fs::remove_file(&scratch).map_err(Error::file("remove", &scratch))
}

fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let path = &behind_links(path);
    let folder = folder_of(path);
    fault::point(path);
    let (scratch, mut file) = create_scratch(folder, path)?;
    fault::point(path);
    let written = write(&mut file).and_then(|()| {
        fault::point(path);
        trace::noted("sync", file.sync_all())
    });
    drop(file);
    fault::point(path);
    if let Err(error) = written.and_then(|()| trace::noted("rename", fs::rename(&scratch, path))) {
        // The write's own error is the one to tell.
        let _ = fs::remove_file(&scratch);
        return Err(Error::file("write", path)(error));
    }
    fault::point(path);
    sync_folder(folder).map_err(Error::file("make sure that a power cut cannot undo the renaming of", path))?;
    fault::point(path);
    Ok(())
}

/// Where tests end the process as a kill would. An ordinary build has nothing of it.
#[cfg(not(test))]
mod fault {
    pub(super) fn point(_: &std::path::Path) {}
}

#[cfg(test)]
pub(crate) mod fault {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// `FILE:N` ends the process at the `N`th point of writing `FILE`, from 0.
    pub(crate) const VARIABLE: &str = "VAE_WGPU_FAULT";

    pub(super) fn point(path: &Path) {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let Some(wanted) = std::env::var(VARIABLE).ok() else { return };
        let Some((file, point)) = wanted.rsplit_once(':') else { panic!("{VARIABLE} is `{wanted}`") };
        if path.ends_with(file) && SEEN.fetch_add(1, Ordering::Relaxed) == point.parse::<usize>().unwrap() {
            // Neither destructors nor handlers run.
            std::process::abort();
        }
    }
}

/// What is done in which order, for tests of what a power cut would leave. An ordinary build has nothing of it.
#[cfg(not(test))]
pub(crate) mod trace {
    pub(crate) fn noted<T>(_: &'static str, done: T) -> T {
        done
    }
}

#[cfg(test)]
pub(crate) mod trace {
    use std::cell::RefCell;

    thread_local! {
        static NOTES: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    /// Takes what was done, so that the note cannot stay where the deed is gone.
    pub(crate) fn noted<T>(what: &'static str, done: T) -> T {
        NOTES.with_borrow_mut(|notes| notes.push(what));
        done
    }

    /// What this thread has noted since it was last asked.
    pub(crate) fn taken() -> Vec<&'static str> {
        NOTES.take()
    }
}

/// A new file beside `path`: `.N.scratch` with the first free N, so that no two writers share one. Refuses what can be no file.
fn create_scratch(folder: &Path, path: &Path) -> Result<(PathBuf, File)> {
    let refuse = |why: &str| Err(Error::file("write", path)(io::Error::new(ErrorKind::InvalidInput, why)));
    if path.file_name().is_none() {
        return refuse("this is no file name");
    }
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => return refuse("it is a folder"),
        Ok(there) if !there.is_file() => return refuse("it is no regular file"),
        _ => {}
    }
    for n in 0u32.. {
        let scratch = folder.join(format!(".{n}{SCRATCH}"));
        match File::create_new(&scratch) {
            Ok(file) => return Ok((scratch, file)),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::file("write", path)(error)),
        }
    }
    Err(Error::bug("no free name for a scratch file"))
}

/// The file that is meant by a link, so that it is replaced and the link stays; one that leads nowhere is replaced itself.
fn behind_links(path: &Path) -> PathBuf {
    let linked = fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink());
    linked.then(|| fs::canonicalize(path).ok()).flatten().unwrap_or_else(|| path.to_owned())
}

/// Makes the folder that a file is to be written to, where it is missing.
///
/// # Errors
/// [`Error::File`] where it cannot be made.
pub fn make_folder_of(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    fs::create_dir_all(folder).map_err(Error::file("create the folder", folder))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes a rename last. Windows and some network file systems have no such call; there it does nothing.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match trace::noted("sync folder", File::open(folder)?.sync_all()) {
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
            other => return other,
        }
    }
    Ok(())
}

/// The bytes of a regular file; refuses pipes and devices, which may have no end.
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let kind = fs::metadata(path).map_err(Error::file("read", path))?;
    if !kind.is_file() {
        let why = if kind.is_dir() { "it is a folder" } else { "it is no regular file" };
        return Err(Error::file("read", path)(io::Error::new(ErrorKind::InvalidInput, why)));
    }
    fs::read(path).map_err(Error::file("read", path))
}

/// Name of the file that [`FolderLock`] locks.
pub const LOCK: &str = "run.lock";

/// The right to write to a folder, held as a lock on its file `run.lock` until dropped. The system gives it back when the process
/// dies, however it dies.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: File,
}

/// What has become of the file that a [`FolderLock`] holds: who removes a folder removes the lock with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// It is where it was: nobody else can take the lock.
    Held,
    /// There is none.
    Removed,
    /// Another file has its name: somebody else took the folder.
    Replaced,
}

impl FolderLock {
    /// Takes the lock and clears away scratch files that an earlier owner was killed over.
    ///
    /// # Errors
    /// [`Error::File`] where another process holds it. On a file system without locks nobody is kept out.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let lock = loop {
            let file = File::options().create(true).truncate(false).write(true).open(&path);
            let file = file.map_err(Error::file("lock", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    let why =
                        "another process is writing to this run folder. Wait for it, or pass another folder with --out";
                    return Err(Error::file("lock", &path)(io::Error::new(ErrorKind::ResourceBusy, why)));
                }
                Err(TryLockError::Error(error)) if error.kind() == ErrorKind::Unsupported => {}
                Err(TryLockError::Error(error)) => return Err(Error::file("lock", &path)(error)),
            }
            let lock = Self { path: path.clone(), file };
            // An owner that left may have removed the file between opening and locking.
            if lock.standing() == LockState::Held {
                break lock;
            }
        };
        let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(SCRATCH)) {
                // One that stays is only untidy.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(lock)
    }

    /// What has become of the lock's file; held where the system does not tell.
    #[must_use]
    pub fn standing(&self) -> LockState {
        match fs::metadata(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => LockState::Removed,
            Ok(there) if self.file.metadata().is_ok_and(|own| !is_same(&own, &there)) => LockState::Replaced,
            _ => LockState::Held,
        }
    }
}

#[cfg(unix)]
fn is_same(a: &fs::Metadata, b: &fs::Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// Elsewhere no file that is open can make room for another.
#[cfg(not(unix))]
fn is_same(_: &fs::Metadata, _: &fs::Metadata) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for content in ["one", "another", ""] {
            check_writable(&path).unwrap();
            save_atomic(&path, content.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap(), content.as_bytes());
            assert_eq!(names(dir.path()), ["x"]);
        }
    }

    #[test]
    fn a_file_is_synced_before_it_gets_its_name_and_its_folder_after() {
        let dir = tempfile::tempdir().unwrap();
        trace::taken();
        save_atomic(&dir.path().join("x"), b"x").unwrap();
        assert_eq!(trace::taken(), ["sync", "rename", "sync folder"]);
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_scratch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        save_atomic(&path, b"old").unwrap();
        let full = |file: &mut File| {
            file.write_all(b"half")?;
            Err(io::Error::from(ErrorKind::StorageFull))
        };
        let error = replace(&path, full).unwrap_err();
        assert!(error.to_string().starts_with("cannot write "), "{error}");
        assert!(matches!(error, Error::File { source, .. } if source.kind() == ErrorKind::StorageFull));
        assert_eq!(read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["x"]);
    }

    #[test]
    fn impossible_targets_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("folder/full")).unwrap();
        for target in ["folder", "missing/x", "folder/.."] {
            assert!(save_atomic(&dir.path().join(target), b"x").is_err(), "{target}");
            assert!(check_writable(&dir.path().join(target)).is_err(), "{target}");
        }
        assert_eq!(names(dir.path()), ["folder"]);
        assert!(read(dir.path()).unwrap_err().to_string().starts_with("cannot read "));
        assert!(read(&dir.path().join("missing")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_and_pipes_are_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let [link, file] = ["link", "file"].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::write(&file, "old").unwrap();
        check_writable(&link).unwrap();
        save_atomic(&link, b"new").unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink() && read(&file).unwrap() == b"new");
        fs::remove_file(&file).unwrap();
        save_atomic(&link, b"newer").unwrap();
        assert_eq!((read(&link).unwrap(), names(dir.path())), (b"newer".to_vec(), vec!["link".to_owned()]));
        let device = Path::new("/dev/null");
        assert!(check_writable(device).is_err() && save_atomic(device, b"x").is_err());
        assert!(!fs::metadata(device).unwrap().is_file());
        // A name as long as a name can be.
        let long = dir.path().join("x".repeat(255));
        save_atomic(&long, b"x").unwrap();
        assert_eq!(read(&long).unwrap(), b"x");
    }

    #[test]
    fn one_owner_at_a_time_and_scratch_files_are_cleared() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!(".checkpoint.0{SCRATCH}"));
        fs::write(&left, "half").unwrap();
        save_atomic(&dir.path().join("checkpoint"), b"x").unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["checkpoint", "run.lock"]);
        let refused = FolderLock::take(dir.path()).unwrap_err();
        assert!(matches!(refused, Error::File { source, .. } if source.to_string().contains("another process")));
        drop(lock);
        FolderLock::take(dir.path()).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_knows_that_its_file_is_gone_or_another() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        assert_eq!(lock.standing(), LockState::Held);
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert_eq!(lock.standing(), LockState::Removed);
        let other = FolderLock::take(dir.path()).unwrap();
        assert_eq!((lock.standing(), other.standing()), (LockState::Replaced, LockState::Held));
    }
}
