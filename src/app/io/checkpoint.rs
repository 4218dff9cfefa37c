//! Weights and checkpoints as safetensors files, with PyTorch's names and shapes.
//!
//! Names, shapes, types and values are all checked before anything is returned, so a partly valid file never reaches a device.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;

use crate::app::io::tensor_file::TensorFile;
use crate::app::io::{atomic, tensor_file};
use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Tensor};

/// Version of the checkpoint format.
const FORMAT: u32 = 1;
/// Prefixes of Adam's moments in a checkpoint.
const MOMENTS: [&str; 2] = ["adam.m/", "adam.v/"];

/// Names and shapes of the tensors of a model.
#[derive(Clone, Copy, Debug)]
pub struct TensorSchema<'a> {
    /// Weights and biases.
    pub params: &'a [Tensor],
    /// Running statistics.
    pub states: &'a [Tensor],
}

impl<'a> TensorSchema<'a> {
    /// Returns the schema of a graph.
    #[must_use]
    pub fn of(graph: &'a Graph) -> Self {
        Self { params: graph.params(), states: graph.states() }
    }

    fn of_weights(&self) -> Vec<(String, Vec<usize>)> {
        self.params.iter().chain(self.states).map(|t| (t.name.clone(), t.spec.torch_dims())).collect()
    }

    fn of_moments(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        MOMENTS.iter().flat_map(|m| self.params.iter().map(move |t| (format!("{m}{}", t.name), t.spec.torch_dims())))
    }
}

/// Model weights: the content of `model.safetensors`. Every tensor is in PyTorch's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// Values of each parameter.
    pub params: Vec<Vec<f32>>,
    /// Values of each running statistic.
    pub states: Vec<Vec<f32>>,
}

impl Weights {
    /// Writes the weights atomically, for PyTorch's `safetensors.torch.load_file` and `load_state_dict(strict=True)`. `config` is the
    /// configuration of the model as JSON, stored in the metadata as `config`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the tensors do not match the schema, [`Error::Checkpoint`] for NaN or infinity, [`Error::File`] if the
    /// file cannot be written.
    pub fn save(&self, path: &Path, schema: TensorSchema<'_>, config: &str) -> Result<()> {
        let metadata = [("config", config.to_owned())];
        save(path, metadata, &schema.of_weights(), self.params.iter().chain(&self.states))
    }

    /// Reads the weights from a file.
    ///
    /// # Errors
    /// As [`TensorFile::load`] and [`Weights::from_file`].
    pub fn load(path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        Self::from_file(TensorFile::load(path)?, path, schema)
    }

    /// Extracts the weights from a decoded file, ignoring the moments in a checkpoint. `path` is used in errors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] with the missing, unexpected and misshapen tensors.
    pub fn from_file(mut file: TensorFile, path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        file.tensors.retain(|name, _| !MOMENTS.iter().any(|m| name.starts_with(m)));
        let mut params = file.take(path, &schema.of_weights())?;
        let states = params.split_off(schema.params.len());
        Ok(Self { params, states })
    }

    /// Returns the tensors of [`Arena::Params`] or [`Arena::States`].
    ///
    /// # Errors
    /// [`Error::Bug`] for another arena.
    pub fn arena(&self, arena: Arena) -> Result<&[Vec<f32>]> {
        match arena {
            Arena::Params => Ok(&self.params),
            Arena::States => Ok(&self.states),
            _ => Err(Error::bug(format!("{arena} are not weights"))),
        }
    }
}

/// Progress of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Index of the next step, from 0.
    pub step: u64,
    /// Number of finished epochs.
    pub epoch: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Settings of the run as JSON.
    pub settings: String,
    /// Best validation loss so far.
    pub best: Option<f64>,
    /// [`Dataset::fingerprint`](crate::vae::data::Dataset::fingerprint) of the training data; `None` in checkpoints of early versions.
    pub data: Option<String>,
}

