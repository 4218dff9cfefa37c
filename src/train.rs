//! The training loop: epochs of shuffled batches, validation, pictures, and a run folder that can be gone on with at any step.
//!
//! What a step does depends on the settings and its number alone, so a run in one go and a run in parts are the same to the
//! bit. Reports come back from the device some steps late; nothing waits for them but the end of an epoch.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use self::feed::Batch;
use crate::checkpoint::{Checkpoint, Inventory, Progress, Weights};
use crate::data::{self, Dataset, Images};
use crate::error::{Error, Result};
use crate::exec::{Device, Runner, StepInput};
use crate::graph::{Region, plan};
use crate::model::{Mode, VaeConfig};
use crate::report::picture::{Grid, Pictures, save_png};
use crate::report::plots;
use crate::report::profile::{HostSpan, Profile};
use crate::report::progress::{Event, Observer, Start};
use crate::report::run_folder::{RunConfig, RunFolder};
use crate::report::table::{EpochRow, StepRow, Table};
use crate::rng::{self, Purpose};

mod feed;
#[cfg(test)]
mod kills;

/// How the learning rate goes on after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// It falls to zero at the last step, along half a cosine.
    Cosine,
}

/// Everything that decides what a run computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Sizes of the model.
    pub model: VaeConfig,
    /// Data set, as `--data` names it; none is the default.
    pub data: Option<String>,
    /// Only the first so many training images.
    pub train_limit: Option<usize>,
    /// Only the first so many test images.
    pub val_limit: Option<usize>,
    /// Images a step.
    pub batch_size: usize,
    /// Epochs of the whole run.
    pub epochs: u64,
    /// Seed of weights, order, noise and augmentation.
    pub seed: u64,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps over which the learning rate rises from 1 % to 100 %.
    pub warmup: u64,
    /// What comes after the warm-up.
    pub schedule: Schedule,
    /// Largest global gradient norm; 0 is off.
    pub clip_grad: f64,
    /// Weight of the KL term.
    pub beta: f64,
    /// Steps over which `beta` rises from zero; 0 is off.
    pub beta_warmup: u64,
    /// Mirror training images at random.
    pub flip: bool,
    /// Move training images at random.
    pub crop: bool,
    /// Variants of kernels that were asked for, as [`plan::Options::variants`] has them: they decide the order of sums.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<String, String>,
}

impl Default for Settings {
    /// AdamW at 0.01 with weight decay 1e-4, 1,000 steps of warm-up, batch 128, 25 epochs, seed 0, no clipping, beta 1.
    fn default() -> Self {
        Self {
            model: VaeConfig::default(),
            data: None,
            train_limit: None,
            val_limit: None,
            batch_size: 128,
            epochs: 25,
            seed: 0,
            lr: 0.01,
            weight_decay: 1e-4,
            warmup: 1000,
            schedule: Schedule::Constant,
            clip_grad: 0.0,
            beta: 1.0,
            beta_warmup: 0,
            flip: false,
            crop: false,
            variants: BTreeMap::new(),
        }
    }
}

/// The most epochs of a run: with up to 2^32 steps in each, the streams of noise of all steps stay apart from the others.
pub const MAX_EPOCHS: u64 = 1_000_000_000;

impl Settings {
    /// Refuses numbers that make no run.
    pub fn check(&self) -> Result<()> {
        self.model.check()?;
        for (what, value) in
            [("lr", self.lr), ("weight-decay", self.weight_decay), ("clip-grad", self.clip_grad), ("beta", self.beta)]
        {
            // Kernels compute in single precision.
            if !(0.0..=f64::from(f32::MAX)).contains(&value) {
                return Err(Error::shape("train", what, format!("a number from 0 to {:e}", f32::MAX), value));
            }
        }
        if self.batch_size == 0 {
            return Err(Error::shape("train", "batch-size", "at least 1", 0));
        }
        if !(1..=MAX_EPOCHS).contains(&self.epochs) {
            return Err(Error::shape("train", "epochs", format!("1 to {MAX_EPOCHS}"), self.epochs));
        }
        Ok(())
    }

