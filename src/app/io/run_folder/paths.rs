//! The files of a run and their paths.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::RunFolder;
use crate::app::io::prior;

/// Name of the file with the weights of the last epoch.
const LAST: &str = "last.safetensors";

/// Name of the file with the options that repeat the run.
const REPEAT: &str = "train.toml";

/// The files of a run, in the order of removal when a run is overwritten: first those that allow a resume.
pub(super) const FILES: [&str; 15] = [
    "checkpoint.safetensors",
    "model.safetensors",
    LAST,
    prior::Kind::Mixture.file(),
    prior::Kind::SecondStage.file(),
    "config.json",
    REPEAT,
    "metrics.csv",
    "epochs.csv",
    "reconstruction_history.png",
    "training_loss.png",
    "grad_norm.png",
    "learning_rate.png",
    "data_preview.png",
    "report.html",
];
/// Folders of a run with one image per epoch.
pub(super) const SAMPLES: &str = "samples";
pub(super) const RECONSTRUCTIONS: &str = "reconstructions";
/// Folder with the weights of some epochs.
pub(super) const WEIGHTS: &str = "weights";
/// Folder with event files.
pub(super) const TENSORBOARD: &str = "tensorboard";
/// Name of the file with the originals, in the folder of reconstructions.
const ORIGINALS: &str = "originals.png";

impl RunFolder {
    /// Path of the folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// `config.json`.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// `train.toml`: the options that repeat the run.
    #[must_use]
    pub fn repeat(&self) -> PathBuf {
        self.path.join(REPEAT)
    }

    /// `metrics.csv`: one row per step.
    #[must_use]
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.csv")
    }

    /// `epochs.csv`: one row per epoch.
    #[must_use]
    pub fn epochs(&self) -> PathBuf {
        self.path.join("epochs.csv")
    }

    /// `model.safetensors`: the weights with the best validation loss.
    #[must_use]
    pub fn model(&self) -> PathBuf {
        self.path.join("model.safetensors")
    }

    /// `last.safetensors`: the weights of the last epoch.
    #[must_use]
    pub fn last(&self) -> PathBuf {
        self.path.join(LAST)
    }

    /// `weights/epoch_NN.safetensors`: the weights after an epoch.
    #[must_use]
    pub fn weights(&self, epoch: u64) -> PathBuf {
        self.path.join(WEIGHTS).join(format!("epoch_{epoch:02}.safetensors"))
    }

    /// `checkpoint.safetensors`: the complete state of the run.
    #[must_use]
    pub fn checkpoint(&self) -> PathBuf {
        self.path.join("checkpoint.safetensors")
    }

    /// `reconstruction_history.png`: see [`RunFolder::save_reconstructions`].
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.path.join("reconstruction_history.png")
    }

    /// `training_loss.png`.
    #[must_use]
    pub fn training_loss(&self) -> PathBuf {
        self.path.join("training_loss.png")
    }

    /// `grad_norm.png`.
    #[must_use]
    pub fn grad_norm(&self) -> PathBuf {
        self.path.join("grad_norm.png")
    }

    /// `learning_rate.png`.
    #[must_use]
    pub fn learning_rate(&self) -> PathBuf {
        self.path.join("learning_rate.png")
    }

    /// `data_preview.png`: the first images of a folder as the model gets them.
    #[must_use]
    pub fn data_preview(&self) -> PathBuf {
        self.path.join("data_preview.png")
    }

    /// `report.html`: figures, curves, images and settings of the run on one page.
    #[must_use]
    pub fn report(&self) -> PathBuf {
        self.path.join("report.html")
    }

    /// `samples/epoch_NN.png`: samples from fixed noise.
    #[must_use]
    pub fn samples(&self, epoch: u64) -> PathBuf {
        self.path.join(SAMPLES).join(format!("epoch_{epoch:02}.png"))
    }

    /// `reconstructions/originals.png`: the images that are reconstructed after each epoch.
    #[must_use]
    pub fn originals(&self) -> PathBuf {
        self.path.join(RECONSTRUCTIONS).join(ORIGINALS)
    }

    /// `reconstructions/epoch_NN.png`: the originals with their reconstructions.
    #[must_use]
    pub fn reconstructions(&self, epoch: u64) -> PathBuf {
        self.path.join(RECONSTRUCTIONS).join(format!("epoch_{epoch:02}.png"))
    }

    /// `tensorboard`: the folder of the event files.
    #[must_use]
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join(TENSORBOARD)
    }

    /// Returns the name of the run: that of its folder.
    #[must_use]
    pub fn name(&self) -> String {
        let whole = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        whole.file_name().unwrap_or(whole.as_os_str()).to_string_lossy().into_owned()
    }
}

/// Returns whether a file is called `originals.png`, or `epoch_NN` with an extension.
pub(super) fn is_of_an_epoch(name: &OsStr) -> bool {
    let number = |name: &str| Some(name.strip_prefix("epoch_")?.split_once('.')?.0.to_owned());
    let number = name.to_str().and_then(number);
    name == ORIGINALS || number.is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}
