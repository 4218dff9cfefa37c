//! Writes the first files of every corpus, valid and invalid ones: `cargo run --release --example seeds`.

use std::error::Error;
use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use image::{ImageFormat, RgbImage};
use tar::{Builder, EntryType, Header};
use vae_wgpu::vae::tensor_file::{Array, TensorFile};
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::vae::checkpoint::{Checkpoint, RunProgress};
use vae_wgpu::vae::weights::{TensorSchema, Weights};
use vae_wgpu::vae::data::cifar10::{FILES, RECORD};
use vae_wgpu::runtime::graph::Arena;
use vae_wgpu::vae::model::{Mode, VaeConfig};
use vae_wgpu::app::io::run_config::RunConfig;
use vae_wgpu::vae::train::Settings;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    archives()?;
    records()?;
    let (weights, checkpoint) = tensors()?;
    for (target, good, settings) in [("weights", weights, "channels"), ("checkpoint", checkpoint, "step")] {
        save(target, "good", &good)?;
        save(target, "cut", &good[..good.len() / 2])?;
        for (name, from, to) in [
            ("dtype", "F32", "F64"),
            ("offsets", "[0,", "[9,"),
            ("shape", "\"shape\":[", "\"shape\":[0,"),
            ("huge", "\"shape\":[", "\"shape\":[4294967296,4294967296,"),
            ("settings", settings, "chunnels"),
        ] {
            save(target, name, &with_header(&good, |header| header.replacen(from, to, 1))?)?;
        }
        save(target, "length", &[&u64::MAX.to_le_bytes()[..], &good[8..]].concat())?;
        let mut nan = good.clone();
        let end = nan.len();
        nan[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        save(target, "nan", &nan)?;
    }
    save("weights", "plain", &plain()?)?;
    configs()?;
    pictures()?;
    tables()
}

fn save(target: &str, name: &str, bytes: &[u8]) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target);
    fs::create_dir_all(&folder)?;
    Ok(fs::write(folder.join(name), bytes)?)
}

fn record(label: u8) -> Vec<u8> {
    let mut record = vec![label * 20; RECORD];
    record[0] = label;
    record
}

fn archives() -> Result<()> {
    let header = |kind: EntryType, size: usize| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(size as u64);
        header.set_mode(0o644);
        header
    };
    let tar = |extra: &dyn Fn(&mut Builder<Vec<u8>>) -> Result<()>| -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for name in &FILES[..6] {
            tar.append_data(&mut header(EntryType::Regular, RECORD), format!("c/{name}"), record(3).as_slice())?;
        }
        extra(&mut tar)?;
        Ok(tar.into_inner()?)
    };
    let good = tar(&|_| Ok(()))?;
    let mut gz = GzEncoder::new(Vec::new(), Compression::best());
    gz.write_all(&good)?;
    let gz = gz.finish()?;
    save("archive", "good", &gz)?;
    save("archive", "cut", &gz[..gz.len() / 2])?;
    let mut flipped = gz.clone();
    let middle = gz.len() / 2;
    flipped[middle] ^= 4;
    save("archive", "flipped", &flipped)?;
    save("archive", "good.tar", &good)?;
    save(
        "archive",
        "twice.tar",
        &tar(&|tar| Ok(tar.append_data(&mut header(EntryType::Regular, RECORD), FILES[0], record(1).as_slice())?))?,
    )?;
    for (name, kind) in [
        ("link", EntryType::Symlink),
        ("hard", EntryType::Link),
        ("fifo", EntryType::Fifo),
        ("long", EntryType::GNULongName),
    ] {
        save(
            "archive",
            &format!("{name}.tar"),
            &tar(&|tar| {
                let mut header = header(kind, 0);
                header.set_link_name("/etc/passwd")?;
                header.set_path(FILES[6])?;
                header.set_cksum();
                Ok(tar.append(&header, &[][..])?)
            })?,
        )?;
    }
    let mut escape = good.clone();
    escape[..20].copy_from_slice(b"../data_batch_1.bin\0");
    save("archive", "escape.tar", &escape)
}

fn records() -> Result<()> {
    let file = |which: u8, bytes: &[u8]| [&[which], bytes].concat();
    save("cifar", "good", &file(0, &[record(0), record(9)].concat()))?;
    save("cifar", "cut", &file(1, &record(0)[..3000]))?;
    save("cifar", "empty", &file(2, &[]))?;
    save("cifar", "label", &file(5, &record(10)))?;
    save("cifar", "names", &file(6, b"a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n"))?;
    save("cifar", "names_few", &file(6, b"a\nb\n"))?;
    save("cifar", "names_odd", &file(6, b"a\nb\nc\nd\ne\nf\ng\nh\ni\n\xff\n"))?;
    let fine = |coarse: u8, class: u8| [&[coarse, class][..], &[class; RECORD - 1]].concat();
    save("cifar100", "good", &file(0, &[fine(0, 0), fine(19, 99)].concat()))?;
    save("cifar100", "cut", &file(1, &fine(0, 0)[..3000]))?;
    save("cifar100", "empty", &file(0, &[]))?;
    save("cifar100", "coarse", &file(1, &fine(20, 0)))?;
    save("cifar100", "fine", &file(1, &fine(0, 100)))?;
    save("cifar100", "names_few", &file(2, b"a\nb\n"))?;
    let idx = |which: u8, numbers: &[u32], data: &[u8]| {
        let header: Vec<u8> = numbers.iter().flat_map(|n| n.to_be_bytes()).collect();
        file(which, &[&header[..], data].concat())
    };
    save("idx", "good", &idx(0, &[0x803, 1, 2, 3], &[9; 6]))?;
    save("idx", "labels", &idx(1, &[0x801, 1], &[255]))?;
    save("idx", "cut", &idx(0, &[0x803, 1, 28, 28], &[9; 700]))?;
    save("idx", "header", &idx(2, &[0x803, 1], &[]))?;
    save("idx", "magic", &idx(3, &[0x803, 1], &[0]))?;
    save("idx", "count", &idx(0, &[0x803, u32::MAX, 32, 32], &[0; 64]))?;
    save("idx", "size", &idx(0, &[0x803, 1, u32::MAX, u32::MAX], &[0; 64]))?;
    save("idx", "zero", &idx(0, &[0x803, 1, 0, 0], &[]))
}

