//! The learning rate range test: a short training during which the learning rate rises until the loss does (Smith, arXiv:1506.01186).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::epoch::start_step;
use super::parts::Parts;
use super::shared_step::Share;
use super::start::{initialize, runner};
use super::{Outcome, Settings, TrainContext, loader};
use crate::error::{Error, Result};
use crate::vae::data::Images;
use crate::vae::runner::Hyperparams;
use crate::vae::weights::Weights;

/// Number of steps.
const STEPS: u64 = 100;
/// First and last learning rate.
const RATES: [f64; 2] = [1e-6, 1.0];
/// Steps before the test may end because the loss rises.
const LEAST: usize = 20;
/// Weight of earlier losses in the smoothed loss.
const KEEP: f64 = 0.9;
/// Distance in steps over which the slope of the smoothed loss is measured.
const SPAN: usize = 6;

/// A step of the test.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RangePoint {
    /// Learning rate.
    pub lr: f64,
    /// Loss before the step, in nats per dimension of an image.
    pub loss: f64,
    /// Moving average of the loss, without bias to its first values.
    pub smoothed: f64,
}

/// Trains for up to 100 steps while the learning rate rises from 1e-6 to 1 in equal factors. The test ends earlier when the smoothed loss
/// has risen above its start by more than it fell, at a loss that is not finite, and when the run is stopped, which the outcome says. The
/// learning rate and the schedule of the settings are not used.
///
/// # Errors
/// As [`Trainer::new`](super::Trainer::new) and [`Trainer::run`](super::Trainer::run).
pub fn range_test(
    mut settings: Settings,
    init: Option<&Weights>,
    context: TrainContext<'_>,
) -> Result<(Vec<RangePoint>, Outcome)> {
    settings.check()?;
    Share::WHOLE.check(&settings)?;
    let parts = Arc::new(Parts::of_dataset(context.dataset, settings.val_split)?);
    let mut runner = runner(&mut settings, Share::WHOLE, &parts, &context)?;
    initialize(&mut runner, &settings, init)?;
    let per_epoch = settings.steps_per_epoch(parts.train.len());
    let (mut points, mut outcome) = (Vec::new(), Outcome::Finished);
    for epoch in 1..=STEPS.div_ceil(per_epoch.max(1)) {
        let part = loader::Epoch { number: epoch, first_step: (epoch - 1) * per_epoch, done: 0 };
        std::thread::scope(|scope| {
            for batch in loader::start(scope, &settings, &parts.train, Share::WHOLE, part)? {
                let step = points.len() as u64;
                if step == STEPS || has_risen(&points) {
                    return Ok(());
                }
                if context.stop.load(Ordering::Relaxed) {
                    outcome = Outcome::Interrupted;
                    return Ok(());
                }
                let lr = rate(step);
                context.observer.waiting(&format!("trying learning rate {lr:.1e}, step {} of {STEPS}", step + 1));
                let hyper = Hyperparams { lr, ..settings.hyperparams(step, STEPS) };
                start_step(&mut runner, &settings, &batch?, &hyper)?;
                let report = runner.reports(true)?.pop().ok_or_else(|| Error::bug("a step without a report"))?;
                if !report.finite {
                    return Ok(());
                }
                push(&mut points, lr, f64::from(report.total));
            }
            Ok::<_, Error>(())
        })?;
        if (points.len() as u64) < epoch * per_epoch {
            break;
        }
    }
    Ok((points, outcome))
}

/// Learning rate of a step, from 0.
fn rate(step: u64) -> f64 {
    RATES[0] * (RATES[1] / RATES[0]).powf(step as f64 / (STEPS - 1) as f64)
}

fn push(points: &mut Vec<RangePoint>, lr: f64, loss: f64) {
    // The average of the losses so far with weights KEEP^age.
    let weight = |count: usize| 1.0 - KEEP.powi(count as i32);
    let before = points.last().map_or(0.0, |last| last.smoothed * weight(points.len()));
    let smoothed = (KEEP * before + (1.0 - KEEP) * loss) / weight(points.len() + 1);
    points.push(RangePoint { lr, loss, smoothed });
}

