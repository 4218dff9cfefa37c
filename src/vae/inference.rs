//! Inference: a trained model from a file, on a device, which encodes and decodes any number of images.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::runtime::op::Likelihood;
use crate::runtime::plan;
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::names;
use crate::vae::runner::{Device, Labelled, Runner, batch_sizes};
use crate::vae::tensor_file::TensorFile;
use crate::vae::weights::{CLASSES, KL_DIMS, TensorSchema, Weights};

/// A trained model: its configuration and matching weights.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// File that it was read from, for messages.
    pub path: PathBuf,
    /// Configuration.
    pub config: VaeConfig,
    /// Parameters and running statistics.
    pub weights: Weights,
    /// KL divergence of each latent dimension in nats over the validation images, if the file has it.
    pub kl_dims: Option<Vec<f64>>,
    /// Epoch after which they were saved, if the file has it.
    pub epoch: Option<u64>,
    /// Names of the classes of a conditional model, numbers if the file has no names; empty for other models.
    pub classes: Vec<String>,
}

impl Model {
    /// Reads a model from the bytes of `model.safetensors` or of a checkpoint. `path` is used in messages.
    ///
    /// # Errors
    /// As [`TensorFile::from_bytes`] and [`Model::from_file`].
    pub fn from_bytes(bytes: &[u8], path: PathBuf) -> Result<Self> {
        Self::from_file(TensorFile::from_bytes(bytes, &path)?, path)
    }

    /// Takes a model from a parsed file. The tensors may have the names of pi-tau/vae, and without a configuration the sizes of the
    /// model follow from their shapes. `path` is used in messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`], [`Error::File`] or [`Error::InvalidArgument`] if the file has no valid configuration, or if its
    /// tensors are not those of the configured model.
    pub fn from_file(mut file: TensorFile, path: PathBuf) -> Result<Self> {
        names::from_seed(&mut file);
        let config = config_of(&file, &path)?;
        let graph = config.graph(1, Mode::Encode)?;
        let kl_dims: Option<Vec<f64>> = file.metadata.get(KL_DIMS).and_then(|text| serde_json::from_str(text).ok());
        let kl_dims = kl_dims.filter(|kl_dims| kl_dims.len() == config.latent_dim);
        let classes: Option<Vec<String>> = file.metadata.get(CLASSES).and_then(|text| serde_json::from_str(text).ok());
        let classes = classes.filter(|classes| classes.len() == config.classes);
        let classes = classes.unwrap_or_else(|| (0..config.classes).map(|class| class.to_string()).collect());
        let epoch = file.metadata.get("epoch").and_then(|text| text.parse().ok());
        let weights = Weights::from_file(file, &path, TensorSchema::of(&graph))?;
        Ok(Self { path, config, weights, kl_dims, epoch, classes })
    }

    /// Returns the variance of the likelihood, of pixel values from -1 to 1: 1, or the running statistic of the loss.
    ///
    /// # Errors
    /// [`Error::Bug`] if the weights are not those of the configuration.
    pub fn variance(&self) -> Result<f64> {
        if self.config.likelihood == Likelihood::Unit {
            return Ok(1.0);
        }
        self.weights.variance(&self.config.graph(1, Mode::Encode)?)
    }

    /// Loads the model onto a device, to process `batch` images at a time. Compiles the programs for `work`: modes with the number of
    /// images in each call, such as `(Mode::Encode, 100)`. The remainder of a call gets a program of its own size.
    ///
    /// # Errors
    /// As [`Runner::new`]; [`Error::InvalidArgument`] for a batch of 0.
    pub fn on(
        &self,
        device: &Device,
        options: &plan::Options,
        batch: usize,
        work: &[(Mode, usize)],
    ) -> Result<Trained> {
        if batch == 0 {
            return Err(Error::argument("batch size", "at least 1", 0));
        }
        let programs: Vec<_> =
            work.iter().flat_map(|&(mode, count)| batch_sizes(count, batch).map(move |size| (size, mode))).collect();
        let mut runner = Runner::new(self.config, &programs, device, options)?;
        for arena in [Arena::Params, Arena::States] {
            runner.upload(arena, self.weights.arena(arena)?)?;
        }
        Ok(Trained { runner, batch, variance: self.variance()? })
    }
}

/// Returns the configuration in a file: `config` of a model, `settings` of a checkpoint, or what the shapes of its tensors imply.
pub(crate) fn config_of(file: &TensorFile, path: &Path) -> Result<VaeConfig> {
    #[derive(Deserialize)]
    struct Settings {
        model: VaeConfig,
    }
    let parsed = match (file.metadata.get("config"), file.metadata.get("settings")) {
        (Some(config), _) => serde_json::from_str(config),
        (None, Some(settings)) => serde_json::from_str(settings).map(|s: Settings| s.model),
        (None, None) => {
            return names::config_of_shapes(file).ok_or_else(|| Error::Checkpoint {
                path: path.to_owned(),
                what: "tensors".into(),
                expected: "those of a model, with the names of vae-wgpu or pi-tau/vae".into(),
                found: "others".into(),
                hint: "see docs/pytorch.md for the names".into(),
            });
        }
    };
    let config: VaeConfig = parsed.map_err(|e| Error::malformed("parse the configuration of the model in", path, e))?;
    config.check()?;
    Ok(config)
}

