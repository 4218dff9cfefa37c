//! The cache of data sets, and downloads from a server that misbehaves.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use md5::{Digest, Md5};
use vae_wgpu::Error;
use vae_wgpu::app::data::download::Source;
use vae_wgpu::app::data::{CacheDirs, FetchProgress};
use vae_wgpu::vae::data::Dataset;
use vae_wgpu::vae::data::cifar10::{ARCHIVE, FOLDER};

use crate::data_files::{archive_of, chain, files, folder_of};

/// How the server answers one request.
#[derive(Clone, Copy, Debug)]
enum Answer {
    /// The file, or the requested range.
    Whole,
    /// The whole file, whatever range was requested.
    NoRange,
    /// The connection ends after this many bytes of the body.
    Cut(usize),
    /// A few bytes, then silence.
    Stall(usize),
    /// Small pieces with pauses, in total longer than the timeout of the client.
    Slow,
    /// Other bytes of the right length.
    Corrupt,
    /// A response of this length.
    Length(usize),
    /// Without a declared length, and longer than expected.
    Endless,
    /// Only a status.
    Status(&'static str),
}

struct Server {
    url: String,
    /// The `Range` header of each request.
    requests: Arc<Mutex<Vec<Option<String>>>>,
}

impl Server {
    /// Answers the requests in the order of `answers`; the last answer repeats.
    fn start(body: Vec<u8>, answers: Vec<Answer>) -> Self {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let url = format!("http://{}/{ARCHIVE}", listener.local_addr().unwrap());
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (body, seen) = (Arc::new(body), Arc::clone(&requests));
        thread::spawn(move || {
            for (i, stream) in listener.incoming().enumerate() {
                let answer = answers[i.min(answers.len() - 1)];
                let (body, seen) = (Arc::clone(&body), Arc::clone(&seen));
                // The client closes some of these connections.
                thread::spawn(move || serve(stream.unwrap(), &body, answer, &seen));
            }
        });
        Self { url, requests }
    }

    fn requests(&self) -> Vec<Option<String>> {
        self.requests.lock().unwrap().clone()
    }
}

fn serve(mut stream: TcpStream, body: &[u8], answer: Answer, seen: &Mutex<Vec<Option<String>>>) -> io::Result<()> {
    let mut range = None;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let line = line?;
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(": ")
            && name.eq_ignore_ascii_case("range")
        {
            range = Some(value.to_owned());
        }
    }
    seen.lock().unwrap().push(range.clone());
    let start: usize = match &range {
        Some(r) if !matches!(answer, Answer::NoRange) => {
            r.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap()
        }
        _ => 0,
    };
    let mut rest = body[start.min(body.len())..].to_vec();
    let total = body.len();
    let head = match start {
        0 => "200 OK\r\n".to_owned(),
        _ => format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{total}\r\n", total - 1),
    };
    let length = format!("Content-Length: {}\r\n", rest.len());
    let (head, length) = match answer {
        Answer::Status(status) => (format!("{status}\r\n"), "Content-Length: 0\r\n".to_owned()),
        Answer::Length(len) => (head, format!("Content-Length: {len}\r\n")),
        Answer::Endless => (head, String::new()),
        _ => (head, length),
    };
    write!(stream, "HTTP/1.1 {head}{length}Connection: close\r\n\r\n")?;
    match answer {
        Answer::Whole | Answer::NoRange => stream.write_all(&rest),
        Answer::Cut(at) => stream.write_all(&rest[..at.min(rest.len())]),
        Answer::Stall(at) => {
            stream.write_all(&rest[..at])?;
            thread::sleep(Duration::from_secs(5));
            Ok(())
        }
        Answer::Slow => rest.chunks(rest.len() / 12).try_for_each(|piece| {
            thread::sleep(Duration::from_millis(100));
            stream.write_all(piece)
        }),
        Answer::Corrupt => {
            let middle = rest.len() / 2;
            rest[middle] ^= 1;
            stream.write_all(&rest)
        }
        Answer::Length(len) => stream.write_all(&vec![0; len]),
        Answer::Endless => {
            stream.write_all(&rest)?;
            stream.write_all(&rest)
        }
        Answer::Status(_) => Ok(()),
    }
}

struct Setup {
    dir: tempfile::TempDir,
    server: Server,
    places: CacheDirs,
    body: Vec<u8>,
}

