//! Gradient accumulation: a training step as several runs of a graph that adds gradients, and one run of a graph that updates.
//!
//! [`MicroBatch`](crate::runtime::op::MicroBatch) defines the sum.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Storage, Tensor, ValueId, arena_end, by_name};
use crate::runtime::op::{Accumulate, AdamConfig, BatchNorm, Elbo, Init, MicroBatch, Op, ReplayStates, Scale};
use crate::runtime::tensor::Spec;

/// Into how many buckets of about the same size shared gradients are divided. More would hide a little more of the exchange behind the
/// backward pass, and wait for the network more often.
const BUCKETS: u64 = 4;

/// Gradients of consecutive parameters, which are exchanged together.
#[derive(Debug)]
struct Bucket {
    params: Range<usize>,
    /// The node that completes the last of them.
    complete: usize,
}

impl Graph {
    /// Appends the sum over the micro-batches of a step to a graph with gradients, for steps of up to `most` micro-batches.
    ///
    /// `losses` are the loss terms, a flat tensor of four values. They move to [`Arena::Terms`] and are summed like the gradients: after
    /// the last micro-batch of a step, [`Arena::Grads`] and [`Arena::Terms`] hold those of the whole step. Then
    /// [`Graph::update_after_accumulation`] makes the update. Its arenas belong to this graph too, so that a plan counts their memory.
    ///
    /// The graph gets the input `micro_batch`.
    ///
    /// # Errors
    /// [`Error::Graph`] if no node computes `losses`, [`Error::InvalidArgument`] for a graph without parameters or too many
    /// micro-batches.
    pub fn with_accumulation(self, most: usize, losses: ValueId) -> Result<Self> {
        let all = Bucket { params: 0..self.params.len(), complete: self.nodes.len() };
        self.with_sums(most, losses, &[all])
    }

    /// Like [`Graph::with_accumulation`], in a process that shares a step with others. The backward pass has the gradients of the last
    /// parameters first. Their sum follows at once, so that processes can exchange it while the device computes the other gradients:
    /// [`Graph::sums`] are those of a few buckets of gradients, the last of which comes with the loss terms.
    ///
    /// The sums have the bits of [`Graph::with_accumulation`].
    ///
    /// # Errors
    /// As [`Graph::with_accumulation`].
    pub fn with_shared_accumulation(self, most: usize, losses: ValueId) -> Result<Self> {
        let buckets = self.buckets();
        self.with_sums(most, losses, &buckets)
    }

    /// Divides the gradients into buckets, in the order in which the backward pass completes them. They depend on the parameters alone, so
    /// that they are the same in processes with other batch sizes.
    fn buckets(&self) -> Vec<Bucket> {
        let mut computed_by = vec![0; self.params.len()];
        for (number, node) in self.nodes.iter().enumerate() {
            for value in node.touches() {
                if let Storage::Tensor(Arena::Grads, param) = self.value(value).storage {
                    computed_by[param] = number;
                }
            }
        }
        let size = self.arena_bytes(Arena::Grads) / BUCKETS;
        let mut buckets: Vec<Bucket> = Vec::new();
        let (mut end, mut complete) = (self.params.len(), 0);
        for (first, param) in self.params.iter().enumerate().rev() {
            complete = complete.max(computed_by[first]);
            if first > 0 && arena_end(&self.params[end - 1]) - param.offset < size {
                continue;
            }
            buckets.push(Bucket { params: first..end, complete });
            end = first;
        }
        buckets
    }

    /// Adds the sums over the micro-batches: those of each bucket after the node that completes it, and of the loss terms at the end.
    fn with_sums(mut self, most: usize, losses: ValueId, buckets: &[Bucket]) -> Result<Self> {
        let not_computed = || Error::Graph("the loss terms to accumulate are not computed by a node".to_owned());
        let terms = self.values.get_mut(losses.0).filter(|value| value.storage == Storage::Local);
        let terms = terms.ok_or_else(not_computed)?;
        terms.storage = Storage::Tensor(Arena::Terms, 0);
        let spec = terms.spec;
        self.terms = vec![terms_tensor(spec)];
        let micro_batch = self.add_value("micro_batch".into(), Spec::flat(MicroBatch::LEN), Storage::Input);
        self.inputs.insert("micro_batch".into(), micro_batch);
        let levels = MicroBatch::levels(most);
        let nodes = std::mem::take(&mut self.nodes);
        let end = nodes.len();
        let mut buckets = buckets.iter().enumerate().peekable();
        for (number, node) in nodes.into_iter().map(Some).chain([None]).enumerate() {
            self.nodes.extend(node);
            while let Some((i, bucket)) = buckets.next_if(|(_, bucket)| bucket.complete == number || number == end) {
                let name = if i == 0 { "accumulate.gradients".to_owned() } else { format!("accumulate.gradients{i}") };
                let sum = self.part(Arena::Grads, bucket.params.clone());
                let of_level = |level| self.part(Arena::PartialGrads(level), bucket.params.clone());
                let partials: Vec<_> = (0..levels).map(of_level).collect();
                self.push_sum(&name, micro_batch, sum, &partials)?;
                self.sums.push((self.nodes.len() - 1, sum));
            }
        }
        let of_level = |level| {
            let arena = Arena::PartialTerms(level);
            self.add_value(arena.to_string(), spec, Storage::Tensor(arena, 0))
        };
        let partials: Vec<_> = (0..levels).map(of_level).collect();
        self.push_sum("accumulate.terms", micro_batch, losses, &partials)?;
        let end = self.nodes.len() - 1;
        if let Some((complete, _)) = self.sums.last_mut() {
            *complete = end;
        }
        self.sums.push((end, losses));
        for arena in [Arena::OptimizerState(0), Arena::OptimizerState(1), Arena::SavedStates] {
            if !self.tensors(arena).is_empty() {
                self.whole(arena);
            }
        }
        Ok(self)
    }

