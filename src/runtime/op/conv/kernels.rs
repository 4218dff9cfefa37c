//! The table of kernels: one for each matrix product, variant and width of tile.

use std::sync::LazyLock;

use crate::runtime::kernel::{Access, DeviceKind, Kernel, Work, kernel_params, workgroups};
use crate::runtime::op::basic::column_sum;
use crate::runtime::op::conv::geometry::{Gemm, Geometry, Variant};
use crate::runtime::op::norm::fused::CHUNK;

kernel_params! {
    /// See `shaders/lib/implicit_gemm.wgsl`.
    Params {
        rows: u32,
        phases: u32,
        splits: u32,
        positions: u32,
        chunk: u32,
        x_h: u32,
        x_w: u32,
        x_c4: u32,
        y_h: u32,
        y_w: u32,
        y_c4: u32,
    }
}

/// A kernel for a matrix product.
#[derive(Debug)]
pub(crate) struct ConvKernel {
    pub(crate) kernel: Kernel,
    gemm: Gemm,
    variant: Variant,
    /// What a workgroup computes; `None` for one vec4 per invocation.
    pub(crate) tile: Option<Tile>,
    /// Whether it can sum the rows of its tiles for a fused norm.
    pub(crate) sums_rows: bool,
    /// Whether the tile is one for GPUs alone: software drivers start workgroups slowly.
    small: bool,
    /// K groups that a workgroup multiplies in one iteration.
    step: usize,
    /// Times that an invocation goes over its k.
    repeats: usize,
}

/// The part of C that a workgroup computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    pub(crate) rows: usize,
    /// In vec4s.
    pub(crate) columns: usize,
}

/// Workgroups that a GPU should have at least.
pub(crate) const FILLS_GPU: usize = 96;

/// Returns the kernel for a product: the one with the narrowest tile that has all columns, or the widest. On a GPU it is a narrower one
/// if it takes that to fill the GPU, and for weight gradients, which are split anyway, the one that costs least.
#[expect(clippy::expect_used, reason = "the table has every product in every variant")]
pub(crate) fn kernel(gemm: Gemm, variant: Variant, geometry: &Geometry, device: DeviceKind) -> &'static ConvKernel {
    let columns = geometry.columns(gemm);
    let suits = |k: &&ConvKernel| (k.gemm, k.variant) == (gemm, variant) && (device == DeviceKind::Gpu || !k.small);
    let mut kernels = KERNELS.iter().filter(suits);
    let all = kernels.clone();
    let widest = kernels.next_back();
    let fits = |k: &&ConvKernel| k.columns() >= columns;
    let chosen = kernels.find(fits).or(widest).expect("each product has each variant");
    if device == DeviceKind::Software || variant != Variant::Tiled {
        return chosen;
    }
    let (rows, phases) = geometry.rows(gemm, variant);
    if gemm == Gemm::BackwardWeight {
        return all.min_by_key(|k| k.cost(rows, columns)).unwrap_or(chosen);
    }
    let mut narrower = all.filter(|k| k.columns() <= chosen.columns());
    let fills = |k: &&ConvKernel| k.tiles(rows, columns) * phases >= FILLS_GPU;
    narrower.clone().rfind(fills).or(narrower.next()).unwrap_or(chosen)
}

/// All kernels that a convolution dispatches.
pub(crate) fn all_kernels() -> Vec<&'static Kernel> {
    KERNELS.iter().map(|k| &k.kernel).chain([&column_sum::KERNEL]).collect()
}

