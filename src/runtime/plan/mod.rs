//! The execution plan of a graph for a device: a buffer range for every value and the dispatches of every node. Made before any
//! memory is allocated.
//!
//! | file | computes |
//! | --- | --- |
//! | `variants.rs` | the kernel variant that was chosen for a pass, by name or by shape |
//! | `joined_sums.rs` | few dispatches for the last sums of many gradients |
//! | `slots.rs` | lifetimes of values and the buffers that they share |
//! | `submissions.rs` | cuts of the dispatches that keep each submission short |
//! | `texture_cache.rs` | copies of buffers into textures, for kernels that read textures |

use std::collections::BTreeMap;
use std::fmt;
use std::iter;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Node, Storage, Value, ValueId};
use crate::runtime::kernel::{Access, Bind, DeviceKind, Dispatch, Kernel, Lowered, Profile};
use crate::runtime::op::basic::column_sum;
use crate::runtime::op::{Exchange, Target};

mod joined_sums;
mod slots;
mod submissions;
pub mod texture_cache;
mod variants;

use slots::Slots;
pub use slots::{Lifetime, lifetimes};
pub use texture_cache::TextureCache;
pub use variants::key;

/// A buffer of a plan.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum BufferId {
    /// Holds local values and scratch that are never alive at the same time.
    Slot(usize),
    /// Holds one input, by number in [`Graph::inputs`].
    Input(usize),
    /// An arena.
    Arena(Arena),
}

/// A range of a buffer, in bytes. `B` identifies the buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct BufferRange<B = BufferId> {
    pub buffer: B,
    pub offset: u64,
    pub bytes: u64,
}

impl<B: PartialEq> BufferRange<B> {
    fn overlaps(&self, other: &Self) -> bool {
        self.buffer == other.buffer
            && self.offset < other.offset + other.bytes
            && other.offset < self.offset + self.bytes
    }
}

/// A dispatch with the buffer ranges of its bindings.
#[derive(Clone, Debug)]
pub struct BoundDispatch {
    /// Name in error messages and timings: node and kernel.
    pub label: String,
    /// Number of the node in the graph.
    pub node: usize,
    /// Kernel, parameters and grid.
    pub dispatch: Dispatch,
    /// The range of each binding of the kernel.
    pub ranges: Vec<BufferRange>,
}

/// Bytes that the dispatches of a plan move. A tensor counts once for each dispatch that binds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Read by kernels.
    pub loaded: u64,
    /// Written by kernels. Accumulated tensors count as read, too.
    pub stored: u64,
    /// Copied into textures: read once and written once.
    pub copied: u64,
}

impl Traffic {
    /// Returns all bytes read and written.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.loaded + self.stored + 2 * self.copied
    }
}

impl iter::Sum for Traffic {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, more| Self {
            loaded: sum.loaded + more.loaded,
            stored: sum.stored + more.stored,
            copied: sum.copied + more.copied,
        })
    }
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        write!(f, "{:.2} GiB loaded, {:.2} GiB stored", gib(self.loaded), gib(self.stored))?;
        if self.copied > 0 {
            write!(f, ", {:.2} GiB copied into textures", gib(self.copied))?;
        }
        Ok(())
    }
}

/// Options of the planner.
#[derive(Clone, Debug)]
pub struct Options {
    /// Reuse buffers for values that are never alive at the same time. Results do not depend on it.
    pub reuse_buffers: bool,
    /// Fuse operations ([`Graph::fused`]). Results differ by rounding errors.
    pub fuse: bool,
    /// On a GPU, add the parts of the gradients of many layers in one dispatch. Results do not depend on it.
    pub join_sums: bool,
    /// Recompute the activations inside residual blocks in the backward pass ([`Graph::with_recompute`]). Needs less memory and
    /// more time; results do not depend on it.
    pub recompute_blocks: bool,
    /// Kernel variants by operation (`conv2d`), pass (`conv2d.forward`), or pass and shapes ([`key`]).
    pub variants: BTreeMap<String, String>,
    /// Upper limit of device memory in bytes.
    pub budget: Option<u64>,
    /// Upper limit of the estimated time of a submission in seconds. The default is half a second on a GPU, and no limit on a
    /// software adapter, which no operating system resets for being busy.
    pub longest_submission: Option<f64>,
}

impl Default for Options {
    /// Reuses buffers, fuses, joins sums, keeps all activations, and chooses variants by shape and device.
    fn default() -> Self {
        Self {
            reuse_buffers: true,
            fuse: true,
            join_sums: true,
            recompute_blocks: false,
            variants: BTreeMap::new(),
            budget: None,
            longest_submission: None,
        }
    }
}

