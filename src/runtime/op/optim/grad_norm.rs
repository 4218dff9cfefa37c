//! The global norm of all gradients, and the flag that keeps Adam from taking a step into NaN.

use crate::error::Result;
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, operand, workgroups};
use crate::runtime::op::{
    Case, Cost, Distribution, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::shape::{Shape, Spec};

/// norm = (sqrt(sum of the squares of all gradients), finite, 0, 0), finite being 1 where every gradient, every loss term and the norm
/// itself are finite and 0 otherwise.
///
/// `grads`: the flat buffer of all gradients, padding included (padding is zero). `terms`: the loss terms of
/// [`Elbo`](crate::runtime::op::vae::elbo::Elbo). `norm`: four numbers.
///
/// The squares are summed in single precision without scaling: gradients above 1e19 give an infinite norm (their squares would be
/// infinite second moments, too), gradients below 1e-19 count as zero.
#[derive(Clone, Copy, Debug)]
pub struct GradNorm {
    len: usize,
}

impl GradNorm {
    /// For `len` gradients.
    pub fn new(len: usize) -> Result<Self> {
        Shape::vector(len).checked("grad_norm", "grads")?;
        Ok(Self { len })
    }
}

impl Reference for GradNorm {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [grads, terms], [norm]) => {
                let length = blocked_sum(grads.iter().map(|g| g.squared())).sqrt();
                let finite = grads.iter().chain(*terms).chain([&length]).all(|g| g.to_f64().is_finite());
                let finite = T::from_f64(if finite { 1.0 } else { 0.0 });
                for (norm, v) in norm.iter_mut().zip([length, finite, T::zero(), T::zero()]) {
                    *norm = v;
                }
                Ok(())
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }
}

impl Op for GradNorm {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("grads", Role::Constant, Spec::flat(self.len)),
            Operand::new("terms", Role::Constant, Spec::flat(3)),
            Operand::new("norm", Role::Output, Spec::flat(4)),
        ]
    }

    fn passes(&self) -> Passes {
        let forward = Pass::forward(["grads", "terms"], ["norm"]);
        Passes::only(forward)
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["two_stage"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        if pass != "forward" {
            return Err(no_such_pass(self, pass));
        }
        let len = Spec::flat(self.len).device_bytes() / 16;
        let partials = workgroups(len, SPAN);
        let params = Params { len: len as u32, partials: partials as u32 }.bytes();
        let partial = Dispatch {
            params: params.clone(),
            workgroups: partials,
            ..Dispatch::new(&PARTIAL, [operand("grads").into(), Bind::Scratch(0)])
        };
        let bindings = [Bind::Scratch(0), operand("terms").into(), operand("norm").into()];
        let finish = Dispatch { params, ..Dispatch::new(&FINISH, bindings) };
        Ok(Lowered { dispatches: vec![partial, finish], scratch: vec![8 * partials.next_multiple_of(2)] })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, (2 * self.len) as f64)
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/grad_norm.wgsl`.
    Params { len: u32, partials: u32 }
}

/// Lanes of a workgroup of the first stage, and vec4s that each of them sums.
const WIDTH: usize = 64;
const ITEMS: usize = 16;
const SPAN: usize = WIDTH * ITEMS;
/// Lanes of the one workgroup of the second stage.
const FINISH_WIDTH: usize = 256;

static PARTIAL: Kernel = Kernel {
    name: "grad_norm.forward.partial",
    variant: "two_stage",
    file: "optim/grad_norm.wgsl",
    source: include_str!("../../../../shaders/optim/grad_norm.wgsl"),
    entry: "partial",
    defines: &[("SUM_WIDTH", WIDTH as i64), ("ITEMS", ITEMS as i64)],
    bindings: &[("grads", Access::Read), ("sums", Access::ReadWrite)],
    params: Params::FIELDS,
    workgroup: [WIDTH as u32, 1, 1],
    ..Kernel::DEFAULT
};

static FINISH: Kernel = Kernel {
    name: "grad_norm.forward.finish",
    entry: "finish",
    defines: &[("SUM_WIDTH", FINISH_WIDTH as i64), ("ITEMS", ITEMS as i64)],
    bindings: &[("partials", Access::Read), ("terms", Access::Read), ("norm", Access::ReadWrite)],
    workgroup: [FINISH_WIDTH as u32, 1, 1],
    ..PARTIAL
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "grad_norm",
    kernels: || vec![&PARTIAL, &FINISH],
    cases: || {
        // Nothing here is differentiated: the norm only decides about a step.
        let case = |name: &str, len| Ok(Case::new(name, GradNorm::new(len)?).not_differentiated());
        Ok(vec![
            case("one", 1)?,
            case("odd", 251)?,
            case("tail", 4 * SPAN + 7)?,
            case("partials_tail", 4 * SPAN * 3 - 1)?,
            case("model", 1_721_891)?,
            case("huge", 5000)?.fill("grads", Distribution::Normal(0.0, 1e17)),
            case("infinite_loss", 100)?.fill("terms", Distribution::Values(&[1.0, f32::NEG_INFINITY, 1.0])),
            case("nan_loss", 100)?.fill("terms", Distribution::Values(&[1.0, 1.0, f32::NAN])),
        ])
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    fn run(grads: &[f32], terms: &[f32]) -> [f32; 4] {
        let mut norm = [7.0; 4];
        GradNorm::new(grads.len()).unwrap().reference("forward", &[grads, terms], &mut [&mut norm]).unwrap();
        norm
    }

    #[test]
    fn the_flag_looks_at_all_numbers_and_their_norm() {
        assert_eq!(run(&[3.0, 0.0, -4.0], &[1.0; 3]), [5.0, 1.0, 0.0, 0.0]);
        assert_eq!(run(&[f32::MAX, 0.0], &[1.0; 3]), [f32::INFINITY, 0.0, 0.0, 0.0]);
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(run(&[1.0, bad], &[1.0; 3])[1], 0.0);
            assert_eq!(run(&[1.0], &[1.0, bad, 1.0])[1], 0.0);
        }
    }
}
