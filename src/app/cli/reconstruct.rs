//! `vae-wgpu reconstruct`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};

use super::inference::{ClassArgs, ImagesArgs, TrainedArgs, dims, from_file, image_files};
use super::note;
use super::output::{RAW, check_grid, check_not_input, check_output, save_image, save_raw};
use super::preview::{PreviewArgs, show};
use crate::app::viz::caption::Pairs;
use crate::app::viz::image_grid::ImageBatch;
use crate::error::Error;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;
use crate::vae::data;
use crate::vae::inference::{draws, posterior_means};
use crate::vae::model::Mode;
use crate::vae::tensor_file::Array;

#[derive(Args, Debug)]
#[command(override_usage = "vae-wgpu reconstruct [OPTIONS] <RUN|FILE>\n                            [FILE|DIR]...")]
pub(super) struct ReconstructArgs {
    /// PNG or JPEG files, or folders with such files at any depth, to reconstruct instead of images of a data set; cropped to a square and resized.
    #[arg(value_name = "FILE|DIR", index = 2, conflicts_with_all = [
        "data", "image_size", "strict", "split", "train_limit", "val_limit", "count",
    ], value_hint = ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Number of images, from the start of the data set.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Decode a sample of each image's latent distribution instead of its mean.
    #[arg(long)]
    sample: bool,
    /// Seed of these samples.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "sample")]
    seed: u64,
    /// Write the pixel values of the reconstructions (-1 to 1, [n, channels, height, width]) instead of a PNG, to a .npy or .safetensors
    /// file.
    #[arg(long)]
    raw: bool,
    /// Output file: each original with its reconstruction on its right and their mean squared error (pixels from -1 to 1) below [default: reconstructions.png, or reconstructions.npy with --raw].
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    #[command(flatten)]
    preview: PreviewArgs,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

impl ReconstructArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let default = if self.raw { "reconstructions.npy" } else { "reconstructions.png" };
        let out = self.out.as_deref().unwrap_or(Path::new(default));
        check_output(out, if self.raw { RAW } else { &["png"] })?;
        let model = self.trained.load()?;
        let (config, dims) = (&model.config, dims(&model.config));
        let (mut pixels, mut labels) = (Vec::new(), Vec::new());
        self.class.of(&model)?;
        if self.files.is_empty() {
            let images = self.images.open(&self.trained, &model)?;
            if self.count as usize > images.len() {
                note(format_args!("note: there are only {} images", images.len()));
            }
            let indices: Vec<u32> = (0..self.count.min(images.len() as u32)).collect();
            if !self.raw {
                check_grid(2 * indices.len())?;
            }
            data::batch(images.as_ref(), &indices, &mut pixels)?;
            labels = data::labels(images.as_ref(), &indices);
        }
        let files = image_files(&self.files)?;
        check_not_input(out, files.iter().chain([&model.path]).map(PathBuf::as_path))?;
        for file in &files {
            pixels.extend(from_file(file, config)?);
            labels.push(self.class.of_file(&model)?);
        }
        let originals = ImageBatch::from_bytes(&pixels, dims)?;
        let count = originals.len();
        let mut trained = self.trained.start(&model, &[(Mode::Encode, count), (Mode::Decode, count)])?;
        let h = trained.encode((&pixels, &labels))?;
        let latent = config.latent_dim;
        let z = if self.sample {
            let noise = rng::normals(&mut rng::stream(self.seed, Stream::Sample, 0), count * latent);
            draws(&h, &noise, latent)
        } else {
            posterior_means(&h, latent)
        };
        let reconstructions = trained.decode((&z, &labels))?;
        if self.raw {
            let [c, h, w] = dims;
            save_raw(out, "reconstructions", Array { dims: vec![count, c, h, w], data: reconstructions })?;
            note(format_args!("{count} reconstructions: {}", out.display()));
            return Ok(ExitCode::SUCCESS);
        }
        let reconstructions = ImageBatch::from_floats(&reconstructions, dims)?;
        // A row of originals, and their reconstructions below.
        let preview = self.preview.get();
        let rows =
            preview.map(|p| Ok::<_, Error>(p.draw(&originals, 1)? + &p.draw(&reconstructions, 1)?)).transpose()?;
        let mut caption = self.trained.caption(&model, "originals | reconstructions");
        caption = match self.files.is_empty() {
            true => caption.with("split", self.images.split()),
            false => caption,
        };
        caption = TrainedArgs::with_class(caption, &model, &labels);
        if self.sample {
            caption = caption.with("seed", self.seed);
        }
        let image = Pairs::new(originals, reconstructions)?.draw(&caption)?;
        save_image(out, &image, &caption, "originals with their reconstructions on the right")?;
        show(&rows.unwrap_or_default());
        Ok(ExitCode::SUCCESS)
    }
}
