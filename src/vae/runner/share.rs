//! The share that one of several processes has in a training step.
//!
//! A process adds the gradients of its own micro-batches on the device. The host adds the sums of the processes
//! ([`MicroBatch`] says in which order), and all processes make the same update.

use super::{Hyperparams, Labelled, Runner};
use crate::error::{Error, Result};
use crate::runtime::exec::Data;
use crate::runtime::graph::Arena;
use crate::runtime::op::MicroBatch;
use crate::vae::model::Mode;

impl Runner {
    /// Runs a micro-batch of the share of this process, as [`Runner::accumulate`], and waits for it. `micro_batch` has its number in the
    /// share and the number of images of the whole step. Returns the statistics of the batch, which the running statistics of this process
    /// become until [`Runner::update_shares`]; empty for a model without any.
    ///
    /// # Errors
    /// As [`Runner::accumulate`].
    pub fn accumulate_share<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
    ) -> Result<Vec<f32>> {
        self.accumulate_in(Mode::AccumulateShare, images.into(), eps, micro_batch, hyper)?;
        if self.graph()?.states().is_empty() {
            Ok(Vec::new())
        } else {
            self.engine.get_mut().download_flat(Arena::States)
        }
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
