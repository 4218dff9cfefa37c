//! The kernels of the convolution family: a table for each product, by variant and width of the result.

use crate::runtime::kernel::{Access, Kernel, KernelRole};
use crate::runtime::op::basic::column_sum;
use crate::runtime::op::conv::core::{CHUNK, Gemm, Variant};

crate::runtime::kernel::kernel_params! {
    /// See `shaders/lib/conv_product.wgsl`.
    Params {
        rows: u32,
        parts: u32,
        pixels: u32,
        chunk: u32,
        x_h: u32,
        x_w: u32,
        x_c4: u32,
        y_h: u32,
        y_w: u32,
        y_c4: u32,
    }
}

/// The kernels of a product: naive, tiled and tiled narrow, then three widths each of `lanes`, `lanes_buffers` and `lanes_plain`.
type Kernels = [Kernel; 12];

/// Writes the table of a product's kernels. TILE_ROWS and COLUMNS are the size of a workgroup's tile of C, in rows and quadruples.
macro_rules! kernels {
    ($name:literal, $pass:literal, input $input:literal, weight $weight:literal, $interface:expr) => {
        kernels!(@table $name, $pass, $input, $weight, $interface;
            16, 8;
            "lanes", 1 1, 8 4 1;
            "lanes_buffers", 0 1, 8 4 1;
            "lanes_plain", 0 0, 8 4 1)
    };
    (@table $name:literal, $pass:literal, $input:literal, $weight:literal, $interface:expr;
     $square:literal, $narrow:literal;
     $($variant:literal, $textures:literal $shuffle:literal, $w1:literal $w2:literal $w3:literal);+) => {
        [
            Kernel {
                name: $name,
                variant: "naive",
                role: KernelRole::Main,
                file: "conv/conv2d.naive.wgsl",
                source: include_str!("../../../../shaders/conv/conv2d.naive.wgsl"),
                entry: $pass,
                defines: &[("BACKWARD_WEIGHT", $weight)],
                flags: $interface.flags,
                bindings: $interface.bindings,
                params: Params::FIELDS,
                overrides: $interface.overrides,
                workgroup: [64, 1, 1],
                subgroups: false,
            },
            kernels!(@tiled $name, $input, $weight, $square, $interface),
            kernels!(@tiled $name, $input, $weight, $narrow, $interface),
            $(
                kernels!(@lanes $name, $variant, $input, $weight, $textures, $shuffle, $w1, $interface),
                kernels!(@lanes $name, $variant, $input, $weight, $textures, $shuffle, $w2, $interface),
                kernels!(@lanes $name, $variant, $input, $weight, $textures, $shuffle, $w3, $interface)
            ),+
        ]
    };
    (@tiled $name:literal, $input:literal, $weight:literal, $columns:literal, $interface:expr) => {
        Kernel {
            name: $name,
            variant: concat!("tiled_", $columns),
            role: KernelRole::Main,
            file: "conv/conv2d.tiled.wgsl",
            source: include_str!("../../../../shaders/conv/conv2d.tiled.wgsl"),
            entry: "main",
            defines: &[
                ("BACKWARD_INPUT", $input),
                ("BACKWARD_WEIGHT", $weight),
                ("TEXTURES", 0),
                ("SIZES", 0),
                ("SUMS", 1),
                ("PARTIALS", 0),
                ("ROWS", tiled_rows($weight, $columns)),
                ("TILE_ROWS", 4 * tiled_rows($weight, $columns)),
                ("COLUMNS", $columns),
            ],
            flags: $interface.partials_flags,
            bindings: $interface.partials,
            params: Params::FIELDS,
            overrides: $interface.overrides,
            workgroup: [(tiled_rows($weight, $columns) * $columns / 4) as u32, 1, 1],
            subgroups: false,
        }
    };
    (@lanes $name:literal, $variant:literal, $input:literal, $weight:literal, $textures:literal, $shuffle:literal,
     $columns:literal, $interface:expr) => {
        Kernel {
            name: $name,
            variant: concat!($variant, "_", $columns),
            role: KernelRole::Main,
            file: "conv/conv2d.subgroup.wgsl",
            source: include_str!("../../../../shaders/conv/conv2d.subgroup.wgsl"),
            entry: "main",
            defines: &[
                ("BACKWARD_INPUT", $input),
                ("BACKWARD_WEIGHT", $weight),
                ("TEXTURES", $textures),
                ("SUMS", $shuffle),
                ("PARTIALS", 0),
                ("SHUFFLE", $shuffle),
                ("SIZES", 1),
                ("WIDTH", lanes_width($shuffle, $weight, $columns)),
                ("ROWS", lanes_rows($weight, $columns)),
                ("GROUPS", lanes_groups($shuffle, $weight, $columns)),
                 ("TILE_ROWS", lanes_groups($shuffle, $weight, $columns) * lanes_rows($weight, $columns) * lanes_width($shuffle, $weight, $columns)),
                ("COLUMNS", $columns),
            ],
            flags: if $shuffle == 1 { $interface.partials_flags } else { $interface.flags },
            bindings: match ($textures, $shuffle) {
                (1, _) => $interface.textures,
                (_, 1) => $interface.partials,
                _ => $interface.bindings,
            },
            params: Params::FIELDS,
            overrides: $interface.window,
            workgroup: [lanes_width($shuffle, $weight, $columns) as u32, 1, 1],
            subgroups: $shuffle == 1,
        }
    };
}

