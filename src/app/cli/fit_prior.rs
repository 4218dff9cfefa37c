//! `vae-wgpu fit-prior`.

use std::cmp::Ordering;
use std::process::ExitCode;

use clap::{Args, Command, ValueEnum};

use super::data::DatasetArgs;
use super::inference::TrainedArgs;
use super::output::{announce_replaced, bar};
use super::values::stored_model;
use super::{conflict, note};
use crate::app::io::prior;
use crate::app::io::prior::Kind;
use crate::app::io::run_folder::RunFolder;
use crate::runtime::plan;
use crate::vae::data::{Images, labels};
use crate::vae::inference::{Model, Trained};
use crate::vae::model::Mode;
use crate::vae::prior::{Mixture, Prior, SecondStage, SecondStageConfig, encode};
use crate::vae::runner::Device;

/// Components of a mixture unless an option says otherwise.
pub(super) const COMPONENTS: u32 = 10;
/// Training steps of a second-stage VAE.
const STEPS: u64 = 4000;
/// Outputs of the hidden layers of a second-stage VAE.
const HIDDEN: usize = 256;

#[derive(Args, Debug)]
pub(super) struct FitPriorArgs {
    /// What to fit: a mixture of Gaussians, or a second, small VAE of latent vectors, which takes longer.
    #[arg(long, value_enum, default_value = "mixture")]
    kind: KindArg,
    /// Number of Gaussians in the mixture; those of a conditional model are shared out among the classes [default: 10].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
    components: Option<u32>,
    /// Training steps of the second-stage VAE [default: 4000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    steps: Option<u64>,
    /// Seed of all random numbers.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
}

// No doc comments: clap would turn the help texts into the long form.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum KindArg {
    Mixture,
    SecondStage,
}

/// Restricts the command to models beside which a prior can be written.
pub(super) fn of_stored_models(command: Command) -> Command {
    let help = "Run folder written by `vae-wgpu train`, its name if it is in `runs`, or a file with weights";
    command.mut_arg("run", |arg| arg.value_parser(stored_model()).help(help))
}

impl FitPriorArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        match (self.kind, self.components, self.steps) {
            (KindArg::Mixture, _, Some(_)) => {
                return Err(conflict("--steps is for --kind second-stage: leave it out with --kind mixture"));
            }
            (KindArg::SecondStage, Some(_), _) => {
                return Err(conflict("--components is for --kind mixture: leave it out with --kind second-stage"));
            }
            _ => {}
        }
        let model = self.trained.load()?;
        if let Some(run) = RunFolder::of_file(&model.path)
            && RunFolder::view(&run)?.is_in_use()
        {
            anyhow::bail!(
                "cannot fit a prior in {}: another process is writing to the run. Wait until it ends",
                run.display()
            );
        }
        let kind = match self.kind {
            KindArg::Mixture => Kind::Mixture,
            KindArg::SecondStage => Kind::SecondStage,
        };
        announce_replaced(&prior::path(&model, kind));
        let dataset = self.trained.dataset(&self.dataset, &model)?;
        let images = dataset.train.as_ref();
        let device = self.trained.open(true)?;
        let mut trained = self.trained.start_on(&device, &model, &[(Mode::Encode, images.len())])?;
        let said = match self.kind {
            KindArg::Mixture => {
                let components = self.components.unwrap_or(COMPONENTS);
                fit_mixture(&model, &mut trained, images, components as usize, self.seed)?
            }
            KindArg::SecondStage => self.fit_second_stage(&model, &mut trained, images, &device)?,
        };
        note(said);
        Ok(ExitCode::SUCCESS)
    }

    /// Fits a second-stage VAE to the encoded images and saves it beside the model. Returns a line that describes it.
    fn fit_second_stage(
        &self,
        model: &Model,
        trained: &mut Trained,
        images: &dyn Images,
        device: &Device,
    ) -> anyhow::Result<String> {
        let latents = encoded(trained, images, self.seed)?;
        let labels = all_labels(images);
        let steps = self.steps.unwrap_or(STEPS);
        let bar = bar(steps as usize, "fitting the prior");
        let mut last = 0.0;
        let mut follow = |step: u64, loss| {
            bar.set_position(step);
            last = loss;
        };
        let config =
            SecondStageConfig { latent_dim: model.config.latent_dim, classes: model.config.classes, hidden: HIDDEN };
        let options = plan::Options::default();
        let latents = (&latents, &labels);
        let fitted = SecondStage::fit(latents, config, steps, self.seed, device, &options, &mut follow)?;
        bar.finish_and_clear();
        let path = prior::save(&Prior::SecondStage(fitted), model)?;
        let bound = -last * model.config.latent_dim as f64;
        let standard = standard_log_density(latents.0, model.config.latent_dim);
        Ok(format!(
            "prior   VAE of latent vectors, log density of the encoded images at least {bound:.2} nats (N(0, I): {standard:.2}): {}",
            path.display()
        ))
    }
}

/// Encodes images to a sample of each posterior, with a progress bar.
fn encoded(trained: &mut Trained, images: &dyn Images, seed: u64) -> anyhow::Result<Vec<f32>> {
    let encoding = bar(images.len(), "encoding");
    let latents = encode(trained, images, seed, &mut |done| encoding.set_position(done as u64))?;
    encoding.finish_and_clear();
    Ok(latents)
}

fn all_labels(images: &dyn Images) -> Vec<u8> {
    labels(images, &(0..images.len() as u32).collect::<Vec<_>>())
}

/// Fits a mixture to the encoded images and saves it beside the model. Returns a line that describes it.
pub(super) fn fit_mixture(
    model: &Model,
    trained: &mut Trained,
    images: &dyn Images,
    components: usize,
    seed: u64,
) -> anyhow::Result<String> {
    let latents = encoded(trained, images, seed)?;
    let fitting = bar(100, "fitting the prior");
    let mut density = 0.0;
    let (latent, mut follow) = (model.config.latent_dim, |iteration: usize, now| {
        fitting.set_position(iteration as u64);
        density = now;
    });
    let mixture = if model.config.classes == 0 {
        Mixture::fit(&latents, latent, components, seed, &mut follow)?
    } else {
        Mixture::fit_classes(&latents, &all_labels(images), latent, components, seed, &mut follow)?
    };
    fitting.finish_and_clear();
    let count = mixture.components();
    let path = prior::save(&Prior::Mixture(mixture), model)?;
    let note = match count.cmp(&components) {
        Ordering::Less => format!(", as many of {components} as the images allow"),
        Ordering::Equal => String::new(),
        Ordering::Greater => format!(", one for each class and not {components}"),
    };
    Ok(format!(
        "prior   mixture of {count} Gaussians{note}, log density of the encoded images {density:.2} nats (N(0, I): {:.2}): {}",
        standard_log_density(&latents, latent),
        path.display()
    ))
}

/// Mean log density of latent vectors under N(0, I), in nats.
fn standard_log_density(latents: &[f32], dims: usize) -> f64 {
    let squares: f64 = latents.iter().map(|v| f64::from(*v).powi(2)).sum();
    -0.5 * (squares / (latents.len() / dims) as f64 + dims as f64 * std::f64::consts::TAU.ln())
}
