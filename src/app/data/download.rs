//! Downloads one file: streams it to disk, resumes an earlier attempt, and checks size and MD5.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};

use crate::app::data::FetchProgress;
use crate::error::{Error, Result};
use crate::vae::data::cifar10;

/// A file on the network with its expected size and checksum.
#[derive(Clone, Debug)]
pub struct Source {
    /// Address.
    pub url: String,
    /// Size in bytes.
    pub bytes: u64,
    /// MD5 checksum in lower-case hex.
    pub md5: String,
    /// Timeout for connecting, for the response and for each read.
    pub patience: Duration,
}

impl Default for Source {
    /// The official archive of CIFAR-10's binary version.
    fn default() -> Self {
        Self {
            url: cifar10::URL.to_owned(),
            bytes: 170_052_171,
            md5: "c32a1d4ab5d03f1284b67883e8d87530".to_owned(),
            patience: Duration::from_secs(30),
        }
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Downloads `source` to `path`, which appears only once it is complete and verified. Until then the bytes are in `path` with
/// `.part` appended, from which a later call resumes. The caller must hold a lock.
///
/// # Errors
/// [`Error::Download`] for failures of the network or the server, [`Error::File`] for those of the disk.
pub fn fetch(source: &Source, path: &Path, progress: &mut dyn FnMut(FetchProgress)) -> Result<()> {
    let mut part = OsString::from(path);
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |cause: Cause| {
        let folder = path.parent().unwrap_or(path);
        let kept = bytes_on_disk(&part).ok().filter(|&bytes| bytes > 0);
        let again = kept.map_or(String::new(), |at| format!("run the command again to resume at byte {at}, "));
        Error::Download {
            url: source.url.clone(),
            hint: format!(
                "{again}place the archive in {} yourself, or use --data shapes, which needs no network",
                folder.display()
            ),
            source: cause,
        }
    };
    let agent = ureq::Agent::new_with_config(
        ureq::Agent::config_builder()
            .http_status_as_error(false)
            .user_agent(concat!("vae-wgpu/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(source.patience))
            .timeout_recv_response(Some(source.patience))
            .timeout_per_read(Some(source.patience))
            .build(),
    );
    let mut fresh = bytes_on_disk(&part).map_err(Error::file("read", &part))? == 0;
    loop {
        // Failures of the disk are errors of their own.
        complete(&agent, source, &part, progress)
            .map_err(|cause| cause.downcast().map_or_else(&failed, |error: Box<Error>| *error))?;
        progress(FetchProgress::Verifying);
        let found = md5_of(&part).map_err(Error::file("read", &part))?;
        if found == source.md5 {
            progress(FetchProgress::Verified);
            return fs::rename(&part, path).map_err(Error::file("create", path));
        }
        fs::remove_file(&part).map_err(Error::file("remove", &part))?;
        if fresh {
            return Err(failed(format!("the MD5 checksum is {found}, expected {}", source.md5).into()));
        }
        // The start came from an earlier attempt and may belong to another file.
        fresh = true;
    }
}

/// Requests the missing bytes until the file is complete. Retries as long as each request gets further than all before.
fn complete(
    agent: &ureq::Agent,
    source: &Source,
    part: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), Cause> {
    if on_disk(part)? > source.bytes {
        fs::remove_file(part).map_err(Error::file("remove", part))?;
    }
    let mut furthest = on_disk(part)?;
    while on_disk(part)? != source.bytes {
        let outcome = request(agent, source, part, progress);
        let now = on_disk(part)?;
        if now <= furthest {
            outcome?;
            return Err(format!("the response ended at byte {now} of {}", source.bytes).into());
        }
        furthest = now;
    }
    Ok(())
}

/// Sends one request: appends to `part` if the server resumes at its end, otherwise starts over.
fn request(
    agent: &ureq::Agent,
    source: &Source,
    part: &Path,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(), Cause> {
    let mut at = on_disk(part)?;
    let mut get = agent.get(&source.url);
    if at > 0 {
        get = get.header("Range", format!("bytes={at}-"));
    }
    let response = get.call()?;
    let header = |name| response.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (range, length) = (header("content-range"), header("content-length").and_then(|l| l.parse::<u64>().ok()));
    match response.status().as_u16() {
        200 => at = 0,
        206 if range.as_deref() == Some(&format!("bytes {at}-{}/{}", source.bytes - 1, source.bytes)) => {}
        // The server has another file or cannot resume: start over.
        206 | 416 if at > 0 => {
            fs::remove_file(part).map_err(Error::file("remove", part))?;
            return request(agent, source, part, progress);
        }
        status => {
            return Err(format!("the server returned status {status}, expected 200").into());
        }
    }
    if let Some(length) = length.filter(|l| *l != source.bytes - at) {
        return Err(format!("the server offers {length} bytes, expected {}", source.bytes - at).into());
    }
    let file = File::options().create(true).append(at > 0).write(true).truncate(at == 0).open(part);
    let mut file = file.map_err(Error::file("create", part))?;
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        progress(FetchProgress::Downloading { done: at, total: source.bytes });
        let count = match body.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if count == 0 {
            return Ok(file.sync_all().map_err(Error::file("write", part))?);
        }
        at += count as u64;
        if at > source.bytes {
            drop(file);
            fs::remove_file(part).map_err(Error::file("remove", part))?;
            return Err(format!("the server sends more than the {} bytes expected", source.bytes).into());
        }
        file.write_all(&buffer[..count]).map_err(Error::file("write", part))?;
    }
}

fn on_disk(part: &Path) -> Result<u64> {
    bytes_on_disk(part).map_err(Error::file("read", part))
}

/// Returns the size of `part`, 0 if it does not exist.
fn bytes_on_disk(part: &Path) -> io::Result<u64> {
    match fs::metadata(part) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        found => Ok(found?.len()),
    }
}

fn md5_of(path: &Path) -> io::Result<String> {
    let mut hasher = Md5::new();
    let mut file = File::open(path)?;
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        match file.read(&mut buffer)? {
            0 => {
                return Ok(hasher.finalize().iter().map(|b| format!("{b:02x}")).collect());
            }
            count => hasher.update(&buffer[..count]),
        }
    }
}
