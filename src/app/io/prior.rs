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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::graph::{Arena, initial};
    use crate::vae::model::{Mode, VaeConfig};
    use crate::vae::weights::Weights;

    #[test]
    fn a_prior_of_other_weights_is_rejected() {
        let dir = tempfile::tempdir().unwrap();
        let config = VaeConfig { channels: 2, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
        let graph = config.graph(1, Mode::Encode).unwrap();
        let model = |seed| {
            let [params, states] = [Arena::Params, Arena::States].map(|arena| initial(&graph, arena, seed).unwrap());
            Model {
                path: dir.path().join("model.safetensors"),
                config,
                weights: Weights { params, states },
                kl_dims: None,
                classes: Vec::new(),
            }
        };
        assert_eq!(load(&model(1)).unwrap(), None);
        let points: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let mixture = Mixture::fit(&points, 2, 2, 0, &mut |_, _| {}).unwrap();
        assert_eq!(save(&mixture, &model(1)).unwrap(), dir.path().join(FILE));
        assert_eq!(load(&model(1)).unwrap().unwrap().components(), 2);
        let error = load(&model(2)).unwrap_err().to_string();
        assert!(error.contains("fit-prior") && error.contains("--prior normal"), "{error}");
    }
}
