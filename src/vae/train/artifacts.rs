//! What a run leaves in its folder beside its tables: checkpoints, weights, pictures and plots.

use std::collections::BTreeMap;
use std::time::Instant;

use super::{Trainer, noise, tell};
use crate::app::io::checkpoint::{Checkpoint, Progress, TensorSchema, Weights};
use crate::app::io::csv::Table;
use crate::app::io::run_folder::RunConfig;
use crate::app::viz::image_grid::{Grid, ImageBatch, save_png};
use crate::app::viz::plots;
use crate::error::{Error, Result};
use crate::runtime::graph::Arena;
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::train::events::Event;

/// Images in `samples/epoch_NN.png`.
pub(super) const SAMPLES: usize = 49;
/// The stream of their noise, beyond those of any step.
const SAMPLE_NOISE: u64 = 1 << 63;

impl Trainer<'_> {
    /// Turns a failure to write into a warning, the first time: training goes on, as the next attempt may succeed.
    pub(super) fn tolerate(&mut self, result: Result<()>) -> Result<()> {
        match result {
            Err(error @ Error::File { .. }) => {
                if !std::mem::replace(&mut self.warned, true) {
                    let cause = std::error::Error::source(&error).map(|s| format!(": {s}")).unwrap_or_default();
                    tell(
                        self.observer,
                        &mut self.untold,
                        &Event::Warning { message: &format!("{error}{cause}; training goes on") },
                    )?;
                }
                Ok(())
            }
            other => other,
        }
    }

    /// Makes a run folder that is gone again, with what is known of the run.
    pub(super) fn restore(&mut self) -> Result<()> {
        if !self.folder.restore()? {
            return Ok(());
        }
        self.metrics = Table::create(&self.folder.metrics())?;
        self.epochs = Table::create(&self.folder.epochs())?;
        self.steps.iter().try_for_each(|row| self.metrics.push(row))?;
        self.epoch_rows.iter().try_for_each(|row| self.epochs.push(row))?;
        // The weights that were best are gone too.
        self.best = None;
        let (runner, settings) = (&self.runner, self.settings.clone());
        self.folder.save_config(&RunConfig::new(runner.describe(), runner.variants().clone(), settings))?;
        let message = format!("{} was gone and has been made again", self.folder.path().display());
        tell(self.observer, &mut self.untold, &Event::Warning { message: &message })
    }

    pub(super) fn save_model(&mut self) -> Result<()> {
        let weights = self.weights()?;
        let config = serde_json::to_string(&self.settings.model).map_err(Error::bug)?;
        weights.save(&self.folder.model(), TensorSchema::of(self.runner.graph()?), &config)
    }

    fn weights(&mut self) -> Result<Weights> {
        Ok(Weights { params: self.runner.download(Arena::Params)?, states: self.runner.download(Arena::States)? })
    }

    pub(super) fn save_checkpoint(&mut self) -> Result<()> {
        let step = self.runner.step();
        let checkpoint = Checkpoint {
            progress: Progress {
                step,
                epoch: self.finished,
                seed: self.settings.seed,
                settings: serde_json::to_string(&self.settings).map_err(Error::bug)?,
                best: self.best,
                data: Some(self.data.clone()),
            },
            weights: self.weights()?,
            moment1: self.runner.download(Arena::OptimizerState(0))?,
            moment2: self.runner.download(Arena::OptimizerState(1))?,
        };
        let restored = self.restore();
        self.tolerate(restored)?;
        // Rows that cannot be written are no reason to lose a checkpoint.
        let synced = self.metrics.sync().and_then(|()| self.epochs.sync());
        self.tolerate(synced)?;
        checkpoint.save(&self.folder.checkpoint(), TensorSchema::of(self.runner.graph()?))?;
        self.saved = Instant::now();
        Ok(())
    }

    /// The column of the reconstruction history (epoch 0: the originals) and the samples of an epoch.
    pub(super) fn pictures(&mut self, epoch: u64) -> Result<()> {
        let images = self.dataset.test.as_ref();
        let shown = first_of_each_class(images);
        let mut pixels = Vec::new();
        data::batch(images, &shown, &mut pixels)?;
        let (c, h, w) = images.size();
        if epoch == 0 {
            let originals = ImageBatch::from_bytes(&pixels, [c, h, w])?;
            return self.folder.save_reconstructions(0, &originals);
        }
        let still = vec![0.0; shown.len() * self.settings.model.latent_dim];
        let mean = self.runner.evaluate(shown.len(), &pixels, &still, self.settings.beta)?.mean;
        self.folder.save_reconstructions(epoch, &ImageBatch::from_floats(&mean, [c, h, w])?)?;
        let z = noise(&self.settings, SAMPLE_NOISE, SAMPLES);
        let samples = ImageBatch::from_floats(&self.runner.decode(SAMPLES, &z)?, [c, h, w])?;
        let grid = Grid { columns: SAMPLES.isqrt(), scale: 2, ..Grid::default() };
        save_png(&self.folder.samples(epoch), &grid.draw(&samples)?)
    }

    pub(super) fn plots(&self) -> Result<()> {
        save_png(&self.folder.training_loss(), &plots::training_loss(&self.steps, &self.epoch_rows)?)?;
        save_png(&self.folder.grad_norm(), &plots::grad_norm(&self.steps)?)?;
        save_png(&self.folder.learning_rate(), &plots::learning_rate(&self.steps)?)
    }
}

/// Index of the first picture of each class that occurs.
pub(super) fn first_of_each_class(images: &dyn Images) -> Vec<u32> {
    let mut first: BTreeMap<u8, u32> = BTreeMap::new();
    for i in 0..images.len() {
        first.entry(images.label(i)).or_insert(i as u32);
        if first.len() == images.classes().len() {
            break;
        }
    }
    first.into_values().collect()
}
