//! `prior.safetensors`: the prior that was fitted to a model, beside the file of the model.

use std::path::{Path, PathBuf};

use crate::app::io::{atomic, tensor_file};
use crate::error::{Error, Result};
use crate::vae::inference::Model;
use crate::vae::prior::Mixture;

/// Name of the file.
pub const FILE: &str = "prior.safetensors";
/// Entry of the metadata with the checksum of the weights that the prior was fitted to.
const MODEL: &str = "model";

/// Returns the path of a model's prior.
#[must_use]
pub fn path(model: &Model) -> PathBuf {
    model.path.with_file_name(FILE)
}

/// Writes the prior of a model beside it and returns the path.
///
/// # Errors
/// [`Error::File`] if it cannot be written.
pub fn save(mixture: &Mixture, model: &Model) -> Result<PathBuf> {
    let path = path(model);
    let mut file = mixture.to_file();
    file.metadata.insert(MODEL.to_owned(), model.weights.checksum());
    atomic::create_parent(&path)?;
    tensor_file::save(&file, &path)?;
    Ok(path)
}

/// Reads the prior of a model, if one was fitted.
///
/// # Errors
/// [`Error::File`] if it cannot be read, [`Error::Checkpoint`] if it was fitted to other weights or has other tensors.
pub fn load(model: &Model) -> Result<Option<Mixture>> {
    let path = path(model);
    if !path.exists() {
        return Ok(None);
    }
    let file = tensor_file::load(&path)?;
    let (expected, found) = (model.weights.checksum(), file.metadata.get(MODEL).cloned().unwrap_or_default());
    if found != expected {
        return Err(other_weights(&path, expected, found));
    }
    Mixture::from_file(file, &path, model.config.latent_dim).map(Some)
}

fn other_weights(path: &Path, expected: String, found: String) -> Error {
    Error::Checkpoint {
        path: path.to_owned(),
        what: "weights that the prior was fitted to".to_owned(),
        expected,
        found,
        hint: "fit it again with `vae-wgpu fit-prior`, or pass --prior normal".to_owned(),
    }
}
