//! `vae-wgpu reconstruct`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::trained::{ImagesArgs, TrainedArgs, check_grid, dims, from_file, prepare, save_grid, square};
use crate::data;
use crate::model::Mode;
use crate::report::Pictures;
use crate::trained::means;

/// Put pictures beside what a trained model makes of them.
#[derive(Args, Debug)]
pub(super) struct ReconstructArgs {
    #[command(flatten)]
    trained: TrainedArgs,
    /// PNG or JPEG files, cut to a square and resized, instead of pictures of a data set.
    #[arg(value_name = "FILES", conflicts_with_all = ["data", "split", "train_limit", "val_limit", "count"])]
    files: Vec<PathBuf>,
    #[command(flatten)]
    images: ImagesArgs,
    /// The first so many pictures of the data set.
    #[arg(short = 'n', long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Result: originals left, reconstructions right of them.
    #[arg(long, short, value_name = "FILE", default_value = "reconstructions.png")]
    out: PathBuf,
}

impl ReconstructArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        prepare(&self.out, &["png"])?;
        let model = self.trained.load()?;
        let (config, dims) = (&model.config, dims(&model.config));
        let mut pixels = Vec::new();
        if self.files.is_empty() {
            let images = self.images.open(&self.trained, config)?;
            let indices: Vec<u32> = (0..self.count.min(images.len() as u32)).collect();
            check_grid(2 * indices.len())?;
            data::batch(images.as_ref(), &indices, &mut pixels)?;
        }
        for file in &self.files {
            pixels.extend(from_file(file, config)?);
        }
        let originals = Pictures::from_bytes(&pixels, dims)?;
        let count = originals.len();
        let mut trained = self.trained.start(&model, &[(Mode::Encode, count), (Mode::Decode, count)])?;
        let h = trained.encode(&pixels)?;
        let reconstructions = Pictures::from_floats(&trained.decode(&means(&h, config.latent_dim))?, dims)?;
        let pairs = square(count);
        let what = "originals and, right of each, its reconstruction";
        save_grid(&self.out, 2 * pairs, &originals.beside(reconstructions)?, what)?;
        Ok(ExitCode::SUCCESS)
    }
}
