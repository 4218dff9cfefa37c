//! The plan: every value a place in a buffer, every node its dispatches; made before any memory exists.
//!
//! Values that live within a step are put into *slots*, whole buffers shared by values whose lifetimes do not overlap: greedy,
//! largest first (Pisarchyk and Lee, arXiv:2001.03288). Slots are whole buffers because WebGPU tracks usage by buffer: one
//! dispatch may not read one range and write another of the same buffer.

pub mod texture_cache;

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Storage, ValueId};
use crate::runtime::kernel::{Access, Arg, Bind, DeviceKind, Dispatch, Profile};
use crate::runtime::op::{Cost, Op, Pass, Target, spec_of};
use crate::runtime::plan::texture_cache::{Staging, stage};

/// A buffer of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum BufferId {
    /// Shared by local values and scratch.
    Slot(usize),
    /// An input's own buffer, by number in the graph's name order.
    Input(usize),
    /// A arena.
    Arena(Arena),
}

/// A range of a buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BufferRange {
    /// Which buffer.
    pub buffer: BufferId,
    /// First byte.
    pub offset: u64,
    /// Length in bytes.
    pub bytes: u64,
}

/// A dispatch with the places of its bindings.
#[derive(Clone, Debug)]
pub struct BoundDispatch {
    /// Label: node and kernel.
    pub label: String,
    /// Number of the node in the graph.
    pub node: usize,
    /// What runs.
    pub dispatch: Dispatch,
    /// A place for each of the kernel's bindings.
    pub places: Vec<BufferRange>,
}

/// Bytes that the dispatches of a plan move, each tensor that one binds counted once for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read by kernels.
    pub loaded: u64,
    /// Written by kernels; what a kernel adds to counts as read too.
    pub stored: u64,
    /// Copied into textures: read and written once each.
    pub staged: u64,
}

impl Traffic {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.loaded + self.stored + 2 * self.staged
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        write!(f, "{:.2} GiB loaded, {:.2} stored", gib(self.loaded), gib(self.stored))?;
        if self.staged > 0 {
            write!(f, ", {:.2} copied into textures", gib(self.staged))?;
        }
        Ok(())
    }
}

/// What the planner may do.
#[derive(Clone, Debug)]
pub struct Options {
    /// Share slots between values; without it every value has its own buffer (same results, more memory: for checks).
    pub share: bool,
    /// Fuse operations ([`Graph::fused`]); without it every operation is a node of its own (same results but for rounding: for
    /// checks).
    pub fuse: bool,
    /// Keep only what residual blocks hand on and compute what is inside them again for the backward pass
    /// ([`Graph::with_recompute`]): less memory, more work, the same results.
    pub checkpoint: bool,
    /// Variants asked for, by operation (`conv2d`) or pass (`conv2d.forward`).
    pub variants: BTreeMap<String, String>,
    /// Most device memory to use in bytes, where the user set a bound.
    pub budget: Option<u64>,
    /// Longest estimated time of a submission in seconds ([`Plan`]'s `submissions`). By default half a second on a GPU and no bound on a
    /// software adapter, which no operating system takes for hung.
    pub longest_submission: Option<f64>,
}

impl Default for Options {
    /// Sharing and fusion on, everything kept, variants chosen by shape and device, no bound of memory.
    fn default() -> Self {
        Self {
            share: true,
            fuse: true,
            checkpoint: false,
            variants: BTreeMap::new(),
            budget: None,
            longest_submission: None,
        }
    }
}

impl Options {
    /// The variant that is asked for, if any is: by pass, by operation, or by pass and shapes ([`key`]). The first of these that says
    /// something decides. What is said of a convolution goes for what it was fused into, too.
    pub fn variant(&self, op: &dyn Op, pass: &Pass) -> Result<Option<&str>> {
        if self.variants.is_empty() {
            return Ok(None);
        }
        let kinds = [op.kind(), op.unfused_kind()];
        let by_entry = kinds.iter().find_map(|family| self.variants.get(&format!("{family}.{}", pass.name)));
        // A variant given for a whole operation goes to those of its passes that have it.
        let has = |variant: &&String| op.variants(pass.name).contains(&variant.as_str());
        let by_family = || kinds.iter().find_map(|family| self.variants.get(*family).filter(has));
        let found = by_entry.or_else(by_family);
        Ok(match found {
            Some(variant) => Some(variant),
            None => self.variants.get(&key(op, pass)?),
        }
        .map(String::as_str))
    }
}

