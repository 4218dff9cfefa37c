//! Distributions of latent vectors: the standard normal prior of the training, and priors fitted to a trained model.
//!
//! The encoded images do not fill the standard normal prior evenly, so vectors drawn from it decode to images unlike the data. A
//! prior that is fitted to them after training closes most of that gap. It is fitted to samples of the posteriors, not to their means,
//! which are spread less widely.

pub mod mixture;
pub mod second_stage;

pub use mixture::Mixture;
pub use second_stage::{SecondStage, SecondStageConfig};

use crate::error::Result;
use crate::runtime::tensor::rng::{self, Stream};
use crate::vae::data::Images;
use crate::vae::inference::{Trained, draw, in_blocks};

/// A distribution of latent vectors.
#[derive(Clone, Debug, PartialEq)]
pub enum Prior {
    /// N(0, I) with this number of dimensions: the prior of the training.
    Normal(usize),
    /// A fitted mixture of Gaussians.
    Mixture(Mixture),
    /// A fitted VAE of latent vectors.
    SecondStage(SecondStage),
}

impl Prior {
    /// Draws `count` latent vectors, `[count, latent]`. `temperature` scales the standard deviation of the noise. `labels` holds the
    /// class of each vector for a conditional model; otherwise it is empty or ignored.
    ///
    /// # Errors
    /// As [`SecondStage::sample`].
    pub fn sample(&self, count: usize, labels: &[u8], seed: u64, temperature: f64) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Normal(latent) => {
                let noise = rng::normals(&mut rng::stream(seed, Stream::Sample, 0), count * latent);
                noise.into_iter().map(|z| z * temperature as f32).collect()
            }
            Self::Mixture(mixture) if labels.len() == count => mixture.sample_classes(labels, seed, temperature),
            Self::Mixture(mixture) => mixture.sample(count, seed, temperature),
            Self::SecondStage(second) => second.sample(count, labels, seed, temperature)?,
        })
    }
}

/// Encodes images to one sample of each posterior, `[n, latent]`. Calls `done` with the number of images so far.
///
/// # Errors
/// As [`Trained::encode`], and errors of the images.
pub fn encode(model: &mut Trained, images: &dyn Images, seed: u64, done: &mut dyn FnMut(usize)) -> Result<Vec<f32>> {
    let latent = model.config().latent_dim;
    let mut noise = rng::stream(seed, Stream::Prior, 2);
    let mut samples = Vec::with_capacity(images.len() * latent);
    in_blocks(images, model.batch(), |block| {
        for h in model.encode(block)?.chunks_exact(2 * latent) {
            samples.extend(draw(h, &rng::normals(&mut noise, latent)));
        }
        done(samples.len() / latent);
        Ok(())
    })?;
    Ok(samples)
}
