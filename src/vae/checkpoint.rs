//! Checkpoints of a run: everything that it takes to resume as if it had never stopped.

use std::path::Path;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::vae::tensor_file::TensorFile;
use crate::vae::weights::{TensorSchema, Weights, tensor_file};

/// Version of the format of checkpoints.
const FORMAT: u32 = 1;

/// Progress of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct RunProgress {
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
    /// [`Dataset::fingerprint`](crate::vae::data::Dataset::fingerprint) of the data set. `None` in checkpoints written before
    /// version 0.1.
    pub data: Option<String>,
}

/// Contents of `checkpoint.safetensors`.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// Progress of the run.
    pub progress: RunProgress,
    /// Parameters and running statistics.
    pub weights: Weights,
    /// Adam's first moments, one tensor for each parameter.
    pub moment1: Vec<Vec<f32>>,
    /// Adam's second moments, one tensor for each parameter.
    pub moment2: Vec<Vec<f32>>,
}

impl Checkpoint {
    /// Returns the checkpoint as a file.
    ///
    /// # Errors
    /// As [`Weights::into_file`].
    pub fn into_file(self, schema: TensorSchema<'_>) -> Result<TensorFile> {
        let RunProgress { step, epoch, seed, settings, best, data } = self.progress;
        let mut metadata = vec![
            ("checkpoint", FORMAT.to_string()),
            ("step", step.to_string()),
            ("epoch", epoch.to_string()),
            ("seed", seed.to_string()),
            ("settings", settings),
        ];
        metadata.extend(best.map(|best| ("best", best.to_string())));
        metadata.extend(data.map(|data| ("data", data)));
        let names = schema.weights().into_iter().chain(schema.moments()).collect();
        let Weights { params, states } = self.weights;
        tensor_file(metadata, names, params.into_iter().chain(states).chain(self.moment1).chain(self.moment2))
    }

    /// Takes a checkpoint from a file. `path` is used in messages.
    ///
    /// # Errors
    /// As [`RunProgress::of`] and [`Weights::from_file`].
    pub fn from_file(file: TensorFile, path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        let progress = RunProgress::of(&file, path)?;
        let names: Vec<_> = schema.weights().into_iter().chain(schema.moments()).collect();
        let mut params = file.take(path, &names)?;
        let mut states = params.split_off(schema.params.len());
        let mut moment1 = states.split_off(schema.states.len());
        let moment2 = moment1.split_off(schema.params.len());
        Ok(Self { progress, weights: Weights { params, states }, moment1, moment2 })
    }
}

impl RunProgress {
    /// Checks that a run has not trained more than `epochs` epochs.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if it has.
    pub fn check_epochs(&self, epochs: u64) -> Result<()> {
        if epochs >= self.epoch {
            return Ok(());
        }
        let expected = format!("at least {}, which the run has finished", self.epoch);
        Err(Error::argument("number of epochs", expected, epochs))
    }

    /// Parses the metadata of a checkpoint. `path` is used in messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if the file is not a checkpoint, has another format, or contains invalid values.
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runtime::graph::Tensor;
    use crate::runtime::op::Init;
    use crate::runtime::tensor::{Shape, Spec};

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

    fn values(tensors: &[Tensor], first: f32) -> Vec<Vec<f32>> {
        tensors.iter().map(|t| (0..t.spec.len()).map(|i| first + i as f32).collect()).collect()
    }

    fn checkpoint() -> Checkpoint {
        Checkpoint {
            progress: RunProgress {
                step: u64::MAX,
                epoch: 3,
                seed: 1 << 63,
                settings: "{\"lr\":0.01}".into(),
                best: Some(0.1 + 0.2),
                data: Some("8 and 4 images".into()),
            },
            weights: Weights { params: values(&params(), 0.5), states: values(&states(), 7.0) },
            moment1: values(&params(), -3.25),
            moment2: values(&params(), 1e-30),
        }
    }

    fn bytes(checkpoint: Checkpoint, schema: TensorSchema<'_>) -> Result<Vec<u8>> {
        checkpoint.into_file(schema)?.to_bytes(Path::new("checkpoint"))
    }

