//! `vae-wgpu traverse`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};

use super::inference::{ClassArgs, ImagesArgs, Source, TrainedArgs, dims};
use super::output::{check_grid, check_not_input, check_output, save_image};
use super::values::{non_empty, short};
use crate::app::viz::caption::{Labels, stack};
use crate::app::viz::image_grid::{Grid, ImageBatch};
use crate::error::Error;
use crate::vae::inference::{Model, posterior_means};
use crate::vae::model::Mode;

/// Largest magnitude of the varied latent dimension.
const RANGE: f32 = 3.0;

/// Most latent dimensions that are shown by default.
const SHOWN: usize = 16;

#[derive(Args, Debug)]
pub(super) struct TraverseArgs {
    /// Start from the encoding of this image (its index in the data set, or a PNG or JPEG file) instead of zeros.
    #[arg(long, value_name = "I|FILE", value_parser = non_empty::<Source>)]
    image: Option<Source>,
    /// Number of latent dimensions to show, those that carry most first; 0 for all [default: up to 16].
    #[arg(long, value_name = "N")]
    dims: Option<usize>,
    /// Images per row.
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Output file.
    #[arg(long, short, value_name = "FILE", default_value = "traversal.png", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

/// Returns up to `count` latent dimensions, those with the largest KL divergence first, or the first ones if it is not known.
fn most_informative(model: &Model, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..model.config.latent_dim).collect();
    if let Some(kl) = &model.kl_dims {
        order.sort_by(|&a, &b| kl[b].total_cmp(&kl[a]));
    }
    order.truncate(if count == 0 { order.len() } else { count });
    order
}

impl TraverseArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["png"])?;
        let model = self.trained.load()?;
        check_not_input(&self.out, self.image.iter().filter_map(Source::path))?;
        let (config, dims) = (&model.config, dims(&model.config));
        let (latent, steps) = (config.latent_dim, self.steps as usize);
        if let Some(dims) = self.dims.filter(|dims| *dims > latent) {
            let expected = format!("at most {latent}, the latent dimensions of the model");
            return Err(Error::argument("--dims", expected, dims).into());
        }
        let shown = most_informative(&model, self.dims.unwrap_or(SHOWN));
        check_grid(shown.len() * steps)?;
        let (pixels, labels) = match &self.image {
            Some(image) => Source::read(&[("--image", image)], &self.images, &self.class, &self.trained, &model)?,
            // Without an image, the first class.
            None => (Vec::new(), vec![self.class.of(&model)?.unwrap_or(0)]),
        };
        let encoded = usize::from(self.image.is_some());
        let mut trained = self
            .trained
            .start(&model, &[(Mode::Decode, shown.len() * steps), (Mode::Encode, encoded), (Mode::Decode, encoded)])?;
        let middle = match encoded {
            0 => vec![0.0; latent],
            _ => posterior_means(&trained.encode((&pixels, &labels))?, latent),
        };
        let value = |step: usize| RANGE * (2.0 * step as f32 / (steps - 1) as f32 - 1.0);
        let classes = labels.repeat(shown.len() * steps);
        let mut z = middle.repeat(shown.len() * steps);
        for (i, row) in z.chunks_exact_mut(latent).enumerate() {
            row[shown[i / steps]] = value(i % steps);
        }
        let images = ImageBatch::from_floats(&trained.decode((&z, &classes))?, dims)?;
        let grid = Grid::of(steps, images.size().0);
        let name = |&dim: &usize| match &model.kl_dims {
            Some(kl) => format!("z{dim}: {:.2} nats", kl[dim]),
            None => format!("z{dim}"),
        };
        let rows: Vec<_> = shown.iter().map(name).collect();
        let columns = (0..steps).map(|step| short(f64::from(value(step)))).collect();
        let mut image = Labels { rows, columns, ..Labels::default() }.draw(&grid, &images)?;
        let mut caption = self.trained.caption(&model, "traversal of latent dimensions");
        caption = TrainedArgs::with_class(caption, &model, &labels);
        if model.kl_dims.is_some() {
            caption = caption.with("rows", "by KL divergence");
        }
        match &self.image {
            Some(source) => {
                let mut pair = ImageBatch::from_bytes(&pixels, dims)?;
                pair.append(ImageBatch::from_floats(&trained.decode((&middle, &labels))?, dims)?)?;
                let columns = ["original", "decoded"].map(str::to_owned).to_vec();
                image = stack(&Labels { columns, ..Labels::default() }.draw(&grid, &pair)?, &image);
                if matches!(source, Source::Index(_)) {
                    caption = caption.with("split", self.images.split());
                }
                caption = caption.with("image", source);
            }
            None => caption = caption.with("other dimensions", 0),
        }
        save_image(&self.out, &caption.below(&image)?, &caption, "one row per latent dimension, from -3 to 3")?;
        Ok(ExitCode::SUCCESS)
    }
}
