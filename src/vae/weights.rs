//! Weights of a model as named tensors, with PyTorch's names and shapes.
//!
//! Reading is all or nothing: names, shapes, types and values are checked before anything is returned, so that a device never
//! receives a part of a file.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, Graph, Tensor};
use crate::vae::model::VARIANCE;
use crate::vae::names;
use crate::vae::tensor_file::{Array, TensorFile};

/// Prefixes of the names of Adam's moments in a checkpoint.
pub(crate) const MOMENTS: [&str; 2] = ["adam.m/", "adam.v/"];

/// Entry of a model's metadata: the KL divergence of each latent dimension in nats, over the validation images.
pub(crate) const KL_DIMS: &str = "kl_dims";

/// Entry of a conditional model's metadata: the names of its classes.
pub(crate) const CLASSES: &str = "classes";

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

    /// Names and PyTorch shapes of parameters and running statistics.
    pub(crate) fn weights(&self) -> Vec<(String, Vec<usize>)> {
        self.params.iter().chain(self.states).map(|t| (t.name.clone(), t.spec.torch_dims())).collect()
    }

    /// Names and shapes of Adam's first and second moments.
    pub(crate) fn moments(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        MOMENTS.iter().flat_map(|m| self.params.iter().map(move |t| (format!("{m}{}", t.name), t.spec.torch_dims())))
    }
}

/// Weights of a model: the contents of `model.safetensors`. Every tensor is in PyTorch's order.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// One tensor for each parameter.
    pub params: Vec<Vec<f32>>,
    /// One tensor for each running statistic.
    pub states: Vec<Vec<f32>>,
}

impl Weights {
    /// Returns a file that `safetensors.torch.load_file` and `load_state_dict(strict=True)` accept. `config` is the model's
    /// configuration as JSON; it becomes `metadata["config"]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the number of tensors is not that of the schema.
    pub fn into_file(self, schema: TensorSchema<'_>, config: &str) -> Result<TensorFile> {
        let metadata = [("config", config.to_owned())];
        tensor_file(metadata, schema.weights(), self.params.into_iter().chain(self.states))
    }

    /// Takes the weights from a file of another program or of a model with another likelihood: the tensors may have the names of
    /// pi-tau/vae, and the variance of the likelihood may be missing or superfluous. `path` is used in messages.
    ///
    /// # Errors
    /// As [`Weights::from_file`].
    pub fn from_foreign_file(mut file: TensorFile, path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        names::from_seed(&mut file);
        if schema.states.iter().any(|state| state.name == VARIANCE) {
            file.tensors.entry(VARIANCE.to_owned()).or_insert(Array { dims: vec![1], data: vec![1.0] });
        } else {
            file.tensors.remove(VARIANCE);
        }
        Self::from_file(file, path, schema)
    }

    /// Takes the weights from a file. Adam's moments in a checkpoint are ignored. `path` is used in messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] that lists missing and unexpected tensors and those of another shape.
    pub fn from_file(mut file: TensorFile, path: &Path, schema: TensorSchema<'_>) -> Result<Self> {
        file.tensors.retain(|name, _| !MOMENTS.iter().any(|m| name.starts_with(m)));
        let mut params = file.take(path, &schema.weights())?;
        let states = params.split_off(schema.params.len());
        Ok(Self { params, states })
    }

    /// Returns a checksum of all values, by which files that belong to these weights name them.
    #[must_use]
    pub fn checksum(&self) -> String {
        let mut checksum = crc32fast::Hasher::new();
        for tensor in self.params.iter().chain(&self.states) {
            checksum.update(bytemuck::cast_slice(tensor));
        }
        format!("{:08x}", checksum.finalize())
    }

    /// Returns the variance of the optimal likelihood.
    ///
    /// # Errors
    /// [`Error::Bug`] if the graph of these weights has none.
    pub(crate) fn variance(&self, graph: &Graph) -> Result<f64> {
        let at = graph.states().iter().position(|state| state.name == VARIANCE);
        let value = at.and_then(|at| self.states.get(at)?.first());
        value.map(|value| f64::from(*value)).ok_or_else(|| Error::bug("weights without a variance"))
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

/// Combines names and shapes with values.
pub(crate) fn tensor_file(
    metadata: impl IntoIterator<Item = (&'static str, String)>,
    schema: Vec<(String, Vec<usize>)>,
    tensors: impl Iterator<Item = Vec<f32>>,
) -> Result<TensorFile> {
    let mut metadata: BTreeMap<_, _> = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    metadata.insert("format".into(), "pt".into());
    metadata.insert("version".into(), concat!("vae-wgpu ", env!("CARGO_PKG_VERSION")).into());
    let tensors: Vec<_> = tensors.collect();
    if tensors.len() != schema.len() {
        return Err(Error::argument("number of tensors", schema.len(), tensors.len()));
    }
    let arrays = schema.into_iter().zip(tensors).map(|((name, dims), data)| (name, Array { dims, data }));
    Ok(TensorFile { metadata, tensors: arrays.collect() })
}