/// Sorted by width within a product and variant, but for the small tiles of weight gradients, which come first.
static KERNELS: LazyLock<Vec<ConvKernel>> = LazyLock::new(|| {
    let mut kernels = Vec::new();
    for gemm in Gemm::ALL {
        kernels.push(naive(gemm));
        if gemm == Gemm::BackwardWeight {
            let small = [(16, 1, 4), (8, 4, 4), (4, 8, 4), (8, 8, 2)];
            kernels.extend(small.map(|(rows, columns, slices)| sliced(rows, columns, slices)));
            // A weight gradient has few rows: with many columns it takes tiles of half the height.
            kernels.extend([(32, 8), (16, 16)].map(|(rows, columns)| tiled(gemm, rows, columns, 1)));
        } else {
            kernels.extend([4, 8, 16].map(|columns| tiled(gemm, CHUNK / 4, columns, 1)));
        }
        for variant in [Variant::SubgroupTex, Variant::Subgroup] {
            kernels.extend([1, 2, 4, 8].map(|columns| register_tiled(gemm, variant, columns)));
        }
        kernels.extend([1, 4, 8].map(|columns| register_tiled(gemm, Variant::RegisterTiled, columns)));
    }
    kernels
});

fn naive(gemm: Gemm) -> ConvKernel {
    let weight = i64::from(gemm == Gemm::BackwardWeight);
    let kernel = Kernel {
        variant: Variant::Naive.name(),
        file: "conv/conv2d.naive.wgsl",
        source: include_str!("../../../../shaders/conv/conv2d.naive.wgsl"),
        entry: gemm.name(),
        defines: vec![("BACKWARD_WEIGHT", weight), ("SIZES", 0), ("TEXTURES", 0), ("SUMS", 0)].leak(),
        ..interface(gemm, Variant::Naive)
    };
    ConvKernel {
        kernel,
        gemm,
        variant: Variant::Naive,
        tile: None,
        sums_rows: false,
        small: false,
        step: 1,
        repeats: 1,
    }
}

/// A kernel for small weight gradients on GPUs.
fn sliced(rows: usize, columns: usize, slices: usize) -> ConvKernel {
    let tiled = tiled(Gemm::BackwardWeight, rows, columns, slices);
    let name: &'static str = format!("tiled_{rows}x{columns}").leak();
    ConvKernel { kernel: Kernel { variant: name, ..tiled.kernel }, small: true, ..tiled }
}

/// `rows`: row groups of the tile. `slices`: invocations that share a block of C.
fn tiled(gemm: Gemm, rows: usize, columns: usize, slices: usize) -> ConvKernel {
    let tile = Tile { rows: 4 * rows, columns };
    // Columns of the block of an invocation, which has two row groups.
    let block = columns.min(2);
    let kernel = Kernel {
        file: "conv/conv2d.tiled.wgsl",
        source: include_str!("../../../../shaders/conv/conv2d.tiled.wgsl"),
        workgroup: [(slices * rows / 2 * columns / block) as u32, 1, 1],
        ..interface(gemm, Variant::Tiled)
    };
    let mut defines = vec![("SIZES", 0), ("ROWS", rows), ("BLOCK", block), ("SLICES", slices)];
    // A flag of the other products.
    defines.extend((gemm == Gemm::BackwardWeight).then_some(("SPLIT", 0)));
    let new = ConvKernel::new(kernel, gemm, Variant::Tiled, tile, &defines);
    ConvKernel { step: 4, small: gemm != Gemm::BackwardWeight && columns == 4, ..new }
}

fn register_tiled(gemm: Gemm, variant: Variant, columns: usize) -> ConvKernel {
    let weight = gemm == Gemm::BackwardWeight;
    let shuffle = variant != Variant::RegisterTiled;
    // With few columns, more rows share what an invocation loads of B. The four rows of a weight gradient are the channels of a vec4.
    let rows = if weight || columns == 8 { 4 } else { 8 };
    // With shuffles a workgroup is one subgroup: a software driver runs the subgroups of a workgroup one after the other and keeps
    // all state in between. A weight gradient has too few rows for more invocations.
    let width = if shuffle || weight { 8 } else { CHUNK / rows };
    // Each invocation computes this many groups of rows, one after the other.
    let groups = if weight { 1 } else { CHUNK / (rows * width) };
    let kernel = Kernel {
        file: "conv/conv2d.subgroup.wgsl",
        source: include_str!("../../../../shaders/conv/conv2d.subgroup.wgsl"),
        workgroup: [width as u32, 1, 1],
        subgroups: shuffle,
        ..interface(gemm, variant)
    };
    let tile = Tile { rows: groups * rows * width, columns };
    let defines = [
        ("SIZES", 1),
        ("SPLIT", 0),
        ("SHUFFLE", usize::from(shuffle)),
        ("WIDTH", width),
        ("ROWS", rows),
        ("GROUPS", groups),
        ("TILE_ROWS", tile.rows),
    ];
    ConvKernel { repeats: groups, ..ConvKernel::new(kernel, gemm, variant, tile, &defines) }
}

