//! Validation.

use std::sync::Arc;

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

/// Results of a batch.
#[derive(Debug)]
struct ValidatedBatch {
    images: usize,
    terms: [f32; 4],
    kl_dims: Vec<f32>,
    /// Posterior means, `[images, latent]`.
    mu: Vec<f32>,
}

impl ValidatedBatch {
    /// The values of a batch in a message to other ranks.
    fn to_values(&self) -> Vec<f32> {
        [&self.terms[..], &self.kl_dims, &self.mu].concat()
    }

    /// The batch with these values, of which there are none if a rank had no batch.
    fn from_values(values: &[f32], latent: usize) -> Option<Self> {
        let (terms, rest) = values.split_first_chunk()?;
        let (kl_dims, mu) = rest.split_at_checked(latent)?;
        Some(Self { images: mu.len() / latent, terms: *terms, kl_dims: kl_dims.to_vec(), mu: mu.to_vec() })
    }
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

    /// Adds the next batch of all `images`.
    pub(super) async fn add(&mut self, runner: &mut Runner, settings: &Settings, images: &dyn Images) -> Result<()> {
        let batch = self.validate(self.done, runner, settings, images).await?;
        self.push(batch);
        Ok(())
    }

    /// Validates a batch of all `images`, with running statistics. The last one may be shorter.
    async fn validate(
        &mut self,
        at: usize,
        runner: &mut Runner,
        settings: &Settings,
        images: &dyn Images,
    ) -> Result<ValidatedBatch> {
        let latent = settings.model.latent_dim;
        let first = at * settings.batch_size;
        let indices: Vec<u32> = (first as u32..images.len().min(first + settings.batch_size) as u32).collect();
        let n = indices.len();
        data::batch(images, &indices, &mut self.pixels)?;
        let labels = data::labels(images, &indices);
        let eps = noise(settings, VALIDATION_NOISE + at as u64, n);
        let sampled = runner.losses_async((&self.pixels, &labels), &eps, settings.beta).await?;
        // Without noise the posterior mean is decoded.
        let still = vec![0.0; n * latent];
        let zero_noise = runner.losses_async((&self.pixels, &labels), &still, settings.beta).await?;
        Ok(ValidatedBatch {
            images: n,
            terms: [sampled.total, sampled.recon, sampled.kl, zero_noise.mse],
            kl_dims: sampled.kl_dims,
            mu: posterior_means(&sampled.h, latent),
        })
    }

    /// Adds the results of the next batch.
    fn push(&mut self, batch: ValidatedBatch) {
        for (sum, term) in self.sums.iter_mut().zip(batch.terms) {
            *sum += f64::from(term) * batch.images as f64;
        }
        for (sum, kl) in self.kl_dims.iter_mut().zip(&batch.kl_dims) {
            *sum += f64::from(*kl) * batch.images as f64;
        }
        self.mu.extend(batch.mu);
        self.done += 1;
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
        while validator.done < batches {
            if self.is_stopped()? {
                return Ok(None);
            }
            self.observer.waiting(&format!("validating {}/{batches}", validator.done + 1));
            let Some(ranks) = &mut self.ranks else {
                block_on(validator.add(&mut self.runner, &self.settings, images))?;
                continue;
            };
            // A batch for each rank. All add the results in the order of the batches.
            let at = validator.done + ranks.rank();
            let own = match at < batches {
                true => block_on(validator.validate(at, &mut self.runner, &self.settings, images))?.to_values(),
                false => Vec::new(),
            };
            for bytes in ranks.gather(bytemuck::cast_slice(&own))? {
                let values: Vec<f32> = bytemuck::pod_collect_to_vec(&bytes);
                let batch = ValidatedBatch::from_values(&values, self.settings.model.latent_dim);
                batch.into_iter().for_each(|batch| validator.push(batch));
            }
        }
        Ok(Some(validator.finish()))
    }
}
