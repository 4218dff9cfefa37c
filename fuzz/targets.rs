//! Fuzz targets: every parser of external bytes must return, and whatever it accepts must be valid. The fuzzer calls these functions with
//! generated input, `tests/repo/corpus.rs` with the corpus.

use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use vae_wgpu::Error;
use vae_wgpu::app::bench::tune;
use vae_wgpu::app::data::archive;
use vae_wgpu::app::io::csv;
use vae_wgpu::app::io::run_config::RunConfig;
use vae_wgpu::app::viz::caption::Caption;
use vae_wgpu::app::viz::image_grid::ImageBatch;
use vae_wgpu::app::viz::plots;
use vae_wgpu::vae::checkpoint::{Checkpoint, RunProgress};
use vae_wgpu::vae::data::{Dataset, cifar10 as cifar, cifar100 as fine, idx as mnist};
use vae_wgpu::vae::inference::Model;
use vae_wgpu::vae::model::Mode;
use vae_wgpu::vae::tensor_file::TensorFile;
use vae_wgpu::vae::train::Settings;
use vae_wgpu::vae::train::rows::{EpochRow, StepRow};
use vae_wgpu::vae::weights::TensorSchema;

/// A target and its name, which is also that of its corpus.
pub(crate) type Target = (&'static str, fn(&[u8]));

/// All of them.
pub(crate) const TARGETS: [Target; 9] = [
    ("archive", archive),
    ("checkpoint", checkpoint),
    ("cifar", cifar),
    ("cifar100", cifar100),
    ("config", config),
    ("idx", idx),
    ("picture", picture),
    ("table", table),
    ("weights", weights),
];

/// The path in error messages.
fn path() -> &'static Path {
    Path::new("outside")
}

/// Asserts that an error is one readable line, and not a bug of the crate.
fn clear(error: &Error) {
    assert!(!matches!(error, Error::Bug(_)), "{error:?}");
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        let said = error.to_string();
        assert!(!said.is_empty() && said.len() < 16 << 10 && !said.chars().any(char::is_control), "{said:?}");
        cause = error.source();
    }
}

fn sound(dataset: &Dataset) {
    for images in [&dataset.train, &dataset.test] {
        let (channels, height, width) = images.size();
        let mut picture = vec![0; channels * height * width];
        images.read_into(images.len() - 1, &mut picture).unwrap();
        assert!((0..images.len()).all(|i| usize::from(images.label(i)) < images.classes().len()));
    }
}

/// An archive. Input without the gzip magic is compressed first, so that the fuzzer reaches the tar format.
pub(crate) fn archive(bytes: &[u8]) {
    let mut packed = GzEncoder::new(Vec::new(), Compression::none());
    let packed = match bytes.starts_with(&[0x1f, 0x8b]) {
        true => bytes.to_vec(),
        false => packed.write_all(bytes).and_then(|()| packed.finish()).unwrap_or_default(),
    };
    match archive::read("outside", packed.as_slice()).and_then(|contents| archive::parse("outside", contents)) {
        Ok(dataset) => sound(&dataset),
        Err(error) => clear(&error),
    }
}

/// One file of a data set, chosen by the first byte; the other files are valid.
pub(crate) fn cifar(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let mut contents: cifar::Contents = cifar::FILES[..6].iter().map(|name| (*name, vec![1; cifar::RECORD])).collect();
    contents.insert(cifar::FILES[usize::from(*which) % cifar::FILES.len()], bytes.to_vec());
    match cifar::parse("outside", contents) {
        Ok(dataset) => sound(&dataset),
        Err(error) => clear(&error),
    }
}

/// The same for CIFAR-100.
pub(crate) fn cifar100(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let mut contents: cifar::Contents = fine::FILES[..2].iter().map(|name| (*name, vec![1; fine::RECORD])).collect();
    contents.insert(fine::FILES[usize::from(*which) % fine::FILES.len()], bytes.to_vec());
    match fine::parse("outside", contents) {
        Ok(dataset) => sound(&dataset),
        Err(error) => clear(&error),
    }
}

