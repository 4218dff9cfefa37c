//! Random numbers: one seekable ChaCha8 stream for each purpose, positioned by seed and step alone, so that a run can be
//! resumed at any step and draws the same numbers on every device.

use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::error::{Error, Result};

/// What random numbers are drawn for; each purpose has a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stream {
    /// Initial weights, one sub-stream a tensor.
    Init,
    /// The order of the training images in an epoch.
    Shuffle,
    /// The noise `eps` of the reparameterization.
    Noise,
    /// Checks and benches.
    Check,
    /// Random flips and crops of training images, one sub-stream an epoch.
    Augment,
    /// The built-in pictures, one sub-stream a picture.
    Shapes,
    /// Latent numbers drawn with a trained model: from the prior, or draw k of every picture's posterior from sub-stream k.
    Sample,
}

/// A generator for `purpose`, placed at `index` (a step, an epoch, a tensor's number). Equal arguments give equal numbers.
#[must_use]
pub fn stream(seed: u64, purpose: Stream, index: u64) -> ChaCha8Rng {
    let purpose_id = match purpose {
        Stream::Init => 1u64,
        Stream::Shuffle => 2,
        Stream::Noise => 3,
        Stream::Check => 4,
        Stream::Augment => 5,
        Stream::Shapes => 6,
        Stream::Sample => 7,
    };
    let mut key = [0u8; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&purpose_id.to_le_bytes());
    let mut rng = ChaCha8Rng::from_seed(key);
    rng.set_stream(index);
    rng
}

/// `len` standard normal numbers.
pub fn normals(rng: &mut ChaCha8Rng, len: usize) -> Vec<f32> {
    (0..len).map(|_| StandardNormal.sample(rng)).collect()
}

/// `len` numbers uniform in `[-bound, bound)`.
pub fn uniforms(rng: &mut ChaCha8Rng, len: usize, bound: f32) -> Result<Vec<f32>> {
    let range = Uniform::new(-bound, bound).map_err(|e| Error::bug(format!("uniform bound {bound}: {e}")))?;
    Ok((0..len).map(|_| range.sample(rng)).collect())
}

/// A whole number uniform in `[0, bound)`; 0 for a bound of 0. Written out here (Lemire's method) so that no change of a
/// library changes what a seed means.
pub fn below(rng: &mut ChaCha8Rng, bound: u32) -> u32 {
    let reject = bound.wrapping_neg().checked_rem(bound).unwrap_or(0);
    loop {
        let product = u64::from(rng.next_u32()) * u64::from(bound);
        if product as u32 >= reject {
            return (product >> 32) as u32;
        }
    }
}

/// A number uniform in `[0, 1)`, a multiple of 2^-24.
pub fn unit(rng: &mut ChaCha8Rng) -> f32 {
    (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_apart() {
        let draw = |seed, purpose, index| normals(&mut stream(seed, purpose, index), 8);
        assert_eq!(draw(1, Stream::Noise, 5), draw(1, Stream::Noise, 5));
        for other in [draw(2, Stream::Noise, 5), draw(1, Stream::Init, 5), draw(1, Stream::Noise, 6)] {
            assert_ne!(draw(1, Stream::Noise, 5), other);
        }
    }

    #[test]
    fn numbers_below_a_bound_are_even_and_complete() {
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
