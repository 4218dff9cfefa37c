//! Where CIFAR-10 is looked for, and how it gets into the user's cache: under a lock, and only ever as a whole.

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::app::data::download;
use crate::app::data::download::Source;
use crate::app::data::{Progress, archive};
use crate::error::{Error, Result};
use crate::vae::data::Dataset;
use crate::vae::data::cifar10;
use crate::vae::data::cifar10::{ARCHIVE, FOLDER};

/// CacheDirs in which CIFAR-10 may be, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct CacheDirs {
    /// A folder beside the user's work.
    pub local: PathBuf,
    /// The folder that keeps what was downloaded; an archive put here by hand is used too.
    pub cache: PathBuf,
    /// Where the archive is on the network.
    pub source: Source,
}

impl CacheDirs {
    /// `./datasets/cifar-10-batches-bin`, the folder `vae-wgpu` in the user's cache, and the official archive.
    pub fn user() -> Result<Self> {
        let dirs = directories::BaseDirs::new().ok_or_else(|| {
            Error::data(
                "cache",
                "this user has no home directory",
                "name a folder or archive with --data, or use --data shapes",
            )
        })?;
        Ok(Self {
            local: Path::new("datasets").join(FOLDER),
            cache: dirs.cache_dir().join("vae-wgpu"),
            source: Source::default(),
        })
    }

    /// Opens the data set from the first place that has it, and downloads it when none has. A place that holds a damaged copy
    /// is an error: nothing of the user's is passed over in silence or removed.
    pub fn open(&self, progress: &mut dyn FnMut(Progress)) -> Result<Dataset> {
        if self.local.exists() {
            return archive::folder(&self.local);
        }
        let folder = self.cache.join(FOLDER);
        if !folder.exists() {
            self.fill(&folder, progress)?;
        }
        archive::folder(&folder)
    }

    /// Puts the unpacked data set into the cache, from an archive that is there or else from the network.
    fn fill(&self, folder: &Path, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        fs::create_dir_all(&self.cache).map_err(Error::file("create", &self.cache))?;
        let _lock = lock(&self.cache.join("lock"), progress)?;
        // Another process may have been here while this one waited.
        if folder.exists() {
            return Ok(());
        }
        let packed = self.cache.join(ARCHIVE);
        let put_by_hand = packed.exists();
        if !put_by_hand {
            download::fetch(&self.source, &packed, progress)?;
        }
        progress(Progress::Unpacking);
        unpack(&packed, folder)?;
        if !put_by_hand {
            fs::remove_file(&packed).map_err(Error::file("remove", &packed))?;
        }
        Ok(())
    }
}

/// Waits until no other process holds the lock file; released when dropped, and by the system when the process ends.
fn lock(path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<File> {
    let file =
        File::options().create(true).truncate(false).write(true).open(path).map_err(Error::file("create", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress(Progress::Waiting);
            file.lock().map_err(Error::file("lock", path))?;
        }
        Err(TryLockError::Error(source)) => return Err(Error::file("lock", path)(source)),
    }
    Ok(file)
}

/// Checks the whole archive, then makes `folder` of it in one rename. Nothing is left behind that looks complete but is not.
fn unpack(packed: &Path, folder: &Path) -> Result<()> {
    let origin = packed.display().to_string();
    let file = File::open(packed).map_err(Error::file("open", packed))?;
    let contents = archive::read(&origin, file)?;
    let part = folder.with_extension("part");
    match fs::remove_dir_all(&part) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            return Err(Error::file("remove", &part)(e));
        }
        _ => fs::create_dir(&part).map_err(Error::file("create", &part))?,
    }
    for (name, bytes) in &contents {
        let path = part.join(name);
        let write = || {
            let mut file = File::create_new(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(Error::file("write", &path))?;
    }
    cifar10::parse(&origin, contents)?;
    fs::rename(&part, folder).map_err(Error::file("create", folder))?;
    sync_parent(folder)
}

/// Makes a rename last through a crash, where the system lets folders be synced.
fn sync_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(parent) if cfg!(unix) => {
            File::open(parent).and_then(|d| d.sync_all()).map_err(Error::file("sync", parent))
        }
        _ => Ok(()),
    }
}
