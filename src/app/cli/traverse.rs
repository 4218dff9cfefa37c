//! `vae-wgpu traverse`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::inference::{ImagesArgs, Source, TrainedArgs, dims};
use super::output::{check_grid, check_output, save_grid};
use super::values::non_empty;
use crate::app::viz::image_grid::ImageBatch;
use crate::vae::inference::posterior_means;
use crate::vae::model::Mode;

/// Largest magnitude of the varied latent dimension.
const RANGE: f32 = 3.0;

#[derive(Args, Debug)]
pub(super) struct TraverseArgs {
    /// Start from the encoding of this image (its index in the data set, or a PNG or JPEG file) instead of zeros.
    #[arg(long, value_name = "I|FILE", value_parser = non_empty::<Source>)]
    image: Option<Source>,
    /// Images per row.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Output file.
    #[arg(long, short, value_name = "FILE", default_value = "traversal.png")]
    out: PathBuf,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

impl TraverseArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["png"])?;
        let model = self.trained.load()?;
        let (config, dims) = (&model.config, dims(&model.config));
        let (latent, steps) = (config.latent_dim, self.steps as usize);
        check_grid(latent * steps)?;
        let pixels = match &self.image {
            Some(image) => Source::read(&[("--image", image)], &self.images, &self.trained, config)?,
            None => Vec::new(),
        };
        let encoded = usize::from(self.image.is_some());
        let mut trained = self.trained.start(&model, &[(Mode::Decode, latent * steps), (Mode::Encode, encoded)])?;
        let middle = if encoded == 0 { vec![0.0; latent] } else { posterior_means(&trained.encode(&pixels)?, latent) };
        let mut z = middle.repeat(latent * steps);
        for (i, row) in z.chunks_exact_mut(latent).enumerate() {
            row[i / steps] = RANGE * (2.0 * (i % steps) as f32 / (steps - 1) as f32 - 1.0);
        }
        let images = ImageBatch::from_floats(&trained.decode(&z)?, dims)?;
        save_grid(&self.out, steps, &images, "one row per latent dimension, from -3 to 3")?;
        Ok(ExitCode::SUCCESS)
    }
}
