//! The static graph: values, nodes in execution order, parameters and running statistics.
//!
//! A [`Builder`] makes a forward graph. Rewrites turn it into the graph of a training step:
//!
//! | rewrite | file | effect |
//! | --- | --- | --- |
//! | [`Graph::fused`] | `fuse.rs` | replaces sequences of operations by fused ones |
//! | [`Graph::with_synchronized_norms`] | `synchronize.rs` | lets processes exchange the moments of batch norms |
//! | [`Graph::with_gradients`] | `autodiff.rs` | appends the backward pass |
//! | [`Graph::with_recompute`] | `recompute.rs` | recomputes activations in the backward pass instead of keeping them |
//! | [`Graph::with_adam`] | `optimizer.rs` | appends the optimizer |
//! | [`Graph::with_accumulation`] | `accumulate.rs` | in place of the optimizer, sums gradients over several runs |
//! | [`Graph::with_shared_accumulation`] | `accumulate.rs` | the same in several processes, which exchange the sums |
//!
//! [`plan::plan`](crate::runtime::plan::plan) turns a graph into buffers and dispatches. A graph is plain data: it can be printed,
//! costed, planned, and run on any [executor](crate::runtime::exec).
//!
//! Nodes are calls of [`Op`] trait objects. Only the rewrites that insert operations name concrete ones: fusion, the optimizer, and
//! autodiff, which sums gradients with [`Add`](crate::runtime::op::Add).

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::kernel::{Arg, operand};
use crate::runtime::op::{Cost, Exchange, Init, Op, Pass, Role};
use crate::runtime::tensor::Spec;

mod accumulate;
mod autodiff;
mod builder;
mod fuse;
mod init;
mod optimizer;
mod recompute;
mod synchronize;

pub use autodiff::Root;
pub use builder::Builder;
pub use init::initial;

/// Identifies a value of a graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ValueId(pub(crate) usize);

/// A flat buffer that outlives a step and is shared by all graphs of an executor.
///
/// A parameter has the same offset in `Params`, `Grads` and each `OptimizerState` and `PartialGrads`. A running statistic has the same offset in
/// `States` and `SavedStates`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Arena {
    /// Trainable parameters.
    Params,
    /// Gradients of the parameters.
    Grads,
    /// State of the optimizer, one value for each parameter value, by number. Adam has two: first (0) and second (1) moments.
    OptimizerState(usize),
    /// Running statistics.
    States,
    /// Running statistics after the last step that was applied. A step that is not applied restores them.
    SavedStates,
    /// Loss terms of a step of several micro-batches.
    Terms,
    /// Sum of the gradients of a block of micro-batches, by level of the tree that adds them
    /// ([`MicroBatch`](crate::runtime::op::MicroBatch)).
    PartialGrads(usize),
    /// Sum of the loss terms of a block of micro-batches, by level.
    PartialTerms(usize),
}

impl fmt::Display for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Params => f.write_str("parameters"),
            Self::Grads => f.write_str("gradients"),
            Self::OptimizerState(i) => write!(f, "optimizer state {i}"),
            Self::States => f.write_str("running statistics"),
            Self::SavedStates => f.write_str("saved statistics"),
            Self::Terms => f.write_str("loss terms"),
            Self::PartialGrads(level) => write!(f, "partial gradients {level}"),
            Self::PartialTerms(level) => write!(f, "partial loss terms {level}"),
        }
    }
}

/// The memory of a value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Storage {
    /// A buffer that the host writes before a run.
    Input,
    /// A tensor of an arena, by number.
    Tensor(Arena, usize),
    /// Consecutive tensors of an arena: the numbers of the first one and of the one after the last.
    Tensors(Arena, usize, usize),
    /// A temporary of a run. The planner assigns its memory.
    Local,
}

impl Storage {
    /// Returns the arena that holds the value, if one does.
    #[must_use]
    pub const fn arena(self) -> Option<Arena> {
        match self {
            Self::Tensor(arena, _) | Self::Tensors(arena, ..) => Some(arena),
            Self::Input | Self::Local => None,
        }
    }
}

/// A tensor that nodes read and write.
#[derive(Clone, Debug)]
pub struct Value {
    /// Path, e.g. `encoder.stem.y` or `encoder.stem.dweight`.
    pub name: String,
    /// Shape and layout.
    pub spec: Spec,
    /// The memory that holds it.
    pub storage: Storage,
}

/// A parameter or running statistic.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Path as in a PyTorch state dict: `encoder.stem.weight`.
    pub name: String,
    /// Shape and layout.
    pub spec: Spec,
    /// Initial values.
    pub init: Init,
    /// Offset in the arena on the device, in bytes.
    pub offset: u64,
}

