//! Training one step at a time, for programs whose thread must not wait, such as a page in a browser.
//!
//! A [`Session`] makes the same steps as a [`Trainer`](super::Trainer), bit for bit, but stores nothing and starts no threads. Between two
//! calls of [`Session::advance`], its model can be used for other work.

use std::sync::Arc;

use super::artifacts::model_file;
use super::epoch::{IN_FLIGHT, non_finite, start_step};
use super::parts::Parts;
use super::shared_step::Share;
use super::start::{check_images, initialize, plan_of, programs};
use super::validation::{Validation, Validator};
use super::{Settings, loader};
use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::runtime::plan;
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::model::Mode;
use crate::vae::runner::{Device, Runner, StepReport};
use crate::vae::tensor_file::TensorFile;
use crate::vae::weights::Weights;

/// A training run that a caller advances.
///
/// ```
/// use std::sync::Arc;
///
/// use vae_wgpu::prelude::*;
/// use vae_wgpu::vae::data::shapes::Shapes;
/// use vae_wgpu::vae::train::{Progress, Session};
///
/// let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
/// let settings = Settings { model, batch_size: 2, epochs: 1, ..Settings::default() };
/// let images: Arc<dyn Images> = Arc::new(Shapes::new(0, 0, 5));
/// let options = PlanOptions::default();
/// # pollster::block_on(async {
/// let mut session = Session::open(settings, [Arc::clone(&images), images], &[], &Device::Cpu, &options).await?;
/// loop {
///     match session.advance().await? {
///         Progress::Steps(reports) => reports.iter().for_each(|report| println!("loss {}", report.total)),
///         Progress::Validating { done, total } => println!("validating {done}/{total}"),
///         Progress::Epoch(epoch) => println!("validation loss {}", epoch.validation.total),
///         Progress::Finished => break,
///     }
/// }
/// assert!(session.best_model().is_some());
/// # Ok::<(), vae_wgpu::Error>(())
/// # })?;
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    parts: Parts<Arc<dyn Images>>,
    runner: Runner,
    /// Order of the training images in the epoch of the next step; empty before it begins.
    order: Vec<u32>,
    /// Number of finished epochs, including their validation.
    finished: u64,
    /// Number of steps on the device.
    in_flight: usize,
    validator: Option<Validator>,
    best: Option<Best>,
}

#[derive(Debug)]
struct Best {
    epoch: u64,
    val_total: f64,
    model: TensorFile,
}

/// What a call of [`Session::advance`] did.
#[derive(Clone, Debug, PartialEq)]
pub enum Progress {
    /// It started a step or waited for one. Reports of earlier steps that have arrived, oldest first; there may be none.
    Steps(Vec<StepReport>),
    /// It validated a batch.
    Validating {
        /// Batches validated so far.
        done: usize,
        /// Batches to validate.
        total: usize,
    },
    /// It ended an epoch.
    Epoch(EpochReport),
    /// All epochs have finished, or the validation loss has not fallen for as many as the settings allow.
    Finished,
}

/// Results of an epoch.
#[derive(Clone, Debug, PartialEq)]
pub struct EpochReport {
    /// Epoch, from 1.
    pub epoch: u64,
    /// Averages over the validation images.
    pub validation: Validation,
    /// Whether the validation loss is the lowest so far, so that these weights became [`Session::best_model`].
    pub best: bool,
}

impl Session {
    /// Puts a new model on a device, ready for the first step. `images` are the training images, of which some validate, and the test
    /// images, which validate if [`Settings::val_split`] is 0. `more` are programs beyond those that train and validate, compiled ahead.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for invalid settings or images of another size, [`Error::DoesNotFit`] with the largest batch that
    /// fits, and errors of the device.
    pub async fn open(
        mut settings: Settings,
        images: [Arc<dyn Images>; 2],
        more: &[(usize, Mode)],
        device: &Device,
        options: &plan::Options,
    ) -> Result<Self> {
        settings.check()?;
        Share::WHOLE.check(&settings)?;
        for images in &images {
            check_images(&settings.model, images.as_ref())?;
        }
        let [train, test] = images;
        let parts = Parts::of(train, test, settings.val_split)?;
        let programs: Vec<_> =
            programs(&settings, Share::WHOLE, &parts).into_iter().chain(more.iter().copied()).collect();
        let options = plan_of(&mut settings, options);
        let mut runner = Runner::new_async(settings.model, &programs, device, &options).await?;
        initialize(&mut runner, &settings, None)?;
        Ok(Self { settings, parts, runner, order: Vec::new(), finished: 0, in_flight: 0, validator: None, best: None })
    }

    /// Returns the settings of the run.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the number of steps of an epoch, including a shorter last one.
    #[must_use]
    pub fn steps_per_epoch(&self) -> u64 {
        self.settings.steps_per_epoch(self.parts.train.len())
    }

