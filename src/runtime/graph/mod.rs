//! The static graph: values, nodes in order of execution, parameters and running statistics.
//!
//! A [`Builder`] makes the forward graph, with names from scopes and every shape checked. [`Graph::fused`] (`fuse.rs`) rewrites it
//! into fewer operations that compute the same. [`Graph::with_gradients`] (`transpose.rs`) appends the backward nodes,
//! [`Graph::with_recompute`] (`checkpoint.rs`) trades kept values for computing them again, [`Graph::with_adam`] appends the optimizer;
//! [`plan::plan`] turns the list into buffers and dispatches. A graph is plain data and never changes once built: it can be printed, costed, planned and run on any device.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::kernel::{Arg, operand};
use crate::runtime::op::{Adam, AdamConfig, Cost, GradNorm, Init, Op, Pass, RestoreStates, Role, StepScalars, spec_of};
use crate::runtime::tensor::shape::{Shape, Spec};

mod autodiff;
mod fuse;
mod init;
mod recompute;

pub use autodiff::Root;
pub use init::initial;

/// A tensor of the graph.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ValueId(pub(crate) usize);

/// The flat buffers that outlive a step: every parameter has the same offset in the first four, every running statistic in the
/// last two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum Arena {
    /// Weights and biases.
    Params,
    /// Their gradients.
    Grads,
    /// Adam's first moments.
    Moment1,
    /// Adam's second moments.
    Moment2,
    /// Running statistics.
    States,
    /// Running statistics as the last accepted step left them: what a refused step goes back to.
    SavedStates,
}

impl Arena {
    /// All arenas.
    pub const ALL: [Self; 6] =
        [Self::Params, Self::Grads, Self::Moment1, Self::Moment2, Self::States, Self::SavedStates];
}

impl fmt::Display for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Params => "parameters",
            Self::Grads => "gradients",
            Self::Moment1 => "first moments",
            Self::Moment2 => "second moments",
            Self::States => "running statistics",
            Self::SavedStates => "saved statistics",
        })
    }
}

/// Where a value is kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Storage {
    /// Written by the host before a step, by the name of an input.
    Input,
    /// Tensor number i of a arena.
    Tensor(Arena, usize),
    /// A whole arena.
    Whole(Arena),
    /// Lives within a step; the planner finds it a place.
    Local,
}

/// A tensor of the graph: name, shape, storage.
#[derive(Clone, Debug)]
pub struct Value {
    /// Path, e.g. `encoder.stem.y` or `encoder.stem.dweight`.
    pub name: String,
    /// Shape and layout.
    pub spec: Spec,
    /// Where it is kept.
    pub storage: Storage,
}

/// A parameter or running statistic.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Path in PyTorch's manner: `encoder.stem.weight`.
    pub name: String,
    /// Shape and layout.
    pub spec: Spec,
    /// How it starts.
    pub init: Init,
    /// Offset in its arena on the device, in bytes.
    pub offset: u64,
}

/// A call of one pass of an operation.
#[derive(Clone, Debug)]
pub struct Node {
    /// Path, e.g. `encoder.stem`.
    pub name: String,
    /// The operation.
    pub op: Arc<dyn Op>,
    /// Which of its passes.
    pub pass: Pass,
    /// Values of `pass.reads`.
    pub reads: Vec<ValueId>,
    /// Values of `pass.writes`.
    pub writes: Vec<ValueId>,
    /// For each write, whether it adds to what is there.
    pub accumulate: Vec<bool>,
    /// Values of `pass.updates`.
    pub updates: Vec<ValueId>,
    /// Every operand that the operation has here, by name.
    bound: Bound,
}

