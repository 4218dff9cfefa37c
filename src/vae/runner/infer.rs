//! The trained model: evaluation, encoding, decoding, samples.

use super::{Labelled, Runner};
use crate::error::{Error, Result};
use crate::runtime::exec::Data;
use crate::runtime::graph::Arena;
use crate::runtime::sys::platform::block_on;
use crate::runtime::tensor::rng::{self, Stream};
use crate::vae::model::Mode;

/// Results of evaluating a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchEvaluation {
    /// Total loss: recon + beta * kl.
    pub total: f32,
    /// Reconstruction term.
    pub recon: f32,
    /// KL term.
    pub kl: f32,
    /// Mean squared error of the decoded images.
    pub mse: f32,
    /// KL divergence of each latent dimension in nats, averaged over the batch.
    pub kl_dims: Vec<f32>,
    /// `[batch, 2 * latent]`: mu, then log_std.
    pub h: Vec<f32>,
    /// Decoded images, `[batch, c, h, w]`.
    pub mean: Vec<f32>,
}

impl Runner {
    /// Evaluates a batch with running statistics: loss terms, the posterior and the decoded images. `images`: bytes,
    /// `[batch, c, h, w]`; `eps`: noise, `[batch, latent]`.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn evaluate<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        beta: f64,
    ) -> Result<BatchEvaluation> {
        block_on(self.evaluate_async(images, eps, beta))
    }

    /// Like [`Runner::evaluate`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn evaluate_async<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        beta: f64,
    ) -> Result<BatchEvaluation> {
        let images = images.into();
        let losses = self.losses_async(images, eps, beta).await?;
        let program = self.program(self.image_batch(images)?, Mode::Evaluate)?;
        Ok(BatchEvaluation { mean: self.read(program, "mean").await?, ..losses })
    }

    /// Like [`Runner::evaluate`], without reading the images back, which takes time: `mean` is empty.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn losses<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        beta: f64,
    ) -> Result<BatchEvaluation> {
        block_on(self.losses_async(images, eps, beta))
    }

    /// Like [`Runner::losses`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn losses_async<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        beta: f64,
    ) -> Result<BatchEvaluation> {
        let images = images.into();
        let program = self.program(self.image_batch(images)?, Mode::Evaluate)?;
        self.write_images(program, images)?;
        self.write(program, "eps", Data::F32(eps))?;
        self.write(program, "objective", Data::F32(&[beta as f32, 0.0]))?;
        self.run(program, &[])?;
        let terms = self.read(program, "terms").await?;
        let &[total, recon, kl, mse] = terms.as_slice() else { return Err(Error::bug("loss terms of another length")) };
        let (kl_dims, h) = (self.read(program, "kl_dims").await?, self.read(program, "h").await?);
        Ok(BatchEvaluation { total, recon, kl, mse, kl_dims, h, mean: Vec::new() })
    }

    /// Encodes images (bytes, `[batch, c, h, w]`) to `h`, `[batch, 2 * latent]`: mu, then log_std.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn encode<'a>(&mut self, images: impl Into<Labelled<'a, u8>>) -> Result<Vec<f32>> {
        block_on(self.encode_async(images))
    }

    /// Like [`Runner::encode`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn encode_async<'a>(&mut self, images: impl Into<Labelled<'a, u8>>) -> Result<Vec<f32>> {
        let images = images.into();
        let program = self.program(self.image_batch(images)?, Mode::Encode)?;
        self.write_images(program, images)?;
        self.run(program, &[])?;
        self.read(program, "h").await
    }

    /// Decodes latent vectors, `[batch, latent]`, to mean images, `[batch, c, h, w]` with values around -1 to 1.
    ///
    /// # Errors
    /// As [`Runner::train`], for the number of latent values.
    pub fn decode<'a>(&mut self, z: impl Into<Labelled<'a, f32>>) -> Result<Vec<f32>> {
        block_on(self.decode_async(z))
    }

    /// Like [`Runner::decode`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub async fn decode_async<'a>(&mut self, z: impl Into<Labelled<'a, f32>>) -> Result<Vec<f32>> {
        let z = z.into();
        let batch = Self::batch("latent vectors", z.values.len(), self.config.latent_dim)?;
        let program = self.program(batch, Mode::Decode)?;
        self.write(program, "z", Data::F32(z.values))?;
        self.write_labels(program, z.labels, batch)?;
        self.run(program, &[])?;
        self.read(program, "mean").await
    }

    /// Draws `count` latent vectors from the prior and decodes them. Returns mean images, as [`Runner::decode`].
    ///
    /// # Errors
    /// As [`Runner::decode`].
    pub fn sample(&mut self, count: usize, seed: u64) -> Result<Vec<f32>> {
        block_on(self.sample_async(count, seed))
    }

    /// Like [`Runner::sample`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::decode`].
    pub async fn sample_async(&mut self, count: usize, seed: u64) -> Result<Vec<f32>> {
        let z = rng::normals(&mut rng::stream(seed, Stream::Sample, 0), count * self.config.latent_dim);
        self.decode_async(&z).await
    }

    /// Returns the name of the first parameter, running statistic or gradient that contains NaN or infinity.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn first_non_finite(&mut self) -> Result<Option<String>> {
        block_on(self.first_non_finite_async())
    }

    /// Like [`Runner::first_non_finite`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::first_non_finite`].
    pub async fn first_non_finite_async(&mut self) -> Result<Option<String>> {
        for arena in [Arena::Params, Arena::States, Arena::Grads] {
            let tensors = self.download_async(arena).await?;
            let bad = tensors.iter().position(|t| t.iter().any(|v| !v.is_finite()));
            if let Some(i) = bad {
                let name = self.graph()?.tensors(arena).get(i).map(|t| t.name.clone()).unwrap_or_default();
                return Ok(Some(if arena == Arena::Grads { format!("the gradient of {name}") } else { name }));
            }
        }
        Ok(None)
    }
}
