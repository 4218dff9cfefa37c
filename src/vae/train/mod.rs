//! The training loop: epochs of shuffled batches, validation, images, and a store from which a run can resume at any step.
//!
//! A step depends only on the settings and its index, so an uninterrupted run and a resumed one give the same bits. Reports
//! arrive from the device some steps later. Only the end of an epoch waits for them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use self::loader::Batch;
use self::profile::{HostSpan, Profile};
use self::rows::{EpochRow, StepRow};
use self::store::{About, Recorded, RunStore};
use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::runtime::plan;
use crate::vae::checkpoint::{Checkpoint, Progress};
use crate::vae::data::Dataset;
use crate::vae::inference::check_size;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::{self, Device, Hyperparams, Runner, batch_sizes};
use crate::vae::train::events::{Event, Observer, Start};
use crate::vae::weights::{TensorSchema, Weights};

mod artifacts;
pub mod events;
mod loader;
pub mod profile;
pub mod rows;
mod settings;
pub mod store;
mod validation;

pub use settings::{MAX_EPOCHS, Schedule, Settings};

/// End of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are finished.
    Finished,
    /// The run was stopped and its checkpoint saved.
    Interrupted,
}

/// Steps in flight on the device before the host waits for the oldest.
const IN_FLIGHT: usize = 2;
/// Warm-up steps before the step that is timed.
const PROFILE_AFTER: u64 = 3;
/// Interval of checkpoints within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

/// A run in progress.
pub struct Trainer<'a> {
    settings: Settings,
    dataset: &'a Dataset,
    /// Fingerprint of the data set.
    data: String,
    runner: Runner,
    store: Box<dyn RunStore>,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
    /// All rows so far, for means and plots.
    steps: Vec<StepRow>,
    epoch_rows: Vec<EpochRow>,
    best: Option<f64>,
    /// Epochs finished, including validation.
    finished: u64,
    warned: bool,
    /// First error from the observer, returned when the run ends.
    observer_error: Option<Error>,
    saved: Instant,
    /// Steps in flight: index, number of images, start.
    under_way: Vec<(u64, usize, Instant)>,
    last_report: Instant,
    /// Step to be timed.
    profile: Option<ProfileAt>,
}

/// Step to be timed, and the path of its trace.
struct ProfileAt {
    step: u64,
    trace: Option<PathBuf>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("store", &self.store.path())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Data, device and observer of a run.
pub struct TrainContext<'a> {
    /// Images for training and validation.
    pub dataset: &'a Dataset,
    /// The device.
    pub device: &'a Device,
    /// Options of the plan.
    pub plan: &'a plan::Options,
    /// Receives progress events.
    pub observer: &'a mut dyn Observer,
    /// Set by the caller to end the run after the current step.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for TrainContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TrainContext").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Starts a new run. The store is not changed before the run is known to start. `init` has initial weights
    /// instead of random ones.
    pub fn new(
        mut settings: Settings,
        mut store: Box<dyn RunStore>,
        init: Option<&Weights>,
        context: TrainContext<'a>,
    ) -> Result<Self> {
        settings.check()?;
        let mut runner = runner(&mut settings, &context)?;
        runner.init(settings.seed)?;
        if let Some(weights) = init {
            runner.upload(Arena::Params, &weights.params)?;
            runner.upload(Arena::States, &weights.states)?;
        }
        let data = context.dataset.fingerprint()?;
        store.begin(&About { device: &runner.describe(), kernels: runner.variants(), settings: &settings })?;
        let mut trainer = Self {
            settings,
            dataset: context.dataset,
            data,
            runner,
            store,
            observer: context.observer,
            stop: context.stop,
            steps: Vec::new(),
            epoch_rows: Vec::new(),
            best: None,
            finished: 0,
            warned: false,
            observer_error: None,
            saved: Instant::now(),
            under_way: Vec::new(),
            last_report: Instant::now(),
            profile: None,
        };
        trainer.images(0)?;
        trainer.save_checkpoint()?;
        Ok(trainer)
    }

