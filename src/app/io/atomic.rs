//! Atomic writes and folder locks.

use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// Suffix of scratch files; [`FolderLock::take`] removes those of killed processes.
const SCRATCH: &str = ".scratch";

/// Replaces a file by `bytes`, atomically: writes a scratch file in the same folder, syncs it, renames it over `path`, and syncs the
/// folder. A kill or a power cut at any moment leaves either the old file or the new one, complete.
///
/// # Errors
/// [`Error::File`]. Unless only the last sync failed, the old file is untouched; no scratch file is left.
pub fn save_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    replace(path, |file| {
        let (head, tail) = bytes.split_at(bytes.len() / 2);
        file.write_all(head)?;
        fault::point(path);
        file.write_all(tail)
    })
}

/// Checks that [`create_parent`] and [`save_atomic`] can write `path` now, and leaves no files.
///
/// # Errors
/// [`Error::File`] if they cannot.
pub fn check_writable(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    if !folder.exists() {
        check_above(folder)?;
        return check_writable(folder);
    }
    let path = &resolve_link(path);
    let (scratch, file) = create_scratch(folder_of(path), path)?;
    drop(file);
    fs::remove_file(&scratch).map_err(Error::file("remove", &scratch))
}

fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let path = &resolve_link(path);
    let folder = folder_of(path);
    fault::point(path);
    let (scratch, mut file) = create_scratch(folder, path)?;
    fault::point(path);
    let written = write(&mut file).and_then(|()| {
        fault::point(path);
        trace::record("sync", file.sync_all())
    });
    drop(file);
    fault::point(path);
    if let Err(error) = written.and_then(|()| trace::record("rename", fs::rename(&scratch, path))) {
        // Report the error of the write, not that of the removal.
        let _ = fs::remove_file(&scratch);
        return Err(Error::file("write", path)(error));
    }
    fault::point(path);
    sync_parent(path).map_err(Error::file("sync the parent directory of", path))?;
    fault::point(path);
    Ok(())
}

/// Points at which tests abort the process. Empty outside of tests.
#[cfg(not(test))]
mod fault {
    pub(super) fn point(_: &std::path::Path) {}
}

#[cfg(test)]
pub(crate) mod fault {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Environment variable: `FILE:N` aborts the process at the `N`th point of writing `FILE`, from 0.
    pub(crate) const VARIABLE: &str = "VAE_WGPU_FAULT";

    pub(super) fn point(path: &Path) {
        static SEEN: AtomicUsize = AtomicUsize::new(0);
        let Some(wanted) = std::env::var(VARIABLE).ok() else { return };
        let Some((file, point)) = wanted.rsplit_once(':') else { panic!("{VARIABLE} is `{wanted}`") };
        if path.ends_with(file) && SEEN.fetch_add(1, Ordering::Relaxed) == point.parse::<usize>().unwrap() {
            // Like a kill, this runs neither destructors nor handlers.
            std::process::abort();
        }
    }
}

/// Order of writes, renames and syncs, for tests of what survives a power cut. Empty outside of tests.
#[cfg(not(test))]
pub(crate) mod trace {
    pub(crate) fn record<T>(_: &'static str, done: T) -> T {
        done
    }
}

#[cfg(test)]
pub(crate) mod trace {
    use std::cell::RefCell;

    thread_local! {
        static RECORDS: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
    }

    /// Records `what` and returns `done`; wrapping the call keeps trace and call together.
    pub(crate) fn record<T>(what: &'static str, done: T) -> T {
        RECORDS.with_borrow_mut(|records| records.push(what));
        done
    }

    /// Returns and clears the records of this thread.
    pub(crate) fn take() -> Vec<&'static str> {
        RECORDS.take()
    }
}

