//! Cases in which operations are checked, and what the table of operations holds of each.

use std::fmt;

use crate::error::Result;
use crate::runtime::kernel::Kernel;
use crate::runtime::op::Op;

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
