//! Gradient accumulation: the sum over the micro-batches of a training step.
//!
//! A micro-batch is what one forward and backward pass takes. Micro-batch m of a step has n(m) of its n images and contributes
//! `w(m) g(m)`: g(m) is the gradient of its loss, a mean over its images, and `w(m) = n(m) / n`. The contributions of micro-batches
//! `first` to `first + count - 1` are added in a binary tree:
//!
//! ```text
//! S(first, 1)     = w(first) g(first)
//! S(first, count) = S(first, p) + S(first + p, count - p)         p: the largest power of two below count
//! ```
//!
//! w(m), each product and each sum is rounded to single precision. The gradient of the step is S(0, K) for K micro-batches. Its loss
//! terms are added in the same way.
//!
//! A block of 2^l micro-batches that starts at a multiple of 2^l is a subtree, whatever K is. Processes that have 2^l consecutive
//! micro-batches each, the last one perhaps fewer, may therefore add theirs first. The same tree over their sums gives S(0, K), bit for
//! bit. No tree has this property for blocks of every length: those of 2 and of 3 overlap.
//!
//! The tree is walked like a binary counter: after micro-batch m, level l holds the sum of a finished block of 2^l micro-batches if
//! bit l of m + 1 is set.

use std::cmp::Ordering;

use crate::error::{Error, Result};

/// Largest number of micro-batches of a step.
pub const MAX_MICRO_BATCHES: usize = 1 << MAX_LEVELS;

/// Levels of the tree for that many.
pub(crate) const MAX_LEVELS: usize = 10;

/// What becomes of the sum after a micro-batch, at one level of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carry {
    /// The level stays as it is.
    Keep,
    /// The level holds the block before this one, which is added to the sum.
    Add,
    /// The sum is that of a block of the level, which keeps it.
    Store,
}

impl Carry {
    /// Value in the operand `micro_batch`.
    #[must_use]
    pub const fn code(self) -> f32 {
        match self {
            Self::Keep => 0.0,
            Self::Add => 1.0,
            Self::Store => 2.0,
        }
    }
}

/// A micro-batch of a step. Its [values](MicroBatch::to_array) are the operand `micro_batch` of [`Scale`](crate::runtime::op::Scale) and
/// [`Accumulate`](crate::runtime::op::Accumulate), which the host writes before each run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MicroBatch {
    /// Number of the micro-batch in its step, from 0.
    pub index: usize,
    /// Number of micro-batches of the step.
    pub count: usize,
    /// Number of its images.
    pub images: usize,
    /// Number of images of the step.
    pub of: usize,
}

impl MicroBatch {
    /// Length of the operand: the share of the images, and a [`Carry`] for each level.
    pub const LEN: usize = 1 + MAX_LEVELS;

    /// Checks the order and the ranges.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names the field.
    pub fn check(&self) -> Result<()> {
        if !(1..=MAX_MICRO_BATCHES).contains(&self.count) {
            return Err(Error::argument("number of micro-batches", format!("1 to {MAX_MICRO_BATCHES}"), self.count));
        }
        if self.index >= self.count {
            return Err(Error::argument("index of a micro-batch", format!("less than {}", self.count), self.index));
        }
        if !(1..=self.of).contains(&self.images) {
            return Err(Error::argument("images of a micro-batch", format!("1 to {}", self.of), self.images));
        }
        Ok(())
    }

    /// Returns the number of levels that the tree over `count` micro-batches needs.
    #[must_use]
    pub const fn levels(count: usize) -> usize {
        (usize::BITS - count.saturating_sub(1).leading_zeros()) as usize
    }

    /// Returns what becomes of the sum at a level. Levels come in ascending order.
    #[must_use]
    pub fn carry(&self, level: usize) -> Carry {
        let holds_a_block = self.index >> level & 1 == 1;
        let full = self.index.trailing_ones() as usize;
        if self.index + 1 == self.count {
            // At the end everything is added, also what is left of an incomplete tree.
            return if holds_a_block { Carry::Add } else { Carry::Keep };
        }
        match level.cmp(&full) {
            Ordering::Less => Carry::Add,
            Ordering::Equal => Carry::Store,
            Ordering::Greater => Carry::Keep,
        }
    }

    /// Returns the values of the operand: the share of the images, then the carry of each level.
    #[must_use]
    pub fn to_array(&self) -> [f32; Self::LEN] {
        let mut values = [(self.images as f64 / self.of as f64) as f32; Self::LEN];
        for (level, value) in values.iter_mut().skip(1).enumerate() {
            *value = self.carry(level).code();
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of micro-batches as text, with parentheses.
    fn walked(first: usize, count: usize, index_of: impl Fn(usize) -> String) -> String {
        let mut levels = vec![String::new(); MicroBatch::levels(count)];
        let mut sum = String::new();
        for index in 0..count {
            sum = index_of(first + index);
            let micro_batch = MicroBatch { index, count, images: 1, of: count };
            for (level, held) in levels.iter_mut().enumerate() {
                match micro_batch.carry(level) {
                    Carry::Keep => {}
                    Carry::Add => sum = format!("({held}+{sum})"),
                    Carry::Store => held.clone_from(&sum),
                }
            }
        }
        sum
    }

    /// The definition in the documentation of the module.
    fn defined(first: usize, count: usize) -> String {
        if count == 1 {
            return first.to_string();
        }
        let p = count.next_power_of_two() / 2;
        format!("({}+{})", defined(first, p), defined(first + p, count - p))
    }

    #[test]
    fn the_walk_gives_the_tree_of_the_definition() {
        for count in 1..=70 {
            assert_eq!(walked(0, count, |index| index.to_string()), defined(0, count));
        }
        assert_eq!(defined(0, 6), "(((0+1)+(2+3))+(4+5))");
        let all =
            MicroBatch { index: MAX_MICRO_BATCHES - 1, count: MAX_MICRO_BATCHES, images: 1, of: MAX_MICRO_BATCHES };
        assert_eq!(MicroBatch::levels(MAX_MICRO_BATCHES), MAX_LEVELS);
        assert!(all.to_array().iter().skip(1).all(|carry| *carry == Carry::Add.code()));
    }

    /// Each process adds its own micro-batches; the same walk adds the sums of the processes.
    #[test]
    fn shares_of_a_power_of_two_give_the_same_tree() {
        for share in [1, 2, 4, 8] {
            for count in 1..=40 {
                let sum_of = |process: usize| {
                    let first = process * share;
                    walked(first, share.min(count - first), |index| index.to_string())
                };
                assert_eq!(walked(0, count.div_ceil(share), sum_of), defined(0, count), "{count} in {share}");
            }
        }
        let three = walked(0, 2, |process| walked(3 * process, 3, |index| index.to_string()));
        assert_ne!(three, defined(0, 6));
    }

    #[test]
    fn shares_of_the_images_are_written_first() {
        let [share, carries @ ..] = MicroBatch { index: 1, count: 3, images: 3, of: 7 }.to_array();
        assert_eq!(share, 3.0f32 / 7.0);
        assert_eq!(carries[..3], [Carry::Add, Carry::Store, Carry::Keep].map(Carry::code));
    }

    #[test]
    fn micro_batches_outside_the_step_are_rejected() {
        let good = MicroBatch { index: 1, count: 2, images: 3, of: 6 };
        assert!(good.check().is_ok());
        for bad in [
            MicroBatch { index: 2, ..good },
            MicroBatch { count: 0, ..good },
            MicroBatch { count: MAX_MICRO_BATCHES + 1, ..good },
            MicroBatch { images: 0, ..good },
            MicroBatch { images: 7, ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