/// Whether the smoothed loss has risen above the first losses, by more than it fell and by more than they differ.
fn has_risen(points: &[RangePoint]) -> bool {
    let (Some(first), Some(last)) = (points.get(..LEAST), points.last()) else { return false };
    let lowest = points.iter().map(|point| point.smoothed).fold(f64::INFINITY, f64::min);
    let losses = || first.iter().map(|point| point.loss);
    let start = losses().sum::<f64>() / LEAST as f64;
    let spread = losses().fold(f64::NEG_INFINITY, f64::max) - losses().fold(f64::INFINITY, f64::min);
    last.smoothed - start > spread.max(start - lowest)
}

/// Returns the learning rate at which the smoothed loss fell most, if it fell.
#[must_use]
pub fn steepest(points: &[RangePoint]) -> Option<f64> {
    let slopes = points.windows(SPAN + 1).filter_map(|window| {
        let (first, middle, last) = (window.first()?, window.get(SPAN / 2)?, window.last()?);
        Some((last.smoothed - first.smoothed, middle.lr))
    });
    slopes.filter(|(slope, _)| *slope < 0.0).min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, lr)| lr)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::runtime::plan;
    use crate::vae::data::shapes;
    use crate::vae::model::VaeConfig;
    use crate::vae::runner::Device;
    use crate::vae::train::events::Quiet;

    /// The points of a loss that is a function of the learning rate.
    fn points(loss: fn(f64) -> f64) -> Vec<RangePoint> {
        let mut points = Vec::new();
        for lr in (0..STEPS).map(rate) {
            push(&mut points, lr, loss(lr));
        }
        points
    }

    #[test]
    fn smoothed_loss_is_a_weighted_mean() {
        let constant = points(|_| 3.0);
        assert!(constant.iter().all(|point| (point.smoothed - 3.0).abs() < 1e-12));
        let two = &points(|lr| if lr < 1.1e-6 { 1.0 } else { 2.0 })[1];
        assert!((two.smoothed - (0.9 * 1.0 + 2.0) / 1.9).abs() < 1e-12, "{two:?}");
    }

    #[test]
    fn steepest_fall_is_found_and_a_rise_ends_the_test() {
        // Falls fastest per factor of the learning rate at 1e-3, and explodes above 0.1.
        let valley = points(|lr| 1.0 / (1.0 + lr / 1e-3) + (lr / 0.1).powi(4));
        let found = steepest(&valley).unwrap();
        assert!((1e-3..4e-3).contains(&found), "{found}");
        assert!(has_risen(&valley) && !has_risen(&valley[..60]));
        // Noise is no rise.
        assert!(!has_risen(&points(|lr| 1.0 + 0.1 * (lr * 1e9).sin())[..LEAST + 5]));
        assert_eq!(steepest(&points(|lr| lr)), None);
        assert_eq!(steepest(&[]), None);
    }

    #[test]
    fn loss_of_a_model_falls_and_the_test_repeats() {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, ..VaeConfig::default() };
        let settings = Settings { model, batch_size: 2, ..Settings::default() };
        // Fewer steps per epoch than the test has.
        let dataset = shapes::dataset().unwrap().limited(Some(10), Some(2)).unwrap();
        let run = |stopped: bool| {
            let (plan, stop) = (plan::Options::default(), AtomicBool::new(stopped));
            let context = TrainContext {
                dataset: &dataset,
                device: &Device::Cpu,
                plan: &plan,
                observer: &mut Quiet,
                stop: &stop,
            };
            range_test(settings.clone(), None, context).unwrap()
        };
        let (points, outcome) = run(false);
        assert_eq!(outcome, Outcome::Finished);
        assert!(points.len() > LEAST && points.len() <= STEPS as usize, "{} points", points.len());
        assert!(points.iter().map(|point| point.smoothed).fold(f64::INFINITY, f64::min) < points[0].smoothed);
        assert_eq!((points, outcome), run(false));
        assert_eq!(run(true), (Vec::new(), Outcome::Interrupted));
    }
}