    /// Learning rate of a step of a run of `steps`.
    #[must_use]
    pub fn lr_at(&self, step: u64, steps: u64) -> f64 {
        let share = |part: u64, whole: u64| if whole == 0 { 1.0 } else { part.min(whole) as f64 / whole as f64 };
        let warm = self.lr * (0.01 + 0.99 * share(step, self.warmup));
        match self.schedule {
            Schedule::Constant => warm,
            Schedule::Cosine if step < self.warmup => warm,
            Schedule::Cosine => {
                let gone = share(step - self.warmup, steps.saturating_sub(self.warmup).max(1));
                warm * 0.5 * (1.0 + (std::f64::consts::PI * gone).cos())
            }
        }
    }

    /// Weight of the KL term in a step.
    #[must_use]
    pub fn beta_at(&self, step: u64) -> f64 {
        if self.beta_warmup == 0 { self.beta } else { self.beta * (step as f64 / self.beta_warmup as f64).min(1.0) }
    }
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All epochs are done.
    Finished,
    /// It was stopped and saved.
    Interrupted,
}

/// Steps under way on the device before the host waits for the oldest.
const IN_FLIGHT: usize = 2;
/// Steps of this part of a run before the one that is timed.
const PROFILE_AFTER: u64 = 3;
/// Time after which a checkpoint is written within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);
/// Pictures in `samples/epoch_NN.png`.
const SAMPLES: usize = 49;
/// A latent number is active where its mean varies more than this over the data (Burda et al., arXiv:1509.00519).
const ACTIVE_VARIANCE: f64 = 0.01;
/// Streams of noise beyond those of any step: validation and samples.
const VALIDATION_NOISE: u64 = 1 << 62;
const SAMPLE_NOISE: u64 = 1 << 63;

/// A run in progress.
pub struct Trainer<'a> {
    settings: Settings,
    dataset: &'a Dataset,
    runner: Runner,
    folder: RunFolder,
    observer: &'a mut dyn Observer,
    stop: &'a AtomicBool,
    metrics: Table<StepRow>,
    epochs: Table<EpochRow>,
    /// All rows of the run so far: means and plots are made from them.
    steps: Vec<StepRow>,
    epoch_rows: Vec<EpochRow>,
    best: Option<f64>,
    warned: bool,
    /// Why the observer cannot tell any more.
    untold: Option<Error>,
    saved: Instant,
    /// Start of each step under way: number, images, time.
    under_way: Vec<(u64, usize, Instant)>,
    last_report: Instant,
    /// A step to be timed.
    profile: Option<ProfileAt>,
}

/// Which step is timed, and where its trace goes.
struct ProfileAt {
    step: u64,
    trace: Option<PathBuf>,
}

impl std::fmt::Debug for Trainer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("folder", &self.folder.path())
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// Where a run takes place.
pub struct Stage<'a> {
    /// Images to train on and to validate with.
    pub dataset: &'a Dataset,
    /// The device.
    pub device: &'a Device,
    /// How kernels are chosen and placed.
    pub plan: &'a plan::Options,
    /// Who looks on.
    pub observer: &'a mut dyn Observer,
    /// Set from outside to end the run after the step in hand.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Stage<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("device", &self.device).finish_non_exhaustive()
    }
}

impl<'a> Trainer<'a> {
    /// A new run in `folder`; `init` gives weights to start from instead of random ones.
    pub fn new(mut settings: Settings, folder: RunFolder, init: Option<&Weights>, stage: Stage<'a>) -> Result<Self> {
        settings.check()?;
        let mut runner = runner(&mut settings, &stage)?;
        runner.init(settings.seed)?;
        if let Some(weights) = init {
            runner.upload(Region::Params, &weights.params)?;
            runner.upload(Region::States, &weights.states)?;
        }
        folder.save_config(&RunConfig::new(runner.describe(), runner.variants().clone(), settings.clone()))?;
        let (metrics, epochs) = (Table::create(&folder.metrics())?, Table::create(&folder.epochs())?);
        let mut trainer = Self {
            settings,
            dataset: stage.dataset,
            runner,
            folder,
            observer: stage.observer,
            stop: stage.stop,
            metrics,
            epochs,
            steps: Vec::new(),
            epoch_rows: Vec::new(),
            best: None,
            warned: false,
            untold: None,
            saved: Instant::now(),
            under_way: Vec::new(),
            last_report: Instant::now(),
            profile: None,
        };
        trainer.pictures(0)?;
        trainer.save_checkpoint()?;
        Ok(trainer)
    }

