//! Operations: what each computes, its gradient, its kernels, its cost and how it is tested.
//!
//! An operation is one file with one type that implements [`Op`], a shader or several, and one line in [`OPS`]. Everything
//! that must not be forgotten is a required method; the gradient check, the cross-check against the reference, the shader
//! reflection test and the bench iterate over the table.

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::tensor::shape::Spec;

pub mod basic;
pub mod conv;
pub mod norm;
pub mod optim;
pub mod vae;

pub use self::basic::{Add, GlobalAvgPool, ImageDecode, Relu, Upsample};
pub use self::conv::{Conv2d, ConvTranspose2d, FusedConv, Linear};
pub use self::norm::{BatchNorm, BatchNormConfig, PositionNorm, PositionNormConfig};
pub use self::optim::{Adam, AdamConfig, GradNorm, RestoreStates, StepScalars};
pub use self::vae::{Elbo, Reparameterize};
pub use crate::runtime::kernel::{Access, Bind, DeviceKind, Dispatch, Kernel, Lowered, Profile};

/// What an operand is to its operation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Role {
    /// Comes from another node or from the host; gradients may flow into it.
    Input,
    /// Comes from another node or from the host; never differentiated (noise, pixels, step scalars).
    Constant,
    /// Learned.
    Param(Init),
    /// Kept from step to step but not learned (running statistics), with its first value.
    State(f32),
    /// Given to other nodes.
    Output,
    /// Written by `forward` for the backward passes, or for a fused operation behind this one.
    Saved,
}

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same number everywhere.
    Constant(f32),
    /// Uniform in ±1/sqrt(fan_in): PyTorch's default for convolutions, linear layers and their biases (Kaiming-uniform with
    /// a = sqrt(5)).
    FanIn(usize),
}

/// A named tensor of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// The letter of the formula: `x`, `weight`. Its gradient is called `d` + name.
    pub name: &'static str,
    /// What it is for.
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

/// One computation of an operation: `forward`, or a part of the gradient.
///
/// Passes name the operands that they touch. A backward pass reads and writes gradients by their names (`dy`, `dx`); it is
/// scheduled when a gradient that it writes is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pass {
    /// Name, unique in the operation.
    pub name: &'static str,
    /// Operands read, in the reference's order.
    pub reads: &'static [&'static str],
    /// Operands written, in the reference's order. Gradients may be accumulated into instead.
    pub writes: &'static [&'static str],
    /// State operands changed in place: after the writes in the reference's order.
    pub updates: &'static [&'static str],
}

/// The passes of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Passes {
    /// Computes the outputs and saved operands.
    pub forward: Pass,
    /// Compute gradients.
    pub backward: &'static [Pass],
    /// Gradients that need no computation, as (gradient, what it equals): `("da", "dy")`.
    pub aliases: &'static [(&'static str, &'static str)],
}

impl Passes {
    /// The pass called `name`.
    pub fn get(&self, name: &str) -> Result<Pass> {
        std::iter::once(&self.forward)
            .chain(self.backward)
            .find(|e| e.name == name)
            .copied()
            .ok_or_else(|| Error::bug(format!("no pass {name}")))
    }
}

/// Work of a pass: what an ideal device would have to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flop: f64,
    /// Bytes of all operands read and written once, padding included.
    pub bytes: f64,
}

impl Cost {
    /// The cost of touching every operand of `pass` once and doing `flop` operations.
    pub fn of(op: &dyn Op, pass: &Pass, flop: f64) -> Result<Self> {
        let mut bytes = 0;
        for name in pass.reads.iter().chain(pass.writes).chain(pass.updates).chain(pass.updates) {
            bytes += spec_of(op, name)?.device_bytes();
        }
        Ok(Self { flop, bytes: bytes as f64 })
    }
}

/// What an operation does to a per-channel constant added to one of its inputs; used to find biases whose gradient is exactly
/// zero (a bias before a batch norm in training).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelShift {
    /// The outputs do not change.
    Absorbs,
    /// The outputs move by a per-channel constant.
    Forwards,
    /// Anything else.
    Depends,
}

/// An operation that fusion knows.
#[derive(Clone, Copy, Debug)]
pub enum Fusible {
    /// A convolution, transposed or not, and what is fused with it already.
    Conv(FusedConv),
    /// A batch norm, with or without the ReLU behind it.
    BatchNorm(BatchNorm),
    /// A position norm, likewise.
    PositionNorm(PositionNorm),
    /// A ReLU.
    Relu,
    /// A sum of two tensors.
    Add,
    /// Any other.
    Other,
}

/// How a pass is to be put on a device.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The device.
    pub profile: &'a Profile,
    /// A variant asked for by name; without it the operation chooses by shape and profile.
    pub variant: Option<&'a str>,
    /// For each of the pass's writes, whether to add to what is there.
    pub accumulate: &'a [bool],
}

impl Target<'_> {
    /// Whether write number `i` accumulates, as an override's value.
    #[must_use]
    pub fn acc(&self, i: usize) -> f64 {
        if self.accumulate.get(i).copied().unwrap_or(false) { 1.0 } else { 0.0 }
    }
}

/// A configured operation with its shapes: everything known about one node of the graph.
///
/// Operands are handed to the reference in logical order (PyTorch's, row-major), and to kernels in the device layout of their
/// [`Spec`].
pub trait Op: fmt::Debug + Send + Sync {
    /// Name of the operation, e.g. `conv2d`.
    fn kind(&self) -> &'static str;

    /// All operands but gradients. Inputs and constants come first, in the order in which the graph passes them.
    fn operands(&self) -> Vec<Operand>;

    /// What can be computed.
    fn passes(&self) -> Passes;

