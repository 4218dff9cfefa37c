//! Staging: which textures the kernels of a list of dispatches read, and what has to be copied there before each.
//!
//! A tensor lives in a buffer. A kernel with an [`Access::Texture`] binding reads a copy of it, made by the driver (`copy_buffer_to_texture`
//! runs at memory speed) into one of a few textures. A copy stays good until the buffer is written or the texture is needed
//! for something else, so the kernels of a node, and often those of its neighbours, share one.

use crate::runtime::kernel::{Access, Kernel};

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
}

/// What a dispatch is bound to: its kernel, and a range for each binding.
type Step<'a, B> = (&'a Kernel, Vec<Range<B>>);

/// Plans the staging of dispatches, given as each one's kernel and the ranges that its bindings are bound to. `parts` are their
/// submissions: between two of them another program may write over the textures, so each stages what it reads.
///
/// All of a part is known beforehand, so the texture to be written over is the one whose copy is wanted again last (Belady, IBM
/// Systems Journal 5(2), 1966).
pub fn stage<'a, B: Copy + PartialEq + 'a>(
    steps: impl Iterator<Item = Step<'a, B>>,
    parts: &[std::ops::Range<usize>],
) -> Staging {
    let steps: Vec<_> = steps.collect();
    let mut slots: Vec<Slot<B>> = Vec::new();
    let mut staging = Staging::default();
    for part in parts {
        slots.iter_mut().for_each(|slot| slot.holds = None);
        let mut ahead = steps.get(part.clone()).unwrap_or_default();
        while let [step, rest @ ..] = ahead {
            staging.steps.push(stage_step(&mut slots, step, rest));
            ahead = rest;
        }
    }
    staging.textures = slots.iter().map(|slot| slot.bytes).collect();
    staging
}

/// Finds textures for one dispatch; `rest` are those of its part behind it.
fn stage_step<B: Copy + PartialEq>(slots: &mut Vec<Slot<B>>, step: &Step<'_, B>, rest: &[Step<'_, B>]) -> Staged {
    let mut staged = Staged::default();
    for (binding, ((_, access), range)) in step.0.bindings.iter().zip(&step.1).enumerate() {
        let slot = (*access == Access::Texture).then(|| {
            let resident = slots.iter().position(|slot| slot.holds == Some(*range));
            resident.unwrap_or_else(|| {
                staged.copies.push(binding);
                place(slots, *range, step, rest)
            })
        });
        staged.textures.push(slot);
    }
    for slot in slots {
        if slot.holds.is_some_and(|held| writes(step, &held)) {
            slot.holds = None;
        }
    }
    staged
}

/// Whether a dispatch reads a copy of `range`.
fn reads<B: Copy + PartialEq>((kernel, ranges): &Step<'_, B>, range: &Range<B>) -> bool {
    kernel.bindings.iter().zip(ranges).any(|((_, access), bound)| *access == Access::Texture && bound == range)
}

/// Whether a dispatch makes copies of `range` worthless.
fn writes<B: Copy + PartialEq>((kernel, ranges): &Step<'_, B>, range: &Range<B>) -> bool {
    kernel.bindings.iter().zip(ranges).any(|((_, access), bound)| *access == Access::ReadWrite && bound.overlaps(range))
}

