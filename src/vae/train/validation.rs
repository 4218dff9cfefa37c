//! Validation.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Trainer, noise};
use crate::error::Result;
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::eval::active_units;
use crate::vae::inference::posterior_means;

/// Index of the noise of the first batch, beyond that of any step.
const VALIDATION_NOISE: u64 = 1 << 62;

/// Averages over the validation images.
pub(super) struct Validation {
    pub(super) total: f64,
    pub(super) recon: f64,
    pub(super) kl: f64,
    pub(super) mse: f64,
    pub(super) active_units: u64,
    /// KL divergence of each latent dimension in nats.
    pub(super) kl_dims: Vec<f64>,
}

impl Trainer<'_> {
    /// Returns averages over all validation images with running statistics, or `None` if the run is stopped.
    pub(super) fn validate(&mut self) -> Result<Option<Validation>> {
        let latent = self.settings.model.latent_dim;
        let parts = Arc::clone(&self.parts);
        let images = &parts.validation;
        let all: Vec<u32> = (0..images.len() as u32).collect();
        let (mut sums, mut mu, mut kl_dims) = ([0.0f64; 4], Vec::new(), vec![0.0; latent]);
        let mut pixels = Vec::new();
        for (i, indices) in all.chunks(self.settings.batch_size).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.observer.waiting(&format!("validating {}/{}", i + 1, all.len().div_ceil(self.settings.batch_size)));
            let n = indices.len();
            data::batch(images, indices, &mut pixels)?;
            let labels = data::labels(images, indices);
            let eps = noise(&self.settings, VALIDATION_NOISE + i as u64, n);
            let sampled = self.runner.losses((&pixels, &labels), &eps, self.settings.beta)?;
            // Without noise the posterior mean is decoded.
            let still = vec![0.0; n * latent];
            let zero_noise = self.runner.losses((&pixels, &labels), &still, self.settings.beta)?;
            for (sum, term) in sums.iter_mut().zip([sampled.total, sampled.recon, sampled.kl, zero_noise.mse]) {
                *sum += f64::from(term) * n as f64;
            }
            for (sum, kl) in kl_dims.iter_mut().zip(&sampled.kl_dims) {
                *sum += f64::from(*kl) * n as f64;
            }
            mu.extend(posterior_means(&sampled.h, latent));
        }
        let count = images.len() as f64;
        let active_units = active_units(&mu, latent) as u64;
        let [total, recon, kl, mse] = sums.map(|sum| sum / count);
        kl_dims.iter_mut().for_each(|sum| *sum /= count);
        Ok(Some(Validation { total, recon, kl, mse, active_units, kl_dims }))
    }
}
