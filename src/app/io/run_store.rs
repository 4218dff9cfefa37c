//! A run folder as the store of a training run.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use crate::app::io::atomic::{create_parent, save_atomic};
use crate::app::io::csv::Table;
use crate::app::io::run_config::{RunConfig, Start};
use crate::app::io::run_folder::RunFolder;
use crate::app::io::tensorboard::Board;
use crate::app::io::{run_report, settings_file, tensor_file, tensorboard};
use crate::app::viz::caption::Labels;
use crate::app::viz::image_grid::{Grid, ImageBatch, save_png};
use crate::app::viz::{plots, trace};
use crate::error::{Error, Result};
use crate::vae::checkpoint::RunProgress;
use crate::vae::tensor_file::TensorFile;
use crate::vae::train::Settings;
use crate::vae::train::profile::Profile;
use crate::vae::train::rows::{EpochRow, StepRow};
use crate::vae::train::store::{About, DecodedImages, Recorded, RunState, RunStore};

/// Names of images in event files.
const ORIGINALS: &str = "originals";
const RECONSTRUCTIONS: &str = "reconstructions";
const SAMPLES: &str = "samples";

/// A [`RunStore`] in a folder.
#[derive(Debug)]
pub struct FolderStore {
    folder: RunFolder,
    /// File that the weights started from.
    init: Option<PathBuf>,
    /// Number of epochs after which the weights are kept in a file of their own.
    keep_every: Option<NonZeroU64>,
    /// Tables of steps and epochs; absent until the run begins or resumes.
    tables: Option<(Table<StepRow>, Table<EpochRow>)>,
    /// Starts of the run, the last of which is that of this process.
    starts: Vec<Start>,
    /// Whether to write event files for TensorBoard.
    tensorboard: bool,
    /// The event file; absent until the run begins or resumes, and if there is to be none.
    board: Option<Board>,
    /// Seed of the run, for captions; known when the run begins or resumes.
    seed: Option<u64>,
}

impl FolderStore {
    /// Stores a run in `folder`. Changes nothing yet.
    #[must_use]
    pub fn new(folder: RunFolder) -> Self {
        Self {
            folder,
            init: None,
            keep_every: None,
            tables: None,
            starts: vec![Start::now()],
            tensorboard: false,
            board: None,
            seed: None,
        }
    }

    /// Names the file that the weights start from, for `train.toml`.
    #[must_use]
    pub fn initialized_from(self, file: Option<PathBuf>) -> Self {
        Self { init: file, ..self }
    }

    /// Keeps the weights of every `epochs` epochs, each in a file of its own.
    #[must_use]
    pub fn keep_every(self, epochs: Option<NonZeroU64>) -> Self {
        Self { keep_every: epochs, ..self }
    }

    /// Writes event files for TensorBoard, too. A resumed run that has some continues them in any case.
    #[must_use]
    pub fn with_tensorboard(self, tensorboard: bool) -> Self {
        Self { tensorboard, ..self }
    }

