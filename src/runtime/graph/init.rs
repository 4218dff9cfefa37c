//! First values of parameters and running statistics.

use super::{Arena, Graph, Tensor};
use crate::error::Result;
use crate::runtime::op::Init;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

/// First values of the tensors of a arena, as PyTorch's layers start by default, from the seed alone: tensor number i draws from
/// stream i.
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
