//! Checkpoints, weights and images of a run, and what happens when they cannot be written.

use std::collections::BTreeMap;

use web_time::Instant;

use super::group::of_ranks;
use super::shared_step::Share;
use super::{Trainer, keep_first, noise};
use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::vae::checkpoint::{Checkpoint, RunProgress};
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::runner::Runner;
use crate::vae::tensor_file::TensorFile;
use crate::vae::train::rows::EpochRow;
use crate::vae::train::store::{About, DecodedImages, RunState};
use crate::vae::weights::{CLASSES, KL_DIMS, TensorSchema, Weights};

/// Number of samples drawn after each epoch; of a conditional model, of each class.
const SAMPLES: usize = 49;
const SAMPLES_OF_CLASS: usize = 8;
/// Smallest number of images to reconstruct after each epoch, if there are as many.
const LEAST_SHOWN: usize = 8;
/// Largest number of images to reconstruct after each epoch; samples are drawn of as many classes at most.
pub(crate) const MOST_SHOWN: usize = 16;
/// Index of their noise, beyond that of any step.
const SAMPLE_NOISE: u64 = 1 << 63;

impl Trainer<'_> {
    /// Turns the first failed write into a warning and ignores later ones: training continues, since the next write may succeed.
    pub(super) fn warn_on_io_error(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error @ Error::File { .. }) => self.warn_once(&error, "; training continues"),
            other => other,
        }
    }

    fn warn_once(&mut self, error: &Error, consequence: &str) -> Result<()> {
        if std::mem::replace(&mut self.warned, true) {
            return Ok(());
        }
        let cause = std::error::Error::source(error).map(|s| format!(": {s}")).unwrap_or_default();
        self.warn(&format!("{error}{cause}{consequence}"))
    }

    /// Writes the report. The run is complete without it, so a failure is a warning.
    pub(super) fn report(&mut self, state: RunState<'_>) -> Result<()> {
        match self.store.save_report(&self.steps, &self.epoch_rows, state) {
            Err(error) => self.warn_once(&error, ""),
            Ok(()) => Ok(()),
        }
    }

    /// Recreates a run folder that has vanished.
    pub(super) fn restore(&mut self) -> Result<()> {
        if !self.store.restore(&self.steps, &self.epoch_rows)? {
            return Ok(());
        }
        // The best weights are gone too.
        self.best = None;
        let device = of_ranks(&self.runner.describe(), Share::of(self.ranks.as_deref()));
        self.store.save_about(&About { device: &device, kernels: self.runner.variants(), settings: &self.settings })?;
        let message = format!("run folder {} was missing and has been recreated", self.store.path().display());
        self.warn(&message)
    }

    /// Returns the weights after an epoch as a file. `kl_dims`: KL divergence of each latent dimension in nats.
    pub(super) fn model_file(&mut self, row: &EpochRow, kl_dims: &[f64]) -> Result<TensorFile> {
        let weights = self.weights()?;
        let validated = Some((row.val_total, kl_dims));
        model_file(weights, &self.runner, self.dataset.train.classes(), row.epoch, validated)
    }

    fn weights(&mut self) -> Result<Weights> {
        Ok(Weights { params: self.runner.download(Arena::Params)?, states: self.runner.download(Arena::States)? })
    }

    pub(super) fn save_checkpoint(&mut self) -> Result<()> {
        let checkpoint = Checkpoint {
            progress: RunProgress {
                step: self.runner.step(),
                epoch: self.finished,
                seed: self.settings.seed,
                settings: serde_json::to_string(&self.settings).map_err(Error::bug)?,
                best: self.best,
                data: Some(self.fingerprint.clone()),
            },
            weights: self.weights()?,
            moment1: self.runner.download(Arena::OptimizerState(0))?,
            moment2: self.runner.download(Arena::OptimizerState(1))?,
        };
        let restored = self.restore();
        self.warn_on_io_error(restored)?;
        // A checkpoint is saved even if rows cannot be written.
        let synced = self.store.sync_rows();
        self.warn_on_io_error(synced)?;
        let file = checkpoint.into_file(TensorSchema::of(self.runner.graph()?))?;
        self.store.save_checkpoint(file)?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Saves the gradients of the last step of an epoch, if the store keeps them.
    pub(super) fn gradients(&mut self, epoch: u64) -> Result<()> {
        if !self.store.keeps_gradients() {
            return Ok(());
        }
        let values = self.runner.download(Arena::Grads)?;
        let tensors = self.runner.graph()?.tensors(Arena::Grads);
        let named: Vec<_> = tensors.iter().map(|t| t.name.as_str()).zip(values.iter().map(Vec::as_slice)).collect();
        let saved = self.store.save_gradients(epoch, &named);
        self.warn_on_io_error(saved)
    }

    /// Saves reconstructions and samples after an epoch, and the originals before the first (epoch 0).
    pub(super) fn images(&mut self, epoch: u64) -> Result<()> {
        let images = self.dataset.test.as_ref();
        let Originals { shown, pixels, size } = self.originals()?;
        if epoch == 0 {
            return self.store.save_originals(&pixels, size);
        }
        let zero_noise = vec![0.0; shown.len() * self.settings.model.latent_dim];
        let labels = data::labels(images, &shown);
        let mean = self.runner.evaluate((&pixels, &labels), &zero_noise, self.settings.beta)?.mean;
        let reconstructions = DecodedImages { values: &mean, size, rows: &[] };
        let shown = self.observer.images(epoch, "reconstructions", reconstructions);
        keep_first(&mut self.observer_error, shown)?;
        self.store.save_reconstructions(epoch, &pixels, reconstructions)?;
        let classes = self.settings.model.classes;
        let labels = sample_labels(classes);
        let z = noise(&self.settings, SAMPLE_NOISE, labels.len());
        let samples = self.runner.decode((&z, &labels))?;
        let rows = &images.classes()[..classes.min(MOST_SHOWN)];
        let samples = DecodedImages { values: &samples, size, rows };
        let shown = self.observer.images(epoch, "samples", samples);
        keep_first(&mut self.observer_error, shown)?;
        self.store.save_samples(epoch, samples)
    }

    /// Sends the images whose reconstructions follow to the observer.
    pub(super) fn show_originals(&mut self) -> Result<()> {
        let Originals { pixels, size, .. } = self.originals()?;
        let values: Vec<f32> = pixels.iter().map(|byte| f32::from(*byte) / 127.5 - 1.0).collect();
        let shown = self.observer.images(0, "originals", DecodedImages { values: &values, size, rows: &[] });
        keep_first(&mut self.observer_error, shown)
    }

    fn originals(&self) -> Result<Originals> {
        let images = self.dataset.test.as_ref();
        let shown = shown_images(images);
        let mut pixels = Vec::new();
        data::batch(images, &shown, &mut pixels)?;
        let (c, h, w) = images.size();
        Ok(Originals { shown, pixels, size: [c, h, w] })
    }
}

