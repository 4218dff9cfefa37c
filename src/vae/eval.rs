//! Metrics of a model on a data set: the terms of the loss, the reconstruction error, and a tighter bound on the likelihood.

use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::op::Likelihood;
use crate::runtime::op::vae::elbo::LN_2PI;
use crate::runtime::sys::threads;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;
use crate::vae::data::Images;
use crate::vae::inference::{Trained, check_size, draws, in_blocks, posterior_means, scaled};
use crate::vae::metrics::Ssim;
use crate::vae::runner::Labelled;

/// A latent dimension is active if the variance of its posterior mean over the data exceeds this value (Burda et al., arXiv:1509.00519).
const ACTIVE_VARIANCE: f64 = 0.01;

/// Options of [`evaluate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seed of the noise. Draw k of all images comes from stream k, so results do not depend on the batch size.
    pub seed: u64,
    /// Number of draws per image for the importance-weighted bound; 0 skips it.
    pub iwae: usize,
}

/// Metrics of a model, averaged over images.
///
/// The likelihood is that of the model, with a beta of 1: a Gaussian around the decoded image, with pixel values from -1 to 1.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Number of images.
    pub images: usize,
    /// recon + kl in nats per dimension: the training loss.
    pub total: f64,
    /// -log p(x|z) for one draw of z, in nats per dimension.
    pub recon: f64,
    /// KL divergence from the prior, in nats per dimension.
    pub kl: f64,
    /// `total` in bits per dimension of the 8-bit images.
    pub bits_per_dim: f64,
    /// `total` in nats per image.
    pub total_nats: f64,
    /// `recon` in nats per image.
    pub recon_nats: f64,
    /// `kl` in nats per image.
    pub kl_nats: f64,
    /// Mean squared error per dimension of the decoded posterior mean.
    pub mse: f64,
    /// Peak signal-to-noise ratio of that error in dB: 10 log10(2^2 / mse).
    pub psnr: f64,
    /// Structural similarity of that image to the original, from -1 to 1: [`Ssim`].
    pub ssim: f64,
    /// Number of latent dimensions whose posterior mean varies over the images.
    pub active_units: usize,
    /// KL divergence of each latent dimension in nats per image.
    pub kl_dims: Vec<f64>,
    /// Variance of the likelihood.
    pub variance: f64,
    /// Number of latent dimensions.
    pub latent_dim: usize,
    /// Importance-weighted bound.
    pub iwae: Option<Bound>,
}

/// An upper bound on -log p(x), which decreases with the number of draws: -log mean_k p(x|z_k) p(z_k) / q(z_k|x).
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// Number of draws per image.
    pub samples: usize,
    /// Nats per image.
    pub nats: f64,
    /// Nats per dimension.
    pub nats_per_dim: f64,
}

/// Returns the peak signal-to-noise ratio in dB of a mean squared error of pixel values from -1 to 1.
#[must_use]
pub fn psnr(mse: f64) -> f64 {
    10.0 * (4.0 / mse).log10()
}

/// Returns the bits per dimension of 8-bit images with this negative log-likelihood in nats per dimension of pixel values from -1 to 1:
/// the density of a value times the width of a level, 1/127.5, is its probability.
#[must_use]
pub fn bits_per_dim(nats: f64) -> f64 {
    nats / std::f64::consts::LN_2 + 127.5f64.log2()
}

/// A latent dimension with a KL divergence below this many nats carries next to nothing.
const IDLE: f64 = 0.1;

/// Returns the number of latent dimensions that together carry `share` of the KL divergence, those that carry most first.
#[must_use]
pub fn dims_with_share(kl_dims: &[f64], share: f64) -> usize {
    let mut sorted = kl_dims.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let wanted = share * sorted.iter().sum::<f64>();
    let mut sum = 0.0;
    for (count, kl) in sorted.iter().enumerate() {
        if sum >= wanted {
            return count;
        }
        sum += kl;
    }
    sorted.len()
}

