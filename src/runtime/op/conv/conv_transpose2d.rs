//! Two-dimensional transposed convolution with bias: the adjoint of a convolution, its three products with roles exchanged.

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

/// `y[n, o, iy * stride - padding + ky, ix * stride - padding + kx] += x[n, i, iy, ix] * weight[i, o, ky, kx]` over all `i`, `iy`,
/// `ix`, `ky`, `kx` that fall inside, starting from `bias[o]`.
///
/// `x`: `[n, c, h, w]`, `weight`: `[c, oc, kernel, kernel]`, `bias`: `[oc]`, `y`: `[n, oc, oh, ow]` with
/// `oh = (h - 1) * stride - 2 * padding + kernel`.
#[derive(Clone, Copy, Debug)]
pub struct ConvTranspose2d {
    /// Of the convolution that this is the adjoint of: its `x` is our `y`.
    adjoint: Geometry,
}

impl ConvTranspose2d {
    /// For an input of shape `x`. An [`Error::InvalidArgument`] if a size is zero or absurd, or nothing is left between the padding.
    pub fn new(x: Shape, out_channels: usize, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let op = "conv_transpose2d";
        let x = x.checked(op, "x")?;
        core::check_window(op, (kernel, kernel), stride, padding)?;
        let out = |size: usize| {
            let whole = (size - 1).saturating_mul(stride).saturating_add(kernel);
            let left = whole.checked_sub(2 * padding).filter(|&left| left > 0);
            left.ok_or_else(|| {
                Error::argument(format!("padding of {op}"), format!("less than {}", whole.div_ceil(2)), padding)
            })
        };
        let y = Shape::new(x.n, out_channels, out(x.h)?, out(x.w)?).checked(op, "y")?;
        let adjoint = Geometry { x: y, y: x, kernel: (kernel, kernel), stride, padding };
        core::check_weight(op, &adjoint)?;
        Ok(Self { adjoint })
    }
}

impl ConvTranspose2d {
    /// The same with room for what is fused with it.
    pub fn fusible(&self) -> FusedConv {
        FusedConv::plain(Layer { geometry: self.adjoint, transposed: true })
    }
}

impl Reference for ConvTranspose2d {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let g = &self.adjoint;
        match (pass, reads, writes) {
            ("forward", [x, weight, bias], [y]) => g.backward_input(x, weight, Some(bias), y),
            ("backward_input", [dy, weight], [dx]) => g.forward(dy, weight, None, dx),
            ("backward_weight", [x, dy], [dweight]) => g.backward_weight(dy, x, dweight),
            ("backward_bias", [dy], [dbias]) => core::backward_bias(dy, g.x.c, g.x.h * g.x.w, dbias),
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for ConvTranspose2d {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let Geometry { x: y, y: x, kernel: (kh, kw), .. } = self.adjoint;
        // PyTorch counts the elements of `weight[0]`, which are outputs here.
        let fan_in = Role::Param(Init::FanIn(y.c * kh * kw));
        vec![
            Operand::new("x", Role::Input, Spec::nhwc(x)),
            Operand::new("weight", fan_in, Spec::conv_weight(x.c, y.c, kh, kw)),
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
        let g = &self.adjoint;
        match pass {
            "forward" => g.lower(
                Gemm::BackwardInput,
                &Operands::plain(operand("x"), operand("weight"), Some(operand("bias")), operand("y")),
                target,
            ),
            "backward_input" => {
                g.lower(Gemm::Forward, &Operands::plain(grad("y"), operand("weight"), None, grad("x")), target)
            }
            "backward_weight" => {
                g.lower(Gemm::BackwardWeight, &Operands::plain(grad("y"), operand("x"), None, grad("weight")), target)
            }
            "backward_bias" => core::lower_bias(g.x.pixels(), g.x.c.div_ceil(4), target),
            _ => Err(no_such_pass(self, pass)),
        }
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        self.adjoint.cost(self, pass)
    }

    fn product_flop(&self, pass: &Pass) -> Option<f64> {
        (pass.name != "backward_bias").then(|| 2.0 * self.adjoint.macs())
    }

    fn bias_param(&self) -> Option<&'static str> {
        Some("bias")
    }
}

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "conv_transpose2d",
    kernels: kernels::all_kernels,
    cases: || {
        // name, (n, c, h, w), output channels, kernel, stride, padding
        let small = [
            ("one", (1, 1, 1, 1), 1, 1, 1, 0),
            ("4x4_stride2_odd", (1, 5, 3, 5), 7, 4, 2, 1),
            ("3x3_stride2", (2, 6, 4, 3), 5, 3, 2, 1),
            ("2x2_stride3_gaps", (1, 4, 3, 3), 4, 2, 3, 0),
            ("5x5_stride3", (2, 5, 4, 3), 6, 5, 3, 2),
        ];
        // Over a tile of every variant in every direction, by a bit.
        let large = [("4x4_stride2_tails", (3, 36, 5, 9), 68, 4, 2, 1), ("model_4x4", (8, 128, 4, 4), 128, 4, 2, 1)];
        let mut cases = vec![];
        for (table, differentiable) in [(&small[..], true), (&large[..], false)] {
            for &(name, (n, c, h, w), oc, kernel, stride, padding) in table {
                let op = ConvTranspose2d::new(Shape::new(n, c, h, w), oc, kernel, stride, padding)?;
                let mut case = Case::new(name, op);
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
        let x = Shape::new(2, 3, 4, 5);
        let y = |kernel, stride, padding| ConvTranspose2d::new(x, 7, kernel, stride, padding).map(|c| c.adjoint.x);
        assert_eq!(y(4, 2, 1).unwrap(), Shape::new(2, 7, 8, 10));
        assert_eq!(y(5, 3, 2).unwrap(), Shape::new(2, 7, 10, 13));
        assert!(y(1, 1, 2).is_err(), "nothing is left of 4 rows");
        assert!(y(4, usize::MAX, 1).is_err());
        assert!(y(4, 1 << 15, 1).is_err(), "more than 2^30 numbers");
    }
}
