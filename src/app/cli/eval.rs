//! `vae-wgpu eval`.

use std::process::ExitCode;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use super::data::DatasetArgs;
use super::out;
use super::trained::{TrainedArgs, bar};
use crate::vae::data::Dataset;
use crate::vae::eval;
use crate::vae::eval::{Evaluation, Options, psnr};
use crate::vae::model::Mode;
use crate::vae::pca::Pca;

/// Measure a trained model on the test pictures.
#[derive(Args, Debug)]
pub(super) struct EvalArgs {
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Also the importance-weighted bound with K draws a picture.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    iwae: u32,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Leave out PCA with as many components, the yardstick, which reads the training pictures several times.
    #[arg(long)]
    no_pca: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    model: String,
    device: String,
    data: &'a str,
    #[serde(flatten)]
    evaluation: Evaluation,
    pca: Option<PcaBaseline>,
}

/// What PCA does on the same pictures.
#[derive(Serialize)]
struct PcaBaseline {
    components: usize,
    /// Training pictures that it was fitted to.
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
            self.trained.start_telling(!self.json, &model, &[(Mode::Encode, count), (Mode::Decode, count)])?;
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
            evaluation,
            pca,
        };
        if self.json {
            out(serde_json::to_string_pretty(&report)?)?;
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
            spinner.set_message(format!("fitting PCA, pass {pass} over the training pictures"));
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
        out(format_args!("{} on {} test pictures of {}, {}", self.model, e.images, self.data, self.device))?;
        out(format_args!("{:<28} {:>16} {:>18}", "", "per dimension", "nats per picture"))?;
        for (name, value, nats) in
            [("total", e.total, e.total_nats), ("recon", e.recon, e.recon_nats), ("kl", e.kl, e.kl_nats)]
        {
            out(format_args!("{name:<28} {value:>16.6} {nats:>18.3}"))?;
        }
        if let Some(bound) = &e.iwae {
            let name = format!("-log p(x) <=, {} draws", bound.samples);
            out(format_args!("{name:<28} {:>16.6} {:>18.3}", bound.nats_per_dim, bound.nats))?;
        }
        out(format_args!("{:<28} {:>16} {:>18}", "", "squared error", "PSNR in dB"))?;
        out(format_args!("{:<28} {:>16.6} {:>18.3}", "latent mean decoded", e.mse, e.psnr))?;
        if let Some(pca) = &self.pca {
            let name = format!("PCA, {} components", pca.components);
            out(format_args!("{name:<28} {:>16.6} {:>18.3}", pca.mse, pca.psnr))?;
        }
        out(format_args!("active units: {} of {}", e.active_units, e.latent_dim))
    }
}