/// Row groups in a tile of a `tiled` kernel: [`CHUNK`] rows. A weight gradient, which has few rows, takes half where the columns
/// are many.
const fn tiled_rows(weight: i64, columns: i64) -> i64 {
    if weight == 1 && columns == 16 { 16 } else { CHUNK as i64 / 4 }
}

/// Rows of C in an invocation of a `lanes` kernel: with few columns more of them share what is loaded of B. A weight gradient's four
/// are the channels of a vec4.
const fn lanes_rows(weight: i64, columns: i64) -> i64 {
    if weight == 1 || columns == 8 { 4 } else { 8 }
}

/// Invocations of a workgroup of a `lanes` kernel. With shuffles a software adapter's subgroup: it runs the subgroups of a workgroup one
/// after the other, and keeps all that is between two of them. A weight gradient has few rows, so that no more would have work.
const fn lanes_width(shuffle: i64, weight: i64, columns: i64) -> i64 {
    if shuffle == 1 || weight == 1 { 8 } else { CHUNK as i64 / lanes_rows(weight, columns) }
}

/// Times that an invocation of a `lanes` kernel has rows of C, below each other: tiles of [`CHUNK`] rows. A weight gradient has few rows.
const fn lanes_groups(shuffle: i64, weight: i64, columns: i64) -> i64 {
    if weight == 1 { 1 } else { CHUNK as i64 / (lanes_rows(weight, columns) * lanes_width(shuffle, weight, columns)) }
}

/// Overrides and bindings of the kernels of a product: of all, of those that make partial sums, and of those with textures, which
/// make them too.
struct Interface {
    bindings: &'static [(&'static str, Access)],
    partials: &'static [(&'static str, Access)],
    textures: &'static [(&'static str, Access)],
    overrides: &'static [&'static str],
    /// Overrides of the `lanes` kernels, which get the sizes otherwise.
    window: &'static [&'static str],
    /// What happens to operands and sums (see `shaders/lib/conv_fused.wgsl`): of all, and of those that make partial sums.
    flags: &'static [&'static str],
    partials_flags: &'static [&'static str],
}

