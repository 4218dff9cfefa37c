//! The steps of an epoch.

use std::sync::Arc;
use std::time::Duration;

use web_time::Instant;

use super::events::Event;
use super::loader::Batch;
use super::rows::StepRow;
use super::shared_step::Share;
use super::{Outcome, Settings, Trainer, loader, shared_step};
use crate::error::{Error, Result};
use crate::runtime::sys::platform::block_on;
use crate::vae::runner::{Hyperparams, Runner, StepReport};

/// Number of steps on the device before the host waits for the oldest.
pub(super) const IN_FLIGHT: usize = 2;
/// Time after which a checkpoint is saved within an epoch.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

impl Trainer<'_> {
    /// Trains the steps of an epoch that are left. `steps` is the total number of steps of the run.
    pub(super) fn epoch(&mut self, epoch: u64, steps: u64) -> Result<Outcome> {
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
    pub(super) fn collect(&mut self, wait: bool) -> Result<()> {
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
                return Err(block_on(non_finite(&mut self.runner, &report))?);
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
}

/// Starts a step on the images of a batch.
pub(super) fn start_step(runner: &mut Runner, settings: &Settings, batch: &Batch, hyper: &Hyperparams) -> Result<()> {
    let images = (&batch.pixels, &batch.labels);
    match settings.accumulate {
        1 => runner.train_with_noise(images, &batch.eps, hyper)?,
        _ => runner.train_accumulated(images, &batch.eps, settings.batch_size, hyper)?,
    };
    Ok(())
}

/// Returns the error of a step that was not finite.
pub(super) async fn non_finite(runner: &mut Runner, report: &StepReport) -> Result<Error> {
    let computed = if report.total.is_finite() { "the global gradient norm" } else { "the loss" };
    let tensor = runner.first_non_finite_async().await?.unwrap_or_else(|| computed.to_owned());
    Ok(Error::NonFinite { tensor, step: report.step + 1 })
}