/// Images whose reconstructions are saved after each epoch.
struct Originals {
    /// Indices in the test images.
    shown: Vec<u32>,
    /// Bytes `[n, c, h, w]`, and channels, height and width.
    pixels: Vec<u8>,
    size: [usize; 3],
}

/// Returns the weights after an epoch as a file. `validated`: validation loss, and KL divergence of each latent dimension in nats.
pub(super) fn model_file(
    weights: Weights,
    runner: &Runner,
    classes: &[String],
    epoch: u64,
    validated: Option<(f64, &[f64])>,
) -> Result<TensorFile> {
    let config = serde_json::to_string(runner.config()).map_err(Error::bug)?;
    let mut file = weights.into_file(TensorSchema::of(runner.graph()?), &config)?;
    file.metadata.insert("epoch".to_owned(), epoch.to_string());
    if let Some((val_total, kl_dims)) = validated {
        file.metadata.insert("val_total".to_owned(), val_total.to_string());
        file.metadata.insert(KL_DIMS.to_owned(), serde_json::to_string(kl_dims).map_err(Error::bug)?);
    }
    if runner.config().classes > 0 {
        file.metadata.insert(CLASSES.to_owned(), serde_json::to_string(classes).map_err(Error::bug)?);
    }
    Ok(file)
}

/// Returns the class of each sample drawn after an epoch: a row of each class, or zeros for a model without classes.
pub(super) fn sample_labels(classes: usize) -> Vec<u8> {
    if classes == 0 {
        return vec![0; SAMPLES];
    }
    (0..classes.min(MOST_SHOWN)).flat_map(|class| [class as u8; SAMPLES_OF_CLASS]).collect()
}

/// Returns the indices of the images to reconstruct: the first of each class that occurs, of at most [`MOST_SHOWN`] classes. If there are
/// fewer than [`LEAST_SHOWN`], others from the start follow.
pub(super) fn shown_images(images: &dyn Images) -> Vec<u32> {
    let mut first: BTreeMap<u8, u32> = BTreeMap::new();
    for i in 0..images.len() {
        first.entry(images.label(i)).or_insert(i as u32);
        if first.len() == images.classes().len() {
            break;
        }
    }
    let mut shown: Vec<u32> = first.into_values().take(MOST_SHOWN).collect();
    let others: Vec<u32> = (0..images.len() as u32).filter(|i| !shown.contains(i)).take(LEAST_SHOWN).collect();
    shown.extend(others.into_iter().take(LEAST_SHOWN.saturating_sub(shown.len())));
    shown
}