/// Returns the number of latent dimensions that carry next to nothing: a KL divergence below 0.1 nat.
#[must_use]
pub fn idle_dims(kl_dims: &[f64]) -> usize {
    kl_dims.iter().filter(|kl| **kl < IDLE).count()
}

/// Returns what a person would want to know about a model, each with what to try: latent dimensions without content, and reconstructions
/// that are worse than those of PCA. `kl_dims`: KL divergence of each latent dimension in nats.
#[must_use]
pub fn advice(kl_dims: &[f64], likelihood: Likelihood, mse: f64, pca: Option<f64>) -> Vec<String> {
    let mut advice = Vec::new();
    let (idle, latent) = (idle_dims(kl_dims), kl_dims.len());
    if 4 * idle > latent {
        let change = match likelihood {
            Likelihood::Unit => "lower --beta or use --likelihood optimal",
            Likelihood::Optimal => "lower --beta or --latent-dim, or train longer",
        };
        advice.push(format!("{idle} of {latent} latent dimensions carry less than {IDLE} nat: {change}"));
    }
    if pca.is_some_and(|pca| pca < mse) {
        advice.push(format!("reconstructions are worse than those of PCA with {latent} components: train longer"));
    }
    advice
}

/// Evaluates a model on all of `images`. Calls `done` with the number of images so far.
///
/// # Errors
/// [`Error::InvalidArgument`] for images of another size, [`Error::NonFiniteOutput`] if the output of the model is not finite, and
/// errors of the device.
pub fn evaluate(
    model: &mut Trained,
    images: &dyn Images,
    options: &Options,
    done: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    check_size(model.config(), images)?;
    let (latent, dims) = (model.config().latent_dim, model.config().images(1).len());
    let mut noise: Vec<_> =
        (0..options.iwae.max(1) as u64).map(|k| rng::stream(options.seed, Stream::Sample, k)).collect();
    let [mut recon, mut squares, mut similarity, mut bound] = [0.0f64; 4];
    let ssim = Ssim::new([model.config().image_channels, model.config().image_size, model.config().image_size]);
    let variance = model.variance();
    let log_scale = LN_2PI + variance.ln();
    let mut mu: Vec<f32> = Vec::new();
    let mut kl_dims = vec![0.0f64; latent];
    let mut seen = 0;
    in_blocks(images, model.batch(), |block| {
        let Labelled { values: pixels, labels } = block;
        let h = model.encode(block)?;
        let z_mean = posterior_means(&h, latent);
        let means = model.decode(Labelled { values: &z_mean, labels })?;
        squares += squared_errors(pixels, &means, dims).iter().sum::<f64>();
        similarity += similarities(&ssim, pixels, &means, dims)?.iter().sum::<f64>();
        for row in h.chunks_exact(2 * latent) {
            for (sum, kl) in kl_dims.iter_mut().zip(divergences(row)) {
                *sum += kl;
            }
        }
        let mut log_weights = vec![Vec::with_capacity(options.iwae); z_mean.len() / latent];
        for (k, noise) in noise.iter_mut().enumerate() {
            let eps = rng::normals(noise, z_mean.len());
            let z = draws(&h, &eps, latent);
            let errors = squared_errors(pixels, &model.decode(Labelled { values: &z, labels })?, dims);
            let nats: Vec<f64> = errors.iter().map(|e| 0.5 * (e / variance + log_scale * dims as f64)).collect();
            if k == 0 {
                recon += nats.iter().sum::<f64>();
            }
            let rows = h.chunks_exact(2 * latent).zip(z.chunks_exact(latent)).zip(eps.chunks_exact(latent));
            for (((h, z), eps), (weights, nats)) in rows.zip(log_weights.iter_mut().zip(&nats)) {
                weights.push(log_prior_over_posterior(h, z, eps) - nats);
            }
        }
        bound -= log_weights.iter().map(|w| log_mean_exp(w)).sum::<f64>();
        mu.extend(z_mean);
        seen = mu.len() / latent;
        done(seen);
        Ok(())
    })?;
    let kl: f64 = kl_dims.iter().sum();
    if let Some((name, _)) = [("recon", recon), ("kl", kl), ("mse", squares)].iter().find(|(_, v)| !v.is_finite()) {
        return Err(Error::NonFiniteOutput { what: (*name).to_owned() });
    }
    let (images, dims) = (seen as f64, dims as f64);
    let [recon_nats, kl_nats, nats] = [recon, kl, bound].map(|sum| sum / images);
    let mse = squares / (images * dims);
    Ok(Evaluation {
        images: seen,
        total: (recon_nats + kl_nats) / dims,
        recon: recon_nats / dims,
        kl: kl_nats / dims,
        bits_per_dim: bits_per_dim((recon_nats + kl_nats) / dims),
        total_nats: recon_nats + kl_nats,
        recon_nats,
        kl_nats,
        mse,
        psnr: psnr(mse),
        ssim: similarity / images,
        active_units: active_units(&mu, latent),
        kl_dims: kl_dims.iter().map(|sum| sum / images).collect(),
        variance,
        latent_dim: latent,
        iwae: (options.iwae > 0).then_some(Bound { samples: options.iwae, nats, nats_per_dim: nats / dims }),
    })
}

