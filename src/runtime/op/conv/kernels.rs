//! The table of kernels: one for each matrix product, variant and width of tile.

use std::sync::LazyLock;

use crate::runtime::kernel::{Access, Kernel, kernel_params};
use crate::runtime::op::basic::column_sum;
use crate::runtime::op::conv::geometry::{Gemm, Variant};
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
}

/// The part of C that a workgroup computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tile {
    pub(crate) rows: usize,
    /// In vec4s.
    pub(crate) columns: usize,
}

/// Returns the kernel for a product with `columns` columns (vec4s): the one with the narrowest tile that has them, or the widest.
#[expect(clippy::expect_used, reason = "the table has every product in every variant")]
pub(crate) fn kernel(gemm: Gemm, variant: Variant, columns: usize) -> &'static ConvKernel {
    let mut kernels = KERNELS.iter().filter(|k| (k.gemm, k.variant) == (gemm, variant));
    let widest = kernels.next_back();
    let fits = |k: &&ConvKernel| k.tile.is_none_or(|tile| columns <= tile.columns);
    kernels.find(fits).or(widest).expect("each product has each variant")
}

/// All kernels that a convolution dispatches.
pub(crate) fn all_kernels() -> Vec<&'static Kernel> {
    KERNELS.iter().map(|k| &k.kernel).chain([&column_sum::KERNEL]).collect()
}

/// Sorted by width within a product and variant.
static KERNELS: LazyLock<Vec<ConvKernel>> = LazyLock::new(|| {
    let mut kernels = Vec::new();
    for gemm in Gemm::ALL {
        kernels.push(naive(gemm));
        kernels.extend([8, 16].map(|columns| tiled(gemm, columns)));
        for variant in [Variant::SubgroupTex, Variant::Subgroup, Variant::RegisterTiled] {
            kernels.extend([1, 4, 8].map(|columns| register_tiled(gemm, variant, columns)));
        }
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
    ConvKernel { kernel, gemm, variant: Variant::Naive, tile: None, sums_rows: false }
}

fn tiled(gemm: Gemm, columns: usize) -> ConvKernel {
    // A weight gradient has few rows: with many columns it takes tiles of half the height.
    let halved = gemm == Gemm::BackwardWeight && columns == 16;
    let tile = Tile { rows: if halved { CHUNK / 2 } else { CHUNK }, columns };
    let kernel = Kernel {
        file: "conv/conv2d.tiled.wgsl",
        source: include_str!("../../../../shaders/conv/conv2d.tiled.wgsl"),
        workgroup: [(tile.rows * columns / 16) as u32, 1, 1],
        ..interface(gemm, Variant::Tiled)
    };
    ConvKernel::new(kernel, gemm, Variant::Tiled, tile, &[("SIZES", 0), ("ROWS", tile.rows / 4)])
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
        ("SHUFFLE", usize::from(shuffle)),
        ("WIDTH", width),
        ("ROWS", rows),
        ("GROUPS", groups),
        ("TILE_ROWS", tile.rows),
    ];
    ConvKernel::new(kernel, gemm, variant, tile, &defines)
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
        Self { kernel, gemm, variant, tile: Some(tile), sums_rows }
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
        let chosen = |variant, columns| kernel(Gemm::Forward, variant, columns).kernel.variant;
        assert_eq!([1, 8, 9, 64].map(|n| chosen(Variant::Tiled, n)), ["tiled_8", "tiled_8", "tiled_16", "tiled_16"]);
        assert_eq!(
            [1, 2, 4, 5].map(|n| chosen(Variant::Subgroup, n)),
            ["subgroup_1", "subgroup_4", "subgroup_4", "subgroup_8"]
        );
        assert_eq!(chosen(Variant::Naive, 5), "naive");
    }
}