/// How many of `steps` come before the one that reads a copy of `range` next; `usize::MAX` where none does.
fn wanted<B: Copy + PartialEq>(range: &Range<B>, steps: &[Step<'_, B>]) -> usize {
    let next = steps.iter().enumerate().find(|(_, step)| reads(step, range) || writes(step, range));
    next.filter(|(_, step)| reads(step, range)).map_or(usize::MAX, |(at, _)| at)
}

/// Finds a texture for `range`, which `step` reads: one of its kind whose copy nobody wants, a new one while there are few, or the one
/// whose copy is wanted last by the dispatches in `rest`. What `step` itself reads stays.
fn place<B: Copy + PartialEq>(
    slots: &mut Vec<Slot<B>>,
    range: Range<B>,
    step: &Step<'_, B>,
    rest: &[Step<'_, B>],
) -> usize {
    let small = range.bytes < SMALL;
    let mut best = None;
    for (at, slot) in slots.iter().enumerate().filter(|(_, slot)| slot.small == small) {
        let last = match &slot.holds {
            Some(held) if reads(step, held) => continue,
            Some(held) if writes(step, held) => usize::MAX,
            Some(held) => wanted(held, rest),
            None => usize::MAX,
        };
        // Among equals, one that is large enough.
        let score = (last, slot.bytes >= range.bytes);
        if best.is_none_or(|(_, known)| score > known) {
            best = Some((at, score));
        }
    }
    let few = slots.iter().filter(|slot| slot.small == small).count() < SLOTS;
    let at = match best {
        Some((at, (usize::MAX, _))) => at,
        Some((at, _)) if !few => at,
        _ => {
            slots.push(Slot { bytes: 0, small, holds: None });
            slots.len() - 1
        }
    };
    if let Some(slot) = slots.get_mut(at) {
        slot.bytes = slot.bytes.max(range.bytes);
        slot.holds = Some(range);
    }
    at
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    static KERNEL: Kernel = Kernel {
        bindings: &[("a", Access::Texture), ("b", Access::Texture), ("c", Access::ReadWrite)],
        ..Kernel::DEFAULT
    };

    #[test]
    fn a_copy_serves_until_its_buffer_is_written() {
        let range = |buffer: u32| Range { buffer, offset: 0, bytes: 2 * SMALL };
        let step = |a, b, c| (&KERNEL, vec![range(a), range(b), range(c)]);
        let steps = || [step(1, 2, 3), step(1, 2, 4), step(1, 3, 2), step(1, 2, 5)].into_iter();
        let staging = stage(steps(), slice::from_ref(&(0..4)));
        let copies: Vec<_> = staging.steps.iter().map(|s| s.copies.clone()).collect();
        // The third writes what the fourth reads.
        assert_eq!(copies, [vec![0, 1], vec![], vec![1], vec![1]]);
        // A submission of its own counts on nothing from before.
        let parted: Vec<_> = stage(steps(), &[0..1, 1..4]).steps.into_iter().map(|s| s.copies).collect();
        assert_eq!(parted, [vec![0, 1], vec![0, 1], vec![1], vec![1]]);
        for step in &staging.steps {
            assert!(step.textures[0].is_some() && step.textures[0] != step.textures[1] && step.textures[2].is_none());
        }
    }

    #[test]
    fn the_copy_that_is_wanted_last_goes() {
        let range = |buffer: u64| Range { buffer, offset: 0, bytes: 2 * SMALL };
        let step = |a, b| (&KERNEL, vec![range(a), range(b), range(99)]);
        // Six copies, of which 1 is read next but was read longest ago; then a seventh.
        let steps = [step(1, 2), step(3, 4), step(5, 6), step(7, 6), step(1, 6), step(2, 3)];
        let copies: usize =
            stage(steps.into_iter(), slice::from_ref(&(0..6))).steps.iter().map(|s| s.copies.len()).sum();
        assert_eq!(copies, 7);
    }

    #[test]
    fn textures_are_few_and_large_enough() {
        let range = |buffer: u64| Range { buffer, offset: 0, bytes: 1024 * (buffer % 3000 + 1) };
        let steps: Vec<_> = (0..500).map(|i| (&KERNEL, vec![range(7 * i), range(7 * i + 1), range(9000)])).collect();
        let staging = stage(steps.iter().map(|(kernel, ranges)| (*kernel, ranges.clone())), slice::from_ref(&(0..500)));
        assert!(staging.textures.len() <= 2 * SLOTS);
        for (staged, (_, ranges)) in staging.steps.iter().zip(&steps) {
            for (slot, range) in staged.textures.iter().zip(ranges) {
                assert!(slot.is_none_or(|slot| staging.textures[slot] >= range.bytes));
            }
        }
    }
}
