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

use super::{Graph, Node, Storage, ValueId};
use crate::error::{Error, Result};
use crate::runtime::op::{Fusible, Op, spec_of};

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

/// The operands of a node, by name.
type Bound = Vec<(&'static str, ValueId)>;

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
        let node = Node::new(name, Arc::new(op), pass, bound, vec![false; pass.writes.len()])?;
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
            let Fusible::Relu = relu.op.fusible() else { continue };
            let (x, y) = (relu.operand("x")?, relu.operand("y")?);
            let Some(producer) = self.sole_producer(x, at) else { continue };
            let norm = self.node(producer)?;
            let (name, bound) = (norm.name.clone(), rebound(&norm.bound, "y", y));
            match norm.op.fusible() {
                Fusible::BatchNorm(norm) => self.replace(producer, &name, norm.with_relu(), bound)?,
                Fusible::PositionNorm(norm) => self.replace(producer, &name, norm.with_relu(), bound)?,
                _ => continue,
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
            let Fusible::Conv(conv) = node.op.fusible() else { continue };
            if conv.has_norm() {
                continue;
            }
            let Some(producer) = self.sole_producer(node.operand("x")?, at) else { continue };
            let before = self.node(producer)?;
            let Fusible::BatchNorm(norm) = before.op.fusible() else { continue };
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
                bound.push((to, before.operand(from)?));
            }
            let (name, path) = (node.name.clone(), format!("{}.stats", before.name));
            let fused = conv.with_norm(norm)?;
            bound.push(("stats", self.graph.add_value(path, spec_of(&fused, "stats")?, Storage::Local)));
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
            let Fusible::Add = add.op.fusible() else { continue };
            let (a, b, y) = (add.operand("a")?, add.operand("b")?, add.operand("y")?);
            for (sum, residual) in [(a, b), (b, a)] {
                let Some(producer) = self.sole_producer(sum, at) else { continue };
                let node = self.node(producer)?;
                let Fusible::Conv(conv) = node.op.fusible() else { continue };
                if conv.has_residual() || node.operand("y")? != sum {
                    continue;
                }
                // It moves to where the other branch has been computed.
                let mut bound = rebound(&node.bound, "y", y);
                bound.push(("residual", residual));
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
            let Fusible::Conv(conv) = node.op.fusible() else { continue };
            let y = node.operand("y")?;
            let mut consumers = Vec::new();
            for (i, consumer) in self.graph.nodes.iter().enumerate() {
                if let Fusible::Conv(next) = consumer.op.fusible()
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
            let spec = spec_of(&fused, "y_partials")?;
            let partials = self.graph.add_value(format!("{name}.y_partials"), spec, Storage::Local);
            bound.push(("y_partials", partials));
            self.replace(at, &name, fused, bound)?;
            for (i, next, name, mut bound) in consumers {
                bound.push(("partials", partials));
                self.replace(i, &name, next.with_partials()?, bound)?;
            }
        }
        Ok(())
    }
}

/// `bound` with another value for one operand.
fn rebound(bound: &[(&'static str, ValueId)], name: &str, value: ValueId) -> Bound {
    bound.iter().map(|&(n, v)| (n, if n == name { value } else { v })).collect()
}
