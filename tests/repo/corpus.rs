//! Runs the fuzzing corpus through the targets of `fuzz/targets.rs`, and bounds the memory that a hostile file may cost.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use flate2::Compression;
use flate2::write::GzEncoder;
use vae_wgpu::vae::data::cifar10;

#[path = "../../fuzz/targets.rs"]
mod targets;

use self::targets::{TARGETS, Target};

fn corpus(target: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let files = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut files: Vec<_> = files.map(|pass| pass.unwrap().path()).collect();
    files.sort();
    files
}

#[test]
fn corpus_inputs_do_not_panic() {
    for (name, target) in TARGETS {
        let files = corpus(name);
        assert!(files.len() >= 5, "{name}: {} files", files.len());
        for file in files {
            println!("{}", file.display());
            let bytes = fs::read(&file).unwrap();
            assert!(bytes.len() <= 64 << 10, "{} is not small", file.display());
            target(&bytes);
        }
    }
}

#[test]
fn every_parser_has_a_fuzz_target() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let manifest = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let listed = fs::read_dir(root.join("fuzz_targets")).unwrap().count();
    assert_eq!((listed, manifest.matches("[[bin]]").count()), (TARGETS.len(), TARGETS.len()));
    for (name, _) in TARGETS {
        let source = fs::read_to_string(root.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("targets::{name}(bytes)")), "{name}");
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
    }
}

/// The files of CIFAR-10 at their largest, with valid records.
fn full_archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    let file = vec![0; cifar10::MAX_FILE / cifar10::RECORD * cifar10::RECORD];
    for name in &cifar10::FILES[..6] {
        let mut header = tar::Header::new_ustar();
        header.set_size(file.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, file.as_slice()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// The start of a progressive JPEG, whose decoder allocates all coefficients.
fn progressive_jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut jpeg = vec![0xff, 0xd8, 0xff, 0xdb, 0, 67, 0];
    jpeg.extend([1; 64]);
    jpeg.extend([0xff, 0xc2, 0, 17, 8]);
    jpeg.extend(height.to_be_bytes());
    jpeg.extend(width.to_be_bytes());
    jpeg.extend([3, 1, 0x11, 0, 2, 0x11, 0, 3, 0x11, 0]);
    // A table with one code, and a scan of the mean brightness and colours.
    jpeg.extend([0xff, 0xc4, 0, 20, 0, 1]);
    jpeg.extend([0; 15]);
    jpeg.push(0);
    jpeg.extend([0xff, 0xda, 0, 12, 3, 1, 0, 2, 0, 3, 0, 0, 0, 0]);
    jpeg.extend([0; 700_000]);
    jpeg.extend([0xff, 0xd9]);
    jpeg
}

/// Small files that claim to be large, or that unpack to large ones.
fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let gzip = |bytes: &[u8]| {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    };
    let header = |json: &str| [&(json.len() as u64).to_le_bytes(), json.as_bytes()].concat();
    let length = |length: u64| [&length.to_le_bytes()[..], b"{}"].concat();
    let tensor = |shape: &str, end: u64| {
        header(&format!("{{\"a\":{{\"dtype\":\"F32\",\"shape\":{shape},\"data_offsets\":[0,{end}]}}}}"))
    };
    let tar = |size: &str| {
        let mut member = [0u8; 512];
        member[..16].copy_from_slice(b"data_batch_1.bin");
        member[124..124 + size.len()].copy_from_slice(size.as_bytes());
        member[156] = b'0';
        member[148..156].fill(b' ');
        let sum: u32 = member.iter().map(|&b| u32::from(b)).sum();
        member[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        gzip(&[&member[..], &[0; 4096]].concat())
    };
    let png = |width: u32, height: u32, pixels: &[u8]| {
        let crc = |bytes: &[u8]| {
            !bytes.iter().fold(u32::MAX, |crc, &byte| {
                (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
            })
        };
        let chunk = |kind: &[u8], data: &[u8]| {
            let named = [kind, data].concat();
            [&(data.len() as u32).to_be_bytes(), &named[..], &crc(&named).to_be_bytes()].concat()
        };
        let mut packed = flate2::write::ZlibEncoder::new(Vec::new(), Compression::best());
        packed.write_all(pixels).unwrap();
        let about = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
        let parts = [chunk(b"IHDR", &about), chunk(b"IDAT", &packed.finish().unwrap()), chunk(b"IEND", b"")];
        [b"\x89PNG\r\n\x1a\n".to_vec(), parts.concat()].concat()
    };
    vec![
        ("archive", gzip(&vec![0; 96 << 20])),
        ("archive", full_archive()),
        ("archive", tar("77777777777")),
        ("archive", tar("00400000000")),
        ("weights", length(u64::MAX)),
        ("weights", length(99_000_000)),
        ("weights", tensor("[1099511627776]", 4 << 40)),
        ("weights", tensor("[4294967296,4294967296]", 0)),
        ("weights", tensor("[0,18446744073709551615]", 0)),
        ("checkpoint", tensor("[268435456]", 1 << 30)),
        ("picture", png(60_000, 60_000, &[])),
        ("picture", png(13_000, 13_000, &[0; 64])),
        ("picture", png(8_190, 8_190, &vec![0; 8_190 * (1 + 3 * 8_190)])),
        ("picture", progressive_jpeg(8_000, 8_000)),
        ("picture", png(1, 4_000_000, &vec![0; 16_000_000])),
        ("picture", png(4_000_000, 1, &vec![0; 12_000_001])),
        ("config", [&b"{\"format\":1,\"kernels\":"[..], &[b'['; 4 << 20]].concat()),
    ]
}

/// The child process, which has little memory; not a test by itself.
#[test]
fn bombs_and_corpus() {
    let Ok(what) = std::env::var(CHILD) else { return };
    if what == "too much" {
        let bytes = (KIB << 10) as usize;
        println!("{}", std::hint::black_box(vec![1u8; bytes]).len());
        return;
    }
    let of = |name: &str| -> Target { TARGETS.into_iter().find(|(target, _)| *target == name).unwrap() };
    for (target, bytes) in bombs() {
        of(target).1(&bytes);
    }
    for (name, target) in TARGETS {
        corpus(name).iter().for_each(|file| target(&fs::read(file).unwrap()));
    }
    println!("\ncorpus done");
}

const CHILD: &str = "VAE_WGPU_TEST_BOMBS";
/// Address space of the child in KiB, including its code and stacks.
const KIB: u64 = 768 << 10;

/// The child is this program under `ulimit -v`: an allocation beyond the limit ends it.
#[cfg(target_os = "linux")]
#[test]
fn memory_is_bounded_by_the_input_size() {
    let child = |what: &str| {
        let mut child = Command::new("sh");
        let program = std::env::current_exe().unwrap();
        child.args(["-c", &format!("ulimit -v {KIB} && exec \"$0\" \"$@\"")]).arg(program);
        child.args(["--exact", "corpus::bombs_and_corpus", "--nocapture", "--test-threads", "1"]).env(CHILD, what);
        child.output().expect("a shell")
    };
    let output = child("bombs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success() && said.contains("corpus done"),
        "{said}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!child("too much").status.success(), "the limit is not felt");
}
