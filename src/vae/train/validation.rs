//! Validation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Settings, Trainer, noise};
use crate::error::Result;
use crate::runtime::sys::platform::block_on;
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::eval::active_units;
use crate::vae::inference::posterior_means;
use crate::vae::runner::Runner;

/// Index of the noise of the first batch, beyond that of any step.
const VALIDATION_NOISE: u64 = 1 << 62;

/// Averages over the validation images.
#[derive(Clone, Debug, PartialEq)]
pub struct Validation {
    /// Total loss.
    pub total: f64,
    /// Reconstruction term.
    pub recon: f64,
    /// KL term.
    pub kl: f64,
    /// Mean squared error of the decoded latent means.
    pub mse: f64,
    /// Number of latent dimensions that depend on the image.
    pub active_units: u64,
    /// KL divergence of each latent dimension in nats.
    pub kl_dims: Vec<f64>,
}

/// Validation in progress.
#[derive(Debug)]
pub(super) struct Validator {
    sums: [f64; 4],
    kl_dims: Vec<f64>,
    /// Posterior means, `[n, latent]`.
    mu: Vec<f32>,
    pixels: Vec<u8>,
    /// Number of batches so far.
    pub(super) done: usize,
}

impl Validator {
    pub(super) fn new(latent: usize) -> Self {
        Self { sums: [0.0; 4], kl_dims: vec![0.0; latent], mu: Vec::new(), pixels: Vec::new(), done: 0 }
    }

    /// Adds the next batch of all `images`, with running statistics. The last one may be shorter.
    pub(super) async fn add(&mut self, runner: &mut Runner, settings: &Settings, images: &dyn Images) -> Result<()> {
        let latent = settings.model.latent_dim;
        let first = self.done * settings.batch_size;
        let indices: Vec<u32> = (first as u32..images.len().min(first + settings.batch_size) as u32).collect();
        let n = indices.len();
        data::batch(images, &indices, &mut self.pixels)?;
        let labels = data::labels(images, &indices);
        let eps = noise(settings, VALIDATION_NOISE + self.done as u64, n);
        let sampled = runner.losses_async((&self.pixels, &labels), &eps, settings.beta).await?;
        // Without noise the posterior mean is decoded.
        let still = vec![0.0; n * latent];
        let zero_noise = runner.losses_async((&self.pixels, &labels), &still, settings.beta).await?;
        for (sum, term) in self.sums.iter_mut().zip([sampled.total, sampled.recon, sampled.kl, zero_noise.mse]) {
            *sum += f64::from(term) * n as f64;
        }
        for (sum, kl) in self.kl_dims.iter_mut().zip(&sampled.kl_dims) {
            *sum += f64::from(*kl) * n as f64;
        }
        self.mu.extend(posterior_means(&sampled.h, latent));
        self.done += 1;
        Ok(())
    }

    /// Returns the averages over the images so far.
    pub(super) fn finish(self) -> Validation {
        let latent = self.kl_dims.len();
        let count = (self.mu.len() / latent.max(1)) as f64;
        let [total, recon, kl, mse] = self.sums.map(|sum| sum / count);
        let kl_dims = self.kl_dims.iter().map(|sum| sum / count).collect();
        Validation { total, recon, kl, mse, active_units: active_units(&self.mu, latent) as u64, kl_dims }
    }
}

impl Trainer<'_> {
    /// Returns averages over all validation images with running statistics, or `None` if the run is stopped.
    pub(super) fn validate(&mut self) -> Result<Option<Validation>> {
        let parts = Arc::clone(&self.parts);
        let images = &parts.validation;
        let mut validator = Validator::new(self.settings.model.latent_dim);
        let batches = images.len().div_ceil(self.settings.batch_size);
        for i in 0..batches {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.observer.waiting(&format!("validating {}/{batches}", i + 1));
            block_on(validator.add(&mut self.runner, &self.settings, images))?;
        }
        Ok(Some(validator.finish()))
    }
}
