//! The table of operations, and the cases in which each one is checked.

use std::fmt;

use crate::error::Result;
use crate::runtime::kernel::Kernel;
use crate::runtime::op::{Op, basic, conv, norm, optim, vae};

/// How the values of an operand are drawn in a check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Normal with mean and standard deviation.
    Normal(f32, f32),
    /// Uniform in `[from, to)`.
    Uniform(f32, f32),
    /// Integers from 0 to 255.
    Bytes,
    /// Normal, but at least this far from zero: for functions with a kink there.
    AwayFromZero(f32),
    /// Written by an earlier pass of the reference.
    Computed,
    /// The same value everywhere.
    Constant(f32),
    /// These values in logical order, repeated if the operand is longer.
    Values(&'static [f32]),
}

/// A configured operation to check, and how to fill its operands.
#[derive(Debug)]
pub struct Case {
    /// Unique in the operation: `3x3_stride2_odd`.
    pub name: String,
    /// The operation.
    pub op: Box<dyn Op>,
    /// Operands that are not drawn from a standard normal distribution.
    pub fills: Vec<(&'static str, Distribution)>,
    /// Whether finite differences apply. False for cases about size or rounding, and for operations that are their own gradient.
    pub differentiable: bool,
}

impl Case {
    /// A case with standard normal operands.
    pub fn new(name: impl Into<String>, op: impl Op) -> Self {
        Self { name: name.into(), op: Box::new(op), fills: Vec::new(), differentiable: true }
    }

    /// The same case with another distribution of an operand.
    #[must_use]
    pub fn fill(mut self, operand: &'static str, fill: Distribution) -> Self {
        self.fills.push((operand, fill));
        self
    }

    /// The same case without the finite-difference check.
    #[must_use]
    pub fn not_differentiated(mut self) -> Self {
        self.differentiable = false;
        self
    }

    /// Returns the distribution of an operand, if the case sets one.
    #[must_use]
    pub fn fill_of(&self, operand: &str) -> Option<Distribution> {
        self.fills.iter().rev().find(|(name, _)| *name == operand).map(|(_, fill)| *fill)
    }
}

/// An entry of the table of operations.
#[derive(Clone, Copy)]
pub struct OpInfo {
    /// Kind of the operation.
    pub name: &'static str,
    /// Returns all kernels in all variants.
    pub kernels: fn() -> Vec<&'static Kernel>,
    /// Returns the cases that every check runs: the smallest legal shape, odd sizes, tails of every tile, each stride, batch 1.
    pub cases: fn() -> Result<Vec<Case>>,
}

impl fmt::Debug for OpInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpInfo").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The table of operations.
pub static OPS: &[&OpInfo] = &[
    &conv::CONV2D,
    &conv::CONV_TRANSPOSE2D,
    &conv::LINEAR,
    &conv::FUSED_CONV,
    &norm::batch::INFO,
    &norm::position::INFO,
    &basic::relu::INFO,
    &basic::add::INFO,
    &basic::upsample::INFO,
    &basic::global_avg_pool::INFO,
    &vae::reparameterize::INFO,
    &basic::image_decode::INFO,
    &vae::elbo::INFO,
    &optim::grad_norm::INFO,
    &optim::adam::INFO,
    &optim::restore_states::INFO,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::{Profile, Target};

    #[test]
    fn dispatches_accumulate_exactly_when_a_write_does() {
        for case in OPS.iter().flat_map(|op| (op.cases)().unwrap()) {
            for pass in case.op.passes().backward {
                for on in [false, true] {
                    let accumulate = vec![on; pass.writes.len()];
                    for &variant in case.op.variants(pass.name) {
                        let profile = Profile { subgroup: Some((8, 8)), ..Profile::WEBGPU };
                        let target = Target { profile: &profile, variant: Some(variant), accumulate: &accumulate };
                        let lowered = case.op.lower(pass.name, &target).unwrap();
                        let any = lowered.dispatches.iter().any(|dispatch| dispatch.accumulate);
                        assert_eq!(any, on, "{} {} {variant}", case.name, pass.name);
                    }
                }
            }
        }
    }
}
