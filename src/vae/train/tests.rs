//! Tests of whole runs on the CPU reference.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::runtime::op::Likelihood;
use crate::runtime::plan;
use crate::vae::data::shapes;
use crate::vae::model::{Norm, POSTERIOR_BIAS};
use crate::vae::train::events::Quiet;
use crate::vae::train::memory_store::InMemoryRun;

#[test]
fn classes_are_those_of_the_data_set() {
    let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, classes: 12, ..VaeConfig::default() };
    let dataset = shapes::dataset().unwrap().limited(Some(8), Some(4)).unwrap();
    let (plan, stop) = (plan::Options::default(), AtomicBool::new(false));
    let context =
        TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut Quiet, stop: &stop };
    let mut run = InMemoryRun::default();
    let error = Trainer::new(Settings { model, ..Settings::default() }, &mut run, None, context).unwrap_err();
    assert!(error.to_string().contains("classes of the model"), "{error}");
}

/// Keeps warnings.
struct Warnings(Vec<String>);

impl Observer for Warnings {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Warning { message } = event {
            self.0.push((*message).to_owned());
        }
        Ok(())
    }
}

#[test]
fn run_ends_early_without_progress_and_stays_ended() {
    // Without learning, and with a norm without running statistics, the validation loss stays the same.
    let model = VaeConfig {
        channels: 2,
        blocks: 1,
        latent_dim: 3,
        norm: Norm::Position,
        likelihood: Likelihood::Unit,
        ..VaeConfig::default()
    };
    let dataset = shapes::dataset().unwrap().limited(Some(8), Some(4)).unwrap();
    let (plan, stop, mut warnings) = (plan::Options::default(), AtomicBool::new(false), Warnings(Vec::new()));
    let settings =
        Settings { model, batch_size: 8, epochs: 10, lr: 0.0, warmup: 20, early_stop: 2, ..Settings::default() };
    let mut run = InMemoryRun::default();
    for expected in
        [["the learning rate rises to 0.00e0, not to 0. --warmup shortens it", "has not fallen for 2 epochs"]; 2]
    {
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut warnings, stop: &stop };
        let mut trainer = match run.checkpoint {
            None => Trainer::new(settings.clone(), &mut run, None, context).unwrap(),
            Some(_) => Trainer::resume(settings.clone(), &mut run, context).unwrap(),
        };
        assert_eq!(trainer.run().unwrap(), Outcome::Finished);
        assert_eq!(run.epochs.len(), 3);
        let said = std::mem::take(&mut warnings.0);
        assert!(said.len() == 2 && said.iter().zip(expected).all(|(said, part)| said.contains(part)), "{said:?}");
    }
}

/// Keeps the rows of steps, and stops the run after one of them.
struct Steps<'a> {
    rows: Vec<StepRow>,
    stop: &'a AtomicBool,
    after: u64,
}

impl Observer for Steps<'_> {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Step(row) = event {
            self.rows.push(**row);
            self.stop.store(row.step == self.after, Ordering::Relaxed);
        }
        Ok(())
    }
}

#[test]
fn accumulated_run_has_the_steps_of_larger_batches_and_resumes_identically() {
    let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, norm: Norm::Position, ..VaeConfig::default() };
    let model = VaeConfig { likelihood: Likelihood::Unit, ..model };
    let dataset = shapes::dataset().unwrap().limited(Some(10), Some(4)).unwrap();
    let plan = plan::Options::default();
    // Ten images in steps of six and four, for two epochs.
    let settings = Settings { model, batch_size: 2, accumulate: 3, epochs: 2, val_split: 0.0, ..Settings::default() };
    let part = |settings: &Settings, run: &mut InMemoryRun, after: u64| {
        let stop = AtomicBool::new(false);
        let mut steps = Steps { rows: Vec::new(), stop: &stop, after };
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut steps, stop: &stop };
        let mut trainer = match run.checkpoint {
            None => Trainer::new(settings.clone(), run, None, context).unwrap(),
            Some(_) => Trainer::resume(settings.clone(), run, context).unwrap(),
        };
        let outcome = trainer.run().unwrap();
        drop(trainer);
        (outcome, steps.rows)
    };
    let [mut whole, mut parts, mut large] = std::array::from_fn(|_| InMemoryRun::default());
    let (outcome, rows) = part(&settings, &mut whole, 0);
    assert_eq!(outcome, Outcome::Finished);
    assert_eq!(rows.iter().map(|row| (row.step, row.epoch)).collect::<Vec<_>>(), [(1, 1), (2, 1), (3, 2), (4, 2)]);
    // After the first step of each epoch.
    assert_eq!(part(&settings, &mut parts, 1).0, Outcome::Interrupted);
    assert_eq!(part(&settings, &mut parts, 3).0, Outcome::Interrupted);
    assert_eq!(part(&settings, &mut parts, 0).0, Outcome::Finished);
    let tensors = |run: &InMemoryRun| run.checkpoint.as_ref().unwrap().tensors.clone();
    assert!(tensors(&whole) == tensors(&parts));
    let (_, expected) = part(&Settings { batch_size: 6, accumulate: 1, ..settings.clone() }, &mut large, 0);
    assert_eq!(rows.len(), expected.len());
    for (row, expected) in rows.iter().zip(&expected) {
        assert!((row.total - expected.total).abs() < 1e-4 * expected.total, "{row:?} against {expected:?}");
        assert_eq!(row.lr, expected.lr);
    }
    let means = [&whole, &large].map(|run| run.epochs[0].train_total);
    assert!((means[0] - means[1]).abs() < 1e-4, "{means:?}");
}

#[test]
fn posterior_starts_with_the_chosen_width() {
    let first = |posterior_std| {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, ..VaeConfig::default() };
        let settings = Settings { model, batch_size: 4, posterior_std, ..Settings::default() };
        let dataset = shapes::dataset().unwrap().limited(Some(8), Some(4)).unwrap();
        let (plan, stop) = (plan::Options::default(), AtomicBool::new(false));
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut Quiet, stop: &stop };
        let mut run = InMemoryRun::default();
        Trainer::new(settings, &mut run, None, context).unwrap();
        run.checkpoint.unwrap().tensors
    };
    let (wide, narrow) = (first(1.0), first(0.05));
    let differing: Vec<_> = wide.iter().filter(|(name, array)| narrow[*name] != **array).collect();
    assert_eq!(differing.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), [POSTERIOR_BIAS]);
    let (wide, narrow) = (&wide[POSTERIOR_BIAS].data, &narrow[POSTERIOR_BIAS].data);
    assert_eq!(wide[..3], narrow[..3]);
    assert!(wide[3..].iter().zip(&narrow[3..]).all(|(a, b)| (b - a - 0.05f32.ln()).abs() < 1e-6));
}
