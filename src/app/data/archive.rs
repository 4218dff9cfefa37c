//! Opens files of data sets: CIFAR-10 and CIFAR-100 in a folder or in their `.tar.gz`, and files in MNIST's format in a folder.

use std::fs::{self, File};
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::vae::data::archive::{at_most, limit, too_large};
pub use crate::vae::data::archive::{parse, read};
use crate::vae::data::cifar10::Contents;
use crate::vae::data::{Dataset, cifar10, cifar100, idx};

/// Opens CIFAR-10 or CIFAR-100 from an archive.
///
/// # Errors
/// [`Error::Data`] for a missing, damaged or unknown file, [`Error::File`] where it cannot be read.
pub fn open(path: &Path) -> Result<Dataset> {
    let origin = path.display().to_string();
    parse(&origin, read(&origin, open_file(path)?)?)
}

/// Opens a folder that holds CIFAR-10's binary files themselves.
pub(super) fn folder(path: &Path) -> Result<Dataset> {
    cifar10::parse(&path.display().to_string(), contents(path, &cifar10::FILES)?)
}

/// Opens a folder that holds CIFAR-100's binary files themselves.
pub(super) fn cifar100_folder(path: &Path) -> Result<Dataset> {
    cifar100::parse(&path.display().to_string(), contents(path, &cifar100::FILES)?)
}

fn contents(path: &Path, files: &[&'static str]) -> Result<Contents> {
    let mut contents = Contents::new();
    for &name in files {
        let (file, limit) = (path.join(name), limit(name));
        if file.exists() {
            let bytes = at_most(limit, open_file(&file)?).map_err(Error::file("read", &file))?;
            contents.insert(name, bytes.ok_or_else(|| too_large(file.display(), format_args!("over {limit}"), limit))?);
        }
    }
    Ok(contents)
}

/// Opens a folder with files in MNIST's format, packed with gzip or not.
pub(super) fn idx_folder(path: &Path) -> Result<Dataset> {
    let mut contents = idx::Contents::new();
    for name in idx::FILES {
        if let Some(file) = idx_file(path, name) {
            contents.insert(name, (file.display().to_string(), read_idx(&file)?));
        }
    }
    idx::parse(&path.display().to_string(), contents)
}

/// Returns the path of a file in MNIST's format: `train-images-idx3-ubyte`, `train-images.idx3-ubyte`, `train-images-idx3.ubyte`, or one
/// of these with `.gz`.
pub(super) fn idx_file(folder: &Path, name: &str) -> Option<PathBuf> {
    let plain = [name.to_owned(), name.replacen("-idx", ".idx", 1), name.replacen("-ubyte", ".ubyte", 1)];
    let packed = plain.clone().map(|name| name + ".gz");
    plain.iter().chain(&packed).map(|name| folder.join(name)).find(|file| file.exists())
}

fn read_idx(path: &Path) -> Result<Vec<u8>> {
    let file = open_file(path)?;
    let bytes = if path.extension().is_some_and(|e| e == "gz") {
        let damaged = |e: io::Error| {
            let what = format!("the gzip file is truncated or damaged ({e})");
            Error::data(path.display(), what, "download it again")
        };
        at_most(idx::MAX_FILE, MultiGzDecoder::new(BufReader::new(file))).map_err(damaged)?
    } else {
        at_most(idx::MAX_FILE, file).map_err(Error::file("read", path))?
    };
    bytes.ok_or_else(|| {
        let what = format!("over {0} bytes, expected at most {0}", idx::MAX_FILE);
        Error::data(path.display(), what, "save the images of larger sets as PNG files and pass their folder")
    })
}

/// Opens a regular file. Reading anything else, such as a pipe, could block forever.
fn open_file(path: &Path) -> Result<File> {
    let kind = fs::metadata(path).map_err(Error::file("open", path))?;
    if !kind.is_file() {
        return Err(Error::data(path.display(), "not a regular file", "pass a folder or an archive"));
    }
    File::open(path).map_err(Error::file("open", path))
}
