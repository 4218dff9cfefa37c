//! Staging: which textures the kernels of a list of dispatches read, and what has to be copied there before each.
//!
//! A tensor lives in a buffer. A kernel with an [`Access::Texture`] binding reads a copy of it, made by the driver (`copy_buffer_to_texture`
//! runs at memory speed) into one of a few textures. A copy stays good until the buffer is written or the texture is needed
//! for something else, so the kernels of a node, and often those of its neighbours, share one.

use super::kernel::{Access, Kernel};

/// A range of a buffer, whatever identifies the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<B> {
    /// Which buffer.
    pub buffer: B,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl<B: PartialEq> Range<B> {
    fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// What one dispatch needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// For each binding, the texture that it reads.
    pub textures: Vec<Option<usize>>,
    /// Bindings whose tensor has to be copied into its texture first.
    pub copies: Vec<usize>,
}

/// What a list of dispatches needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Staging {
    /// Bytes of each texture.
    pub textures: Vec<u64>,
    /// One for each dispatch.
    pub steps: Vec<Staged>,
}

/// Tensors below this size share small textures, so that statistics and weights do not drive activations out of large ones.
const SMALL: u64 = 1 << 20;
/// Most textures of each kind. No kernel reads more than four.
const SLOTS: usize = 6;

struct Slot<B> {
    bytes: u64,
    small: bool,
    holds: Option<Range<B>>,
    used: usize,
}

/// Plans the staging of dispatches, given as each one's kernel and the ranges that its bindings are bound to.
///
/// The texture used longest ago is the one to be written over.
pub fn stage<'a, B: Copy + PartialEq + 'a>(steps: impl Iterator<Item = (&'a Kernel, Vec<Range<B>>)>) -> Staging {
    let mut slots: Vec<Slot<B>> = Vec::new();
    let mut staging = Staging::default();
    for (now, (kernel, ranges)) in (1..).zip(steps) {
        let mut staged = Staged::default();
        for (binding, ((_, access), range)) in kernel.bindings.iter().zip(&ranges).enumerate() {
            let slot = (*access == Access::Texture).then(|| {
                let resident = slots.iter().position(|slot| slot.holds == Some(*range));
                resident.unwrap_or_else(|| {
                    staged.copies.push(binding);
                    place(&mut slots, *range, now)
                })
            });
            if let Some(slot) = slot.and_then(|slot| slots.get_mut(slot)) {
                slot.used = now;
            }
            staged.textures.push(slot);
        }
        for ((_, access), range) in kernel.bindings.iter().zip(&ranges) {
            if *access == Access::ReadWrite {
                for slot in slots.iter_mut().filter(|slot| slot.holds.is_some_and(|held| held.overlaps(range))) {
                    slot.holds = None;
                }
            }
        }
        staging.steps.push(staged);
    }
    staging.textures = slots.iter().map(|slot| slot.bytes).collect();
    staging
}

/// Finds a texture for `range`: an empty or the stalest one of its kind, or a new one while there are few.
fn place<B: Copy + PartialEq>(slots: &mut Vec<Slot<B>>, range: Range<B>, now: usize) -> usize {
    let small = range.bytes < SMALL;
    let of_kind = || slots.iter().enumerate().filter(|(_, slot)| slot.small == small && slot.used < now);
    let empty = of_kind().filter(|(_, slot)| slot.holds.is_none()).min_by_key(|(_, slot)| slot.bytes < range.bytes);
    let stalest = || of_kind().min_by_key(|(_, slot)| slot.used);
    let few = slots.iter().filter(|slot| slot.small == small).count() < SLOTS;
    let found = match empty {
        None if !few => stalest(),
        found => found,
    };
    let at = match found {
        Some((at, _)) => at,
        None => {
            slots.push(Slot { bytes: 0, small, holds: None, used: now });
            slots.len() - 1
        }
    };
    if let Some(slot) = slots.get_mut(at) {
        slot.bytes = slot.bytes.max(range.bytes);
        slot.holds = Some(range);
        slot.used = now;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    static KERNEL: Kernel = Kernel {
        name: "test",
        variant: "test",
        file: "test.wgsl",
        source: "",
        entry: "main",
        defines: &[],
        flags: &[],
        bindings: &[("a", Access::Texture), ("b", Access::Texture), ("c", Access::ReadWrite)],
        params: &[],
        overrides: &[],
        workgroup: [1, 1, 1],
        subgroups: false,
    };

    #[test]
    fn a_copy_serves_until_its_buffer_is_written() {
        let range = |buffer: u32| Range { buffer, offset: 0, bytes: 2 * SMALL };
        let step = |a, b, c| (&KERNEL, vec![range(a), range(b), range(c)]);
        let staging = stage([step(1, 2, 3), step(1, 2, 4), step(1, 3, 2), step(1, 2, 5)].into_iter());
        let copies: Vec<_> = staging.steps.iter().map(|s| s.copies.clone()).collect();
        // The third writes what the fourth reads.
        assert_eq!(copies, [vec![0, 1], vec![], vec![1], vec![1]]);
        for step in &staging.steps {
            assert!(step.textures[0].is_some() && step.textures[0] != step.textures[1] && step.textures[2].is_none());
        }
    }

    #[test]
    fn textures_are_few_and_large_enough() {
        let range = |buffer: u64| Range { buffer, offset: 0, bytes: 1024 * (buffer % 3000 + 1) };
        let steps: Vec<_> = (0..500).map(|i| (&KERNEL, vec![range(7 * i), range(7 * i + 1), range(9000)])).collect();
        let staging = stage(steps.iter().map(|(kernel, ranges)| (*kernel, ranges.clone())));
        assert!(staging.textures.len() <= 2 * SLOTS);
        for (staged, (_, ranges)) in staging.steps.iter().zip(&steps) {
            for (slot, range) in staged.textures.iter().zip(ranges) {
                assert!(slot.is_none_or(|slot| staging.textures[slot] >= range.bytes));
            }
        }
    }
}