    /// Returns the number of steps of the run.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps_per_epoch() * self.settings.epochs
    }

    /// Returns the number of steps that have started.
    #[must_use]
    pub fn step(&self) -> u64 {
        self.runner.step()
    }

    /// Returns the model on its device.
    pub fn runner(&mut self) -> &mut Runner {
        &mut self.runner
    }

    /// Returns the weights of the epoch with the lowest validation loss, the contents of `model.safetensors`; `None` before the end of
    /// the first epoch.
    #[must_use]
    pub fn best_model(&self) -> Option<&TensorFile> {
        self.best.as_ref().map(|best| &best.model)
    }

    /// Returns the present weights.
    ///
    /// # Errors
    /// Errors of the device.
    pub async fn model(&mut self) -> Result<TensorFile> {
        self.model_of(self.finished, None).await
    }

    async fn model_of(&mut self, epoch: u64, validated: Option<(f64, &[f64])>) -> Result<TensorFile> {
        let params = self.runner.download_async(Arena::Params).await?;
        let states = self.runner.download_async(Arena::States).await?;
        let classes = self.parts.train.classes();
        model_file(Weights { params, states }, &self.runner, classes, epoch, validated)
    }

    /// Makes the next step of the run, or validates the next batch at the end of an epoch.
    ///
    /// # Errors
    /// [`Error::NonFinite`] or [`Error::NonFiniteOutput`] if training diverges, and errors of the device.
    pub async fn advance(&mut self) -> Result<Progress> {
        if self.is_finished() {
            return Ok(Progress::Finished);
        }
        if self.runner.step() < (self.finished + 1) * self.steps_per_epoch() {
            self.train()?;
            return if self.in_flight < IN_FLIGHT {
                self.arrived(false).await
            } else {
                // The device runs the next step meanwhile.
                let reports = self.runner.oldest_reports_async().await?;
                self.checked(reports).await
            };
        }
        if self.in_flight > 0 {
            return self.arrived(true).await;
        }
        self.validate().await
    }

    /// Waits for the steps on the device, for a pause.
    ///
    /// # Errors
    /// As [`Session::advance`].
    pub async fn settle(&mut self) -> Result<Vec<StepReport>> {
        match self.arrived(true).await? {
            Progress::Steps(reports) => Ok(reports),
            _ => Ok(Vec::new()),
        }
    }

    fn is_finished(&self) -> bool {
        let stops = |best: &Best| self.settings.stops_early(self.finished, best.epoch);
        self.finished >= self.settings.epochs || self.best.as_ref().is_some_and(stops)
    }

    /// Starts the next step.
    fn train(&mut self) -> Result<()> {
        let (step, epoch) = (self.runner.step(), self.finished + 1);
        let at = (step - self.finished * self.steps_per_epoch()) as usize;
        if self.order.is_empty() {
            self.order = data::epoch_order(self.settings.seed, epoch, self.parts.train.len());
        }
        let indices = self.order.chunks(self.settings.images_per_step()).nth(at);
        let indices = indices.ok_or_else(|| Error::bug("a step after the end of an epoch"))?;
        let batch = loader::batch(&self.settings, &self.parts.train, Share::WHOLE, (epoch, step), indices)?;
        let hyper = self.settings.hyperparams(step, self.steps());
        start_step(&mut self.runner, &self.settings, &batch, &hyper)?;
        self.in_flight += 1;
        Ok(())
    }

    /// Returns the reports that have arrived; with `wait`, those of all steps.
    async fn arrived(&mut self, wait: bool) -> Result<Progress> {
        let reports = self.runner.reports_async(wait).await?;
        self.checked(reports).await
    }

    /// Rejects the report of a step that was not finite.
    async fn checked(&mut self, reports: Vec<StepReport>) -> Result<Progress> {
        self.in_flight = self.in_flight.saturating_sub(reports.len());
        match reports.iter().find(|report| !report.finite) {
            None => Ok(Progress::Steps(reports)),
            Some(report) => Err(non_finite(&mut self.runner, report).await?),
        }
    }

    async fn validate(&mut self) -> Result<Progress> {
        let (settings, images) = (&self.settings, &self.parts.validation);
        let validator = self.validator.get_or_insert_with(|| Validator::new(settings.model.latent_dim));
        let total = images.len().div_ceil(settings.batch_size);
        if validator.done < total {
            validator.add(&mut self.runner, settings, images).await?;
            return Ok(Progress::Validating { done: validator.done, total });
        }
        let Some(validation) = self.validator.take().map(Validator::finish) else {
            return Err(Error::bug("a validation that has vanished"));
        };
        if !validation.total.is_finite() {
            return Err(Error::NonFiniteOutput { what: "the validation loss".to_owned() });
        }
        let (epoch, val_total) = (self.finished + 1, validation.total);
        let best = self.best.as_ref().is_none_or(|best| val_total < best.val_total);
        if best {
            let model = self.model_of(epoch, Some((val_total, validation.kl_dims.as_slice()))).await?;
            self.best = Some(Best { epoch, val_total, model });
        }
        self.finished = epoch;
        self.order.clear();
        Ok(Progress::Epoch(EpochReport { epoch, validation, best }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::runtime::sys::platform::block_on;
    use crate::vae::data::Dataset;
    use crate::vae::data::shapes::Shapes;
    use crate::vae::model::VaeConfig;
    use crate::vae::train::events::Quiet;
    use crate::vae::train::memory_store::InMemoryRun;
    use crate::vae::train::{TrainContext, Trainer};

    fn settings() -> Settings {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, image_size: 32, ..VaeConfig::default() };
        Settings { model, batch_size: 4, epochs: 2, lr: 0.01, warmup: 2, seed: 5, crop: true, ..Settings::default() }
    }

    fn session(settings: &Settings) -> Result<Session> {
        let halves: [Arc<dyn Images>; 2] = [Arc::new(Shapes::new(1, 0, 12)), Arc::new(Shapes::new(1, 12, 4))];
        block_on(Session::open(settings.clone(), halves, &[], &Device::Cpu, &plan::Options::default()))
    }

    /// Advances to the end of the run.
    fn run(session: &mut Session) -> Result<(Vec<StepReport>, Vec<EpochReport>)> {
        let (mut steps, mut epochs) = (Vec::new(), Vec::new());
        loop {
            match block_on(session.advance())? {
                Progress::Steps(reports) => steps.extend(reports),
                Progress::Validating { done, total } => assert!((1..=total).contains(&done)),
                Progress::Epoch(epoch) => epochs.push(epoch),
                Progress::Finished => return Ok((steps, epochs)),
            }
        }
    }

    #[test]
    fn sessions_train_as_trainers_do() {
        let settings = settings();
        let half = |first, len| Box::new(Shapes::new(1, first, len));
        let dataset = Dataset::new("shapes", "", half(0, 12), half(12, 4)).unwrap();
        let (plan, stop, mut kept) = (plan::Options::default(), AtomicBool::new(false), InMemoryRun::default());
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut Quiet, stop: &stop };
        Trainer::new(settings.clone(), &mut kept, None, context).unwrap().run().unwrap();

        let mut session = session(&settings).unwrap();
        let (steps, epochs) = run(&mut session).unwrap();
        let row =
            |s: &StepReport| (s.step + 1, s.total.to_bits(), s.recon.to_bits(), s.kl.to_bits(), s.grad_norm.to_bits());
        let kept_row = |s: &crate::vae::train::rows::StepRow| {
            (s.step, s.total.to_bits(), s.recon.to_bits(), s.kl.to_bits(), s.grad_norm.to_bits())
        };
        assert_eq!(steps.iter().map(row).collect::<Vec<_>>(), kept.steps.iter().map(kept_row).collect::<Vec<_>>());
        assert_eq!((steps.len() as u64, session.step()), (session.steps(), session.steps()));
        let epoch = |e: &EpochReport| (e.epoch, e.validation.total.to_bits(), e.validation.mse.to_bits(), e.best);
        let kept_epoch =
            |e: &crate::vae::train::rows::EpochRow| (e.epoch, e.val_total.to_bits(), e.val_mse.to_bits(), e.best);
        assert_eq!(
            epochs.iter().map(epoch).collect::<Vec<_>>(),
            kept.epochs.iter().map(kept_epoch).collect::<Vec<_>>()
        );
        assert_eq!(session.best_model(), kept.model.as_ref());
        assert!(session.best_model().is_some());
    }

    #[test]
    fn other_work_between_steps_changes_nothing() {
        let settings = settings();
        let (undisturbed, _) = run(&mut session(&settings).unwrap()).unwrap();
        let mut session = session(&settings).unwrap();
        let mut steps = Vec::new();
        loop {
            match block_on(session.advance()).unwrap() {
                Progress::Steps(reports) => steps.extend(reports),
                Progress::Finished => break,
                _ => {}
            }
            steps.extend(block_on(session.settle()).unwrap());
            session.runner().decode(&[0.5; 6]).unwrap();
            assert!(!block_on(session.model()).unwrap().tensors.is_empty());
        }
        assert_eq!(steps, undisturbed);
    }

    #[test]
    fn divergence_and_invalid_images_are_errors() {
        let mut settings = Settings { lr: 1e30, warmup: 0, clip_grad: 0.0, epochs: 20, ..settings() };
        let error = run(&mut session(&settings).unwrap()).unwrap_err();
        assert!(matches!(error, Error::NonFinite { .. } | Error::NonFiniteOutput { .. }), "{error}");
        settings.model.image_size = 64;
        assert!(session(&settings).unwrap_err().to_string().contains("size of the images"));
    }
}
