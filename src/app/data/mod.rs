//! Opens data sets: the built-in shapes, CIFAR-10 from the network, and what `--data` names: a folder of images, CIFAR-10, CIFAR-100, or
//! files in MNIST's format.

use std::convert::Infallible;
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::vae::data::archive::{python_error, python_version};
use crate::vae::data::{Dataset, cifar10, cifar100, idx, shapes};

pub mod archive;
pub mod cache;
pub mod download;
pub mod image_folder;

pub use cache::CacheDirs;
pub use image_folder::{ImageOptions, Summary};

/// Progress of opening a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FetchProgress {
    /// Waiting for another process that is downloading.
    Waiting,
    /// Downloading the archive.
    Downloading {
        /// Bytes on disk, including those of an earlier attempt.
        done: u64,
        /// Size of the archive in bytes.
        total: u64,
    },
    /// Computing the checksum.
    Verifying,
    /// The checksum of the download is right.
    Verified,
    /// Unpacking the archive.
    Unpacking,
    /// Decoding a folder of images.
    Decoding {
        /// Files that have been decoded.
        done: u64,
        /// All files.
        total: u64,
    },
}

/// A data set to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DataSpec {
    /// CIFAR-10 from `./datasets/cifar-10-batches-bin`, else from the user's cache, else downloaded into the cache.
    #[default]
    Cifar10,
    /// The built-in images of [`shapes`].
    Shapes,
    /// A folder of images, the binary version of CIFAR-10 or CIFAR-100, or a folder with files in MNIST's format.
    Path(PathBuf),
}

impl FromStr for DataSpec {
    type Err = Infallible;

    /// Parses `shapes` as the built-in data set and anything else as a path. A folder called `shapes` is written `./shapes`.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(if text == "shapes" { Self::Shapes } else { Self::Path(text.into()) })
    }
}

impl fmt::Display for DataSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cifar10 => f.write_str("CIFAR-10"),
            Self::Shapes => f.write_str("shapes"),
            Self::Path(path) => write!(f, "{}", path.display()),
        }
    }
}

/// An open data set.
#[derive(Debug)]
pub struct Opened {
    /// The data set.
    pub dataset: Dataset,
    /// What was read from a folder of images; `None` for other data sets.
    pub images: Option<Summary>,
}

impl From<Dataset> for Opened {
    fn from(dataset: Dataset) -> Self {
        Self { dataset, images: None }
    }
}

/// Opens a data set. `options` apply to a folder of images. Only [`DataSpec::Cifar10`] uses the network.
///
/// # Errors
/// [`Error::Data`], [`Error::Download`] or [`Error::File`].
pub fn open(spec: &DataSpec, options: &ImageOptions, progress: &mut dyn FnMut(FetchProgress)) -> Result<Opened> {
    match spec {
        DataSpec::Cifar10 => CacheDirs::user()?.open(progress).map(Opened::from),
        DataSpec::Shapes => shapes::dataset().map(Opened::from),
        DataSpec::Path(path) => open_path(path, options, progress),
    }
}

/// Opens the data set at a path, whose content decides what it is. A folder may also hold the folder or the archive of CIFAR-10 or
/// CIFAR-100 under its usual name.
fn open_path(path: &Path, options: &ImageOptions, progress: &mut dyn FnMut(FetchProgress)) -> Result<Opened> {
    let origin = path.display().to_string();
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let hint = "if it has moved, pass its path as --data; `shapes` stands for the built-in images";
            return Err(Error::data(&origin, "no file or folder has this name", hint));
        }
        found => found.map_err(Error::file("open the data set", path))?,
    };
    if !found.is_dir() {
        if image_folder::is_image(path) {
            return Err(Error::data(&origin, "it is a single image", "pass the folder that it is in"));
        }
        python_version(&origin, path.file_name().unwrap_or_default())?;
        return archive::open(path).map(Opened::from);
    }
    let holds = |name: &str| path.join(name).exists();
    if cifar10::FILES.into_iter().any(holds) {
        return archive::folder(path).map(Opened::from);
    }
    if cifar100::FILES.into_iter().any(holds) {
        return archive::cifar100_folder(path).map(Opened::from);
    }
    if idx::FILES.into_iter().any(|name| archive::idx_file(path, name).is_some()) {
        return archive::idx_folder(path).map(Opened::from);
    }
    let inner = [cifar10::FOLDER, cifar10::ARCHIVE, cifar100::FOLDER, cifar100::ARCHIVE];
    if let Some(name) = inner.into_iter().find(|name| holds(name)) {
        return open_path(&path.join(name), options, progress);
    }
    for entry in fs::read_dir(path).map_err(Error::file("list", path))?.flatten() {
        python_version(&origin, &entry.file_name())?;
    }
    if ["train", "test", "meta"].iter().all(|name| path.join(name).is_file()) {
        return Err(python_error(&origin, 100));
    }
    let (dataset, summary) = image_folder::open(path, options, progress)?;
    Ok(Opened { dataset, images: Some(summary) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_single_image_is_no_data_set() {
        let file = tempfile::Builder::new().suffix(".png").tempfile().unwrap();
        let error = open_path(file.path(), &ImageOptions::default(), &mut |_| ()).unwrap_err().to_string();
        assert!(error.contains("a single image. Pass the folder"), "{error}");
    }

    #[test]
    fn data_sets_are_parsed_from_names_and_paths() {
        assert_eq!("shapes".parse(), Ok(DataSpec::Shapes));
        assert_eq!("./shapes".parse(), Ok(DataSpec::Path("./shapes".into())));
    }
}
