//! Events of a training run, and who receives them.

use std::path::Path;

use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::vae::train::profile::Summary;
use crate::vae::train::rows::{EpochRow, StepRow};

/// Event of a run. As JSON it is one object, whose `event` is the variant's name in lower case. Values that are not
/// finite become `null`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The run starts or resumes.
    Started(Start<'a>),
    /// A training step is finished.
    Step(&'a StepRow),
    /// An epoch is trained and validated.
    Epoch {
        /// Results of the epoch.
        #[serde(flatten)]
        row: &'a EpochRow,
        /// Whether its validation loss is the best so far.
        best: bool,
    },
    /// A problem that does not end the run.
    Warning {
        /// One sentence.
        message: &'a str,
    },
    /// A training step was timed on the device.
    Profile(&'a Summary),
    /// All epochs are finished.
    Finished {
        /// Epochs of the whole run.
        epochs: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Duration of this part of the run in seconds.
        seconds: f64,
        /// Best validation loss.
        best: Option<f64>,
        /// Path of the run.
        #[serde(serialize_with = "lossy")]
        run: &'a Path,
    },
    /// The run was stopped and saved.
    Interrupted {
        /// Index of the next step.
        step: u64,
        /// Path for `--resume`.
        #[serde(serialize_with = "lossy")]
        run: &'a Path,
    },
}

/// Serializes a path as text, with replacement characters for invalid UTF-8.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// Properties of a run at its start.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start<'a> {
    /// Path of the run.
    #[serde(serialize_with = "lossy")]
    pub run: &'a Path,
    /// Adapter, driver and backend.
    pub device: &'a str,
    /// Description of the model in one line.
    pub model: &'a str,
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Number of training images.
    pub images: usize,
    /// Images per step.
    pub batch_size: usize,
    /// Epochs of the whole run.
    pub epochs: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Index of the first step of this part: 0, or where the run resumes.
    pub first_step: u64,
}

/// Receives the events of a run.
pub trait Observer {
    /// Receives an event.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written. A broken pipe is not an error.
    fn observe(&mut self, event: &Event<'_>) -> Result<()>;
}

/// Ignores all events.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Observer for Quiet {
    fn observe(&mut self, _: &Event<'_>) -> Result<()> {
        Ok(())
    }
}
