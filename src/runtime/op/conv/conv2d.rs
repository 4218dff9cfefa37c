//! Two-dimensional convolution with bias.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Lowered, grad, operand};
use crate::runtime::op::conv::core;
use crate::runtime::op::conv::core::{Gemm, Geometry, Layer, Operands};
use crate::runtime::op::conv::kernels;
use crate::runtime::op::{
    Case, Cost, FusedConv, Init, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// `y[n, o, oy, ox] = bias[o] + sum over i, ky, kx of x[n, i, oy * stride - padding + ky, ox * stride - padding + kx] *
/// weight[o, i, ky, kx]`, `x` being zero outside.
///
/// `x`: `[n, c, h, w]`, `weight`: `[oc, c, kernel, kernel]`, `bias`: `[oc]`, `y`: `[n, oc, oh, ow]` with
/// `oh = (h + 2 * padding - kernel) / stride + 1`, rounded down.
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    geometry: Geometry,
}

impl Conv2d {
    /// For an input of shape `x`. An [`Error::InvalidArgument`] if a size is zero or absurd, or the kernel is larger than the padded input.
    pub fn new(x: Shape, out_channels: usize, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let x = x.checked("conv2d", "x")?;
        core::check_window("conv2d", (kernel, kernel), stride, padding)?;
        let out = |size: usize| {
            let room = (size + 2 * padding).checked_sub(kernel);
            let fits = format!("at most {}, the padded input", size + 2 * padding);
            Ok(room.ok_or_else(|| Error::argument("kernel size of conv2d", fits, kernel))? / stride + 1)
        };
        let y = Shape::new(x.n, out_channels, out(x.h)?, out(x.w)?).checked("conv2d", "y")?;
        let geometry = Geometry { x, y, kernel: (kernel, kernel), stride, padding };
        core::check_weight("conv2d", &geometry)?;
        Ok(Self { geometry })
    }
}

impl Conv2d {
    /// The same with room for what is fused with it.
    pub fn fusible(&self) -> FusedConv {
        FusedConv::plain(Layer { geometry: self.geometry, transposed: false })
    }
}

impl Reference for Conv2d {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let g = &self.geometry;
        match (pass, reads, writes) {
            ("forward", [x, weight, bias], [y]) => g.forward(x, weight, Some(bias), y),
            ("backward_input", [dy, weight], [dx]) => g.backward_input(dy, weight, None, dx),
            ("backward_weight", [x, dy], [dweight]) => g.backward_weight(x, dy, dweight),
            ("backward_bias", [dy], [dbias]) => core::backward_bias(dy, g.y.c, g.y.h * g.y.w, dbias),
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for Conv2d {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let Geometry { x, y, kernel: (kh, kw), .. } = self.geometry;
        let fan_in = Role::Param(Init::FanIn(x.c * kh * kw));
        vec![
            Operand::new("x", Role::Input, Spec::nhwc(x)),
            Operand::new("weight", fan_in, Spec::conv_weight(y.c, x.c, kh, kw)),
            Operand::new("bias", fan_in, Spec::vector(y.c)),
            Operand::new("y", Role::Output, Spec::nhwc(y)),
        ]
    }

    fn passes(&self) -> Passes {
        core::passes()
    }

    fn variants(&self, pass: &str) -> &'static [&'static str] {
        core::variants(pass)
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let g = &self.geometry;
        match pass {
            "forward" => g.lower(
                Gemm::Forward,
                &Operands::plain(operand("x"), operand("weight"), Some(operand("bias")), operand("y")),
                target,
            ),
            "backward_input" => {
                g.lower(Gemm::BackwardInput, &Operands::plain(grad("y"), operand("weight"), None, grad("x")), target)
            }
            "backward_weight" => {
                g.lower(Gemm::BackwardWeight, &Operands::plain(operand("x"), grad("y"), None, grad("weight")), target)
            }
            "backward_bias" => core::lower_bias(g.y.pixels(), g.y.c.div_ceil(4), target),
            _ => Err(no_such_pass(self, pass)),
        }
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        self.geometry.cost(self, pass)
    }

    fn product_flop(&self, pass: &Pass) -> Option<f64> {
        (pass.name != "backward_bias").then(|| 2.0 * self.geometry.macs())
    }

    fn bias_param(&self) -> Option<&'static str> {
        Some("bias")
    }
}

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "conv2d",
    kernels: kernels::all_kernels,
    cases: || {
        // name, (n, c, h, w), output channels, kernel, stride, padding
        let small = [
            ("one", (1, 1, 1, 1), 1, 1, 1, 0),
            ("1x1_odd", (2, 3, 5, 7), 5, 1, 1, 0),
            ("1x1_stride2", (2, 8, 6, 6), 12, 1, 2, 0),
            ("3x3_stride2_odd", (3, 5, 7, 9), 7, 3, 2, 1),
            ("3x3_window_in_padding", (1, 2, 2, 2), 3, 3, 1, 4),
            ("5x5_stride3", (2, 5, 10, 11), 6, 5, 3, 2),
            ("2x2_stride5", (1, 3, 8, 3), 3, 2, 5, 1),
            ("from_rgb", (2, 3, 8, 8), 32, 3, 1, 1),
            ("to_rgb", (2, 32, 8, 8), 3, 3, 1, 1),
        ];
        // Over a tile of every variant in every direction, by a bit.
        let large = [
            ("3x3_tails", (3, 36, 7, 7), 68, 3, 1, 1),
            ("1x1_tails", (3, 68, 9, 9), 36, 1, 1, 0),
            ("3x3_stride2_tails", (5, 68, 11, 13), 36, 3, 2, 1),
            ("model_4x4", (8, 128, 4, 4), 128, 3, 1, 1),
        ];
        let mut cases = vec![];
        for (table, differentiable) in [(&small[..], true), (&large[..], false)] {
            for &(name, (n, c, h, w), oc, kernel, stride, padding) in table {
                let mut case = Case::new(name, Conv2d::new(Shape::new(n, c, h, w), oc, kernel, stride, padding)?);
                case.differentiable = differentiable;
                cases.push(case);
            }
        }
        Ok(cases)
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_follow_the_formula_and_absurd_ones_are_refused() {
        let x = Shape::new(2, 3, 9, 8);
        let y = |out, kernel, stride, padding| Conv2d::new(x, out, kernel, stride, padding).map(|c| c.geometry.y);
        assert_eq!(y(5, 3, 2, 1).unwrap(), Shape::new(2, 5, 5, 4));
        assert_eq!(y(5, 1, 1, 0).unwrap(), Shape::new(2, 5, 9, 8));
        assert!(y(5, 9, 1, 0).is_err());
        for (out, kernel, stride, padding) in [
            (0, 3, 1, 1),
            (5, 0, 1, 1),
            (5, 3, 0, 1),
            (usize::MAX, 3, 1, 1),
            (5, usize::MAX, 1, 1),
            (5, 3, 1, usize::MAX),
        ] {
            assert!(y(out, kernel, stride, padding).is_err());
        }
        // 2^18 * 2^6 * 2^14 numbers of weight.
        assert!(Conv2d::new(Shape::new(1, 1 << 18, 1, 1), 64, 128, 1, 64).is_err());
    }
}