/// Returns the KL divergence of each latent dimension of an image in nats: 0.5 * (mu^2 + exp(2 log_std) - 1 - 2 log_std). `h` holds mu, then
/// log_std.
pub fn divergences(h: &[f32]) -> impl Iterator<Item = f64> {
    let (mu, log_std) = h.split_at(h.len() / 2);
    let term = |(m, s): (&f32, &f32)| {
        let (m, s) = (f64::from(*m), f64::from(*s));
        0.5 * (m * m + (2.0 * s).exp_m1() - 2.0 * s)
    };
    mu.iter().zip(log_std).map(term)
}

/// log p(z) - log q(z|x), where z = mu + exp(log_std) * eps: the constants cancel.
fn log_prior_over_posterior(h: &[f32], z: &[f32], eps: &[f32]) -> f64 {
    let squares = |v: &[f32]| v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    0.5 * (squares(eps) - squares(z)) + h[h.len() / 2..].iter().map(|s| f64::from(*s)).sum::<f64>()
}

/// Returns the sum of the squared errors of each image.
fn squared_errors(pixels: &[u8], means: &[f32], dims: usize) -> Vec<f64> {
    let error = |(x, m): (&u8, &f32)| (scaled(*x) - f64::from(*m)).powi(2);
    let image = |(x, m): (&[u8], &[f32])| x.iter().zip(m).map(error).sum();
    pixels.chunks_exact(dims).zip(means.chunks_exact(dims)).map(image).collect()
}

/// Returns the structural similarity of each image.
fn similarities(ssim: &Ssim, pixels: &[u8], means: &[f32], dims: usize) -> Result<Vec<f64>> {
    let images: Vec<_> = pixels.chunks_exact(dims).zip(means.chunks_exact(dims)).collect();
    threads::map(&images, |(pixels, means)| {
        let original: Vec<f64> = pixels.iter().map(|byte| scaled(*byte)).collect();
        let decoded: Vec<f64> = means.iter().map(|value| f64::from(*value)).collect();
        Ok(ssim.of(&original, &decoded))
    })
}

/// log (1/K sum exp(w)) without overflow.
fn log_mean_exp(weights: &[f64]) -> f64 {
    let most = weights.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    most + (weights.iter().map(|w| (w - most).exp()).sum::<f64>() / weights.len() as f64).ln()
}

