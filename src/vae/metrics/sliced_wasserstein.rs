//! Sliced Wasserstein distance between two sets of images on the levels of their Laplacian pyramids (Karras et al.,
//! arXiv:1710.10196, section 5).
//!
//! Each level holds one scale of structure. Patches of 7x7 pixels from random places, normalized to mean 0 and standard deviation 1 per
//! channel, are projected onto random directions. In one dimension the Wasserstein distance is the mean difference of the sorted
//! values. Places and directions are fixed, so that distances can be compared.

use crate::error::{Error, Result};
use crate::runtime::sys::threads;
use crate::runtime::tensor::rng::{self, Stream, StreamRng};

/// Width of a patch in pixels.
const PATCH: usize = 7;
/// Patches of an image on each level.
const PATCHES: usize = 64;
/// Number of directions.
const DIRECTIONS: usize = 128;
/// Directions that are projected onto in one pass over the patches, which do not fit into a cache.
const LANES: usize = 16;
/// Smallest size of a level in pixels.
const SMALLEST: usize = 8;

/// Patches of a set of images on every level, from which distances to other sets are computed.
#[derive(Clone, Debug)]
pub struct SlicedWasserstein {
    /// Number of images.
    images: usize,
    levels: Vec<Level>,
}

/// Sorted projections of all patches of a level.
#[derive(Clone, Debug)]
struct Level {
    size: usize,
    /// One list for each direction.
    projections: Vec<Vec<f32>>,
}

impl SlicedWasserstein {
    /// Prepares `images`, `[n, c, size, size]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `images` is empty or not a multiple of the size of an image, or if `size` is below 8.
    pub fn new(images: &[f32], channels: usize, size: usize) -> Result<Self> {
        let each = channels * size * size;
        if size < SMALLEST {
            return Err(Error::argument("size of images for the sliced Wasserstein distance", "at least 8", size));
        }
        if images.is_empty() || !images.len().is_multiple_of(each) {
            return Err(Error::argument("number of values of images", format!("a multiple of {each}"), images.len()));
        }
        let mut planes: Vec<Vec<f32>> = images.chunks_exact(size * size).map(<[f32]>::to_vec).collect();
        let mut levels = Vec::new();
        let mut side = size;
        loop {
            let last = side / 2 < SMALLEST || !side.is_multiple_of(2);
            let smaller: Vec<Vec<f32>> = planes.iter().map(|plane| halved(plane, side)).collect();
            if !last {
                for (plane, smaller) in planes.iter_mut().zip(&smaller) {
                    for (value, coarse) in plane.iter_mut().zip(doubled(smaller, side / 2)) {
                        *value -= coarse;
                    }
                }
            }
            levels.push(Level::new(&planes, channels, side)?);
            if last {
                return Ok(Self { images: images.len() / each, levels });
            }
            (planes, side) = (smaller, side / 2);
        }
    }

    /// Returns the distance to another set of as many images: for each level its size in pixels and the distance, in thousandths.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number or size of images.
    pub fn distances(&self, other: &Self) -> Result<Vec<(usize, f64)>> {
        let describe = |set: &Self| format!("{} of {} levels", set.images, set.levels.len());
        if (self.images, self.levels.len()) != (other.images, other.levels.len()) {
            return Err(Error::argument("number of images", describe(self), describe(other)));
        }
        let distance = |(a, b): (&Vec<f32>, &Vec<f32>)| {
            a.iter().zip(b).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>() / a.len() as f64
        };
        let level = |(a, b): (&Level, &Level)| {
            let sum: f64 = a.projections.iter().zip(&b.projections).map(distance).sum();
            (a.size, 1000.0 * sum / DIRECTIONS as f64)
        };
        Ok(self.levels.iter().zip(&other.levels).map(level).collect())
    }

    /// Returns the mean of [`SlicedWasserstein::distances`] over the levels.
    ///
    /// # Errors
    /// As [`SlicedWasserstein::distances`].
    pub fn distance(&self, other: &Self) -> Result<f64> {
        let levels = self.distances(other)?;
        Ok(levels.iter().map(|(_, distance)| distance).sum::<f64>() / levels.len() as f64)
    }
}

impl Level {
    fn new(planes: &[Vec<f32>], channels: usize, side: usize) -> Result<Self> {
        let mut places = rng::stream(0, Stream::Metric, side as u64);
        let per_patch = channels * PATCH * PATCH;
        let mut patches = Vec::with_capacity(planes.len() / channels * PATCHES * per_patch);
        for image in planes.chunks_exact(channels) {
            for _ in 0..PATCHES {
                let [y, x] = [(); 2].map(|()| place(&mut places, side));
                for plane in image {
                    for row in y..y + PATCH {
                        patches.extend_from_slice(&plane[row * side + x..][..PATCH]);
                    }
                }
            }
        }
        normalize(&mut patches, channels);
        let first: Vec<u64> = (0..DIRECTIONS as u64).step_by(LANES).collect();
        let project = |first: &u64| {
            let mut projections = project(&patches, &directions(*first, per_patch));
            projections.iter_mut().for_each(|values| values.sort_unstable_by(f32::total_cmp));
            Ok(projections)
        };
        Ok(Self { size: side, projections: threads::map(&first, project)?.into_iter().flatten().collect() })
    }
}

