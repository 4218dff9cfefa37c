//! Reverse-mode differentiation: a backward walk over the forward nodes appends the nodes of the backward pass.
//!
//! The first contribution to a gradient overwrites it and later ones accumulate, in the fixed order of the walk, so no gradient needs
//! to be cleared. If a gradient equals another value, as in a residual add, both share one value until something is added to it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Node, Storage, ValueId};
use crate::runtime::kernel::Arg;
use crate::runtime::op::{Add, ChannelShift, Operand, Pass, Role};

/// A value at which the backward pass starts.
#[derive(Clone, Copy, Debug)]
pub enum Root {
    /// A loss whose operation computes the gradients of its inputs in its forward pass, like `elbo`.
    Loss(ValueId),
    /// A value, and the input with its gradient.
    Seeded(ValueId, ValueId),
}

impl Graph {
    /// Appends the nodes that compute the gradients of all parameters, and of the inputs in `wanted`. The gradient of input `x`
    /// becomes the output `dx`.
    ///
    /// # Errors
    /// [`Error::Graph`] if a parameter or wanted input has no gradient, unless that is exactly zero
    /// ([`Graph::zero_grad_params`]), or if a seed has another shape than its value; [`Error::Unknown`] if a wanted input does not
    /// exist.
    pub fn with_gradients(self, roots: &[Root], wanted: &[&str]) -> Result<Self> {
        let mut walk = Walk::new(self, roots, wanted)?;
        let forward = walk.graph.nodes.clone();
        walk.graph.forward = forward.len();
        for node in forward.iter().rev() {
            walk.node(node)?;
        }
        walk.finish(wanted)
    }
}

struct Walk {
    graph: Graph,
    /// Gradient of each forward value that has one so far.
    grads: HashMap<ValueId, ValueId>,
    /// For each gradient, the forward values that it belongs to and whose producers have not read it yet.
    sharers: HashMap<ValueId, HashSet<ValueId>>,
    losses: HashSet<ValueId>,
    /// Forward values that depend on a parameter or on a wanted input.
    differentiable: HashSet<ValueId>,
    /// Parameters with an exactly zero gradient.
    zero: HashSet<usize>,
    /// Parameters whose gradient has a contribution.
    written: HashSet<usize>,
}

impl Walk {
    fn new(graph: Graph, roots: &[Root], wanted: &[&str]) -> Result<Self> {
        let mut differentiable = HashSet::new();
        for name in wanted {
            differentiable.insert(graph.input(name)?);
        }
        for node in &graph.nodes {
            let operands = node.op.operands();
            let depends = |o: &Operand| match o.role {
                Role::Param(_) => Ok(true),
                Role::Input => Ok(differentiable.contains(&node.operand(o.name)?)),
                _ => Ok(false),
            };
            if operands.iter().map(depends).collect::<Result<Vec<_>>>()?.contains(&true) {
                differentiable.extend(outputs(node, &operands)?);
            }
        }
        let zero = zero_grad_params(&graph, roots)?;
        let mut walk = Self {
            graph,
            grads: HashMap::new(),
            sharers: HashMap::new(),
            losses: HashSet::new(),
            differentiable,
            zero,
            written: HashSet::new(),
        };
        for root in roots {
            match *root {
                Root::Loss(value) => {
                    walk.losses.insert(value);
                }
                Root::Seeded(value, seed) => {
                    let (expected, found) = (walk.graph.value(value).spec, walk.graph.value(seed).spec);
                    if expected != found {
                        let name = &walk.graph.value(value).name;
                        return Err(Error::Graph(format!("gradient of `{name}`: expected {expected}, found {found}")));
                    }
                    walk.share(value, seed);
                }
            }
        }
        Ok(walk)
    }

    fn share(&mut self, value: ValueId, grad: ValueId) {
        self.grads.insert(value, grad);
        self.sharers.entry(grad).or_default().insert(value);
    }

    fn node(&mut self, node: &Node) -> Result<()> {
        let operands = node.op.operands();
        let outputs = outputs(node, &operands)?;
        let is_loss = outputs.iter().any(|v| self.losses.contains(v));
        if !is_loss && !outputs.iter().any(|v| self.grads.contains_key(v)) {
            return Ok(());
        }
        let passes = node.op.passes();
        for (to, from) in &passes.aliases {
            let value = node.operand(to.name())?;
            if self.differentiable.contains(&value) {
                let source = self.source(node, *from)?;
                self.contribute(node, value, source)?;
            }
        }
        for pass in &passes.backward {
            self.backward(node, &operands, pass)?;
        }
        for output in outputs {
            if let Some(sharers) = self.grads.get(&output).and_then(|grad| self.sharers.get_mut(grad)) {
                sharers.remove(&output);
            }
        }
        Ok(())
    }

    /// Appends a backward pass of `node`, if a gradient that it writes is wanted.
    fn backward(&mut self, node: &Node, operands: &[Operand], pass: &Pass) -> Result<()> {
        let mut wanted = false;
        for arg in &pass.writes {
            wanted |= self.wants(operand(node, operands, *arg)?, node.operand(arg.name())?);
        }
        if !wanted {
            return Ok(());
        }
        let mut bound = Vec::new();
        for arg in &pass.reads {
            bound.push((*arg, self.source(node, *arg)?));
        }
        let mut accumulate = Vec::new();
        let mut contributions = Vec::new();
        for arg in &pass.writes {
            let target = operand(node, operands, *arg)?;
            let value = node.operand(arg.name())?;
            let path = format!("{}.{arg}", node.name);
            let (grad, add) = match self.graph.value(value).storage {
                Storage::Tensor(Arena::Params, i) => {
                    let grad = self.graph.add_value(path, target.spec, Storage::Tensor(Arena::Grads, i));
                    (grad, !self.written.insert(i))
                }
                _ => match self.grads.get(&value).copied() {
                    Some(grad) if self.is_only_for(grad, value) => (grad, true),
                    _ => {
                        let grad = self.graph.add_value(path, target.spec, Storage::Local);
                        if self.wants(target, value) {
                            contributions.push((value, grad));
                        }
                        (grad, false)
                    }
                },
            };
            bound.push((*arg, grad));
            accumulate.push(add);
        }
        self.graph.push_node(&node.name, Arc::clone(&node.op), pass.clone(), bound, accumulate)?;
        for (value, grad) in contributions {
            self.contribute(node, value, grad)?;
        }
        Ok(())
    }

