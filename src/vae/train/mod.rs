//! The training loop: epochs of shuffled batches, validation, images, and a stored run from which training can resume at any step.
//!
//! A step depends on the settings and its index alone, so an interrupted and resumed run gives the same bits as an uninterrupted one.
//! The report of a step arrives while the device runs the next one. Only a checkpoint and the end of an epoch wait for all reports.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use web_time::Instant;

use self::loader::Batch;
use self::profiling::ProfileRequest;
use self::rows::{EpochRow, StepRow};
use self::shared_step::Share;
use self::store::{About, RunState, RunStore};
use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, initial};
use crate::runtime::plan;
use crate::runtime::plan::Memory;
use crate::runtime::sys::platform::block_on;
use crate::vae::data::{Dataset, Images, Subset};
use crate::vae::eval::{advice, bits_per_dim};
use crate::vae::inference::check_size;
use crate::vae::model::{Mode, Norm, POSTERIOR_BIAS, VaeConfig};
use crate::vae::ranks::Ranks;
use crate::vae::runner::{self, Device, Hyperparams, Runner, StepReport, batch_sizes};
use crate::vae::train::events::{Event, Observer, Start};
use crate::vae::weights::Weights;

mod artifacts;
pub mod events;
mod loader;
pub mod memory_store;
pub mod profile;
mod profiling;
pub mod range_test;
mod resume;
pub mod rows;
pub mod session;
mod settings;
mod shared_step;
pub mod store;
mod synchronized_norms;
mod validation;

pub use session::{EpochReport, Progress, Session};
pub use settings::{MAX_EPOCHS, POSTERIOR_STDS, Recipe, Schedule, Settings};
pub use validation::Validation;

/// Outcome of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs have finished.
    Finished,
    /// The run was stopped, and its checkpoint was saved.
    Interrupted,
}

/// Number of steps on the device before the host waits for the oldest.
const IN_FLIGHT: usize = 2;
/// Time after which a checkpoint is saved within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

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

/// Images to train on and to validate on. `I` is a pointer to images.
#[derive(Debug)]
struct Parts<I> {
    train: Subset<I>,
    validation: Subset<I>,
}

impl<'a> Parts<&'a dyn Images> {
    fn of_dataset(dataset: &'a Dataset, val_split: f64) -> Result<Self> {
        Self::of(dataset.train.as_ref(), dataset.test.as_ref(), val_split)
    }
}

impl<I: Deref<Target: Images> + Clone> Parts<I> {
    fn of(train: I, test: I, val_split: f64) -> Result<Self> {
        if val_split == 0.0 {
            return Ok(Self { train: Subset::all(train), validation: Subset::all(test) });
        }
        let [train, validation] = Subset::split(train, val_split)?;
        Ok(Self { train, validation })
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
        let mut runner = runner(&mut settings, share, &parts, &context)?;
        initialize(&mut runner, &settings, init)?;
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
        )
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
        if self.settings.warmup > steps {
            let Settings { warmup, lr, .. } = self.settings;
            let last = self.settings.lr_at(steps - 1, steps);
            self.warn(&format!(
                "the warm-up of {warmup} steps is longer than the run of {steps}: the learning rate rises to {last:.2e}, not to {lr}"
            ))?;
        }
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
                self.warn(&format!(
                    "the run ends early: the validation loss has not fallen for {} epochs",
                    self.settings.early_stop
                ))?;
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