    /// Resumes a run from its checkpoint with these settings, which are those of the checkpoint except for the number of epochs.
    /// The kernel variants are those of the run, unless the plan of the context names others.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the checkpoint does not match the settings, the model or the data set.
    pub fn resume(mut settings: Settings, mut store: Box<dyn RunStore>, context: TrainContext<'a>) -> Result<Self> {
        settings.check()?;
        let mut runner = runner(&mut settings, &context)?;
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
        runner.set_step(progress.step);
        let data = context.dataset.fingerprint()?;
        check_progress(&progress, &path, &settings, context.dataset.train.len(), &data)?;
        let Recorded { steps, epochs: epoch_rows, device: before } = store.resume(progress.step, progress.epoch)?;
        let device = runner.describe();
        let before = before.unwrap_or_else(|| device.clone());
        let moved = format!("this run was started on {before} and resumes on {device}; results will differ slightly");
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
        Ok(Self {
            settings,
            dataset: context.dataset,
            data,
            runner,
            store,
            observer: context.observer,
            stop: context.stop,
            steps,
            epoch_rows,
            best: progress.best,
            finished: progress.epoch,
            warned: false,
            observer_error,
            saved: Instant::now(),
            under_way: Vec::new(),
            last_report: Instant::now(),
            profile: None,
        })
    }

    /// Steps per epoch. The last one may have fewer images.
    fn steps_per_epoch(&self) -> u64 {
        self.dataset.train.len().div_ceil(self.settings.batch_size) as u64
    }