/// A call of one pass of an operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Path, e.g. `encoder.stem`.
    pub name: String,
    /// The operation.
    pub op: Arc<dyn Op>,
    /// The pass of the operation that the node runs.
    pub pass: Pass,
    /// Values of `pass.reads`.
    pub reads: Vec<ValueId>,
    /// Values of `pass.writes`.
    pub writes: Vec<ValueId>,
    /// For each write, whether the node adds to the value instead of overwriting it.
    pub accumulate: Vec<bool>,
    /// Values of `pass.updates`.
    pub updates: Vec<ValueId>,
    /// All operands and gradients that have a value here.
    bound: Bound,
}

/// Values of operands and gradients.
type Bound = Vec<(Arg, ValueId)>;

impl Node {
    fn new(name: &str, op: Arc<dyn Op>, pass: Pass, bound: Bound, accumulate: Vec<bool>) -> Result<Self> {
        let (reads, writes, updates) = Default::default();
        let mut node = Self { name: name.to_owned(), op, pass, reads, writes, updates, accumulate, bound };
        let all = |args: &[Arg]| args.iter().map(|&arg| node.bound(arg)).collect::<Result<Vec<_>>>();
        let (reads, writes, updates) = (all(&node.pass.reads)?, all(&node.pass.writes)?, all(&node.pass.updates)?);
        (node.reads, node.writes, node.updates) = (reads, writes, updates);
        Ok(node)
    }

    /// Returns the path with the operation and its pass: `encoder.stem/conv2d.forward`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}/{}.{}", self.name, self.op.kind(), self.pass.name)
    }

    /// Returns all values that the node reads, writes or updates.
    pub fn touches(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.reads.iter().chain(&self.writes).chain(&self.updates).copied()
    }

    fn operand(&self, name: &'static str) -> Result<ValueId> {
        self.bound(operand(name))
    }

    /// Returns the value of an operand or gradient.
    pub(crate) fn bound(&self, arg: Arg) -> Result<ValueId> {
        let found = self.bound.iter().find(|(a, _)| *a == arg);
        found.map(|(_, v)| *v).ok_or_else(|| Error::bug(format!("{}: operand `{arg}` is not bound", self.label())))
    }
}

/// An immutable list of nodes over values: the forward pass of a model, or a whole training step.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
    /// Number of nodes that belong to the forward pass, in a graph with gradients.
    forward: usize,
    params: Vec<Tensor>,
    states: Vec<Tensor>,
    /// The loss terms, in a graph with accumulation.
    terms: Vec<Tensor>,
    inputs: BTreeMap<String, ValueId>,
    outputs: BTreeMap<String, ValueId>,
    zero_grad_params: Vec<usize>,
    sums: Vec<(usize, ValueId)>,
}

impl Graph {
    /// Returns all values.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Returns a value.
    ///
    /// # Panics
    /// Panics if `id` is a value of another graph.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// Finds a value by its name.
    #[must_use]
    pub fn value_named(&self, name: &str) -> Option<ValueId> {
        self.values.iter().position(|v| v.name == name).map(ValueId)
    }

    /// Returns the nodes in execution order.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Returns the parameters.
    #[must_use]
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// Returns the running statistics.
    #[must_use]
    pub fn states(&self) -> &[Tensor] {
        &self.states
    }

    /// Returns the arenas that the values of the graph live in.
    #[must_use]
    pub fn arenas(&self) -> BTreeSet<Arena> {
        self.values.iter().filter_map(|value| value.storage.arena()).collect()
    }

    /// Returns the tensors of an arena, in order.
    #[must_use]
    pub fn tensors(&self, arena: Arena) -> &[Tensor] {
        match arena {
            Arena::States | Arena::SavedStates => &self.states,
            Arena::Params | Arena::Grads | Arena::OptimizerState(_) | Arena::PartialGrads(_) => &self.params,
            Arena::Terms | Arena::PartialTerms(_) => &self.terms,
        }
    }

    /// Returns the size of an arena on the device in bytes.
    #[must_use]
    pub fn arena_bytes(&self, arena: Arena) -> u64 {
        self.tensors(arena).last().map_or(0, arena_end)
    }

