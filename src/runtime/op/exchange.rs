//! What processes that share a training step exchange.

use crate::error::Result;
use crate::runtime::kernel::Arg;

/// A tensor that several processes have each computed for their own images, and need for the images of all of them before the next node.
///
/// The executor reads the tensor and overwrites it with the result of [`Exchange::merge`]. The caller moves the contents between the
/// processes. In a single process nothing happens, and the tensor stays as it is.
#[derive(Clone, Copy, Debug)]
pub struct Exchange {
    /// The tensor, which the pass has written.
    pub arg: Arg,
    /// Merges the contents in all processes, in their order. The result must not depend on which of them merges, but for the weights.
    pub merge: fn(&[Part]) -> Vec<f32>,
}

/// What one process has computed.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// Contents of the tensor, in logical order.
    pub values: Vec<f32>,
    /// Weight of the loss of that process in the loss of the step, relative to that of the process that merges.
    pub weight: f64,
}

/// Hands out the contents of a tensor and returns those in all processes that have some, in their order.
pub type Gather<'a> = &'a mut dyn FnMut(&[f32]) -> Result<Vec<Part>>;

/// Replaces values by their sums over all processes.
pub type Sum<'a> = &'a mut dyn FnMut(&mut [f32]) -> Result<()>;

/// What a process exchanges with the others in a run.
#[expect(missing_debug_implementations, reason = "it has functions")]
pub enum Exchanges<'a> {
    /// Nothing.
    None,
    /// Tensors in the middle of the run ([`Op::exchange`](crate::runtime::op::Op::exchange)). The device waits.
    Tensors(Gather<'a>),
    /// The sums of the run ([`Graph::sums`](crate::runtime::graph::Graph::sums)), each while the device computes the next.
    Sums(Sum<'a>),
}
