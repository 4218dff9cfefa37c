//! Data sets: folders, archives, hostile archives, the cache, and downloads from a server that misbehaves.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;
use std::{error, fs, iter};

use flate2::Compression;
use flate2::write::GzEncoder;
use md5::{Digest, Md5};
use tar::{Builder, EntryType, Header};
use vae_wgpu::Error;
use vae_wgpu::app::data::download::Source;
use vae_wgpu::app::data::{CacheDirs, DataSpec, FetchProgress, ImageOptions, archive, open};
use vae_wgpu::vae::data::cifar10::{ARCHIVE, FILES, FOLDER, RECORD};
use vae_wgpu::vae::data::{Dataset, batch, cifar100, idx};

/// Records of noise: incompressible, as photographs nearly are.
fn records(seed: u64, count: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2) + 1;
    let mut noise = iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    let record = |i: usize| {
        let label = (i % 10) as u8;
        iter::once(label).chain(noise.by_ref().take(RECORD - 1)).collect::<Vec<u8>>()
    };
    (0..count).flat_map(record).collect()
}

fn files() -> Vec<(String, Vec<u8>)> {
    let bytes = |i: usize| if i < 6 { records(i as u64, 4) } else { b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n".to_vec() };
    FILES.iter().enumerate().map(|(i, name)| ((*name).to_owned(), bytes(i))).collect()
}

fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header
}

/// Appends a member under any name, including one that `tar` rejects.
fn add(tar: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, bytes: &[u8]) {
    let mut header = header(kind, bytes.len() as u64);
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

fn tar_of(files: &[(String, Vec<u8>)]) -> Builder<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, &format!("{FOLDER}/"), EntryType::Directory, &[]);
    for (name, bytes) in files {
        add(&mut tar, &format!("{FOLDER}/{name}"), EntryType::Regular, bytes);
    }
    tar
}

fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    gzip(&tar_of(files).into_inner().unwrap())
}

/// A valid archive with something added.
fn archive_with(extra: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar_of(&files());
    extra(&mut tar);
    gzip(&tar.into_inner().unwrap())
}

fn folder_of(dir: &Path, files: &[(String, Vec<u8>)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

fn pixels(data: &Dataset) -> Vec<u8> {
    let mut pixels = Vec::new();
    batch(&*data.train, &(0..data.train.len() as u32).collect::<Vec<_>>(), &mut pixels).unwrap();
    pixels
}

fn chain(error: &(dyn error::Error + 'static)) -> String {
    let hint = error.downcast_ref::<Error>().and_then(Error::trailing_hint).unwrap_or_default();
    iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ") + &hint
}

/// The error of a path that `--data` does not accept.
fn rejection(path: &Path) -> String {
    chain(&open(&DataSpec::Path(path.into()), &ImageOptions::default(), &mut |_| ()).unwrap_err())
}

fn refusal(archive: &[u8]) -> String {
    chain(&archive::read("set.tar.gz", archive).unwrap_err())
}

// Folders and archives.

#[test]
fn folders_and_archives_give_the_same_images() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(FOLDER);
    folder_of(&folder, &files());
    let path = dir.path().join("any-name.tgz");
    fs::write(&path, archive_of(&files())).unwrap();
    let quiet = &mut |_| panic!("nothing to fetch");
    let [from_folder, from_archive, from_parent] = [folder, path, dir.path().into()]
        .map(|path| open(&DataSpec::Path(path), &ImageOptions::default(), quiet).unwrap().dataset);
    assert_eq!((from_folder.train.len(), from_folder.test.len()), (20, 4));
    assert_eq!(from_folder.train.classes()[9], "j");
    assert_eq!(pixels(&from_folder), pixels(&from_archive));
    assert_eq!(pixels(&from_folder), pixels(&from_parent));
    let expected: Vec<u8> =
        files()[..5].iter().flat_map(|(_, b)| b.chunks(RECORD).flat_map(|r| r[1..].to_vec())).collect();
    assert_eq!(pixels(&from_folder), expected);
}

#[test]
fn damaged_folders_are_reported_with_file_and_offset() {
    let dir = tempfile::tempdir().unwrap();
    folder_of(dir.path(), &files());
    let error = || rejection(dir.path());
    let path = dir.path().join("data_batch_4.bin");
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let found = error();
    assert!(found.contains("data_batch_4.bin: byte 9219: record 3 has 3072 of 3073 bytes"), "{found}");
    fs::remove_file(&path).unwrap();
    assert!(error().contains("data_batch_4.bin missing"), "{}", error());
    fs::create_dir(&path).unwrap();
    assert!(error().contains("data_batch_4.bin: not a regular file"), "{}", error());
    let nowhere = rejection(Path::new("no/such/place"));
    assert!(nowhere.starts_with("cannot open the data set no/such/place: "), "{nowhere}");
}

#[test]
fn truncated_archives_are_rejected() {
    let whole = archive_of(&files());
    assert!(archive::read("set", &whole[..]).is_ok());
    let stride = (whole.len() / 300).max(1);
    let near_the_end = whole.len() - 20..whole.len();
    for len in (0..40).chain((40..whole.len()).step_by(stride)).chain(near_the_end) {
        let error = refusal(&whole[..len]);
        let clear = if len < 2 { "expected a gzip archive" } else { "truncated" };
        assert!(error.starts_with("cannot use set.tar.gz: ") && error.contains(clear), "{len}: {error}");
    }
}

#[test]
fn archives_with_a_flipped_byte_are_rejected() {
    let whole = archive_of(&files());
    for at in (10..whole.len()).step_by(whole.len() / 150) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        assert!(archive::read("set", &bytes[..]).is_err(), "byte {at}");
    }
}

#[test]
fn archives_without_a_data_set_are_rejected() {
    let python: Vec<_> = (1..6).map(|i| (format!("data_batch_{i}"), vec![0x80, 2])).collect();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(ARCHIVE);
    fs::write(&path, archive_of(&python)).unwrap();
    let error = rejection(&path);
    assert!(error.contains("the Python version of CIFAR-10, and only the binary version can be read"), "{error}");
    fs::write(&path, archive_of(&[("readme.html".into(), vec![0])])).unwrap();
    let error = rejection(&path);
    assert!(error.contains("neither CIFAR-10 nor CIFAR-100") && error.contains("Pass a folder of PNG"), "{error}");
    assert!(refusal(b"PK\x03\x04").contains("50 4b"));
    assert!(refusal(&gzip(b"hello")).contains("truncated") || refusal(&gzip(b"hello")).contains("damaged"));
    assert!(refusal(&gzip(&[7; 2048])).contains("damaged"));
}

#[test]
fn python_versions_and_folders_without_data_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = rejection(dir.path());
    for part in ["no PNG or JPEG images", "CIFAR-10 or CIFAR-100", "the four IDX files of MNIST"] {
        assert!(error.contains(part), "{error}");
    }
    for (names, classes) in [
        (&["data_batch_1", "test_batch"][..], 10),
        (&["cifar-10-batches-py"], 10),
        (&["cifar-10-python.tar.gz"], 10),
        (&["cifar-100-python.tar.gz"], 100),
        (&["train", "test", "meta"], 100),
    ] {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            fs::write(dir.path().join(name), [0x80, 2]).unwrap();
        }
        let expected = format!("the Python version of CIFAR-{classes}, and only");
        for path in [dir.path().to_owned(), dir.path().join(names[0])] {
            if path.is_dir() || names[0].starts_with("cifar") {
                let error = rejection(&path);
                assert!(error.contains(&expected) && error.contains("-binary.tar.gz"), "{names:?}: {error}");
            }
        }
    }
}

