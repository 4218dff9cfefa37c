//! `vae-wgpu traverse`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::trained::{ImagesArgs, Source, TrainedArgs, check_grid, dims, prepare, save_grid};
use super::values::given;
use crate::app::viz::image_grid::Pictures;
use crate::vae::inference::means;
use crate::vae::model::Mode;

/// Where a latent number goes from, and with the other sign to.
const FAR: f32 = 3.0;

/// See what each latent number does: a row each, from -3 to 3, the others kept.
#[derive(Args, Debug)]
pub(super) struct TraverseArgs {
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
    /// Start from this picture (its number in the data set, or a PNG or JPEG file) instead of zeros.
    #[arg(long, value_name = "I|FILE", value_parser = given::<Source>)]
    image: Option<Source>,
    /// Pictures in a row.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Result.
    #[arg(long, short, value_name = "FILE", default_value = "traversal.png")]
    out: PathBuf,
}

impl TraverseArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        prepare(&self.out, &["png"])?;
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
        let middle = if encoded == 0 { vec![0.0; latent] } else { means(&trained.encode(&pixels)?, latent) };
        let mut z = middle.repeat(latent * steps);
        for (i, row) in z.chunks_exact_mut(latent).enumerate() {
            row[i / steps] = FAR * (2.0 * (i % steps) as f32 / (steps - 1) as f32 - 1.0);
        }
        let pictures = Pictures::from_floats(&trained.decode(&z)?, dims)?;
        save_grid(&self.out, steps, &pictures, "a row for each latent number, from -3 to 3")?;
        Ok(ExitCode::SUCCESS)
    }
}
