//! The training loop: epochs of shuffled batches, validation, images, and a stored run from which training can resume at any step.
//!
//! A step depends on the settings and its index alone, so an interrupted and resumed run gives the same bits as an uninterrupted one.
//! The report of a step arrives while the device runs the next one. Only a checkpoint and the end of an epoch wait for all reports.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use web_time::Instant;

use self::group::{check_same, of_ranks};
use self::parts::Parts;
use self::profiling::ProfileRequest;
use self::rows::{EpochRow, StepRow};
use self::shared_step::Share;
use self::store::{About, RunState, RunStore};
use crate::error::{Error, Result};
use crate::runtime::plan;
use crate::runtime::plan::Memory;
use crate::vae::data::{Dataset, Images};
use crate::vae::model::{Head, VaeConfig};
use crate::vae::ranks::Ranks;
use crate::vae::runner::{self, Device, Runner};
use crate::vae::train::events::{Event, Observer, Start};
use crate::vae::weights::Weights;

mod artifacts;
mod epoch;
mod epoch_end;
pub mod events;
mod group;
mod loader;
pub mod memory_store;
mod parts;
pub mod profile;
mod profiling;
pub mod range_test;
mod resume;
pub mod rows;
pub mod session;
mod settings;
mod shared_step;
mod start;
pub mod store;
mod synchronized_norms;
mod validation;

#[cfg(feature = "cli")]
pub(crate) use artifacts::MOST_SHOWN;
pub use session::{EpochReport, Progress, Session};
pub use settings::{MAX_EPOCHS, POSTERIOR_STDS, Recipe, Schedule, Settings};
pub use start::largest_batch;
pub use validation::Validation;

/// Outcome of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs have finished.
    Finished,
    /// The run was stopped, and its checkpoint was saved.
    Interrupted,
}

/// A training run.
///
/// ```no_run
/// use std::sync::atomic::AtomicBool;
///
/// use vae_wgpu::prelude::*;
/// use vae_wgpu::vae::data::shapes;
///
/// let (dataset, device, plan) = (shapes::dataset()?, Device::Cpu, PlanOptions::default());
/// let stop = AtomicBool::new(false);
/// let context = TrainContext { dataset: &dataset, device: &device, plan: &plan, observer: &mut Quiet, stop: &stop };
/// let settings = Settings { epochs: 3, ..Settings::default() };
/// let mut run = InMemoryRun::default();
/// Trainer::new(settings, &mut run, None, context)?.run()?;
/// for row in &run.epochs {
///     println!("epoch {}: validation loss {}", row.epoch, row.val_total);
/// }
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
pub struct Trainer<'a> {
    settings: Settings,
    dataset: &'a Dataset,
    /// Training and validation images.
    parts: Arc<Parts<&'a dyn Images>>,
    /// Fingerprint of the data set.
    fingerprint: String,
    runner: Runner,
    store: &'a mut dyn RunStore,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
    /// The ranks that share each step; `None` is a single one.
    ranks: Option<&'a mut Ranks>,
    /// Time of their communication before the run.
    communicating_before: Duration,
    /// All rows of the run so far, for averages and plots.
    steps: Vec<StepRow>,
    epoch_rows: Vec<EpochRow>,
    best: Option<f64>,
    /// Number of finished epochs, including their validation.
    finished: u64,
    /// Whether a failed write has been reported.
    warned: bool,
    /// First error from the observer, returned when the run ends.
    observer_error: Option<Error>,
    /// Start of this part of the run, and seconds of the parts before.
    started: Instant,
    seconds_before: f32,
    /// Time of the last checkpoint.
    saved: Instant,
    /// Index, number of images and start of each step on the device.
    in_flight: Vec<(u64, usize, Instant)>,
    last_report: Instant,
    /// Step to profile.
    profile: Option<ProfileRequest>,
    /// Whether the device computes on the CPU.
    software: bool,
}

impl fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer")
            .field("store", &self.store.path())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Data, device and observer of a run.
pub struct TrainContext<'a> {
    /// Training images, some of which validate, and test images.
    pub dataset: &'a Dataset,
    /// Device of the model.
    pub device: &'a Device,
    /// Kernel variants, fusion and memory limit.
    pub plan: &'a plan::Options,
    /// Receives progress events.
    pub observer: &'a mut dyn Observer,
    /// Set by another thread to stop the run after the current step.
    pub stop: &'a AtomicBool,
}

