//! Settings of a run as the page sends them.

use serde::Deserialize;
use vae_wgpu::prelude::{Likelihood, VaeConfig};
use vae_wgpu::vae::model::Head;
use vae_wgpu::vae::train::Settings;

use crate::data::DataSet;
use crate::fault::Fault;

/// The warm-up of the learning rate is at most this part of a run.
const WARMUP: u64 = 10;

/// A field that is missing has the default of the program.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PageSettings {
    channels: Option<usize>,
    blocks: Option<usize>,
    latent_dim: Option<usize>,
    batch_size: Option<usize>,
    epochs: Option<u64>,
    learning_rate: Option<f64>,
    head: Option<Head>,
    likelihood: Option<Likelihood>,
    seed: Option<u64>,
}

/// Returns the settings of a run on a data set.
pub(crate) fn parse(text: &str, data: &DataSet) -> Result<Settings, Fault> {
    let asked: PageSettings =
        serde_json::from_str(text).map_err(|error| Fault::invalid(format!("invalid settings: {error}")))?;
    let (image_channels, image_size, _) = data.train.size();
    let default = Settings::default();
    let mut settings = Settings {
        model: VaeConfig {
            channels: asked.channels.unwrap_or(default.model.channels),
            blocks: asked.blocks.unwrap_or(default.model.blocks),
            latent_dim: asked.latent_dim.unwrap_or(default.model.latent_dim),
            head: asked.head.unwrap_or(default.model.head),
            likelihood: asked.likelihood.unwrap_or(default.model.likelihood),
            image_channels,
            image_size,
            ..default.model
        },
        batch_size: asked.batch_size.unwrap_or(default.batch_size),
        epochs: asked.epochs.unwrap_or(default.epochs),
        lr: asked.learning_rate.unwrap_or(default.lr),
        seed: asked.seed.unwrap_or(default.seed),
        // The data set is split already.
        val_split: 0.0,
        ..default
    };
    settings.check()?;
    let steps = data.train.len().div_ceil(settings.batch_size) as u64 * settings.epochs;
    settings.warmup = settings.warmup.min(steps / WARMUP);
    Ok(settings)
}
