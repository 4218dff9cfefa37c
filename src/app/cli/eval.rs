//! `vae-wgpu eval`.

use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::data::DatasetArgs;
use super::inference::{TrainedArgs, dims};
use super::output::bar;
use super::{eprintln_lossy, is_quiet, print};
use crate::app::io::prior::{FITTED_TO, Kind};
use crate::error::Error;
use crate::runtime::op::Likelihood;
use crate::vae::data;
use crate::vae::data::{Dataset, Images};
use crate::vae::eval;
use crate::vae::eval::{Evaluation, Options, advice, dims_with_share, psnr};
use crate::vae::inference::{Model, Trained, posterior_means};
use crate::vae::metrics::SlicedWasserstein;
use crate::vae::model::Mode;
use crate::vae::pca::Pca;
use crate::vae::prior::Prior;

#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    /// Also compute the importance-weighted (IWAE) bound with K draws per image; 0 skips it.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    iwae: u32,
    /// Seed of the noise.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Skip the baseline: PCA with as many components as latent dimensions, which reads the training images several times.
    #[arg(long)]
    no_pca: bool,
    /// Number of images from which sliced Wasserstein distances are computed; 0 skips them.
    #[arg(long, value_name = "N", default_value_t = 2048, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    distances: u32,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
}

/// Share of the KL divergence of which the report says how many latent dimensions carry it.
const MOST: f64 = 0.9;

#[derive(Serialize)]
struct Report<'a> {
    model: String,
    device: String,
    data: &'a str,
    likelihood: Likelihood,
    #[serde(flatten)]
    evaluation: Evaluation,
    /// `kl_dims` in descending order.
    kl_sorted: Vec<f64>,
    /// Number of latent dimensions that carry [`MOST`] of the KL divergence.
    kl_90: usize,
    distances: Option<Distances>,
    pca: Option<PcaBaseline>,
}

/// Sliced Wasserstein distances to test images, in thousandths, averaged over the levels of the pyramid.
#[derive(Serialize)]
struct Distances {
    /// Number of images in each set.
    images: usize,
    /// Training images: the distance of two sets of real images.
    training_images: f64,
    reconstructions: f64,
    /// Samples from N(0, I).
    normal: f64,
    /// Samples from the fitted mixture, if there is one.
    mixture: Option<f64>,
    /// Samples from the second-stage VAE, if there is one.
    second_stage: Option<f64>,
}

/// Reconstruction error of PCA on the same images.
#[derive(Serialize)]
struct PcaBaseline {
    components: usize,
    /// Number of training images that PCA was fitted to.
    images: usize,
    mse: f64,
    psnr: f64,
}

impl EvalArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let model = self.trained.load()?;
        let dataset = self.trained.dataset(&self.dataset, &model)?;
        let count = dataset.test.len();
        let mut trained =
            self.trained.start_with(!self.json, &model, &[(Mode::Encode, count), (Mode::Decode, count)])?;
        let bar = bar(count, "evaluating");
        let options = Options { seed: self.seed, iwae: self.iwae as usize };
        let evaluation = eval::evaluate(&mut trained, dataset.test.as_ref(), &options, &mut |done| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let distances = match self.distances as usize {
            0 => None,
            count => Some(Distances::of(&mut trained, &dataset, &self.priors(&model)?, count, self.seed)?),
        };
        let pca = if self.no_pca { None } else { Some(PcaBaseline::of(&dataset, model.config.latent_dim)?) };
        let report = Report {
            model: model.path.display().to_string(),
            device: trained.describe(),
            data: &dataset.name,
            likelihood: model.config.likelihood,
            kl_sorted: descending(&evaluation.kl_dims),
            kl_90: dims_with_share(&evaluation.kl_dims, MOST),
            evaluation,
            distances,
            pca,
        };
        if self.json {
            print(serde_json::to_string_pretty(&report)?)?;
        } else {
            report.print()?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// N(0, I) and the priors that were fitted to the model. Warns about those that were fitted to earlier weights.
    fn priors(&self, model: &Model) -> anyhow::Result<Vec<Prior>> {
        let mut priors = vec![Prior::Normal(model.config.latent_dim)];
        for kind in [Kind::Mixture, Kind::SecondStage] {
            match self.trained.prior(model, kind) {
                Ok(prior) => priors.extend(prior),
                Err(error) => match error.downcast() {
                    Ok(Error::Checkpoint { path, what, .. }) if what == FITTED_TO => eprintln_lossy(format_args!(
                        "warning: {} was fitted to other weights, and no samples are drawn from it. Fit it again with `{}`",
                        path.display(),
                        kind.command(&model.path)
                    )),
                    Ok(other) => return Err(other.into()),
                    Err(other) => return Err(other),
                },
            }
        }
        Ok(priors)
    }
}

fn descending(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    sorted
}

impl Distances {
    fn of(trained: &mut Trained, dataset: &Dataset, priors: &[Prior], count: usize, seed: u64) -> anyhow::Result<Self> {
        let (latent, dims) = (trained.config().latent_dim, dims(trained.config()));
        let count = count.min(dataset.test.len()).min(dataset.train.len());
        let bar = bar(3 + priors.len(), "comparing sets of images");
        let set = |images: &[f32]| {
            bar.inc(1);
            SlicedWasserstein::new(images, dims[0], dims[1])
        };
        let read = |images: &dyn Images| {
            let mut pixels = Vec::new();
            data::batch(images, &(0..count as u32).collect::<Vec<_>>(), &mut pixels)?;
            Ok::<_, Error>(pixels)
        };
        let floats = |pixels: &[u8]| pixels.iter().map(|byte| f32::from(*byte) / 127.5 - 1.0).collect::<Vec<_>>();
        let test = read(dataset.test.as_ref())?;
        let real = set(&floats(&test))?;
        let labels = data::labels(dataset.test.as_ref(), &(0..count as u32).collect::<Vec<_>>());
        let z = posterior_means(&trained.encode((&test, &labels))?, latent);
        let reconstructions = real.distance(&set(&trained.decode((&z, &labels))?)?)?;
        let training_images = real.distance(&set(&floats(&read(dataset.train.as_ref())?))?)?;
        let (mut normal, mut mixture, mut second_stage) = (0.0, None, None);
        for prior in priors {
            let z = prior.sample(count, &labels, seed, 1.0)?;
            let distance = real.distance(&set(&trained.decode((&z, &labels))?)?)?;
            match prior {
                Prior::Normal(_) => normal = distance,
                Prior::Mixture(_) => mixture = Some(distance),
                Prior::SecondStage(_) => second_stage = Some(distance),
            }
        }
        bar.finish_and_clear();
        Ok(Self { images: count, training_images, reconstructions, normal, mixture, second_stage })
    }
}

impl PcaBaseline {
    fn of(dataset: &Dataset, components: usize) -> anyhow::Result<Self> {
        let spinner = if is_quiet() { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg}") {
            spinner.set_style(style);
        }
        let pca = Pca::fit(dataset.train.as_ref(), components, &mut |pass| {
            spinner.set_message(format!("fitting PCA, pass {pass} over the training images"));
            spinner.tick();
        })?;
        spinner.finish_and_clear();
        let mse = pca.mse(dataset.test.as_ref())?;
        Ok(Self { components: pca.components(), images: dataset.train.len(), mse, psnr: psnr(mse) })
    }
}