/// Creates a scratch file beside `path`: `.N.scratch` with the first free N, so that no two writers share one. Rejects a `path` that is not
/// a regular file.
fn create_scratch(folder: &Path, path: &Path) -> Result<(PathBuf, File)> {
    let refuse = |why: &str| Err(Error::file("write", path)(io::Error::new(ErrorKind::InvalidInput, why)));
    if path.file_name().is_none() {
        return refuse("not a file name");
    }
    match fs::metadata(path) {
        Ok(there) if there.is_dir() => return refuse("is a folder"),
        Ok(there) if !there.is_file() => return refuse("not a regular file"),
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

/// Resolves a symbolic link, so that its target is replaced and the link stays. A dangling link is itself replaced.
fn resolve_link(path: &Path) -> PathBuf {
    let linked = fs::symlink_metadata(path).is_ok_and(|there| there.is_symlink());
    linked.then(|| fs::canonicalize(path).ok()).flatten().unwrap_or_else(|| path.to_owned())
}

/// Creates the folder of a file or folder that is to be written, if it is missing, but no folder above it: a mistyped path must not create
/// a tree of folders.
///
/// # Errors
/// [`Error::File`] if it cannot be created.
pub fn create_parent(path: &Path) -> Result<()> {
    let folder = folder_of(path);
    if folder.is_dir() {
        return Ok(());
    }
    check_above(folder)?;
    match fs::create_dir(folder) {
        // Another process was faster.
        Err(error) if error.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        other => other.map_err(Error::file("create folder", folder)),
    }
}

/// Rejects a missing folder whose parent is missing too.
fn check_above(folder: &Path) -> Result<()> {
    let above = folder_of(folder);
    if above.exists() {
        return Ok(());
    }
    let why = format!("there is no folder {}. Create it first, or correct the path", above.display());
    Err(Error::file("create folder", folder)(io::Error::new(ErrorKind::NotFound, why)))
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Syncs the folder that contains `path`, so that a rename survives a power cut. Does nothing on Windows and on file systems without such a
/// call.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    if cfg!(unix) {
        match trace::record("sync folder", File::open(folder_of(path))?.sync_all()) {
            Err(e) if matches!(e.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
            other => return other,
        }
    }
    Ok(())
}

/// Reads a regular file. Rejects pipes and devices, which may have no end.
///
/// # Errors
/// [`Error::File`].
pub fn read(path: &Path) -> Result<Vec<u8>> {
    let kind = fs::metadata(path).map_err(Error::file("read", path))?;
    if !kind.is_file() {
        let why = if kind.is_dir() { "is a folder" } else { "not a regular file" };
        return Err(Error::file("read", path)(io::Error::new(ErrorKind::InvalidInput, why)));
    }
    fs::read(path).map_err(Error::file("read", path))
}

/// Locks the file `path`, which is created if missing, and calls `on_wait` once if another process holds the lock. The lock is released
/// when the file is dropped, and by the system when the process dies.
///
/// # Errors
/// [`Error::File`] if the file cannot be opened or locked.
pub(crate) fn lock_file(path: &Path, on_wait: impl FnOnce()) -> Result<File> {
    let lock = || {
        let file = open_lock_file(path)?;
        if !try_lock(&file)? {
            on_wait();
            file.lock()?;
        }
        Ok(file)
    };
    lock().map_err(Error::file("lock", path))
}

fn open_lock_file(path: &Path) -> io::Result<File> {
    File::options().create(true).truncate(false).write(true).open(path)
}

/// Returns whether the lock was taken; `false` if another process holds it.
fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Returns whether a lock that cannot be taken is shared: other processes look at it, and none owns it.
fn is_shared(file: &File) -> bool {
    file.try_lock_shared().and_then(|()| file.unlock().map_err(TryLockError::Error)).is_ok()
}

/// Name of the file that [`FolderLock`] locks.
pub const LOCK: &str = "run.lock";

/// Time between two attempts to take a lock that others look at, and the number of attempts.
const LOOK: Duration = Duration::from_millis(5);
const MOST_LOOKS: usize = 200;

/// Exclusive write access to a folder, as a lock on its file `run.lock`. Released when dropped, and by the system when the process dies.
#[derive(Debug)]
pub struct FolderLock {
    path: PathBuf,
    file: File,
}

/// State of the lock file of a [`FolderLock`], which somebody may remove together with its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockState {
    /// The file is in place: no other process can take the lock.
    Held,
    /// The file was removed.
    Removed,
    /// Another file has its name: another process took the folder.
    Replaced,
}

impl FolderLock {
    /// Takes the lock and removes scratch files of killed processes.
    ///
    /// # Errors
    /// [`Error::File`] if another process holds the lock. A file system without locks excludes nobody.
    pub fn take(folder: &Path) -> Result<Self> {
        let path = folder.join(LOCK);
        let mut looks = 0;
        let lock = loop {
            let file = open_lock_file(&path).map_err(Error::file("lock", &path))?;
            match try_lock(&file) {
                Ok(true) => {}
                // A process that looks has left in a moment.
                Ok(false) if looks < MOST_LOOKS && is_shared(&file) => {
                    looks += 1;
                    thread::sleep(LOOK);
                    continue;
                }
                Ok(false) => {
                    let why =
                        "another process is writing to this run folder. Wait for it to end, or use another run folder";
                    return Err(Error::file("lock", &path)(io::Error::new(ErrorKind::ResourceBusy, why)));
                }
                Err(error) if error.kind() == ErrorKind::Unsupported => {}
                Err(error) => return Err(Error::file("lock", &path)(error)),
            }
            let lock = Self { path: path.clone(), file };
            // The previous owner may have removed the file between opening and locking.
            if lock.state() == LockState::Held {
                break lock;
            }
        };
        let entries = fs::read_dir(folder).map_err(Error::file("list", folder))?;
        for entry in entries.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with('.') && name.ends_with(SCRATCH)) {
                // A scratch file that stays is harmless.
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(lock)
    }

    /// Returns whether a process holds the lock of a folder. `false` on a file system without locks.
    #[must_use]
    pub fn is_taken(folder: &Path) -> bool {
        // A shared lock for a moment: others that look do not see it, and `take` waits for it.
        let lock = File::open(folder.join(LOCK));
        lock.is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
    }

    /// Returns the state of the lock file; always [`LockState::Held`] on Windows, unless it was removed.
    #[must_use]
    pub fn state(&self) -> LockState {
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

/// Other platforms do not allow an open file to be replaced.
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
    fn atomic_writes_replace_the_file_and_leave_no_others() {
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
    fn file_is_synced_before_the_rename_and_folder_after() {
        let dir = tempfile::tempdir().unwrap();
        trace::take();
        save_atomic(&dir.path().join("x"), b"x").unwrap();
        assert_eq!(trace::take(), ["sync", "rename", "sync folder"]);
    }

    #[test]
    fn full_disk_leaves_the_old_file_and_no_scratch_file() {
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
    fn unwritable_targets_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("folder/full")).unwrap();
        for target in ["folder", "missing/folder/x", "folder/.."] {
            assert!(save_atomic(&dir.path().join(target), b"x").is_err(), "{target}");
            assert!(check_writable(&dir.path().join(target)).is_err(), "{target}");
        }
        assert!(create_parent(&dir.path().join("missing/folder/x")).is_err());
        // One folder may be missing, since it can be created.
        check_writable(&dir.path().join("missing/x")).unwrap();
        assert_eq!(names(dir.path()), ["folder"]);
        create_parent(&dir.path().join("missing/x")).unwrap();
        assert!(dir.path().join("missing").is_dir());
        fs::remove_dir(dir.path().join("missing")).unwrap();
        assert!(read(dir.path()).unwrap_err().to_string().starts_with("cannot read "));
        assert!(read(&dir.path().join("missing")).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_are_rejected() {
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
        // The longest file name.
        let long = dir.path().join("x".repeat(255));
        save_atomic(&long, b"x").unwrap();
        assert_eq!(read(&long).unwrap(), b"x");
    }

    #[test]
    fn lock_has_one_owner_and_removes_scratch_files() {
        let dir = tempfile::tempdir().unwrap();
        let left = dir.path().join(format!(".checkpoint.0{SCRATCH}"));
        fs::write(&left, "half").unwrap();
        save_atomic(&dir.path().join("checkpoint"), b"x").unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        assert_eq!(names(dir.path()), ["checkpoint", "run.lock"]);
        assert!(FolderLock::is_taken(dir.path()));
        let refused = FolderLock::take(dir.path()).unwrap_err();
        assert!(matches!(refused, Error::File { source, .. } if source.to_string().contains("another process")));
        drop(lock);
        assert!(!FolderLock::is_taken(dir.path()));
        FolderLock::take(dir.path()).unwrap();
    }

    #[test]
    fn lock_is_taken_while_others_look_at_it() {
        let dir = tempfile::tempdir().unwrap();
        drop(FolderLock::take(dir.path()).unwrap());
        // As `is_taken` does, but for longer.
        let look = File::open(dir.path().join(LOCK)).unwrap();
        look.try_lock_shared().unwrap();
        assert!(!FolderLock::is_taken(dir.path()));
        let lock = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(4 * LOOK);
                look.unlock().unwrap();
            });
            FolderLock::take(dir.path()).unwrap()
        });
        assert!(FolderLock::is_taken(dir.path()));
        drop(lock);
        assert!(!FolderLock::is_taken(dir.path()));
    }

    #[cfg(unix)]
    #[test]
    fn lock_state_detects_a_removed_or_replaced_file() {
        let dir = tempfile::tempdir().unwrap();
        let lock = FolderLock::take(dir.path()).unwrap();
        assert_eq!(lock.state(), LockState::Held);
        fs::remove_file(dir.path().join(LOCK)).unwrap();
        assert_eq!(lock.state(), LockState::Removed);
        let other = FolderLock::take(dir.path()).unwrap();
        assert_eq!((lock.state(), other.state()), (LockState::Replaced, LockState::Held));
    }
}
