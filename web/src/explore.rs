//! Encoding and decoding between training steps.
//!
//! A batch size is a program of its own, whose kernels take seconds to compile on some devices. All work is therefore done in batches
//! of one size, filled up with zeros.

use vae_wgpu::Error;
use vae_wgpu::prelude::{Mode, Runner};
use vae_wgpu::vae::data::{self, Images};
use vae_wgpu::vae::eval::divergences;
use vae_wgpu::vae::inference::posterior_means;
use vae_wgpu::vae::runner::Labelled;

use crate::fault::Fault;

/// Images or latent vectors in a batch.
pub(crate) const BATCH: usize = 16;
/// Programs that exploring needs.
pub(crate) const PROGRAMS: [(usize, Mode); 2] = [(BATCH, Mode::Encode), (BATCH, Mode::Decode)];
/// Most held-out images over which the KL divergence is averaged.
const LATENT_IMAGES: usize = 512;

/// Values filled up to a batch, with classes.
fn filled<T: Copy + Default>(values: &[T], labels: &[u8], each: usize) -> (Vec<T>, Vec<u8>) {
    let (mut values, mut labels) = (values.to_vec(), labels.to_vec());
    values.resize(BATCH * each, T::default());
    labels.resize(BATCH, 0);
    (values, labels)
}

fn finite(values: Vec<f32>) -> Result<Vec<f32>, Fault> {
    if values.iter().all(|v| v.is_finite()) {
        return Ok(values);
    }
    Err(Error::NonFiniteOutput { what: "the model output".to_owned() }.into())
}

/// Encodes images (bytes, `[n, c, h, w]`) to `[n, 2 * latent]`: mu, then log_std. Missing classes are the first one.
pub(crate) async fn encode(runner: &mut Runner, images: Labelled<'_, u8>) -> Result<Vec<f32>, Fault> {
    let (image, latent) = (runner.config().images(1).len(), runner.config().latent_dim);
    let mut encoded = Vec::new();
    let mut labels = images.labels.chunks(BATCH);
    for values in images.values.chunks(BATCH * image) {
        let (filled, labels) = filled(values, labels.next().unwrap_or_default(), image);
        let h = runner.encode_async((&filled, &labels)).await?;
        encoded.extend(h.into_iter().take(values.len() / image * 2 * latent));
    }
    finite(encoded)
}

/// Decodes latent vectors, `[n, latent]`, to `[n, c, h, w]` with values around -1 to 1. Missing classes are the first one.
pub(crate) async fn decode(runner: &mut Runner, z: Labelled<'_, f32>) -> Result<Vec<f32>, Fault> {
    let (image, latent) = (runner.config().images(1).len(), runner.config().latent_dim);
    if z.values.is_empty() || !z.values.len().is_multiple_of(latent) {
        return Err(Fault::invalid(format!("{} latent values: expected a multiple of {latent}", z.values.len())));
    }
    let mut decoded = Vec::new();
    let mut labels = z.labels.chunks(BATCH);
    for values in z.values.chunks(BATCH * latent) {
        let (filled, labels) = filled(values, labels.next().unwrap_or_default(), latent);
        let means = runner.decode_async((&filled, &labels)).await?;
        decoded.extend(means.into_iter().take(values.len() / latent * image));
    }
    finite(decoded)
}

/// Encodes images and decodes the means.
pub(crate) async fn reconstruct(runner: &mut Runner, images: Labelled<'_, u8>) -> Result<Vec<f32>, Fault> {
    let z = posterior_means(&encode(runner, images).await?, runner.config().latent_dim);
    decode(runner, Labelled { values: &z, labels: images.labels }).await
}

/// Returns the KL divergence of each latent dimension in nats, averaged over images.
pub(crate) async fn kl_dims(runner: &mut Runner, images: &dyn Images) -> Result<Vec<f64>, Fault> {
    let latent = runner.config().latent_dim;
    let count = images.len().min(LATENT_IMAGES);
    let (mut sums, mut pixels) = (vec![0.0; latent], Vec::new());
    for first in (0..count).step_by(BATCH) {
        let indices: Vec<u32> = (first as u32..count.min(first + BATCH) as u32).collect();
        data::batch(images, &indices, &mut pixels)?;
        let labels = data::labels(images, &indices);
        let h = encode(runner, Labelled { values: &pixels, labels: &labels }).await?;
        for row in h.chunks_exact(2 * latent) {
            sums.iter_mut().zip(divergences(row)).for_each(|(sum, kl)| *sum += kl);
        }
    }
    Ok(sums.into_iter().map(|sum| sum / count as f64).collect())
}
