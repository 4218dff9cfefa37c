//! The kinds of convolutions in the table of operations, and the cases in which each is checked.

use crate::error::Result;
use crate::runtime::op::conv::{Conv, kernels};
use crate::runtime::op::norm::fused;
use crate::runtime::op::{BatchNorm, BatchNormConfig, Case, Distribution, OpInfo};
use crate::runtime::tensor::Shape;

/// Name, (n, c, h, w), output channels, kernel size, stride, padding.
type Window = (&'static str, (usize, usize, usize, usize), usize, usize, usize, usize);

/// Convolutions.
pub const CONV2D: OpInfo = OpInfo {
    name: "conv2d",
    kernels: kernels::all_kernels,
    cases: || {
        let small: &[Window] = &[
            ("one", (1, 1, 1, 1), 1, 1, 1, 0),
            ("1x1_odd", (2, 3, 5, 7), 5, 1, 1, 0),
            ("1x1_stride2", (2, 8, 6, 6), 12, 1, 2, 0),
            ("3x3_stride2_odd", (3, 5, 7, 9), 7, 3, 2, 1),
            ("3x3_window_in_padding", (1, 2, 2, 2), 3, 3, 1, 4),
            ("5x5_stride3", (2, 5, 10, 11), 6, 5, 3, 2),
            ("2x2_stride5", (1, 3, 8, 3), 3, 2, 5, 1),
            ("from_rgb", (2, 3, 8, 8), 32, 3, 1, 1),
            ("to_rgb", (2, 32, 8, 8), 3, 3, 1, 1),
            ("1x1_9_to_13_odd", (2, 9, 3, 5), 13, 1, 1, 0),
        ];
        // Slightly larger than a tile of every variant in every direction.
        let large: &[Window] = &[
            ("3x3_tails", (3, 36, 7, 7), 68, 3, 1, 1),
            ("1x1_tails", (3, 68, 9, 9), 36, 1, 1, 0),
            ("3x3_stride2_tails", (5, 68, 11, 13), 36, 3, 2, 1),
            ("model_4x4", (8, 128, 4, 4), 128, 3, 1, 1),
            // Enough tiles of the widest kind for a GPU.
            ("1x1_fills_a_gpu", (12, 32, 32, 32), 64, 1, 1, 0),
        ];
        windows(small, large, Conv::conv2d)
    },
};

/// Transposed convolutions.
pub const CONV_TRANSPOSE2D: OpInfo = OpInfo {
    name: "conv_transpose2d",
    kernels: kernels::all_kernels,
    cases: || {
        let small: &[Window] = &[
            ("one", (1, 1, 1, 1), 1, 1, 1, 0),
            ("4x4_stride2_odd", (1, 5, 3, 5), 7, 4, 2, 1),
            ("3x3_stride2", (2, 6, 4, 3), 5, 3, 2, 1),
            ("2x2_stride3_gaps", (1, 4, 3, 3), 4, 2, 3, 0),
            ("5x5_stride3", (2, 5, 4, 3), 6, 5, 3, 2),
            ("2x2_stride2_9_to_13_odd", (2, 9, 3, 5), 13, 2, 2, 0),
        ];
        // Slightly larger than a tile of every variant in every direction.
        let large: &[Window] = &[
            ("4x4_stride2_tails", (3, 36, 5, 9), 68, 4, 2, 1),
            ("model_4x4", (8, 128, 4, 4), 128, 4, 2, 1),
            // Weight gradients of 16 and 32 rows.
            ("2x2_stride2_to_rgb", (2, 32, 3, 5), 3, 2, 2, 0),
            ("2x2_stride2_to_8", (2, 32, 3, 5), 8, 2, 2, 0),
        ];
        windows(small, large, Conv::conv_transpose2d)
    },
};

/// Cases of convolutions; the large ones without finite differences.
fn windows(
    small: &[Window],
    large: &[Window],
    new: fn(Shape, usize, usize, usize, usize) -> Result<Conv>,
) -> Result<Vec<Case>> {
    let case = |&(name, (n, c, h, w), channels, kernel, stride, padding): &Window| {
        Ok(Case::new(name, new(Shape::new(n, c, h, w), channels, kernel, stride, padding)?))
    };
    let large = large.iter().map(|window| case(window).map(Case::not_differentiated));
    small.iter().map(case).chain(large).collect()
}

/// Linear layers.
pub const LINEAR: OpInfo = OpInfo {
    name: "linear",
    kernels: kernels::all_kernels,
    cases: || {
        let case = |name, x, out| Ok(Case::new(name, Conv::linear(x, out)?));
        let vector = Shape::vector;
        Ok(vec![
            case("one", vector(1), vector(1))?,
            case("to_image", Shape::new(2, 6, 1, 1), Shape::new(1, 5, 2, 3))?,
            case("from_image", Shape::new(2, 3, 3, 2), vector(9))?,
            case("7_to_6_odd", vector(7), vector(6))?,
            case("images", Shape::new(5, 3, 2, 2), Shape::new(1, 2, 3, 1))?,
            // Slightly larger than a tile of every variant in every direction.
            case("tails", Shape::new(131, 70, 1, 1), Shape::new(1, 9, 3, 3))?.not_differentiated(),
            case("model_decoder", Shape::new(32, 16, 1, 1), Shape::new(1, 256, 4, 4))?.not_differentiated(),
            case("square", Shape::new(5, 32, 1, 1), vector(32))?.not_differentiated(),
            // The last part of a sum that is split is shorter, and ends within a step.
            case("long_tail", Shape::new(9, 7, 1, 1), Shape::new(1, 1030, 1, 1))?.not_differentiated(),
        ])
    },
};

/// Convolutions and transposed convolutions, fused with the operations around them.
pub const FUSED_CONV: OpInfo = OpInfo {
    name: "fused_conv",
    kernels: || kernels::all_kernels().into_iter().chain(fused::kernels()).collect(),
    cases: || {
        let conv = |x, channels, kernel, stride| Conv::conv2d(x, channels, kernel, stride, kernel / 2);
        let up = |x, channels| Conv::conv_transpose2d(x, channels, 4, 2, 1);
        let norm =
            |x, training| BatchNorm::new(x, BatchNormConfig { training, relu: true, ..BatchNormConfig::default() });
        let normed = |conv: Conv, x| conv.with_norm(norm(x, true)?);
        let (small, tails, wide) = (Shape::new(2, 5, 5, 7), Shape::new(3, 36, 9, 9), Shape::new(5, 64, 8, 8));
        let to_rgb = Shape::new(2, 8, 12, 12);
        // Weight gradients of 16 and 32 rows.
        let (rows_16, rows_32) = (Shape::new(2, 16, 3, 5), Shape::new(2, 32, 3, 5));
        // More chunks than the gradient of a norm merges itself on a GPU.
        let chunks = Shape::new(9, 3, 31, 31);
        let all_tails = normed(conv(tails, 68, 3, 1)?, tails)?.with_residual().with_y_partials();
        let mut cases = vec![
            Case::new("norm_3x3", normed(conv(small, 6, 3, 1)?, small)?),
            Case::new("norm_1x1_residual", normed(conv(small, 7, 1, 1)?, small)?.with_residual()),
            Case::new("norm_3x3_stride2", normed(conv(small, 6, 3, 2)?, small)?),
            Case::new("norm_up", normed(up(small, 6)?, small)?),
            Case::new("norm_evaluation", conv(small, 6, 3, 1)?.with_norm(norm(small, false)?)?.with_residual())
                .fill("running_var", Distribution::Uniform(0.5, 2.0)),
            Case::new("residual", conv(small, 5, 3, 1)?.with_residual()),
            Case::new("norm_to_rgb", normed(conv(to_rgb, 3, 3, 1)?, to_rgb)?),
        ];
        let mut without_differences = vec![
            Case::new("norm_3x3_recomputed", normed(conv(tails, 6, 3, 1)?, tails)?.with_residual().again())
                .fill("stats", Distribution::Uniform(-1.0, 1.0)),
            Case::new("stem_statistics", conv(Shape::new(3, 3, 8, 8), 33, 3, 1)?.with_y_partials()),
            Case::new("1x1_statistics_tails", normed(conv(wide, 36, 1, 1)?, wide)?.with_y_partials()),
            Case::new("up_statistics", normed(up(wide, 36)?, wide)?.with_y_partials()),
            Case::new("1x1_16_to_32", normed(conv(rows_16, 32, 1, 1)?, rows_16)?),
            Case::new("1x1_32_to_32", normed(conv(rows_32, 32, 1, 1)?, rows_32)?),
            Case::new("many_chunks", normed(conv(chunks, 3, 1, 1)?, chunks)?),
            Case::new("far_mean", normed(conv(wide, 16, 1, 1)?, wide)?).fill("x", Distribution::Normal(1e3, 1e-2)),
        ];
        // The statistics of x are drawn here, so that no difference in x changes them.
        let given = all_tails.with_partials().map(|conv| Case::new("all_tails", conv));
        without_differences.extend(given.map(|case| case.fill("partials", Distribution::Uniform(0.5, 1.5))));
        cases.extend(without_differences.into_iter().map(Case::not_differentiated));
        Ok(cases)
    },
};
