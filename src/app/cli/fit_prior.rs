//! `vae-wgpu fit-prior`.

use std::process::ExitCode;

use clap::Args;

use super::data::DatasetArgs;
use super::eprintln_lossy;
use super::inference::TrainedArgs;
use super::output::bar;
use crate::app::io::prior;
use crate::vae::data::{Images, labels};
use crate::vae::inference::{Model, Trained};
use crate::vae::model::Mode;
use crate::vae::prior::{Mixture, encode};

/// Components of a mixture unless an option says otherwise.
pub(super) const COMPONENTS: u32 = 10;

#[derive(Args, Debug)]
pub(super) struct FitPriorArgs {
    /// Number of Gaussians in the mixture.
    #[arg(long, value_name = "N", default_value_t = COMPONENTS, value_parser = clap::value_parser!(u32).range(1..=1000))]
    components: u32,
    /// Seed of the noise and of the first centers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
}

impl FitPriorArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let model = self.trained.load()?;
        let dataset = self.trained.dataset(&self.dataset, &model.config)?;
        let images = dataset.train.as_ref();
        let mut trained = self.trained.start(&model, &[(Mode::Encode, images.len())])?;
        let said = fit(&model, &mut trained, images, self.components as usize, self.seed)?;
        eprintln_lossy(said);
        Ok(ExitCode::SUCCESS)
    }
}

/// Fits a mixture to the encoded images and saves it beside the model. Returns a line that describes it.
pub(super) fn fit(
    model: &Model,
    trained: &mut Trained,
    images: &dyn Images,
    components: usize,
    seed: u64,
) -> anyhow::Result<String> {
    let encoding = bar(images.len(), "encoding");
    let latents = encode(trained, images, seed, &mut |done| encoding.set_position(done as u64))?;
    encoding.finish_and_clear();
    let fitting = bar(100, "fitting the prior");
    let mut density = 0.0;
    let (latent, mut follow) = (model.config.latent_dim, |iteration: usize, now| {
        fitting.set_position(iteration as u64);
        density = now;
    });
    let mixture = if model.config.classes == 0 {
        Mixture::fit(&latents, latent, components, seed, &mut follow)?
    } else {
        let labels = labels(images, &(0..images.len() as u32).collect::<Vec<_>>());
        Mixture::fit_classes(&latents, &labels, latent, components, seed, &mut follow)?
    };
    fitting.finish_and_clear();
    let path = prior::save(&mixture, model)?;
    let count = mixture.components();
    Ok(format!(
        "prior   mixture of {count} Gaussians, log density of the encoded images {density:.2} nats (N(0, I): {:.2}): {}",
        standard_log_density(&latents, model.config.latent_dim),
        path.display()
    ))
}

/// Mean log density of latent vectors under N(0, I), in nats.
fn standard_log_density(latents: &[f32], dims: usize) -> f64 {
    let squares: f64 = latents.iter().map(|v| f64::from(*v).powi(2)).sum();
    -0.5 * (squares / (latents.len() / dims) as f64 + dims as f64 * std::f64::consts::TAU.ln())
}
