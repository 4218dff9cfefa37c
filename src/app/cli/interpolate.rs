//! `vae-wgpu interpolate`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::inference::{ImagesArgs, Source, TrainedArgs, dims};
use super::output::{check_output, save_grid};
use super::values::non_empty;
use crate::app::viz::image_grid::ImageBatch;
use crate::vae::inference::posterior_means;
use crate::vae::model::Mode;

#[derive(Args, Debug)]
pub(super) struct InterpolateArgs {
    /// First image: its index in the data set, or a PNG or JPEG file.
    #[arg(long, value_name = "I|FILE", value_parser = non_empty::<Source>)]
    from: Source,
    /// Last image: its index in the data set, or a PNG or JPEG file.
    #[arg(long, value_name = "J|FILE", value_parser = non_empty::<Source>)]
    to: Source,
    /// Number of decoded images, including both ends.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Output file: one row, with the originals at both ends.
    #[arg(long, short, value_name = "FILE", default_value = "interpolation.png")]
    out: PathBuf,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

impl InterpolateArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["png"])?;
        let model = self.trained.load()?;
        let (config, dims) = (&model.config, dims(&model.config));
        let pixels = Source::read(&[("--from", &self.from), ("--to", &self.to)], &self.images, &self.trained, config)?;
        let steps = self.steps as usize;
        let mut trained = self.trained.start(&model, &[(Mode::Encode, 2), (Mode::Decode, steps)])?;
        let mu = posterior_means(&trained.encode(&pixels)?, config.latent_dim);
        let (from, to) = mu.split_at(config.latent_dim);
        let z: Vec<f32> = (0..steps)
            .map(|step| step as f32 / (steps - 1) as f32)
            .flat_map(|t| from.iter().zip(to).map(move |(a, b)| a + t * (b - a)))
            .collect();
        let (first, last) = pixels.split_at(pixels.len() / 2);
        let mut row = ImageBatch::from_bytes(first, dims)?;
        row.append(ImageBatch::from_floats(&trained.decode(&z)?, dims)?)?;
        row.append(ImageBatch::from_bytes(last, dims)?)?;
        save_grid(&self.out, steps + 2, &row, "interpolation, with the originals at both ends")?;
        Ok(ExitCode::SUCCESS)
    }
}
