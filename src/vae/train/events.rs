//! Events of a training run, and who receives them.

use std::path::Path;

use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::vae::train::profile::Summary;
use crate::vae::train::rows::{EpochRow, StepRow};

/// Something that happened in a run. As JSON it is one object, whose `event` is the variant's name in lower case; numbers that are not
/// finite become `null`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The run begins or goes on.
    Started(Start<'a>),
    /// A training step was reported.
    Step(&'a StepRow),
    /// An epoch was trained and validated.
    Epoch {
        /// What it gave.
        #[serde(flatten)]
        row: &'a EpochRow,
        /// Whether its validation loss is the best so far.
        best: bool,
    },
    /// Something that the user should know and the run survives.
    Warning {
        /// One sentence.
        message: &'a str,
    },
    /// A training step was timed on the device.
    Profile(&'a Summary),
    /// All epochs are done.
    Finished {
        /// Epochs of the whole run.
        epochs: u64,
        /// Steps of the whole run.
        steps: u64,
        /// Time of this part of the run.
        seconds: f64,
        /// Best validation loss.
        best: Option<f64>,
        /// Where everything lies.
        #[serde(serialize_with = "lossy")]
        run: &'a Path,
    },
    /// The run was stopped and saved.
    Interrupted {
        /// Number of the next step.
        step: u64,
        /// What `--resume` wants.
        #[serde(serialize_with = "lossy")]
        run: &'a Path,
    },
}

/// A path as text, whatever its bytes are.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// What is known when a run starts.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start<'a> {
    /// Where everything will lie.
    #[serde(serialize_with = "lossy")]
    pub run: &'a Path,
    /// Adapter, driver and backend.
    pub device: &'a str,
    /// The model in a few words.
    pub model: &'a str,
    /// Learned numbers.
    pub parameters: usize,
    /// Training images.
    pub images: usize,
    /// Images a step.
    pub batch_size: usize,
    /// Epochs of the whole run.
    pub epochs: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// Number of the first step of this part: 0, or where it goes on.
    pub first_step: u64,
}

/// Looks on while a run trains.
pub trait Observer {
    /// Takes notice of an event.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written. A broken pipe is not an error.
    fn observe(&mut self, event: &Event<'_>) -> Result<()>;
}

/// Says nothing.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Observer for Quiet {
    fn observe(&mut self, _: &Event<'_>) -> Result<()> {
        Ok(())
    }
}
