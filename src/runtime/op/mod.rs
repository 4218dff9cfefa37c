//! Operations: their formulas, gradients, kernels, costs and checks.
//!
//! An operation is a type that implements [`Op`] and [`Reference`], one or more shaders, and an entry in [`OPS`]. The gradient
//! check, the comparison with the reference, the shader reflection test and the benchmarks iterate over that table.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::tensor::Spec;
use crate::runtime::tensor::real::{Real, Tracked};

mod aliases;
pub mod basic;
mod case;
pub mod conv;
mod exchange;
pub mod norm;
pub mod optim;
mod pass;
mod registry;
pub mod vae;

pub use self::aliases::{current_key, current_name};
pub use self::basic::{Add, GlobalAvgPool, ImageDecode, Relu, Upsample};
pub use self::case::{Case, Distribution, OpInfo};
pub use self::conv::Conv;
pub use self::exchange::{Exchange, Exchanges, Gather, Part, Sum};
pub use self::norm::{BatchMoments, BatchNorm, BatchNormConfig, MomentsNorm, PositionNorm, PositionNormConfig};
pub use self::optim::{
    Accumulate, Adam, AdamConfig, Carry, GradNorm, MAX_MICRO_BATCHES, MicroBatch, ReplayStates, RestoreStates, Scale,
    StepScalars,
};
pub use self::pass::{Cost, Pass, Passes};
pub use self::registry::OPS;
pub use self::vae::{Elbo, ElboConfig, Likelihood, Reparameterize};
pub use crate::runtime::kernel::{
    Access, Arg, Bind, DeviceKind, Dispatch, Kernel, KernelRole, Lowered, Profile, Work, grad, operand,
};

/// What an operand is to its operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Comes from another node or from the host; gradients may flow into it.
    Input,
    /// Comes from another node or from the host; never differentiated (noise, images, step scalars).
    Constant,
    /// Trainable parameter.
    Param(Init),
    /// Kept from step to step but not trained (running statistics), with its initial value.
    State(f32),
    /// Read by other nodes.
    Output,
    /// Written by `forward` for the backward passes or for a fused operation that follows.
    Saved,
}

/// Initial values of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f32),
    /// Uniform in ±1/sqrt(fan_in): PyTorch's default for the weights and biases of convolutions and linear layers
    /// (Kaiming-uniform with a = sqrt(5)).
    FanIn(usize),
}

/// A named tensor of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// The letter of the formula: `x`, `weight`.
    pub name: &'static str,
    /// Its role in the operation.
    pub role: Role,
    /// Shape and layout.
    pub spec: Spec,
}

impl Operand {
    /// An operand.
    #[must_use]
    pub const fn new(name: &'static str, role: Role, spec: Spec) -> Self {
        Self { name, role, spec }
    }
}

/// Effect on the outputs of a per-channel constant that is added to an input. Finds the biases whose gradient is exactly zero (a
/// bias before a batch norm in training).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelShift {
    /// The outputs do not change.
    Absorbs,
    /// The outputs move by a per-channel constant.
    Forwards,
    /// Anything else.
    Depends,
}

/// The device and the choices for which a pass is lowered.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The device.
    pub profile: &'a Profile,
    /// A variant chosen by name; without it the operation chooses by shape and profile.
    pub variant: Option<&'a str>,
    /// For each of the pass's writes, whether to add to the existing contents.
    pub accumulate: &'a [bool],
}

impl Target<'_> {
    /// Whether write number `i` accumulates.
    #[must_use]
    pub fn acc(&self, i: usize) -> bool {
        self.accumulate.get(i).copied().unwrap_or(false)
    }
}

/// The CPU implementation of an operation: plain loops that look like the formula.
///
/// One generic function serves `f32` (the CPU executor), `f64` (finite differences) and [`Tracked`] (error estimates).
pub trait Reference {
    /// Computes `pass`. `reads` and `writes` hold the tensors of the pass in logical order (PyTorch's, row-major); the pass's updates
    /// follow its writes.
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()>;
}

