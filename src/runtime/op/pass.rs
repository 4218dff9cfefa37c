//! The computations of an operation: which tensors each one reads and writes, and how much work it is.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Arg, operand};
use crate::runtime::op::{Op, spec_of};

/// One computation of an operation: `forward`, or a part of the gradient.
///
/// A backward pass is scheduled when a gradient that it writes is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Name, unique in the operation.
    pub name: &'static str,
    /// Tensors read, in the order of the reference.
    pub reads: Vec<Arg>,
    /// Tensors written, in the order of the reference. Gradients may be accumulated into instead.
    pub writes: Vec<Arg>,
    /// State operands changed in place. They follow the writes in the order of the reference.
    pub updates: Vec<Arg>,
}

impl Pass {
    /// A pass without updates.
    pub fn new(
        name: &'static str,
        reads: impl IntoIterator<Item = Arg>,
        writes: impl IntoIterator<Item = Arg>,
    ) -> Self {
        let (reads, writes) = (reads.into_iter().collect(), writes.into_iter().collect());
        Self { name, reads, writes, updates: vec![] }
    }

    /// The pass `forward`, whose tensors are all operands.
    pub fn forward(
        reads: impl IntoIterator<Item = &'static str>,
        writes: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        Self::new("forward", reads.into_iter().map(operand), writes.into_iter().map(operand))
    }

    /// The same pass, which also changes these state operands.
    #[must_use]
    pub fn updating(mut self, states: impl IntoIterator<Item = &'static str>) -> Self {
        self.updates.extend(states.into_iter().map(operand));
        self
    }

    /// All tensors in the order of the reference: reads, writes, updates.
    pub fn args(&self) -> impl Iterator<Item = Arg> + '_ {
        self.reads.iter().chain(&self.writes).chain(&self.updates).copied()
    }
}

/// The passes of an operation.
#[derive(Clone, Debug)]
pub struct Passes {
    /// Computes the outputs and saved operands.
    pub forward: Pass,
    /// Compute gradients.
    pub backward: Vec<Pass>,
    /// Gradients that need no computation, each with the tensor that it equals: `(grad("a"), grad("y"))`.
    pub aliases: Vec<(Arg, Arg)>,
}

impl Passes {
    /// A forward pass without gradients.
    #[must_use]
    pub fn only(forward: Pass) -> Self {
        Self { forward, backward: vec![], aliases: vec![] }
    }

    /// All passes, the forward pass first.
    pub fn iter(&self) -> impl Iterator<Item = &Pass> {
        std::iter::once(&self.forward).chain(&self.backward)
    }

    /// Returns the pass called `name`.
    pub fn get(&self, name: &str) -> Result<&Pass> {
        self.iter().find(|pass| pass.name == name).ok_or_else(|| Error::bug(format!("no pass {name}")))
    }
}

/// Work of a pass: what an ideal device would have to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flop: f64,
    /// Bytes of all tensors, each read and written once, padding included.
    pub bytes: f64,
}

impl Cost {
    /// The cost of accessing every tensor of `pass` once and of `flop` operations.
    pub fn of(op: &dyn Op, pass: &Pass, flop: f64) -> Result<Self> {
        let mut bytes = 0;
        // Updates are read and written.
        for arg in pass.args().chain(pass.updates.iter().copied()) {
            bytes += spec_of(op, arg)?.device_bytes();
        }
        Ok(Self { flop, bytes: bytes as f64 })
    }
}