    /// Appends the nodes that add the values of a micro-batch to the sums of blocks of them, one for each level of the tree.
    fn push_sum(&mut self, name: &str, micro_batch: ValueId, sum: ValueId, partials: &[ValueId]) -> Result<()> {
        let len = self.value(sum).spec.len();
        let operands = by_name([("micro_batch", micro_batch), ("sum", sum)]);
        self.push_forward(name, Arc::new(Scale::new(len)?), operands)?;
        for (level, &partial) in partials.iter().enumerate() {
            let operands = by_name([("micro_batch", micro_batch), ("sum", sum), ("partial", partial)]);
            self.push_forward(&format!("{name}.{level}"), Arc::new(Accumulate::new(len, level)?), operands)?;
        }
        Ok(())
    }

    /// Makes the running statistics of a graph in training those of its batch alone, and returns the share that the batch had in them,
    /// if there are any. [`Graph::fused`] and gradients come afterwards.
    ///
    /// # Errors
    /// [`Error::Graph`] if the shares of two nodes differ.
    pub fn with_batch_statistics(mut self) -> Result<(Self, Option<f64>)> {
        let mut found = None;
        for node in &mut self.nodes {
            let norm = node.op.downcast_ref::<BatchNorm>();
            let elbo = node.op.downcast_ref::<Elbo>();
            let momentum = norm.map(|norm| norm.config().momentum).or_else(|| elbo?.momentum());
            let Some(momentum) = momentum else { continue };
            if *found.get_or_insert(momentum) != momentum {
                return Err(Error::Graph(format!("`{}` has another momentum than the nodes before it", node.name)));
            }
            let norm = norm.map(|norm| Arc::new(norm.with_momentum(1.0)) as Arc<dyn Op>);
            let elbo = elbo.map(|elbo| Arc::new(elbo.with_momentum(1.0)) as Arc<dyn Op>);
            node.op = norm.or(elbo).unwrap_or_else(|| Arc::clone(&node.op));
        }
        Ok((self, found))
    }

    /// Appends to a graph without nodes that touch them: the running statistics after a step of up to `most` micro-batches, from those
    /// before it ([`Arena::SavedStates`]) and the statistics of each batch. [`Graph::update_of_shares`] adds the update.
    fn with_replayed_states(mut self, most: usize, momentum: f64) -> Result<Self> {
        let len = (self.arena_bytes(Arena::States) / 4) as usize;
        let input = |graph: &mut Self, name: &str, len| {
            let value = graph.add_value(name.into(), Spec::flat(len), Storage::Input);
            graph.inputs.insert(name.into(), value);
            value
        };
        let (statistics, count) = (input(&mut self, "statistics", most * len), input(&mut self, "count", 1));
        let (accepted, states) = (self.whole(Arena::SavedStates), self.whole(Arena::States));
        let operands =
            by_name([("statistics", statistics), ("count", count), ("accepted", accepted), ("states", states)]);
        self.push_forward("replay_states", Arc::new(ReplayStates::new(len, most, momentum)?), operands)?;
        Ok(self)
    }

    /// Like [`Graph::update_after_accumulation`], in a process that shares a step of up to `most` micro-batches with others: the running
    /// statistics move by the statistics of each batch in order, with a share of `momentum` each.
    ///
    /// The graph gets the inputs `statistics`, those of each batch in the layout of [`Arena::States`], and `count`, their number, if there
    /// are running statistics.
    ///
    /// # Errors
    /// As [`Graph::update_after_accumulation`].
    pub fn update_of_shares(self, config: AdamConfig, most: usize, momentum: Option<f64>) -> Result<Self> {
        let (graph, losses) = self.empty_with_terms();
        match momentum {
            Some(momentum) => graph.with_replayed_states(most, momentum)?.with_adam(config, losses),
            None => graph.with_adam(config, losses),
        }
    }

    /// Returns the graph that makes the update of a step of several micro-batches: [`Graph::with_adam`] alone, for the sums of
    /// [`Graph::with_accumulation`] in a graph with the parameters of this one.
    ///
    /// The graph has the output `terms`, the loss terms of the step, besides `norm`.
    ///
    /// # Errors
    /// As [`Graph::with_adam`].
    pub fn update_after_accumulation(self, config: AdamConfig) -> Result<Self> {
        let (graph, losses) = self.empty_with_terms();
        graph.with_adam(config, losses)
    }

    /// A graph without nodes that has the parameters and running statistics of this one, and the loss terms of a step as output.
    fn empty_with_terms(self) -> (Self, ValueId) {
        let spec = Spec::flat(4);
        let (params, states, terms) = (self.params, self.states, vec![terms_tensor(spec)]);
        let mut graph = Self { params, states, terms, ..Self::default() };
        let losses = graph.add_value(Arena::Terms.to_string(), spec, Storage::Tensor(Arena::Terms, 0));
        graph.outputs = BTreeMap::from([("terms".to_owned(), losses)]);
        (graph, losses)
    }
}

fn terms_tensor(spec: Spec) -> Tensor {
    Tensor { name: Arena::Terms.to_string(), spec, init: Init::Constant(0.0), offset: 0 }
}