/// [`Reference`] as a trait object: one method for each number type. Implemented for every [`Reference`].
pub trait ErasedReference {
    /// [`Reference::reference`] in single precision.
    fn reference_f32(&self, pass: &str, reads: &[&[f32]], writes: &mut [&mut [f32]]) -> Result<()>;
    /// [`Reference::reference`] in double precision.
    fn reference_f64(&self, pass: &str, reads: &[&[f64]], writes: &mut [&mut [f64]]) -> Result<()>;
    /// [`Reference::reference`] with error estimates.
    fn reference_tracked(&self, pass: &str, reads: &[&[Tracked]], writes: &mut [&mut [Tracked]]) -> Result<()>;
}

impl<R: Reference> ErasedReference for R {
    fn reference_f32(&self, pass: &str, reads: &[&[f32]], writes: &mut [&mut [f32]]) -> Result<()> {
        self.reference(pass, reads, writes)
    }

    fn reference_f64(&self, pass: &str, reads: &[&[f64]], writes: &mut [&mut [f64]]) -> Result<()> {
        self.reference(pass, reads, writes)
    }

    fn reference_tracked(&self, pass: &str, reads: &[&[Tracked]], writes: &mut [&mut [Tracked]]) -> Result<()> {
        self.reference(pass, reads, writes)
    }
}

/// A configured operation with its shapes: everything known about one node of the graph.
///
/// The reference gets operands in logical order (PyTorch's, row-major), kernels get them in the device layout of their [`Spec`].
pub trait Op: ErasedReference + Any + fmt::Debug + Send + Sync {
    /// Name of the operation, e.g. `conv2d`.
    fn kind(&self) -> &'static str;

    /// Name of the operation that this one was made from by fusion; a variant chosen for that one applies here, too.
    fn unfused_kind(&self) -> &'static str {
        self.kind()
    }

    /// All operands. Inputs and constants come first, in the order in which the graph passes them.
    fn operands(&self) -> Vec<Operand>;

    /// All passes.
    fn passes(&self) -> Passes;

    /// The variants that `pass` has for these shapes; never empty.
    fn variants(&self, pass: &str) -> &'static [&'static str];

    /// Returns the dispatches that compute `pass` on a device.
    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered>;

    /// Work of `pass`.
    fn cost(&self, pass: &Pass) -> Result<Cost>;

    /// Floating-point operations of the matrix product in `pass`, without what is fused with it; two per multiply-add. `None` for
    /// a pass that is no matrix product.
    fn product_flop(&self, _pass: &Pass) -> Option<f64> {
        None
    }

    /// Effect of a per-channel shift of `input` on the outputs. The default is always correct but may leave zero gradients undetected.
    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Depends
    }

    /// A parameter that only adds a per-channel constant to the output.
    fn bias_param(&self) -> Option<&'static str> {
        None
    }

    /// For the backward pass under [`Graph::with_recompute`](crate::runtime::graph::Graph::with_recompute): an operation whose
    /// `forward` computes the outputs a second time, bit for bit and without changing state, from operands of the same names. If it
    /// reads saved operands, those are kept. `None` stands for this operation's own `forward`, unless that updates something.
    fn recompute(&self) -> Result<Option<Arc<dyn Op>>> {
        Ok(None)
    }

    /// A tensor that `pass` writes and that processes exchange before the next node.
    fn exchange(&self, _pass: &str) -> Option<Exchange> {
        None
    }
}

impl dyn Op {
    /// Returns the operation if it is a `T`.
    #[must_use]
    pub fn downcast_ref<T: Op>(&self) -> Option<&T> {
        (self as &dyn Any).downcast_ref()
    }
}

/// Returns an error unless `pass` is the forward pass, for operations that have no other.
pub(crate) fn expect_forward(op: &dyn Op, pass: &str) -> Result<()> {
    if pass == "forward" { Ok(()) } else { Err(no_such_pass(op, pass)) }
}

/// The error of a reference that is called with operands that its pass does not have.
pub(crate) fn no_such_pass(op: &dyn Op, pass: &str) -> Error {
    Error::bug(format!("{}: no pass `{pass}` with these operands", op.kind()))
}

/// Returns shape and layout of a tensor of `op`. A gradient has those of its operand.
pub fn spec_of(op: &dyn Op, arg: Arg) -> Result<Spec> {
    let found = op.operands().into_iter().find(|o| o.name == arg.name());
    found.map(|o| o.spec).ok_or_else(|| Error::bug(format!("{}: no operand `{arg}`", op.kind())))
}