impl ConvKernel {
    fn new(kernel: Kernel, gemm: Gemm, variant: Variant, tile: Tile, defines: &[(&'static str, usize)]) -> Self {
        let sums_rows = sums_rows(gemm, variant);
        let common = [
            ("BACKWARD_INPUT", usize::from(gemm == Gemm::BackwardInput)),
            ("BACKWARD_WEIGHT", usize::from(gemm == Gemm::BackwardWeight)),
            ("TEXTURES", usize::from(variant == Variant::SubgroupTex)),
            ("SUMS", usize::from(sums_rows)),
            ("PARTIALS", 0),
            ("COLUMNS", tile.columns),
        ];
        let defines = common.iter().chain(defines).map(|&(name, value)| (name, value as i64)).collect::<Vec<_>>();
        let name = format!("{}_{}", variant.name(), tile.columns);
        // The table is never freed.
        let kernel = Kernel { variant: name.leak(), defines: defines.leak(), ..kernel };
        Self { kernel, gemm, variant, tile: Some(tile), sums_rows, small: false, step: 1, repeats: 1 }
    }

    /// Columns of the tile; without one there are as many as are needed.
    fn columns(&self) -> usize {
        self.tile.map_or(usize::MAX, |tile| tile.columns)
    }

    /// What a GPU takes for a C of `rows` rows and `columns` columns, relatively: for each k, a vec4 that is loaded costs as much as 32
    /// multiply-adds. Estimated from the instructions that Mesa's ACO compiler generates.
    fn cost(&self, rows: usize, columns: usize) -> usize {
        let tile = self.tile.map_or(0, |tile| 4 * tile.rows * tile.columns + 8 * (tile.rows + 4 * tile.columns));
        self.tiles(rows, columns) * tile
    }

    /// Number of workgroups for a C of `rows` rows and `columns` columns (vec4s).
    pub(crate) fn tiles(&self, rows: usize, columns: usize) -> usize {
        match self.tile {
            None => workgroups(rows * columns, 64),
            Some(tile) => rows.div_ceil(tile.rows) * columns.div_ceil(tile.columns),
        }
    }

    /// How much a dispatch does: for a C of `rows` rows and `columns` columns in each of several parts, whose k groups are `parts`.
    /// `useful`: the multiply-adds of the product.
    pub(crate) fn work(&self, rows: usize, columns: usize, parts: &[usize], useful: f64) -> Work {
        let steps = |groups: &usize| groups.div_ceil(self.step);
        // A naive kernel has the positions of all phases in one part.
        let phases = if self.tile.is_none() { parts.len() } else { 1 };
        // Values of C that are computed, and the k of an iteration.
        let (values, k) = match self.tile {
            // One row of a weight gradient and one position at a time; 4 k otherwise.
            None => (4 * rows.div_ceil(phases) * columns, 4),
            Some(tile) => (self.tiles(rows, columns) * tile.rows * 4 * tile.columns, 4 * self.step),
        };
        let iterations = match (self.tile, self.gemm) {
            (None, Gemm::BackwardWeight) => 4,
            _ => self.repeats,
        };
        Work {
            iterations: iterations * parts.iter().map(steps).max().unwrap_or(0),
            issued: (values * k * parts.iter().map(steps).sum::<usize>()) as u64,
            useful: useful as u64,
        }
    }
}

/// Whether the kernels of a product and variant can sum the rows of their tiles.
fn sums_rows(gemm: Gemm, variant: Variant) -> bool {
    gemm != Gemm::BackwardWeight && matches!(variant, Variant::Tiled | Variant::SubgroupTex | Variant::Subgroup)
}

/// The fields of a kernel that follow from its product and variant.
fn interface(gemm: Gemm, variant: Variant) -> Kernel {
    let weight = gemm == Gemm::BackwardWeight;
    let operand = if variant == Variant::SubgroupTex { Access::Texture } else { Access::Read };
    let mut bindings = vec![("a", operand), ("b", operand), ("stats", operand)];
    let mut flags = vec!["NORM", "ACC"];
    if weight {
        flags.push("NORM_B");
    } else {
        if variant == Variant::Tiled {
            flags.push("SPLIT");
        }
        bindings.extend([("aux", operand), ("bias", Access::Read)]);
        flags.extend(["HAS_BIAS", "RESIDUAL", "RELU_MASK"]);
    }
    bindings.push(("c", Access::ReadWrite));
    if sums_rows(gemm, variant) {
        bindings.push(("partials", Access::ReadWrite));
        flags.push("PARTIALS");
    }
    // The kernels for software drivers get all sizes but the window's as Params. A weight gradient does not need the height of the window.
    const OVERRIDES: [&str; 10] = ["KH", "KW", "STRIDE", "PAD", "X_H", "X_W", "X_C4", "Y_H", "Y_W", "Y_C4"];
    let used = if matches!(variant, Variant::Naive | Variant::Tiled) { 10 } else { 4 };
    Kernel {
        name: match gemm {
            Gemm::Forward => "conv2d.forward",
            Gemm::BackwardInput => "conv2d.backward_input",
            Gemm::BackwardWeight => "conv2d.backward_weight",
        },
        bindings: bindings.leak(),
        flags: flags.leak(),
        params: Params::FIELDS,
        overrides: &OVERRIDES[usize::from(weight)..used],
        ..Kernel::DEFAULT
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::runtime::tensor::Shape;

    #[test]
    fn kernels_expand_and_have_distinct_names() {
        let mut seen = BTreeSet::new();
        for kernel in all_kernels() {
            kernel.wgsl(&[]).unwrap();
            assert!(seen.insert((kernel.name, kernel.variant)), "{} {} twice", kernel.name, kernel.variant);
        }
    }

    #[test]
    fn tiles_are_as_wide_as_needed() {
        let chosen = |variant, columns: usize| {
            let x = Shape::new(128, 4, 16, 16);
            let y = Shape::new(128, 4 * columns, 16, 16);
            let geometry = Geometry { x, y, kernel: (1, 1), stride: 1, padding: 0 };
            kernel(Gemm::Forward, variant, &geometry, DeviceKind::Gpu).kernel.variant
        };
        assert_eq!([1, 5, 9, 64].map(|n| chosen(Variant::Tiled, n)), ["tiled_4", "tiled_8", "tiled_16", "tiled_16"]);
        assert_eq!(
            [1, 2, 4, 5].map(|n| chosen(Variant::Subgroup, n)),
            ["subgroup_1", "subgroup_2", "subgroup_4", "subgroup_8"]
        );
        assert_eq!(chosen(Variant::Naive, 5), "naive");
    }

    #[test]
    fn tiles_for_gpus_are_narrow_enough_to_fill_them() {
        let chosen = |n, c, size| {
            let x = Shape::new(n, c, size, size);
            let geometry = Geometry { x, y: x, kernel: (3, 3), stride: 1, padding: 1 };
            let kernel = kernel(Gemm::BackwardInput, Variant::Tiled, &geometry, DeviceKind::Gpu);
            (kernel.kernel.variant, kernel.tiles(x.positions(), c / 4))
        };
        assert_eq!(chosen(128, 64, 16), ("tiled_16", 256));
        assert_eq!(chosen(128, 64, 8), ("tiled_8", 128));
        assert_eq!(chosen(128, 128, 4), ("tiled_4", 128));
        assert_eq!(chosen(1, 128, 4), ("tiled_4", 8));
    }
}