/// The same for files in MNIST's format; the valid ones have one image or label.
pub(crate) fn idx(bytes: &[u8]) {
    let Some((which, bytes)) = bytes.split_first() else { return };
    let file = |numbers: &[u32]| [&numbers.iter().flat_map(|n| n.to_be_bytes()).collect::<Vec<_>>()[..], &[7]].concat();
    let valid = [file(&[0x803, 1, 1, 1]), file(&[0x801, 1])];
    let named = |(i, name): (usize, &'static str)| (name, (name.to_owned(), valid[i % 2].clone()));
    let mut contents: mnist::Contents = mnist::FILES.into_iter().enumerate().map(named).collect();
    let name = mnist::FILES[usize::from(*which) % mnist::FILES.len()];
    contents.insert(name, (name.to_owned(), bytes.to_vec()));
    match mnist::parse("outside", contents) {
        Ok(dataset) => sound(&dataset),
        Err(error) => clear(&error),
    }
}

/// Tensors in a file. Accepted tensors are finite and survive a round trip.
fn tensors(bytes: &[u8]) -> Option<TensorFile> {
    let file = TensorFile::from_bytes(bytes, path()).map_err(|error| clear(&error)).ok()?;
    for (name, array) in &file.tensors {
        assert_eq!(array.dims.iter().product::<usize>(), array.data.len(), "{name}");
        assert!(array.data.iter().all(|v| v.is_finite()), "{name}");
    }
    let again = file.to_bytes(path()).expect("what was read can be written");
    assert_eq!(TensorFile::from_bytes(&again, path()).expect("what was written can be read"), file);
    Some(file)
}

/// `model.safetensors`.
pub(crate) fn weights(bytes: &[u8]) {
    let Some(file) = tensors(bytes) else { return };
    match Model::from_file(file, path().to_owned()) {
        Ok(model) => model.config.check().expect("the sizes were checked"),
        Err(error) => clear(&error),
    }
}

/// `checkpoint.safetensors`, as `--resume` reads it.
pub(crate) fn checkpoint(bytes: &[u8]) {
    let Some(file) = tensors(bytes) else { return };
    let read = || {
        let progress = RunProgress::of(&file, path())?;
        let settings: Settings = serde_json::from_str(&progress.settings)
            .map_err(|why| Error::malformed("parse the settings in", path(), why))?;
        settings.check()?;
        let graph = settings.model.graph(1, Mode::Encode)?;
        Checkpoint::from_file(file.clone(), path(), TensorSchema::of(&graph))
    };
    match read() {
        Ok(checkpoint) => assert_eq!(checkpoint.moment1.len(), checkpoint.moment2.len()),
        Err(error) => clear(&error),
    }
}

/// `config.json` of a run folder, and tables of variants.
pub(crate) fn config(bytes: &[u8]) {
    match RunConfig::<Settings>::from_json(bytes, path()) {
        Ok(config) => {
            let again = serde_json::to_vec(&config).expect("what was read can be written");
            let again = RunConfig::<Settings>::from_json(&again, path()).expect("what was written can be read");
            assert_eq!(again.settings, config.settings);
            let _ = config.settings.check().map_err(|error| clear(&error));
        }
        Err(error) => clear(&error),
    }
    let _ = tune::VariantTable::from_json(bytes).map_err(|error| assert!(!error.to_string().is_empty()));
}

/// `metrics.csv` and `epochs.csv`. Plotting is slow, so only some are plotted.
pub(crate) fn table(bytes: &[u8]) {
    let steps = csv::parse::<StepRow>(bytes, path(), |_| true).map_err(|error| clear(&error));
    let epochs = csv::parse::<EpochRow>(bytes, path(), |row| row.epoch < 7).map_err(|error| clear(&error));
    if !bytes.len().is_multiple_of(8) {
        return;
    }
    if let Ok((steps, _)) = &steps {
        plots::grad_norm(&Caption::new("norm"), steps).expect("a plot of any rows");
        plots::learning_rate(&Caption::new("rate"), steps).expect("a plot of any rows");
    }
    if let Ok((epochs, _)) = epochs {
        // A step for each epoch.
        let step = |row: &EpochRow| StepRow { step: row.epoch, epoch: row.epoch, ..StepRow::default() };
        let steps: Vec<_> = epochs.iter().map(step).collect();
        plots::training_loss(&Caption::new("loss"), &steps, &epochs).expect("a plot of any rows");
    }
}

/// An image from the user, and a strip of images that a run wrote.
pub(crate) fn picture(bytes: &[u8]) {
    match ImageBatch::from_strip(bytes, path()) {
        Ok(strip) => assert!((1..=256).contains(&strip.len())),
        Err(error) => clear(&error),
    }
    match ImageBatch::from_file(bytes, path(), 32) {
        Ok(picture) => assert_eq!(picture.to_bytes().len(), 3 * 32 * 32),
        Err(error) => clear(&error),
    }
}
