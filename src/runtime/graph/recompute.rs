//! Checkpointing: values inside a segment of the forward graph are not kept for the backward pass but computed a second time
//! when it gets there (Chen et al., arXiv:1604.06174). A rewrite of a graph with gradients; what it computes stays the same, bit
//! for bit.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Graph, Node, Storage, Value, ValueId};
use crate::error::{Error, Result};
use crate::runtime::op::{Op, Pass};

impl Graph {
    /// The same training graph, which keeps of each segment of the forward pass only what is read outside of it and what cannot be
    /// computed again ([`Op::recompute`]). `segment_of` finds a forward node's segment in its name; nodes
    /// without one keep everything.
    pub fn with_recompute(mut self, segment_of: impl Fn(&str) -> Option<&str>) -> Result<Self> {
        let backward = self.nodes.split_off(self.forward);
        let segments: Vec<Option<String>> =
            self.nodes.iter().map(|node| segment_of(&node.name).map(str::to_owned)).collect();
        let mut kept: HashSet<ValueId> = self.outputs.values().copied().collect();
        let storage: HashMap<ValueId, &String> = (self.nodes.iter().zip(&segments))
            .filter_map(|(node, segment)| Some((node, segment.as_ref()?)))
            .flat_map(|(node, segment)| node.writes.iter().map(move |value| (*value, segment)))
            .collect();
        for (node, segment) in self.nodes.iter().zip(&segments) {
            kept.extend(node.reads.iter().filter(|value| storage.get(value).copied() != segment.as_ref()));
        }
        let mut again: HashMap<&String, Vec<Node>> = HashMap::new();
        let mut replaced: HashMap<ValueId, ValueId> = HashMap::new();
        let mut values = std::mem::take(&mut self.values);
        for (node, segment) in self.nodes.iter().zip(&segments) {
            let (Some(segment), Some(twin)) = (segment, Twin::of(node, &kept)?) else { continue };
            let mut bound = Vec::new();
            for arg in &twin.pass.reads {
                let value = node.bound(*arg)?;
                bound.push((*arg, replaced.get(&value).copied().unwrap_or(value)));
            }
            for arg in &twin.pass.writes {
                let value = node.bound(*arg)?;
                let old = values.get(value.0).ok_or_else(|| Error::bug("a value went missing"))?;
                let copy = Value { name: format!("{}.again", old.name), spec: old.spec, storage: Storage::Local };
                values.push(copy);
                bound.push((*arg, ValueId(values.len() - 1)));
                if !kept.contains(&value) {
                    replaced.insert(value, ValueId(values.len() - 1));
                }
            }
            let accumulate = vec![false; twin.pass.writes.len()];
            again.entry(segment).or_default().push(Node::new(&node.name, twin.op, twin.pass, bound, accumulate)?);
        }
        self.values = values;
        let mut nodes = Vec::new();
        for mut node in backward {
            for value in &node.reads {
                if replaced.contains_key(value)
                    && let Some(segment) = storage.get(value)
                {
                    nodes.extend(again.remove(*segment).unwrap_or_default().into_iter().map(|node| (node, true)));
                }
            }
            for value in node.reads.iter_mut().chain(node.bound.iter_mut().map(|(_, value)| value)) {
                *value = replaced.get(value).copied().unwrap_or(*value);
            }
            nodes.push((node, false));
        }
        // What nobody reads was needed in the forward pass alone.
        let mut read = HashSet::new();
        let mut live = Vec::new();
        for (node, again) in nodes.into_iter().rev() {
            if !again || node.writes.iter().any(|value| read.contains(value)) {
                read.extend(node.reads.iter().copied());
                live.push(node);
            }
        }
        self.nodes.extend(live.into_iter().rev());
        Ok(self)
    }
}

/// What computes a node's outputs again.
struct Twin {
    op: Arc<dyn Op>,
    pass: Pass,
}

impl Twin {
    /// `None` where the node cannot run twice or all that it writes is kept.
    fn of(node: &Node, kept: &HashSet<ValueId>) -> Result<Option<Self>> {
        let op = match node.op.recompute()? {
            Some(op) => op,
            None if node.updates.is_empty() => Arc::clone(&node.op),
            None => return Ok(None),
        };
        let pass = op.passes().forward;
        let writes = pass.writes.iter().map(|arg| node.bound(*arg)).collect::<Result<Vec<_>>>()?;
        Ok(writes.iter().any(|value| !kept.contains(value)).then_some(Self { op, pass }))
    }
}
