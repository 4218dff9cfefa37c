//! The end of an epoch: validation, the weights, the row of the table, images, the checkpoint.

use web_time::Instant;

use super::events::Event;
use super::rows::{EpochRow, StepRow};
use super::store::RunState;
use super::{Outcome, Trainer};
use crate::error::{Error, Result};
use crate::vae::data::Images;
use crate::vae::eval::{advice, bits_per_dim};

impl Trainer<'_> {
    /// Validates and saves at the end of an epoch.
    pub(super) fn end_of_epoch(&mut self, epoch: u64, started: Instant) -> Result<Outcome> {
        let Some(val) = self.validate()? else {
            self.save_checkpoint()?;
            return Ok(Outcome::Interrupted);
        };
        let sizes = |step: u64| {
            let most = self.settings.images_per_step();
            let at = ((step - 1) % self.steps_per_epoch()) as usize * most;
            most.min(self.parts.train.len() - at) as f64
        };
        let rows = || self.steps.iter().filter(|row| row.epoch == epoch);
        let images: f64 = rows().map(|row| sizes(row.step)).sum();
        let mean = |term: fn(&StepRow) -> f32| {
            let sum: f64 = rows().map(|row| f64::from(term(row)) * sizes(row.step)).sum();
            sum / images
        };
        let steps = self.steps_per_epoch();
        let mut row = EpochRow {
            epoch,
            train_total: mean(|row| row.total),
            train_recon: mean(|row| row.recon),
            train_kl: mean(|row| row.kl),
            val_total: val.total,
            val_recon: val.recon,
            val_kl: val.kl,
            val_mse: val.mse,
            active_units: val.active_units,
            seconds: started.elapsed().as_secs_f64(),
            val_bits: bits_per_dim(val.recon + val.kl),
            lr: self.settings.lr_at(epoch * steps - 1, steps * self.settings.epochs) as f32,
            best: false,
        };
        if !row.val_total.is_finite() {
            return Err(Error::NonFiniteOutput { what: "the validation loss".to_owned() });
        }
        let restored = self.restore();
        self.warn_on_io_error(restored)?;
        let better = self.best.is_none_or(|best| row.val_total < best);
        let file = self.model_file(&row, &val.kl_dims)?;
        let model = if better { self.store.save_model(file.clone()) } else { Ok(()) };
        let last = self.store.save_last(epoch, file);
        // Whatever could be written, so that the table does not depend on it.
        row.best = self.epoch_rows.iter().all(|earlier| row.val_total < earlier.val_total);
        if better && model.is_ok() {
            self.best = Some(row.val_total);
        }
        let pushed = self.store.push_epoch(&row);
        self.warn_on_io_error(pushed)?;
        self.epoch_rows.push(row);
        self.finished = epoch;
        self.observer.waiting("drawing images");
        let drawn = self.images(epoch).and_then(|()| self.store.save_plots(&self.steps, &self.epoch_rows));
        self.warn_on_io_error(drawn)?;
        let ends = epoch == self.settings.epochs || self.stops_early(epoch);
        // That of the last epoch is written when the run ends.
        if !ends {
            self.report(RunState::Running)?;
        }
        // Last: if the process is killed before, the resumed run repeats the epoch and writes the same bytes.
        let checkpoint = self.save_checkpoint();
        if ends {
            model.and(last).and(checkpoint)?;
        } else {
            self.warn_on_io_error(model)?;
            self.warn_on_io_error(last)?;
            self.warn_on_io_error(checkpoint)?;
        }
        let advice = advice(&val.kl_dims, self.settings.model.likelihood, val.mse, None);
        let communication_s = self.communication_s();
        self.notify(&Event::Epoch { row: &row, advice: &advice, communication_s })?;
        Ok(Outcome::Finished)
    }
}
