//! Validation: losses on the test set.

use std::sync::atomic::Ordering;

use super::{Trainer, noise};
use crate::error::Result;
use crate::vae::data;

/// A latent dimension is active if the variance of its mean over the data exceeds this (Burda et al., arXiv:1509.00519).
const ACTIVE_VARIANCE: f64 = 0.01;
/// Index of the first noise stream, beyond those of any step. Each batch has its own.
const VALIDATION_NOISE: u64 = 1 << 62;

/// Means over the test set.
pub(super) struct Validation {
    pub(super) total: f64,
    pub(super) recon: f64,
    pub(super) kl: f64,
    pub(super) mse: f64,
    pub(super) active_units: u64,
}

impl Trainer<'_> {
    /// Returns means over the test set, computed with running statistics, or `None` if the run was stopped.
    pub(super) fn validate(&mut self) -> Result<Option<Validation>> {
        let latent = self.settings.model.latent_dim;
        let images = self.dataset.test.as_ref();
        let all: Vec<u32> = (0..images.len() as u32).collect();
        let (mut sums, mut moments) = ([0.0f64; 4], vec![(0.0f64, 0.0f64); latent]);
        let mut pixels = Vec::new();
        for (i, indices) in all.chunks(self.settings.batch_size).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let n = indices.len();
            data::batch(images, indices, &mut pixels)?;
            let eps = noise(&self.settings, VALIDATION_NOISE + i as u64, n);
            let sampled = self.runner.losses(&pixels, &eps, self.settings.beta)?;
            // Without noise the posterior mean is decoded. recon is half the mean squared error plus a constant.
            let still = self.runner.losses(&pixels, &vec![0.0; n * latent], self.settings.beta)?;
            let mse = 2.0 * (f64::from(still.recon) - 0.5 * std::f64::consts::TAU.ln());
            let terms = [f64::from(sampled.total), f64::from(sampled.recon), f64::from(sampled.kl), mse];
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += term * n as f64;
            }
            for h in sampled.h.chunks_exact(2 * latent) {
                for ((sum, squares), mu) in moments.iter_mut().zip(h) {
                    *sum += f64::from(*mu);
                    *squares += f64::from(*mu).powi(2);
                }
            }
        }
        let count = images.len() as f64;
        let variance = |(sum, squares): &(f64, f64)| squares / count - (sum / count).powi(2);
        let active_units = moments.iter().filter(|m| variance(m) > ACTIVE_VARIANCE).count() as u64;
        let [total, recon, kl, mse] = sums.map(|sum| sum / count);
        Ok(Some(Validation { total, recon, kl, mse, active_units }))
    }
}
