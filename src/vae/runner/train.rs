//! Training steps: whole batches, micro-batches, updates, reports and times.

use super::{Labelled, Runner};
use crate::error::{Error, Result};
use crate::runtime::exec::{Data, ProgramId, Report};
use crate::runtime::gpu::Span;
use crate::runtime::op::{Exchanges, MicroBatch, StepScalars};
use crate::runtime::sys::platform::block_on;
use crate::runtime::tensor::rng::{self, Stream};
use crate::vae::model::Mode;

/// Hyperparameters of a training step. Kernels compute with them in single precision.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparams {
    /// Learning rate.
    pub lr: f64,
    /// Decoupled weight decay (AdamW).
    pub weight_decay: f64,
    /// Weight of the KL term.
    pub beta: f64,
    /// KL divergence in nats below which a latent dimension costs nothing more; 0 for none.
    pub free_bits: f64,
    /// Largest global gradient norm; 0 disables clipping.
    pub clip: f64,
}

impl Default for Hyperparams {
    /// Learning rate 1e-3, weight decay 1e-4, beta 1, no free bits, no clipping.
    fn default() -> Self {
        Self { lr: 1e-3, weight_decay: 1e-4, beta: 1.0, free_bits: 0.0, clip: 0.0 }
    }
}

/// Results of a training step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Index of the step, from 0.
    pub step: u64,
    /// Total loss: recon + beta * kl, where free bits count for dimensions below them.
    pub total: f32,
    /// Reconstruction term.
    pub recon: f32,
    /// KL term.
    pub kl: f32,
    /// Mean squared error of the decoded images.
    pub mse: f32,
    /// Global gradient norm before clipping.
    pub grad_norm: f32,
    /// Whether loss and gradients were finite and the update was made.
    pub finite: bool,
}

