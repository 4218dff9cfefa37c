//! Batch norms over the images of all ranks.
//!
//! The ranks run their first micro-batches at the same time, then their second ones, and so on. Each batch norm is over all micro-batches that
//! run at a time: a larger batch, of which each rank has a part.

use super::Settings;
use super::shared_step::Share;
use crate::error::{Error, Result};
use crate::runtime::op::Part;
use crate::vae::ranks::Ranks;

/// The micro-batches of a step that run at the same time.
#[derive(Debug)]
pub(super) struct SynchronizedNorms {
    rank: usize,
    /// For each micro-batch of the first rank, the number of images that each rank has at the same time.
    images: Vec<Vec<usize>>,
}

impl SynchronizedNorms {
    /// Those of a step of `of` images.
    pub(super) fn of(ranks: &Ranks, settings: &Settings, of: usize) -> Self {
        let (each, size) = (Share::of(Some(ranks)).micro_batches(settings), settings.batch_size);
        let images = |micro_batch: usize| {
            let first = micro_batch.saturating_mul(size);
            of.min(first.saturating_add(size)) - of.min(first)
        };
        // The first rank has as many as any other.
        let count = of.div_ceil(size).min(each);
        let at = |index| (0..ranks.size()).map(|rank| images(rank * each + index)).collect();
        Self { rank: ranks.rank(), images: (0..count).map(at).collect() }
    }

    /// Returns the number of micro-batches that run one after the other.
    pub(super) fn micro_batches(&self) -> usize {
        self.images.len()
    }

    /// Exchanges what the ranks have computed in their micro-batches of this index.
    pub(super) fn gather(&self, ranks: &mut Ranks, index: usize, own: &[f32]) -> Result<Vec<Part>> {
        let images = self.images.get(index).ok_or_else(|| Error::bug("a micro-batch beyond the step"))?;
        let of_own = images.get(self.rank).copied().unwrap_or_default();
        let received = ranks.gather(bytemuck::cast_slice(own))?;
        let mut parts = Vec::new();
        for (bytes, &images) in received.iter().zip(images).filter(|(_, images)| **images > 0) {
            if bytes.len() != size_of_val(own) {
                return Err(Error::bug(format!("{} bytes for {} values to exchange", bytes.len(), own.len())));
            }
            let weight = images as f64 / of_own as f64;
            parts.push(Part { values: bytemuck::pod_collect_to_vec(bytes), weight });
        }
        Ok(parts)
    }

    /// Returns the statistics of each larger batch, one after the other, from those of each rank. Those of norms are the same on all ranks;
    /// that of the loss is the mean over the images.
    pub(super) fn statistics(&self, received: &[Vec<f32>]) -> Vec<f32> {
        let len = received.first().map_or(0, Vec::len) / self.micro_batches().max(1);
        let mut merged = Vec::with_capacity(len * self.micro_batches());
        for (index, images) in self.images.iter().enumerate() {
            let of: usize = images.iter().sum();
            let value =
                |values: &Vec<f32>, at: usize| f64::from(values.get(index * len + at).copied().unwrap_or(f32::NAN));
            merged.extend((0..len).map(|at| {
                let first = received.first().map_or(f64::NAN, |values| value(values, at));
                let others = received.iter().zip(images).filter(|(_, images)| **images > 0);
                // Exact where all are the same.
                let apart = others.map(|(values, &images)| (images as f64 / of as f64) * (value(values, at) - first));
                (first + apart.sum::<f64>()) as f32
            }));
        }
        merged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::ranks::threads;

    #[test]
    fn micro_batches_that_run_together_make_one_batch() {
        let settings = Settings { batch_size: 2, accumulate: 4, ..Settings::default() };
        let ranks = threads::group(2);
        let images = |of| SynchronizedNorms::of(&ranks[1], &settings, of).images;
        assert_eq!(images(8), [[2, 2], [2, 2]]);
        assert_eq!(images(5), [[2, 1], [2, 0]]);
        assert_eq!(images(1), [[1, 0]]);
    }

    #[test]
    fn statistics_are_means_over_the_images_and_exact_where_ranks_agree() {
        let norms = SynchronizedNorms { rank: 0, images: vec![vec![2, 1], vec![2, 0]] };
        let (first, second) = (vec![0.1, 1.0, 0.3, 5.0], vec![0.1, 4.0]);
        assert_eq!(norms.statistics(&[first, second]), [0.1, 2.0, 0.3, 5.0]);
        assert!(norms.statistics(&[Vec::new(), Vec::new()]).is_empty());
    }
}