/// Counts the latent dimensions whose posterior means `mu` (`[n, latent]`) have a variance above the threshold.
pub(crate) fn active_units(mu: &[f32], latent: usize) -> usize {
    let variance = |j: usize| {
        let column = || mu.iter().skip(j).step_by(latent).map(|v| f64::from(*v));
        let count = (mu.len() / latent) as f64;
        let mean = column().sum::<f64>() / count;
        column().map(|v| (v - mean).powi(2)).sum::<f64>() / count
    };
    (0..latent).filter(|&j| variance(j) > ACTIVE_VARIANCE).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::inference::draw;

    #[test]
    fn dimensions_with_most_of_the_divergence_are_counted() {
        // 10 nats: 9 of them in the first two.
        let kl = [0.0, 6.0, 0.5, 3.0, 0.5];
        let counts = [0.0, 0.5, 0.6, 0.61, 0.9, 0.91, 1.0].map(|share| dims_with_share(&kl, share));
        assert_eq!(counts, [0, 1, 1, 2, 2, 3, 4]);
        assert_eq!(dims_with_share(&[0.0; 3], 0.9), 0);
    }

    #[test]
    fn log_mean_exp_does_not_overflow() {
        assert!((log_mean_exp(&[-5000.0, -5000.0]) + 5000.0).abs() < 1e-12);
        assert!((log_mean_exp(&[1000.0, f64::NEG_INFINITY]) - (1000.0 - 2.0f64.ln())).abs() < 1e-12);
        assert!((log_mean_exp(&[1.0f64.ln(), 3.0f64.ln()]) - 2.0f64.ln()).abs() < 1e-15);
    }

    #[test]
    fn divergence_of_the_prior_is_zero() {
        let (h, eps) = ([0.0f32; 6], [0.3f32, -1.0, 2.0]);
        let z = draw(&h, &eps);
        assert_eq!(z, eps);
        assert_eq!((divergences(&h).sum::<f64>(), log_prior_over_posterior(&h, &z, &eps)), (0.0, 0.0));
    }

    #[test]
    fn mean_log_ratio_is_the_divergence() {
        let h = [0.5f32, -1.0, -0.3, 0.2];
        let mut noise = rng::stream(0, Stream::Check, 0);
        let draws = 200_000;
        let sum: f64 = (0..draws)
            .map(|_| {
                let eps = rng::normals(&mut noise, 2);
                -log_prior_over_posterior(&h, &draw(&h, &eps), &eps)
            })
            .sum();
        let (mean, divergence) = (sum / f64::from(draws), divergences(&h).sum::<f64>());
        assert!((mean - divergence).abs() < 0.01, "{mean} {divergence}");
    }

    #[test]
    fn advice_names_idle_dimensions_and_the_baseline() {
        let idle = [vec![0.05; 12], vec![3.0; 4]].concat();
        let text = advice(&idle, Likelihood::Unit, 0.08, Some(0.07));
        assert!(text[0].starts_with("12 of 16 latent dimensions carry less than 0.1 nat"), "{text:?}");
        assert!(text[1].contains("PCA with 16 components"), "{text:?}");
        assert!(advice(&[3.0; 16], Likelihood::Unit, 0.06, Some(0.07)).is_empty());
        assert!(!advice(&idle, Likelihood::Optimal, 0.06, None)[0].contains("--likelihood"));
    }

    #[test]
    fn code_lengths_of_known_distributions() {
        // A uniform distribution over the 256 levels, which are spread over 256/127.5.
        assert!((bits_per_dim((256.0f64 / 127.5).ln()) - 8.0).abs() < 1e-12);
        // The README's figure for the unit likelihood.
        assert!((bits_per_dim(0.9683) - 8.391).abs() < 1e-3);
    }

    #[test]
    fn units_with_varying_means_are_active() {
        let mu: Vec<f32> = (0..100).flat_map(|i| [i as f32, 5.0, if i % 2 == 0 { 0.09 } else { -0.09 }]).collect();
        assert_eq!(active_units(&mu, 3), 1);
    }
}