impl fmt::Debug for TrainContext<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TrainContext").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// Creates a run in `store`, which is not modified before the run can start. `init` replaces the random initial weights.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for invalid settings or images of another size, [`Error::DoesNotFit`] with the largest batch that
    /// fits, and errors of the device and the store.
    pub fn new(
        settings: Settings,
        store: &'a mut dyn RunStore,
        init: Option<&Weights>,
        context: TrainContext<'a>,
    ) -> Result<Self> {
        Self::new_among(None, settings, store, init, context)
    }

    /// Like [`Trainer::new`], on several ranks, each of which has its own trainer, data set, device and store. Every rank has the results
    /// of the run; the others than rank 0 can discard them ([`InMemoryRun`](memory_store::InMemoryRun)). The
    /// [micro-batches of a step](Settings::accumulate) are shared out in blocks, and the results are those of a single rank.
    ///
    /// A run that fails on one rank ends on all, and a rank that stops stops all. [`Ranks::end`] ends the group after a run.
    ///
    /// # Errors
    /// As [`Trainer::new`]; [`Error::InvalidArgument`] if the number of micro-batches is not the number of ranks times a power of two,
    /// [`Error::Rank`] if settings, data, device or weights of the ranks differ, or if another rank fails.
    pub fn new_among(
        ranks: Option<&'a mut Ranks>,
        mut settings: Settings,
        store: &'a mut dyn RunStore,
        init: Option<&Weights>,
        context: TrainContext<'a>,
    ) -> Result<Self> {
        settings.check()?;
        let mut ranks = ranks.filter(|ranks| ranks.size() > 1);
        let share = Share::of(ranks.as_deref());
        share.check(&settings)?;
        let parts = Arc::new(Parts::of_dataset(context.dataset, settings.val_split)?);
        let mut runner = start::runner(&mut settings, share, &parts, &context)?;
        start::initialize(&mut runner, &settings, init)?;
        let fingerprint = context.dataset.fingerprint()?;
        if let Some(ranks) = &mut ranks {
            check_same(ranks, &settings, &fingerprint, &mut runner)?;
        }
        let device = of_ranks(&runner.describe(), share);
        store.begin(&About { device: &device, kernels: runner.variants(), settings: &settings })?;
        let mut trainer = Self::assemble(settings, parts, fingerprint, runner, store, context);
        trainer.ranks = ranks;
        trainer.images(0)?;
        trainer.save_checkpoint()?;
        Ok(trainer)
    }

    /// A trainer at the start of a run.
    fn assemble(
        settings: Settings,
        parts: Arc<Parts<&'a dyn Images>>,
        fingerprint: String,
        runner: Runner,
        store: &'a mut dyn RunStore,
        context: TrainContext<'a>,
    ) -> Self {
        Self {
            settings,
            dataset: context.dataset,
            parts,
            fingerprint,
            runner,
            store,
            observer: context.observer,
            stop: context.stop,
            ranks: None,
            communicating_before: Duration::ZERO,
            steps: Vec::new(),
            epoch_rows: Vec::new(),
            best: None,
            finished: 0,
            warned: false,
            observer_error: None,
            started: Instant::now(),
            seconds_before: 0.0,
            saved: Instant::now(),
            in_flight: Vec::new(),
            last_report: Instant::now(),
            profile: None,
            software: context.device.is_software(),
        }
    }

    /// Returns the number of steps of an epoch, including a shorter last one.
    fn steps_per_epoch(&self) -> u64 {
        self.settings.steps_per_epoch(self.parts.train.len())
    }

    /// Returns the model on its device, to use it after training.
    pub fn runner(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Sends the description of the run to the observer, as [`Trainer::run`] does first.
    ///
    /// # Errors
    /// Errors of the observer.
    pub fn announce(&mut self) -> Result<()> {
        let steps = self.steps_per_epoch() * self.settings.epochs;
        let model = describe(&self.settings.model);
        notify(
            self.observer,
            &mut self.observer_error,
            &Event::Started(Start {
                run: self.store.path(),
                device: &self.runner.describe(),
                model: &model,
                parameters: self.runner.graph()?.parameter_count(),
                images: self.parts.train.len(),
                validation_images: self.parts.validation.len(),
                batch_size: self.settings.batch_size,
                accumulate: self.settings.accumulate,
                ranks: self.ranks.as_ref().map_or(1, |ranks| ranks.size()),
                epochs: self.settings.epochs,
                steps,
                first_step: self.runner.step() + 1,
                software: self.software,
                memory: self.runner.memory().map(Memory::total),
                settings: &self.settings,
            }),
        )?;
        if self.runner.step() < steps { self.warn_of_warmups(steps) } else { Ok(()) }
    }

    /// Warns about what does not end within the steps of the run.
    fn warn_of_warmups(&mut self, steps: u64) -> Result<()> {
        let Settings { warmup, lr, beta_warmup, beta, .. } = self.settings;
        if warmup > steps {
            let last = self.settings.lr_at(steps - 1, steps);
            self.warn(&format!(
                "the warm-up of {warmup} steps is longer than the run of {steps}: the learning rate rises to {last:.2e}, not to {lr}. --warmup shortens it"
            ))?;
        }
        if beta_warmup > steps {
            let last = self.settings.beta_at(steps - 1);
            self.warn(&format!(
                "the warm-up of beta over {beta_warmup} steps is longer than the run of {steps}: beta rises to {last:.2e}, not to {beta}. --beta-warmup shortens it"
            ))?;
        }
        Ok(())
    }

    /// Trains until all epochs have finished or the run is stopped.
    ///
    /// # Errors
    /// [`Error::NonFinite`] or [`Error::NonFiniteOutput`] if training diverges, [`Error::RunFolderLost`] if another run has taken over
    /// the store, [`Error::File`] if the last checkpoint cannot be saved, and errors of the device and the observer.
    pub fn run(&mut self) -> Result<Outcome> {
        self.started = Instant::now();
        self.communicating_before = self.communicating();
        let steps = self.steps_per_epoch() * self.settings.epochs;
        self.announce()?;
        self.show_originals()?;
        let outcome = self.epochs(steps);
        match &outcome {
            Ok(Outcome::Finished) => self.report(RunState::Finished)?,
            Ok(Outcome::Interrupted) => self.report(RunState::Interrupted)?,
            // The folder belongs to another run.
            Err(Error::RunFolderLost { .. }) => {}
            Err(error) => {
                // The error that ends the run is the one to return.
                let _ = self.report(RunState::Failed(&error.to_string()));
            }
        }
        if outcome? == Outcome::Interrupted {
            let event = Event::Interrupted { step: self.runner.step(), run: self.store.path() };
            notify(self.observer, &mut self.observer_error, &event)?;
            return self.end(Outcome::Interrupted);
        }
        if self.profile.take().is_some() {
            self.warn("cannot profile: there is no step left to time")?;
        }
        let event = Event::Finished {
            epochs: self.finished,
            steps: self.runner.step(),
            seconds: self.started.elapsed().as_secs_f64(),
            best: self.best,
            best_epoch: self.best_epoch(),
            communication_s: self.communication_s(),
            run: self.store.path(),
        };
        notify(self.observer, &mut self.observer_error, &event)?;
        self.end(Outcome::Finished)
    }

    /// Trains and validates the epochs that are left.
    fn epochs(&mut self, steps: u64) -> Result<Outcome> {
        for epoch in self.finished + 1..=self.settings.epochs {
            // The best epoch is the last one whose weights could be written.
            let mut stops = self.stops_early(epoch - 1);
            if let Some(ranks) = &mut self.ranks {
                stops = ranks.first(stops)?;
            }
            if stops {
                let epochs = match self.settings.early_stop {
                    1 => "1 epoch".to_owned(),
                    count => format!("{count} epochs"),
                };
                self.warn(&format!("the run ends early: the validation loss has not fallen for {epochs}"))?;
                break;
            }
            let epoch_start = Instant::now();
            let mut outcome = self.epoch(epoch, steps)?;
            if outcome == Outcome::Finished {
                outcome = self.end_of_epoch(epoch, epoch_start)?;
            }
            if outcome == Outcome::Interrupted {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Finished)
    }

    /// Returns the epoch with the best validation loss, if its row is there.
    fn best_epoch(&self) -> Option<u64> {
        self.epoch_rows.iter().find(|row| Some(row.val_total) == self.best).map(|row| row.epoch)
    }

    /// Whether the validation loss has not fallen for as many epochs as the settings allow.
    fn stops_early(&self, epoch: u64) -> bool {
        self.best_epoch().is_some_and(|best| self.settings.stops_early(epoch, best))
    }

    /// Whether the run is to stop, on any rank.
    fn is_stopped(&mut self) -> Result<bool> {
        let stop = self.stop.load(Ordering::Relaxed);
        self.ranks.as_mut().map_or(Ok(stop), |ranks| ranks.any(stop))
    }

    /// Seconds of communication between ranks in this part of the run.
    fn communication_s(&self) -> Option<f64> {
        self.ranks.as_ref().map(|_| (self.communicating() - self.communicating_before).as_secs_f64())
    }

    fn communicating(&self) -> Duration {
        self.ranks.as_ref().map_or(Duration::ZERO, |ranks| ranks.communicating())
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
}

/// Sends an event to the observer. Keeps its first failed write for the end of the run.
fn notify(observer: &mut dyn Observer, observer_error: &mut Option<Error>, event: &Event<'_>) -> Result<()> {
    keep_first(observer_error, observer.observe(event))
}

/// Keeps the first failed write of the observer for the end of the run. Returns other errors.
fn keep_first(observer_error: &mut Option<Error>, result: Result<()>) -> Result<()> {
    match result {
        Err(error @ Error::File { .. }) => {
            observer_error.get_or_insert(error);
            Ok(())
        }
        other => other,
    }
}

/// Returns the noise for `count` images. A shorter batch gets the beginning of the same values.
fn noise(settings: &Settings, index: u64, count: usize) -> Vec<f32> {
    runner::noise(settings.seed, index, count * settings.model.latent_dim)
}

/// Summarizes the model in a line.
fn describe(model: &VaeConfig) -> String {
    format!(
        "ResNet VAE, {} channels, {} groups of {} {}, {} latent dimensions, {} norm{}",
        model.channels,
        model.groups,
        model.blocks,
        if model.blocks == 1 { "block" } else { "blocks" },
        model.latent_dim,
        model.norm,
        if model.head == Head::Flatten { ", flattened features" } else { "" }
    )
}

#[cfg(test)]
mod tests;
