//! Trained models: in run folders, in files, and the one that is part of the program.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::app::io::prior::Kind;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::{pretrained, prior, tensor_file};
use crate::error::{Error, Result};
use crate::vae::inference::Model;
use crate::vae::prior::Prior;
use crate::vae::tensor_file::TensorFile;

/// Where a trained model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the program.
    Pretrained,
    /// In a run folder, or in a file.
    Path(PathBuf),
}

impl Origin {
    /// Returns the path of the run folder if it is in one.
    #[must_use]
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Path(path) if path.is_dir() => Some(path),
            _ => None,
        }
    }

    /// Returns the run folder that it is in, or that it is.
    #[must_use]
    pub fn run_folder(&self) -> Option<PathBuf> {
        match self {
            Self::Path(path) if path.is_dir() => Some(path.clone()),
            Self::Path(path) => RunFolder::of_file(path),
            Self::Pretrained => None,
        }
    }

    /// Reads the file with the weights. Returns it with its path, for messages.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, [`Error::Checkpoint`] for other values than floats.
    pub fn weights(&self) -> Result<(TensorFile, PathBuf)> {
        match self {
            Self::Pretrained => pretrained::weights(),
            Self::Path(path) => {
                let path = weights_file(path)?;
                Ok((tensor_file::load(&path)?, path))
            }
        }
    }

    /// Loads the model.
    ///
    /// # Errors
    /// As [`Origin::weights`] and [`Model::from_file`].
    pub fn load(&self) -> Result<Model> {
        let (file, path) = self.weights()?;
        Model::from_file(file, path)
    }

    /// Returns the prior that was fitted to `model`, which was loaded from here, if there is one of this kind.
    ///
    /// # Errors
    /// As [`prior::load`].
    pub fn prior(&self, model: &Model, kind: Kind) -> Result<Option<Prior>> {
        match (self, kind) {
            (Self::Pretrained, Kind::Mixture) => pretrained::mixture(model).map(Some),
            (Self::Pretrained, Kind::SecondStage) => Ok(None),
            (Self::Path(_), _) => prior::load(model, kind),
        }
    }
}

/// Loads the `model.safetensors` of a run folder, any such file, or a checkpoint.
///
/// # Errors
/// [`Error::File`] if it cannot be read, and the errors of [`Model::from_file`].
pub fn load(run_or_file: &Path) -> Result<Model> {
    Origin::Path(run_or_file.to_owned()).load()
}

/// Returns the path of the weights of a run folder, which must have some, or the path of a file as it is.
fn weights_file(run_or_file: &Path) -> Result<PathBuf> {
    // What does not look like a file of weights was meant as a run.
    let is_run = || !run_or_file.exists() && run_or_file.extension().is_none();
    if !run_or_file.is_dir() && !is_run() {
        return Ok(run_or_file.to_owned());
    }
    let run = RunFolder::view(run_or_file)?;
    let path = run.model();
    if let Err(error) = fs::metadata(&path)
        && error.kind() == ErrorKind::NotFound
    {
        let (last, checkpoint) = (run.last(), run.checkpoint());
        // Written together with the best weights.
        let why = if last.exists() {
            format!("the file was removed. Pass {} for the weights of the last epoch", last.display())
        } else if checkpoint.exists() {
            format!(
                "the run has no weights before its first epoch ends. Continue it with --resume, or pass {} for the weights so far",
                checkpoint.display()
            )
        } else {
            "the run has no weights before its first epoch ends".to_owned()
        };
        return Err(Error::file("find", &path)(io::Error::new(ErrorKind::NotFound, why)));
    }
    Ok(path)
}