    /// The settings of a run that is to go on, from its checkpoint.
    pub fn settings_of(folder: &RunFolder) -> Result<Settings> {
        let path = folder.checkpoint();
        let file = crate::checkpoint::TensorFile::load(&path)?;
        let progress = Progress::of(&file, &path)?;
        serde_json::from_str(&progress.settings).map_err(|e| Error::garbled("understand the settings in", &path, e))
    }

    /// A run that goes on from its checkpoint, with these settings (those of the checkpoint but for the number of epochs) and its choice of
    /// kernels, unless the stage's plan has another.
    pub fn resume(mut settings: Settings, folder: RunFolder, stage: Stage<'a>) -> Result<Self> {
        settings.check()?;
        let mut runner = runner(&mut settings, &stage)?;
        let path = folder.checkpoint();
        let Checkpoint { progress, weights, moment1, moment2 } =
            Checkpoint::load(&path, Inventory::of(runner.graph()?))?;
        for (region, tensors) in [
            (Region::Params, &weights.params),
            (Region::States, &weights.states),
            (Region::Moment1, &moment1),
            (Region::Moment2, &moment2),
        ] {
            runner.upload(region, tensors)?;
        }
        runner.set_step(progress.step);
        let (metrics, steps) = Table::resume(&folder.metrics(), |row: &StepRow| row.step < progress.step)?;
        let (epochs, epoch_rows) = Table::resume(&folder.epochs(), |row: &EpochRow| row.epoch <= progress.epoch)?;
        folder.save_config(&RunConfig::new(runner.describe(), runner.variants().clone(), settings.clone()))?;
        Ok(Self {
            settings,
            dataset: stage.dataset,
            runner,
            folder,
            observer: stage.observer,
            stop: stage.stop,
            metrics,
            epochs,
            steps,
            epoch_rows,
            best: progress.best,
            warned: false,
            untold: None,
            saved: Instant::now(),
            under_way: Vec::new(),
            last_report: Instant::now(),
            profile: None,
        })
    }

    /// Steps of an epoch: the last may be shorter.
    fn steps_per_epoch(&self) -> u64 {
        self.dataset.train.len().div_ceil(self.settings.batch_size) as u64
    }