    /// Returns the model on its device, for use after training.
    pub fn runner(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Times one step on the device, the first full batch after a few warm-up steps, and notifies the observer. `trace` is the path of
    /// a detailed trace. Results do not change.
    pub fn profile(&mut self, trace: Option<PathBuf>) {
        let (first, per_epoch) = (self.runner.step(), self.steps_per_epoch());
        let steps = per_epoch * self.settings.epochs;
        let whole = |step: &u64| step % per_epoch + 1 < per_epoch;
        let after = first.saturating_add(PROFILE_AFTER);
        let step = (after..after + per_epoch.min(2)).find(whole).unwrap_or(after);
        self.profile = Some(ProfileAt { step: step.min(steps.saturating_sub(1)), trace });
    }

    /// Trains until all epochs are finished or the run is stopped.
    pub fn run(&mut self) -> Result<Outcome> {
        let begun = Instant::now();
        let per_epoch = self.steps_per_epoch();
        let steps = per_epoch * self.settings.epochs;
        let model = describe(&self.settings.model);
        notify(
            self.observer,
            &mut self.observer_error,
            &Event::Started(Start {
                run: self.store.path(),
                device: &self.runner.describe(),
                model: &model,
                parameters: self.runner.graph()?.parameter_count(),
                images: self.dataset.train.len(),
                batch_size: self.settings.batch_size,
                epochs: self.settings.epochs,
                steps,
                first_step: self.runner.step(),
            }),
        )?;
        for epoch in self.finished + 1..=self.settings.epochs {
            let epoch_begun = Instant::now();
            let mut outcome = self.epoch(epoch, steps)?;
            if outcome == Outcome::Finished {
                outcome = self.end_of_epoch(epoch, epoch_begun)?;
            }
            if outcome == Outcome::Interrupted {
                let event = Event::Interrupted { step: self.runner.step(), run: self.store.path() };
                notify(self.observer, &mut self.observer_error, &event)?;
                return self.end(Outcome::Interrupted);
            }
        }
        if self.profile.take().is_some() {
            self.warn("cannot profile: there is no step left to time")?;
        }
        notify(
            self.observer,
            &mut self.observer_error,
            &Event::Finished {
                epochs: self.settings.epochs,
                steps: self.runner.step(),
                seconds: begun.elapsed().as_secs_f64(),
                best: self.best,
                run: self.store.path(),
            },
        )?;
        self.end(Outcome::Finished)
    }

    /// Returns the observer's error, if any, now that everything is saved.
    fn end(&mut self, outcome: Outcome) -> Result<Outcome> {
        self.observer_error.take().map_or(Ok(outcome), Err)
    }

    /// Sends an event to the observer. Keeps the first error for the end of the run.
    fn notify(&mut self, event: &Event<'_>) -> Result<()> {
        notify(self.observer, &mut self.observer_error, event)
    }

    fn warn(&mut self, message: &str) -> Result<()> {
        self.notify(&Event::Warning { message })
    }

    fn epoch(&mut self, epoch: u64, steps: u64) -> Result<Outcome> {
        let first_step = (epoch - 1) * self.steps_per_epoch();
        let part = loader::Epoch { number: epoch, first_step, done: (self.runner.step() - first_step) as usize };
        let (settings, images) = (self.settings.clone(), self.dataset.train.as_ref());
        std::thread::scope(|scope| {
            for batch in loader::start(scope, &settings, images, part)? {
                if self.stop.load(Ordering::Relaxed) {
                    self.collect(true)?;
                    self.save_checkpoint()?;
                    return Ok(Outcome::Interrupted);
                }
                self.train(&batch?, steps)?;
                if self.saved.elapsed() > CHECKPOINT_EVERY {
                    self.collect(true)?;
                    let saved = self.save_checkpoint();
                    self.warn_on_io_error(saved)?;
                }
            }
            self.collect(true)?;
            Ok(Outcome::Finished)
        })
    }

    /// Starts the next step of a run of `steps`.
    fn train(&mut self, batch: &Batch, steps: u64) -> Result<()> {
        let step = self.runner.step();
        let profile = self.profile_of(step)?;
        let begun = Instant::now();
        self.under_way.push((step, batch.len, begun));
        let hyper = Hyperparams {
            lr: self.settings.lr_at(step, steps),
            weight_decay: self.settings.weight_decay,
            beta: self.settings.beta_at(step),
            clip: self.settings.clip_grad,
        };
        self.runner.train_with_noise(&batch.pixels, &batch.eps, &hyper)?;
        let submitted = Instant::now();
        self.collect(profile.is_some() || self.under_way.len() >= IN_FLIGHT)?;
        let Some(ProfileAt { trace, .. }) = profile else { return Ok(()) };
        let span = |name, from: Instant, to: Instant| {
            let begin = from.saturating_duration_since(submitted).as_nanos() as f64
                - submitted.saturating_duration_since(from).as_nanos() as f64;
            HostSpan { name, begin_ns: begin, ns: (to - from).as_nanos() as f64 }
        };
        let [prepared, ready] = batch.prepared;
        let host = vec![
            span("prepare", prepared, ready),
            span("encode and submit", begun, submitted),
            span("wait", submitted, Instant::now()),
        ];
        let profile = Profile { step, device: self.runner.describe(), spans: self.runner.spans()?, host };
        self.notify(&Event::Profile(&profile.summary()))?;
        let Some(path) = trace else { return Ok(()) };
        // A run continues without its trace.
        match self.store.save_trace(&profile, &path) {
            Err(error) => self.warn(&format!("no trace was written: {error}")),
            Ok(()) => Ok(()),
        }
    }

    /// Requests times for this step if it is the one to be timed. Waits until no other step is in flight.
    fn profile_of(&mut self, step: u64) -> Result<Option<ProfileAt>> {
        let Some(profile) = self.profile.take_if(|profile| profile.step == step) else { return Ok(None) };
        self.collect(true)?;
        if self.runner.time_next()? {
            return Ok(Some(profile));
        }
        let message = "cannot profile: the device has no timestamp queries";
        self.notify(&Event::Warning { message })?;
        Ok(None)
    }

    /// Processes reports that have arrived. A step that was not finite ends the run.
    fn collect(&mut self, wait: bool) -> Result<()> {
        let steps = self.steps_per_epoch() * self.settings.epochs;
        let mut reports = Vec::new();
        for report in self.runner.reports(wait)? {
            let at = self.under_way.iter().position(|(step, ..)| *step == report.step);
            let (_, images, begun) =
                at.map(|at| self.under_way.remove(at)).ok_or_else(|| Error::bug("a report of no step"))?;
            reports.push((report, images, begun));
        }
        let Some((_, _, begun)) = reports.first() else { return Ok(()) };
        // Steps overlap on the device and several reports may arrive together: they share the time since the previous ones.
        let seconds = (*begun).max(self.last_report).elapsed().as_secs_f64().max(1e-9);
        let images_per_s = reports.iter().map(|(_, images, _)| *images as f64).sum::<f64>() / seconds;
        self.last_report = Instant::now();
        for (report, ..) in reports {
            if !report.finite {
                let computed = if report.total.is_finite() { "the global gradient norm" } else { "the loss" };
                let tensor = self.runner.first_non_finite()?.unwrap_or_else(|| computed.to_owned());
                return Err(Error::NonFinite { tensor, step: report.step });
            }
            let row = StepRow {
                step: report.step,
                epoch: report.step / self.steps_per_epoch() + 1,
                total: report.total,
                recon: report.recon,
                kl: report.kl,
                grad_norm: report.grad_norm,
                lr: self.settings.lr_at(report.step, steps),
                images_per_s: images_per_s as f32,
            };
            self.notify(&Event::Step(&row))?;
            let pushed = self.store.push_step(&row);
            self.warn_on_io_error(pushed)?;
            self.steps.push(row);
        }
        Ok(())
    }

    fn end_of_epoch(&mut self, epoch: u64, begun: Instant) -> Result<Outcome> {
        let Some(val) = self.validate()? else {
            self.save_checkpoint()?;
            return Ok(Outcome::Interrupted);
        };
        let sizes = |step: u64| {
            let at = (step % self.steps_per_epoch()) as usize * self.settings.batch_size;
            self.settings.batch_size.min(self.dataset.train.len() - at) as f64
        };
        let rows = || self.steps.iter().filter(|row| row.epoch == epoch);
        let images: f64 = rows().map(|row| sizes(row.step)).sum();
        let mean = |term: fn(&StepRow) -> f32| {
            let sum: f64 = rows().map(|row| f64::from(term(row)) * sizes(row.step)).sum();
            sum / images
        };
        let row = EpochRow {
            epoch,
            train_total: mean(|row| row.total),
            train_recon: mean(|row| row.recon),
            train_kl: mean(|row| row.kl),
            val_total: val.total,
            val_recon: val.recon,
            val_kl: val.kl,
            val_mse: val.mse,
            active_units: val.active_units,
            seconds: begun.elapsed().as_secs_f64(),
        };
        if !row.val_total.is_finite() {
            return Err(Error::NonFiniteOutput { what: "the validation loss".to_owned() });
        }
        let restored = self.restore();
        self.warn_on_io_error(restored)?;
        let pushed = self.store.push_epoch(&row);
        self.warn_on_io_error(pushed)?;
        self.epoch_rows.push(row);
        self.finished = epoch;
        let better = self.best.is_none_or(|best| row.val_total < best);
        let model = if better { self.save_model() } else { Ok(()) };
        let best = better && model.is_ok();
        if best {
            self.best = Some(row.val_total);
        }
        let drawn = self.images(epoch).and_then(|()| self.store.save_plots(&self.steps, &self.epoch_rows));
        self.warn_on_io_error(drawn)?;
        // Last: after a kill before this point, the epoch is repeated and writes the same bytes.
        let checkpoint = self.save_checkpoint();
        if epoch == self.settings.epochs {
            model.and(checkpoint)?;
        } else {
            self.warn_on_io_error(model)?;
            self.warn_on_io_error(checkpoint)?;
        }
        self.notify(&Event::Epoch { row: &row, best })?;
        Ok(Outcome::Finished)
    }
}

/// Sends an event. A failed write of the observer is kept for the end of the run.
fn notify(observer: &mut dyn Observer, observer_error: &mut Option<Error>, event: &Event<'_>) -> Result<()> {
    match observer.observe(event) {
        Err(error @ Error::File { .. }) => {
            observer_error.get_or_insert(error);
            Ok(())
        }
        other => other,
    }
}

/// Checks that the progress in a checkpoint is possible with these settings and data.
fn check_progress(progress: &Progress, path: &Path, settings: &Settings, images: usize, data: &str) -> Result<()> {
    let refuse = |what: &str, expected: String, found: String, hint: &str| {
        let (path, what, hint) = (path.to_owned(), what.to_owned(), hint.to_owned());
        Err(Error::Checkpoint { path, what, expected, found, hint })
    };
    if let Some(own) = progress.data.as_ref().filter(|own| *own != data) {
        let hint = "give the run its own data, or start another from its weights with --init";
        return refuse("data set", own.clone(), data.to_owned(), hint);
    }
    let per_epoch = images.div_ceil(settings.batch_size) as u64;
    let most = per_epoch.saturating_mul(MAX_EPOCHS);
    let changed = "the file was changed: use another checkpoint";
    if progress.step > most {
        return refuse("step", format!("at most {most}"), progress.step.to_string(), changed);
    }
    // Validation follows the last step of an epoch.
    let epochs = progress.step.saturating_sub(1) / per_epoch..=progress.step / per_epoch;
    if !epochs.contains(&progress.epoch) {
        let expected = format!("{} to {} after {} steps", epochs.start(), epochs.end(), progress.step);
        return refuse("epoch", expected, progress.epoch.to_string(), changed);
    }
    Ok(())
}

/// Returns a warning for a table with missing rows. `numbers` are those of its rows.
fn missing_rows(path: &Path, numbers: impl Iterator<Item = u64> + Clone, all: u64) -> Result<Option<String>> {
    if !numbers.clone().is_sorted_by(|a, b| a < b) {
        return Err(Error::malformed("parse", path, "its rows are not in order"));
    }
    let missing = all.saturating_sub(numbers.count() as u64);
    let message =
        || format!("{}: {missing} of {all} rows are missing; averages and plots will omit them", path.display());
    Ok((missing > 0).then(message))
}

/// Puts the model on its device, with a program for every batch size of the run. Kernel variants in the plan of the context
/// override those of the settings.
fn runner(settings: &mut Settings, context: &TrainContext<'_>) -> Result<Runner> {
    if !context.plan.variants.is_empty() {
        settings.variants.clone_from(&context.plan.variants);
    }
    let plan = plan::Options { variants: settings.variants.clone(), ..context.plan.clone() };
    let (train, test) = (context.dataset.train.as_ref(), context.dataset.test.as_ref());
    let model = &settings.model;
    check_size(model, train)?;
    let mut programs = Vec::new();
    for (images, mode) in [(train, Mode::Train), (test, Mode::Evaluate)] {
        programs.extend(batch_sizes(images.len(), settings.batch_size).map(|size| (size, mode)));
    }
    programs.push((artifacts::first_of_each_class(test).len(), Mode::Evaluate));
    programs.push((artifacts::SAMPLES, Mode::Decode));
    Runner::new(*model, &programs, context.device, &plan)
}

/// Returns noise for `count` images. A shorter batch gets the beginning of the same values.
fn noise(settings: &Settings, index: u64, count: usize) -> Vec<f32> {
    runner::noise(settings.seed, index, count * settings.model.latent_dim)
}

/// Describes the model in one line.
fn describe(model: &VaeConfig) -> String {
    let norm = match model.norm {
        crate::vae::model::Norm::Batch => "batch",
        crate::vae::model::Norm::Position => "position",
    };
    format!(
        "ResNet VAE, {} channels, {} groups of {} blocks, {} latent dimensions, {norm} norm",
        model.channels, model.groups, model.blocks, model.latent_dim
    )
}
