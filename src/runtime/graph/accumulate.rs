//! Gradient accumulation: a training step as several runs of a graph that adds gradients, and one run of a graph that updates.
//!
//! [`MicroBatch`](crate::runtime::op::MicroBatch) defines the sum.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Storage, Tensor, ValueId, by_name};
use crate::runtime::op::{Accumulate, AdamConfig, Init, MicroBatch, Scale};
use crate::runtime::tensor::Spec;

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
    pub fn with_accumulation(mut self, most: usize, losses: ValueId) -> Result<Self> {
        let not_computed = || Error::Graph("the loss terms to accumulate are not computed by a node".to_owned());
        let terms = self.values.get_mut(losses.0).filter(|value| value.storage == Storage::Local);
        let terms = terms.ok_or_else(not_computed)?;
        terms.storage = Storage::Tensor(Arena::Terms, 0);
        let spec = terms.spec;
        self.terms = vec![terms_tensor(spec)];
        let micro_batch = self.add_value("micro_batch".into(), Spec::flat(MicroBatch::LEN), Storage::Input);
        self.inputs.insert("micro_batch".into(), micro_batch);
        let grads = self.whole(Arena::Grads);
        for (name, sum) in [("gradients", grads), ("terms", losses)] {
            let len = self.value(sum).spec.len();
            let operands = by_name([("micro_batch", micro_batch), ("sum", sum)]);
            self.push_forward(&format!("accumulate.{name}"), Arc::new(Scale::new(len)?), operands)?;
            for level in 0..MicroBatch::levels(most) {
                let partial = if sum == grads {
                    self.whole(Arena::PartialGrads(level))
                } else {
                    let storage = Storage::Tensor(Arena::PartialTerms(level), 0);
                    self.add_value(Arena::PartialTerms(level).to_string(), spec, storage)
                };
                let op = Arc::new(Accumulate::new(len, level)?);
                let operands = by_name([("micro_batch", micro_batch), ("sum", sum), ("partial", partial)]);
                self.push_forward(&format!("accumulate.{name}.{level}"), op, operands)?;
            }
        }
        for arena in [Arena::OptimizerState(0), Arena::OptimizerState(1), Arena::SavedStates] {
            if !self.tensors(arena).is_empty() {
                self.whole(arena);
            }
        }
        Ok(self)
    }

    /// Returns the graph that makes the update of a step of several micro-batches: [`Graph::with_adam`] alone, for the sums of
    /// [`Graph::with_accumulation`] in a graph with the parameters of this one.
    ///
    /// The graph has the output `terms`, the loss terms of the step, besides `norm`.
    ///
    /// # Errors
    /// As [`Graph::with_adam`].
    pub fn update_after_accumulation(self, config: AdamConfig) -> Result<Self> {
        let spec = Spec::flat(4);
        let (params, states, terms) = (self.params, self.states, vec![terms_tensor(spec)]);
        let mut graph = Self { params, states, terms, ..Self::default() };
        let losses = graph.add_value(Arena::Terms.to_string(), spec, Storage::Tensor(Arena::Terms, 0));
        graph.outputs = BTreeMap::from([("terms".to_owned(), losses)]);
        graph.with_adam(config, losses)
    }
}

fn terms_tensor(spec: Spec) -> Tensor {
    Tensor { name: Arena::Terms.to_string(), spec, init: Init::Constant(0.0), offset: 0 }
}
