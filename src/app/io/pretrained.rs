//! The pretrained model, which is part of the program: `docs/pretrained.md` describes it, `scripts/pretrained.sh` makes its files.

use std::path::{Path, PathBuf};

use crate::app::io::prior;
use crate::error::Result;
use crate::vae::inference::Model;
use crate::vae::prior::Prior;
use crate::vae::tensor_file::TensorFile;

/// Name that stands for the pretrained model in place of a run, and for its files in messages.
pub const NAME: &str = "pretrained";

const MODEL: &[u8] = include_bytes!("../../../assets/pretrained/model.safetensors");
const PRIOR: &[u8] = include_bytes!("../../../assets/pretrained/prior.safetensors");

/// Returns its weights as a file, and [`NAME`] as the path of the file.
///
/// # Errors
/// As [`TensorFile::from_bytes`].
pub fn weights() -> Result<(TensorFile, PathBuf)> {
    Ok((TensorFile::from_bytes(MODEL, Path::new(NAME))?, NAME.into()))
}

/// Returns the mixture that was fitted to it. `model` is what was read from [`weights`].
///
/// # Errors
/// As [`prior::from_file`].
pub fn mixture(model: &Model) -> Result<Prior> {
    prior::from_file(TensorFile::from_bytes(PRIOR, Path::new(NAME))?, NAME.into(), model, prior::Kind::Mixture)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::Likelihood;
    use crate::vae::model::{Head, Mode, VaeConfig};

    /// `docs/pretrained.md` states these sizes.
    #[test]
    fn pretrained_model_has_the_sizes_of_its_card_and_a_prior() {
        let (file, path) = weights().unwrap();
        let model = Model::from_file(file, path).unwrap();
        let expected = VaeConfig { channels: 16, latent_dim: 64, head: Head::Pool, ..VaeConfig::default() };
        assert_eq!((model.config, model.config.likelihood), (expected, Likelihood::Optimal));
        assert_eq!(model.config.graph(1, Mode::Encode).unwrap().parameter_count(), 565_763);
        assert!(model.kl_dims.is_some(), "traverse sorts the dimensions by them");
        let Prior::Mixture(mixture) = mixture(&model).unwrap() else { panic!("another prior") };
        assert_eq!((mixture.components(), mixture.dims()), (10, 64));
        let bytes: usize = [MODEL, PRIOR].iter().map(|file| file.len()).sum();
        assert!(bytes <= 2_000_000, "{bytes} bytes");
    }
}
