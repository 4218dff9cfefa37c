//! The priors that were fitted to a model, in files beside that of the model.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::app::io::run_config::quoted;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::{atomic, tensor_file};
use crate::error::{Error, Result};
use crate::vae::inference::Model;
use crate::vae::prior::{Mixture, Prior, SecondStage};
use crate::vae::tensor_file::TensorFile;

/// Entry of the metadata with the checksum of the weights that the prior was fitted to.
const MODEL: &str = "model";

/// What an [`Error::Checkpoint`] is about if a prior was fitted to other weights.
pub const FITTED_TO: &str = "weights that the prior was fitted to";

/// Kind of a fitted prior. Each has a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// [`Mixture`].
    Mixture,
    /// [`SecondStage`].
    SecondStage,
}

impl Kind {
    /// Returns the name of the file.
    #[must_use]
    pub const fn file(self) -> &'static str {
        match self {
            Self::Mixture => "prior.safetensors",
            Self::SecondStage => "second_stage.safetensors",
        }
    }

    /// Returns the command that fits a prior of this kind to a model in a file.
    #[must_use]
    pub fn command(self, model: &Path) -> String {
        let command = match self {
            Self::Mixture => "vae-wgpu fit-prior",
            Self::SecondStage => "vae-wgpu fit-prior --kind second-stage",
        };
        // A run stands for its best weights.
        let run = RunFolder::of_file(model).filter(|_| model.file_name() == Some(OsStr::new("model.safetensors")));
        format!("{command} {}", quoted(&run.as_deref().unwrap_or(model).to_string_lossy()))
    }
}

/// Returns the path of a model's prior: `prior.safetensors` for `model.safetensors`, `last.prior.safetensors` for `last.safetensors`.
#[must_use]
pub fn path(model: &Model, kind: Kind) -> PathBuf {
    match model.path.file_stem() {
        Some(stem) if stem != "model" => {
            let mut name = stem.to_owned();
            name.push(".");
            name.push(kind.file());
            model.path.with_file_name(name)
        }
        _ => model.path.with_file_name(kind.file()),
    }
}

/// Writes the prior of a model beside it and returns the path.
///
/// # Errors
/// [`Error::File`] if it cannot be written, [`Error::Bug`] for [`Prior::Normal`].
pub fn save(prior: &Prior, model: &Model) -> Result<PathBuf> {
    let (mut file, kind) = match prior {
        Prior::Normal(_) => return Err(Error::bug("N(0, I) was to be saved")),
        Prior::Mixture(mixture) => (mixture.to_file(), Kind::Mixture),
        Prior::SecondStage(second) => (second.to_file()?, Kind::SecondStage),
    };
    let path = path(model, kind);
    file.metadata.insert(MODEL.to_owned(), model.weights.checksum());
    atomic::create_parent(&path)?;
    tensor_file::save(&file, &path)?;
    Ok(path)
}

/// Reads the prior of a model, if one of this kind was fitted.
///
/// # Errors
/// [`Error::File`] if it cannot be read, [`Error::Checkpoint`] if it was fitted to other weights or has other tensors.
pub fn load(model: &Model, kind: Kind) -> Result<Option<Prior>> {
    let path = path(model, kind);
    if !path.exists() {
        return Ok(None);
    }
    let way_out = || format!("Fit it again with `{}`, or pass --prior normal", kind.command(&model.path));
    let file = tensor_file::load(&path).map_err(|error| error.with_way_out(way_out()))?;
    from_file(file, path, model, kind).map(Some)
}

/// Takes the prior of a model from a parsed file. `path` is used in messages.
///
/// # Errors
/// [`Error::Checkpoint`] if it was fitted to other weights or has other tensors.
pub fn from_file(file: TensorFile, path: PathBuf, model: &Model, kind: Kind) -> Result<Prior> {
    let (expected, found) = (model.weights.checksum(), file.metadata.get(MODEL).cloned().unwrap_or_default());
    if found != expected {
        return Err(Error::Checkpoint {
            path,
            what: FITTED_TO.to_owned(),
            expected,
            found,
            hint: format!("fit it again with `{}`, or pass --prior normal", kind.command(&model.path)),
        });
    }
    let (latent, classes) = (model.config.latent_dim, model.config.classes);
    Ok(match kind {
        Kind::Mixture => Prior::Mixture(Mixture::from_file(file, &path, latent)?),
        Kind::SecondStage => Prior::SecondStage(SecondStage::from_file(file, &path, latent, classes)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::io::run_config::RunConfig;
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
                epoch: None,
                classes: Vec::new(),
            }
        };
        let load = |model: &Model| load(model, Kind::Mixture);
        assert_eq!(load(&model(1)).unwrap(), None);
        let points: Vec<f32> = (0..40).map(|i| (i as f32 * 0.7).sin()).collect();
        let mixture = Mixture::fit(&points, 2, 2, 0, &mut |_, _| {}).unwrap();
        let prior = Prior::Mixture(mixture);
        assert_eq!(save(&prior, &model(1)).unwrap(), dir.path().join("prior.safetensors"));
        let Some(Prior::Mixture(found)) = load(&model(1)).unwrap() else { panic!("no mixture") };
        assert_eq!(found.components(), 2);
        assert_eq!(super::load(&model(1), Kind::SecondStage).unwrap(), None);
        let last = Model { path: dir.path().join("last.safetensors"), ..model(1) };
        assert_eq!(path(&last, Kind::Mixture), dir.path().join("last.prior.safetensors"));
        assert_eq!(load(&last).unwrap(), None);
        let error = load(&model(2)).unwrap_err().to_string();
        let command = format!("`vae-wgpu fit-prior {}`", dir.path().join("model.safetensors").display());
        assert!(error.contains(&command) && error.contains("--prior normal"), "{error}");
        let config = RunConfig::new(String::new(), Default::default(), ());
        std::fs::write(dir.path().join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
        let error = load(&model(2)).unwrap_err().to_string();
        assert!(error.contains(&format!("`vae-wgpu fit-prior {}`", dir.path().display())), "{error}");
    }
}
