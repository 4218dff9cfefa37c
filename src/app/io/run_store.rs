//! A run folder as the store of a training run.

use std::path::{Path, PathBuf};

use crate::app::io::csv::Table;
use crate::app::io::run_config::RunConfig;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::tensor_file;
use crate::app::viz::caption::Labels;
use crate::app::viz::image_grid::{Grid, ImageBatch, save_png};
use crate::app::viz::{plots, trace};
use crate::error::{Error, Result};
use crate::vae::checkpoint::Progress;
use crate::vae::tensor_file::TensorFile;
use crate::vae::train::Settings;
use crate::vae::train::profile::Profile;
use crate::vae::train::rows::{EpochRow, StepRow};
use crate::vae::train::store::{About, DecodedImages, Recorded, RunStore};

/// A [`RunStore`] in a folder.
#[derive(Debug)]
pub struct FolderStore {
    folder: RunFolder,
    /// Tables of steps and epochs; absent until the run begins or resumes.
    tables: Option<(Table<StepRow>, Table<EpochRow>)>,
    /// Seed of the run, for captions; known when the run begins or resumes.
    seed: Option<u64>,
}

impl FolderStore {
    /// Stores a run in `folder`. Changes nothing yet.
    #[must_use]
    pub fn new(folder: RunFolder) -> Self {
        Self { folder, tables: None, seed: None }
    }

    /// Returns the settings of the run, from its checkpoint.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Checkpoint`] if the checkpoint cannot be read.
    pub fn settings(&self) -> Result<Settings> {
        let path = self.checkpoint();
        let progress = Progress::of(&self.load_checkpoint()?, &path)?;
        serde_json::from_str(&progress.settings).map_err(|e| Error::malformed("parse the settings in", &path, e))
    }

    fn create_tables(&mut self) -> Result<()> {
        self.tables = Some((Table::create(&self.folder.metrics())?, Table::create(&self.folder.epochs())?));
        Ok(())
    }

    fn opened(&mut self) -> Result<&mut (Table<StepRow>, Table<EpochRow>)> {
        self.tables.as_mut().ok_or_else(|| Error::bug("a run that has not begun has no tables"))
    }
}

impl RunStore for FolderStore {
    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn tables(&self) -> [PathBuf; 2] {
        [self.folder.metrics(), self.folder.epochs()]
    }

    fn checkpoint(&self) -> PathBuf {
        self.folder.checkpoint()
    }

    fn begin(&mut self, about: &About<'_>) -> Result<()> {
        self.folder.begin()?;
        self.save_about(about)?;
        self.create_tables()
    }

    fn load_checkpoint(&self) -> Result<TensorFile> {
        tensor_file::load(&self.folder.checkpoint())
    }

    fn resume(&mut self, step: u64, epoch: u64) -> Result<Recorded> {
        let (metrics, steps) = Table::resume(&self.folder.metrics(), |row: &StepRow| row.step < step)?;
        let (table, epochs) = Table::resume(&self.folder.epochs(), |row: &EpochRow| row.epoch <= epoch)?;
        self.tables = Some((metrics, table));
        let device = self.folder.load_config::<Settings>().ok().map(|config| config.device);
        Ok(Recorded { steps, epochs, device })
    }

    fn save_about(&mut self, about: &About<'_>) -> Result<()> {
        let About { device, kernels, settings } = *about;
        self.seed = Some(settings.seed);
        self.folder.save_config(&RunConfig::new(device.to_owned(), kernels.clone(), settings.clone()))
    }

