//! What a model is worth: its losses on the test set.

use std::sync::atomic::Ordering;

use super::{Trainer, noise};
use crate::error::Result;
use crate::vae::data;

/// A latent number is active where its mean varies more than this over the data (Burda et al., arXiv:1509.00519).
const ACTIVE_VARIANCE: f64 = 0.01;
/// Streams of noise beyond those of any step, one a batch.
const VALIDATION_NOISE: u64 = 1 << 62;

/// Means over the test set.
pub(super) struct Validation {
    pub(super) total: f64,
    pub(super) recon: f64,
    pub(super) kl: f64,
    pub(super) mse: f64,
    pub(super) active_units: u64,
}

impl Trainer<'_> {
    /// Means over the whole test set with running statistics; nothing where the run is to end.
    pub(super) fn validate(&mut self) -> Result<Option<Validation>> {
        let latent = self.settings.model.latent_dim;
        let images = self.dataset.test.as_ref();
        let all: Vec<u32> = (0..images.len() as u32).collect();
        let (mut sums, mut moments) = ([0.0f64; 4], vec![(0.0f64, 0.0f64); latent]);
        let mut pixels = Vec::new();
        for (i, indices) in all.chunks(self.settings.batch_size).enumerate() {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let n = indices.len();
            data::batch(images, indices, &mut pixels)?;
            let eps = noise(&self.settings, VALIDATION_NOISE + i as u64, n);
            let sampled = self.runner.losses(n, &pixels, &eps, self.settings.beta)?;
            // Without noise the latent mean is decoded; recon is half the mean squared error and a constant.
            let still = self.runner.losses(n, &pixels, &vec![0.0; n * latent], self.settings.beta)?;
            let mse = 2.0 * (f64::from(still.recon) - 0.5 * std::f64::consts::TAU.ln());
            let terms = [f64::from(sampled.total), f64::from(sampled.recon), f64::from(sampled.kl), mse];
            for (sum, term) in sums.iter_mut().zip(terms) {
                *sum += term * n as f64;
            }
            for h in sampled.h.chunks_exact(2 * latent) {
                for ((sum, squares), mu) in moments.iter_mut().zip(h) {
                    *sum += f64::from(*mu);
                    *squares += f64::from(*mu).powi(2);
                }
            }
        }
        let count = images.len() as f64;
        let variance = |(sum, squares): &(f64, f64)| squares / count - (sum / count).powi(2);
        let active_units = moments.iter().filter(|m| variance(m) > ACTIVE_VARIANCE).count() as u64;
        let [total, recon, kl, mse] = sums.map(|sum| sum / count);
        Ok(Some(Validation { total, recon, kl, mse, active_units }))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    use super::super::{Outcome, Settings, TrainContext, Trainer};
    use super::*;
    use crate::app::io::atomic::trace;
    use crate::app::io::csv::{EpochRow, read};
    use crate::app::io::run_folder::RunFolder;
    use crate::runtime::plan;
    use crate::vae::data::shapes;
    use crate::vae::model::VaeConfig;
    use crate::vae::runner::Device;
    use crate::vae::train::events::{Event, Observer};

    /// Ends the run once this step is done.
    struct Stopper(u64, Arc<AtomicBool>);

    impl Observer for Stopper {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            self.1.fetch_or(matches!(event, Event::Step(row) if row.step == self.0), Ordering::Relaxed);
            Ok(())
        }
    }

    /// Three epochs of two steps, or what comes until `step` is done.
    fn run(folder: &Path, step: u64) -> Outcome {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
        let settings = Settings { model, batch_size: 4, epochs: 3, ..Settings::default() };
        let dataset = shapes::dataset().unwrap().limited(Some(6), Some(6)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (plan, mut stopper) = (plan::Options::default(), Stopper(step, Arc::clone(&stop)));
        let stage =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut stopper, stop: &stop };
        let trainer = if folder.exists() {
            Trainer::resume(settings, RunFolder::resume(folder).unwrap(), stage)
        } else {
            Trainer::new(settings, RunFolder::create(Some(folder), false).unwrap(), None, stage)
        };
        trainer.unwrap().run().unwrap()
    }

    #[test]
    fn a_run_that_is_stopped_before_its_epoch_is_validated_goes_on_there() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        assert_eq!(run(&whole, u64::MAX), Outcome::Finished);
        let epochs = |folder: &Path| {
            let rows = read::<EpochRow>(&folder.join("epochs.csv")).unwrap();
            rows.into_iter().map(|row| EpochRow { seconds: 0.0, ..row }).collect::<Vec<_>>()
        };
        // The last steps of the first epoch and of the last.
        for (step, done) in [(1, 0), (5, 2)] {
            assert_eq!((run(&parts, step), epochs(&parts).len()), (Outcome::Interrupted, done));
        }
        assert_eq!(run(&parts, u64::MAX), Outcome::Finished);
        assert_eq!(epochs(&parts), epochs(&whole));
        // Rows before the checkpoint that counts on them.
        let notes = trace::take();
        assert_eq!(notes.split_last_chunk().unwrap().1, &["sync rows", "sync rows", "sync", "rename", "sync folder"]);
        for file in ["checkpoint.safetensors", "model.safetensors", "samples/epoch_01.png", "samples/epoch_03.png"] {
            assert!(fs::read(parts.join(file)).unwrap() == fs::read(whole.join(file)).unwrap(), "{file} differs");
        }
    }
}