/// What a choice for one shape is filed under: the pass with the shapes of all that it reads and writes.
pub fn key(op: &dyn Op, pass: &Pass) -> Result<String> {
    let shapes = |args: &mut dyn Iterator<Item = &Arg>| {
        let shapes = args.map(|arg| Ok(spec_of(op, *arg)?.to_string())).collect::<Result<Vec<_>>>();
        Ok::<_, Error>(shapes?.join(", "))
    };
    let (from, to) = (shapes(&mut pass.reads.iter())?, shapes(&mut pass.writes.iter().chain(&pass.updates))?);
    Ok(format!("{}.{} {from} -> {to}", op.kind(), pass.name))
}

/// Where everything lies and what runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sizes of the slots in bytes.
    pub slots: Vec<u64>,
    /// BufferRange of each value; `None` for values that nothing touches.
    pub places: Vec<Option<BufferRange>>,
    /// The dispatches of a step in order.
    pub dispatches: Vec<BoundDispatch>,
    /// The dispatches cut into ranges, one for each submission, so that no submission takes longer than an operating system lets a GPU
    /// be busy (two seconds on Windows) even on a GPU with 20 GFLOP/s and 4 GB/s. A node that takes longer by itself is not cut.
    pub submissions: Vec<Range<usize>>,
    /// The copies into textures between them.
    pub staging: Staging,
    /// What it needs.
    pub memory: Memory,
}

/// Device memory of a plan in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Those of [`Arena::ALL`], in that order.
    pub arenas: [u64; Arena::ALL.len()],
    /// Inputs of a step.
    pub inputs: u64,
    /// Activations, their gradients and scratch: the slots.
    pub slots: u64,
    /// Textures that tensors are staged in.
    pub stages: u64,
    /// What the slots would need without sharing.
    pub unshared: u64,
    /// Number of slots.
    pub slot_count: usize,
    /// Largest single binding.
    pub largest: u64,
}

impl Memory {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.arenas.iter().sum::<u64>() + self.inputs + self.slots + self.stages
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        for (arena, bytes) in Arena::ALL.iter().zip(self.arenas) {
            if bytes > 0 {
                writeln!(f, "  {:<22}{:>9.1} MiB", arena.to_string(), mib(bytes))?;
            }
        }
        writeln!(f, "  {:<22}{:>9.1} MiB", "inputs", mib(self.inputs))?;
        writeln!(
            f,
            "  {:<22}{:>9.1} MiB in {} buffers ({:.1} MiB without sharing)",
            "activations, gradients",
            mib(self.slots),
            self.slot_count,
            mib(self.unshared)
        )?;
        if self.stages > 0 {
            writeln!(f, "  {:<22}{:>9.1} MiB", "staging textures", mib(self.stages))?;
        }
        write!(f, "  {:<22}{:>9.1} MiB, largest binding {:.1} MiB", "total", mib(self.total()), mib(self.largest))
    }
}

/// First and last node that touch a value.
pub type Lifetime = (usize, usize);

/// The lifetime of each value in numbers of nodes; values kept for the host live to the end.
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

/// Something that needs a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Size in bytes.
    pub bytes: u64,
    /// When it is in use, both ends included.
    pub lifetime: Lifetime,
}

/// Slot of each request and size of each slot. Requests whose lifetimes overlap never share one.
#[must_use]
pub fn assign(requests: &[Request], share: bool) -> (Vec<usize>, Vec<u64>) {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(requests[i].bytes), requests[i].lifetime, i));
    let mut slots: Vec<(u64, Vec<Lifetime>)> = Vec::new();
    let mut chosen = vec![0; requests.len()];
    for i in order {
        let Request { bytes, lifetime } = requests[i];
        let free = |taken: &[Lifetime]| taken.iter().all(|t| t.1 < lifetime.0 || lifetime.1 < t.0);
        let slot = slots.iter().position(|(_, taken)| share && free(taken)).unwrap_or_else(|| {
            slots.push((bytes, Vec::new()));
            slots.len() - 1
        });
        slots[slot].1.push(lifetime);
        chosen[i] = slot;
    }
    (chosen, slots.into_iter().map(|(bytes, _)| bytes).collect())
}

