//! Random flips and crops of training images.

use rand::Rng;

use super::image_bytes;
use crate::error::{Error, Result};
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

/// Largest shift of a crop, in pixels.
const REACH: u32 = 4;
/// Random words per image.
const WORDS: u128 = 16;

/// Random augmentation of training images. It depends on seed, epoch and the index of an image alone, not on the batch size or on
/// resuming.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Augment {
    /// Flip every other image horizontally.
    pub flip: bool,
    /// Shift the image by up to 4 pixels in each direction. Pixels beyond the border are reflected, not black: a generative model would
    /// learn black bars.
    pub crop: bool,
}

impl Augment {
    /// Augments a batch in place. `pixels` contains the images with these indices, `[indices.len(), c, h, w]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of bytes.
    pub fn apply(
        self,
        seed: u64,
        epoch: u64,
        indices: &[u32],
        size: (usize, usize, usize),
        pixels: &mut [u8],
    ) -> Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        let bytes = image_bytes(size)?;
        if indices.len().checked_mul(bytes) != Some(pixels.len()) {
            return Err(Error::argument(
                "number of pixel bytes",
                format!("{bytes} for each of {} images", indices.len()),
                pixels.len(),
            ));
        }
        let (_, h, w) = size;
        let mut rng = rng::stream(seed, Stream::Augment, epoch);
        let mut before = vec![0u8; h * w];
        for (image, &index) in pixels.chunks_exact_mut(bytes).zip(indices) {
            // Always draw three values, so that one option does not change the choices of the other.
            rng.set_word_pos(u128::from(index) * WORDS);
            let mirrored = rng.next_u32() & 1 == 1;
            let mut shift = || rng::below(&mut rng, 2 * REACH + 1) as isize - REACH as isize;
            let (dy, dx) = (shift(), shift());
            let flip = self.flip && mirrored;
            let (dy, dx) = if self.crop { (dy, dx) } else { (0, 0) };
            for plane in image.chunks_exact_mut(h * w) {
                before.copy_from_slice(plane);
                for (y, row) in plane.chunks_exact_mut(w).enumerate() {
                    let from = &before[reflect(y as isize + dy, h) * w..][..w];
                    for (x, pixel) in row.iter_mut().enumerate() {
                        let x = reflect(x as isize + dx, w);
                        *pixel = from[if flip { w - 1 - x } else { x }];
                    }
                }
            }
        }
        Ok(())
    }
}

/// Reflects a coordinate at the borders of `0..len` (`len > 0`), without repeating the border pixels.
fn reflect(at: isize, len: usize) -> usize {
    let period = (2 * (len as isize - 1)).max(1);
    let at = at.rem_euclid(period) as usize;
    at.min(period as usize - at).min(len - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: (usize, usize, usize) = (2, 8, 6);

    fn run(augment: Augment, epoch: u64, indices: &[u32]) -> Vec<u8> {
        let one: Vec<u8> = (0..96).collect();
        let mut pixels = one.repeat(indices.len());
        augment.apply(5, epoch, indices, SIZE, &mut pixels).unwrap();
        pixels
    }

    #[test]
    fn reflected_coordinates_are_inside() {
        let at = |range: std::ops::Range<isize>, len| range.map(|i| reflect(i, len)).collect::<Vec<_>>();
        assert_eq!(at(-4..8, 4), [2, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0, 1]);
        assert_eq!(at(-3..3, 1), [0; 6]);
        assert_eq!(at(-3..3, 2), [1, 0, 1, 0, 1, 0]);
    }

    #[test]
    fn disabled_augmentation_changes_nothing() {
        assert_eq!(run(Augment::default(), 0, &[1]), (0..96).collect::<Vec<u8>>());
    }

    #[test]
    fn about_half_of_the_images_are_flipped() {
        let indices: Vec<u32> = (0..400).collect();
        let plain: Vec<u8> = (0..96).collect();
        let mirror: Vec<u8> = plain.chunks(6).flat_map(|row| row.iter().rev().copied()).collect();
        let pixels = run(Augment { flip: true, crop: false }, 0, &indices);
        let flipped = pixels.chunks(96).filter(|p| *p == mirror).count();
        assert!(pixels.chunks(96).all(|p| p == plain || p == mirror));
        assert!((150..250).contains(&flipped), "{flipped}");
    }

    #[test]
    fn crops_reach_every_shift_and_shift_planes_alike() {
        let indices: Vec<u32> = (0..2000).collect();
        let pixels = run(Augment { flip: false, crop: true }, 0, &indices);
        let mut seen = std::collections::BTreeSet::new();
        for image in pixels.chunks(96) {
            let (a, b) = image.split_at(48);
            assert!(a.iter().zip(b).all(|(a, b)| a + 48 == *b));
            seen.insert(a.to_vec());
        }
        assert_eq!(seen.len(), 81);
    }

    #[test]
    fn augmentation_depends_on_the_epoch_but_not_on_the_batch() {
        let both = Augment { flip: true, crop: true };
        let together = run(both, 3, &[7, 8, 9, 10]);
        let apart: Vec<u8> = [7, 8, 9, 10].iter().flat_map(|&i| run(both, 3, &[i])).collect();
        assert_eq!(together, apart);
        assert_ne!(together, run(both, 4, &[7, 8, 9, 10]));
        assert!(both.apply(0, 0, &[1], SIZE, &mut [0; 95]).is_err());
    }
}