#[test]
fn cifar100_is_read_from_folders_and_archives() {
    let record = |i: u8| [&[i % 20, i][..], &[i; cifar100::RECORD - 2]].concat();
    let files = || -> Vec<(String, Vec<u8>)> {
        let bytes = [
            (0..6).flat_map(record).collect(),
            record(99),
            (0..100).map(|i| format!("class{i}\n")).collect::<String>().into(),
        ];
        cifar100::FILES.iter().map(|name| (*name).to_owned()).zip(bytes).collect()
    };
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join(cifar100::FOLDER);
    folder_of(&folder, &files());
    let other = tempfile::tempdir().unwrap();
    let packed = other.path().join(cifar100::ARCHIVE);
    fs::write(&packed, archive_of(&files())).unwrap();
    for path in [dir.path(), &folder, other.path(), &packed] {
        let opened = open(&DataSpec::Path(path.into()), &ImageOptions::default(), &mut |_| ()).unwrap();
        assert!(opened.images.is_none());
        let data = opened.dataset;
        assert_eq!((data.name.as_str(), data.train.len(), data.test.len()), ("CIFAR-100", 6, 1));
        assert_eq!((data.train.label(5), data.test.classes()[99].as_str()), (5, "class99"));
    }
    fs::write(folder.join("train.bin"), &record(1)[..3000]).unwrap();
    assert!(rejection(&folder).contains("train.bin: byte 0: record 0 has 3000 of 3074 bytes"));
}

