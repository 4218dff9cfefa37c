//! First values of parameters and running statistics.

use super::{Graph, Region, Tensor};
use crate::error::Result;
use crate::runtime::op::Init;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Purpose;

/// First values of the tensors of a region, as PyTorch's layers start by default, from the seed alone: tensor number i draws from
/// stream i.
pub fn initial(graph: &Graph, region: Region, seed: u64) -> Result<Vec<Vec<f32>>> {
    let draw = |(i, tensor): (usize, &Tensor)| match tensor.init {
        Init::Constant(value) => Ok(vec![value; tensor.spec.len()]),
        Init::FanIn(fan_in) => {
            let bound = 1.0 / (fan_in as f64).sqrt();
            rng::uniforms(&mut rng::stream(seed, Purpose::Init, i as u64), tensor.spec.len(), bound as f32)
        }
    };
    graph.tensors(region).iter().enumerate().map(draw).collect()
}