/// Plans `graph` for a device: lowers every node, places every value, and refuses what cannot fit.
pub fn plan(graph: &Graph, profile: &Profile, options: &Options) -> Result<Plan> {
    let lifetimes = lifetimes(graph);
    let mut requests = Vec::new();
    let mut slot_of_value = vec![None; graph.values().len()];
    for (v, value) in graph.values().iter().enumerate() {
        if let (Storage::Local, Some(lifetime)) = (value.storage, lifetimes[v]) {
            slot_of_value[v] = Some(requests.len());
            requests.push(Request { bytes: value.spec.device_bytes() as u64, lifetime });
        }
    }
    let mut lowered = Vec::new();
    for (i, node) in graph.nodes().iter().enumerate() {
        let variant = options.variant(node.op.as_ref(), &node.pass)?;
        let low = node.op.lower(node.pass.name, &Target { profile, variant, accumulate: &node.accumulate });
        let low = low.map_err(|e| e.at_node(&node.name))?;
        let first_scratch = requests.len();
        requests.extend(low.scratch.iter().map(|&bytes| Request { bytes: bytes as u64, lifetime: (i, i) }));
        lowered.push((low, first_scratch));
    }
    let (chosen, slots) = assign(&requests, options.share);
    let place_request =
        |r: usize| BufferRange { buffer: BufferId::Slot(chosen[r]), offset: 0, bytes: requests[r].bytes };
    let inputs: Vec<ValueId> = graph.inputs().values().copied().collect();
    let places: Vec<Option<BufferRange>> = (0..graph.values().len())
        .map(|v| {
            let value = &graph.values()[v];
            let bytes = value.spec.device_bytes() as u64;
            Some(match value.storage {
                Storage::Local => return slot_of_value[v].map(place_request),
                Storage::Input => {
                    let buffer = BufferId::Input(inputs.iter().position(|i| i.0 == v)?);
                    BufferRange { buffer, offset: 0, bytes }
                }
                Storage::Tensor(arena, i) => {
                    BufferRange { buffer: BufferId::Arena(arena), offset: graph.tensors(arena)[i].offset, bytes }
                }
                Storage::Whole(arena) => BufferRange { buffer: BufferId::Arena(arena), offset: 0, bytes },
            })
        })
        .collect();
    let mut dispatches = Vec::new();
    for (i, (node, (low, first_scratch))) in graph.nodes().iter().zip(lowered).enumerate() {
        for dispatch in low.dispatches {
            let place = |bind: &Bind| match *bind {
                Bind::Scratch(s) => Ok(place_request(first_scratch + s)),
                Bind::Arg(arg) => {
                    let value = node.bound(arg)?;
                    places[value.0].ok_or_else(|| Error::bug(format!("{}: `{arg}` has no place", node.label())))
                }
            };
            let bound = dispatch.bindings.iter().map(place).collect::<Result<Vec<_>>>()?;
            let label = format!("{}/{}.{}", node.name, dispatch.kernel.name, dispatch.kernel.variant);
            dispatches.push(BoundDispatch { label, node: i, dispatch, places: bound });
        }
    }
    let longest = options.longest_submission.unwrap_or(match profile.kind {
        DeviceKind::Gpu => LONGEST,
        DeviceKind::Software => f64::INFINITY,
    });
    let submissions = submissions(graph, &dispatches, longest)?;
    let range = |p: &BufferRange| texture_cache::Range { buffer: p.buffer, offset: p.offset, bytes: p.bytes };
    let bound = dispatches.iter().map(|d| (d.dispatch.kernel, d.places.iter().map(range).collect()));
    let staging = stage(bound, &submissions);
    let memory = Memory {
        arenas: Arena::ALL.map(|r| if uses(graph, r) { graph.arena_bytes(r) } else { 0 }),
        inputs: inputs.iter().map(|v| graph.value(*v).spec.device_bytes() as u64).sum(),
        slots: slots.iter().sum(),
        stages: staging.textures.iter().sum(),
        unshared: requests.iter().map(|r| r.bytes).sum(),
        slot_count: slots.len(),
        largest: places.iter().flatten().map(|p| p.bytes).chain(slots.iter().copied()).max().unwrap_or(0),
    };
    let plan = Plan { slots, places, dispatches, submissions, staging, memory };
    plan.check(profile, options)?;
    Ok(plan)
}

fn uses(graph: &Graph, arena: Arena) -> bool {
    let homes = |storage: Storage| matches!(storage, Storage::Tensor(r, _) | Storage::Whole(r) if r == arena);
    graph.values().iter().any(|v| homes(v.storage))
}

/// Floating-point operations and bytes a second of the slowest GPU to be reckoned with.
const SLOW: (f64, f64) = (20e9, 4e9);
/// Longest estimated time of a submission there, in seconds.
const LONGEST: f64 = 0.5;

