//! The texture cache: copies of tensors for kernels that read textures.
//!
//! A tensor lives in a buffer. A kernel with an [`Access::Texture`] binding reads a copy in one of a few textures, which the driver
//! makes at memory speed (`copy_buffer_to_texture`). A copy is valid until its buffer is written or its texture is reused, so the
//! kernels of a node, and often those of its neighbours, share one.

use crate::runtime::kernel::{Access, Kernel};
use crate::runtime::plan::BufferRange;

/// The textures of a list of dispatches and the copies into them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextureCache {
    /// Size of each texture in bytes.
    pub textures: Vec<u64>,
    /// The textures of each dispatch.
    pub dispatches: Vec<DispatchTextures>,
}

/// The textures of one dispatch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DispatchTextures {
    /// For each binding, the number of the texture that it reads.
    pub bindings: Vec<Option<usize>>,
    /// Bindings whose tensor must be copied into the texture before the dispatch.
    pub copies: Vec<usize>,
}

/// Tensors below this size in bytes have textures of their own, so that statistics and weights do not evict activations.
const SMALL: u64 = 1 << 20;
/// Most textures for small and for large tensors each. No kernel reads more than four.
const MOST_TEXTURES: usize = 6;

struct Texture<B> {
    bytes: u64,
    small: bool,
    holds: Option<BufferRange<B>>,
}

/// A kernel and the range of each of its bindings.
type Bound<'a, B> = (&'a Kernel, Vec<BufferRange<B>>);

/// Plans the texture cache of a list of dispatches.
///
/// `submissions` are ranges of dispatches. Another program may overwrite the textures between two submissions, so each of them
/// copies all that it reads. If all textures are in use, the one whose contents are needed last is reused (Belady, IBM Systems
/// Journal 5(2), 1966).
pub fn plan<'a, B: Copy + PartialEq + 'a>(
    dispatches: impl Iterator<Item = Bound<'a, B>>,
    submissions: &[std::ops::Range<usize>],
) -> TextureCache {
    let dispatches: Vec<_> = dispatches.collect();
    let mut textures: Vec<Texture<B>> = Vec::new();
    let mut cache = TextureCache::default();
    for submission in submissions {
        textures.iter_mut().for_each(|texture| texture.holds = None);
        let mut ahead = dispatches.get(submission.clone()).unwrap_or_default();
        while let [dispatch, rest @ ..] = ahead {
            cache.dispatches.push(plan_dispatch(&mut textures, dispatch, rest));
            ahead = rest;
        }
    }
    cache.textures = textures.iter().map(|texture| texture.bytes).collect();
    cache
}

