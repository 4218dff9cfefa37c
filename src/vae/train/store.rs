//! Storage of the results of a run.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::vae::tensor_file::TensorFile;
use crate::vae::train::Settings;
use crate::vae::train::profile::Profile;
use crate::vae::train::rows::{EpochRow, StepRow};

/// Description of a run, for readers and for commands that use its model later.
#[derive(Clone, Copy, Debug)]
pub struct About<'a> {
    /// Device, driver and backend.
    pub device: &'a str,
    /// Variants in use, by kernel.
    pub kernels: &'a BTreeMap<String, String>,
    /// Settings of the run.
    pub settings: &'a Settings,
}

/// Rows of an earlier part of a run, up to its checkpoint.
#[derive(Debug, Default)]
pub struct Recorded {
    /// Rows of steps.
    pub steps: Vec<StepRow>,
    /// Rows of epochs.
    pub epochs: Vec<EpochRow>,
    /// Device that the earlier part ran on, if known.
    pub device: Option<String>,
}

/// Images as the model returns them: `[n, c, h, w]` with values from -1 to 1.
#[derive(Clone, Copy, Debug)]
pub struct DecodedImages<'a> {
    /// Values.
    pub values: &'a [f32],
    /// Channels, height and width.
    pub size: [usize; 3],
    /// Names of the rows of equal length that the images form; empty for no particular order.
    pub rows: &'a [String],
}

/// Whether a run is in progress, or how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState<'a> {
    /// The run is in progress.
    Running,
    /// All epochs have finished, or the run ended early because the validation loss no longer fell.
    Finished,
    /// The run was stopped.
    Interrupted,
    /// The run ended with this error.
    Failed(&'a str),
}

/// Storage of a run: rows, weights, checkpoints, images.
///
/// The trainer reports a failed write ([`Error::File`](crate::Error::File)) once and continues; a store keeps rows that it could not
/// write and writes them with the next row.
pub trait RunStore: fmt::Debug {
    /// Path of the run, for messages and for `--resume`.
    fn path(&self) -> &Path;

    /// Paths of the tables of steps and epochs, for messages.
    fn tables(&self) -> [PathBuf; 2];

    /// Path of the checkpoint, for messages.
    fn checkpoint(&self) -> PathBuf;

    /// Starts a new run. Replaces an earlier run, of which nothing was touched before.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if the store cannot be written.
    fn begin(&mut self, about: &About<'_>) -> Result<()>;

    /// Reads the checkpoint.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be read.
    fn load_checkpoint(&self) -> Result<TensorFile>;

    /// Opens the tables of an earlier part of the run and drops the rows after the checkpoint: those of steps after `step` and of epochs
    /// after `epoch`, both from 1.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if a table cannot be read or contains an invalid row.
    fn resume(&mut self, step: u64, epoch: u64) -> Result<Recorded>;

    /// Writes the description of the run.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written.
    fn save_about(&mut self, about: &About<'_>) -> Result<()>;

    /// Checks that the store still exists, and recreates it with these rows if it is gone. Returns whether it was recreated; then the
    /// trainer saves the description again.
    ///
    /// # Errors
    /// [`Error::RunFolderLost`](crate::Error::RunFolderLost) if another run has taken over the store.
    fn restore(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<bool>;

    /// Appends a row to the table of steps.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written now.
    fn push_step(&mut self, row: &StepRow) -> Result<()>;

    /// Appends a row to the table of epochs.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written now.
    fn push_epoch(&mut self, row: &EpochRow) -> Result<()>;

    /// Syncs the rows, before a checkpoint that counts on them is saved.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written or synced.
    fn sync_rows(&mut self) -> Result<()>;

    /// Replaces the checkpoint atomically.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written; the previous one remains.
    fn save_checkpoint(&mut self, file: TensorFile) -> Result<()>;

    /// Replaces the weights of the best epoch atomically.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written; the previous ones remain.
    fn save_model(&mut self, file: TensorFile) -> Result<()>;

    /// Replaces the weights of the last epoch, which is `epoch` (from 1), atomically.
    ///
    /// # Errors
    /// As [`RunStore::save_model`].
    fn save_last(&mut self, epoch: u64, file: TensorFile) -> Result<()>;

    /// Saves the images whose reconstructions follow: bytes, `[n, c, h, w]`.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written.
    fn save_originals(&mut self, pixels: &[u8], size: [usize; 3]) -> Result<()>;

    /// Saves the reconstructions after an epoch. `originals`: bytes as in [`RunStore::save_originals`].
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written.
    fn save_reconstructions(&mut self, epoch: u64, originals: &[u8], images: DecodedImages<'_>) -> Result<()>;

    /// Saves the samples after an epoch.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written.
    fn save_samples(&mut self, epoch: u64, images: DecodedImages<'_>) -> Result<()>;

    /// Returns whether [`RunStore::save_gradients`] has a use for gradients; reading them from the device takes time.
    fn keeps_gradients(&self) -> bool;

    /// Saves the gradients of the last step of an epoch, before clipping: the name of each parameter and its values.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written.
    fn save_gradients(&mut self, epoch: u64, gradients: &[(&str, &[f32])]) -> Result<()>;

    /// Draws the curves of the run.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if they cannot be written.
    fn save_plots(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<()>;

    /// Writes a report of the run so far.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written.
    fn save_report(&mut self, steps: &[StepRow], epochs: &[EpochRow], state: RunState<'_>) -> Result<()>;

    /// Writes the trace of a profiled step to a file.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written.
    fn save_trace(&mut self, profile: &Profile, path: &Path) -> Result<()>;
}