    fn parse(bytes: &[u8]) -> Result<TensorFile> {
        TensorFile::from_bytes(bytes, Path::new("checkpoint"))
    }

    #[test]
    fn weights_and_checkpoints_round_trip_bit_for_bit() {
        let path = Path::new("checkpoint");
        let (params, states) = (params(), states());
        let schema = TensorSchema { params: &params, states: &states };
        for best in [None, Some(0.1 + 0.2), Some(f64::MIN_POSITIVE)] {
            let mut checkpoint = checkpoint();
            checkpoint.progress.best = best;
            let written = bytes(checkpoint.clone(), schema).unwrap();
            assert_eq!(Checkpoint::from_file(parse(&written).unwrap(), path, schema).unwrap(), checkpoint);
            assert_eq!(bytes(checkpoint.clone(), schema).unwrap(), written);
            // The weights of a checkpoint can be read without the rest.
            assert_eq!(Weights::from_file(parse(&written).unwrap(), path, schema).unwrap(), checkpoint.weights);
        }
        let weights = checkpoint().weights;
        let written = weights.clone().into_file(schema, "{}").unwrap().to_bytes(path).unwrap();
        let file = parse(&written).unwrap();
        assert_eq!(file.metadata["config"], "{}");
        assert_eq!(file.tensors["stem.weight"].dims, [4, 3, 3, 3]);
        assert_eq!(file.tensors["fc.weight"].dims, [6, 4]);
        assert_eq!(Weights::from_file(file.clone(), path, schema).unwrap(), weights);
        let error = Checkpoint::from_file(file, path, schema).unwrap_err().to_string();
        assert!(error.contains("--init"), "{error}");
    }

    #[test]
    fn the_safetensors_crate_reads_the_files() {
        let (params, states) = (params(), states());
        let file = checkpoint().weights.into_file(TensorSchema { params: &params, states: &states }, "").unwrap();
        let bytes = file.to_bytes(Path::new("x")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(file.len(), 5);
        assert_eq!(file.tensor("stem.bias").unwrap().data(), bytemuck::cast_slice::<f32, u8>(&[0.5, 1.5, 2.5, 3.5]));
    }

    #[test]
    fn truncation_at_any_offset_is_an_error() {
        let (params, states) = (params(), states());
        let bytes = bytes(checkpoint(), TensorSchema { params: &params, states: &states }).unwrap();
        for length in (0..bytes.len()).step_by(97) {
            assert!(matches!(parse(&bytes[..length]), Err(Error::File { .. })), "{length}");
        }
    }

    #[test]
    fn tensors_of_another_model_are_rejected_with_the_difference() {
        let (params, states) = (params(), states());
        let bytes = bytes(checkpoint(), TensorSchema { params: &params, states: &states }).unwrap();
        let mut other = params.clone();
        other[0].spec = Spec::conv_weight(8, 3, 3, 3);
        let schema = TensorSchema { params: &other, states: &[] };
        let error = Checkpoint::from_file(parse(&bytes).unwrap(), Path::new("x"), schema).unwrap_err().to_string();
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
            RunProgress::of(&TensorFile { metadata, ..TensorFile::default() }, Path::new("x"))
                .map_err(|e| e.to_string())
        };
        assert_eq!(wrong("best", None).unwrap().best, None);
        assert!(wrong("checkpoint", Some("2")).unwrap_err().contains("another version"));
        assert!(wrong("step", None).unwrap_err().contains("step: expected a number, found nothing"));
        assert!(wrong("seed", Some("-1")).unwrap_err().contains("found `-1`"));
        assert!(wrong("best", Some("low")).is_err());
    }

    #[test]
    fn invalid_tensors_are_not_written() {
        let (params, states) = (params(), states());
        let schema = TensorSchema { params: &params, states: &states };
        let mut short = checkpoint();
        short.moment2.pop();
        assert!(bytes(short, schema).is_err());
        let mut short = checkpoint();
        short.weights.params[1].pop();
        assert!(bytes(short, schema).is_err());
        let mut broken = checkpoint();
        broken.moment1[2][3] = f32::NAN;
        let error = bytes(broken, schema).unwrap_err().to_string();
        assert!(error.contains("`adam.m/fc.weight`"), "{error}");
    }
}
