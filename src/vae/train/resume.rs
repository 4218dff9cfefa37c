//! Resuming a run from its checkpoint.

use std::path::Path;
use std::sync::Arc;

use super::events::Event;
use super::group::{adapter, check_same, of_ranks};
use super::parts::Parts;
use super::shared_step::Share;
use super::store::{About, Recorded, RunStore};
use super::{MAX_EPOCHS, Settings, TrainContext, Trainer, notify, start};
use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::vae::checkpoint::{Checkpoint, RunProgress};
use crate::vae::data::Images;
use crate::vae::ranks::Ranks;
use crate::vae::weights::TensorSchema;

impl<'a> Trainer<'a> {
    /// Resumes a run from its checkpoint with these settings, which are those of the checkpoint except for the number of epochs.
    /// The kernel variants are those of the run, unless the plan of the context names others.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the checkpoint does not match the settings, the model or the data set.
    pub fn resume(settings: Settings, store: &'a mut dyn RunStore, context: TrainContext<'a>) -> Result<Self> {
        Self::resume_among(None, settings, store, context)
    }

    /// Like [`Trainer::resume`], on several ranks. Their number may be another one than before; the results are the same.
    ///
    /// # Errors
    /// As [`Trainer::resume`] and [`Trainer::new_among`].
    pub fn resume_among(
        ranks: Option<&'a mut Ranks>,
        mut settings: Settings,
        store: &'a mut dyn RunStore,
        context: TrainContext<'a>,
    ) -> Result<Self> {
        settings.check()?;
        let mut ranks = ranks.filter(|ranks| ranks.size() > 1);
        let share = Share::of(ranks.as_deref());
        share.check(&settings)?;
        let parts = Arc::new(Parts::of_dataset(context.dataset, settings.val_split)?);
        let mut runner = start::runner(&mut settings, share, &parts, &context)?;
        let path = store.checkpoint();
        let Checkpoint { progress, weights, moment1, moment2 } =
            Checkpoint::from_file(store.load_checkpoint()?, &path, TensorSchema::of(runner.graph()?))?;
        for (arena, tensors) in [
            (Arena::Params, &weights.params),
            (Arena::States, &weights.states),
            (Arena::OptimizerState(0), &moment1),
            (Arena::OptimizerState(1), &moment2),
        ] {
            runner.upload(arena, tensors)?;
        }
        runner.resume(settings.seed, progress.step);
        let fingerprint = context.dataset.fingerprint()?;
        check_progress(&progress, &path, &settings, parts.train.len(), &fingerprint)?;
        progress.check_epochs(settings.epochs)?;
        if let Some(ranks) = &mut ranks {
            check_same(ranks, &settings, &fingerprint, &mut runner)?;
        }
        let Recorded { steps, epochs: epoch_rows, device: before } = store.resume(progress.step, progress.epoch)?;
        let device = of_ranks(&runner.describe(), share);
        let before = before.unwrap_or_else(|| device.clone());
        let effect = match adapter(&before) == adapter(&device) {
            true if settings.sync_batch_norm => {
                "results will differ, because batch norms are over the images of all ranks"
            }
            true => "the results are the same",
            false => "results will differ slightly",
        };
        let moved = format!("this run was started on {before} and resumes on {device}; {effect}");
        let [metrics, epochs] = store.tables();
        let mut observer_error = None;
        for message in [
            (before != device).then_some(moved),
            missing_rows(&metrics, steps.iter().map(|row| row.step), progress.step)?,
            missing_rows(&epochs, epoch_rows.iter().map(|row| row.epoch), progress.epoch)?,
        ] {
            let Some(message) = message else { continue };
            notify(context.observer, &mut observer_error, &Event::Warning { message: &message })?;
        }
        store.save_about(&About { device: &device, kernels: runner.variants(), settings: &settings })?;
        let (best, finished) = (progress.best, progress.epoch);
        let seconds_before = steps.iter().map(|row| row.elapsed_s).rfind(|seconds| seconds.is_finite()).unwrap_or(0.0);
        let trainer = Self::assemble(settings, parts, fingerprint, runner, store, context);
        Ok(Self { ranks, steps, epoch_rows, best, finished, seconds_before, observer_error, ..trainer })
    }
}

/// Checks that a checkpoint belongs to this data set and that its step and epoch are consistent.
fn check_progress(progress: &RunProgress, path: &Path, settings: &Settings, images: usize, data: &str) -> Result<()> {
    let reject = |what: &str, expected: String, found: String, hint: &str| {
        let (path, what, hint) = (path.to_owned(), what.to_owned(), hint.to_owned());
        Err(Error::Checkpoint { path, what, expected, found, hint })
    };
    if let Some(own) = progress.data.as_ref().filter(|own| *own != data) {
        let hint = "resume with the data set of the run, or start a new run from its weights with --init";
        return reject("data set", own.clone(), data.to_owned(), hint);
    }
    let per_epoch = settings.steps_per_epoch(images);
    let most = per_epoch.saturating_mul(MAX_EPOCHS);
    let modified = "the file was modified: use another checkpoint";
    if progress.step > most {
        return reject("step", format!("at most {most}"), progress.step.to_string(), modified);
    }
    // After the last step of an epoch its validation is still missing.
    let epochs = progress.step.saturating_sub(1) / per_epoch..=progress.step / per_epoch;
    if !epochs.contains(&progress.epoch) {
        let expected = format!("{} to {} after {} steps", epochs.start(), epochs.end(), progress.step);
        return reject("epoch", expected, progress.epoch.to_string(), modified);
    }
    Ok(())
}

/// Returns a warning if a table lacks some of its rows. `indices` are those of the rows that it has.
fn missing_rows(path: &Path, indices: impl Iterator<Item = u64> + Clone, all: u64) -> Result<Option<String>> {
    if !indices.clone().is_sorted_by(|a, b| a < b) {
        return Err(Error::malformed("parse", path, "its rows are not in order"));
    }
    let missing = all.saturating_sub(indices.count() as u64);
    let message =
        || format!("{}: {missing} of {all} rows are missing; averages and plots will omit them", path.display());
    Ok((missing > 0).then(message))
}
