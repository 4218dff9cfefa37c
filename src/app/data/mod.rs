//! Opens data sets: the built-in shapes, and CIFAR-10 from a folder, an archive or the network.

use std::convert::Infallible;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use crate::error::Result;
use crate::vae::data::{Dataset, shapes};

pub mod archive;
pub mod cache;
pub mod download;

pub use cache::CacheDirs;

/// Progress of fetching a data set.
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
    /// Unpacking the archive.
    Unpacking,
}

/// A data set to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DataSpec {
    /// CIFAR-10 from `./datasets/cifar-10-batches-bin`, else from the user's cache, else downloaded into the cache.
    #[default]
    Cifar10,
    /// The built-in images of [`shapes`].
    Shapes,
    /// A folder with CIFAR-10's binary files, or `cifar-10-binary.tar.gz`.
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

/// Opens a data set. Only [`DataSpec::Cifar10`] uses the network, and reports to `progress`.
///
/// # Errors
/// [`Error::Data`](crate::Error::Data), [`Error::Download`](crate::Error::Download) or [`Error::File`](crate::Error::File).
pub fn open(spec: &DataSpec, progress: &mut dyn FnMut(FetchProgress)) -> Result<Dataset> {
    match spec {
        DataSpec::Cifar10 => CacheDirs::user()?.open(progress),
        DataSpec::Shapes => shapes::dataset(),
        DataSpec::Path(path) => archive::open(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_sets_are_parsed_from_names_and_paths() {
        assert_eq!("shapes".parse(), Ok(DataSpec::Shapes));
        assert_eq!("./shapes".parse(), Ok(DataSpec::Path("./shapes".into())));
    }
}
