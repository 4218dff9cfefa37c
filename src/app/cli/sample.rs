//! `vae-wgpu sample`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum, ValueHint};

use super::inference::{ClassArgs, TrainedArgs, dims};
use super::note;
use super::output::{RAW, check_grid, check_not_input, check_output, save_image, save_raw};
use super::preview::{PreviewArgs, show};
use super::values::temperature;
use crate::app::figures::counted;
use crate::app::io::prior;
use crate::app::io::prior::Kind;
use crate::app::viz::caption::square;
use crate::app::viz::image_grid::{Grid, ImageBatch};
use crate::vae::inference::Model;
use crate::vae::model::Mode;
use crate::vae::prior::Prior;
use crate::vae::tensor_file::Array;

/// Rows of images that --preview shows at most.
const PREVIEW_ROWS: usize = 3;

#[derive(Args, Debug)]
pub(super) struct SampleArgs {
    /// Number of images.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 49, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Seed of the latent noise.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Distribution of the latent vectors: a fitted mixture of Gaussians, a fitted VAE of latent vectors, or a standard normal
    /// distribution [default: mixture if one was fitted to these weights, by training or `vae-wgpu fit-prior`; else normal].
    #[arg(long, value_enum)]
    prior: Option<PriorArg>,
    /// Factor of the standard deviation of the latent vectors: below 1 for more typical images, above for more varied ones.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0, value_parser = temperature)]
    temperature: f64,
    /// Write the pixel values (-1 to 1, [n, channels, height, width]) instead of a PNG, to a .npy or .safetensors file.
    #[arg(long)]
    raw: bool,
    /// Output file [default: samples.png, or samples.npy with --raw].
    #[arg(long, short, value_name = "FILE", value_hint = ValueHint::FilePath)]
    out: Option<PathBuf>,
    #[command(flatten)]
    preview: PreviewArgs,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    trained: TrainedArgs,
}

// No doc comments: clap would turn the help texts into the long form.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum PriorArg {
    Mixture,
    SecondStage,
    Normal,
}

impl SampleArgs {
    /// The prior that --prior asks for, or the fitted one if there is one.
    fn prior(&self, model: &Model) -> anyhow::Result<Prior> {
        let normal = Prior::Normal(model.config.latent_dim);
        match self.prior {
            None => match self.trained.prior(model, Kind::Mixture)? {
                Some(prior) => Ok(prior),
                None => {
                    self.explain_normal(model);
                    Ok(normal)
                }
            },
            Some(PriorArg::Normal) => Ok(normal),
            Some(PriorArg::Mixture) => self.trained.required_prior(model, Kind::Mixture),
            Some(PriorArg::SecondStage) => self.trained.required_prior(model, Kind::SecondStage),
        }
    }

    /// Says why samples are from N(0, I) if the folder has a prior, which belongs to other weights.
    fn explain_normal(&self, model: &Model) {
        let (own, of_best) = (prior::path(model, Kind::Mixture), model.path.with_file_name(Kind::Mixture.file()));
        if own != of_best && of_best.exists() {
            note(format_args!(
                "note: samples are from N(0, I): {} belongs to model.safetensors. `{}` fits a prior to these weights",
                of_best.display(),
                Kind::Mixture.command(&model.path)
            ));
        }
    }

    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let default = if self.raw { "samples.npy" } else { "samples.png" };
        let out = self.out.as_deref().unwrap_or(Path::new(default));
        let count = self.count as usize;
        check_output(out, if self.raw { RAW } else { &["png"] })?;
        if !self.raw {
            check_grid(count)?;
        }
        let model = self.trained.load()?;
        let priors = [Kind::Mixture, Kind::SecondStage].map(|kind| prior::path(&model, kind));
        check_not_input(out, priors.iter().chain([&model.path]).map(PathBuf::as_path))?;
        let prior = self.prior(&model)?;
        let class = self.class.of(&model)?;
        let labels = match class {
            Some(class) => vec![class; count],
            // Equal numbers of all classes, in order.
            None => (0..count).map(|i| (i * model.config.classes / count) as u8).collect(),
        };
        let mut trained = self.trained.start(&model, &[(Mode::Decode, count)])?;
        let z = prior.sample(count, &labels, self.seed, self.temperature)?;
        let means = trained.decode((&z, &labels))?;
        if self.raw {
            let [c, h, w] = dims(&model.config);
            save_raw(out, "samples", Array { dims: vec![count, c, h, w], data: means })?;
            note(format_args!("{count} samples: {}", out.display()));
        } else {
            let images = ImageBatch::from_floats(&means, dims(&model.config))?;
            let preview = self.preview.get().map(|preview| preview.draw(&images, PREVIEW_ROWS)).transpose()?;
            let prior = match &prior {
                Prior::Normal(_) => "N(0, I)",
                Prior::Mixture(_) => "mixture",
                Prior::SecondStage(_) => "second stage",
            };
            let mut caption = self.trained.caption(&model, counted(count as u64, "sample"));
            caption = TrainedArgs::with_class(caption, &model, class.as_slice());
            caption = caption.with("seed", self.seed).with("prior", prior).with("temperature", self.temperature);
            let grid = Grid::of(square(count), images.size().0).draw(&images)?;
            save_image(out, &caption.below(&grid)?, &caption, "samples")?;
            show(&preview.unwrap_or_default());
        }
        Ok(ExitCode::SUCCESS)
    }
}
