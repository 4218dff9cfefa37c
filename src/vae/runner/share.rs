//! The share that one of several processes has in a training step.
//!
//! A process adds the gradients of its own micro-batches on the device. The host adds the sums of the processes
//! ([`MicroBatch`] says in which order), and all processes make the same update.

use super::{Hyperparams, Labelled, Runner};
use crate::error::{Error, Result};
use crate::runtime::exec::{Data, ProgramId};
use crate::runtime::graph::Arena;
use crate::runtime::op::{Gather, MicroBatch};
use crate::vae::model::Mode;

impl Runner {
    /// Runs a micro-batch of the share of this process, as [`Runner::accumulate`], and waits for it. `micro_batch` has its number in the
    /// share and the number of images of the whole step. Returns the statistics of the batch, which the running statistics of this process
    /// become until [`Runner::update_shares`]; empty for a model without any.
    ///
    /// With `gather`, batch norms are over the micro-batches of all processes that run one at the same time. It is called
    /// [`Runner::exchanges`] times.
    ///
    /// # Errors
    /// As [`Runner::accumulate`], and those of `gather`.
    pub fn accumulate_share<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
        gather: Option<Gather<'_>>,
    ) -> Result<Vec<f32>> {
        let mode = if gather.is_some() { Mode::AccumulateSynchronized } else { Mode::AccumulateShare };
        self.accumulate_in(mode, images.into(), eps, micro_batch, hyper, gather)?;
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
        let synchronized =
            |((_, mode), _): &&((usize, Mode), ProgramId)| matches!(mode, Mode::AccumulateSynchronized(_));
        let program = self.programs.iter().find(synchronized);
        let missing = || Error::Graph("the runner has no program whose norms are synchronized".to_owned());
        Ok(self.engine.get().graph(program.ok_or_else(missing)?.1)?.exchanges()?.len())
    }

    /// Returns the sums over the micro-batches of the share: gradients and loss terms, in the order of the device. Waits for the device.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn sums(&mut self) -> Result<[Vec<f32>; 2]> {
        let exec = self.engine.get_mut();
        Ok([exec.download_flat(Arena::Grads)?, exec.download_flat(Arena::Terms)?])
    }

    /// Starts the update of a step that several processes share, and returns the index of the step. The sums, as of [`Runner::sums`], are
    /// those of the whole step, and `statistics` those of the batch of each of its micro-batches, in order. The results come later, from
    /// [`Runner::reports`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for values of another length, and errors of the device.
    pub fn update_shares(
        &mut self,
        [grads, terms]: [&[f32]; 2],
        statistics: &[&[f32]],
        hyper: &Hyperparams,
    ) -> Result<u64> {
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
        let exec = self.engine.get_mut();
        exec.upload_flat(Arena::Grads, grads)?;
        exec.upload_flat(Arena::Terms, terms)?;
        if let Some(moved) = moved {
            self.write(program, "statistics", Data::F32(&moved))?;
            self.write(program, "count", Data::F32(&[statistics.len() as f32]))?;
        }
        let step = self.start_update(program, hyper)?;
        self.accumulated = (0, 0);
        Ok(step)
    }
}