/// The execution plan of a graph for a device.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Sizes of the slots in bytes.
    pub slots: Vec<u64>,
    /// The range of each value of the graph; `None` for values that no node touches.
    pub values: Vec<Option<BufferRange>>,
    /// The dispatches of a run in order.
    pub dispatches: Vec<BoundDispatch>,
    /// Ranges of `dispatches`, one for each submission.
    pub submissions: Vec<Range<usize>>,
    /// Values that processes exchange, by the number of the submission after which they do.
    pub exchanges: BTreeMap<usize, (ValueId, Exchange)>,
    /// The sums over micro-batches ([`Graph::sums`]), by the number of the submission that completes them.
    pub sums: BTreeMap<usize, Vec<ValueId>>,
    /// Copies into textures.
    pub texture_cache: TextureCache,
    /// Memory that it needs.
    pub memory: Memory,
}

/// Device memory of a plan in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Trainable parameters.
    pub params: u64,
    /// Gradients of the parameters, with their partial sums in a step of several micro-batches.
    pub gradients: u64,
    /// State of the optimizer.
    pub optimizer: u64,
    /// Running statistics and their saved copy.
    pub states: u64,
    /// Inputs of a run.
    pub inputs: u64,
    /// Activations, their gradients and scratch: the slots.
    pub slots: u64,
    /// Textures that tensors are copied into.
    pub textures: u64,
    /// Size of the slots if no two values shared one.
    pub unshared: u64,
    /// Number of slots.
    pub slot_count: usize,
    /// Largest single binding.
    pub largest: u64,
}

impl Memory {
    /// Returns all memory of the plan.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.params + self.gradients + self.optimizer + self.states + self.inputs + self.slots + self.textures
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let arenas = [
            ("parameters", self.params),
            ("gradients", self.gradients),
            ("optimizer state", self.optimizer),
            ("running statistics", self.states),
        ];
        for (name, bytes) in arenas.into_iter().filter(|(_, bytes)| *bytes > 0) {
            writeln!(f, "  {name:<22}{:>9.1} MiB", mib(bytes))?;
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
        if self.textures > 0 {
            writeln!(f, "  {:<22}{:>9.1} MiB", "texture cache", mib(self.textures))?;
        }
        write!(f, "  {:<22}{:>9.1} MiB, largest binding {:.1} MiB", "total", mib(self.total()), mib(self.largest))
    }
}

/// Returns the kernels that plans dispatch and no operation does.
#[must_use]
pub fn kernels() -> Vec<&'static Kernel> {
    vec![&column_sum::JOINED]
}