/// A small model and its checkpoint, as files.
fn tensors() -> Result<(Vec<u8>, Vec<u8>)> {
    let model = VaeConfig { channels: 2, blocks: 1, groups: 1, latent_dim: 1, image_size: 2, ..VaeConfig::default() };
    let graph = model.graph(1, Mode::Encode)?;
    let inventory = TensorSchema::of(&graph);
    let initial = |arena| vae_wgpu::runtime::graph::initial(&graph, arena, 1);
    let weights = Weights { params: initial(Arena::Params)?, states: initial(Arena::States)? };
    let file = std::env::temp_dir().join("vae-wgpu-seed");
    tensor_file::save(&weights.clone().into_file(inventory, &serde_json::to_string(&model)?)?, &file)?;
    let bytes = fs::read(&file)?;
    let settings = serde_json::to_string(&Settings { model, ..Settings::default() })?;
    let progress = RunProgress { step: 3, epoch: 1, seed: 0, settings, best: Some(0.5), data: None };
    let (moment1, moment2) = (weights.params.clone(), weights.params.clone());
    tensor_file::save(&Checkpoint { progress, weights, moment1, moment2 }.into_file(inventory)?, &file)?;
    let checkpoint = fs::read(&file)?;
    fs::remove_file(&file)?;
    Ok((bytes, checkpoint))
}

fn plain() -> Result<Vec<u8>> {
    let array = |dims: &[usize]| Array { dims: dims.to_vec(), data: vec![0.5; dims.iter().product()] };
    let tensors = [("a", array(&[2, 3])), ("b", array(&[])), ("c", array(&[0, 7]))].map(|(k, v)| (k.to_owned(), v));
    Ok(TensorFile { metadata: [("k".to_owned(), "v".to_owned())].into(), tensors: tensors.into() }
        .to_bytes(&PathBuf::new())?)
}

fn with_header(file: &[u8], change: impl Fn(&str) -> String) -> Result<Vec<u8>> {
    let length = u64::from_le_bytes(file[..8].try_into()?) as usize;
    let header = change(std::str::from_utf8(&file[8..8 + length])?);
    Ok([&(header.len() as u64).to_le_bytes(), header.as_bytes(), &file[8 + length..]].concat())
}

fn configs() -> Result<()> {
    let kernels = [("conv2d.forward".to_owned(), "lanes".to_owned())].into();
    let good = serde_json::to_string(&RunConfig::new("llvmpipe".into(), kernels, Settings::default()))?;
    save("config", "good", good.as_bytes())?;
    save("config", "cut", &good.as_bytes()[..good.len() / 2])?;
    for (name, from, to) in [
        ("format", "\"format\":1", "\"format\":2"),
        ("unknown", "\"device\"", "\"devise\""),
        ("negative", "\"batch_size\":128", "\"batch_size\":-1"),
        ("large", "\"epochs\":25", "\"epochs\":1e400"),
    ] {
        save("config", name, good.replace(from, to).as_bytes())?;
    }
    save("config", "deep", "[".repeat(2000).as_bytes())?;
    save("config", "table", br#"{"format":1,"version":"0","adapter":"a","driver":"","entries":[{"key":"linear.forward [1, 1, 1, 1]","variant":"naive","ms":1.0}]}"#)
}

fn pictures() -> Result<()> {
    let picture = RgbImage::from_fn(9, 7, |x, y| image::Rgb([x as u8 * 9, y as u8 * 5, 200]));
    for (name, format) in [("png", ImageFormat::Png), ("jpeg", ImageFormat::Jpeg)] {
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, format)?;
        let bytes = bytes.into_inner();
        save("picture", name, &bytes)?;
        save("picture", &format!("{name}_cut"), &bytes[..bytes.len() / 2])?;
        let mut large = bytes;
        let at = if format == ImageFormat::Png {
            Some(16)
        } else {
            large.windows(2).position(|w| w == [0xff, 0xc0]).map(|p| p + 5)
        };
        large[at.ok_or("no size")?..][..2].fill(0x7f);
        save("picture", &format!("{name}_large"), &large)?;
    }
    save("picture", "text", b"hello")
}

fn tables() -> Result<()> {
    let steps = "step,epoch,total,recon,kl,grad_norm,lr,images_per_s\n0,1,1.5,1.0,0.5,2.0,0.01,100.0\n1,1,inf,NaN,0.5,2.0,0.01,1e9\n";
    let epochs = "epoch,train_total,train_recon,train_kl,val_total,val_recon,val_kl,val_mse,active_units,seconds\n1,1.0,0.9,0.1,1.0,0.9,0.1,0.2,3,1.5\n";
    save("table", "steps", steps.as_bytes())?;
    save("table", "epochs", epochs.as_bytes())?;
    save("table", "cut", &steps.as_bytes()[..steps.len() - 9])?;
    save("table", "headless", b"0,1,1.5\n")?;
    save("table", "empty", b"")?;
    save("table", "odd", steps.replace("1.5", "one").as_bytes())
}