#[test]
fn idx_files_are_read_under_all_names() {
    let file = |magic: u32, sizes: &[u32], data: &[u8]| {
        let header: Vec<u8> = iter::once(&magic).chain(sizes).flat_map(|n| n.to_be_bytes()).collect();
        [&header[..], data].concat()
    };
    let files = [
        file(0x803, &[2, 28, 28], &[9; 2 * 784]),
        file(0x801, &[2], &[0, 4]),
        file(0x803, &[1, 28, 28], &[8; 784]),
        file(0x801, &[1], &[1]),
    ];
    for dotted in [false, true] {
        for packed in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            for (name, bytes) in idx::FILES.iter().zip(&files) {
                let name = if dotted { name.replacen("-idx", ".idx", 1) } else { (*name).to_owned() };
                let (name, bytes) = if packed { (name + ".gz", gzip(bytes)) } else { (name, bytes.clone()) };
                fs::write(dir.path().join(name), bytes).unwrap();
            }
            let data = open(&DataSpec::Path(dir.path().into()), &ImageOptions::default(), &mut |_| ()).unwrap().dataset;
            assert_eq!((data.train.len(), data.test.len(), data.train.size()), (2, 1, (1, 32, 32)));
            assert_eq!(data.train.classes(), ["0", "1", "2", "3", "4"]);
            // A damaged file is named as it is called on the disk.
            let damaged = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).max().unwrap();
            let bytes = fs::read(&damaged).unwrap();
            fs::write(&damaged, &bytes[..bytes.len() - 1]).unwrap();
            let error = rejection(dir.path());
            let why = if packed { "the gzip file is truncated" } else { "byte 4: the header declares 2 items" };
            let name = damaged.file_name().unwrap().to_str().unwrap();
            assert!(error.contains(&format!("{name}: {why}")), "{error}");
            fs::remove_file(&damaged).unwrap();
            assert!(rejection(dir.path()).contains("train-labels-idx1-ubyte missing"));
        }
    }
}

#[test]
fn hostile_archives_are_rejected() {
    for path in ["../test_batch.bin", "/etc/test_batch.bin", "a/../../test_batch.bin", "..\\test_batch.bin"] {
        let error = refusal(&archive_with(|tar| add(tar, path, EntryType::Regular, b"x")));
        assert!(error.contains("leads out"), "{path}: {error}");
    }
    for kind in [EntryType::Symlink, EntryType::Link] {
        let link = archive_with(|tar| {
            let mut header = header(kind, 0);
            header.set_path("cifar-10-batches-bin/readme").unwrap();
            header.set_link_name("/etc/passwd").unwrap();
            header.set_cksum();
            tar.append(&header, io::empty()).unwrap();
        });
        assert!(refusal(&link).contains("a link"));
    }
    let pipe = archive_with(|tar| add(tar, "more/test_batch.bin", EntryType::Fifo, &[]));
    assert!(refusal(&pipe).contains("not a regular file"));
    let twice = archive_with(|tar| add(tar, "more/test_batch.bin", EntryType::Regular, b"x"));
    assert!(refusal(&twice).contains("more/test_batch.bin: byte ") && refusal(&twice).contains("second file"));
    let rude = archive_with(|tar| add(tar, "\x1b[2J/../x", EntryType::Regular, b"x"));
    assert!(!refusal(&rude).contains('\x1b'));
}

#[test]
fn decompression_bombs_are_rejected() {
    for declared in [(32 << 20) + 1, 1 << 40, u64::MAX / 2, u64::MAX] {
        for name in ["test_batch.bin", "other"] {
            let mut bomb = header(EntryType::Regular, declared);
            bomb.set_path(name).unwrap();
            bomb.set_cksum();
            let error = refusal(&gzip(bomb.as_bytes()));
            let overflow = declared > 1 << 62 && error.contains("size overflow");
            assert!(overflow || error.contains(&format!("declared {declared} bytes")), "{error}");
        }
    }
    // Many members, each within its limit, that unpack to 300 MiB from 300 KiB.
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    for i in 0..10 {
        let mut member = header(EntryType::Regular, 30 << 20);
        member.set_path(format!("filler {i}")).unwrap();
        member.set_cksum();
        gz.write_all(member.as_bytes()).unwrap();
        io::copy(&mut io::repeat(0).take(30 << 20), &mut gz).unwrap();
    }
    let error = refusal(&gz.finish().unwrap());
    assert!(error.contains("unpacks to more than 201326592 bytes"), "{error}");
    // Zeros without end after the archive.
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(&tar_of(&files()).into_inner().unwrap()).unwrap();
    io::copy(&mut io::repeat(0).take(600 << 20), &mut gz).unwrap();
    assert!(refusal(&gz.finish().unwrap()).contains("unpacks to more"));
    // A long name that would fill memory if it were read.
    let name = archive_with(|tar| {
        let mut long = header(EntryType::GNULongName, 65 << 20);
        long.set_path("././@LongLink").unwrap();
        long.set_cksum();
        tar.append(&long, io::repeat(b'a').take(65 << 20)).unwrap();
    });
    assert!(refusal(&name).contains("declared"));
}

#[test]
fn extended_headers_change_nothing() {
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in files() {
        add(&mut tar, "PaxHeaders/x", EntryType::XHeader, b"22 path=../../escaped\n");
        add(&mut tar, &format!("./{FOLDER}/{name}"), EntryType::Regular, &bytes);
    }
    assert_eq!(archive::read("set", &gzip(&tar.into_inner().unwrap())[..]).unwrap().len(), 7);
}

// The cache and the network.

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