/// Plans `graph` for a device.
///
/// # Errors
/// [`Error::DoesNotFit`] if a tensor exceeds the limits of the device or the plan exceeds [`Options::budget`];
/// [`Error::Unsupported`] for a chosen variant that the device cannot run.
pub fn plan(graph: &Graph, profile: &Profile, options: &Options) -> Result<Plan> {
    let mut lowered = graph.nodes().iter().map(|node| lower(node, profile, options)).collect::<Result<Vec<_>>>()?;
    let joins = options.join_sums && profile.kind == DeviceKind::Gpu;
    let alignment = u64::from(profile.offset_alignment);
    let workspaces = if joins { joined_sums::take(graph, &mut lowered, alignment)? } else { Vec::new() };
    let slots = slots::assign(graph, &lowered, &workspaces, options.reuse_buffers);
    let values = ranges_of_values(graph, &slots);
    let mut sums = workspaces.iter().zip(&slots.workspaces).peekable();
    let mut dispatches = Vec::new();
    for (number, (node, lowered)) in graph.nodes().iter().zip(lowered).enumerate() {
        for dispatch in lowered.dispatches {
            let range = |bind: &Bind| {
                let range = match *bind {
                    Bind::Scratch(i) => slots.scratch.get(number).and_then(|scratch| scratch.get(i).copied()),
                    Bind::Arg(arg) => values.get(node.bound(arg)?.0).copied().flatten(),
                };
                range.ok_or_else(|| Error::bug(format!("{}: {bind:?} has no memory", node.label())))
            };
            let ranges = dispatch.bindings.iter().map(range).collect::<Result<Vec<_>>>()?;
            let label = format!("{}/{}.{}", node.name, dispatch.kernel.name, dispatch.kernel.variant);
            dispatches.push(BoundDispatch { label, node: number, dispatch, ranges });
        }
        while let Some((workspace, range)) = sums.next_if(|(workspace, _)| workspace.nodes.1 == number) {
            let (dispatch, gradients) = workspace.dispatch(graph)?;
            let label = format!("gradients/{}.{}", dispatch.kernel.name, dispatch.kernel.variant);
            dispatches.push(BoundDispatch { label, node: number, dispatch, ranges: vec![*range, gradients] });
        }
    }
    let in_run = graph.exchanges()?;
    let ends: Vec<usize> = in_run.iter().map(|(node, ..)| *node).chain(graph.sums().iter().map(|sum| sum.0)).collect();
    let submissions = submissions::cut(graph, &dispatches, options.longest_submission, profile.kind, &ends)?;
    let part_of = |node: usize| {
        let ends = |part: &Range<usize>| part.end.checked_sub(1).and_then(|last| dispatches.get(last)).map(|d| d.node);
        let part = submissions.iter().rposition(|part| ends(part) == Some(node));
        part.ok_or_else(|| {
            Error::bug(format!("no submission ends with node {node}, which completes a value to exchange"))
        })
    };
    let mut exchanges = BTreeMap::new();
    for (node, value, exchange) in in_run {
        exchanges.insert(part_of(node)?, (value, exchange));
    }
    let mut sums: BTreeMap<usize, Vec<ValueId>> = BTreeMap::new();
    for &(node, value) in graph.sums() {
        sums.entry(part_of(node)?).or_default().push(value);
    }
    let bound = dispatches.iter().map(|d| (d.dispatch.kernel, d.ranges.clone()));
    let texture_cache = texture_cache::plan(bound, &submissions);
    let memory = memory(graph, &slots, &values, &texture_cache);
    let plan = Plan { slots: slots.sizes, values, dispatches, submissions, exchanges, sums, texture_cache, memory };
    plan.check_limits(profile, options)?;
    Ok(plan)
}

fn lower(node: &Node, profile: &Profile, options: &Options) -> Result<Lowered> {
    let variant = options.variant(node.op.as_ref(), &node.pass)?;
    let target = Target { profile, variant, accumulate: &node.accumulate };
    node.op.lower(node.pass.name, &target).map_err(|e| e.at_node(&node.name))
}

/// Returns the buffer range of each value of the graph.
fn ranges_of_values(graph: &Graph, slots: &Slots) -> Vec<Option<BufferRange>> {
    let inputs: Vec<ValueId> = graph.inputs().values().copied().collect();
    let range = |(v, value): (usize, &Value)| {
        let (buffer, offset) = match value.storage {
            Storage::Local => return slots.values.get(v).copied().flatten(),
            Storage::Input => (BufferId::Input(inputs.iter().position(|i| i.0 == v)?), 0),
            Storage::Tensor(arena, i) => (BufferId::Arena(arena), graph.tensors(arena)[i].offset),
            Storage::Tensors(arena, first, _) => {
                (BufferId::Arena(arena), graph.tensors(arena).get(first).map_or(0, |tensor| tensor.offset))
            }
        };
        Some(BufferRange { buffer, offset, bytes: value.spec.device_bytes() as u64 })
    };
    graph.values().iter().enumerate().map(range).collect()
}

fn memory(graph: &Graph, slots: &Slots, values: &[Option<BufferRange>], texture_cache: &TextureCache) -> Memory {
    let mut memory = Memory {
        inputs: graph.inputs().values().map(|v| graph.value(*v).spec.device_bytes() as u64).sum(),
        slots: slots.sizes.iter().sum(),
        textures: texture_cache.textures.iter().sum(),
        unshared: slots.unshared,
        slot_count: slots.sizes.len(),
        largest: values.iter().flatten().map(|range| range.bytes).chain(slots.sizes.iter().copied()).max().unwrap_or(0),
        ..Memory::default()
    };
    for arena in graph.arenas() {
        let bytes = graph.arena_bytes(arena);
        *match arena {
            Arena::Params => &mut memory.params,
            Arena::Grads | Arena::PartialGrads(_) | Arena::Terms | Arena::PartialTerms(_) => &mut memory.gradients,
            Arena::OptimizerState(_) => &mut memory.optimizer,
            Arena::States | Arena::SavedStates => &mut memory.states,
        } += bytes;
    }
    memory
}

impl Plan {
    fn check_limits(&self, profile: &Profile, options: &Options) -> Result<()> {
        let limit = profile.max_binding.min(profile.max_buffer);
        let (what, needed, limit) = match options.budget {
            _ if self.memory.largest > limit => ("the largest tensor", self.memory.largest, limit),
            Some(budget) if self.memory.total() > budget => ("the plan", self.memory.total(), budget),
            _ => return Ok(()),
        };
        Err(Error::does_not_fit(what, needed, limit))
    }