    fn restore(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<bool> {
        if !self.folder.restore()? {
            return Ok(false);
        }
        self.create_tables()?;
        steps.iter().try_for_each(|row| self.push_step(row))?;
        epochs.iter().try_for_each(|row| self.push_epoch(row))?;
        Ok(true)
    }

    fn push_step(&mut self, row: &StepRow) -> Result<()> {
        self.opened()?.0.push(row)
    }

    fn push_epoch(&mut self, row: &EpochRow) -> Result<()> {
        self.opened()?.1.push(row)
    }

    fn sync_rows(&mut self) -> Result<()> {
        let (steps, epochs) = self.opened()?;
        steps.sync().and_then(|()| epochs.sync())
    }

    fn save_checkpoint(&mut self, file: TensorFile) -> Result<()> {
        tensor_file::save(&file, &self.folder.checkpoint())
    }

    fn save_model(&mut self, file: TensorFile) -> Result<()> {
        tensor_file::save(&file, &self.folder.model())
    }

    fn save_last(&mut self, file: TensorFile) -> Result<()> {
        tensor_file::save(&file, &self.folder.last())
    }

    fn save_originals(&mut self, pixels: &[u8], size: [usize; 3]) -> Result<()> {
        self.folder.save_originals(&ImageBatch::from_bytes(pixels, size)?)
    }

    fn save_reconstructions(&mut self, epoch: u64, originals: &[u8], images: DecodedImages<'_>) -> Result<()> {
        let originals = ImageBatch::from_bytes(originals, images.size)?;
        self.folder.save_reconstructions(epoch, &originals, ImageBatch::from_floats(images.values, images.size)?)
    }

    fn save_samples(&mut self, epoch: u64, images: DecodedImages<'_>) -> Result<()> {
        let samples = ImageBatch::from_floats(images.values, images.size)?;
        let rows = images.rows;
        let columns = if rows.is_empty() { samples.len().isqrt() } else { samples.len() / rows.len() };
        let labels = Labels { rows: rows.to_vec(), ..Labels::default() };
        let image = labels.draw(&Grid::of(columns, samples.size().0), &samples)?;
        let mut caption = self.folder.caption(format!("{} samples", samples.len())).with("epoch", epoch);
        if let Some(seed) = self.seed {
            caption = caption.with("seed", seed);
        }
        caption = caption.with("prior", "N(0, I)");
        save_png(&self.folder.samples(epoch), &caption.below(&image)?, &caption)
    }

    fn save_plots(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<()> {
        let folder = &self.folder;
        let [losses, norm, rate] =
            ["Training and validation loss", "Gradient norm", "Learning rate"].map(|title| folder.caption(title));
        save_png(&folder.training_loss(), &plots::training_loss(&losses, steps, epochs)?, &losses)?;
        save_png(&folder.grad_norm(), &plots::grad_norm(&norm, steps)?, &norm)?;
        save_png(&folder.learning_rate(), &plots::learning_rate(&rate, steps)?, &rate)
    }

    fn save_trace(&mut self, profile: &Profile, path: &Path) -> Result<()> {
        trace::save_trace(profile, path)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::app::io::atomic::trace;
    use crate::app::io::csv::read;
    use crate::runtime::plan;
    use crate::vae::data::shapes;
    use crate::vae::model::VaeConfig;
    use crate::vae::runner::Device;
    use crate::vae::train::events::{Event, Observer};
    use crate::vae::train::{Outcome, TrainContext, Trainer};

    /// Stops the run after a step.
    struct Stopper(u64, Arc<AtomicBool>);

    impl Observer for Stopper {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            self.1.fetch_or(matches!(event, Event::Step(row) if row.step == self.0), Ordering::Relaxed);
            Ok(())
        }
    }

    /// Trains three epochs of two steps, or until `step` is done.
    fn run(folder: &Path, step: u64) -> Outcome {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
        let settings = Settings { model, batch_size: 4, epochs: 3, ..Settings::default() };
        let dataset = shapes::dataset().unwrap().limited(Some(6), Some(6)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (plan, mut stopper) = (plan::Options::default(), Stopper(step, Arc::clone(&stop)));
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut stopper, stop: &stop };
        let resumes = folder.exists();
        let folder = if resumes { RunFolder::resume(folder) } else { RunFolder::create(Some(folder), false) };
        let mut store = FolderStore::new(folder.unwrap());
        let trainer = if resumes {
            Trainer::resume(settings, &mut store, context)
        } else {
            Trainer::new(settings, &mut store, None, context)
        };
        trainer.unwrap().run().unwrap()
    }

    #[test]
    fn run_stopped_before_validation_resumes_there() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole/run"), dir.path().join("parts/run"));
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
        // Rows are synced before the checkpoint that depends on them.
        let notes = trace::take();
        assert_eq!(notes.split_last_chunk().unwrap().1, &["sync rows", "sync rows", "sync", "rename", "sync folder"]);
        for file in ["checkpoint.safetensors", "model.safetensors", "samples/epoch_01.png", "samples/epoch_03.png"] {
            assert!(fs::read(parts.join(file)).unwrap() == fs::read(whole.join(file)).unwrap(), "{file} differs");
        }
    }
}