impl Runner {
    /// Starts a training step on `images` (bytes, `[batch, c, h, w]`) and returns its index. The results come later, from
    /// [`Runner::reports`]. The noise is a function of the seed given to [`Runner::init`] and of the step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of bytes is not that of whole images, and as [`Runner::new`].
    pub fn train<'a>(&mut self, images: impl Into<Labelled<'a, u8>>, hyper: &Hyperparams) -> Result<u64> {
        let images = images.into();
        let noise = noise(self.seed, self.step, self.image_batch(images)? * self.config.latent_dim);
        self.train_with_noise(images, &noise, hyper)
    }

    /// Like [`Runner::train`], with standard normal noise of the caller, `[batch, latent]`.
    ///
    /// # Errors
    /// As [`Runner::train`].
    pub fn train_with_noise<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        hyper: &Hyperparams,
    ) -> Result<u64> {
        let images = images.into();
        let program = self.program(self.image_batch(images)?, Mode::Train)?;
        // Micro-batches of a step that was not completed belong to no step.
        self.accumulated = (0, 0);
        self.write_batch(program, images, eps, hyper)?;
        self.start_update(program, hyper)
    }

    /// Starts a training step like [`Runner::train_with_noise`], in micro-batches of `size` images, of which the last may have fewer.
    /// Loss and gradient are means over all images of the step, added as [`MicroBatch`] defines; batch statistics are those of each
    /// micro-batch.
    ///
    /// # Errors
    /// As [`Runner::train`]; [`Error::InvalidArgument`] for more micro-batches than
    /// [`MAX_MICRO_BATCHES`](crate::runtime::op::MAX_MICRO_BATCHES).
    pub fn train_accumulated<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        size: usize,
        hyper: &Hyperparams,
    ) -> Result<u64> {
        let Labelled { values, labels } = images.into();
        let of = self.image_batch(values.into())?;
        if size == 0 {
            return Err(Error::argument("images of a micro-batch", "at least 1", size));
        }
        let latent = self.config.latent_dim;
        if eps.len() != of * latent {
            return Err(Error::argument("number of noise values", of * latent, eps.len()));
        }
        let size = size.min(of);
        let count = of.div_ceil(size);
        // A model without classes has no labels.
        let mut labels = labels.chunks(size);
        let parts = values.chunks(size * (values.len() / of)).zip(eps.chunks(size * latent));
        for (index, (values, eps)) in parts.enumerate() {
            let micro_batch = MicroBatch { index, count, images: size.min(of - index * size), of };
            self.accumulate(Labelled { values, labels: labels.next().unwrap_or_default() }, eps, micro_batch, hyper)?;
        }
        self.update(hyper)
    }

    /// Starts the forward and backward pass of a micro-batch, and adds loss and gradients to those of the micro-batches of the step before
    /// it. They come in order, from index 0; [`Runner::update`] ends the step.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a micro-batch out of order, and as [`Runner::train_with_noise`].
    pub fn accumulate<'a>(
        &mut self,
        images: impl Into<Labelled<'a, u8>>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
    ) -> Result<()> {
        self.accumulate_in(Mode::Accumulate, images.into(), eps, micro_batch, hyper, Exchanges::None)
    }

    /// Runs the program of a micro-batch: that of `mode` with the number of micro-batches of the step, or more.
    pub(super) fn accumulate_in(
        &mut self,
        mode: fn(usize) -> Mode,
        images: Labelled<'_, u8>,
        eps: &[f32],
        micro_batch: MicroBatch,
        hyper: &Hyperparams,
        exchanges: Exchanges<'_>,
    ) -> Result<()> {
        micro_batch.check()?;
        let MicroBatch { index, count, .. } = micro_batch;
        let (done, all) = self.accumulated;
        if index > 0 && (index, count) != (done, all) {
            let expected = format!("{done} of {all}, or 0 to start a step");
            return Err(Error::argument("index of the next micro-batch", expected, format!("{index} of {count}")));
        }
        let batch = self.image_batch(images)?;
        if batch != micro_batch.images {
            return Err(Error::argument("images of a micro-batch", micro_batch.images, batch));
        }
        let program = self.program_for(batch, count, mode)?;
        self.write_batch(program, images, eps, hyper)?;
        self.write(program, "micro_batch", Data::F32(&micro_batch.to_array()))?;
        self.run_timed(program, &[], exchanges)?;
        self.accumulated = (index + 1, count);
        Ok(())
    }

    /// Starts the update that ends a training step of several micro-batches, and returns the index of the step. The results come later,
    /// from [`Runner::reports`].
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a micro-batch of the step is missing, and errors of the device.
    pub fn update(&mut self, hyper: &Hyperparams) -> Result<u64> {
        let (done, all) = self.accumulated;
        if done == 0 || done < all {
            return Err(Error::argument("number of micro-batches before the update", all.max(1), done));
        }
        let program = self.program(1, Mode::Update)?;
        let step = self.start_update(program, hyper)?;
        self.accumulated = (0, 0);
        Ok(step)
    }

    /// Returns the program of a mode for steps of `count` micro-batches: one for longer steps does too.
    pub(super) fn program_for(&mut self, batch: usize, count: usize, mode: fn(usize) -> Mode) -> Result<ProgramId> {
        let suits = |&&((size, known), _): &&((usize, Mode), ProgramId)| {
            size == batch && known.most().is_some_and(|most| most >= count && known == mode(most))
        };
        match self.programs.iter().find(suits) {
            Some((_, program)) => Ok(*program),
            None => self.program(batch, mode(count)),
        }
    }

    /// Writes images, noise and the weights of the loss terms.
    fn write_batch(
        &mut self,
        program: ProgramId,
        images: Labelled<'_, u8>,
        eps: &[f32],
        hyper: &Hyperparams,
    ) -> Result<()> {
        self.write_images(program, images)?;
        self.write(program, "eps", Data::F32(eps))?;
        self.write(program, "objective", Data::F32(&[hyper.beta as f32, hyper.free_bits as f32]))
    }

    /// Runs a program that ends with the update of the next step, and returns the index of the step.
    pub(super) fn start_update(&mut self, program: ProgramId, hyper: &Hyperparams) -> Result<u64> {
        let optimizer = self.engine.get().graph(program)?.optimizer();
        let adam = optimizer.ok_or_else(|| Error::bug("a training graph without optimizer"))?;
        let (bias_correction1, bias_correction2) = adam.bias_corrections(self.step);
        let scalars = StepScalars {
            lr: hyper.lr as f32,
            bias_correction1,
            bias_correction2,
            weight_decay: hyper.weight_decay as f32,
            clip: hyper.clip as f32,
        };
        self.write(program, "hyperparams", Data::F32(&scalars.to_array()))?;
        let ticket = self.run_timed(program, &["terms", "norm"], Exchanges::None)?;
        let step = self.step;
        self.pending.push((ticket, step));
        self.step += 1;
        Ok(step)
    }

    /// Requests times of the dispatches of the next training step. Returns `false` if the device has no timestamps.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn time_next(&mut self) -> Result<bool> {
        let able = self.engine.get_mut().time_next()?;
        self.timed = able.then(|| (self.step, Vec::new()));
        Ok(able)
    }

    /// Returns the times of the last timed step, once. Waits for the device. The runs of several micro-batches follow each other without the
    /// time between them.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn spans(&mut self) -> Result<Vec<Span>> {
        let (_, mut spans) = self.timed.take().unwrap_or_default();
        self.append_spans(&mut spans)?;
        Ok(spans)
    }

    /// Runs a program of a training step, timed if times were requested: all runs of a step are, each after the one before.
    fn run_timed(&mut self, program: ProgramId, report: &[&str], exchanges: Exchanges<'_>) -> Result<u64> {
        let later_run = |(step, _): &mut (u64, _)| *step == self.step && self.accumulated.0 > 0;
        if let Some((step, mut spans)) = self.timed.take_if(later_run) {
            self.append_spans(&mut spans)?;
            self.engine.get_mut().time_next()?;
            self.timed = Some((step, spans));
        }
        self.run_exchanging(program, report, exchanges)
    }

    /// Appends the times of the last timed run.
    fn append_spans(&mut self, spans: &mut Vec<Span>) -> Result<()> {
        let end = spans.iter().filter_map(|span| Some(span.begin_ns? + span.ns?)).fold(0.0, f64::max);
        let last = self.engine.get_mut().spans()?;
        spans.extend(last.into_iter().map(|span| Span { begin_ns: span.begin_ns.map(|at| at + end), ..span }));
        Ok(())
    }

    /// Returns the reports of finished training steps, oldest first; with `wait`, of all steps started so far.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn reports(&mut self, wait: bool) -> Result<Vec<StepReport>> {
        block_on(self.reports_async(wait))
    }

    /// Like [`Runner::reports`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::reports`].
    pub async fn reports_async(&mut self, wait: bool) -> Result<Vec<StepReport>> {
        let reports = self.engine.reports(wait).await?;
        self.of_steps(reports)
    }

    /// Waits for the report of the oldest step, while the device works on later ones, and returns it with those that are ready too, oldest
    /// first.
    ///
    /// # Errors
    /// Errors of the device.
    pub fn oldest_reports(&mut self) -> Result<Vec<StepReport>> {
        block_on(self.oldest_reports_async())
    }

    /// Like [`Runner::oldest_reports`], for a browser.
    ///
    /// # Errors
    /// As [`Runner::oldest_reports`].
    pub async fn oldest_reports_async(&mut self) -> Result<Vec<StepReport>> {
        let reports = self.engine.oldest_reports().await?;
        self.of_steps(reports)
    }

    fn of_steps(&mut self, reports: Vec<Report>) -> Result<Vec<StepReport>> {
        let mut steps = Vec::new();
        for report in reports {
            let Some(at) = self.pending.iter().position(|(ticket, _)| *ticket == report.ticket) else { continue };
            let (_, step) = self.pending.remove(at);
            let [terms, norm] = report.values.as_slice() else { return Err(Error::bug("a report of another kind")) };
            let (&[total, recon, kl, mse], &[grad_norm, flag, ..]) = (terms.as_slice(), norm.as_slice()) else {
                return Err(Error::bug("a report of another length"));
            };
            steps.push(StepReport { step, total, recon, kl, mse, grad_norm, finite: flag == 1.0 });
        }
        Ok(steps)
    }
}

/// Returns `count` values of standard normal noise; a shorter request returns the beginning of the same values.
pub(crate) fn noise(seed: u64, index: u64, count: usize) -> Vec<f32> {
    rng::normals(&mut rng::stream(seed, Stream::Noise, index), count)
}