/// The dispatches cut into ranges of at most `longest` estimated seconds, or one node.
fn submissions(graph: &Graph, dispatches: &[BoundDispatch], longest: f64) -> Result<Vec<Range<usize>>> {
    let mut ranges: Vec<Range<usize>> = Vec::new();
    let (mut seconds, mut node) = (0.0, None);
    for (i, placed) in dispatches.iter().enumerate() {
        if node.replace(placed.node) != Some(placed.node) {
            let missing = || Error::bug(format!("{} is of no node", placed.label));
            let of = graph.nodes().get(placed.node).ok_or_else(missing)?;
            let Cost { flop, bytes } = of.op.cost(&of.pass)?;
            let more = (flop / SLOW.0).max(bytes / SLOW.1);
            if ranges.is_empty() || seconds + more > longest {
                ranges.push(i..i);
                seconds = 0.0;
            }
            seconds += more;
        }
        if let Some(range) = ranges.last_mut() {
            range.end = i + 1;
        }
    }
    Ok(ranges)
}

impl Plan {
    fn check(&self, profile: &Profile, options: &Options) -> Result<()> {
        let limit = profile.max_binding.min(profile.max_buffer);
        let refuse = |what: &str, needed: u64, limit: u64| Err(Error::does_not_fit(what, needed, limit));
        if self.memory.largest > limit {
            return refuse("the largest tensor", self.memory.largest, limit);
        }
        match options.budget {
            Some(budget) if self.memory.total() > budget => refuse("the plan", self.memory.total(), budget),
            _ => Ok(()),
        }
    }

    /// What one run moves. A binding that only fills an unused place of a kernel repeats another one and is not counted.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        let mut traffic = Traffic::default();
        for (placed, staged) in self.dispatches.iter().zip(&self.staging.steps) {
            let bindings = || placed.dispatch.kernel.bindings.iter().map(|(_, access)| *access).zip(&placed.places);
            let mut seen: Vec<BufferRange> = Vec::new();
            for (access, place) in bindings() {
                if access == Access::ReadWrite {
                    traffic.stored += place.bytes;
                } else if !seen.contains(place) {
                    traffic.loaded += place.bytes;
                    seen.push(*place);
                }
            }
            // A kernel that adds to something reads it: the gradient, which is the largest tensor that it writes.
            if placed.dispatch.accumulate {
                let written = bindings().filter(|(access, _)| *access == Access::ReadWrite);
                traffic.loaded += written.map(|(_, place)| place.bytes).max().unwrap_or(0);
            }
            traffic.staged += staged.copies.iter().filter_map(|&i| placed.places.get(i)).map(|p| p.bytes).sum::<u64>();
        }
        traffic
    }

    /// Checks what the planner promises: no dispatch reads and writes one slot, no two values that are alive together
    /// overlap. For tests.
    pub fn verify(&self, graph: &Graph) -> Result<()> {
        for placed in &self.dispatches {
            let accesses = placed.dispatch.kernel.bindings;
            if accesses.len() != placed.places.len() {
                return Err(Error::bug(format!("{}: {} places", placed.label, placed.places.len())));
            }
            for (i, a) in placed.places.iter().enumerate() {
                for b in &placed.places[i + 1..] {
                    if a.buffer == b.buffer && matches!(a.buffer, BufferId::Slot(_)) && a != b {
                        return Err(Error::bug(format!("{}: one slot bound twice", placed.label)));
                    }
                }
            }
        }
        let lifetimes = lifetimes(graph);
        let locals: Vec<(Lifetime, BufferRange)> = lifetimes
            .iter()
            .zip(&self.places)
            .filter_map(|(l, p)| Some(((*l)?, p.filter(|p| matches!(p.buffer, BufferId::Slot(_)))?)))
            .collect();
        for (i, (la, a)) in locals.iter().enumerate() {
            for (lb, b) in &locals[i + 1..] {
                if a.buffer == b.buffer && la.0 <= lb.1 && lb.0 <= la.1 {
                    return Err(Error::bug(format!("two values alive together share {:?}", a.buffer)));
                }
            }
            if let BufferId::Slot(s) = a.buffer
                && a.bytes > self.slots[s]
            {
                return Err(Error::bug(format!("slot {s} is too small")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_shared_only_by_values_that_never_meet() {
        let request = |bytes, first, last| Request { bytes, lifetime: (first, last) };
        let requests = [request(16, 0, 1), request(64, 1, 2), request(32, 2, 3), request(16, 3, 4), request(8, 0, 9)];
        let (chosen, slots) = assign(&requests, true);
        assert_eq!(chosen[1], chosen[3]);
        assert_eq!(chosen[0], chosen[2]);
        assert_eq!(slots, [64, 32, 8]);
        assert_eq!(assign(&requests, false).1.len(), 5);
    }
}
