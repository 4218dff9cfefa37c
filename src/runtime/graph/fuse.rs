//! Operator fusion: rewrites the forward graph, before differentiation. The fused operations have backward passes of their own, so
//! the backward pass is fused, too.
//!
//! | rule | from | to |
//! | --- | --- | --- |
//! | norm and ReLU | norm -> ReLU | a norm with a ReLU |
//! | prologue | norm with ReLU -> convolution | the convolution normalizes its input while loading it; the activation is never stored |
//! | epilogue | convolution -> residual add | the convolution adds the residual before it stores its output |
//! | statistics | convolution -> convolutions with a prologue | the first one sums its output for the norms of the others |
//!
//! The statistics rule serves two norms of the same value, `norm1` and `skip_norm`, with the same sums.
//!
//! In the backward passes of such a convolution, the epilogue of backward-input applies the ReLU mask and computes both sums of the
//! norm's gradient, and the prologue of backward-weight normalizes. The gradient of the norm needs the complete sums, so it is a
//! pass of its own, which also adds the gradient of the residual. In the prologues of the next two kernels it would be computed 2 to
//! 18 times for each element, and their loads are what limits them.
//!
//! A rule applies if the value in between has no other consumer and is not an output. Names and parameters stay the same.

use std::collections::HashMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::graph::{Bound, Graph, Node, Storage, ValueId};
use crate::runtime::kernel::operand;
use crate::runtime::op::{Add, BatchNorm, Conv, MomentsNorm, Op, PositionNorm, Relu, spec_of};

impl Graph {
    /// Fuses the operations of a forward graph.
    ///
    /// # Errors
    /// Those of the constructors of fused operations.
    pub fn fused(self) -> Result<Self> {
        let mut fuse = Fuse { uses: HashMap::new(), graph: self };
        fuse.norm_and_relu()?;
        fuse.prologues()?;
        fuse.epilogues()?;
        fuse.statistics()?;
        Ok(fuse.graph)
    }
}

struct Fuse {
    graph: Graph,
    /// Number of nodes that read a value; being an output counts as one.
    uses: HashMap<ValueId, usize>,
}

impl Fuse {
    fn count_uses(&mut self) {
        self.uses.clear();
        let reads = self.graph.nodes.iter().flat_map(|node| &node.reads);
        for value in reads.chain(self.graph.outputs.values()) {
            *self.uses.entry(*value).or_default() += 1;
        }
    }

    /// Returns the node that writes `value`, if only node `reader` reads it.
    fn sole_producer(&self, value: ValueId, reader: usize) -> Option<usize> {
        let at = self.graph.nodes.iter().take(reader).position(|node| node.writes.contains(&value))?;
        (self.uses.get(&value) == Some(&1)).then_some(at)
    }

    fn node(&self, at: usize) -> Result<&Node> {
        self.graph.nodes.get(at).ok_or_else(|| Error::bug("no such node"))
    }

    /// Replaces node `at` by a forward call of `op`.
    fn replace(&mut self, at: usize, name: &str, op: impl Op + 'static, bound: Bound) -> Result<()> {
        let pass = op.passes().forward;
        let accumulate = vec![false; pass.writes.len()];
        let node = Node::new(name, Arc::new(op), pass, bound, accumulate)?;
        *self.graph.nodes.get_mut(at).ok_or_else(|| Error::bug("no such node"))? = node;
        Ok(())
    }

    /// Removes nodes, which must be in descending order.
    fn remove_nodes(&mut self, nodes: Vec<usize>) {
        for at in nodes {
            self.graph.nodes.remove(at);
        }
    }

    fn norm_and_relu(&mut self) -> Result<()> {
        self.count_uses();
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
            } else if let Some(norm) = norm.op.downcast_ref::<MomentsNorm>() {
                let norm = norm.with_relu();
                self.replace(producer, &name, norm, bound)?;
            } else {
                continue;
            }
            dead.push(at);
        }
        self.remove_nodes(dead);
        Ok(())
    }

    fn prologues(&mut self) -> Result<()> {
        self.count_uses();
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
        self.remove_nodes(dead);
        Ok(())
    }

    fn epilogues(&mut self) -> Result<()> {
        self.count_uses();
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
                // The fused node takes the place of the sum, where the other branch is available.
                let mut bound = rebound(&node.bound, "y", y);
                bound.push((operand("residual"), residual));
                let name = node.name.clone();
                self.replace(at, &name, conv.with_residual(), bound)?;
                dead.push(producer);
                break;
            }
        }
        dead.sort_unstable_by(|a, b| b.cmp(a));
        self.remove_nodes(dead);
        Ok(())
    }

    fn statistics(&mut self) -> Result<()> {
        for at in 0..self.graph.nodes.len() {
            let node = self.node(at)?;
            let Some(conv) = convolution(node) else { continue };
            let y = node.operand("y")?;
            let mut consumers = Vec::new();
            for (i, consumer) in self.graph.nodes.iter().enumerate() {
                if let Some(next) = convolution(consumer).and_then(Conv::with_partials)
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
                self.replace(i, &name, next, bound)?;
            }
        }
        Ok(())
    }
}

/// Returns the convolution of a node, unless it is a linear layer.
fn convolution(node: &Node) -> Option<Conv> {
    node.op.downcast_ref::<Conv>().copied().filter(|conv| !conv.is_linear())
}

/// Returns `bound` with another value for one operand.
fn rebound(bound: &Bound, name: &'static str, value: ValueId) -> Bound {
    bound.iter().map(|&(arg, v)| (arg, if arg == operand(name) { value } else { v })).collect()
}