    /// Returns the number of dispatches of each kernel and variant.
    #[must_use]
    pub fn kernels(&self) -> BTreeMap<(&'static str, &'static str), usize> {
        let mut kernels = BTreeMap::new();
        for placed in &self.dispatches {
            *kernels.entry((placed.dispatch.kernel.name, placed.dispatch.kernel.variant)).or_default() += 1;
        }
        kernels
    }

    /// Returns the bytes that one run moves.
    #[must_use]
    pub fn traffic(&self) -> Traffic {
        self.traffics().map(|(_, traffic)| traffic).sum()
    }

    /// Returns the dispatches with the bytes that each one moves. Bindings that repeat another one, as unused bindings of a kernel do,
    /// do not count.
    pub fn traffics(&self) -> impl Iterator<Item = (&BoundDispatch, Traffic)> {
        self.dispatches.iter().zip(&self.texture_cache.dispatches).map(|(bound, textures)| {
            let mut traffic = Traffic::default();
            let bindings = || bound.dispatch.kernel.bindings.iter().map(|(_, access)| *access).zip(&bound.ranges);
            let mut seen: Vec<BufferRange> = Vec::new();
            for (access, range) in bindings() {
                if access == Access::ReadWrite {
                    traffic.stored += range.bytes;
                } else if !seen.contains(range) {
                    traffic.loaded += range.bytes;
                    seen.push(*range);
                }
            }
            // A kernel reads the tensor that it accumulates into: the gradient, which is the largest tensor that it writes.
            if bound.dispatch.accumulate {
                let written = bindings().filter(|(access, _)| *access == Access::ReadWrite);
                traffic.loaded += written.map(|(_, range)| range.bytes).max().unwrap_or(0);
            }
            traffic.copied += textures.copies.iter().filter_map(|&i| bound.ranges.get(i)).map(|r| r.bytes).sum::<u64>();
            (bound, traffic)
        })
    }

    /// Checks the guarantees of the planner, for tests: no dispatch binds a slot as two different ranges, values that are alive at the
    /// same time do not overlap, and no dispatch binds a buffer both to read and to write, or writes a range twice, which WebGPU
    /// rejects.
    ///
    /// # Errors
    /// [`Error::Bug`] names the dispatch or the slot.
    pub fn verify(&self, graph: &Graph) -> Result<()> {
        for bound in &self.dispatches {
            if bound.dispatch.kernel.bindings.len() != bound.ranges.len() {
                return Err(Error::bug(format!("{}: {} ranges", bound.label, bound.ranges.len())));
            }
            let bindings = || bound.dispatch.kernel.bindings.iter().zip(&bound.ranges);
            for (i, ((_, to_a), a)) in bindings().enumerate() {
                for ((_, to_b), b) in bindings().skip(i + 1).filter(|(_, b)| a.buffer == b.buffer) {
                    if matches!(a.buffer, BufferId::Slot(_)) && a != b {
                        return Err(Error::bug(format!("{}: one slot is bound twice", bound.label)));
                    }
                    let written = [to_a, to_b].map(|access| *access == Access::ReadWrite);
                    if written == [true, true] && a.overlaps(b) {
                        return Err(Error::bug(format!("{}: one range is written twice", bound.label)));
                    }
                    if written[0] != written[1] {
                        return Err(Error::bug(format!("{}: one buffer is read and written", bound.label)));
                    }
                }
            }
        }
        let in_slots = |range: &Option<BufferRange>| range.filter(|r| matches!(r.buffer, BufferId::Slot(_)));
        let locals: Vec<(Lifetime, BufferRange)> = lifetimes(graph)
            .iter()
            .zip(&self.values)
            .filter_map(|(l, range)| Some(((*l)?, in_slots(range)?)))
            .collect();
        for (i, (la, a)) in locals.iter().enumerate() {
            for (lb, b) in &locals[i + 1..] {
                if a.buffer == b.buffer && la.0 <= lb.1 && lb.0 <= la.1 {
                    return Err(Error::bug(format!("two values that are alive at the same time share {:?}", a.buffer)));
                }
            }
            if let BufferId::Slot(slot) = a.buffer
                && a.bytes > self.slots[slot]
            {
                return Err(Error::bug(format!("slot {slot} is too small")));
            }
        }
        Ok(())
    }
}