/// Returns directions `first` to `first + LANES`, each of length 1: for each value of a patch its weights in all of them.
fn directions(first: u64, per_patch: usize) -> Vec<[f32; LANES]> {
    let mut weights = vec![[0.0; LANES]; per_patch];
    for lane in 0..LANES {
        let direction = rng::normals(&mut rng::stream(1, Stream::Metric, first + lane as u64), per_patch);
        let length = direction.iter().map(|v| v * v).sum::<f32>().sqrt();
        for (weights, value) in weights.iter_mut().zip(direction) {
            weights[lane] = value / length;
        }
    }
    weights
}

/// Returns the projections of all patches, one list for each direction.
fn project(patches: &[f32], directions: &[[f32; LANES]]) -> Vec<Vec<f32>> {
    let mut projections = vec![Vec::new(); LANES];
    for patch in patches.chunks_exact(directions.len()) {
        let mut sums = [0.0; LANES];
        for (value, weights) in patch.iter().zip(directions) {
            for lane in 0..LANES {
                sums[lane] += value * weights[lane];
            }
        }
        for (projection, sum) in projections.iter_mut().zip(sums) {
            projection.push(sum);
        }
    }
    projections
}

fn place(rng: &mut StreamRng, side: usize) -> usize {
    rng::below(rng, (side - PATCH + 1) as u32) as usize
}

/// Shifts and scales each channel of all patches to mean 0 and standard deviation 1.
fn normalize(patches: &mut [f32], channels: usize) {
    let area = PATCH * PATCH;
    for channel in 0..channels {
        let values = || patches.chunks_exact(area).skip(channel).step_by(channels).flatten().map(|v| f64::from(*v));
        let count = values().count() as f64;
        let mean = values().sum::<f64>() / count;
        let std = (values().map(|v| (v - mean).powi(2)).sum::<f64>() / count).sqrt();
        let scale = if std > 0.0 { 1.0 / std } else { 0.0 };
        for value in patches.chunks_exact_mut(area).skip(channel).step_by(channels).flatten() {
            *value = ((f64::from(*value) - mean) * scale) as f32;
        }
    }
}

/// The binomial filter of Burt and Adelson's pyramid.
const FILTER: [f32; 5] = [0.0625, 0.25, 0.375, 0.25, 0.0625];

/// Index of pixel `i` of `side` when the image continues as its mirror image.
fn mirrored(i: isize, side: usize) -> usize {
    let last = side as isize - 1;
    let i = i.abs();
    (if i > last { 2 * last - i } else { i }) as usize
}

/// Filters a plane and keeps every second pixel of every second row.
fn halved(plane: &[f32], side: usize) -> Vec<f32> {
    let filtered = filter(plane, side);
    (0..side).step_by(2).flat_map(|y| (0..side).step_by(2).map(move |x| y * side + x)).map(|i| filtered[i]).collect()
}

/// Doubles the size of a plane: pixels alternate with zeros, then the filter spreads them.
fn doubled(plane: &[f32], side: usize) -> Vec<f32> {
    let mut spread = vec![0.0; 4 * side * side];
    for (i, value) in plane.iter().enumerate() {
        spread[i / side * 4 * side + i % side * 2] = 4.0 * value;
    }
    filter(&spread, 2 * side)
}

fn filter(plane: &[f32], side: usize) -> Vec<f32> {
    filter_rows(&filter_rows(plane, side), side)
}

/// Filters the rows of a plane. Returns its transpose, so that a second call filters the columns.
fn filter_rows(plane: &[f32], side: usize) -> Vec<f32> {
    let mut result = vec![0.0; plane.len()];
    for (y, row) in plane.chunks_exact(side).enumerate() {
        for x in 0..side {
            let tap = |(k, weight): (usize, &f32)| weight * row[mirrored(x as isize + k as isize - 2, side)];
            result[x * side + y] = FILTER.iter().enumerate().map(tap).sum();
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u64, count: usize, blur: bool) -> Vec<f32> {
        let values = rng::normals(&mut rng::stream(seed, Stream::Check, 0), count * 3 * 32 * 32);
        if !blur {
            return values;
        }
        values.chunks_exact(32 * 32).flat_map(|plane| filter(plane, 32)).collect()
    }

    #[test]
    fn equal_sets_have_distance_zero_and_blur_is_seen_on_the_finest_level() {
        let set = |seed, blur| SlicedWasserstein::new(&noise(seed, 64, blur), 3, 32).unwrap();
        let (a, other, blurred) = (set(1, false), set(2, false), set(1, true));
        assert_eq!(a.distance(&a).unwrap(), 0.0);
        let floor = a.distances(&other).unwrap();
        assert_eq!(floor.iter().map(|(size, _)| *size).collect::<Vec<_>>(), [32, 16, 8]);
        let seen = a.distances(&blurred).unwrap();
        assert!(seen[0].1 > 2.0 * floor[0].1, "{floor:?} {seen:?}");
        assert_eq!(seen, blurred.distances(&a).unwrap());
    }

    #[test]
    fn a_constant_plane_survives_both_filters() {
        assert!(halved(&[1.0; 256], 16).iter().all(|v| (v - 1.0).abs() < 1e-6));
        assert!(doubled(&[1.0; 64], 8).iter().all(|v| (v - 1.0).abs() < 1e-6));
    }

    #[test]
    fn unfit_sets_are_rejected() {
        assert!(SlicedWasserstein::new(&[0.0; 3 * 16], 3, 4).is_err());
        assert!(SlicedWasserstein::new(&[], 3, 32).is_err());
        assert!(SlicedWasserstein::new(&[0.0; 100], 3, 32).is_err());
        let [a, b] = [1, 2].map(|n| SlicedWasserstein::new(&noise(0, n, false), 3, 32).unwrap());
        assert!(a.distance(&b).is_err());
    }
}
