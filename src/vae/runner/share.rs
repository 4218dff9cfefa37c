//! The share that one of several processes has in a training step.
//!
//! A process adds the gradients of its own micro-batches on the device. The host adds the sums of the processes
//! ([`MicroBatch`] says in which order), and all processes make the same update.

use super::{Hyperparams, Labelled, Runner};
use crate::error::{Error, Result};
use crate::runtime::exec::{Data, ProgramId};
use crate::runtime::graph::Arena;
use crate::runtime::op::{Exchanges, MicroBatch, Sum};
use crate::vae::model::Mode;

impl Runner {
    /// Runs a micro-batch of the share of this process, as [`Runner::accumulate`], and waits for it. `micro_batch` has its number in the
    /// share and the number of images of the whole step. Returns the statistics of the batch, which the running statistics of this process
    /// become until [`Runner::update_shares`]; empty for a model without any.
    ///
    /// With [`Exchanges::Tensors`], batch norms are over the micro-batches of all processes that run one at the same time. The function is
    /// called [`Runner::exchanges`] times. [`Exchanges::Sums`] is for the last micro-batch of the share and exchanges the sums of the step,
    /// as [`Runner::exchange_sums`] does, while the device is busy with the backward pass.
    ///
    /// # Errors
    /// As [`Runner::accumulate`], and those of the exchange.
    pub fn accumulate_share<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
        exchanges: Exchanges<'_>,
    ) -> Result<Vec<f32>> {
        let synchronized = matches!(exchanges, Exchanges::Tensors(_));
        let mode = if synchronized { Mode::AccumulateSynchronized } else { Mode::AccumulateShare };
        self.accumulate_in(mode, images.into(), eps, micro_batch, hyper, exchanges)?;
        if self.graph()?.states().is_empty() {
            Ok(Vec::new())
        } else {
            self.engine.get_mut().download_flat(Arena::States)
        }
    }

    /// Returns how often the processes exchange values in a micro-batch with batch norms over all of them, whatever its size.
    ///
    /// # Errors
    /// [`Error::Graph`] if no such program has been prepared.
    pub fn exchanges(&self) -> Result<usize> {
        let program = self.program_of(|mode| matches!(mode, Mode::AccumulateSynchronized(_)))?;
        Ok(self.engine.get().graph(program)?.exchanges()?.len())
    }

    /// Replaces the sums over the micro-batches of the share, gradients and loss terms, by those over the whole step: `sum` adds those of all
    /// processes. It is called a few times, with a part of the values each. A process without a micro-batch has nothing to add, but needs
    /// the sums for its update.
    ///
    /// # Errors
    /// Errors of the device, and those of `sum`.
    pub fn exchange_sums(&mut self, sum: Sum<'_>) -> Result<()> {
        let shared = |mode| matches!(mode, Mode::AccumulateShare(_) | Mode::AccumulateSynchronized(_));
        let program = self.program_of(shared)?;
        self.engine.get_mut().exchange_sums(program, sum)
    }

    fn program_of(&self, suits: impl Fn(Mode) -> bool) -> Result<ProgramId> {
        let program = self.programs.iter().find(|((_, mode), _)| suits(*mode));
        let missing = || Error::Graph("the runner has no program for a share of a step".to_owned());
        Ok(program.ok_or_else(missing)?.1)
    }

    /// Starts the update of a step that several processes share, after they have exchanged its sums, and returns the index of the step.
    /// `statistics` are those of the batch of each of its micro-batches, in order. The results come later, from [`Runner::reports`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for values of another length, and errors of the device.
    pub fn update_shares(&mut self, statistics: &[&[f32]], hyper: &Hyperparams) -> Result<u64> {
        let program = self.program_for(1, statistics.len(), Mode::UpdateShares)?;
        let graph = self.engine.get().graph(program)?;
        let moved = match graph.inputs().get("statistics") {
            None => None,
            Some(&input) => {
                // An executor may leave out the padding of an arena, which its values here have.
                let (all, len) = (graph.value(input).spec.len(), (graph.arena_bytes(Arena::States) / 4) as usize);
                let mut values = Vec::with_capacity(all);
                for batch in statistics {
                    if batch.is_empty() || batch.len() > len {
                        return Err(Error::argument(
                            "number of statistics of a batch",
                            format!("1 to {len}"),
                            batch.len(),
                        ));
                    }
                    values.extend_from_slice(batch);
                    values.resize(values.len().next_multiple_of(len), 0.0);
                }
                values.resize(all, 0.0);
                Some(values)
            }
        };
        if let Some(moved) = moved {
            self.write(program, "statistics", Data::F32(&moved))?;
            self.write(program, "count", Data::F32(&[statistics.len() as f32]))?;
        }
        let step = self.start_update(program, hyper)?;
        self.accumulated = (0, 0);
        Ok(step)
    }
}