/// Chooses textures for one dispatch. `rest` are the dispatches that follow it in its submission.
fn plan_dispatch<B: Copy + PartialEq>(
    textures: &mut Vec<Texture<B>>,
    dispatch: &Bound<'_, B>,
    rest: &[Bound<'_, B>],
) -> DispatchTextures {
    let mut planned = DispatchTextures::default();
    for (binding, ((_, access), range)) in dispatch.0.bindings.iter().zip(&dispatch.1).enumerate() {
        let texture = (*access == Access::Texture).then(|| {
            let valid = textures.iter().position(|texture| texture.holds == Some(*range));
            valid.unwrap_or_else(|| {
                planned.copies.push(binding);
                choose(textures, *range, dispatch, rest)
            })
        });
        planned.bindings.push(texture);
    }
    for texture in textures {
        if texture.holds.is_some_and(|held| writes(dispatch, &held)) {
            texture.holds = None;
        }
    }
    planned
}

/// Returns whether a dispatch reads a copy of `range`.
fn reads<B: Copy + PartialEq>((kernel, ranges): &Bound<'_, B>, range: &BufferRange<B>) -> bool {
    kernel.bindings.iter().zip(ranges).any(|((_, access), bound)| *access == Access::Texture && bound == range)
}

/// Returns whether a dispatch invalidates copies of `range`.
fn writes<B: Copy + PartialEq>((kernel, ranges): &Bound<'_, B>, range: &BufferRange<B>) -> bool {
    kernel.bindings.iter().zip(ranges).any(|((_, access), bound)| *access == Access::ReadWrite && bound.overlaps(range))
}

/// Returns the number of `dispatches` before the next one that reads a copy of `range`; `usize::MAX` if the copy is not needed.
fn next_use<B: Copy + PartialEq>(range: &BufferRange<B>, dispatches: &[Bound<'_, B>]) -> usize {
    let next = dispatches.iter().enumerate().find(|(_, d)| reads(d, range) || writes(d, range));
    next.filter(|(_, d)| reads(d, range)).map_or(usize::MAX, |(at, _)| at)
}

/// Chooses a texture for `range`, which `dispatch` reads: one whose contents are not needed, a new one while there are few, or the
/// one whose contents `rest` needs last. Textures that `dispatch` itself reads are not reused.
fn choose<B: Copy + PartialEq>(
    textures: &mut Vec<Texture<B>>,
    range: BufferRange<B>,
    dispatch: &Bound<'_, B>,
    rest: &[Bound<'_, B>],
) -> usize {
    let small = range.bytes < SMALL;
    let mut best = None;
    for (at, texture) in textures.iter().enumerate().filter(|(_, texture)| texture.small == small) {
        let needed = match &texture.holds {
            Some(held) if reads(dispatch, held) => continue,
            Some(held) if writes(dispatch, held) => usize::MAX,
            Some(held) => next_use(held, rest),
            None => usize::MAX,
        };
        // Among equals, prefer one that is large enough.
        let score = (needed, texture.bytes >= range.bytes);
        if best.is_none_or(|(_, known)| score > known) {
            best = Some((at, score));
        }
    }
    let few = textures.iter().filter(|texture| texture.small == small).count() < MOST_TEXTURES;
    let at = match best {
        Some((at, (usize::MAX, _))) => at,
        Some((at, _)) if !few => at,
        _ => {
            textures.push(Texture { bytes: 0, small, holds: None });
            textures.len() - 1
        }
    };
    if let Some(texture) = textures.get_mut(at) {
        texture.bytes = texture.bytes.max(range.bytes);
        texture.holds = Some(range);
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
    fn a_copy_is_valid_until_its_buffer_is_written() {
        let range = |buffer: u32| BufferRange { buffer, offset: 0, bytes: 2 * SMALL };
        let step = |a, b, c| (&KERNEL, vec![range(a), range(b), range(c)]);
        let steps = || [step(1, 2, 3), step(1, 2, 4), step(1, 3, 2), step(1, 2, 5)].into_iter();
        let cache = plan(steps(), slice::from_ref(&(0..4)));
        let copies: Vec<_> = cache.dispatches.iter().map(|s| s.copies.clone()).collect();
        // The third writes what the fourth reads.
        assert_eq!(copies, [vec![0, 1], vec![], vec![1], vec![1]]);
        // A submission does not rely on copies of an earlier one.
        let parted: Vec<_> = plan(steps(), &[0..1, 1..4]).dispatches.into_iter().map(|s| s.copies).collect();
        assert_eq!(parted, [vec![0, 1], vec![0, 1], vec![1], vec![1]]);
        for step in &cache.dispatches {
            assert!(step.bindings[0].is_some() && step.bindings[0] != step.bindings[1] && step.bindings[2].is_none());
        }
    }

    #[test]
    fn the_copy_needed_last_is_evicted() {
        let range = |buffer: u64| BufferRange { buffer, offset: 0, bytes: 2 * SMALL };
        let step = |a, b| (&KERNEL, vec![range(a), range(b), range(99)]);
        // Six copies, of which 1 was read longest ago but is read next; then a seventh.
        let steps = [step(1, 2), step(3, 4), step(5, 6), step(7, 6), step(1, 6), step(2, 3)];
        let copies: usize =
            plan(steps.into_iter(), slice::from_ref(&(0..6))).dispatches.iter().map(|s| s.copies.len()).sum();
        assert_eq!(copies, 7);
    }

    #[test]
    fn textures_are_few_and_large_enough() {
        let range = |buffer: u64| BufferRange { buffer, offset: 0, bytes: 1024 * (buffer % 3000 + 1) };
        let steps: Vec<_> = (0..500).map(|i| (&KERNEL, vec![range(7 * i), range(7 * i + 1), range(9000)])).collect();
        let cache = plan(steps.iter().map(|(kernel, ranges)| (*kernel, ranges.clone())), slice::from_ref(&(0..500)));
        assert!(cache.textures.len() <= 2 * MOST_TEXTURES);
        for (planned, (_, ranges)) in cache.dispatches.iter().zip(&steps) {
            for (slot, range) in planned.bindings.iter().zip(ranges) {
                assert!(slot.is_none_or(|slot| cache.textures[slot] >= range.bytes));
            }
        }
    }
}
