//! Reads CIFAR-10 and CIFAR-100 from the bytes of their `.tar.gz`.
//!
//! An archive is not trusted. Only regular files with known names are read, and no path in the archive is written to. Memory use is
//! bounded by the data that is present, not by sizes in headers.

use std::ffi::OsStr;
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};

use flate2::bufread::MultiGzDecoder;

use super::cifar10::Contents;
use super::{Dataset, cifar10, cifar100};
use crate::error::{Error, Result};

/// Limit on the unpacked size of an archive, in bytes.
const MAX_TOTAL: u64 = 192 << 20;
/// The way out of a damaged archive.
const AGAIN: &str = "download it again, e.g. from https://www.cs.toronto.edu/~kriz/cifar.html";
/// The way out of a path that holds no data set.
pub(crate) const ACCEPTED: &str = "pass a folder of PNG or JPEG images, the binary version of CIFAR-10 or CIFAR-100 (a folder or a \
                                   .tar.gz), or a folder with the four IDX files of MNIST";

/// Parses the files of CIFAR-10 or CIFAR-100, whichever is present. `origin` is used in messages.
///
/// # Errors
/// As [`cifar10::parse`]; [`Error::Data`] if there is neither.
pub fn parse(origin: &str, contents: Contents) -> Result<Dataset> {
    if contents.is_empty() {
        return Err(Error::data(origin, "the archive holds neither CIFAR-10 nor CIFAR-100 as binary files", ACCEPTED));
    }
    let is_cifar10 = contents.keys().any(|name| cifar10::known(name).is_some());
    if is_cifar10 { cifar10::parse(origin, contents) } else { cifar100::parse(origin, contents) }
}

/// Rejects a name of a file or folder that only the Python version of CIFAR has. `origin` is used in messages.
pub(crate) fn python_version(origin: &str, name: &OsStr) -> Result<()> {
    match name.to_string_lossy().as_ref() {
        "cifar-100-python" | "cifar-100-python.tar.gz" => Err(python_error(origin, 100)),
        "cifar-10-batches-py" | "cifar-10-python.tar.gz" | "data_batch_1" => Err(python_error(origin, 10)),
        _ => Ok(()),
    }
}

/// Returns the error of a file or folder of the Python version. `origin` is used in messages.
pub(crate) fn python_error(origin: &str, classes: usize) -> Error {
    let url = if classes == 10 { cifar10::URL } else { cifar100::URL };
    let what = format!("this is the Python version of CIFAR-{classes}, and only the binary version can be read");
    Error::data(origin, what, format_args!("download {url} and pass the archive"))
}

/// Returns all bytes of `source`, or `None` if there are more than `limit`.
pub(crate) fn at_most(limit: usize, source: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|b| b.len() <= limit))
}

/// Returns the size limit of a file in bytes.
pub(crate) fn limit(name: &str) -> usize {
    if cifar100::FILES.contains(&name) { cifar100::MAX_FILE } else { cifar10::MAX_FILE }
}

pub(crate) fn too_large(file: impl std::fmt::Display, found: impl std::fmt::Display, limit: usize) -> Error {
    Error::data(file, format_args!("{found} bytes, expected at most {limit}"), AGAIN)
}

/// Returns a name of a file of CIFAR-10 or CIFAR-100.
fn known(name: &str) -> Option<&'static str> {
    cifar10::known(name).or_else(|| cifar100::FILES.into_iter().find(|f| *f == name))
}

/// Extracts the known files of a gzipped tar archive and verifies the checksum of gzip. `origin` names the archive in errors.
///
/// # Errors
/// [`Error::Data`] for anything but a well-formed archive.
pub fn read(origin: &str, source: impl Read) -> Result<Contents> {
    let mut source = BufReader::new(source);
    check_magic(origin, &mut source)?;
    let mut archive = tar::Archive::new(Limited { inner: MultiGzDecoder::new(source), left: MAX_TOTAL });
    let contents = members(origin, &mut archive)?;
    // The checksum of the compressed data comes after the end of the tar archive.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(|e| damaged(origin, "after the last member", &e))?;
    Ok(contents)
}

fn check_magic(origin: &str, source: &mut impl io::BufRead) -> Result<()> {
    let start = source.fill_buf().map_err(Error::file("read", Path::new(origin)))?;
    if start.starts_with(&[0x1f, 0x8b]) {
        return Ok(());
    }
    let found = match start {
        [] => "the file is empty".to_owned(),
        [one] => format!("one byte, {one:02x}"),
        [a, b, ..] => format!("{a:02x} {b:02x}"),
    };
    Err(Error::data(origin, format!("byte 0: {found}; expected a gzip archive, which starts with 1f 8b"), ACCEPTED))
}

fn members(origin: &str, archive: &mut tar::Archive<impl Read>) -> Result<Contents> {
    let mut contents = Contents::new();
    let mut last = "at the first member".to_owned();
    // `raw` ignores long names and extended headers, so they can neither fill memory nor rename a member.
    let entries = archive.entries().map_err(|e| damaged(origin, &last, &e))?.raw(true);
    for entry in entries {
        let mut entry = entry.map_err(|e| damaged(origin, &last, &e))?;
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let offset = entry.raw_header_position();
        last = format!("in or after member {path} at byte {offset} of the unpacked archive");
        let refuse = |what: &str| {
            Err(Error::data(
                cifar10::member(origin, &path),
                format_args!("byte {offset}: {what}"),
                "the archive is malformed or unsafe; delete it and download it again",
            ))
        };
        let kind = entry.header().entry_type();
        let mut parts = Path::new(&path).components();
        if path.contains('\\') || parts.any(|c| !matches!(c, Component::Normal(_) | Component::CurDir)) {
            return refuse("a path that leads out of the archive");
        }
        if kind.is_symlink() || kind.is_hard_link() {
            return refuse("a link, expected only files and folders");
        }
        let name = Path::new(&path).file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let (size, limit) = (entry.size(), limit(name));
        if size > limit as u64 {
            let member = cifar10::member(origin, &path);
            return Err(too_large(member, format_args!("byte {offset}: declared {size}"), limit));
        }
        Path::new(&path).components().try_for_each(|part| python_version(origin, part.as_os_str()))?;
        let Some(name) = known(name).filter(|_| !kind.is_dir()) else {
            continue;
        };
        if !kind.is_file() {
            return refuse("not a regular file");
        }
        let bytes = at_most(limit, &mut entry).map_err(|e| damaged(origin, &last, &e))?.unwrap_or_default();
        if bytes.len() as u64 != size {
            let cut = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{} of {size} bytes", bytes.len()));
            return Err(damaged(origin, &last, &cut));
        }
        if contents.insert(name, bytes).is_some() {
            return refuse("a second file of this name");
        }
    }
    Ok(contents)
}

fn damaged(origin: &str, place: &str, error: &io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("the archive is truncated {place} ({error})"),
        _ => format!("the archive is damaged {place} ({error})"),
    };
    Error::data(origin, what, AGAIN)
}

/// A reader that returns an error, rather than end of file, after `left` bytes.
struct Limited<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            io::Error::other(format!(
                "it unpacks to more than {MAX_TOTAL} bytes; CIFAR-10 and CIFAR-100 have 184 million"
            ))
        })?;
        Ok(count)
    }
}
