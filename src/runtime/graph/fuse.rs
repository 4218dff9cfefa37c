//! Fusion: fewer, fatter nodes that compute the same. A rewrite of the forward graph, before its gradients are made: the fused
//! operations bring their own backward passes, so the backward pass is fused with it.
//!
//! | rule | from | to |
//! | --- | --- | --- |
//! | norm and ReLU | norm -> ReLU | one norm that cuts |
//! | load | norm with ReLU -> convolution | the convolution normalizes what it loads; the activation is never stored |
//! | store | convolution -> residual add | the convolution adds before it stores |
//! | statistics | convolution -> such convolutions | it sums what it stores; two consumers (`norm1`, `skip_norm`) share the sums |
//!
//! The backward passes of such a convolution: the ReLU's mask and both sums of the norm's gradient in the store of backward-input,
//! normalization in the load of backward-weight. The norm gradient itself needs the finished sums, so it is a pass of its own,
//! which also adds the residual's gradient: applied in the loads of the next two kernels instead it would be computed 2 to 18
//! times over, and those loads are what limits them.
//!
//! A rule applies where the value in between has no other consumer and is no output. Names, parameters and their order stay.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Bound, Graph, Node, Storage, ValueId};
use crate::error::{Error, Result};
use crate::runtime::kernel::operand;
use crate::runtime::op::{Add, BatchNorm, Conv2d, ConvTranspose2d, FusedConv, Op, PositionNorm, Relu, spec_of};

impl Graph {
    /// The same forward graph with fused operations.
    pub fn fused(self) -> Result<Self> {
        let mut fuse = Fuse { uses: HashMap::new(), graph: self };
        fuse.norm_and_relu()?;
        fuse.loads()?;
        fuse.stores()?;
        fuse.statistics()?;
        Ok(fuse.graph)
    }
}

struct Fuse {
    graph: Graph,
    /// How many nodes read a value; outputs count as read.
    uses: HashMap<ValueId, usize>,
}

impl Fuse {
    fn count(&mut self) {
        self.uses.clear();
        let reads = self.graph.nodes.iter().flat_map(|node| &node.reads);
        for value in reads.chain(self.graph.outputs.values()) {
            *self.uses.entry(*value).or_default() += 1;
        }
    }

    /// The node that writes `value`, where node `reader` is all that reads it.
    fn sole_producer(&self, value: ValueId, reader: usize) -> Option<usize> {
        let at = self.graph.nodes.iter().take(reader).position(|node| node.writes.contains(&value))?;
        (self.uses.get(&value) == Some(&1)).then_some(at)
    }

    fn node(&self, at: usize) -> Result<&Node> {
        self.graph.nodes.get(at).ok_or_else(|| Error::bug("a node went missing"))
    }

    /// A forward node of `op` in the place of node `at`.
    fn replace(&mut self, at: usize, name: &str, op: impl Op + 'static, bound: Bound) -> Result<()> {
        let pass = op.passes().forward;
        let accumulate = vec![false; pass.writes.len()];
        let node = Node::new(name, Arc::new(op), pass, bound, accumulate)?;
        *self.graph.nodes.get_mut(at).ok_or_else(|| Error::bug("a node went missing"))? = node;
        Ok(())
    }

    /// Drops nodes, given from the last to the first.
    fn drop_nodes(&mut self, nodes: Vec<usize>) {
        for at in nodes {
            self.graph.nodes.remove(at);
        }
    }

    fn norm_and_relu(&mut self) -> Result<()> {
        self.count();
        let mut dead = Vec::new();
        for at in (0..self.graph.nodes.len()).rev() {
            let relu = self.node(at)?;
            if relu.op.downcast_ref::<Relu>().is_none() {
                continue;
            }
            let (x, y) = (relu.operand("x")?, relu.operand("y")?);
            let Some(producer) = self.sole_producer(x, at) else { continue };
            let norm = self.node(producer)?;
            let (name, bound) = (norm.name.clone(), rebound(&norm.bound, "y", y));
            if let Some(norm) = norm.op.downcast_ref::<BatchNorm>() {
                let norm = norm.with_relu();
                self.replace(producer, &name, norm, bound)?;
            } else if let Some(norm) = norm.op.downcast_ref::<PositionNorm>() {
                let norm = norm.with_relu();
                self.replace(producer, &name, norm, bound)?;
            } else {
                continue;
            }
            dead.push(at);
        }
        self.drop_nodes(dead);
        Ok(())
    }

