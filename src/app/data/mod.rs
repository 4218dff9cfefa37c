//! Opening data sets: CIFAR-10 from a folder, an archive or the network.

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

/// What the library reports while a data set is fetched; the last one wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Another process is downloading; this one waits for it.
    Waiting,
    /// Bytes that are here, of all there will be.
    Downloading {
        /// Bytes on disk, those of an earlier attempt among them.
        done: u64,
        /// Size of the archive in bytes.
        total: u64,
    },
    /// The checksum is being computed.
    Verifying,
    /// The archive is being unpacked.
    Unpacking,
}

/// Which data set to open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DataSpec {
    /// CIFAR-10 from `./datasets/cifar-10-batches-bin`, else from the user's cache, else from the network into the cache.
    #[default]
    Cifar10,
    /// The built-in pictures of [`shapes`].
    Shapes,
    /// A folder with CIFAR-10's binary files, or `cifar-10-binary.tar.gz`.
    Path(PathBuf),
}

impl FromStr for DataSpec {
    type Err = Infallible;

    /// `shapes` is the built-in data set (a folder of that name is `./shapes`); all else is a path.
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

/// Opens a data set; only [`DataSpec::Cifar10`] may use the network, and tells `progress` about it.
pub fn open(spec: &DataSpec, progress: &mut dyn FnMut(Progress)) -> Result<Dataset> {
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
    fn names_of_data_sets() {
        assert_eq!("shapes".parse(), Ok(DataSpec::Shapes));
        assert_eq!("./shapes".parse(), Ok(DataSpec::Path("./shapes".into())));
    }
}