    /// The variants that `pass` has for these shapes, best known first for a device without a profile; never empty.
    fn variants(&self, pass: &str) -> &'static [&'static str];

    /// The dispatches that compute `pass` on a device.
    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered>;

    /// Work of `pass`.
    fn cost(&self, pass: &Pass) -> Result<Cost>;

    /// What a shift of `input` does to the outputs. The default is always right, and may leave zero gradients unfound.
    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Depends
    }

    /// A parameter that adds a per-channel constant to the output and does nothing else.
    fn bias_param(&self) -> Option<&'static str> {
        None
    }

    /// For the backward pass under [`Graph::with_recompute`](crate::runtime::graph::Graph::with_recompute): an operation whose `forward` computes the
    /// outputs a second time, bit for bit, and changes no state, from operands of this one by the same names; saved ones may be
    /// among what it reads, and are then kept. `None`: this one's own `forward`, unless it updates something.
    fn recompute(&self) -> Result<Option<Arc<dyn Op>>> {
        Ok(None)
    }

    /// What [`Graph::fused`](crate::runtime::graph::Graph::fused) can do with it.
    fn fusible(&self) -> Fusible {
        Fusible::Other
    }

    /// [`reference!`](crate::reference) writes these from one generic function.
    #[doc(hidden)]
    fn reference_f32(&self, pass: &str, reads: &[&[f32]], writes: &mut [&mut [f32]]) -> Result<()>;
    #[doc(hidden)]
    fn reference_f64(&self, pass: &str, reads: &[&[f64]], writes: &mut [&mut [f64]]) -> Result<()>;
    #[doc(hidden)]
    fn reference_tracked(&self, pass: &str, reads: &[&[Tracked]], writes: &mut [&mut [Tracked]]) -> Result<()>;
}

use crate::runtime::tensor::real::Tracked;

/// Implements the reference methods of [`Op`] through the type's own
/// `fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()>`.
#[macro_export]
#[doc(hidden)]
macro_rules! reference {
    () => {
        fn reference_f32(&self, pass: &str, reads: &[&[f32]], writes: &mut [&mut [f32]]) -> $crate::error::Result<()> {
            self.reference(pass, reads, writes)
        }
        fn reference_f64(&self, pass: &str, reads: &[&[f64]], writes: &mut [&mut [f64]]) -> $crate::error::Result<()> {
            self.reference(pass, reads, writes)
        }
        fn reference_tracked(
            &self,
            pass: &str,
            reads: &[&[$crate::runtime::tensor::real::Tracked]],
            writes: &mut [&mut [$crate::runtime::tensor::real::Tracked]],
        ) -> $crate::error::Result<()> {
            self.reference(pass, reads, writes)
        }
    };
}

/// The error of a reference that was handed operands that its pass does not have.
pub(crate) fn no_such_entry(op: &dyn Op, pass: &str) -> Error {
    Error::bug(format!("{}: no pass `{pass}` with these operands", op.kind()))
}

/// Shape and layout of an operand or of a gradient (`d` + name).
pub fn spec_of(op: &dyn Op, name: &str) -> Result<Spec> {
    let operands = op.operands();
    let find = |name: &str| operands.iter().find(|o| o.name == name).map(|o| o.spec);
    find(name)
        .or_else(|| name.strip_prefix('d').and_then(find))
        .ok_or_else(|| Error::bug(format!("{}: no operand `{name}`", op.kind())))
}

/// How the numbers of an operand are drawn in a check.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Distribution {
    /// Normal with mean and standard deviation.
    Normal(f32, f32),
    /// Uniform in `[from, to)`.
    Uniform(f32, f32),
    /// Whole numbers from 0 to 255.
    Bytes,
    /// Normal, but at least this far from zero: for functions with a kink there.
    AwayFromZero(f32),
    /// Written by a `forward` run of the reference beforehand.
    Computed,
    /// One number, everywhere.
    Constant(f32),
    /// These numbers in logical order, from the start again where the operand is longer.
    Values(&'static [f32]),
}

/// A configured operation to check, with how to fill its operands.
#[derive(Debug)]
pub struct Case {
    /// Unique in the family: `3x3_stride2_odd`.
    pub name: String,
    /// The operation.
    pub op: Box<dyn Op>,
    /// Operands that are not to be drawn from a standard normal distribution.
    pub fills: Vec<(&'static str, Distribution)>,
    /// Whether finite differences apply: off for cases that exist for size or for rounding, and for operations that are their own
    /// gradient.
    pub differentiable: bool,
}

impl Case {
    /// A case with standard normal operands.
    pub fn new(name: impl Into<String>, op: impl Op + 'static) -> Self {
        Self { name: name.into(), op: Box::new(op), fills: Vec::new(), differentiable: true }
    }

    /// The same case with another distribution of an operand.
    #[must_use]
    pub fn fill(mut self, operand: &'static str, fill: Distribution) -> Self {
        self.fills.push((operand, fill));
        self
    }

    /// The same case left out of the finite-difference check.
    #[must_use]
    pub fn not_differentiated(mut self) -> Self {
        self.differentiable = false;
        self
    }
}

/// A line of the table of operations.
#[derive(Clone, Copy)]
pub struct OpInfo {
    /// Name.
    pub name: &'static str,
    /// All kernels in all variants.
    pub kernels: fn() -> Vec<&'static Kernel>,
    /// Cases that every check runs: the smallest legal shape, odd sizes, tails of every tile, each stride, batch 1.
    pub cases: fn() -> Result<Vec<Case>>,
}

impl fmt::Debug for OpInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpInfo").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The table of operations.
pub static OPS: &[&OpInfo] = &[
    &conv::conv2d::INFO,
    &conv::conv_transpose2d::INFO,
    &conv::linear::INFO,
    &conv::fused_conv::INFO,
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
