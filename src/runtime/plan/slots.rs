//! Slots: buffers shared by values and scratch whose lifetimes do not overlap.
//!
//! Assignment is greedy, largest first (Pisarchyk and Lee, arXiv:2001.03288). Each value starts at the beginning of its slot, because
//! WebGPU tracks usage by buffer: one dispatch may not read one range and write another of the same buffer.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::runtime::graph::{Graph, Storage, ValueId};
use crate::runtime::kernel::Lowered;
use crate::runtime::plan::joined_sums::Workspace;
use crate::runtime::plan::{BufferId, BufferRange};

/// First and last node that touch a value.
pub type Lifetime = (usize, usize);

/// Returns the lifetime of each value; `None` for values that no node touches. Outputs live to the end.
#[must_use]
pub fn lifetimes(graph: &Graph) -> Vec<Option<Lifetime>> {
    let mut lifetimes: Vec<Option<Lifetime>> = vec![None; graph.values().len()];
    for (i, node) in graph.nodes().iter().enumerate() {
        for ValueId(v) in node.touches() {
            let lifetime = lifetimes[v].get_or_insert((i, i));
            lifetime.1 = i;
        }
    }
    for ValueId(v) in graph.outputs().values() {
        if let Some(lifetime) = &mut lifetimes[*v] {
            lifetime.1 = usize::MAX;
        }
    }
    lifetimes
}

/// The slots of a plan.
pub(super) struct Slots {
    /// Range of each value of the graph; `None` for those that are not local or that no node touches.
    pub(super) values: Vec<Option<BufferRange>>,
    /// Ranges of the scratch buffers of each node.
    pub(super) scratch: Vec<Vec<BufferRange>>,
    /// Ranges of the workspaces.
    pub(super) workspaces: Vec<BufferRange>,
    /// Size of each slot in bytes.
    pub(super) sizes: Vec<u64>,
    /// Size of the slots if nothing shared one.
    pub(super) unshared: u64,
}

/// Assigns slots to the local values of `graph`, to the scratch of `lowered`, its nodes, and to workspaces, which hold some of the scratch.
pub(super) fn assign(graph: &Graph, lowered: &[Lowered], workspaces: &[Workspace], reuse: bool) -> Slots {
    let mut requests = Vec::new();
    for (value, lifetime) in graph.values().iter().zip(lifetimes(graph)) {
        if let (Storage::Local, Some(lifetime)) = (value.storage, lifetime) {
            requests.push(Request { bytes: value.spec.device_bytes() as u64, lifetime });
        }
    }
    // The workspace, offset and size of scratch buffers, by node and number.
    let within =
        workspaces.iter().enumerate().flat_map(|(at, w)| w.scratch().map(move |(key, place)| (key, (at, place))));
    let within: HashMap<_, _> = within.collect();
    for (i, lowered) in lowered.iter().enumerate() {
        let own = lowered.scratch.iter().enumerate().filter(|(scratch, _)| !within.contains_key(&(i, *scratch)));
        requests.extend(own.map(|(_, &bytes)| Request { bytes: bytes as u64, lifetime: (i, i) }));
    }
    requests.extend(workspaces.iter().map(|w| Request { bytes: w.bytes, lifetime: w.nodes }));
    let (chosen, sizes) = pack(&requests, reuse);
    let range = |(&slot, request): (&usize, &Request)| BufferRange {
        buffer: BufferId::Slot(slot),
        offset: 0,
        bytes: request.bytes,
    };
    let mut ranges = chosen.iter().zip(&requests).map(range);
    let values = graph.values().iter().zip(lifetimes(graph)).map(|(value, lifetime)| match value.storage {
        Storage::Local if lifetime.is_some() => ranges.next(),
        _ => None,
    });
    let values = values.collect();
    let last = requests.len() - workspaces.len();
    let workspaces: Vec<BufferRange> = chosen.iter().zip(&requests).skip(last).map(range).collect();
    let scratch = lowered.iter().enumerate().map(|(i, lowered)| {
        let range = |scratch| match within.get(&(i, scratch)) {
            Some(&(at, (offset, bytes))) => workspaces.get(at).map(|range| BufferRange { offset, bytes, ..*range }),
            None => ranges.next(),
        };
        (0..lowered.scratch.len()).filter_map(range).collect()
    });
    let scratch = scratch.collect();
    Slots { values, scratch, workspaces, sizes, unshared: requests.iter().map(|r| r.bytes).sum() }
}

/// A value or scratch buffer that needs a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    bytes: u64,
    /// First and last node that use it.
    lifetime: Lifetime,
}

/// Returns the slot of each request and the size of each slot. Requests whose lifetimes overlap never share one.
fn pack(requests: &[Request], reuse: bool) -> (Vec<usize>, Vec<u64>) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&i| (Reverse(requests[i].bytes), requests[i].lifetime, i));
    let mut slots: Vec<(u64, Vec<Lifetime>)> = Vec::new();
    let mut chosen = vec![0; requests.len()];
    for i in order {
        let Request { bytes, lifetime } = requests[i];
        let free = |taken: &[Lifetime]| taken.iter().all(|t| t.1 < lifetime.0 || lifetime.1 < t.0);
        let slot = slots.iter().position(|(_, taken)| reuse && free(taken)).unwrap_or_else(|| {
            slots.push((bytes, Vec::new()));
            slots.len() - 1
        });
        slots[slot].1.push(lifetime);
        chosen[i] = slot;
    }
    (chosen, slots.into_iter().map(|(bytes, _)| bytes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_share_a_slot_only_if_their_lifetimes_are_disjoint() {
        let request = |bytes, first, last| Request { bytes, lifetime: (first, last) };
        let requests = [request(16, 0, 1), request(64, 1, 2), request(32, 2, 3), request(16, 3, 4), request(8, 0, 9)];
        let (chosen, slots) = pack(&requests, true);
        assert_eq!(chosen[1], chosen[3]);
        assert_eq!(chosen[0], chosen[2]);
        assert_eq!(slots, [64, 32, 8]);
        assert_eq!(pack(&requests, false).1.len(), 5);
    }
}