/// The tensors of a node, by operand or gradient.
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

    /// `name: family.pass`.
    #[must_use]
    pub fn label(&self) -> String {
        format!("{}/{}.{}", self.name, self.op.kind(), self.pass.name)
    }

    /// All values that the node touches.
    pub fn touches(&self) -> impl Iterator<Item = ValueId> + '_ {
        self.reads.iter().chain(&self.writes).chain(&self.updates).copied()
    }

    /// The value of an operand.
    pub(crate) fn operand(&self, name: &'static str) -> Result<ValueId> {
        self.bound(operand(name))
    }

    /// The value of an operand or gradient.
    pub(crate) fn bound(&self, arg: Arg) -> Result<ValueId> {
        let found = self.bound.iter().find(|(a, _)| *a == arg);
        found.map(|(_, v)| *v).ok_or_else(|| Error::bug(format!("{}: operand `{arg}` is not bound", self.label())))
    }
}

/// An immutable list of nodes over values: a model's forward pass, or a whole training step.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    values: Vec<Value>,
    nodes: Vec<Node>,
    /// How many of the nodes are the forward pass, in a graph with gradients.
    forward: usize,
    params: Vec<Tensor>,
    states: Vec<Tensor>,
    inputs: BTreeMap<String, ValueId>,
    outputs: BTreeMap<String, ValueId>,
    zero_grad_params: Vec<usize>,
}

