//! Events of a training run and their observer.

use std::path::Path;

use serde::{Serialize, Serializer};

use crate::error::Result;
use crate::vae::train::Settings;
use crate::vae::train::profile::Summary;
use crate::vae::train::rows::{EpochRow, StepRow};
use crate::vae::train::store::DecodedImages;

/// An event of a run. Its JSON form is one object whose field `event` is the name of the variant in lower case. Values that are not
/// finite become `null`.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Event<'a> {
    /// The run starts or resumes.
    Started(Start<'a>),
    /// A training step has finished.
    Step(&'a StepRow),
    /// An epoch has been trained and validated.
    Epoch {
        /// Results of the epoch.
        #[serde(flatten)]
        row: &'a EpochRow,
        /// What to try where the results are poor.
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        advice: &'a [String],
        /// Seconds of communication between ranks since the run was started or resumed; on one there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        communication_s: Option<f64>,
    },
    /// A problem that does not end the run.
    Warning {
        /// Description of the problem.
        message: &'a str,
    },
    /// A training step has been profiled.
    Profile(&'a Summary),
    /// All epochs have finished.
    Finished {
        /// Total number of epochs.
        epochs: u64,
        /// Total number of steps.
        steps: u64,
        /// Duration since the run was started or resumed, in seconds.
        seconds: f64,
        /// Best validation loss.
        best: Option<f64>,
        /// Its epoch, whose weights are the model of the run.
        best_epoch: Option<u64>,
        /// Seconds of communication between ranks, of these; on one there is none.
        #[serde(skip_serializing_if = "Option::is_none")]
        communication_s: Option<f64>,
        /// Path of the run.
        #[serde(serialize_with = "lossy")]
        run: &'a Path,
    },
    /// The run has been stopped and its checkpoint saved.
    Interrupted {
        /// Number of steps that are done.
        step: u64,
        /// Path of the run, for `--resume`.
        #[serde(serialize_with = "lossy")]
        run: &'a Path,
    },
}

fn is_single(ranks: &usize) -> bool {
    *ranks == 1
}

/// Serializes a path as text; bytes that are not UTF-8 become U+FFFD.
fn lossy<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(&path.to_string_lossy())
}

/// Description of a run at its start.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Start<'a> {
    /// Path of the run.
    #[serde(serialize_with = "lossy")]
    pub run: &'a Path,
    /// Adapter, driver and backend.
    pub device: &'a str,
    /// Summary of the model.
    pub model: &'a str,
    /// Number of trainable parameters.
    pub parameters: usize,
    /// Number of training images.
    pub images: usize,
    /// Number of validation images.
    pub validation_images: usize,
    /// Images of a forward and backward pass.
    pub batch_size: usize,
    /// Number of these in a step.
    pub accumulate: usize,
    /// Number of ranks that share them.
    #[serde(skip_serializing_if = "is_single")]
    pub ranks: usize,
    /// Total number of epochs.
    pub epochs: u64,
    /// Total number of steps.
    pub steps: u64,
    /// Number of the first step: 1, or the next step of a resumed run.
    pub first_step: u64,
    /// Whether the device computes on the CPU.
    pub software: bool,
    /// Device memory of a training step in bytes; the CPU reference does not plan it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Settings of the run.
    pub settings: &'a Settings,
}

/// Receives the events of a run.
pub trait Observer {
    /// Handles an event. The first [`Error::File`](crate::Error::File) is returned when the run has ended and is saved; any other error
    /// ends the run.
    ///
    /// # Errors
    /// [`Error::File`](crate::Error::File) if it cannot be written. A broken pipe is not an error.
    fn observe(&mut self, event: &Event<'_>) -> Result<()>;

    /// Called between steps with what the run waits for, such as `validating 3/40`, so that a display need not stand still.
    fn waiting(&mut self, _what: &str) {}

    /// Called with images of the run: before the first step (epoch 0) those whose reconstructions follow, and after each epoch these
    /// reconstructions, and samples.
    ///
    /// # Errors
    /// As [`Observer::observe`].
    fn images(&mut self, _epoch: u64, _what: &str, _images: DecodedImages<'_>) -> Result<()> {
        Ok(())
    }
}

/// Ignores all events.
#[derive(Clone, Copy, Debug)]
pub struct Quiet;

impl Observer for Quiet {
    fn observe(&mut self, _: &Event<'_>) -> Result<()> {
        Ok(())
    }
}
