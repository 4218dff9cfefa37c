//! Events of a training run.

use std::sync::Arc;

use serde_json::{Value, json};
use vae_wgpu::Error;
use vae_wgpu::vae::data::Images;
use vae_wgpu::vae::eval::{bits_per_dim, idle_dims};
use vae_wgpu::vae::runner::StepReport;
use vae_wgpu::vae::train::{EpochReport, Progress, Session};
use web_time::Instant;

use crate::data::DataSet;
use crate::fault::Fault;

/// A session with its data set, which the page may replace meanwhile. Counts images per second, and turns what the session did into events.
pub(crate) struct Training {
    pub(crate) session: Session,
    pub(crate) held_out: Arc<dyn Images>,
    /// Number of training images.
    images: usize,
    since: Instant,
}

impl Training {
    pub(crate) fn new(session: Session, data: &DataSet) -> Self {
        Self { session, held_out: Arc::clone(&data.held_out), images: data.train.len(), since: Instant::now() }
    }

    /// Leaves out the time until now, after a pause or other work.
    pub(crate) fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// Advances the session and returns the events. The last one is `finished` or `diverged` if the run has ended.
    pub(crate) async fn advance(&mut self) -> Result<Vec<Value>, Fault> {
        match self.session.advance().await {
            Ok(Progress::Steps(reports)) => Ok(self.steps(&reports)),
            Ok(Progress::Validating { .. }) => {
                self.restart();
                Ok(Vec::new())
            }
            Ok(Progress::Epoch(report)) => {
                self.restart();
                Ok(vec![epoch(&report)])
            }
            Ok(Progress::Finished) => {
                let (epochs, steps) = (self.session.settings().epochs, self.session.step());
                Ok(vec![json!({ "event": "finished", "epochs": epochs, "steps": steps })])
            }
            Err(error @ (Error::NonFinite { .. } | Error::NonFiniteOutput { .. })) => {
                let step = if let Error::NonFinite { step, .. } = error { step } else { self.session.step() };
                Ok(vec![json!({ "event": "diverged", "step": step, "message": error.to_string() })])
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the steps on the device and returns their events.
    pub(crate) async fn settle(&mut self) -> Result<Vec<Value>, Fault> {
        let reports = self.session.settle().await?;
        Ok(self.steps(&reports))
    }

    /// Returns the events of steps. Those that arrive together took the time since the previous ones.
    fn steps(&mut self, reports: &[StepReport]) -> Vec<Value> {
        if reports.is_empty() {
            return Vec::new();
        }
        let session = &self.session;
        let (per_epoch, batch) = (session.steps_per_epoch(), session.settings().batch_size);
        let images = |report: &StepReport| batch.min(self.images - (report.step % per_epoch) as usize * batch);
        let seconds = self.since.elapsed().as_secs_f64().max(1e-9);
        let speed = reports.iter().map(images).sum::<usize>() as f64 / seconds;
        let event = |report: &StepReport| {
            json!({
                "event": "step",
                "step": report.step + 1,
                "steps": session.steps(),
                "epoch": report.step / per_epoch + 1,
                "total": report.total,
                "recon": report.recon,
                "kl": report.kl,
                "mse": report.mse,
                "gradNorm": report.grad_norm,
                "bitsPerDim": bits_per_dim(f64::from(report.recon) + f64::from(report.kl)),
                "imagesPerSecond": speed,
            })
        };
        let events = reports.iter().map(event).collect();
        self.restart();
        events
    }
}

fn epoch(report: &EpochReport) -> Value {
    let validation = &report.validation;
    let (idle, latent) = (idle_dims(&validation.kl_dims), validation.kl_dims.len());
    let mut advice = Vec::new();
    if 4 * idle > latent {
        advice.push(format!(
            "{idle} of {latent} latent dimensions carry less than 0.1 nat: train longer, or use fewer latent dimensions"
        ));
    }
    json!({
        "event": "epoch",
        "epoch": report.epoch,
        "valTotal": validation.total,
        "valMse": validation.mse,
        "bitsPerDim": bits_per_dim(validation.recon + validation.kl),
        "activeDims": validation.active_units,
        "best": report.best,
        "advice": advice,
    })
}
