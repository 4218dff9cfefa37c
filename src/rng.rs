//! Random numbers: one seekable ChaCha8 stream for each purpose, positioned by seed and step alone, so that a run can be
//! resumed at any step and draws the same numbers on every device.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};

use crate::error::{Error, Result};

/// What random numbers are drawn for; each purpose has a stream of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Purpose {
    /// Initial weights, one sub-stream a tensor.
    Init,
    /// The order of the training images in an epoch.
    Shuffle,
    /// The noise `eps` of the reparameterization.
    Noise,
    /// Checks and benches.
    Check,
}

/// A generator for `purpose`, placed at `index` (a step, an epoch, a tensor's number). Equal arguments give equal numbers.
#[must_use]
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> ChaCha8Rng {
    let purpose_id = match purpose {
        Purpose::Init => 1u64,
        Purpose::Shuffle => 2,
        Purpose::Noise => 3,
        Purpose::Check => 4,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_are_repeatable_and_apart() {
        let draw = |seed, purpose, index| normals(&mut stream(seed, purpose, index), 8);
        assert_eq!(draw(1, Purpose::Noise, 5), draw(1, Purpose::Noise, 5));
        for other in [draw(2, Purpose::Noise, 5), draw(1, Purpose::Init, 5), draw(1, Purpose::Noise, 6)] {
            assert_ne!(draw(1, Purpose::Noise, 5), other);
        }
    }
}
