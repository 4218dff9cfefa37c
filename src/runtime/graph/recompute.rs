//! Activation recomputation: the backward pass recomputes values inside a segment of the forward graph instead of keeping them
//! (gradient checkpointing, Chen et al., arXiv:1604.06174).
//!
//! A rewrite of a graph with gradients. Results are bit-identical.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::graph::{Graph, Node, Storage, Value, ValueId};
use crate::runtime::op::{Op, Pass};

impl Graph {
    /// Keeps of each segment of the forward pass only the values that are read outside of it and those that cannot be recomputed
    /// ([`Op::recompute`]).
    ///
    /// `segment_of` maps the name of a forward node to its segment. Nodes without one keep all their values.
    ///
    /// # Errors
    /// Those of [`Op::recompute`].
    pub fn with_recompute(mut self, segment_of: impl Fn(&str) -> Option<&str>) -> Result<Self> {
        let backward = self.nodes.split_off(self.forward);
        let segments: Vec<Option<String>> =
            self.nodes.iter().map(|node| segment_of(&node.name).map(str::to_owned)).collect();
        let produced_in: HashMap<ValueId, &String> = (self.nodes.iter().zip(&segments))
            .filter_map(|(node, segment)| Some((node, segment.as_ref()?)))
            .flat_map(|(node, segment)| node.writes.iter().map(move |value| (*value, segment)))
            .collect();
        let mut kept: HashSet<ValueId> = self.outputs.values().copied().collect();
        for (node, segment) in self.nodes.iter().zip(&segments) {
            kept.extend(node.reads.iter().filter(|value| produced_in.get(value).copied() != segment.as_ref()));
        }
        // Nodes that recompute a segment, in the order of its forward nodes, and the values that they replace.
        let mut recompute: HashMap<&String, Vec<Node>> = HashMap::new();
        let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
        for (node, segment) in self.nodes.iter().zip(&segments) {
            let (Some(segment), Some((op, pass))) = (segment, recomputation(node, &kept)?) else { continue };
            let mut bound = Vec::new();
            for arg in &pass.reads {
                let value = node.bound(*arg)?;
                bound.push((*arg, replaced.get(&value).copied().unwrap_or(value)));
            }
            for arg in &pass.writes {
                let value = node.bound(*arg)?;
                let old = self.values.get(value.0).ok_or_else(|| Error::bug("a node writes an unknown value"))?;
                let copy = Value { name: format!("{}.recomputed", old.name), spec: old.spec, storage: Storage::Local };
                self.values.push(copy);
                let copy = ValueId(self.values.len() - 1);
                bound.push((*arg, copy));
                if !kept.contains(&value) {
                    replaced.insert(value, copy);
                }
            }
            let accumulate = vec![false; pass.writes.len()];
            recompute.entry(segment).or_default().push(Node::new(&node.name, op, pass, bound, accumulate)?);
        }
        // A segment is recomputed before the first backward node that reads one of its values.
        let mut nodes = Vec::new();
        for mut node in backward {
            for value in &node.reads {
                if replaced.contains_key(value)
                    && let Some(segment) = produced_in.get(value)
                {
                    let segment = recompute.remove(*segment).unwrap_or_default();
                    nodes.extend(segment.into_iter().map(|node| (node, true)));
                }
            }
            for value in node.reads.iter_mut().chain(node.bound.iter_mut().map(|(_, value)| value)) {
                *value = replaced.get(value).copied().unwrap_or(*value);
            }
            nodes.push((node, false));
        }
        let live = without_unread(nodes);
        self.nodes.extend(live);
        Ok(self)
    }
}

/// Drops recomputed nodes whose values no later node reads: the backward pass does not need them.
fn without_unread(nodes: Vec<(Node, bool)>) -> impl Iterator<Item = Node> {
    let mut read = HashSet::new();
    let mut live = Vec::new();
    for (node, recomputed) in nodes.into_iter().rev() {
        if !recomputed || node.writes.iter().any(|value| read.contains(value)) {
            read.extend(node.reads.iter().copied());
            live.push(node);
        }
    }
    live.into_iter().rev()
}

/// Returns the operation and pass that recompute the outputs of `node`; `None` if it cannot run twice or all that it writes is kept.
fn recomputation(node: &Node, kept: &HashSet<ValueId>) -> Result<Option<(Arc<dyn Op>, Pass)>> {
    // What was exchanged is not exchanged a second time.
    if node.op.exchange(node.pass.name).is_some() {
        return Ok(None);
    }
    let op = match node.op.recompute()? {
        Some(op) => op,
        None if node.updates.is_empty() => Arc::clone(&node.op),
        None => return Ok(None),
    };
    let pass = op.passes().forward;
    let writes = pass.writes.iter().map(|arg| node.bound(*arg)).collect::<Result<Vec<_>>>()?;
    Ok(writes.iter().any(|value| !kept.contains(value)).then_some((op, pass)))
}
