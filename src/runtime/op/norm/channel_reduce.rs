//! Cuts reductions over the positions of each channel into workgroups. The device side is `shaders/lib/channel_reduce.wgsl`.

use crate::runtime::kernel::{Bind, DeviceKind, Dispatch, Kernel, Profile, kernel_params, tree_levels};
use crate::runtime::tensor::Shape;

/// Invocations in a workgroup.
pub(super) const LANES: usize = 64;
/// Invocations in a workgroup that merges chunks on a GPU.
pub(super) const WIDE_LANES: usize = 256;
/// Chunks that one row of such a workgroup loads at the same time.
pub(super) const UNROLLED: usize = 4;
/// Most channel groups (vec4s) side by side in a workgroup: 128 bytes, a cache line.
const MAX_GROUPS: usize = 8;

/// How the positions and channels of an activation are divided among workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelReduce {
    shape: Shape,
    /// Invocations in a workgroup.
    width: usize,
    /// Channel groups side by side in a workgroup: a power of two.
    lanes: usize,
    /// Workgroups side by side, which together cover all channel groups.
    tiles: usize,
    /// Parts into which the positions are cut, each with a partial result.
    pub(super) chunks: usize,
    /// Positions in a chunk; the last one may have fewer.
    span: usize,
    kind: DeviceKind,
}

