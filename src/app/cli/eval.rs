//! `vae-wgpu eval`.

use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::data::DatasetArgs;
use super::inference::TrainedArgs;
use super::output::bar;
use super::print;
use crate::runtime::op::Likelihood;
use crate::vae::data::Dataset;
use crate::vae::eval;
use crate::vae::eval::{Evaluation, Options, advice, psnr};
use crate::vae::model::Mode;
use crate::vae::pca::Pca;

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
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
}

#[derive(Serialize)]
struct Report<'a> {
    model: String,
    device: String,
    data: &'a str,
    likelihood: Likelihood,
    #[serde(flatten)]
    evaluation: Evaluation,
    pca: Option<PcaBaseline>,
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
        let dataset = self.trained.dataset(&self.dataset, &model.config)?;
        let count = dataset.test.len();
        let mut trained =
            self.trained.start_with(!self.json, &model, &[(Mode::Encode, count), (Mode::Decode, count)])?;
        let bar = bar(count, "evaluating");
        let options = Options { seed: self.seed, iwae: self.iwae as usize };
        let evaluation = eval::evaluate(&mut trained, dataset.test.as_ref(), &options, &mut |done| {
            bar.set_position(done as u64);
        })?;
        bar.finish_and_clear();
        let pca = if self.no_pca { None } else { Some(PcaBaseline::of(&dataset, model.config.latent_dim)?) };
        let report = Report {
            model: model.path.display().to_string(),
            device: trained.describe(),
            data: &dataset.name,
            likelihood: model.config.likelihood,
            evaluation,
            pca,
        };
        if self.json {
            print(serde_json::to_string_pretty(&report)?)?;
        } else {
            report.print()?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl PcaBaseline {
    fn of(dataset: &Dataset, components: usize) -> anyhow::Result<Self> {
        let spinner = ProgressBar::new_spinner();
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
        print(format_args!("{} on {} test images of {}, {}", self.model, e.images, self.data, self.device))?;
        print(format_args!("{:<28} {:>16} {:>18}", "", "per dimension", "nats per image"))?;
        for (name, value, nats) in
            [("total", e.total, e.total_nats), ("recon", e.recon, e.recon_nats), ("kl", e.kl, e.kl_nats)]
        {
            print(format_args!("{name:<28} {value:>16.6} {nats:>18.3}"))?;
        }
        let known = "8.00 for a uniform distribution; CIFAR-10: 4.70 for one Gaussian with full covariance";
        print(format_args!("{:<28} {:>16.6}    ({known})", "bits per dimension", e.bits_per_dim))?;
        if let Some(bound) = &e.iwae {
            let name = format!("-log p(x) <=, {} draws", bound.samples);
            print(format_args!("{name:<28} {:>16.6} {:>18.3}", bound.nats_per_dim, bound.nats))?;
        }
        print(format_args!("{:<28} {:>16} {:>18}", "", "squared error", "PSNR in dB"))?;
        print(format_args!("{:<28} {:>16.6} {:>18.3}", "decoded latent mean", e.mse, e.psnr))?;
        if let Some(pca) = &self.pca {
            let name = format!("PCA, {} components", pca.components);
            print(format_args!("{name:<28} {:>16.6} {:>18.3}", pca.mse, pca.psnr))?;
        }
        print(format_args!("active units: {} of {}", e.active_units, e.latent_dim))?;
        for advice in advice(&e.kl_dims, self.likelihood, e.mse, self.pca.as_ref().map(|pca| pca.mse)) {
            print(advice)?;
        }
        Ok(())
    }
}
