//! Fully connected layer: on the device a 1x1 convolution of pictures of one pixel.

use crate::error::Result;
use crate::runtime::kernel::{Lowered, grad, operand};
use crate::runtime::op::conv::core;
use crate::runtime::op::conv::core::{Gemm, Geometry, Operands};
use crate::runtime::op::conv::kernels;
use crate::runtime::op::{Case, Cost, Init, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec, pad4};

/// `y[n] = weight x[n] + bias`, a picture being a vector in the order channel, row, column.
///
/// `x`: `[n, c, h, w]`, `weight`: `[oc * oh * ow, c * h * w]`, `bias`: `[1, oc, oh, ow]`, `y`: `[n, oc, oh, ow]`.
#[derive(Clone, Copy, Debug)]
pub struct Linear {
    x: Shape,
    y: Shape,
    /// Of the device's matrix product: channels are whole rows of `x` and `y`, padding included.
    product: Geometry,
}

impl Linear {
    /// From inputs of shape `x` to outputs of the channels, height and width of `out`. An
    /// [`Error::InvalidArgument`](crate::error::Error::InvalidArgument) if a size is zero or absurd.
    pub fn new(x: Shape, out: Shape) -> Result<Self> {
        let x = x.checked("linear", "x")?;
        let y = out.with_n(x.n).checked("linear", "y")?;
        let vectors = |s: Shape| Shape::new(s.n, pad4(s.c) * s.h * s.w, 1, 1);
        let product = Geometry { x: vectors(x), y: vectors(y), kernel: (1, 1), stride: 1, padding: 0 };
        core::check_weight("linear", &product)?;
        Ok(Self { x, y, product })
    }
}

impl Reference for Linear {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let (inputs, outputs) = (self.x.c * self.x.h * self.x.w, self.y.c * self.y.h * self.y.w);
        match (pass, reads, writes) {
            ("forward", [x, weight, bias], [y]) => {
                for (y, x) in y.chunks_exact_mut(outputs).zip(x.chunks_exact(inputs)) {
                    for ((y, weight), bias) in y.iter_mut().zip(weight.chunks_exact(inputs)).zip(*bias) {
                        *y = core::dot(x, 1, weight) + *bias;
                    }
                }
            }
            ("backward_input", [dy, weight], [dx]) => {
                dx.fill(T::zero());
                for (dx, dy) in dx.chunks_exact_mut(inputs).zip(dy.chunks_exact(outputs)) {
                    for (weight, dy) in weight.chunks_exact(inputs).zip(dy) {
                        dx.iter_mut().zip(weight).for_each(|(dx, weight)| *dx += *dy * *weight);
                    }
                }
            }
            ("backward_weight", [x, dy], [dweight]) => {
                dweight.fill(T::zero());
                for (x, dy) in x.chunks_exact(inputs).zip(dy.chunks_exact(outputs)) {
                    for (dweight, dy) in dweight.chunks_exact_mut(inputs).zip(dy) {
                        dweight.iter_mut().zip(x).for_each(|(dweight, x)| *dweight += *dy * *x);
                    }
                }
            }
            ("backward_bias", [dy], [dbias]) => {
                dbias.fill(T::zero());
                for dy in dy.chunks_exact(outputs) {
                    dbias.iter_mut().zip(dy).for_each(|(dbias, dy)| *dbias += *dy);
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for Linear {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let fan_in = Role::Param(Init::FanIn(self.x.c * self.x.h * self.x.w));
        vec![
            Operand::new("x", Role::Input, Spec::nhwc(self.x)),
            Operand::new("weight", fan_in, Spec::linear_weight(self.x, self.y)),
            Operand::new("bias", fan_in, Spec::nhwc(self.y.with_n(1))),
            Operand::new("y", Role::Output, Spec::nhwc(self.y)),
        ]
    }

    fn passes(&self) -> Passes {
        core::passes()
    }

    fn variants(&self, pass: &str) -> &'static [&'static str] {
        core::variants(pass)
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let g = &self.product;
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
            "backward_bias" => core::lower_bias(g.y.n, g.y.c / 4, target),
            _ => Err(no_such_pass(self, pass)),
        }
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let per_image = self.y.len() as f64;
        let terms = if pass.name == "backward_bias" { 1.0 } else { (2 * self.x.c * self.x.h * self.x.w) as f64 };
        Cost::of(self, pass, per_image * terms)
    }

    fn product_flop(&self, pass: &Pass) -> Option<f64> {
        let per_image = (self.y.len() * 2 * self.x.c * self.x.h * self.x.w) as f64;
        (pass.name != "backward_bias").then_some(per_image)
    }

    fn bias_param(&self) -> Option<&'static str> {
        // With several pixels the bias is not the same for all of a channel.
        (self.y.h * self.y.w == 1).then_some("bias")
    }
}

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "linear",
    kernels: kernels::all_kernels,
    cases: || {
        let vector = Shape::vector;
        // name, x, out
        let small = [
            ("one", vector(1), vector(1)),
            ("to_picture", Shape::new(2, 6, 1, 1), Shape::new(1, 5, 2, 3)),
            ("from_picture", Shape::new(2, 3, 3, 2), vector(9)),
            ("pictures", Shape::new(5, 3, 2, 2), Shape::new(1, 2, 3, 1)),
        ];
        // Over a tile of every variant in every direction, by a bit.
        let large = [
            ("tails", Shape::new(131, 70, 1, 1), Shape::new(1, 9, 3, 3)),
            ("model_decoder", Shape::new(32, 16, 1, 1), Shape::new(1, 256, 4, 4)),
        ];
        let mut cases = vec![];
        for (table, differentiable) in [(&small[..], true), (&large[..], false)] {
            for &(name, x, out) in table {
                let mut case = Case::new(name, Linear::new(x, out)?);
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
    fn a_bias_is_a_shift_only_of_single_pixels() {
        let x = Shape::new(2, 8, 1, 1);
        assert_eq!(Linear::new(x, Shape::vector(4)).unwrap().bias_param(), Some("bias"));
        assert_eq!(Linear::new(x, Shape::new(1, 4, 2, 2)).unwrap().bias_param(), None);
        assert!(Linear::new(x, Shape::new(1, 0, 2, 2)).is_err());
        assert!(Linear::new(Shape::new(1, 1 << 16, 1, 1), Shape::vector(1 << 16)).is_err());
    }
}