fn setup(answers: &[Answer]) -> Setup {
    let body = archive_of(&files());
    let server = Server::start(body.clone(), answers.to_vec());
    let dir = tempfile::tempdir().unwrap();
    let source = Source {
        url: server.url.clone(),
        bytes: body.len() as u64,
        md5: Md5::digest(&body).iter().map(|b| format!("{b:02x}")).collect(),
        patience: Duration::from_millis(700),
    };
    let places = CacheDirs { local: dir.path().join("datasets"), cache: dir.path().join("cache/vae-wgpu"), source };
    Setup { dir, server, places, body }
}

impl Setup {
    fn open(&self) -> Result<Dataset, Error> {
        self.places.open(&mut |_| ())
    }

    fn error(&self) -> String {
        let error = chain(&self.open().unwrap_err());
        let found = self.cached();
        assert!(!found.iter().any(|name| name == FOLDER || name == ARCHIVE), "{error}: left behind: {found:?}");
        error
    }

    /// Names of the files in the cache.
    fn cached(&self) -> Vec<String> {
        let name = |e: io::Result<fs::DirEntry>| e.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = fs::read_dir(&self.places.cache).unwrap().map(name).collect();
        names.sort();
        names
    }

    fn part(&self) -> std::path::PathBuf {
        self.places.cache.join(format!("{ARCHIVE}.part"))
    }

    /// Bytes of an earlier attempt.
    fn leave(&self, bytes: &[u8]) {
        fs::create_dir_all(&self.places.cache).unwrap();
        fs::write(self.part(), bytes).unwrap();
    }

    fn succeeds(&self, requests: &[Option<&str>]) {
        assert_eq!(self.open().unwrap().train.len(), 20);
        assert_eq!(self.cached(), [FOLDER, "lock"]);
        let found = self.server.requests();
        assert_eq!(found.iter().map(Option::as_deref).collect::<Vec<_>>(), requests);
        self.open().unwrap();
        assert_eq!(self.server.requests().len(), requests.len(), "the second time nothing is fetched");
    }
}

#[test]
fn a_download_fills_the_cache() {
    let setup = setup(&[Answer::Whole]);
    let mut events = Vec::new();
    setup.places.open(&mut |p| events.push(p)).unwrap();
    let total = setup.body.len() as u64;
    assert_eq!(events[0], FetchProgress::Downloading { done: 0, total });
    let done = events.iter().position(|p| *p == FetchProgress::Downloading { done: total, total }).unwrap();
    assert_eq!(events[done + 1..], [FetchProgress::Verifying, FetchProgress::Verified, FetchProgress::Unpacking]);
    setup.succeeds(&[None]);
}

#[test]
fn local_folder_has_priority() {
    let setup = setup(&[Answer::Whole]);
    folder_of(&setup.places.local, &files());
    setup.open().unwrap();
    assert!(setup.server.requests().is_empty() && !setup.places.cache.exists());
    fs::remove_file(setup.places.local.join("test_batch.bin")).unwrap();
    assert!(chain(&setup.open().unwrap_err()).contains("test_batch.bin missing"));
    assert!(setup.server.requests().is_empty());
}

#[test]
fn manually_placed_archive_is_used_and_kept() {
    let setup = setup(&[Answer::Status("404 Not Found")]);
    fs::create_dir_all(&setup.places.cache).unwrap();
    fs::write(setup.places.cache.join(ARCHIVE), &setup.body).unwrap();
    setup.open().unwrap();
    assert_eq!(setup.cached(), [FOLDER, ARCHIVE, "lock"]);
    // A damaged one is kept, too: the message says which file to delete.
    fs::remove_dir_all(setup.places.cache.join(FOLDER)).unwrap();
    let archive = setup.places.cache.join(ARCHIVE);
    fs::write(&archive, &setup.body[..setup.body.len() / 2]).unwrap();
    let error = chain(&setup.open().unwrap_err());
    let hint = format!("Delete {}, then run the command again to download it", archive.display());
    assert!(error.contains("truncated") && error.contains(&hint), "{error}");
    assert!(archive.exists() && setup.server.requests().is_empty());
}