const PRODUCT: Interface = Interface {
    bindings: &[
        ("a", Access::Read),
        ("b", Access::Read),
        ("stats", Access::Read),
        ("aux", Access::Read),
        ("bias", Access::Read),
        ("c", Access::ReadWrite),
    ],
    partials: &[
        ("a", Access::Read),
        ("b", Access::Read),
        ("stats", Access::Read),
        ("aux", Access::Read),
        ("bias", Access::Read),
        ("c", Access::ReadWrite),
        ("partials", Access::ReadWrite),
    ],
    textures: &[
        ("a", Access::Texture),
        ("b", Access::Texture),
        ("stats", Access::Texture),
        ("aux", Access::Texture),
        ("bias", Access::Read),
        ("c", Access::ReadWrite),
        ("partials", Access::ReadWrite),
    ],
    overrides: &["KW", "STRIDE", "PAD", "X_H", "X_W", "X_C4", "Y_H", "Y_W", "Y_C4", "KH"],
    window: &["KW", "STRIDE", "PAD", "KH"],
    flags: &["NORM", "HAS_BIAS", "RESIDUAL", "GATE", "ACC"],
    partials_flags: &["NORM", "HAS_BIAS", "RESIDUAL", "GATE", "ACC", "PARTIALS"],
};

const WEIGHT: Interface = Interface {
    bindings: &[("a", Access::Read), ("b", Access::Read), ("stats", Access::Read), ("c", Access::ReadWrite)],
    partials: &[("a", Access::Read), ("b", Access::Read), ("stats", Access::Read), ("c", Access::ReadWrite)],
    textures: &[("a", Access::Texture), ("b", Access::Texture), ("stats", Access::Texture), ("c", Access::ReadWrite)],
    overrides: &["KW", "STRIDE", "PAD", "X_H", "X_W", "X_C4", "Y_H", "Y_W", "Y_C4"],
    window: &["KW", "STRIDE", "PAD"],
    flags: &["NORM", "NORM_B", "ACC"],
    partials_flags: &["NORM", "NORM_B", "ACC"],
};

static FORWARD: Kernels = kernels!("conv2d.forward", "forward", input 0, weight 0, PRODUCT);
static BACKWARD_INPUT: Kernels = kernels!("conv2d.backward_input", "backward_input", input 1, weight 0, PRODUCT);
static BACKWARD_WEIGHT: Kernels = kernels!("conv2d.backward_weight", "backward_weight", input 0, weight 1, WEIGHT);

/// All kernels of the convolution family.
pub(crate) fn all_kernels() -> Vec<&'static Kernel> {
    [&FORWARD, &BACKWARD_INPUT, &BACKWARD_WEIGHT].into_iter().flatten().chain([&column_sum::KERNEL]).collect()
}

/// The kernel of a variant for a result of `columns` quadruples.
pub(crate) fn kernel_for(product: Gemm, variant: Variant, columns: usize) -> &'static Kernel {
    let [naive, square, narrow, lanes @ ..] = match product {
        Gemm::Forward => &FORWARD,
        Gemm::BackwardInput => &BACKWARD_INPUT,
        Gemm::BackwardWeight => &BACKWARD_WEIGHT,
    };
    let [textures8, textures4, textures1, buffers8, buffers4, buffers1, plain8, plain4, plain1] = lanes;
    let by_width = |eight: &'static Kernel, four, one| match columns {
        0..=1 => one,
        2..=4 => four,
        _ => eight,
    };
    match variant {
        Variant::Naive => naive,
        Variant::Tiled if columns <= 8 => narrow,
        Variant::Tiled => square,
        Variant::Lanes => by_width(textures8, textures4, textures1),
        Variant::LanesBuffers => by_width(buffers8, buffers4, buffers1),
        Variant::LanesPlain => by_width(plain8, plain4, plain1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_expand_and_differ() {
        let mut seen = std::collections::BTreeSet::new();
        for kernel in all_kernels() {
            kernel.wgsl(&[]).unwrap();
            assert!(seen.insert((kernel.name, kernel.variant)), "{} {} twice", kernel.name, kernel.variant);
        }
    }
}