/// The complete state of a run, for a bit-identical resume: the content of `checkpoint.safetensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Progress of the run.
    pub progress: Progress,
    /// Parameters and running statistics.
    pub weights: Weights,
    /// Adam's first moment of each parameter.
    pub moment1: Vec<Vec<f32>>,
    /// Adam's second moment of each parameter.
    pub moment2: Vec<Vec<f32>>,
}

impl Checkpoint {
    /// Writes the checkpoint atomically.
    ///
    /// # Errors
    /// As [`Weights::save`].
    pub fn save(&self, path: &Path, schema: TensorSchema<'_>) -> Result<()> {
        let Progress { step, epoch, seed, settings, best, data } = &self.progress;
        let mut metadata = vec![
            ("checkpoint", FORMAT.to_string()),
            ("step", step.to_string()),
            ("epoch", epoch.to_string()),
            ("seed", seed.to_string()),
            ("settings", settings.clone()),
        ];
        metadata.extend(best.map(|best| ("best", best.to_string())));
        metadata.extend(data.clone().map(|data| ("data", data)));
        let Weights { params, states } = &self.weights;
        let wanted: Vec<_> = schema.of_weights().into_iter().chain(schema.of_moments()).collect();
        let tensors = params.iter().chain(states).chain(&self.moment1).chain(&self.moment2);
        save(path, metadata, &wanted, tensors)
    }

    /// Reads a checkpoint from a file.
    ///
    /// # Errors
    /// As [`TensorFile::load`], [`Progress::of`] and [`Weights::from_file`].
    pub fn load(path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        Self::from_file(TensorFile::load(path)?, path, schema)
    }

    /// Extracts a checkpoint from a decoded file; `path` is used in errors.
    ///
    /// # Errors
    /// As [`Progress::of`] and [`Weights::from_file`].
    pub fn from_file(file: TensorFile, path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        let progress = Progress::of(&file, path)?;
        let wanted: Vec<_> = schema.of_weights().into_iter().chain(schema.of_moments()).collect();
        let mut params = file.take(path, &wanted)?;
        let mut states = params.split_off(schema.params.len());
        let mut moment1 = states.split_off(schema.states.len());
        let moment2 = moment1.split_off(schema.params.len());
        Ok(Self { progress, weights: Weights { params, states }, moment1, moment2 })
    }
}

impl Progress {
    /// Reads the progress from the metadata of a checkpoint, without its model; `path` is used in errors.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] for a file that is not a checkpoint or has another format, and for malformed fields.
    pub fn of(file: &TensorFile, path: &Path) -> Result<Self> {
        let error = |what: &str, expected: String, found: Option<&String>, hint: &str| Error::Checkpoint {
            path: path.to_owned(),
            what: what.to_owned(),
            expected,
            found: found.map_or("nothing".to_owned(), |found| format!("`{found}`")),
            hint: hint.to_owned(),
        };
        let found = file.metadata.get("checkpoint");
        if found != Some(&FORMAT.to_string()) {
            let hint = match found {
                Some(_) => "the checkpoint was written by another version of vae-wgpu",
                None => "only checkpoint.safetensors can be resumed; start from weights with --init",
            };
            return Err(error("checkpoint format", format!("{FORMAT}"), found, hint));
        }
        fn field<T: FromStr>(
            file: &TensorFile,
            key: &str,
            error: impl Fn(&str, String, Option<&String>, &str) -> Error,
        ) -> Result<T> {
            let found = file.metadata.get(key);
            let parsed = found.and_then(|text| text.parse().ok());
            parsed.ok_or_else(|| {
                error(key, "a number".to_owned(), found, "the file was modified: use another checkpoint")
            })
        }
        let best = match file.metadata.get("best") {
            None => None,
            Some(_) => Some(field(file, "best", error)?),
        };
        if best.is_some_and(|best: f64| !best.is_finite()) {
            let hint = "the file was modified: use another checkpoint";
            return Err(error("best", "a finite number".to_owned(), file.metadata.get("best"), hint));
        }
        let settings = file.metadata.get("settings").cloned().unwrap_or_default();
        Ok(Self {
            step: field(file, "step", error)?,
            epoch: field(file, "epoch", error)?,
            seed: field(file, "seed", error)?,
            settings,
            best,
            data: file.metadata.get("data").cloned(),
        })
    }
}

