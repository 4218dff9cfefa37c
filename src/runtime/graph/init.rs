//! Initial values of parameters and running statistics.

use crate::error::Result;
use crate::runtime::graph::{Arena, Graph, Tensor};
use crate::runtime::op::Init;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

/// Returns initial values for the tensors of an arena, from the same distributions as the default initialisation of PyTorch's
/// layers.
///
/// They depend on `seed` alone: tensor `i` draws from sub-stream `i` of [`Stream::Init`].
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) for a fan-in of zero.
pub fn initial(graph: &Graph, arena: Arena, seed: u64) -> Result<Vec<Vec<f32>>> {
    let draw = |(i, tensor): (usize, &Tensor)| match tensor.init {
        Init::Constant(value) => Ok(vec![value; tensor.spec.len()]),
        Init::FanIn(fan_in) => {
            let bound = 1.0 / (fan_in as f64).sqrt();
            rng::uniforms(&mut rng::stream(seed, Stream::Init, i as u64), tensor.spec.len(), bound as f32)
        }
    };
    graph.tensors(arena).iter().enumerate().map(draw).collect()
}
