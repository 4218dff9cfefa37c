//! Batch norms over the images of several processes.

use std::sync::Arc;

use crate::error::Result;
use crate::runtime::graph::{Graph, Storage};
use crate::runtime::kernel::operand;
use crate::runtime::op::{BatchMoments, BatchNorm, MomentsNorm, spec_of};

impl Graph {
    /// Splits each batch norm in training into the moments of its batch and the normalization with them, between which processes can
    /// exchange the moments. [`Graph::fused`] and gradients come afterwards. Names of parameters and running statistics stay.
    ///
    /// A run without exchanges computes what the batch norms compute, up to rounding.
    ///
    /// # Errors
    /// Those of a graph whose nodes do not have their operands.
    pub fn with_synchronized_norms(mut self) -> Result<Self> {
        for node in std::mem::take(&mut self.nodes) {
            let norm = node.op.downcast_ref::<BatchNorm>().copied();
            let Some(norm) = norm.filter(|norm| norm.config().training) else {
                self.nodes.push(node);
                continue;
            };
            let moments = BatchMoments::of(norm);
            let name = format!("{}.moments", node.name);
            let value = self.add_value(name.clone(), spec_of(&moments, operand("moments"))?, Storage::Local);
            let bound = vec![(operand("x"), node.operand("x")?), (operand("moments"), value)];
            self.push_forward(&name, Arc::new(moments), bound)?;
            let mut bound = vec![(operand("moments"), value)];
            for name in ["x", "weight", "bias", "running_mean", "running_var", "y"] {
                bound.push((operand(name), node.operand(name)?));
            }
            self.push_forward(&node.name, Arc::new(MomentsNorm::of(norm)), bound)?;
        }
        Ok(self)
    }
}
