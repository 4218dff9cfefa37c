//! Joins the last sums of gradients: on a GPU, a few dispatches take the place of one for each layer.
//!
//! The gradient of a weight is often computed in parts, which a dispatch of its own adds (split-K). Nothing reads the gradients before the
//! end of the backward pass. So the parts of many layers go into one buffer, a workspace, and a dispatch adds them all when it is
//! full, or before a node that reads a gradient. Each gradient is the same sum in the same order.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Node, Storage, ValueId};
use crate::runtime::kernel::{Bind, Dispatch, Lowered};
use crate::runtime::op::basic::column_sum::{MOST_JOINED, joined_sums, stored_sum};
use crate::runtime::plan::slots::Lifetime;
use crate::runtime::plan::{BufferId, BufferRange};

/// Size of a workspace in bytes. More would save few dispatches and take memory in the whole backward pass.
const WORKSPACE: u64 = 16 << 20;

/// The parts of some gradients, one matrix after the other, which one dispatch adds.
#[derive(Debug)]
pub(super) struct Workspace {
    pub(super) bytes: u64,
    /// First and last node whose parts it holds. The parts are added after the last one.
    pub(super) nodes: Lifetime,
    parts: Vec<Part>,
}

/// A scratch buffer that lies in a workspace.
#[derive(Debug)]
struct Part {
    node: usize,
    scratch: usize,
    offset: u64,
    bytes: u64,
    rows: usize,
    columns: usize,
    gradient: ValueId,
}

/// Takes the last sums of gradients out of `lowered`, the nodes of `graph`. Returns the workspaces of their parts, in order.
pub(super) fn take(graph: &Graph, lowered: &mut [Lowered], alignment: u64) -> Result<Vec<Workspace>> {
    let mut full = Vec::new();
    let mut open: Option<Workspace> = None;
    for (number, (node, lowered)) in graph.nodes().iter().zip(lowered).enumerate() {
        // The sums are gradients that this node reads, or adds to.
        if let Some(workspace) = open.take_if(|workspace| node.touches().any(|value| workspace.has(graph, value))) {
            full.push(workspace);
        }
        let Some(part) = part_of(graph, number, node, lowered)? else {
            if let Some(workspace) = &mut open {
                workspace.nodes.1 = number;
            }
            continue;
        };
        lowered.dispatches.pop();
        let bytes = part.bytes.next_multiple_of(alignment);
        let fits = |workspace: &Workspace| workspace.bytes + bytes <= WORKSPACE && workspace.parts.len() < MOST_JOINED;
        if let Some(workspace) = open.take_if(|workspace| !fits(workspace)) {
            full.push(workspace);
        }
        let new = Workspace { bytes: 0, nodes: (number, number), parts: Vec::new() };
        let workspace = open.get_or_insert(new);
        workspace.parts.push(Part { offset: workspace.bytes, ..part });
        workspace.bytes += bytes;
        workspace.nodes.1 = number;
    }
    full.extend(open);
    Ok(full)
}

/// The parts that the last dispatch of a node adds, if it stores a gradient of a parameter.
fn part_of(graph: &Graph, number: usize, node: &Node, lowered: &Lowered) -> Result<Option<Part>> {
    let Some((matrix, to)) = lowered.dispatches.last().and_then(stored_sum) else { return Ok(None) };
    let Bind::Scratch(scratch) = matrix.from else { return Ok(None) };
    let gradient = node.bound(to)?;
    if !matches!(graph.value(gradient).storage, Storage::Tensor(Arena::Grads, _)) {
        return Ok(None);
    }
    let missing = || Error::bug(format!("{} has no scratch buffer {scratch}", node.label()));
    let bytes = *lowered.scratch.get(scratch).ok_or_else(missing)? as u64;
    Ok(Some(Part { node: number, scratch, offset: 0, bytes, rows: matrix.rows, columns: matrix.columns, gradient }))
}

impl Workspace {
    /// Whether a value is one of the gradients, or contains them.
    fn has(&self, graph: &Graph, value: ValueId) -> bool {
        let storage = graph.value(value).storage;
        self.parts.iter().any(|part| match (storage, graph.value(part.gradient).storage) {
            (Storage::Tensors(Arena::Grads, first, end), Storage::Tensor(_, i)) => (first..end).contains(&i),
            (storage, gradient) => storage == gradient,
        })
    }

    /// Offset and size of the scratch buffers in it, with their nodes and numbers.
    pub(super) fn scratch(&self) -> impl Iterator<Item = ((usize, usize), (u64, u64))> {
        self.parts.iter().map(|part| ((part.node, part.scratch), (part.offset, part.bytes)))
    }

    /// The dispatch that adds the parts, and the range of [`Arena::Grads`] that has their gradients. Its bindings are the workspace and that
    /// range.
    pub(super) fn dispatch(&self, graph: &Graph) -> Result<(Dispatch, BufferRange)> {
        let range = |part: &Part| match graph.value(part.gradient).storage {
            Storage::Tensor(arena, i) => {
                let first = graph.tensors(arena)[i].offset;
                Ok(first..first + 16 * part.columns as u64)
            }
            _ => Err(Error::bug("a gradient is not in its arena")),
        };
        let ranges = self.parts.iter().map(range).collect::<Result<Vec<_>>>()?;
        let first = ranges.iter().map(|range| range.start).min().unwrap_or(0);
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let matrix = |(part, range): (&Part, &Range<u64>)| {
            [part.rows, part.columns, (part.offset / 16) as usize, ((range.start - first) / 16) as usize]
        };
        let matrices: Vec<_> = self.parts.iter().zip(&ranges).map(matrix).collect();
        let gradients = BufferRange { buffer: BufferId::Arena(Arena::Grads), offset: first, bytes: end - first };
        Ok((joined_sums(Bind::Scratch(0), Bind::Scratch(1), &matrices), gradients))
    }
}