    /// Returns the number of trainable parameters, without padding.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.params.iter().map(|p| p.spec.len()).sum()
    }

    /// Returns the values that the host writes, by name.
    #[must_use]
    pub fn inputs(&self) -> &BTreeMap<String, ValueId> {
        &self.inputs
    }

    /// Returns the values that the host can read after a run, by name.
    #[must_use]
    pub fn outputs(&self) -> &BTreeMap<String, ValueId> {
        &self.outputs
    }

    /// Finds an output by its name.
    ///
    /// # Errors
    /// [`Error::Unknown`] lists the outputs of the graph.
    pub fn output(&self, name: &str) -> Result<ValueId> {
        find(&self.outputs, "output", name)
    }

    /// Finds an input by its name.
    ///
    /// # Errors
    /// [`Error::Unknown`] lists the inputs of the graph.
    pub fn input(&self, name: &str) -> Result<ValueId> {
        find(&self.inputs, "input", name)
    }

    /// Finds a parameter or running statistic by its name. Returns its arena ([`Arena::Params`] or [`Arena::States`]) and its
    /// number there.
    ///
    /// # Errors
    /// [`Error::Unknown`] lists the tensors of the graph.
    pub fn tensor(&self, name: &str) -> Result<(Arena, usize)> {
        [Arena::Params, Arena::States]
            .into_iter()
            .find_map(|arena| Some((arena, self.tensors(arena).iter().position(|t| t.name == name)?)))
            .ok_or_else(|| Error::Unknown {
                kind: "tensor",
                name: name.to_owned(),
                known: self.params.iter().chain(&self.states).map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
            })
    }

    /// Returns the numbers of the parameters whose gradient is exactly zero: a batch norm in training removes the constant that
    /// they add.
    ///
    /// No node computes their gradient and it stays zero, so that Adam does not amplify rounding errors into steps. Weight decay
    /// still applies.
    #[must_use]
    pub fn zero_grad_params(&self) -> &[usize] {
        &self.zero_grad_params
    }

    /// Returns the values that processes exchange in a run: each with the number of the node after which they do.
    ///
    /// # Errors
    /// [`Error::Bug`] for an operation that exchanges what it does not have.
    pub fn exchanges(&self) -> Result<Vec<(usize, ValueId, Exchange)>> {
        let of = |(number, node): (usize, &Node)| {
            let exchange = node.op.exchange(node.pass.name)?;
            Some(node.bound(exchange.arg).map(|value| (number, value, exchange)))
        };
        self.nodes.iter().enumerate().filter_map(of).collect()
    }

    /// Returns the sums over the micro-batches of a step, in a graph with accumulation: each with the number of the node after which it is
    /// complete, in this order. Processes that share the step add theirs.
    #[must_use]
    pub fn sums(&self) -> &[(usize, ValueId)] {
        &self.sums
    }

    /// Returns the work of one run.
    ///
    /// # Errors
    /// Those of [`Op::cost`].
    pub fn cost(&self) -> Result<Cost> {
        let mut total = Cost::default();
        for node in &self.nodes {
            let cost = node.op.cost(&node.pass)?;
            total.flop += cost.flop;
            total.bytes += cost.bytes;
        }
        Ok(total)
    }

    /// Makes `value` an output of the graph.
    #[must_use]
    pub fn with_output(mut self, name: &str, value: ValueId) -> Self {
        self.outputs.insert(name.to_owned(), value);
        self
    }

    /// Removes all other outputs, and the nodes and inputs that only they need. Parameters and running statistics stay.
    ///
    /// # Errors
    /// [`Error::Unknown`] for a name that is not an output.
    pub fn only(mut self, outputs: &[&str]) -> Result<Self> {
        self.outputs = outputs.iter().map(|o| Ok(((*o).to_owned(), self.output(o)?))).collect::<Result<_>>()?;
        let mut needed: HashSet<ValueId> = self.outputs.values().copied().collect();
        let mut kept = Vec::new();
        for node in self.nodes.drain(..).rev() {
            if node.writes.iter().any(|v| needed.contains(v)) || !node.updates.is_empty() {
                needed.extend(node.touches());
                kept.push(node);
            }
        }
        kept.reverse();
        self.nodes = kept;
        self.inputs.retain(|_, v| needed.contains(v));
        Ok(self)
    }

    fn add_value(&mut self, name: String, spec: Spec, storage: Storage) -> ValueId {
        self.values.push(Value { name, spec, storage });
        ValueId(self.values.len() - 1)
    }

    /// Adds a value for a whole arena.
    fn whole(&mut self, arena: Arena) -> ValueId {
        self.part(arena, 0..self.tensors(arena).len())
    }

    /// Adds a value for consecutive tensors of an arena.
    fn part(&mut self, arena: Arena, tensors: Range<usize>) -> ValueId {
        let part = self.tensors(arena).get(tensors.clone()).unwrap_or_default();
        let bytes = part.last().map_or(0, arena_end) - part.first().map_or(0, |first| first.offset);
        let storage = Storage::Tensors(arena, tensors.start, tensors.end);
        self.add_value(arena.to_string(), Spec::flat(bytes as usize / 4), storage)
    }

    /// Appends a forward call of `op`: binds `inputs` to its inputs in order and adds values for the other operands. Returns the
    /// values of its outputs.
    fn push_op(&mut self, name: &str, op: Arc<dyn Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut unbound = inputs.iter();
        let (mut bound, mut outputs) = (Vec::new(), Vec::new());
        let kind = op.kind();
        for operand in op.operands() {
            let path = format!("{name}.{}", operand.name);
            let value = match operand.role {
                Role::Input | Role::Constant => {
                    let missing =
                        || Error::argument(format!("inputs of {kind}"), format!("one for `{}`", operand.name), "none");
                    let value = *unbound.next().ok_or_else(missing).map_err(|e| e.at_node(name))?;
                    let foreign = || Error::Graph(format!("{name}: `{}` is a value of another graph", operand.name));
                    let found = self.values.get(value.0).ok_or_else(foreign)?.spec;
                    if found.device_bytes() != operand.spec.device_bytes() || found.len() != operand.spec.len() {
                        return Err(Error::shape(kind, operand.name, operand.spec.shape, found.shape).at_node(name));
                    }
                    value
                }
                Role::Param(init) => self.new_tensor(Arena::Params, path, operand.spec, init)?,
                Role::State(first) => self.new_tensor(Arena::States, path, operand.spec, Init::Constant(first))?,
                Role::Output | Role::Saved => self.add_value(path, operand.spec, Storage::Local),
            };
            if operand.role == Role::Output {
                outputs.push(value);
            }
            bound.push((Arg::Operand(operand.name), value));
        }
        if unbound.next().is_some() {
            let what = format!("number of inputs of {kind}");
            return Err(Error::argument(what, bound.len(), inputs.len()).at_node(name));
        }
        self.push_forward(name, op, bound)?;
        Ok(outputs)
    }

    fn push_forward(&mut self, name: &str, op: Arc<dyn Op>, bound: Bound) -> Result<()> {
        let pass = op.passes().forward;
        let accumulate = vec![false; pass.writes.len()];
        self.push_node(name, op, pass, bound, accumulate)
    }

    fn push_node(
        &mut self,
        name: &str,
        op: Arc<dyn Op>,
        pass: Pass,
        bound: Bound,
        accumulate: Vec<bool>,
    ) -> Result<()> {
        self.nodes.push(Node::new(name, op, pass, bound, accumulate)?);
        Ok(())
    }

    fn new_tensor(&mut self, arena: Arena, name: String, spec: Spec, init: Init) -> Result<ValueId> {
        let tensors = if arena == Arena::States { &mut self.states } else { &mut self.params };
        if tensors.iter().any(|t| t.name == name) {
            return Err(Error::Graph(format!("two tensors are called `{name}`: rename one of the nodes")));
        }
        let offset = tensors.last().map_or(0, arena_end);
        tensors.push(Tensor { name: name.clone(), spec, init, offset });
        let index = tensors.len() - 1;
        Ok(self.add_value(name, spec, Storage::Tensor(arena, index)))
    }
}

