//! The model of a run at its start: its programs on the device and its initial weights.

use std::fmt;
use std::ops::Deref;

use super::parts::Parts;
use super::shared_step::Share;
use super::{Settings, TrainContext, artifacts};
use crate::error::{Error, Result};
use crate::runtime::graph::{Arena, initial};
use crate::runtime::plan;
use crate::vae::data::Images;
use crate::vae::inference::check_size;
use crate::vae::model::{Mode, POSTERIOR_BIAS, VaeConfig};
use crate::vae::runner::{Runner, batch_sizes};
use crate::vae::weights::Weights;

/// Creates the model on its device with a program for every batch size of the run.
pub(super) fn runner(
    settings: &mut Settings,
    share: Share,
    parts: &Parts<&dyn Images>,
    context: &TrainContext<'_>,
) -> Result<Runner> {
    let plan = plan_of(settings, context.plan);
    let model = &settings.model;
    for images in [&context.dataset.train, &context.dataset.test] {
        check_images(model, images.as_ref())?;
    }
    let mut programs = programs(settings, share, parts);
    programs.push((artifacts::shown_images(context.dataset.test.as_ref()).len(), Mode::Evaluate));
    programs.push((artifacts::sample_labels(model.classes).len(), Mode::Decode));
    Runner::new(*model, &programs, context.device, &plan)
}

/// Returns the options of the plan. Kernel variants in `plan` replace those of the settings, which else count.
pub(super) fn plan_of(settings: &mut Settings, plan: &plan::Options) -> plan::Options {
    if !plan.variants.is_empty() {
        settings.variants.clone_from(&plan.variants);
    }
    plan::Options { variants: settings.variants.clone(), ..plan.clone() }
}

/// Checks that a model fits the size and the classes of images.
pub(super) fn check_images(model: &VaeConfig, images: &dyn Images) -> Result<()> {
    check_size(model, images)?;
    if ![0, images.classes().len()].contains(&model.classes) {
        return Err(Error::argument("classes of the model", images.classes().len(), model.classes));
    }
    Ok(())
}

/// Returns the programs that train and validate.
pub(super) fn programs<I: Deref<Target: Images> + Send + Sync + fmt::Debug>(
    settings: &Settings,
    share: Share,
    parts: &Parts<I>,
) -> Vec<(usize, Mode)> {
    let (train, update) = match settings.accumulate {
        most if settings.sync_batch_norm => {
            (Mode::AccumulateSynchronized(share.micro_batches(settings)), Some((1, Mode::UpdateShares(most))))
        }
        most if !share.is_whole() => {
            (Mode::AccumulateShare(share.micro_batches(settings)), Some((1, Mode::UpdateShares(most))))
        }
        1 => (Mode::Train, None),
        most => (Mode::Accumulate(most), Some((1, Mode::Update))),
    };
    let of = |count, mode| batch_sizes(count, settings.batch_size).map(move |size| (size, mode));
    of(parts.train.len(), train).chain(of(parts.validation.len(), Mode::Evaluate)).chain(update).collect()
}

/// Sets the weights at the start of a run.
pub(super) fn initialize(runner: &mut Runner, settings: &Settings, init: Option<&Weights>) -> Result<()> {
    runner.init(settings.seed)?;
    if let Some(weights) = init {
        runner.upload(Arena::Params, &weights.params)?;
        return runner.upload(Arena::States, &weights.states);
    }
    if settings.posterior_std == 1.0 { Ok(()) } else { set_posterior_std(runner, settings) }
}

/// Adds the logarithm of a standard deviation to the initial bias of the encoder's log_std.
fn set_posterior_std(runner: &mut Runner, settings: &Settings) -> Result<()> {
    let (graph, std) = (runner.graph()?, settings.posterior_std);
    let (_, bias) = graph.tensor(POSTERIOR_BIAS)?;
    let mut params = initial(graph, Arena::Params, settings.seed)?;
    let latent = runner.config().latent_dim;
    let bias = params.get_mut(bias).ok_or_else(|| Error::bug("a parameter that is missing"))?;
    bias.iter_mut().skip(latent).for_each(|log_std| *log_std += std.ln() as f32);
    runner.upload(Arena::Params, &params)
}

/// Returns the largest power of two up to `most` that is a batch size for which the device has memory, at most the number of training
/// images.
///
/// # Errors
/// As [`Trainer::new`](super::Trainer::new), if not even one image fits.
pub fn largest_batch(settings: &Settings, most: usize, context: &TrainContext<'_>) -> Result<usize> {
    let parts = Parts::of_dataset(context.dataset, settings.val_split)?;
    let mut batch = 1 << most.min(parts.train.len()).max(1).ilog2();
    loop {
        let mut settings = Settings { batch_size: batch, ..settings.clone() };
        match runner(&mut settings, Share::WHOLE, &parts, context) {
            Err(Error::DoesNotFit { .. } | Error::OutOfMemory { .. }) if batch > 1 => batch /= 2,
            runner => return runner.map(|_| batch),
        }
    }
}
