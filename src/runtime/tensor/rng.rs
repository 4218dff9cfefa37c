//! Random numbers: a seekable ChaCha8 stream for each use.
//!
//! A stream depends only on the seed and an index such as the number of the step. A run can therefore be resumed at any step, and
//! draws the same numbers on every device.

use std::convert::Infallible;

use rand::{Rng as _, SeedableRng as _, TryRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::error::{Error, Result};

/// The use of random numbers. Each has an independent stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stream {
    /// Initial weights; one sub-stream for each tensor.
    Init,
    /// The order of the training images in an epoch.
    Shuffle,
    /// The noise `eps` of the reparameterization.
    Noise,
    /// Checks and benchmarks.
    Check,
    /// Random flips and crops of training images; one sub-stream for each epoch.
    Augment,
    /// The built-in data set of shapes; one sub-stream for each image.
    Shapes,
    /// Latent vectors drawn with a trained model: samples of the prior, or draw k of each posterior from sub-stream k.
    Sample,
    /// Fitting a prior, and the choice of its components.
    Prior,
    /// Random places and directions in measures of image quality.
    Metric,
}

/// A generator of random numbers, from [`stream`].
///
/// ```
/// use vae_wgpu::runtime::tensor::rng::{Stream, normals, stream};
///
/// let noise = normals(&mut stream(7, Stream::Noise, 3), 100);
/// assert_eq!(noise, normals(&mut stream(7, Stream::Noise, 3), 100));
/// assert_ne!(noise, normals(&mut stream(7, Stream::Noise, 4), 100));
/// ```
#[derive(Clone, Debug)]
pub struct StreamRng(ChaCha8Rng);

impl StreamRng {
    /// Moves to a position in the stream, in 32-bit words.
    pub fn set_word_pos(&mut self, word: u128) {
        self.0.set_word_pos(word);
    }
}

impl TryRng for StreamRng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(dst)
    }
}

/// Returns the generator for a use, at sub-stream `index` (a step, an epoch, the number of a tensor). Equal arguments give equal
/// numbers.
#[must_use]
pub fn stream(seed: u64, stream: Stream, index: u64) -> StreamRng {
    let id = match stream {
        Stream::Init => 1u64,
        Stream::Shuffle => 2,
        Stream::Noise => 3,
        Stream::Check => 4,
        Stream::Augment => 5,
        Stream::Shapes => 6,
        Stream::Sample => 7,
        Stream::Metric => 8,
        Stream::Prior => 9,
    };
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&id.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    StreamRng(rng)
}

/// Draws `len` standard normal numbers.
pub fn normals(rng: &mut StreamRng, len: usize) -> Vec<f32> {
    (0..len).map(|_| StandardNormal.sample(rng)).collect()
}

/// Draws `len` numbers uniform in `[-bound, bound)`.
///
/// # Errors
/// [`Error::Bug`] for a bound that is not positive and finite.
pub fn uniforms(rng: &mut StreamRng, len: usize, bound: f32) -> Result<Vec<f32>> {
    let range = Uniform::new(-bound, bound).map_err(|e| Error::bug(format!("uniform bound {bound}: {e}")))?;
    Ok((0..len).map(|_| range.sample(rng)).collect())
}

/// Draws an integer uniform in `[0, bound)`; 0 for a bound of 0.
///
/// Implemented here (Lemire's method), so that the meaning of a seed does not depend on the version of a library.
pub fn below(rng: &mut StreamRng, bound: u32) -> u32 {
    let reject = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= reject {
            return (product >> 32) as u32;
        }
    }
}

/// Draws a number uniform in `[0, 1)`, a multiple of 2^-24.
pub fn unit(rng: &mut StreamRng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_reproducible_and_independent() {
        let draw = |seed, name, index| normals(&mut stream(seed, name, index), 8);
        assert_eq!(draw(1, Stream::Noise, 5), draw(1, Stream::Noise, 5));
        for other in [draw(2, Stream::Noise, 5), draw(1, Stream::Init, 5), draw(1, Stream::Noise, 6)] {
            assert_ne!(draw(1, Stream::Noise, 5), other);
        }
    }

    #[test]
    fn bounded_integers_are_uniform_and_in_range() {
        let mut rng = stream(7, Stream::Check, 0);
        let mut counts = [0u32; 6];
        for _ in 0..60_000 {
            counts[below(&mut rng, 6) as usize] += 1;
        }
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!((below(&mut rng, 0), below(&mut rng, 1)), (0, 0));
        assert!((0..1000).map(|_| unit(&mut rng)).all(|u| (0.0..1.0).contains(&u)));
    }
}