    fn epoch(&mut self, epoch: u64, steps: u64) -> Result<Outcome> {
        let first_step = (epoch - 1) * self.steps_per_epoch();
        let begun = self.runner.step();
        let part = loader::Epoch { number: epoch, first_step, done: (begun - first_step) as usize };
        let (settings, images) = (self.settings.clone(), Arc::clone(&self.parts));
        let share = Share::of(self.ranks.as_deref());
        std::thread::scope(|scope| {
            for batch in loader::start(scope, &settings, &images.train, share, part)? {
                if self.is_stopped()? {
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
            // A run that resumes after the last step of an epoch has no gradients.
            if self.runner.step() > begun {
                self.gradients(epoch)?;
            }
            Ok(Outcome::Finished)
        })
    }

    /// Starts the next step. `steps` is the total number of steps of the run.
    fn train(&mut self, batch: &Batch, steps: u64) -> Result<()> {
        let step = self.runner.step();
        let profile = self.start_profile(step)?;
        let begun = Instant::now();
        self.in_flight.push((step, batch.of, begun));
        let hyper = self.settings.hyperparams(step, steps);
        match &mut self.ranks {
            Some(ranks) => shared_step::start(ranks, &mut self.runner, &self.settings, batch, &hyper)?,
            None => start_step(&mut self.runner, &self.settings, batch, &hyper)?,
        }
        let submitted = Instant::now();
        if profile.is_none() && self.in_flight.len() >= IN_FLIGHT {
            // The device runs the next step meanwhile.
            let reports = self.runner.oldest_reports()?;
            self.record(reports)?;
        } else {
            self.collect(profile.is_some())?;
        }
        match profile {
            Some(profile) => self.report_profile(profile, batch.prepared, [begun, submitted]),
            None => Ok(()),
        }
    }

    /// Records the reports that have arrived; with `wait`, those of all steps.
    fn collect(&mut self, wait: bool) -> Result<()> {
        let arrived = self.runner.reports(wait)?;
        self.record(arrived)
    }

    /// Records the reports of steps. A step that was not finite ends the run.
    fn record(&mut self, arrived: Vec<StepReport>) -> Result<()> {
        let steps = self.steps_per_epoch() * self.settings.epochs;
        let mut reports = Vec::new();
        for report in arrived {
            let at = self.in_flight.iter().position(|(step, ..)| *step == report.step);
            let (_, images, begun) =
                at.map(|at| self.in_flight.remove(at)).ok_or_else(|| Error::bug("a report of no step"))?;
            reports.push((report, images, begun));
        }
        let Some((_, _, begun)) = reports.first() else { return Ok(()) };
        // Steps overlap on the device and several reports may arrive at once: together they took the time since the previous ones.
        let seconds = (*begun).max(self.last_report).elapsed().as_secs_f64().max(1e-9);
        let images_per_s = reports.iter().map(|(_, images, _)| *images as f64).sum::<f64>() / seconds;
        self.last_report = Instant::now();
        for (report, ..) in reports {
            if !report.finite {
                return Err(block_on(session::non_finite(&mut self.runner, &report))?);
            }
            let row = StepRow {
                step: report.step + 1,
                epoch: report.step / self.steps_per_epoch() + 1,
                total: report.total,
                recon: report.recon,
                kl: report.kl,
                grad_norm: report.grad_norm,
                lr: self.settings.lr_at(report.step, steps) as f32,
                images_per_s: images_per_s as f32,
                // To the millisecond.
                elapsed_s: self.seconds_before + self.started.elapsed().as_millis() as f32 / 1e3,
            };
            self.notify(&Event::Step(&row))?;
            let pushed = self.store.push_step(&row);
            self.warn_on_io_error(pushed)?;
            self.steps.push(row);
        }
        Ok(())
    }

    /// Validates and saves at the end of an epoch.
    fn end_of_epoch(&mut self, epoch: u64, started: Instant) -> Result<Outcome> {
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

/// Creates the model on its device with a program for every batch size of the run.
fn runner(
    settings: &mut Settings,
    share: Share,
    parts: &Parts<&dyn Images>,
    context: &TrainContext<'_>,
) -> Result<Runner> {
    let plan = plan_of(settings, context.plan);
    let model = &settings.model;
    for images in [&context.dataset.train, &context.dataset.test] {
        check_images(model, images.as_ref())?;
    }
    let mut programs = programs(settings, share, parts);
    programs.push((artifacts::shown_images(context.dataset.test.as_ref()).len(), Mode::Evaluate));
    programs.push((artifacts::sample_labels(model.classes).len(), Mode::Decode));
    Runner::new(*model, &programs, context.device, &plan)
}

/// Returns the options of the plan. Kernel variants in `plan` replace those of the settings, which else count.
fn plan_of(settings: &mut Settings, plan: &plan::Options) -> plan::Options {
    if !plan.variants.is_empty() {
        settings.variants.clone_from(&plan.variants);
    }
    plan::Options { variants: settings.variants.clone(), ..plan.clone() }
}

/// Checks that all ranks train the same model on the same data and devices, from the same weights.
fn check_same(ranks: &mut Ranks, settings: &Settings, fingerprint: &str, runner: &mut Runner) -> Result<()> {
    let mut hash = crc32fast::Hasher::new();
    for arena in [Arena::Params, Arena::States, Arena::OptimizerState(0), Arena::OptimizerState(1)] {
        runner.download(arena)?.iter().for_each(|tensor| hash.update(bytemuck::cast_slice(tensor)));
    }
    let mut values = vec![
        ("version of vae-wgpu", crate::VERSION.to_owned()),
        ("data set", fingerprint.to_owned()),
        ("device", runner.describe()),
        ("first step", (runner.step() + 1).to_string()),
    ];
    // One by one, so that the message is short. The same data may be in different places.
    let fields = serde_json::to_value(settings).map_err(Error::bug)?;
    let fields = fields.as_object().into_iter().flatten().filter(|(name, _)| *name != "data");
    let fields: Vec<_> = fields.map(|(name, value)| (format!("setting `{name}`"), value)).collect();
    values.extend(fields.iter().map(|(name, value)| (name.as_str(), value.to_string())));
    values.push(("initial weights", format!("checksum {:08x}", hash.finalize())));
    ranks.check_same(&values)
}

/// Separates the number of ranks from the device of each.
const RANKS_ON: &str = " ranks on ";

/// Describes the devices of all ranks.
fn of_ranks(device: &str, share: Share) -> String {
    if share.is_whole() { device.to_owned() } else { format!("{}{RANKS_ON}{device}", share.ranks()) }
}

/// Starts a step on the images of a batch.
fn start_step(runner: &mut Runner, settings: &Settings, batch: &Batch, hyper: &Hyperparams) -> Result<()> {
    let images = (&batch.pixels, &batch.labels);
    match settings.accumulate {
        1 => runner.train_with_noise(images, &batch.eps, hyper)?,
        _ => runner.train_accumulated(images, &batch.eps, settings.batch_size, hyper)?,
    };
    Ok(())
}

/// Checks that a model fits the size and the classes of images.
fn check_images(model: &VaeConfig, images: &dyn Images) -> Result<()> {
    check_size(model, images)?;
    if ![0, images.classes().len()].contains(&model.classes) {
        return Err(Error::argument("classes of the model", images.classes().len(), model.classes));
    }
    Ok(())
}

/// Returns the programs that train and validate.
fn programs<I: Deref<Target: Images> + Send + Sync + fmt::Debug>(
    settings: &Settings,
    share: Share,
    parts: &Parts<I>,
) -> Vec<(usize, Mode)> {
    let (train, update) = match settings.accumulate {
        most if settings.sync_batch_norm => {
            (Mode::AccumulateSynchronized(share.micro_batches(settings)), Some((1, Mode::UpdateShares(most))))
        }
        most if !share.is_whole() => {
            (Mode::AccumulateShare(share.micro_batches(settings)), Some((1, Mode::UpdateShares(most))))
        }
        1 => (Mode::Train, None),
        most => (Mode::Accumulate(most), Some((1, Mode::Update))),
    };
    let of = |count, mode| batch_sizes(count, settings.batch_size).map(move |size| (size, mode));
    of(parts.train.len(), train).chain(of(parts.validation.len(), Mode::Evaluate)).chain(update).collect()
}

/// Sets the weights at the start of a run.
fn initialize(runner: &mut Runner, settings: &Settings, init: Option<&Weights>) -> Result<()> {
    runner.init(settings.seed)?;
    if let Some(weights) = init {
        runner.upload(Arena::Params, &weights.params)?;
        return runner.upload(Arena::States, &weights.states);
    }
    if settings.posterior_std == 1.0 { Ok(()) } else { set_posterior_std(runner, settings) }
}

/// Returns the largest power of two up to `most` that is a batch size for which the device has memory, at most the number of training
/// images.
///
/// # Errors
/// As [`Trainer::new`], if not even one image fits.
pub fn largest_batch(settings: &Settings, most: usize, context: &TrainContext<'_>) -> Result<usize> {
    let parts = Parts::of_dataset(context.dataset, settings.val_split)?;
    let mut batch = 1 << most.min(parts.train.len()).max(1).ilog2();
    loop {
        let mut settings = Settings { batch_size: batch, ..settings.clone() };
        match runner(&mut settings, Share::WHOLE, &parts, context) {
            Err(Error::DoesNotFit { .. } | Error::OutOfMemory { .. }) if batch > 1 => batch /= 2,
            runner => return runner.map(|_| batch),
        }
    }
}

/// Adds the logarithm of a standard deviation to the initial bias of the encoder's log_std.
fn set_posterior_std(runner: &mut Runner, settings: &Settings) -> Result<()> {
    let (graph, std) = (runner.graph()?, settings.posterior_std);
    let (_, bias) = graph.tensor(POSTERIOR_BIAS)?;
    let mut params = initial(graph, Arena::Params, settings.seed)?;
    let latent = runner.config().latent_dim;
    let bias = params.get_mut(bias).ok_or_else(|| Error::bug("a parameter that is missing"))?;
    bias.iter_mut().skip(latent).for_each(|log_std| *log_std += std.ln() as f32);
    runner.upload(Arena::Params, &params)
}

/// Returns the noise for `count` images. A shorter batch gets the beginning of the same values.
fn noise(settings: &Settings, index: u64, count: usize) -> Vec<f32> {
    runner::noise(settings.seed, index, count * settings.model.latent_dim)
}

/// Summarizes the model in a line.
fn describe(model: &VaeConfig) -> String {
    let norm = match model.norm {
        Norm::Batch => "batch",
        Norm::Position => "position",
    };
    format!(
        "ResNet VAE, {} channels, {} groups of {} {}, {} latent dimensions, {norm} norm",
        model.channels,
        model.groups,
        model.blocks,
        if model.blocks == 1 { "block" } else { "blocks" },
        model.latent_dim
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::Likelihood;
    use crate::vae::data::shapes;
    use crate::vae::train::events::Quiet;
    use crate::vae::train::memory_store::InMemoryRun;

    #[test]
    fn classes_are_those_of_the_data_set() {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, classes: 12, ..VaeConfig::default() };
        let dataset = shapes::dataset().unwrap().limited(Some(8), Some(4)).unwrap();
        let (plan, stop) = (plan::Options::default(), AtomicBool::new(false));
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut Quiet, stop: &stop };
        let mut run = InMemoryRun::default();
        let error = Trainer::new(Settings { model, ..Settings::default() }, &mut run, None, context).unwrap_err();
        assert!(error.to_string().contains("classes of the model"), "{error}");
    }

    /// Keeps warnings.
    struct Warnings(Vec<String>);

    impl Observer for Warnings {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            if let Event::Warning { message } = event {
                self.0.push((*message).to_owned());
            }
            Ok(())
        }
    }

    #[test]
    fn run_ends_early_without_progress_and_stays_ended() {
        // Without learning, and with a norm without running statistics, the validation loss stays the same.
        let model = VaeConfig {
            channels: 2,
            blocks: 1,
            latent_dim: 3,
            norm: Norm::Position,
            likelihood: Likelihood::Unit,
            ..VaeConfig::default()
        };
        let dataset = shapes::dataset().unwrap().limited(Some(8), Some(4)).unwrap();
        let (plan, stop, mut warnings) = (plan::Options::default(), AtomicBool::new(false), Warnings(Vec::new()));
        let settings =
            Settings { model, batch_size: 8, epochs: 10, lr: 0.0, warmup: 20, early_stop: 2, ..Settings::default() };
        let mut run = InMemoryRun::default();
        for expected in [["the warm-up of 20 steps is longer", "has not fallen for 2 epochs"]; 2] {
            let context = TrainContext {
                dataset: &dataset,
                device: &Device::Cpu,
                plan: &plan,
                observer: &mut warnings,
                stop: &stop,
            };
            let mut trainer = match run.checkpoint {
                None => Trainer::new(settings.clone(), &mut run, None, context).unwrap(),
                Some(_) => Trainer::resume(settings.clone(), &mut run, context).unwrap(),
            };
            assert_eq!(trainer.run().unwrap(), Outcome::Finished);
            assert_eq!(run.epochs.len(), 3);
            let said = std::mem::take(&mut warnings.0);
            assert!(said.len() == 2 && said.iter().zip(expected).all(|(said, part)| said.contains(part)), "{said:?}");
        }
    }

    /// Keeps the rows of steps, and stops the run after one of them.
    struct Steps<'a> {
        rows: Vec<StepRow>,
        stop: &'a AtomicBool,
        after: u64,
    }

    impl Observer for Steps<'_> {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            if let Event::Step(row) = event {
                self.rows.push(**row);
                self.stop.store(row.step == self.after, Ordering::Relaxed);
            }
            Ok(())
        }
    }

    #[test]
    fn accumulated_run_has_the_steps_of_larger_batches_and_resumes_identically() {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, norm: Norm::Position, ..VaeConfig::default() };
        let model = VaeConfig { likelihood: Likelihood::Unit, ..model };
        let dataset = shapes::dataset().unwrap().limited(Some(10), Some(4)).unwrap();
        let plan = plan::Options::default();
        // Ten images in steps of six and four, for two epochs.
        let settings =
            Settings { model, batch_size: 2, accumulate: 3, epochs: 2, val_split: 0.0, ..Settings::default() };
        let part = |settings: &Settings, run: &mut InMemoryRun, after: u64| {
            let stop = AtomicBool::new(false);
            let mut steps = Steps { rows: Vec::new(), stop: &stop, after };
            let context = TrainContext {
                dataset: &dataset,
                device: &Device::Cpu,
                plan: &plan,
                observer: &mut steps,
                stop: &stop,
            };
            let mut trainer = match run.checkpoint {
                None => Trainer::new(settings.clone(), run, None, context).unwrap(),
                Some(_) => Trainer::resume(settings.clone(), run, context).unwrap(),
            };
            let outcome = trainer.run().unwrap();
            drop(trainer);
            (outcome, steps.rows)
        };
        let [mut whole, mut parts, mut large] = std::array::from_fn(|_| InMemoryRun::default());
        let (outcome, rows) = part(&settings, &mut whole, 0);
        assert_eq!(outcome, Outcome::Finished);
        assert_eq!(rows.iter().map(|row| (row.step, row.epoch)).collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 2), (4, 2)]);
        // After the first step of each epoch.
        assert_eq!(part(&settings, &mut parts, 1).0, Outcome::Interrupted);
        assert_eq!(part(&settings, &mut parts, 3).0, Outcome::Interrupted);
        assert_eq!(part(&settings, &mut parts, 0).0, Outcome::Finished);
        let tensors = |run: &InMemoryRun| run.checkpoint.as_ref().unwrap().tensors.clone();
        assert!(tensors(&whole) == tensors(&parts));
        let (_, expected) = part(&Settings { batch_size: 6, accumulate: 1, ..settings.clone() }, &mut large, 0);
        assert_eq!(rows.len(), expected.len());
        for (row, expected) in rows.iter().zip(&expected) {
            assert!((row.total - expected.total).abs() < 1e-4 * expected.total, "{row:?} against {expected:?}");
            assert_eq!(row.lr, expected.lr);
        }
        let means = [&whole, &large].map(|run| run.epochs[0].train_total);
        assert!((means[0] - means[1]).abs() < 1e-4, "{means:?}");
    }

    #[test]
    fn posterior_starts_with_the_chosen_width() {
        let first = |posterior_std| {
            let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, ..VaeConfig::default() };
            let settings = Settings { model, batch_size: 4, posterior_std, ..Settings::default() };
            let dataset = shapes::dataset().unwrap().limited(Some(8), Some(4)).unwrap();
            let (plan, stop) = (plan::Options::default(), AtomicBool::new(false));
            let context = TrainContext {
                dataset: &dataset,
                device: &Device::Cpu,
                plan: &plan,
                observer: &mut Quiet,
                stop: &stop,
            };
            let mut run = InMemoryRun::default();
            Trainer::new(settings, &mut run, None, context).unwrap();
            run.checkpoint.unwrap().tensors
        };
        let (wide, narrow) = (first(1.0), first(0.05));
        let differing: Vec<_> = wide.iter().filter(|(name, array)| narrow[*name] != **array).collect();
        assert_eq!(differing.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [POSTERIOR_BIAS]);
        let (wide, narrow) = (&wide[POSTERIOR_BIAS].data, &narrow[POSTERIOR_BIAS].data);
        assert_eq!(wide[..3], narrow[..3]);
        assert!(wide[3..].iter().zip(&narrow[3..]).all(|(a, b)| (b - a - 0.05f32.ln()).abs() < 1e-6));
    }
}
