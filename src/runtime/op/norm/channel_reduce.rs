//! Reductions over all pixels for each channel: how the work is cut. The kernels' side is `shaders/lib/columns.wgsl`.

use crate::runtime::kernel::{DeviceKind, Profile};
use crate::runtime::tensor::shape::Shape;

/// Invocations of a workgroup.
const LANES: usize = 64;
/// Most channel groups (vec4s) side by side in a workgroup: 128 bytes, a cache line.
const MAX_GROUPS: usize = 8;

/// How the pixels and channels of an activation are divided among workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    shape: Shape,
    /// Channel groups side by side in a workgroup: a power of two.
    lanes: usize,
    /// Workgroups side by side: together they have all channel groups.
    tiles: usize,
    /// Parts into which the pixels are cut, each with a partial result.
    pub(crate) chunks: usize,
    /// ImageDecode of a chunk; the last one may have fewer.
    span: usize,
    kind: DeviceKind,
}

impl Columns {
    /// For an activation of this shape on this device.
    pub(crate) fn new(shape: Shape, profile: &Profile) -> Self {
        let groups = shape.c.div_ceil(4);
        let lanes = groups.next_power_of_two().min(MAX_GROUPS);
        let tiles = groups.div_ceil(lanes);
        // A software driver starts a workgroup slowly and has few cores to fill; a GPU wants hundreds of workgroups. Each chunk
        // costs every workgroup of the second stage a look at its partial result, so a row should have a few pixels of it.
        let (most, workgroups, least) = match profile.kind {
            DeviceKind::Software => (16, 16, 16),
            DeviceKind::Gpu => (128, 512, 4),
        };
        let rows = LANES / lanes;
        let chunks = (workgroups / tiles).min(most).min(shape.pixels() / (rows * least)).max(1);
        let span = shape.pixels().div_ceil(chunks);
        Self { shape, lanes, tiles, chunks: shape.pixels().div_ceil(span), span, kind: profile.kind }
    }

    /// For chunks of `span` pixels.
    pub(crate) fn spanning(shape: Shape, span: usize, profile: &Profile) -> Self {
        let lanes = shape.c.div_ceil(4).next_power_of_two().min(MAX_GROUPS);
        let tiles = shape.c.div_ceil(4).div_ceil(lanes);
        Self { shape, lanes, tiles, chunks: shape.pixels().div_ceil(span), span, kind: profile.kind }
    }

    /// The same tiles for `chunks` partial results, however many pixels each stands for.
    pub(crate) fn with_chunks(self, chunks: usize) -> Self {
        Self { chunks, ..self }
    }

    /// Channel groups: `ceil(c / 4)`.
    pub(crate) fn groups(&self) -> usize {
        self.shape.c.div_ceil(4)
    }

    /// Bytes of `rows` rows of one number a channel, padded.
    pub(crate) fn row_bytes(&self, rows: usize) -> usize {
        rows * self.groups() * 16
    }

    /// Workgroups of one tile and chunk each.
    pub(crate) fn workgroups(&self) -> usize {
        self.tiles * self.chunks
    }

    /// Workgroups of one tile each, for a kernel that only merges the chunks.
    pub(crate) fn tiles(&self) -> usize {
        self.tiles
    }

    /// The override that every kernel with columns has.
    pub(crate) fn lanes(&self) -> (&'static str, f64) {
        ("GROUPS", self.lanes as f64)
    }

    /// The kernels' `Params`.
    pub(crate) fn params(&self) -> Params {
        let rows = LANES / self.lanes;
        let apart = match self.kind {
            DeviceKind::Gpu => 1,
            DeviceKind::Software => self.span.div_ceil(rows),
        };
        Params {
            pixels: self.shape.pixels() as u32,
            channels: self.shape.c as u32,
            groups: self.groups() as u32,
            tiles: self.tiles as u32,
            chunks: self.chunks as u32,
            span: self.span as u32,
            apart: apart as u32,
            step: if apart == 1 { rows as u32 } else { 1 },
        }
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/lib/columns.wgsl`.
    Params { pixels: u32, channels: u32, groups: u32, tiles: u32, chunks: u32, span: u32, apart: u32, step: u32 }
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
                    let columns = Columns::new(Shape::new(n, c, h, w), &profile);
                    assert!(columns.lanes * columns.tiles >= columns.groups());
                    assert!(columns.lanes * (columns.tiles - 1) < columns.groups());
                    assert!(columns.span * columns.chunks >= n * h * w);
                    assert!(columns.span * (columns.chunks - 1) < n * h * w, "{columns:?}");
                }
            }
        }
    }
}