impl Report<'_> {
    fn print(&self) -> anyhow::Result<()> {
        let e = &self.evaluation;
        print(format_args!("{} on {} test images of {}", self.model, e.images, self.data))?;
        print(format_args!("on {}", self.device))?;
        print(format_args!("{:<28} {:>16} {:>18}", "", "per dimension", "nats per image"))?;
        for (name, value, nats) in
            [("total", e.total, e.total_nats), ("recon", e.recon, e.recon_nats), ("kl", e.kl, e.kl_nats)]
        {
            print(format_args!("{name:<28} {value:>16.6} {nats:>18.3}"))?;
        }
        print(format_args!("{:<28} {:>16.6}", "bits per dimension", e.bits_per_dim))?;
        print("  (uniform: 8.00; one Gaussian with full covariance: 4.70 on CIFAR-10)")?;
        if let Some(bound) = &e.iwae {
            let name = format!("-log p(x) <=, {} draws", bound.samples);
            print(format_args!("{name:<28} {:>16.6} {:>18.3}", bound.nats_per_dim, bound.nats))?;
        }
        print(format_args!("{:<28} {:>16} {:>18} {:>10}", "", "squared error", "PSNR in dB", "SSIM"))?;
        print(format_args!("{:<28} {:>16.6} {:>18.3} {:>10.4}", "decoded latent mean", e.mse, e.psnr, e.ssim))?;
        if let Some(pca) = &self.pca {
            let name = format!("PCA, {} components", pca.components);
            print(format_args!("{name:<28} {:>16.6} {:>18.3}", pca.mse, pca.psnr))?;
        }
        if let Some(d) = &self.distances {
            print(format_args!("sliced Wasserstein distance of {} images to test images, in thousandths", d.images))?;
            let rows = [("training images", d.training_images), ("reconstructions", d.reconstructions)];
            let samples = [
                ("samples from N(0, I)", Some(d.normal)),
                ("samples from the mixture", d.mixture),
                ("samples from second stage", d.second_stage),
            ];
            let samples = samples.into_iter().filter_map(|(name, distance)| Some((name, distance?)));
            for (name, distance) in rows.into_iter().chain(samples) {
                print(format_args!("{name:<28} {distance:>16.1}"))?;
            }
        }
        print(format_args!(
            "active units: {} of {}; {} of {} dimensions carry {:.0} % of the KL",
            e.active_units,
            e.latent_dim,
            self.kl_90,
            e.latent_dim,
            100.0 * MOST
        ))?;
        for advice in advice(&e.kl_dims, self.likelihood, e.mse, self.pca.as_ref().map(|pca| pca.mse)) {
            print(advice)?;
        }
        Ok(())
    }
}