/// A trained model on a device.
#[derive(Debug)]
pub struct Trained {
    runner: Runner,
    batch: usize,
    variance: f64,
}

impl Trained {
    /// Returns the configuration of the model.
    #[must_use]
    pub fn config(&self) -> &VaeConfig {
        self.runner.config()
    }

    /// Returns the number of images that are processed at a time.
    #[must_use]
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Returns the variance of the likelihood, of pixel values from -1 to 1.
    #[must_use]
    pub fn variance(&self) -> f64 {
        self.variance
    }

    /// Returns device, driver and backend as text.
    #[must_use]
    pub fn describe(&self) -> String {
        self.runner.describe()
    }

    /// Encodes any number of images, `[n, c, h, w]` bytes, with the class of each for a conditional model, to `[n, 2 * latent]`: mu, then log_std.
    ///
    /// # Errors
    /// [`Error::NonFiniteOutput`] if the output is not finite, [`Error::InvalidArgument`] for an incomplete image, and errors of the
    /// device.
    pub fn encode<'a>(&mut self, images: impl Into<Labelled<'a, u8>>) -> Result<Vec<f32>> {
        let image = self.config().images(1).len();
        self.batches("the image bytes", images.into(), image, |runner, part| runner.encode(part))
    }

    /// Decodes any number of latent vectors, `[n, latent]`, with the class of each for a conditional model, to mean images, `[n, c, h, w]` with values from about -1 to 1.
    ///
    /// # Errors
    /// As [`Trained::encode`].
    pub fn decode<'a>(&mut self, z: impl Into<Labelled<'a, f32>>) -> Result<Vec<f32>> {
        let latent = self.config().latent_dim;
        self.batches("the latent vectors", z.into(), latent, |runner, part| runner.decode(part))
    }

    fn batches<T>(
        &mut self,
        what: &str,
        all: Labelled<'_, T>,
        each: usize,
        run: impl Fn(&mut Runner, Labelled<'_, T>) -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let Labelled { values, labels } = all;
        if !values.len().is_multiple_of(each) {
            return Err(Error::argument(format!("length of {what}"), format!("a multiple of {each}"), values.len()));
        }
        let mut results = Vec::new();
        for (i, values) in values.chunks(self.batch.saturating_mul(each)).enumerate() {
            let first = i.saturating_mul(self.batch).min(labels.len());
            let labels = &labels[first..labels.len().min(first.saturating_add(self.batch))];
            let result = run(&mut self.runner, Labelled { values, labels })?;
            if !result.iter().all(|v| v.is_finite()) {
                return Err(Error::NonFiniteOutput { what: "the model output".to_owned() });
            }
            results.extend(result);
        }
        Ok(results)
    }
}

/// Returns the posterior means, `[n, latent]`, from `h`, `[n, 2 * latent]`: the latent vectors of images without noise.
#[must_use]
pub fn posterior_means(h: &[f32], latent: usize) -> Vec<f32> {
    h.chunks_exact(2 * latent.max(1)).flat_map(|row| &row[..latent]).copied().collect()
}

/// Returns a sample of each posterior, `[n, latent]`, from `h`, `[n, 2 * latent]`, and standard normal noise, `[n, latent]`.
#[must_use]
pub fn draws(h: &[f32], noise: &[f32], latent: usize) -> Vec<f32> {
    let latent = latent.max(1);
    h.chunks_exact(2 * latent).zip(noise.chunks_exact(latent)).flat_map(|(h, eps)| draw(h, eps)).collect()
}

/// Returns z = mu + exp(log_std) * eps, in single precision as in training.
pub(crate) fn draw(h: &[f32], eps: &[f32]) -> Vec<f32> {
    let (mu, log_std) = h.split_at(eps.len());
    mu.iter().zip(log_std).zip(eps).map(|((m, s), e)| m + s.exp() * e).collect()
}

/// Checks that images have the size of the model.
///
/// # Errors
/// [`Error::InvalidArgument`] with both sizes.
pub fn check_size(config: &VaeConfig, images: &dyn Images) -> Result<()> {
    let (c, h, w) = images.size();
    let (channels, side) = (config.image_channels, config.image_size);
    if (c, h, w) == (channels, side, side) {
        return Ok(());
    }
    let expected = format!("{channels}x{side}x{side}");
    Err(Error::argument("size of the images", expected, format!("{c}x{h}x{w}")))
}

/// Calls `each` with the bytes and classes of `size` images at a time, in order. The last call may get fewer.
///
/// # Errors
/// Errors of `images` and of `each`.
pub fn in_blocks(images: &dyn Images, size: usize, mut each: impl FnMut(Labelled<'_, u8>) -> Result<()>) -> Result<()> {
    let mut pixels = Vec::new();
    for first in (0..images.len()).step_by(size.max(1)) {
        let indices: Vec<u32> = (first as u32..images.len().min(first + size) as u32).collect();
        data::batch(images, &indices, &mut pixels)?;
        let labels = data::labels(images, &indices);
        each(Labelled { values: &pixels, labels: &labels })?;
    }
    Ok(())
}

/// Scales a pixel byte to the range of the model, -1 to 1.
pub(crate) fn scaled(byte: u8) -> f64 {
    f64::from(f32::from(byte) / 127.5 - 1.0)
}