impl Graph {
    /// All values.
    #[must_use]
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// A value.
    #[must_use]
    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0]
    }

    /// The value called `name`.
    pub fn value_named(&self, name: &str) -> Option<ValueId> {
        self.values.iter().position(|v| v.name == name).map(ValueId)
    }

    /// The nodes in order of execution.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The parameters.
    #[must_use]
    pub fn params(&self) -> &[Tensor] {
        &self.params
    }

    /// The running statistics.
    #[must_use]
    pub fn states(&self) -> &[Tensor] {
        &self.states
    }

    /// The tensors of a arena, in order.
    #[must_use]
    pub fn tensors(&self, arena: Arena) -> &[Tensor] {
        if matches!(arena, Arena::States | Arena::SavedStates) { &self.states } else { &self.params }
    }

    /// Size of a arena on the device in bytes.
    #[must_use]
    pub fn arena_bytes(&self, arena: Arena) -> u64 {
        self.tensors(arena).last().map_or(0, arena_end)
    }

    /// Number of learned numbers, padding not counted.
    #[must_use]
    pub fn parameter_count(&self) -> usize {
        self.params.iter().map(|p| p.spec.len()).sum()
    }

    /// Values that the host writes, by name.
    #[must_use]
    pub fn inputs(&self) -> &BTreeMap<String, ValueId> {
        &self.inputs
    }

    /// Values kept for the host, by name.
    #[must_use]
    pub fn outputs(&self) -> &BTreeMap<String, ValueId> {
        &self.outputs
    }

    /// An output's value.
    pub fn output(&self, name: &str) -> Result<ValueId> {
        find(&self.outputs, "output", name)
    }

    /// An input's value.
    pub fn input(&self, name: &str) -> Result<ValueId> {
        find(&self.inputs, "input", name)
    }

    /// Number of the parameter or running statistic called `name`, and its arena ([`Arena::Params`] or [`Arena::States`]).
    pub fn tensor(&self, name: &str) -> Result<(Arena, usize)> {
        [Arena::Params, Arena::States]
            .into_iter()
            .find_map(|r| Some((r, self.tensors(r).iter().position(|t| t.name == name)?)))
            .ok_or_else(|| Error::Unknown {
                kind: "tensor",
                name: name.to_owned(),
                known: self.params.iter().chain(&self.states).map(|t| t.name.as_str()).collect::<Vec<_>>().join(", "),
            })
    }

    /// Parameters whose gradient is exactly zero because a batch norm in training removes what they add. They get no backward
    /// node and keep a zero gradient, so that Adam does not turn rounding noise into steps; weight decay still applies.
    #[must_use]
    pub fn zero_grad_params(&self) -> &[usize] {
        &self.zero_grad_params
    }

    /// Work of one run of the graph.
    pub fn cost(&self) -> Result<Cost> {
        let mut total = Cost::default();
        for node in &self.nodes {
            let cost = node.op.cost(&node.pass)?;
            total.flop += cost.flop;
            total.bytes += cost.bytes;
        }
        Ok(total)
    }

    /// The same graph with a value kept for the host under `name`.
    #[must_use]
    pub fn with_output(mut self, name: &str, value: ValueId) -> Self {
        self.outputs.insert(name.to_owned(), value);
        self
    }

    /// Appends the gradient norm, Adam over all parameters, and the rollback of the running statistics for a step that is refused;
    /// needs the output `terms`, and adds the input `hyperparams` ([`StepScalars`]) and the output `norm` (global norm, finite flag).
    pub fn with_adam(mut self, config: AdamConfig) -> Result<Self> {
        let len = (self.arena_bytes(Arena::Params) / 4) as usize;
        let [params, grads, m, v] =
            [Arena::Params, Arena::Grads, Arena::Moment1, Arena::Moment2].map(|arena| self.whole(arena));
        let terms = self.output("terms")?;
        let hyperparams = self.add_value("hyperparams".into(), Spec::flat(StepScalars::LEN), Storage::Input);
        self.inputs.insert("hyperparams".into(), hyperparams);
        let grad_norm = GradNorm::new(len)?;
        let norm = self.add_value("grad_norm.norm".into(), spec_of(&grad_norm, operand("norm"))?, Storage::Local);
        let bound = vec![("grads", grads), ("terms", terms), ("norm", norm)];
        self.push_forward("grad_norm", Arc::new(grad_norm), bound)?;
        let bound = vec![
            ("grads", grads),
            ("norm", norm),
            ("hyperparams", hyperparams),
            ("params", params),
            ("m", m),
            ("v", v),
        ];
        self.push_forward("adam", Arc::new(Adam::new(len, config)?), bound)?;
        if !self.states.is_empty() {
            let len = (self.arena_bytes(Arena::States) / 4) as usize;
            let bound = vec![
                ("norm", norm),
                ("states", self.whole(Arena::States)),
                ("accepted", self.whole(Arena::SavedStates)),
            ];
            self.push_forward("restore_states", Arc::new(RestoreStates::new(len)?), bound)?;
        }
        Ok(self.with_output("norm", norm))
    }

    fn push_forward(&mut self, name: &str, op: Arc<dyn Op>, bound: Vec<(&'static str, ValueId)>) -> Result<()> {
        let pass = op.passes().forward;
        let bound = bound.into_iter().map(|(name, value)| (operand(name), value)).collect();
        let accumulate = vec![false; pass.writes.len()];
        self.push_node(name, op, pass, bound, accumulate)
    }

    /// The same graph with only these outputs, without the nodes and inputs that they do not need. All tensors stay.
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

    fn whole(&mut self, arena: Arena) -> ValueId {
        let len = self.arena_bytes(arena) / 4;
        self.add_value(arena.to_string(), Spec::flat(len as usize), Storage::Whole(arena))
    }

    /// Appends a forward call of `op`: binds inputs in order, makes the rest. Returns the values of the outputs.
    fn call(&mut self, name: &str, op: Arc<dyn Op>, inputs: &[ValueId]) -> Result<Vec<ValueId>> {
        let mut given = inputs.iter();
        let (mut bound, mut outputs) = (Vec::new(), Vec::new());
        let family = op.kind();
        for operand in op.operands() {
            let path = format!("{name}.{}", operand.name);
            let value = match operand.role {
                Role::Input | Role::Constant => {
                    let missing = || {
                        Error::argument(format!("inputs of {family}"), format!("one for `{}`", operand.name), "none")
                    };
                    let value = *given.next().ok_or_else(missing).map_err(|e| e.at_node(name))?;
                    let foreign = || Error::Graph(format!("{name}: `{}` is a value of another graph", operand.name));
                    let found = self.values.get(value.0).ok_or_else(foreign)?.spec;
                    if found.device_bytes() != operand.spec.device_bytes() || found.len() != operand.spec.len() {
                        return Err(Error::shape(family, operand.name, operand.spec.shape, found.shape).at_node(name));
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
            bound.push((operand.name, value));
        }
        if given.next().is_some() {
            return Err(
                Error::argument(format!("number of inputs of {family}"), bound.len(), inputs.len()).at_node(name)
            );
        }
        self.push_forward(name, op, bound)?;
        Ok(outputs)
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
            return Err(Error::Graph(format!("two tensors are called `{name}`: give the nodes different names")));
        }
        let offset = tensors.last().map_or(0, arena_end);
        tensors.push(Tensor { name: name.clone(), spec, init, offset });
        let index = tensors.len() - 1;
        Ok(self.add_value(name, spec, Storage::Tensor(arena, index)))
    }
}

/// The granule of tensor offsets in a arena: WebGPU's default alignment of buffer bindings.
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

/// Builds a forward graph.
///
/// ```
/// use vae_wgpu::runtime::graph::Builder;
/// use vae_wgpu::runtime::op::{Add, Relu};
/// use vae_wgpu::runtime::tensor::shape::{Shape, Spec};
///
/// let mut b = Builder::new();
/// let x = b.input("x", Spec::nhwc(Shape::new(2, 8, 4, 4)))?;
/// let h = b.apply("relu", &[x], |s| Relu::new(s[0]))?;
/// let y = b.apply("add", &[h, x], |s| Add::new(s[0], s[1]))?;
/// let graph = b.output("y", y).build();
/// assert_eq!(graph.nodes().len(), 2);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    graph: Graph,
    scopes: Vec<String>,
}

impl Builder {
    /// An empty graph.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A value that the host writes before each run. Names are unique.
    pub fn input(&mut self, name: &str, spec: Spec) -> Result<ValueId> {
        spec.shape.checked("input", name)?;
        if self.graph.inputs.contains_key(name) {
            return Err(Error::Graph(format!("two inputs are called `{name}`")));
        }
        let value = self.graph.add_value(name.to_owned(), spec, Storage::Input);
        self.graph.inputs.insert(name.to_owned(), value);
        Ok(value)
    }

    /// Puts `name` in front of the names of the nodes that follow, until [`Builder::scope_out`].
    pub fn scope_in(&mut self, name: impl fmt::Display) {
        self.scopes.push(name.to_string());
    }

    /// Leaves the innermost scope.
    pub fn scope_out(&mut self) {
        self.scopes.pop();
    }

    fn path(&self, name: &str) -> String {
        self.scopes.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    /// Adds the operation that `make` configures from the shapes of `inputs`, and returns its first output. Errors name the
    /// node.
    pub fn apply<O: Op + 'static>(
        &mut self,
        name: &str,
        inputs: &[ValueId],
        make: impl FnOnce(&[Shape]) -> Result<O>,
    ) -> Result<ValueId> {
        let path = self.path(name);
        let shapes: Vec<_> = inputs.iter().map(|v| self.shape(*v)).collect();
        let op = make(&shapes).map_err(|e| e.at_node(&path))?;
        let outputs = self.graph.call(&path, Arc::new(op), inputs)?;
        outputs.first().copied().ok_or_else(|| Error::bug(format!("{path} has no output")))
    }

    /// Shape of a value; an empty one, which every operation refuses, for a value of another graph.
    #[must_use]
    pub fn shape(&self, value: ValueId) -> Shape {
        self.graph.values.get(value.0).map_or(Shape::new(0, 0, 0, 0), |v| v.spec.shape)
    }

    /// Keeps a value for the host under `name`.
    #[must_use]
    pub fn output(mut self, name: &str, value: ValueId) -> Self {
        self.graph.outputs.insert(name.to_owned(), value);
        self
    }

    /// The finished forward graph.
    #[must_use]
    pub fn build(self) -> Graph {
        self.graph
    }
}

impl fmt::Display for Graph {
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