/// Defines of a kernel whose workgroups have [`LANES`] invocations, each of which loads one chunk at a time.
pub(super) const fn defines(stage: i64) -> [(&'static str, i64); 3] {
    [("STAGE", stage), ("LANES", LANES as i64), ("UNROLLED", 1)]
}

impl ChannelReduce {
    /// Cuts an activation of this shape into as many chunks as suit the device.
    pub(super) fn new(shape: Shape, profile: &Profile) -> Self {
        let Self { lanes, tiles, .. } = Self::with_span(shape, shape.positions(), profile);
        // A software driver starts a workgroup slowly and has few cores to fill; a GPU needs hundreds of workgroups. Every workgroup
        // of the second dispatch reads the partial result of every chunk, so each row of a chunk should have several positions.
        let (most, workgroups, least) = match profile.kind {
            DeviceKind::Software => (16, 16, 16),
            DeviceKind::Gpu => (128, 512, 4),
        };
        let rows = LANES / lanes;
        let chunks = (workgroups / tiles).min(most).min(shape.positions() / (rows * least)).max(1);
        Self::with_span(shape, shape.positions().div_ceil(chunks), profile)
    }

    /// Cuts an activation for a dispatch whose chunks are not merged afterwards: on a GPU, many small ones cost nothing and fill it.
    pub(super) fn independent(shape: Shape, profile: &Profile) -> Self {
        let merged = Self::new(shape, profile);
        if profile.kind == DeviceKind::Software {
            return merged;
        }
        let rows = LANES / merged.lanes;
        let chunks = (2048 / merged.tiles).min(shape.positions() / (rows * 4)).max(merged.chunks);
        Self::with_span(shape, shape.positions().div_ceil(chunks), profile)
    }

    /// Cuts an activation into chunks of `span` positions.
    pub(super) fn with_span(shape: Shape, span: usize, profile: &Profile) -> Self {
        let groups = shape.c.div_ceil(4);
        let lanes = groups.next_power_of_two().min(MAX_GROUPS);
        let chunks = shape.positions().div_ceil(span);
        Self { shape, width: LANES, lanes, tiles: groups.div_ceil(lanes), chunks, span, kind: profile.kind }
    }

    /// The tiles in which one workgroup each merges `chunks` partial results, regardless of the number of positions in each. On a
    /// GPU the workgroups are wide, and the more chunks there are, the more of the invocations are rows. So there are also more
    /// workgroups, and an invocation has few chunks, which it would load one after the other.
    pub(super) fn merging(self, chunks: usize) -> Self {
        match self.kind {
            DeviceKind::Software => self.with_chunks(chunks),
            DeviceKind::Gpu => {
                let groups = self.shape.c.div_ceil(4);
                let rows = chunks.div_ceil(UNROLLED).next_power_of_two().clamp(WIDE_LANES / MAX_GROUPS, WIDE_LANES);
                let lanes = groups.next_power_of_two().min(WIDE_LANES / rows);
                Self { width: WIDE_LANES, lanes, tiles: groups.div_ceil(lanes), chunks, ..self }
            }
        }
    }

    /// The same workgroups, which also merge `chunks` partial results.
    pub(super) fn with_chunks(self, chunks: usize) -> Self {
        Self { chunks, ..self }
    }

    /// Whether its workgroups have [`WIDE_LANES`] invocations.
    pub(super) fn is_wide(&self) -> bool {
        self.width == WIDE_LANES
    }

    fn rows(&self) -> usize {
        self.width / self.lanes
    }

    /// Iterations over the positions of a chunk.
    pub(super) fn over_positions(&self) -> usize {
        self.span.div_ceil(self.rows())
    }

    /// Iterations over the chunks, of which a row loads `unrolled` at the same time.
    pub(super) fn over_chunks(&self, unrolled: usize) -> usize {
        self.chunks.div_ceil(self.rows() * unrolled)
    }

    /// Iterations of a sum of the rows.
    pub(super) fn over_rows(&self) -> usize {
        if self.is_wide() { self.over_row_pairs() } else { self.rows() - 1 }
    }

    /// Iterations of a sum of the rows in a tree.
    pub(super) fn over_row_pairs(&self) -> usize {
        tree_levels(self.rows())
    }

    /// Bytes of `rows` rows with one value for each channel, padded.
    pub(super) fn row_bytes(&self, rows: usize) -> usize {
        rows * self.shape.c.div_ceil(4) * 16
    }

    /// A dispatch with one workgroup for each tile and chunk.
    pub(super) fn dispatch(
        &self,
        kernel: &'static Kernel,
        bindings: &[Bind],
        overrides: &[(&'static str, f64)],
    ) -> Dispatch {
        self.with_workgroups(self.tiles * self.chunks, kernel, bindings, overrides)
    }

    /// The same, for a kernel that also merges `chunks` partial results.
    pub(super) fn dispatch_merging(
        &self,
        chunks: usize,
        kernel: &'static Kernel,
        bindings: &[Bind],
        overrides: &[(&'static str, f64)],
    ) -> Dispatch {
        self.with_chunks(chunks).with_workgroups(self.tiles * self.chunks, kernel, bindings, overrides)
    }

    /// A dispatch with one workgroup for each tile, which merges the chunks.
    pub(super) fn merge(
        &self,
        kernel: &'static Kernel,
        bindings: &[Bind],
        overrides: &[(&'static str, f64)],
    ) -> Dispatch {
        self.with_workgroups(self.tiles, kernel, bindings, overrides)
    }

    fn with_workgroups(
        &self,
        workgroups: usize,
        kernel: &'static Kernel,
        bindings: &[Bind],
        overrides: &[(&'static str, f64)],
    ) -> Dispatch {
        Dispatch {
            overrides: [overrides, &[("GROUPS", self.lanes as f64)]].concat(),
            params: self.params(workgroups).bytes(),
            workgroups,
            ..Dispatch::new(kernel, bindings.iter().copied())
        }
    }

    fn params(&self, workgroups: usize) -> Params {
        let rows = self.rows();
        let apart = match self.kind {
            DeviceKind::Gpu => 1,
            DeviceKind::Software => self.span.div_ceil(rows),
        };
        Params {
            positions: self.shape.positions() as u32,
            channels: self.shape.c as u32,
            groups: self.shape.c.div_ceil(4) as u32,
            tiles: self.tiles as u32,
            chunks: self.chunks as u32,
            span: self.span as u32,
            apart: apart as u32,
            step: if apart == 1 { rows as u32 } else { 1 },
            workgroups: workgroups as u32,
        }
    }
}

kernel_params! {
    /// See `shaders/lib/channel_reduce.wgsl`.
    Params {
        positions: u32,
        channels: u32,
        groups: u32,
        tiles: u32,
        chunks: u32,
        span: u32,
        apart: u32,
        step: u32,
        workgroups: u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_and_tiles_cover_everything_and_none_is_empty() {
        for kind in [DeviceKind::Software, DeviceKind::Gpu] {
            let profile = Profile { kind, ..Profile::WEBGPU };
            for c in [1, 3, 5, 16, 33, 64, 256, 1000] {
                for (n, h, w) in [(1, 1, 1), (3, 5, 7), (32, 16, 16), (128, 32, 32), (1, 1, 8191)] {
                    let shape = Shape::new(n, c, h, w);
                    for reduce in [ChannelReduce::new(shape, &profile), ChannelReduce::independent(shape, &profile)] {
                        assert!(reduce.lanes * reduce.tiles >= c.div_ceil(4));
                        assert!(reduce.lanes * (reduce.tiles - 1) < c.div_ceil(4));
                        assert!(reduce.span * reduce.chunks >= n * h * w);
                        assert!(reduce.span * (reduce.chunks - 1) < n * h * w, "{reduce:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn independent_chunks_fill_a_gpu() {
        let shape = Shape::new(128, 32, 32, 32);
        let workgroups = |reduce: ChannelReduce| reduce.tiles * reduce.chunks;
        let gpu = ChannelReduce::independent(shape, &Profile::WEBGPU);
        assert_eq!(workgroups(gpu), 2048);
        assert_eq!(gpu.span / (LANES / gpu.lanes), 8, "positions of an invocation");
        assert_eq!(workgroups(ChannelReduce::new(shape, &Profile::WEBGPU)), 128);
        let software = Profile { kind: DeviceKind::Software, ..Profile::WEBGPU };
        assert_eq!(ChannelReduce::independent(shape, &software), ChannelReduce::new(shape, &software));
    }
}
