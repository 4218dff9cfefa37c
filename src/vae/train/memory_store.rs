//! A run in memory.

use std::path::{Path, PathBuf};

use super::profile::Profile;
use super::rows::{EpochRow, StepRow};
use super::store::{About, DecodedImages, Recorded, RunState, RunStore};
use crate::error::{Error, Result};
use crate::vae::tensor_file::TensorFile;

/// A [`RunStore`] in memory: keeps rows, checkpoint and weights, and discards images, plots, reports and traces.
#[derive(Clone, Debug, Default)]
pub struct InMemoryRun {
    /// Rows of all steps.
    pub steps: Vec<StepRow>,
    /// Rows of all epochs.
    pub epochs: Vec<EpochRow>,
    /// Last checkpoint.
    pub checkpoint: Option<TensorFile>,
    /// Weights of the epoch with the best validation loss.
    pub model: Option<TensorFile>,
    /// Weights of the last epoch.
    pub last: Option<TensorFile>,
    /// Device of the run.
    pub device: Option<String>,
}

impl RunStore for InMemoryRun {
    fn path(&self) -> &Path {
        Path::new("(in memory)")
    }

    fn tables(&self) -> [PathBuf; 2] {
        ["rows of steps", "rows of epochs"].map(PathBuf::from)
    }

    fn checkpoint(&self) -> PathBuf {
        "checkpoint".into()
    }

    fn begin(&mut self, about: &About<'_>) -> Result<()> {
        *self = Self { device: Some(about.device.to_owned()), ..Self::default() };
        Ok(())
    }

    fn load_checkpoint(&self) -> Result<TensorFile> {
        self.checkpoint.clone().ok_or_else(|| Error::argument("the run to resume", "a run with a checkpoint", "none"))
    }

    fn resume(&mut self, step: u64, epoch: u64) -> Result<Recorded> {
        self.steps.retain(|row| row.step <= step);
        self.epochs.retain(|row| row.epoch <= epoch);
        Ok(Recorded { steps: self.steps.clone(), epochs: self.epochs.clone(), device: self.device.clone() })
    }

    fn save_about(&mut self, about: &About<'_>) -> Result<()> {
        self.device = Some(about.device.to_owned());
        Ok(())
    }

    fn restore(&mut self, _: &[StepRow], _: &[EpochRow]) -> Result<bool> {
        Ok(false)
    }

    fn push_step(&mut self, row: &StepRow) -> Result<()> {
        self.steps.push(*row);
        Ok(())
    }

    fn push_epoch(&mut self, row: &EpochRow) -> Result<()> {
        self.epochs.push(*row);
        Ok(())
    }

    fn sync_rows(&mut self) -> Result<()> {
        Ok(())
    }

    fn save_checkpoint(&mut self, file: TensorFile) -> Result<()> {
        self.checkpoint = Some(file);
        Ok(())
    }

    fn save_model(&mut self, file: TensorFile) -> Result<()> {
        self.model = Some(file);
        Ok(())
    }

    fn save_last(&mut self, _epoch: u64, file: TensorFile) -> Result<()> {
        self.last = Some(file);
        Ok(())
    }

    fn save_originals(&mut self, _: &[u8], _: [usize; 3]) -> Result<()> {
        Ok(())
    }

    fn save_reconstructions(&mut self, _: u64, _: &[u8], _: DecodedImages<'_>) -> Result<()> {
        Ok(())
    }

    fn save_samples(&mut self, _: u64, _: DecodedImages<'_>) -> Result<()> {
        Ok(())
    }

    fn keeps_gradients(&self) -> bool {
        false
    }

    fn save_gradients(&mut self, _: u64, _: &[(&str, &[f32])]) -> Result<()> {
        Ok(())
    }

    fn save_plots(&mut self, _: &[StepRow], _: &[EpochRow]) -> Result<()> {
        Ok(())
    }

    fn save_report(&mut self, _: &[StepRow], _: &[EpochRow], _: RunState<'_>) -> Result<()> {
        Ok(())
    }

    fn save_trace(&mut self, _: &Profile, _: &Path) -> Result<()> {
        Ok(())
    }
}
