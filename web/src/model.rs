//! The model in use: one in training, or a trained one from a file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;
use vae_wgpu::prelude::{Arena, Device, PlanOptions, Runner};
use vae_wgpu::vae::inference::Model;
use vae_wgpu::vae::tensor_file::TensorFile;
use vae_wgpu::vae::weights::{TensorSchema, Weights};
use wasm_bindgen::JsValue;

use crate::explore::PROGRAMS;
use crate::fault::Fault;
use crate::message::json;
use crate::training::Training;

/// Name of the file that the page downloads.
pub(crate) const FILE: &str = "model.safetensors";

/// A model on the device.
pub(crate) enum InUse {
    /// In training.
    Training(Box<Training>),
    /// From a file.
    Loaded(Box<Loaded>),
}

/// A trained model on the device, with the metadata of its file.
pub(crate) struct Loaded {
    runner: Runner,
    metadata: BTreeMap<String, String>,
    pub(crate) kl_dims: Option<Vec<f64>>,
}

impl Loaded {
    /// Reads `model.safetensors`, a checkpoint, or weights of pi-tau/vae.
    pub(crate) async fn open(name: &str, bytes: &[u8], device: &Device) -> Result<(Self, JsValue), Fault> {
        let path = Path::new(name);
        let file = TensorFile::from_bytes(bytes, path)?;
        let mut metadata = file.metadata.clone();
        // What training knows about a model. The rest is written anew.
        metadata.retain(|key, _| ["epoch", "val_total", "kl_dims", "classes"].contains(&key.as_str()));
        let model = Model::from_file(file, path.to_owned())?;
        let about = describe(&model)?;
        let mut runner = Runner::new_async(model.config, &PROGRAMS, device, &PlanOptions::default()).await?;
        runner.upload(Arena::Params, &model.weights.params)?;
        runner.upload(Arena::States, &model.weights.states)?;
        Ok((Self { runner, metadata, kl_dims: model.kl_dims }, about))
    }

    async fn file(&mut self) -> Result<TensorFile, Fault> {
        let params = self.runner.download_async(Arena::Params).await?;
        let states = self.runner.download_async(Arena::States).await?;
        let config = serde_json::to_string(self.runner.config()).map_err(Fault::internal)?;
        let mut file = Weights { params, states }.into_file(TensorSchema::of(self.runner.graph()?), &config)?;
        file.metadata.extend(self.metadata.clone());
        Ok(file)
    }
}

/// The model as the page shows it.
fn describe(model: &Model) -> Result<JsValue, Fault> {
    let config = &model.config;
    json(&json!({
        "model": {
            "channels": config.channels,
            "blocks": config.blocks,
            "groups": config.groups,
            "latentDim": config.latent_dim,
            "likelihood": config.likelihood,
            "classes": model.classes,
            "imageSize": [config.image_channels, config.image_size, config.image_size],
        },
        "epoch": model.epoch,
    }))
}

impl InUse {
    pub(crate) fn runner(&mut self) -> &mut Runner {
        match self {
            Self::Training(training) => training.session.runner(),
            Self::Loaded(loaded) => &mut loaded.runner,
        }
    }

    /// Returns the bytes of `model.safetensors`: of the best epoch of a training run, and before the first has ended those of now.
    pub(crate) async fn weights(&mut self) -> Result<Vec<u8>, Fault> {
        let file = match self {
            Self::Training(training) => match training.session.best_model() {
                Some(file) => file.clone(),
                None => training.session.model().await?,
            },
            Self::Loaded(loaded) => loaded.file().await?,
        };
        Ok(file.to_bytes(Path::new(FILE))?)
    }
}
