//! One file from the network: streamed to disk, gone on with where an earlier attempt stopped, checked by size and MD5.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};

use crate::app::data::Progress;
use crate::error::{Error, Result};
use crate::vae::data::cifar10;

/// A file on the network, and what it must be.
#[derive(Clone, Debug)]
pub struct Source {
    /// Where it is.
    pub url: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Its MD5 checksum, in lower-case hex.
    pub md5: String,
    /// How long the server may be silent.
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

/// Downloads `source` to `path`, which appears only once it is complete and right. Until then the bytes are in `path` with
/// `.part` added: a later call goes on from there. The caller holds a lock.
pub fn fetch(source: &Source, path: &Path, progress: &mut dyn FnMut(Progress)) -> Result<()> {
    let mut part = OsString::from(path);
    part.push(".part");
    let part = PathBuf::from(part);
    let failed = |cause: Cause| {
        let folder = path.parent().unwrap_or(path);
        let kept = held(&part).ok().filter(|&held| held > 0);
        let again = kept.map_or(String::new(), |held| format!("run the command again to resume at byte {held}, "));
        Error::Download {
            url: source.url.clone(),
            hint: format!(
                "{again}put the archive into {} by hand, or use --data shapes, which needs no network",
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
    let mut fresh = held(&part).map_err(Error::file("read", &part))? == 0;
    loop {
        complete(&agent, source, &part, progress).map_err(&failed)?;
        progress(Progress::Verifying);
        let found = md5_of(&part).map_err(Error::file("read", &part))?;
        if found == source.md5 {
            return fs::rename(&part, path).map_err(Error::file("create", path));
        }
        fs::remove_file(&part).map_err(Error::file("remove", &part))?;
        if fresh {
            return Err(failed(format!("the MD5 checksum is {found}, expected {}", source.md5).into()));
        }
        // The start was an earlier attempt's, and may have been of another file.
        fresh = true;
    }
}

/// Requests what is missing until all is there. A request that got further than any before is followed by another.
fn complete(
    agent: &ureq::Agent,
    source: &Source,
    part: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), Cause> {
    if held(part)? > source.bytes {
        fs::remove_file(part)?;
    }
    let mut furthest = held(part)?;
    while held(part)? != source.bytes {
        let outcome = request(agent, source, part, progress);
        let now = held(part)?;
        if now <= furthest {
            outcome?;
            return Err(format!("the answer ended at byte {now} of {}", source.bytes).into());
        }
        furthest = now;
    }
    Ok(())
}

/// One request: appends to `part` when the server goes on where `part` ends, otherwise starts it anew.
fn request(agent: &ureq::Agent, source: &Source, part: &Path, progress: &mut dyn FnMut(Progress)) -> Result<(), Cause> {
    let mut at = held(part)?;
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
        // The server has another file, or cannot go on: what is here is of no use to it.
        206 | 416 if at > 0 => {
            fs::remove_file(part)?;
            return request(agent, source, part, progress);
        }
        status => {
            return Err(format!("the server answered with status {status}, expected 200").into());
        }
    }
    if let Some(length) = length.filter(|l| *l != source.bytes - at) {
        return Err(format!("the server offers {length} bytes, expected {}", source.bytes - at).into());
    }
    let mut file = File::options().create(true).append(at > 0).write(true).truncate(at == 0).open(part)?;
    let mut body = response.into_body().into_reader();
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        progress(Progress::Downloading { done: at, total: source.bytes });
        let count = match body.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        if count == 0 {
            return Ok(file.sync_all()?);
        }
        at += count as u64;
        if at > source.bytes {
            drop(file);
            fs::remove_file(part)?;
            return Err(format!("the server sends more than the {} bytes expected", source.bytes).into());
        }
        file.write_all(&buffer[..count])?;
    }
}

/// Bytes that are already here.
fn held(part: &Path) -> io::Result<u64> {
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