    /// Returns whether the gradient of this operand is wanted.
    fn wants(&self, operand: &Operand, value: ValueId) -> bool {
        match (operand.role, self.graph.value(value).storage) {
            (Role::Param(_), Storage::Tensor(_, i)) => !self.zero.contains(&i),
            _ => self.differentiable.contains(&value),
        }
    }

    fn is_only_for(&self, grad: ValueId, value: ValueId) -> bool {
        // The seed of a root is an input, which nodes never write.
        self.graph.value(grad).storage == Storage::Local
            && self.sharers.get(&grad).is_some_and(|s| s.len() == 1 && s.contains(&value))
    }

    /// Adds the existing value `grad` to the gradient of `value`.
    fn contribute(&mut self, node: &Node, value: ValueId, grad: ValueId) -> Result<()> {
        let Some(old) = self.grads.get(&value).copied() else {
            self.share(value, grad);
            return Ok(());
        };
        let shape = self.graph.value(grad).spec.shape;
        let name = format!("{}.sum", node.name);
        let sums = self.graph.push_op(&name, Arc::new(Add::new(shape, shape)?), &[old, grad])?;
        let sum = *sums.first().ok_or_else(|| Error::bug("add has no output"))?;
        if let Some(sharers) = self.sharers.get_mut(&old) {
            sharers.remove(&value);
        }
        self.share(value, sum);
        Ok(())
    }

    /// Returns the value of an operand of `node`, or its gradient.
    fn source(&self, node: &Node, arg: Arg) -> Result<ValueId> {
        let value = node.operand(arg.name())?;
        if !arg.is_grad() {
            return Ok(value);
        }
        self.grads.get(&value).copied().ok_or_else(|| {
            let value = &self.graph.value(value).name;
            Error::Graph(format!("{}: no loss depends on `{value}`, so it has no gradient", node.name))
        })
    }

    fn finish(mut self, wanted: &[&str]) -> Result<Graph> {
        for (i, param) in self.graph.params.iter().enumerate() {
            if !self.written.contains(&i) && !self.zero.contains(&i) {
                return Err(Error::Graph(format!(
                    "parameter `{}` has no gradient: the loss does not depend on it",
                    param.name
                )));
            }
        }
        for name in wanted {
            let value = self.graph.input(name)?;
            let missing = || Error::Graph(format!("input `{name}` has no gradient"));
            let grad = *self.grads.get(&value).ok_or_else(missing)?;
            self.graph.outputs.insert(format!("d{name}"), grad);
        }
        self.graph.zero_grad_params = self.zero.into_iter().collect();
        self.graph.zero_grad_params.sort_unstable();
        Ok(self.graph)
    }
}

fn outputs(node: &Node, operands: &[Operand]) -> Result<Vec<ValueId>> {
    operands.iter().filter(|o| o.role == Role::Output).map(|o| node.operand(o.name)).collect()
}

/// Returns the operand that a gradient belongs to.
fn operand<'a>(node: &Node, operands: &'a [Operand], gradient: Arg) -> Result<&'a Operand> {
    let found = operands.iter().find(|o| gradient.is_grad() && o.name == gradient.name());
    found.ok_or_else(|| Error::bug(format!("{}: `{gradient}` is not the gradient of an operand", node.label())))
}

/// Finds the parameters whose gradient is exactly zero: they add a per-channel constant to a value, and all paths from there lead
/// into an operation that removes it.
fn zero_grad_params(graph: &Graph, roots: &[Root]) -> Result<HashSet<usize>> {
    let mut visible: HashSet<ValueId> = graph.outputs.values().copied().collect();
    visible.extend(roots.iter().map(|root| match *root {
        Root::Loss(value) | Root::Seeded(value, _) => value,
    }));
    // Whether all consumers so far of a value remove a constant. Consumers come after producers, so the walk is backwards.
    let mut removed: HashMap<ValueId, bool> = HashMap::new();
    let mut zero = HashSet::new();
    for node in graph.nodes.iter().rev() {
        let operands = node.op.operands();
        let is_removed = |value: &ValueId| !visible.contains(value) && removed.get(value) == Some(&true);
        let all_removed = outputs(node, &operands)?.iter().all(is_removed);
        if let Some(bias) = node.op.bias_param()
            && let Storage::Tensor(_, i) = graph.value(node.operand(bias)?).storage
            && all_removed
        {
            zero.insert(i);
        }
        for operand in operands.iter().filter(|o| matches!(o.role, Role::Input | Role::Constant)) {
            let here = match node.op.channel_shift(operand.name) {
                ChannelShift::Absorbs => true,
                ChannelShift::Depends => false,
                ChannelShift::Forwards => all_removed,
            };
            *removed.entry(node.operand(operand.name)?).or_insert(true) &= here;
        }
    }
    Ok(zero)
}