    /// The model on its device, for what comes after training.
    pub fn runner(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Times one of the steps to come on the device, the first whole batch after a few to warm up, and tells the observer; `trace`: where
    /// to write it down in full. The numbers of the run stay what they are.
    pub fn profile(&mut self, trace: Option<PathBuf>) {
        let (first, per_epoch) = (self.runner.step(), self.steps_per_epoch());
        let steps = per_epoch * self.settings.epochs;
        let whole = |step: &u64| step % per_epoch + 1 < per_epoch;
        let after = first.saturating_add(PROFILE_AFTER);
        let step = (after..after + per_epoch.min(2)).find(whole).unwrap_or(after);
        self.profile = Some(ProfileAt { step: step.min(steps.saturating_sub(1)), trace });
    }

    /// Trains until all epochs are done or the run is stopped.
    pub fn run(&mut self) -> Result<Outcome> {
        let begun = Instant::now();
        let per_epoch = self.steps_per_epoch();
        let steps = per_epoch * self.settings.epochs;
        let model = describe(&self.settings.model);
        tell(
            self.observer,
            &mut self.untold,
            &Event::Started(Start {
                run: self.folder.path(),
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
        for epoch in self.runner.step() / per_epoch + 1..=self.settings.epochs {
            let epoch_begun = Instant::now();
            if self.epoch(epoch, steps)? == Outcome::Interrupted {
                let event = Event::Interrupted { step: self.runner.step(), run: self.folder.path() };
                tell(self.observer, &mut self.untold, &event)?;
                return self.end(Outcome::Interrupted);
            }
            self.end_of_epoch(epoch, epoch_begun)?;
        }
        if self.profile.take().is_some() {
            tell(
                self.observer,
                &mut self.untold,
                &Event::Warning { message: "no profile: there was no step left to time" },
            )?;
        }
        tell(
            self.observer,
            &mut self.untold,
            &Event::Finished {
                epochs: self.settings.epochs,
                steps: self.runner.step(),
                seconds: begun.elapsed().as_secs_f64(),
                best: self.best,
                run: self.folder.path(),
            },
        )?;
        self.end(Outcome::Finished)
    }

    /// All is saved: only now an observer that had nowhere to write is a failure.
    fn end(&mut self, outcome: Outcome) -> Result<Outcome> {
        self.untold.take().map_or(Ok(outcome), Err)
    }

    fn epoch(&mut self, epoch: u64, steps: u64) -> Result<Outcome> {
        let first_step = (epoch - 1) * self.steps_per_epoch();
        let part = feed::Epoch { number: epoch, first_step, done: (self.runner.step() - first_step) as usize };
        let (settings, images) = (self.settings.clone(), self.dataset.train.as_ref());
        std::thread::scope(|scope| {
            for batch in feed::start(scope, &settings, images, part) {
                if self.stop.load(Ordering::Relaxed) {
                    self.collect(true)?;
                    self.save_checkpoint()?;
                    return Ok(Outcome::Interrupted);
                }
                self.train(&batch?, steps)?;
                if self.saved.elapsed() > CHECKPOINT_EVERY {
                    self.collect(true)?;
                    let saved = self.save_checkpoint();
                    self.tolerate(saved)?;
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
        let input = StepInput {
            images: &batch.pixels,
            eps: &batch.eps,
            lr: self.settings.lr_at(step, steps),
            weight_decay: self.settings.weight_decay,
            beta: self.settings.beta_at(step),
            clip: self.settings.clip_grad,
        };
        self.runner.train(batch.len, &input)?;
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
        tell(self.observer, &mut self.untold, &Event::Profile(&profile.summary()))?;
        let Some(path) = trace else { return Ok(()) };
        // A trace that cannot be written is no reason to end a run.
        match profile.save_trace(&path) {
            Err(error) => {
                tell(self.observer, &mut self.untold, &Event::Warning { message: &format!("no trace: {error}") })
            }
            Ok(()) => Ok(()),
        }
    }

    /// Makes ready for timing this step, if it is the one: nothing else is under way, and the device is told.
    fn profile_of(&mut self, step: u64) -> Result<Option<ProfileAt>> {
        let Some(profile) = self.profile.take_if(|profile| profile.step == step) else { return Ok(None) };
        self.collect(true)?;
        if self.runner.time_next()? {
            return Ok(Some(profile));
        }
        let message = "no profile: the device has no timestamp queries";
        tell(self.observer, &mut self.untold, &Event::Warning { message })?;
        Ok(None)
    }

    /// Takes in the reports that have come; a step that was not finite ends the run.
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
        // Steps overlap on the device and several may come back at once: together they took the time since those before came back.
        let seconds = (*begun).max(self.last_report).elapsed().as_secs_f64().max(1e-9);
        let images_per_s = reports.iter().map(|(_, images, _)| *images as f64).sum::<f64>() / seconds;
        self.last_report = Instant::now();
        for (report, ..) in reports {
            if !report.finite {
                let tensor = self.runner.first_non_finite()?.unwrap_or_else(|| "the loss".to_owned());
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
            tell(self.observer, &mut self.untold, &Event::Step(&row))?;
            let pushed = self.metrics.push(&row);
            self.tolerate(pushed)?;
            self.steps.push(row);
        }
        Ok(())
    }

    fn end_of_epoch(&mut self, epoch: u64, begun: Instant) -> Result<()> {
        let val = self.validate()?;
        let sizes = |step: u64| {
            let at = (step % self.steps_per_epoch()) as usize * self.settings.batch_size;
            self.settings.batch_size.min(self.dataset.train.len() - at) as f64
        };
        let mean = |term: fn(&StepRow) -> f32| {
            let rows = self.steps.iter().filter(|row| row.epoch == epoch);
            let sum: f64 = rows.map(|row| f64::from(term(row)) * sizes(row.step)).sum();
            sum / self.dataset.train.len() as f64
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
            return Err(Error::NonFinite { tensor: "the validation loss".to_owned(), step: self.runner.step() });
        }
        let restored = self.restore();
        self.tolerate(restored)?;
        let pushed = self.epochs.push(&row);
        self.tolerate(pushed)?;
        self.epoch_rows.push(row);
        let best = self.best.is_none_or(|best| row.val_total < best);
        let model = if best { self.save_model() } else { Ok(()) };
        if best && model.is_ok() {
            self.best = Some(row.val_total);
        }
        let drawn = self.pictures(epoch).and_then(|()| self.plots());
        self.tolerate(drawn)?;
        // Last: what a kill before this leaves out is made again, to the same bytes, when the epoch is.
        let checkpoint = self.save_checkpoint();
        if epoch == self.settings.epochs {
            model.and(checkpoint)?;
        } else {
            self.tolerate(model)?;
            self.tolerate(checkpoint)?;
        }
        tell(self.observer, &mut self.untold, &Event::Epoch { row: &row, best })
    }

    /// Turns a failure to write into a warning, the first time: training goes on, as the next attempt may succeed.
    fn tolerate(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error @ Error::File { .. }) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
                    tell(
                        self.observer,
                        &mut self.untold,
                        &Event::Warning { message: &format!("{error}{cause}; training goes on") },
                    )?;
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Makes a run folder that is gone again, with what is known of the run.
    fn restore(&mut self) -> Result<()> {
        if !self.folder.is_gone() {
            return Ok(());
        }
        self.folder.restore()?;
        self.metrics = Table::create(&self.folder.metrics())?;
        self.epochs = Table::create(&self.folder.epochs())?;
        self.steps.iter().try_for_each(|row| self.metrics.push(row))?;
        self.epoch_rows.iter().try_for_each(|row| self.epochs.push(row))?;
        // The weights that were best are gone too.
        self.best = None;
        let (runner, settings) = (&self.runner, self.settings.clone());
        self.folder.save_config(&RunConfig::new(runner.describe(), runner.variants().clone(), settings))?;
        let message = format!("{} was gone and has been made again", self.folder.path().display());
        tell(self.observer, &mut self.untold, &Event::Warning { message: &message })
    }

    fn save_model(&mut self) -> Result<()> {
        let weights = self.weights()?;
        let config = serde_json::to_string(&self.settings.model).map_err(Error::bug)?;
        weights.save(&self.folder.model(), Inventory::of(self.runner.graph()?), &config)
    }

    fn weights(&mut self) -> Result<Weights> {
        Ok(Weights { params: self.runner.download(Region::Params)?, states: self.runner.download(Region::States)? })
    }

    fn save_checkpoint(&mut self) -> Result<()> {
        let step = self.runner.step();
        let checkpoint = Checkpoint {
            progress: Progress {
                step,
                epoch: step / self.steps_per_epoch(),
                seed: self.settings.seed,
                settings: serde_json::to_string(&self.settings).map_err(Error::bug)?,
                best: self.best,
            },
            weights: self.weights()?,
            moment1: self.runner.download(Region::Moment1)?,
            moment2: self.runner.download(Region::Moment2)?,
        };
        let restored = self.restore();
        self.tolerate(restored)?;
        // Rows that cannot be written are no reason to lose a checkpoint.
        let synced = self.metrics.sync().and_then(|()| self.epochs.sync());
        self.tolerate(synced)?;
        checkpoint.save(&self.folder.checkpoint(), Inventory::of(self.runner.graph()?))?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Means over the whole test set with running statistics.
    fn validate(&mut self) -> Result<Validation> {
        let latent = self.settings.model.latent_dim;
        let images = self.dataset.test.as_ref();
        let all: Vec<u32> = (0..images.len() as u32).collect();
        let (mut sums, mut moments) = ([0.0f64; 4], vec![(0.0f64, 0.0f64); latent]);
        let mut pixels = Vec::new();
        for (i, indices) in all.chunks(self.settings.batch_size).enumerate() {
            let n = indices.len();
            data::batch(images, indices, &mut pixels)?;
            let eps = noise(&self.settings, VALIDATION_NOISE + i as u64, n);
            let sampled = self.runner.losses(n, &pixels, &eps, self.settings.beta)?;
            // Without noise the latent mean is decoded; recon is half the mean squared error and a constant.
            let still = self.runner.losses(n, &pixels, &vec![0.0; n * latent], self.settings.beta)?;
            let mse = 2.0 * (f64::from(still.recon) - 0.5 * std::f64::consts::TAU.ln());
            let terms = [f64::from(sampled.total), f64::from(sampled.recon), f64::from(sampled.kl), mse];
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += term * n as f64;
            }
            for h in sampled.h.chunks_exact(2 * latent) {
                for ((sum, squares), mu) in moments.iter_mut().zip(h) {
                    *sum += f64::from(*mu);
                    *squares += f64::from(*mu).powi(2);
                }
            }
        }
        let count = images.len() as f64;
        let variance = |(sum, squares): &(f64, f64)| squares / count - (sum / count).powi(2);
        let active_units = moments.iter().filter(|m| variance(m) > ACTIVE_VARIANCE).count() as u64;
        let [total, recon, kl, mse] = sums.map(|sum| sum / count);
        Ok(Validation { total, recon, kl, mse, active_units })
    }

    /// The column of the reconstruction history (epoch 0: the originals) and the samples of an epoch.
    fn pictures(&mut self, epoch: u64) -> Result<()> {
        let images = self.dataset.test.as_ref();
        let shown = first_of_each_class(images);
        let mut pixels = Vec::new();
        data::batch(images, &shown, &mut pixels)?;
        let (c, h, w) = images.size();
        if epoch == 0 {
            let originals = Pictures::from_bytes(&pixels, [c, h, w])?;
            return self.folder.save_reconstructions(0, &originals);
        }
        let still = vec![0.0; shown.len() * self.settings.model.latent_dim];
        let mean = self.runner.evaluate(shown.len(), &pixels, &still, self.settings.beta)?.mean;
        self.folder.save_reconstructions(epoch, &Pictures::from_floats(&mean, [c, h, w])?)?;
        let z = noise(&self.settings, SAMPLE_NOISE, SAMPLES);
        let samples = Pictures::from_floats(&self.runner.decode(SAMPLES, &z)?, [c, h, w])?;
        let grid = Grid { columns: SAMPLES.isqrt(), scale: 2, ..Grid::default() };
        save_png(&self.folder.samples(epoch), &grid.draw(&samples)?)
    }

    fn plots(&self) -> Result<()> {
        save_png(&self.folder.training_loss(), &plots::training_loss(&self.steps, &self.epoch_rows)?)?;
        save_png(&self.folder.grad_norm(), &plots::grad_norm(&self.steps)?)?;
        save_png(&self.folder.learning_rate(), &plots::learning_rate(&self.steps)?)
    }
}

/// Tells the observer. That it has nowhere to write is kept for the end of the run.
fn tell(observer: &mut dyn Observer, untold: &mut Option<Error>, event: &Event<'_>) -> Result<()> {
    match observer.observe(event) {
        Err(error @ Error::File { .. }) => {
            untold.get_or_insert(error);
            Ok(())
        }
        other => other,
    }
}

/// Means over the test set.
struct Validation {
    total: f64,
    recon: f64,
    kl: f64,
    mse: f64,
    active_units: u64,
}

/// The model on its device with a program for every batch size of the run. A choice of kernels in the stage's plan goes before that of
/// the settings and becomes theirs.
fn runner(settings: &mut Settings, stage: &Stage<'_>) -> Result<Runner> {
    if !stage.plan.variants.is_empty() {
        settings.variants.clone_from(&stage.plan.variants);
    }
    let plan = plan::Options { variants: settings.variants.clone(), ..stage.plan.clone() };
    let (train, test) = (stage.dataset.train.as_ref(), stage.dataset.test.as_ref());
    let (c, h, w) = train.size();
    let model = &settings.model;
    if (c, h, w) != (model.image_channels, model.image_size, model.image_size) {
        let expected = format!("{} of {s}x{s}", model.image_channels, s = model.image_size);
        return Err(Error::shape("train", "channels and size of the pictures", expected, format!("{c} of {h}x{w}")));
    }
    let mut programs = Vec::new();
    for (images, mode) in [(train, Mode::Train), (test, Mode::Evaluate)] {
        for size in [settings.batch_size.min(images.len()), images.len() % settings.batch_size] {
            if size > 0 && !programs.contains(&(size, mode)) {
                programs.push((size, mode));
            }
        }
    }
    for program in [(first_of_each_class(test).len(), Mode::Evaluate), (SAMPLES, Mode::Decode)] {
        if !programs.contains(&program) {
            programs.push(program);
        }
    }
    Runner::new(*model, &programs, stage.device, &plan)
}

/// Noise for `count` pictures; a shorter batch gets the beginning of the same numbers.
fn noise(settings: &Settings, index: u64, count: usize) -> Vec<f32> {
    rng::normals(&mut rng::stream(settings.seed, Purpose::Noise, index), count * settings.model.latent_dim)
}

/// Index of the first picture of each class that occurs.
fn first_of_each_class(images: &dyn Images) -> Vec<u32> {
    let mut first: BTreeMap<u8, u32> = BTreeMap::new();
    for i in 0..images.len() {
        first.entry(images.label(i)).or_insert(i as u32);
        if first.len() == images.classes().len() {
            break;
        }
    }
    first.into_values().collect()
}

/// The model in a few words.
fn describe(model: &VaeConfig) -> String {
    let norm = match model.norm {
        crate::model::Norm::Batch => "batch",
        crate::model::Norm::Position => "position",
    };
    format!(
        "ResNet VAE, {} channels, {} groups of {} blocks, {} latent numbers, {norm} norm",
        model.channels, model.groups, model.blocks, model.latent_dim
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_warms_up_and_falls() {
        let settings = Settings::default();
        assert!((settings.lr_at(0, 9775) - 1e-4).abs() < 1e-12);
        assert!((settings.lr_at(500, 9775) - 0.01 * (0.01 + 0.99 * 0.5)).abs() < 1e-12);
        assert!((settings.lr_at(1000, 9775) - 0.01).abs() < 1e-12);
        assert!((settings.lr_at(9000, 9775) - 0.01).abs() < 1e-12);
        let cosine = Settings { schedule: Schedule::Cosine, ..settings };
        assert!((cosine.lr_at(999, 9775) - settings_at(999)).abs() < 1e-12);
        assert!((cosine.lr_at(1000 + 8775 / 2, 9775) - 0.005).abs() < 1e-5);
        assert!(cosine.lr_at(9775, 9775).abs() < 1e-12);
    }

    fn settings_at(step: u64) -> f64 {
        Settings::default().lr_at(step, 9775)
    }

    #[test]
    fn beta_warms_up() {
        let settings = Settings { beta: 2.0, beta_warmup: 10, ..Settings::default() };
        assert_eq!([0, 5, 10, 20].map(|s| settings.beta_at(s)), [0.0, 1.0, 2.0, 2.0]);
        assert_eq!(Settings::default().beta_at(0), 1.0);
    }

    /// Or a run that goes on would compute with other numbers than one in one go.
    #[test]
    fn settings_come_back_bit_for_bit() {
        let mut draw = rng::stream(1, Purpose::Check, 0);
        for _ in 0..10_000 {
            let word = || (u64::from(rng::below(&mut draw, u32::MAX)) << 32) | 0x9e37_79b9;
            let lr =
                f64::from_bits(std::iter::repeat_with(word).find(|bits| f64::from_bits(*bits).is_finite()).unwrap());
            let settings = Settings { lr, ..Settings::default() };
            let json = serde_json::to_string(&settings).unwrap();
            let back: Settings = serde_json::from_str(&json).unwrap();
            assert_eq!(back.lr.to_bits(), lr.to_bits(), "{json}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for settings in [
            Settings { lr: f64::NAN, ..Settings::default() },
            Settings { lr: -1.0, ..Settings::default() },
            Settings { batch_size: 0, ..Settings::default() },
            Settings { epochs: 0, ..Settings::default() },
            Settings { epochs: u64::MAX, ..Settings::default() },
            Settings { clip_grad: 1e39, ..Settings::default() },
            Settings { beta: f64::INFINITY, ..Settings::default() },
        ] {
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }
}
