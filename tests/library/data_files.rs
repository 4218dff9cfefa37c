//! A small CIFAR-10 as files and archives.

use std::io::Write;
use std::path::Path;
use std::{error, fs, iter};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType, Header};
use vae_wgpu::Error;
use vae_wgpu::app::data::archive;
use vae_wgpu::vae::data::cifar10::{FILES, FOLDER, RECORD};

/// Records of noise: incompressible, as photographs nearly are.
pub(crate) fn records(seed: u64, count: usize) -> Vec<u8> {
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

pub(crate) fn files() -> Vec<(String, Vec<u8>)> {
    let bytes = |i: usize| if i < 6 { records(i as u64, 4) } else { b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n".to_vec() };
    FILES.iter().enumerate().map(|(i, name)| ((*name).to_owned(), bytes(i))).collect()
}

pub(crate) fn header(kind: EntryType, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(size);
    header
}

/// Appends a member under any name, including one that `tar` rejects.
pub(crate) fn add(tar: &mut Builder<Vec<u8>>, name: &str, kind: EntryType, bytes: &[u8]) {
    let mut header = header(kind, bytes.len() as u64);
    header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
    header.set_cksum();
    tar.append(&header, bytes).unwrap();
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(bytes).unwrap();
    gz.finish().unwrap()
}

pub(crate) fn tar_of(files: &[(String, Vec<u8>)]) -> Builder<Vec<u8>> {
    let mut tar = Builder::new(Vec::new());
    add(&mut tar, &format!("{FOLDER}/"), EntryType::Directory, &[]);
    for (name, bytes) in files {
        add(&mut tar, &format!("{FOLDER}/{name}"), EntryType::Regular, bytes);
    }
    tar
}

pub(crate) fn archive_of(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    gzip(&tar_of(files).into_inner().unwrap())
}

pub(crate) fn folder_of(dir: &Path, files: &[(String, Vec<u8>)]) {
    fs::create_dir_all(dir).unwrap();
    for (name, bytes) in files {
        fs::write(dir.join(name), bytes).unwrap();
    }
}

pub(crate) fn chain(error: &(dyn error::Error + 'static)) -> String {
    let hint = error.downcast_ref::<Error>().and_then(Error::trailing_hint).unwrap_or_default();
    iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ") + &hint
}

pub(crate) fn refusal(archive: &[u8]) -> String {
    chain(&archive::read("set.tar.gz", archive).unwrap_err())
}