#[test]
fn network_error_lists_the_alternatives() {
    let mut setup = setup(&[Answer::Whole]);
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    setup.places.source.url = format!("http://{closed}/{ARCHIVE}");
    let error = setup.error();
    for part in [&setup.places.source.url, &setup.places.cache.display().to_string(), "yourself", "--data shapes"] {
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn statuses_and_lengths_are_checked() {
    for status in ["404 Not Found", "500 Internal Server Error", "204 No Content"] {
        let error = setup(&[Answer::Status(status)]).error();
        assert!(error.contains(&format!("status {}", &status[..3])), "{error}");
    }
    let error = setup(&[Answer::Length(5)]).error();
    assert!(error.contains("the server offers 5 bytes, expected "), "{error}");
    let endless = setup(&[Answer::Endless]);
    assert!(endless.error().contains("more than the"));
    assert!(!endless.part().exists());
}

#[test]
fn corrupt_bytes_are_not_kept() {
    let setup = setup(&[Answer::Corrupt, Answer::Whole]);
    let error = setup.error();
    assert!(error.contains("MD5 checksum is ") && error.contains(&setup.places.source.md5), "{error}");
    assert!(!setup.part().exists());
    setup.succeeds(&[None, None]);
}

#[test]
fn interrupted_download_resumes_while_it_makes_progress() {
    setup(&[Answer::Cut(1000), Answer::Cut(50_000), Answer::Whole]).succeeds(&[
        None,
        Some("bytes=1000-"),
        Some("bytes=51000-"),
    ]);
}

#[test]
fn download_without_progress_fails_and_keeps_its_part() {
    let setup = setup(&[Answer::Cut(1000), Answer::Cut(0), Answer::Whole]);
    let error = setup.error();
    assert!(error.contains("Run the command again to resume at byte 1000"), "{error}");
    assert_eq!(fs::read(setup.part()).unwrap(), setup.body[..1000]);
    setup.succeeds(&[None, Some("bytes=1000-"), Some("bytes=1000-")]);
}

#[test]
fn download_resumes_at_every_offset() {
    let len = setup(&[Answer::Whole]).body.len();
    for at in [1, 2, len / 3, len - 1, len] {
        let setup = setup(&[Answer::Whole]);
        setup.leave(&setup.body[..at]);
        let range = format!("bytes={at}-");
        setup.succeeds(&[Some(range.as_str())][usize::from(at == len)..]);
    }
}

#[test]
fn download_restarts_if_the_server_ignores_ranges() {
    let setup = setup(&[Answer::NoRange]);
    setup.leave(&[1; 5000]);
    setup.succeeds(&[Some("bytes=5000-")]);
}

#[test]
fn download_restarts_if_the_range_is_rejected() {
    let setup = setup(&[Answer::Status("416 Range Not Satisfiable"), Answer::Whole]);
    setup.leave(&[1; 5000]);
    setup.succeeds(&[Some("bytes=5000-"), None]);
}

#[test]
fn partial_download_of_another_file_is_discarded() {
    let stale = setup(&[Answer::Whole]);
    stale.leave(&[1; 5000]);
    stale.succeeds(&[Some("bytes=5000-"), None]);
    let too_long = setup(&[Answer::Whole]);
    too_long.leave(&vec![1; too_long.body.len() + 1]);
    too_long.succeeds(&[None]);
}

#[test]
fn download_times_out_only_without_data() {
    setup(&[Answer::Slow]).succeeds(&[None]);
    let silent = setup(&[Answer::Stall(1000), Answer::Stall(0)]);
    let error = silent.error();
    assert!(error.contains("timeout") && error.contains("at byte 1000"), "{error}");
}

#[test]
fn verified_archive_must_still_hold_a_data_set() {
    let mut setup = setup(&[Answer::Whole]);
    let body = archive_of(&files()[..3]);
    setup.server = Server::start(body.clone(), vec![Answer::Whole]);
    setup.places.source = Source {
        url: setup.server.url.clone(),
        bytes: body.len() as u64,
        md5: Md5::digest(&body).iter().map(|b| format!("{b:02x}")).collect(),
        ..setup.places.source.clone()
    };
    let error = chain(&setup.open().unwrap_err());
    assert!(error.contains("test_batch.bin missing"), "{error}");
    assert!(!setup.places.cache.join(FOLDER).exists());
}

#[test]
fn leftovers_of_an_interrupted_extraction_are_removed() {
    let setup = setup(&[Answer::Whole]);
    folder_of(&setup.places.cache.join(FOLDER).with_extension("part"), &files()[..2]);
    setup.succeeds(&[None]);
}

#[test]
fn concurrent_callers_download_once() {
    let setup = setup(&[Answer::Slow]);
    let waited = Mutex::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut note = |p| {
                    if p == FetchProgress::Waiting {
                        *waited.lock().unwrap() += 1;
                    }
                };
                assert_eq!(setup.places.open(&mut note).unwrap().train.len(), 20);
            });
        }
    });
    assert_eq!(setup.server.requests().len(), 1);
    assert_eq!(*waited.lock().unwrap(), 3);
    setup.succeeds(&[None]);
    assert!(setup.dir.path().exists());
}
