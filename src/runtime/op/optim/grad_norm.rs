//! The global norm of all gradients, and the finite flag that makes Adam reject a step.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Dispatch, Kernel, Lowered, kernel_params, operand, tree_levels, workgroups};
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "grad_norm";

/// norm = (sqrt(sum of the squares of all gradients), finite, 0, 0), where finite is 1 if every gradient, every loss term and the norm
/// itself are finite, and 0 otherwise.
///
/// `grads`: the flat buffer of all gradients, including its padding, which is zero. `terms`: four values, the loss
/// terms of [`Elbo`](crate::runtime::op::Elbo). `norm`: four values.
///
/// The squares are summed in single precision without scaling. Gradients above 1e19 give an infinite norm; their second moments would
/// be infinite, too. Gradients below 1e-19 count as zero.
#[derive(Clone, Copy, Debug)]
pub struct GradNorm {
    len: usize,
}

impl GradNorm {
    /// Creates the norm of `len` gradients.
    pub fn new(len: usize) -> Result<Self> {
        Shape::vector(len).checked(NAME, "grads")?;
        Ok(Self { len })
    }
}

impl Reference for GradNorm {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", [grads, terms], [norm]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        let length = blocked_sum(grads.iter().map(|g| g.squared())).sqrt();
        let finite = grads.iter().chain(*terms).chain([&length]).all(|g| g.to_f64().is_finite());
        let finite = T::from_f64(if finite { 1.0 } else { 0.0 });
        norm.copy_from_slice(&[length, finite, T::zero(), T::zero()]);
        Ok(())
    }
}

impl Op for GradNorm {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("grads", Role::Constant, Spec::flat(self.len)),
            Operand::new("terms", Role::Constant, Spec::flat(4)),
            Operand::new("norm", Role::Output, Spec::flat(4)),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["grads", "terms"], ["norm"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["two_stage"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::flat(self.len).device_bytes() / 16;
        let partials = workgroups(len, SPAN);
        let params = Params { len: len as u32, partials: partials as u32 }.bytes();
        let [grads, terms, norm] = ["grads", "terms", "norm"].map(|name| Bind::from(operand(name)));
        let sums = Bind::Scratch(0);
        let partial = Dispatch::new(&PARTIAL, [grads, sums]).iterations(ITEMS + tree_levels(WIDTH));
        let iterations = partials.div_ceil(FINISH_WIDTH) + tree_levels(FINISH_WIDTH);
        let finish = Dispatch::new(&FINISH, [sums, terms, norm]).iterations(iterations);
        Ok(Lowered {
            dispatches: vec![
                Dispatch { params: params.clone(), workgroups: partials, ..partial },
                Dispatch { params, ..finish },
            ],
            scratch: vec![8 * partials.next_multiple_of(2)],
        })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, (2 * self.len) as f64)
    }
}

kernel_params! {
    /// See `shaders/optim/grad_norm.wgsl`.
    Params { len: u32, partials: u32 }
}

/// Invocations of a workgroup in the first dispatch.
const WIDTH: usize = 64;
/// Vec4s that each of them sums.
const ITEMS: usize = 16;
pub(super) const SPAN: usize = WIDTH * ITEMS;
/// Invocations of the workgroup of the second dispatch.
const FINISH_WIDTH: usize = 256;

static PARTIAL: Kernel = Kernel {
    name: "grad_norm.forward.partial",
    variant: "two_stage",
    file: "optim/grad_norm.wgsl",
    source: include_str!("../../../../shaders/optim/grad_norm.wgsl"),
    entry: "partial",
    defines: &[("SUM_WIDTH", WIDTH as i64), ("ITEMS", ITEMS as i64)],
    bindings: &[("grads", Read), ("sums", ReadWrite)],
    params: Params::FIELDS,
    workgroup: [WIDTH as u32, 1, 1],
    ..Kernel::DEFAULT
};

static FINISH: Kernel = Kernel {
    name: "grad_norm.forward.finish",
    entry: "finish",
    defines: &[("SUM_WIDTH", FINISH_WIDTH as i64), ("ITEMS", ITEMS as i64)],
    bindings: &[("partials", Read), ("terms", Read), ("norm", ReadWrite)],
    workgroup: [FINISH_WIDTH as u32, 1, 1],
    ..PARTIAL
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&PARTIAL, &FINISH];

#[cfg(test)]
mod tests {
    use super::*;

    fn run(grads: &[f32], terms: &[f32]) -> [f32; 4] {
        let mut norm = [7.0; 4];
        GradNorm::new(grads.len()).unwrap().reference("forward", &[grads, terms], &mut [&mut norm]).unwrap();
        norm
    }

    #[test]
    fn finite_flag_covers_gradients_terms_and_norm() {
        assert_eq!(run(&[3.0, 0.0, -4.0], &[1.0; 3]), [5.0, 1.0, 0.0, 0.0]);
        assert_eq!(run(&[f32::MAX, 0.0], &[1.0; 3]), [f32::INFINITY, 0.0, 0.0, 0.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(run(&[1.0, bad], &[1.0; 3])[1], 0.0);
            assert_eq!(run(&[1.0], &[1.0, bad, 1.0])[1], 0.0);
        }
    }
}