    /// Returns the settings of the run and its progress, from its checkpoint.
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Checkpoint`] if the checkpoint cannot be read.
    pub fn saved(&self) -> Result<(Settings, RunProgress)> {
        let path = self.checkpoint();
        let progress = RunProgress::of(&self.load_checkpoint()?, &path)?;
        let settings = serde_json::from_str(&progress.settings);
        Ok((settings.map_err(|e| Error::malformed("parse the settings in", &path, e))?, progress))
    }

    fn create_tables(&mut self) -> Result<()> {
        self.tables = Some((Table::create(&self.folder.metrics())?, Table::create(&self.folder.epochs())?));
        Ok(())
    }

    /// Writes to the event file, if there is one.
    fn show(&mut self, push: impl FnOnce(&mut Board) -> Result<()>) -> Result<()> {
        self.board.as_mut().map_or(Ok(()), push)
    }

    /// Starts an event file with the rows and the images that the folder has so far.
    fn create_board(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<()> {
        let folder = &self.folder;
        let mut board = Board::create(&folder.tensorboard(), 0)?;
        let show = |board: &mut Board, tag: &str, path: &Path| {
            if path.exists() { board.push_image(tag, path) } else { Ok(()) }
        };
        show(&mut board, ORIGINALS, &folder.originals())?;
        for rows in steps.chunk_by(|a, b| a.epoch == b.epoch) {
            rows.iter().try_for_each(|row| board.push_step(row))?;
            for epoch in epochs.iter().filter(|epoch| epoch.epoch == rows[0].epoch) {
                board.push_epoch(epoch)?;
                show(&mut board, RECONSTRUCTIONS, &folder.reconstructions(epoch.epoch))?;
                show(&mut board, SAMPLES, &folder.samples(epoch.epoch))?;
            }
        }
        self.board = Some(board);
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
        if self.tensorboard {
            self.create_board(&[], &[])?;
        }
        self.save_about(about)?;
        self.create_tables()
    }

    fn load_checkpoint(&self) -> Result<TensorFile> {
        tensor_file::load(&self.folder.checkpoint()).map_err(|error| self.folder.without_checkpoint(error))
    }

    fn resume(&mut self, step: u64, epoch: u64) -> Result<Recorded> {
        let (metrics, steps) = Table::resume(&self.folder.metrics(), |row: &StepRow| row.step <= step)?;
        let (table, epochs) = Table::resume(&self.folder.epochs(), |row: &EpochRow| row.epoch <= epoch)?;
        self.tables = Some((metrics, table));
        let folder = self.folder.tensorboard();
        match tensorboard::last(&folder) {
            // Nothing in earlier files remains of a run that resumes at its start.
            Some(_) if step > 0 => self.board = Some(Board::create(&folder, step + 1)?),
            None if !self.tensorboard => {}
            _ => self.create_board(&steps, &epochs)?,
        }
        let device = self.folder.load_config::<Settings>().ok().map(|config| {
            self.starts.splice(..0, config.starts);
            config.device
        });
        Ok(Recorded { steps, epochs, device })
    }

    fn save_about(&mut self, about: &About<'_>) -> Result<()> {
        let About { device, kernels, settings } = *about;
        self.seed = Some(settings.seed);
        let config = RunConfig::new(device.to_owned(), kernels.clone(), settings.clone());
        self.folder.save_config(&RunConfig { starts: self.starts.clone(), ..config })?;
        let header = format!(
            "Repeats the run {}: vae-wgpu train --config train.toml --out DIR\nWritten by vae-wgpu {} on {device}.",
            self.folder.name(),
            env!("CARGO_PKG_VERSION"),
        );
        let path = self.folder.repeat();
        // A resumed run keeps the file that its weights started from.
        let init =
            self.init.as_ref().map(|init| init.to_string_lossy().into_owned()).or_else(|| settings_file::init(&path));
        save_atomic(&path, settings_file::to_toml(settings, init.as_deref(), &header).as_bytes())?;
        self.show(|board| board.push_settings(settings))
    }

    fn restore(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<bool> {
        if !self.folder.restore()? {
            return Ok(false);
        }
        self.create_tables()?;
        let (metrics, table) = self.opened()?;
        steps.iter().try_for_each(|row| metrics.push(row))?;
        epochs.iter().try_for_each(|row| table.push(row))?;
        if self.board.is_some() {
            self.create_board(steps, epochs)?;
        }
        Ok(true)
    }

    fn push_step(&mut self, row: &StepRow) -> Result<()> {
        let written = self.opened()?.0.push(row);
        written.and(self.show(|board| board.push_step(row)))
    }

    fn push_epoch(&mut self, row: &EpochRow) -> Result<()> {
        let written = self.opened()?.1.push(row);
        written.and(self.show(|board| board.push_epoch(row)))
    }

    fn sync_rows(&mut self) -> Result<()> {
        let (steps, epochs) = self.opened()?;
        let synced = steps.sync().and_then(|()| epochs.sync());
        synced.and(self.show(Board::sync))
    }

    fn save_checkpoint(&mut self, file: TensorFile) -> Result<()> {
        tensor_file::save(&file, &self.folder.checkpoint())
    }

    fn save_model(&mut self, file: TensorFile) -> Result<()> {
        tensor_file::save(&file, &self.folder.model())
    }

    fn save_last(&mut self, epoch: u64, file: TensorFile) -> Result<()> {
        if self.keep_every.is_some_and(|every| epoch.is_multiple_of(every.get())) {
            let path = self.folder.weights(epoch);
            create_parent(&path)?;
            tensor_file::save(&file, &path)?;
        }
        tensor_file::save(&file, &self.folder.last())
    }

    fn save_originals(&mut self, pixels: &[u8], size: [usize; 3]) -> Result<()> {
        self.folder.save_originals(&ImageBatch::from_bytes(pixels, size)?)?;
        let path = self.folder.originals();
        self.show(|board| board.push_image(ORIGINALS, &path))
    }

    fn save_reconstructions(&mut self, epoch: u64, originals: &[u8], images: DecodedImages<'_>) -> Result<()> {
        let originals = ImageBatch::from_bytes(originals, images.size)?;
        self.folder.save_reconstructions(epoch, &originals, ImageBatch::from_floats(images.values, images.size)?)?;
        let path = self.folder.reconstructions(epoch);
        self.show(|board| board.push_image(RECONSTRUCTIONS, &path))
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
        let path = self.folder.samples(epoch);
        save_png(&path, &caption.below(&image)?, &caption)?;
        self.show(|board| board.push_image(SAMPLES, &path))
    }

    fn keeps_gradients(&self) -> bool {
        self.board.is_some()
    }

    fn save_gradients(&mut self, _: u64, gradients: &[(&str, &[f32])]) -> Result<()> {
        self.show(|board| board.push_gradients(gradients))
    }

    fn save_plots(&mut self, steps: &[StepRow], epochs: &[EpochRow]) -> Result<()> {
        let folder = &self.folder;
        let [losses, norm, rate] =
            ["Training and validation loss", "Gradient norm", "Learning rate"].map(|title| folder.caption(title));
        save_png(&folder.training_loss(), &plots::training_loss(&losses, steps, epochs)?, &losses)?;
        save_png(&folder.grad_norm(), &plots::grad_norm(&norm, steps)?, &norm)?;
        save_png(&folder.learning_rate(), &plots::learning_rate(&rate, steps)?, &rate)
    }

    fn save_report(&mut self, steps: &[StepRow], epochs: &[EpochRow], state: RunState<'_>) -> Result<()> {
        run_report::save(&self.folder, &self.folder.report(), (steps, epochs), state)
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
        run_with(folder, step, false)
    }

    fn run_with(folder: &Path, step: u64, tensorboard: bool) -> Outcome {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
        let settings = Settings { model, batch_size: 4, epochs: 3, ..Settings::default() };
        let dataset = shapes::dataset().unwrap().limited(Some(6), Some(6)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (plan, mut stopper) = (plan::Options::default(), Stopper(step, Arc::clone(&stop)));
        let context =
            TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut stopper, stop: &stop };
        let resumes = folder.exists();
        let folder = if resumes { RunFolder::resume(folder) } else { RunFolder::create(Some(folder), false) };
        let mut store = FolderStore::new(folder.unwrap()).with_tensorboard(tensorboard);
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
        for (step, done) in [(2, 0), (6, 2)] {
            assert_eq!((run(&parts, step), epochs(&parts).len()), (Outcome::Interrupted, done));
        }
        assert_eq!(run(&parts, u64::MAX), Outcome::Finished);
        assert_eq!(epochs(&parts), epochs(&whole));
        // Rows are synced before the checkpoint that depends on them.
        let notes = trace::take();
        let checkpoint = ["sync rows", "sync rows", "sync", "rename", "sync folder"];
        let report = ["sync", "rename", "sync folder"];
        assert!(notes.ends_with(&[&checkpoint[..], &report].concat()), "{notes:?}");
        for file in ["checkpoint.safetensors", "model.safetensors", "samples/epoch_01.png", "samples/epoch_03.png"] {
            assert!(fs::read(parts.join(file)).unwrap() == fs::read(whole.join(file)).unwrap(), "{file} differs");
        }
    }

    #[test]
    fn event_files_continue_on_resume_and_change_no_results() {
        let dir = tempfile::tempdir().unwrap();
        // Images name the run: the folder in which each part is.
        let path = |name: &str| dir.path().join(name).join("run");
        let (plain, parts, late) = (path("plain"), path("parts"), path("late"));
        run(&plain, u64::MAX);
        // Interrupted before the validation of the first epoch, then within the second.
        run_with(&parts, 2, true);
        run(&parts, 3);
        // What was done after the last checkpoint is lost, as in a kill.
        let kept = fs::read(parts.join("checkpoint.safetensors")).unwrap();
        run(&parts, 6);
        fs::write(parts.join("checkpoint.safetensors"), kept).unwrap();
        run(&parts, u64::MAX);
        // Without event files up to the third epoch.
        run(&late, 4);
        run_with(&late, u64::MAX, true);
        for run in [&parts, &late] {
            for file in ["checkpoint.safetensors", "model.safetensors", "samples/epoch_03.png"] {
                assert!(fs::read(run.join(file)).unwrap() == fs::read(plain.join(file)).unwrap(), "{file} differs");
            }
            let shown = tensorboard::tests::shown(&run.join("tensorboard"));
            for (tag, steps) in &shown {
                let expected: &[i64] = match tag.split('/').next().unwrap() {
                    "step" => &[1, 2, 3, 4, 5, 6],
                    "originals" => &[0],
                    // Those of earlier epochs are not in the tables.
                    "gradients" if run == &late => &[6],
                    // Once for each process; TensorBoard takes the first.
                    "_hparams_" => continue,
                    _ => &[2, 4, 6],
                };
                assert_eq!(steps, expected, "{tag} of {}", run.display());
            }
            for tag in ["step/loss", "validation/loss", "originals", "samples", "gradients/encoder.stem.weight"] {
                assert!(shown.contains_key(tag), "{tag} is missing");
            }
        }
        assert!(!plain.join("tensorboard").exists());
    }
}