/// Binds operands by their names.
fn by_name<const N: usize>(operands: [(&'static str, ValueId); N]) -> Bound {
    operands.map(|(name, value)| (operand(name), value)).to_vec()
}

/// Alignment of tensors in an arena in bytes: WebGPU's default alignment of storage buffer bindings.
const TENSOR_ALIGNMENT: u64 = 256;

fn arena_end(last: &Tensor) -> u64 {
    (last.offset + last.spec.device_bytes() as u64).next_multiple_of(TENSOR_ALIGNMENT)
}

fn find(names: &BTreeMap<String, ValueId>, kind: &'static str, name: &str) -> Result<ValueId> {
    names.get(name).copied().ok_or_else(|| Error::Unknown {
        kind,
        name: name.to_owned(),
        known: names.keys().map(String::as_str).collect::<Vec<_>>().join(", "),
    })
}

impl fmt::Display for Graph {
    /// Writes one line for each node: its label, and names and shapes of the values that it reads and writes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for node in &self.nodes {
            let names = |ids: &[ValueId]| {
                let one = |id: &ValueId| format!("{} {}", self.value(*id).name, self.value(*id).spec);
                ids.iter().map(one).collect::<Vec<_>>().join(", ")
            };
            writeln!(f, "{}: {} -> {}", node.label(), names(&node.reads), names(&node.writes))?;
        }
        Ok(())
    }
}
