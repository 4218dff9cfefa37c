//! The backward graph: a reverse walk over the forward nodes.
//!
//! The first contribution to a gradient stores, later ones accumulate, in the fixed order of the walk, so nothing has to be
//! cleared and nothing can be forgotten. Where an operation says that a gradient equals another value (the residual add), the
//! value is shared until somebody has to add to it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::{Arena, Graph, Node, Storage, ValueId};
use crate::error::{Error, Result};
use crate::runtime::kernel::Arg;
use crate::runtime::op::basic::add::Add;
use crate::runtime::op::{ChannelShift, Operand, Pass, Role};

/// Where a gradient starts.
#[derive(Clone, Copy, Debug)]
pub enum Root {
    /// The loss: its operation holds the gradients of its inputs itself (`elbo`).
    Loss(ValueId),
    /// A value and the input that holds its gradient.
    Seeded(ValueId, ValueId),
}

impl Graph {
    /// Appends the nodes that compute the gradients of all parameters (and of every input named in `wanted`, kept as output
    /// `d` + name). Every parameter must get one, unless it is exactly zero: see [`Graph::zero_grad_params`].
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
    /// For each gradient, the forward values it stands for whose producers have yet to read it.
    sharers: HashMap<ValueId, HashSet<ValueId>>,
    losses: HashSet<ValueId>,
    /// Forward values that depend on a parameter or on a wanted input.
    differentiable: HashSet<ValueId>,
    null: HashSet<usize>,
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
        let null = zero_grad_params(&graph, roots)?;
        let mut walk = Self {
            graph,
            grads: HashMap::new(),
            sharers: HashMap::new(),
            losses: HashSet::new(),
            differentiable,
            null,
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
            self.entry(node, &operands, pass)?;
        }
        for output in outputs {
            if let Some(sharers) = self.grads.get(&output).and_then(|grad| self.sharers.get_mut(grad)) {
                sharers.remove(&output);
            }
        }
        Ok(())
    }

    fn entry(&mut self, node: &Node, operands: &[Operand], pass: &Pass) -> Result<()> {
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

    /// Whether the gradient of this operand is asked for.
    fn wants(&self, operand: &Operand, value: ValueId) -> bool {
        match (operand.role, self.graph.value(value).storage) {
            (Role::Param(_), Storage::Tensor(_, i)) => !self.null.contains(&i),
            _ => self.differentiable.contains(&value),
        }
    }

    fn is_only_for(&self, grad: ValueId, value: ValueId) -> bool {
        // A root's seed belongs to the host and is never written.
        self.graph.value(grad).storage == Storage::Local
            && self.sharers.get(&grad).is_some_and(|s| s.len() == 1 && s.contains(&value))
    }

    /// Adds `grad`, as it is, to the gradient of `value`.
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

    /// The value of an operand of `node`, or of the gradient with respect to it.
    fn source(&self, node: &Node, arg: Arg) -> Result<ValueId> {
        let value = node.operand(arg.name())?;
        if !arg.is_grad() {
            return Ok(value);
        }
        self.grads.get(&value).copied().ok_or_else(|| {
            let value = &self.graph.value(value).name;
            Error::Graph(format!("{}: nothing depends on `{value}`, so it has no gradient", node.name))
        })
    }

    fn finish(mut self, wanted: &[&str]) -> Result<Graph> {
        for (i, param) in self.graph.params.iter().enumerate() {
            if !self.written.contains(&i) && !self.null.contains(&i) {
                return Err(Error::Graph(format!(
                    "parameter `{}` gets no gradient: nothing that leads to the loss depends on it",
                    param.name
                )));
            }
        }
        for name in wanted {
            let value = self.graph.input(name)?;
            let missing = || Error::Graph(format!("input `{name}` gets no gradient"));
            let grad = *self.grads.get(&value).ok_or_else(missing)?;
            self.graph.outputs.insert(format!("d{name}"), grad);
        }
        self.graph.zero_grad_params = self.null.into_iter().collect();
        self.graph.zero_grad_params.sort_unstable();
        Ok(self.graph)
    }
}

fn outputs(node: &Node, operands: &[Operand]) -> Result<Vec<ValueId>> {
    operands.iter().filter(|o| o.role == Role::Output).map(|o| node.operand(o.name)).collect()
}

/// The operand of a gradient.
fn operand<'a>(node: &Node, operands: &'a [Operand], gradient: Arg) -> Result<&'a Operand> {
    let found = operands.iter().find(|o| gradient.is_grad() && o.name == gradient.name());
    found.ok_or_else(|| Error::bug(format!("{}: `{gradient}` is no gradient of an operand", node.label())))
}

/// Parameters that add a per-channel constant to a value from which every path leads into an operation that removes it.
fn zero_grad_params(graph: &Graph, roots: &[Root]) -> Result<HashSet<usize>> {
    let mut seen: HashSet<ValueId> = graph.outputs.values().copied().collect();
    seen.extend(roots.iter().map(|r| match *r {
        Root::Loss(v) | Root::Seeded(v, _) => v,
    }));
    let mut absorbed: HashMap<ValueId, bool> = HashMap::new();
    // Consumers come after producers, so a reverse walk knows them all.
    for node in graph.nodes.iter().rev() {
        for output in outputs(node, &node.op.operands())? {
            let mut consumers = 0;
            let mut all = !seen.contains(&output);
            for consumer in &graph.nodes {
                for operand in consumer.op.operands().iter().filter(|o| matches!(o.role, Role::Input | Role::Constant))
                {
                    if consumer.operand(operand.name)? != output {
                        continue;
                    }
                    consumers += 1;
                    all &= match consumer.op.channel_shift(operand.name) {
                        ChannelShift::Absorbs => true,
                        ChannelShift::Depends => false,
                        ChannelShift::Forwards => outputs(consumer, &consumer.op.operands())?
                            .iter()
                            .all(|v| absorbed.get(v).copied().unwrap_or(false)),
                    };
                }
            }
            absorbed.insert(output, all && consumers > 0);
        }
    }
    let mut null = HashSet::new();
    for node in &graph.nodes {
        let Some(param) = node.op.bias_param() else { continue };
        let all = outputs(node, &node.op.operands())?.iter().all(|v| absorbed.get(v).copied().unwrap_or(false));
        if let (true, Storage::Tensor(_, i)) = (all, graph.value(node.operand(param)?).storage) {
            null.insert(i);
        }
    }
    Ok(null)
}
