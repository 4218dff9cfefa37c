//! Reads CIFAR-10 from a folder or from its `.tar.gz`.
//!
//! The archive is not trusted. Only regular files with known names are read, and no path in the archive is written to. Memory use is
//! bounded by the data that is present, not by sizes in headers.

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path};

use flate2::bufread::MultiGzDecoder;

use crate::error::{Error, Result};
use crate::vae::data::Dataset;
use crate::vae::data::cifar10;
use crate::vae::data::cifar10::{Contents, FILES, MAX_FILE, URL};

/// Limit on the unpacked size of an archive, in bytes.
const MAX_TOTAL: u64 = 192 << 20;

/// Opens CIFAR-10 from an archive, from a folder with its binary files, or from a folder that contains either under its usual name.
///
/// # Errors
/// [`Error::Data`] for a missing, damaged or unknown file, [`Error::File`] where it cannot be read.
pub fn open(path: &Path) -> Result<Dataset> {
    let origin = path.display().to_string();
    let found = fs::metadata(path).map_err(Error::file("open the data set", path))?;
    if !found.is_dir() {
        return cifar10::parse(&origin, read(&origin, open_file(path)?)?);
    }
    let holds = |name: &str| path.join(name).exists();
    if !FILES.into_iter().any(holds) {
        for inner in [cifar10::FOLDER, cifar10::ARCHIVE] {
            if holds(inner) {
                return open(&path.join(inner));
            }
        }
    }
    folder(path)
}

/// Opens a folder that holds CIFAR-10's binary files themselves.
pub(super) fn folder(path: &Path) -> Result<Dataset> {
    let mut contents = Contents::new();
    for name in FILES {
        let file = path.join(name);
        if file.exists() {
            let bytes = at_most(MAX_FILE, open_file(&file)?).map_err(Error::file("read", &file))?;
            contents.insert(name, bytes.ok_or_else(|| too_large(file.display(), format_args!("over {MAX_FILE}")))?);
        }
    }
    cifar10::parse(&path.display().to_string(), contents)
}

/// Opens a regular file. Reading anything else, such as a pipe, could block forever.
fn open_file(path: &Path) -> Result<File> {
    let kind = fs::metadata(path).map_err(Error::file("open", path))?;
    if !kind.is_file() {
        return Err(Error::data(path.display(), "not a regular file", "pass a folder or an archive"));
    }
    File::open(path).map_err(Error::file("open", path))
}

/// Returns all bytes of `source`, or `None` if there are more than `limit`.
fn at_most(limit: usize, source: impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes).filter(|b| b.len() <= limit))
}

fn too_large(file: impl std::fmt::Display, found: impl std::fmt::Display) -> Error {
    Error::data(file, format_args!("{found} bytes, expected at most {MAX_FILE}"), format_args!("download {URL} again"))
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
    let hint = format!("download the binary version of CIFAR-10 from {URL}");
    Err(Error::data(origin, format!("byte 0: {found}; expected a gzip archive, which starts with 1f 8b"), hint))
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
        let size = entry.size();
        if size > MAX_FILE as u64 {
            return Err(too_large(cifar10::member(origin, &path), format_args!("byte {offset}: declared {size}")));
        }
        let name = Path::new(&path).file_name().and_then(|n| n.to_str()).and_then(cifar10::known);
        let Some(name) = name.filter(|_| !kind.is_dir()) else {
            continue;
        };
        if !kind.is_file() {
            return refuse("not a regular file");
        }
        let bytes = at_most(MAX_FILE, &mut entry).map_err(|e| damaged(origin, &last, &e))?.unwrap_or_default();
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
    Error::data(origin, what, format_args!("download {URL} again"))
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
            io::Error::other(format!("it unpacks to more than {MAX_TOTAL} bytes; CIFAR-10 has 184 million"))
        })?;
        Ok(count)
    }
}
