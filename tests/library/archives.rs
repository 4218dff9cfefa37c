//! Damaged and hostile archives.

use std::io::{self, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, EntryType};
use vae_wgpu::app::data::archive;
use vae_wgpu::vae::data::cifar10::FOLDER;

use crate::data_files::{add, archive_of, files, gzip, header, refusal, tar_of};

/// A valid archive with something added.
fn archive_with(extra: impl FnOnce(&mut Builder<Vec<u8>>)) -> Vec<u8> {
    let mut tar = tar_of(&files());
    extra(&mut tar);
    gzip(&tar.into_inner().unwrap())
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