/// Encodes tensors with their names and shapes.
fn encode<'a>(
    path: &Path,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
    wanted: &[(String, Vec<usize>)],
    tensors: impl Iterator<Item = &'a Vec<f32>>,
) -> Result<Vec<u8>> {
    let mut metadata: BTreeMap<_, _> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    metadata.insert("format".into(), "pt".into());
    metadata.insert("version".into(), concat!("vae-wgpu ", env!("CARGO_PKG_VERSION")).into());
    let tensors: Vec<&[f32]> = tensors.map(Vec::as_slice).collect();
    if tensors.len() != wanted.len() {
        return Err(Error::argument("number of tensors", wanted.len(), tensors.len()));
    }
    let arrays = wanted.iter().zip(tensors).map(|((name, dims), data)| (name.as_str(), (dims.as_slice(), data)));
    tensor_file::encode(&metadata, &arrays.collect(), path)
}

/// Writes tensors with their names and shapes, atomically.
fn save<'a>(
    path: &Path,
    metadata: impl IntoIterator<Item = (&'static str, String)>,
    wanted: &[(String, Vec<usize>)],
    tensors: impl Iterator<Item = &'a Vec<f32>>,
) -> Result<()> {
    atomic::save_atomic(path, &encode(path, metadata, wanted, tensors)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::Init;
    use crate::runtime::tensor::shape::{Shape, Spec};
    use std::fs;

    fn tensor(name: &str, spec: Spec) -> Tensor {
        Tensor { name: name.to_owned(), spec, init: Init::Constant(0.0), offset: 0 }
    }

    fn params() -> Vec<Tensor> {
        vec![
            tensor("stem.weight", Spec::conv_weight(4, 3, 3, 3)),
            tensor("stem.bias", Spec::vector(4)),
            tensor("fc.weight", Spec::linear_weight(Shape::vector(4), Shape::vector(6))),
        ]
    }

    fn states() -> Vec<Tensor> {
        vec![tensor("norm.running_mean", Spec::vector(4)), tensor("norm.running_var", Spec::vector(4))]
    }

    fn numbers(tensors: &[Tensor], first: f32) -> Vec<Vec<f32>> {
        tensors.iter().map(|t| (0..t.spec.len()).map(|i| first + i as f32).collect()).collect()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            progress: Progress {
                step: u64::MAX,
                epoch: 3,
                seed: 1 << 63,
                settings: "{\"lr\":0.01}".into(),
                best: Some(0.1 + 0.2),
                data: Some("8 and 4 images".into()),
            },
            weights: Weights { params: numbers(&params(), 0.5), states: numbers(&states(), 7.0) },
            moment1: numbers(&params(), -3.25),
            moment2: numbers(&params(), 1e-30),
        }
    }

    #[test]
    fn weights_and_checkpoints_round_trip_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let (params, states) = (params(), states());
        let schema = TensorSchema { params: &params, states: &states };
        let path = dir.path().join("checkpoint.safetensors");
        for best in [None, Some(0.1 + 0.2), Some(f64::MIN_POSITIVE)] {
            let mut checkpoint = checkpoint();
            checkpoint.progress.best = best;
            checkpoint.save(&path, schema).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert_eq!(Checkpoint::load(&path, schema).unwrap(), checkpoint);
            checkpoint.save(&path, schema).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            // A checkpoint can be loaded as weights.
            assert_eq!(Weights::load(&path, schema).unwrap(), checkpoint.weights);
        }
        let path = dir.path().join("model.safetensors");
        checkpoint().weights.save(&path, schema, "{}").unwrap();
        assert_eq!(Weights::load(&path, schema).unwrap(), checkpoint().weights);
        let file = TensorFile::load(&path).unwrap();
        assert_eq!(file.metadata["config"], "{}");
        assert_eq!(file.tensors["stem.weight"].dims, [4, 3, 3, 3]);
        assert_eq!(file.tensors["fc.weight"].dims, [6, 4]);
        let error = Checkpoint::load(&path, schema).unwrap_err().to_string();
        assert!(error.contains("--init"), "{error}");
    }

    #[test]
    fn safetensors_crate_reads_our_files() {
        let (params, states) = (params(), states());
        let wanted = TensorSchema { params: &params, states: &states }.of_weights();
        let weights = checkpoint().weights;
        let tensors = weights.params.iter().chain(&weights.states);
        let bytes = encode(Path::new("x"), [("config", String::new())], &wanted, tensors).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 5);
        assert_eq!(file.tensor("stem.bias").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&[0.5, 1.5, 2.5, 3.5]));
    }

    #[test]
    fn truncation_at_any_offset_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (params, states) = (params(), states());
        let schema = TensorSchema { params: &params, states: &states };
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint().save(&path, schema).unwrap();
        let bytes = fs::read(&path).unwrap();
        for length in (0..bytes.len()).step_by(97) {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(matches!(Checkpoint::load(&path, schema), Err(Error::File { .. })), "{length}");
        }
    }

    #[test]
    fn checkpoint_of_another_model_is_rejected_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        let (params, states) = (params(), states());
        let path = dir.path().join("checkpoint.safetensors");
        checkpoint().save(&path, TensorSchema { params: &params, states: &states }).unwrap();
        let mut other = params.clone();
        other[0].spec = Spec::conv_weight(8, 3, 3, 3);
        let error = Checkpoint::load(&path, TensorSchema { params: &other, states: &[] }).unwrap_err().to_string();
        for part in [
            "`adam.m/stem.weight` [4, 3, 3, 3] instead of [8, 3, 3, 3]",
            "2 unexpected: `norm.running_mean`",
            "3 of another",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn malformed_metadata_is_rejected() {
        let wrong = |key: &str, value: Option<&str>| {
            let mut metadata: BTreeMap<String, String> =
                [("checkpoint", "1"), ("step", "3"), ("epoch", "1"), ("seed", "0")]
                    .map(|(k, v)| (k.into(), v.into()))
                    .into();
            match value {
                Some(value) => metadata.insert(key.to_owned(), value.to_owned()),
                None => metadata.remove(key),
            };
            Progress::of(&TensorFile { metadata, ..TensorFile::default() }, Path::new("x")).map_err(|e| e.to_string())
        };
        assert_eq!(wrong("best", None).unwrap().best, None);
        assert!(wrong("checkpoint", Some("2")).unwrap_err().contains("another version"));
        assert!(wrong("step", None).unwrap_err().contains("step: expected a number, found nothing"));
        assert!(wrong("seed", Some("-1")).unwrap_err().contains("found `-1`"));
        assert!(wrong("best", Some("low")).is_err());
    }

    #[test]
    fn tensors_that_do_not_match_the_schema_are_not_written() {
        let dir = tempfile::tempdir().unwrap();
        let (params, states) = (params(), states());
        let schema = TensorSchema { params: &params, states: &states };
        let path = dir.path().join("checkpoint.safetensors");
        let mut short = checkpoint();
        short.moment2.pop();
        assert!(short.save(&path, schema).is_err());
        let mut short = checkpoint();
        short.weights.params[1].pop();
        assert!(short.save(&path, schema).is_err());
        let mut broken = checkpoint();
        broken.moment1[2][3] = f32::NAN;
        let error = broken.save(&path, schema).unwrap_err().to_string();
        assert!(error.contains("`adam.m/fc.weight`"), "{error}");
        assert!(!path.exists());
    }
}
