//! Search path of CIFAR-10, and the user's cache, which is filled under a lock and atomically.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::app::data::download;
use crate::app::data::download::Source;
use crate::app::data::{FetchProgress, archive};
use crate::app::io::atomic;
use crate::error::{Error, Result};
use crate::vae::data::Dataset;
use crate::vae::data::cifar10;
use crate::vae::data::cifar10::{ARCHIVE, FOLDER};

/// Locations of CIFAR-10, in search order.
#[derive(Clone, Debug)]
pub struct CacheDirs {
    /// A folder in the working directory, searched first.
    pub local: PathBuf,
    /// The folder for downloads. An archive that the user placed here is used too.
    pub cache: PathBuf,
    /// The archive on the network.
    pub source: Source,
}

impl CacheDirs {
    /// Returns `./datasets/cifar-10-batches-bin`, the folder `vae-wgpu` in the user's cache, and the official archive.
    ///
    /// # Errors
    /// [`Error::Data`] if the user has no home directory.
    pub fn user() -> Result<Self> {
        let dirs = directories::BaseDirs::new().ok_or_else(|| {
            Error::data(
                "the cache folder",
                "this user has no home directory",
                "pass a folder or archive with --data, or use --data shapes",
            )
        })?;
        Ok(Self {
            local: Path::new("datasets").join(FOLDER),
            cache: dirs.cache_dir().join("vae-wgpu"),
            source: Source::default(),
        })
    }

    /// Opens the data set from the first location that has it, or downloads it. A damaged copy is an error; it is neither skipped nor
    /// removed.
    ///
    /// # Errors
    /// [`Error::Data`] for a damaged copy, [`Error::Download`] and [`Error::File`].
    pub fn open(&self, progress: &mut dyn FnMut(FetchProgress)) -> Result<Dataset> {
        if self.local.exists() {
            return archive::folder(&self.local);
        }
        let folder = self.cache.join(FOLDER);
        if !folder.exists() {
            self.fill(&folder, progress)?;
        }
        archive::folder(&folder)
    }

    /// Unpacks the data set into the cache, from an existing archive or from the network.
    fn fill(&self, folder: &Path, progress: &mut dyn FnMut(FetchProgress)) -> Result<()> {
        fs::create_dir_all(&self.cache).map_err(Error::file("create", &self.cache))?;
        let _lock = atomic::lock_file(&self.cache.join("lock"), || progress(FetchProgress::Waiting))?;
        // Another process may have filled the cache while this one waited.
        if folder.exists() {
            return Ok(());
        }
        let packed = self.cache.join(ARCHIVE);
        let is_users = packed.exists();
        if !is_users {
            download::fetch(&self.source, &packed, progress)?;
        }
        progress(FetchProgress::Unpacking);
        unpack(&packed, folder).map_err(|error| match error {
            Error::Data { file, what, .. } => {
                let hint = format!("delete {}, then run the command again to download it", packed.display());
                Error::data(file, what, hint)
            }
            other => other,
        })?;
        if !is_users {
            fs::remove_file(&packed).map_err(Error::file("remove", &packed))?;
        }
        Ok(())
    }
}

/// Checks the whole archive and unpacks it to `folder`, which appears in one rename: an interruption never leaves an incomplete `folder`.
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
    atomic::sync_parent(folder).map_err(Error::file("sync the parent directory of", folder))
}