    fn loads(&mut self) -> Result<()> {
        self.count();
        let mut dead = Vec::new();
        for at in (0..self.graph.nodes.len()).rev() {
            let node = self.node(at)?;
            let Some(conv) = convolution(node) else { continue };
            if conv.has_norm() {
                continue;
            }
            let Some(producer) = self.sole_producer(node.operand("x")?, at) else { continue };
            let before = self.node(producer)?;
            let Some(&norm) = before.op.downcast_ref::<BatchNorm>() else { continue };
            if !norm.config().relu {
                continue;
            }
            let mut bound = rebound(&node.bound, "x", before.operand("x")?);
            for (to, from) in [
                ("norm_weight", "weight"),
                ("norm_bias", "bias"),
                ("running_mean", "running_mean"),
                ("running_var", "running_var"),
            ] {
                bound.push((operand(to), before.operand(from)?));
            }
            let (name, path) = (node.name.clone(), format!("{}.stats", before.name));
            let fused = conv.with_norm(norm)?;
            let spec = spec_of(&fused, operand("stats"))?;
            bound.push((operand("stats"), self.graph.add_value(path, spec, Storage::Local)));
            self.replace(at, &name, fused, bound)?;
            dead.push(producer);
        }
        dead.sort_unstable_by(|a, b| b.cmp(a));
        self.drop_nodes(dead);
        Ok(())
    }

    fn stores(&mut self) -> Result<()> {
        self.count();
        let mut dead = Vec::new();
        for at in 0..self.graph.nodes.len() {
            let add = self.node(at)?;
            if add.op.downcast_ref::<Add>().is_none() {
                continue;
            }
            let (a, b, y) = (add.operand("a")?, add.operand("b")?, add.operand("y")?);
            for (sum, residual) in [(a, b), (b, a)] {
                let Some(producer) = self.sole_producer(sum, at) else { continue };
                let node = self.node(producer)?;
                let Some(conv) = convolution(node) else { continue };
                if conv.has_residual() || node.operand("y")? != sum {
                    continue;
                }
                // It moves to where the other branch has been computed.
                let mut bound = rebound(&node.bound, "y", y);
                bound.push((operand("residual"), residual));
                let name = node.name.clone();
                self.replace(at, &name, conv.with_residual(), bound)?;
                dead.push(producer);
                break;
            }
        }
        dead.sort_unstable_by(|a, b| b.cmp(a));
        self.drop_nodes(dead);
        Ok(())
    }

    fn statistics(&mut self) -> Result<()> {
        for at in 0..self.graph.nodes.len() {
            let node = self.node(at)?;
            let Some(conv) = convolution(node) else { continue };
            let y = node.operand("y")?;
            let mut consumers = Vec::new();
            for (i, consumer) in self.graph.nodes.iter().enumerate() {
                if let Some(next) = convolution(consumer)
                    && next.takes_statistics()
                    && consumer.operand("x")? == y
                {
                    consumers.push((i, next, consumer.name.clone(), consumer.bound.clone()));
                }
            }
            if consumers.is_empty() || conv.has_y_partials() {
                continue;
            }
            let (name, mut bound) = (node.name.clone(), node.bound.clone());
            let fused = conv.with_y_partials();
            let spec = spec_of(&fused, operand("y_partials"))?;
            let partials = self.graph.add_value(format!("{name}.y_partials"), spec, Storage::Local);
            bound.push((operand("y_partials"), partials));
            self.replace(at, &name, fused, bound)?;
            for (i, next, name, mut bound) in consumers {
                bound.push((operand("partials"), partials));
                self.replace(i, &name, next.with_partials()?, bound)?;
            }
        }
        Ok(())
    }
}

/// The node's convolution, with what is fused with it already.
fn convolution(node: &Node) -> Option<FusedConv> {
    let conv = node.op.downcast_ref::<Conv2d>().map(Conv2d::fusible);
    let transposed = || node.op.downcast_ref::<ConvTranspose2d>().map(ConvTranspose2d::fusible);
    conv.or_else(transposed).or_else(|| node.op.downcast_ref::<FusedConv>().copied())
}

/// `bound` with another value for one operand.
fn rebound(bound: &Bound, name: &'static str, value: ValueId) -> Bound {
    bound.iter().map(|&(arg, v)| (arg, if arg == operand(name) { value } else { v })).collect()
}
