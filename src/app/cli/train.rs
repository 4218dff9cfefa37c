//! `vae-wgpu train`.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};

use super::data::DatasetArgs;
use super::inference::{BATCH, counted};
use super::output::check_output;
use super::values::{choice, duration, non_negative, posterior_std, run, share};
use super::{DeviceArgs, INTERRUPTED, ModelArgs, TrainingPlanArgs, adapter, eprintln_lossy, fit_prior, signals};
use crate::app::cli::progress::observer;
use crate::app::data::Opened;
use crate::app::io::atomic::create_parent;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::run_store::FolderStore;
use crate::app::io::{model, tensor_file};
use crate::app::viz::caption::Caption;
use crate::app::viz::image_grid::{Grid, ImageBatch, save_png};
use crate::error::Error;
use crate::runtime::plan;
use crate::vae::data;
use crate::vae::data::Dataset;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::Device;
use crate::vae::train::store::RunStore;
use crate::vae::train::{MAX_EPOCHS, Outcome, Recipe, Schedule, Settings, TrainContext, Trainer};
use crate::vae::weights::{TensorSchema, Weights};

#[derive(Args, Debug)]
pub(super) struct TrainArgs {
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    dataset: DatasetArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    training: TrainingArgs,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    plan: TrainingPlanArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Where a run starts and where its files go.
#[derive(Args, Debug)]
#[command(next_help_heading = "Run")]
struct RunArgs {
    /// Run folder to create [default: runs/DATE-N].
    #[arg(long, short, value_name = "DIR", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
    /// Overwrite an existing run in --out.
    #[arg(long)]
    force: bool,
    /// Resume a run with its saved settings and kernel variants. --epochs sets a new total; --variant and --variants override the saved
    /// variants.
    #[arg(long, value_name = "RUN", conflicts_with_all = [
        "out", "force", "init", "batch_size", "seed", "lr", "weight_decay", "warmup", "schedule", "clip_grad", "beta", "beta_warmup",
        "beta_cycle", "free_bits", "flip", "crop", "channels", "blocks", "latent_dim", "norm", "likelihood", "train_limit", "val_limit",
        "val_split", "recipe", "image_size", "conditional", "posterior_std",
    ], value_parser = run(), value_hint = ValueHint::DirPath)]
    resume: Option<PathBuf>,
    /// Initialize the weights from a run, or a safetensors file with PyTorch's tensor names and shapes.
    #[arg(long, value_name = "RUN|FILE", value_parser = run(), value_hint = ValueHint::AnyPath)]
    init: Option<PathBuf>,
    /// Stop after this time, such as 90m or 2h, save a checkpoint and end; --resume continues.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_time: Option<Duration>,
}

/// Hyperparameters.
#[derive(Args, Debug)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Settings to start from: sharp (optimal likelihood, cosine schedule, clipping, flipped images, a validation split), or seed (those
    /// of github.com/pi-tau/vae, whose images are blurred) [default: sharp].
    #[arg(long, value_name = "RECIPE", value_parser = choice::<Recipe>(&["sharp", "seed"]))]
    recipe: Option<Recipe>,
    /// Total number of epochs [default: 25].
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_EPOCHS))]
    epochs: Option<u64>,
    /// Images per training step [default: 128].
    #[arg(long, short, value_name = "N", alias = "batch_size")]
    batch_size: Option<NonZeroUsize>,
    /// Seed of the initial weights, image order, noise and augmentation [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Learning rate after the warm-up [default: 0.01].
    #[arg(long, value_name = "RATE", value_parser = non_negative)]
    lr: Option<f64>,
    /// Steps during which the learning rate rises from 1 % to 100 % [default: 500; with --recipe seed: 1000].
    #[arg(long, value_name = "STEPS")]
    warmup: Option<u64>,
    /// Learning rate schedule after the warm-up [default: cosine; with --recipe seed: constant].
    #[arg(long, value_enum)]
    schedule: Option<ScheduleArg>,
    /// Decoupled weight decay (AdamW) [default: 0.0001].
    #[arg(long, value_name = "RATE", value_parser = non_negative, aliases = ["weight_decay", "reg"], hide_short_help = true)]
    weight_decay: Option<f64>,
    /// Clip the global gradient norm to this value; 0 disables clipping [default: 1; with --recipe seed: 0].
    #[arg(long, value_name = "NORM", value_parser = non_negative, alias = "clip_grad", hide_short_help = true)]
    clip_grad: Option<f64>,
    /// Weight of the KL term in the loss [default: 1].
    #[arg(long, value_name = "WEIGHT", value_parser = non_negative)]
    beta: Option<f64>,
    /// Steps during which beta rises from 0 to its value; 0 disables the warm-up [default: 0].
    #[arg(long, value_name = "STEPS", hide_short_help = true)]
    beta_warmup: Option<u64>,
    /// Start the warm-up of beta again every this many steps; 0 for never [default: 0].
    #[arg(long, value_name = "STEPS", requires = "beta_warmup", hide_short_help = true)]
    beta_cycle: Option<u64>,
    /// KL divergence that a latent dimension may have at no cost, in nats [default: 0].
    #[arg(long, value_name = "NATS", value_parser = non_negative, hide_short_help = true)]
    free_bits: Option<f64>,
    /// Standard deviation of the latent distributions at the start [default: 0.05; with --recipe seed: 1].
    #[arg(long, value_name = "STD", value_parser = posterior_std, hide_short_help = true)]
    posterior_std: Option<f64>,
    /// End the run when the validation loss has not fallen for this many epochs; 0 for never [default: 0].
    #[arg(long, value_name = "EPOCHS")]
    early_stop: Option<u64>,
    /// Give encoder and decoder the class of each image, so that `sample --class` can choose it.
    #[arg(long)]
    conditional: bool,
    /// Flip training images horizontally at random [default: true; with --recipe seed: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    flip: Option<bool>,
    /// Shift training images by up to 4 pixels at random [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, hide_short_help = true)]
    crop: Option<bool>,
    /// Share of the training images to set aside for validation, which chooses the best epoch; with 0 the test images do [default: 0.1;
    /// with --recipe seed: 0].
    #[arg(long, value_name = "SHARE", value_parser = share)]
    val_split: Option<f64>,
}

/// Progress and profiling.
#[derive(Args, Debug)]
#[command(next_help_heading = "Output")]
struct OutputArgs {
    /// Time the dispatches of one training step on the GPU, after a few warm-up steps, and print the time of each kernel on stderr (with
    /// --json, as an event on stdout). Results do not change.
    #[arg(long, hide_short_help = true)]
    profile: bool,
    /// Write the times of every dispatch of that step to a JSON file for Perfetto (ui.perfetto.dev). Implies --profile.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    trace: Option<PathBuf>,
    /// Print one JSON object per event to stdout.
    #[arg(long)]
    json: bool,
    /// Print only errors.
    #[arg(long, short, conflicts_with = "json")]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    Constant,
    Cosine,
}

impl TrainArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        if let Some(table) = &self.plan.plan.variants {
            check_exists(table)?;
        }
        if let Some(weights) = &self.run.init {
            check_exists(weights)?;
        }
        let (mut settings, resumed) = self.settings()?;
        settings.check()?;
        RunFolder::check(self.run.out.as_deref(), self.run.force)?;
        let quiet = self.output.quiet || self.output.json;
        let model = resumed.as_ref().map(|_| &settings.model);
        let args = self.dataset.of_run(&settings)?.with_limits_of(&settings);
        // What may be refused at once is looked at before a download.
        let device = self.device.open_for_models(!quiet)?;
        let profile = self.output.profile || self.output.trace.is_some();
        if profile && matches!(device, Device::Cpu) {
            anyhow::bail!(
                "cannot profile: the CPU reference runs no kernels. Choose a GPU adapter with --device; `vae-wgpu devices` lists them"
            );
        }
        if let Some(trace) = &self.output.trace {
            check_output(trace, &["json"])?;
        }
        let Opened { dataset, images } = args.open(quiet, model)?;
        if resumed.is_none() {
            fit_to_images(&mut settings.model, &dataset, self.training.conditional)?;
        }
        let init = self.init(&settings)?;
        let batch = settings.batch_size.min(dataset.train.len());
        let plan = self.plan.options(adapter(&device), &settings.model, &[(batch, Mode::Train)])?;
        let mut observer = observer(self.output.json, self.output.quiet);
        // The run ends after the current step.
        let stop = Arc::new(AtomicBool::new(false));
        signals::set_on_request(&stop, quiet)?;
        let timed_out = self.run.max_time.map(|time| signals::set_after(time, &stop)).transpose()?;
        let context =
            TrainContext { dataset: &dataset, device: &device, plan: &plan, observer: observer.as_mut(), stop: &stop };
        let mut store;
        let mut trainer = match resumed {
            Some(resumed) => {
                store = resumed;
                Trainer::resume(settings, &mut store, context)?
            }
            None => {
                let folder = RunFolder::create(self.run.out.as_deref(), self.run.force)?;
                let (preview, name) = (folder.data_preview(), folder.name());
                store = FolderStore::new(folder);
                let trainer = Trainer::new(settings, &mut store, init.as_ref(), context)?;
                // Of own images, so that the user can check the crop.
                if images.is_some() {
                    save_preview(&preview, &name, &dataset)?;
                }
                trainer
            }
        };
        if let Some(trace) = &self.output.trace {
            create_parent(trace)?;
        }
        if profile {
            trainer.profile(self.output.trace.clone());
        }
        let outcome = trainer.run()?;
        let run = store.path().to_owned();
        match outcome {
            Outcome::Finished => {
                self.fit_prior(&run, &dataset, &device, &plan);
                Ok(ExitCode::SUCCESS)
            }
            Outcome::Interrupted if timed_out.is_some_and(|set| set.load(Ordering::SeqCst)) => Ok(ExitCode::SUCCESS),
            Outcome::Interrupted => Ok(ExitCode::from(INTERRUPTED)),
        }
    }

    /// Returns the settings, and the folder of the run to resume.
    fn settings(&self) -> anyhow::Result<(Settings, Option<FolderStore>)> {
        if let Some(run) = &self.run.resume {
            let store = FolderStore::new(RunFolder::resume(run)?);
            let mut settings = store.settings()?;
            settings.epochs = self.training.epochs.unwrap_or(settings.epochs);
            settings.early_stop = self.training.early_stop.unwrap_or(settings.early_stop);
            // The data set may have moved. The trainer compares its fingerprint.
            settings.data = self.dataset.spec().or(settings.data);
            return Ok((settings, Some(store)));
        }
        let (train_limit, val_limit) = self.dataset.limits();
        let t = &self.training;
        let base = t.recipe.unwrap_or(Recipe::Sharp).settings();
        let settings = Settings {
            model: self.model.config(base.model)?,
            data: self.dataset.spec(),
            image_size: self.dataset.image_size(),
            train_limit,
            val_limit,
            val_split: t.val_split.unwrap_or(base.val_split),
            batch_size: t.batch_size.map_or(base.batch_size, NonZeroUsize::get),
            epochs: t.epochs.unwrap_or(base.epochs),
            seed: t.seed.unwrap_or(base.seed),
            lr: t.lr.unwrap_or(base.lr),
            weight_decay: t.weight_decay.unwrap_or(base.weight_decay),
            warmup: t.warmup.unwrap_or(base.warmup),
            schedule: match t.schedule {
                Some(ScheduleArg::Constant) => Schedule::Constant,
                Some(ScheduleArg::Cosine) => Schedule::Cosine,
                None => base.schedule,
            },
            clip_grad: t.clip_grad.unwrap_or(base.clip_grad),
            beta: t.beta.unwrap_or(base.beta),
            beta_warmup: t.beta_warmup.unwrap_or(base.beta_warmup),
            beta_cycle: t.beta_cycle.unwrap_or(base.beta_cycle),
            free_bits: t.free_bits.unwrap_or(base.free_bits),
            posterior_std: t.posterior_std.unwrap_or(base.posterior_std),
            early_stop: t.early_stop.unwrap_or(base.early_stop),
            flip: t.flip.unwrap_or(base.flip),
            crop: t.crop.unwrap_or(base.crop),
            // The trainer adds the kernel variants of the plan.
            variants: base.variants,
        };
        Ok((settings, None))
    }

    /// Fits a prior to the best weights of the run. The run is complete without it, so a failure is a warning.
    fn fit_prior(&self, run: &Path, dataset: &Dataset, device: &Device, plan: &plan::Options) {
        let fit = || {
            let model = model::load(run)?;
            let images = dataset.train.as_ref();
            let mut trained = model.on(device, plan, BATCH, &[(Mode::Encode, images.len())])?;
            fit_prior::fit_mixture(&model, &mut trained, images, fit_prior::COMPONENTS as usize, 0)
        };
        match fit() {
            Ok(said) if !self.output.quiet && !self.output.json => eprintln_lossy(said),
            Ok(_) => {}
            Err(error) => eprintln_lossy(format_args!("warning: no prior was fitted: {error:#}")),
        }
    }

    /// Loads the initial weights.
    fn init(&self, settings: &Settings) -> anyhow::Result<Option<Weights>> {
        let Some(path) = &self.run.init else { return Ok(None) };
        let model = if path.is_dir() { RunFolder::view(path)?.model() } else { path.clone() };
        let path = model.as_path();
        let graph = settings.model.graph(1, Mode::Encode)?;
        Ok(Some(Weights::from_foreign_file(tensor_file::load(path)?, path, TensorSchema::of(&graph))?))
    }
}

/// Sets the size of the model's images to that of a data set, and the classes of a conditional model.
fn fit_to_images(model: &mut VaeConfig, dataset: &Dataset, conditional: bool) -> crate::Result<()> {
    if conditional {
        model.classes = dataset.train.classes().len();
        if model.classes < 2 {
            let hint = "sort the images into a folder of each class, or leave out --conditional";
            return Err(Error::data(&dataset.name, "it has no classes to train a conditional model", hint));
        }
    }
    let (channels, height, width) = dataset.train.size();
    if height != width {
        let what = format!("its images have {height}x{width} pixels, expected as many rows as columns");
        let hint = "save them as PNG files and pass their folder: they are cropped and resized to --image-size";
        return Err(Error::data(&dataset.name, what, hint));
    }
    (model.image_channels, model.image_size) = (channels, height);
    model.check()
}

/// Writes a grid of the first 64 images as the model gets them.
fn save_preview(path: &Path, run: &str, dataset: &Dataset) -> crate::Result<()> {
    let images = dataset.train.as_ref();
    let (channels, height, width) = images.size();
    let first: Vec<u32> = (0..images.len().min(64) as u32).collect();
    let mut pixels = Vec::new();
    data::batch(images, &first, &mut pixels)?;
    let images = ImageBatch::from_bytes(&pixels, [channels, height, width])?;
    let grid = Grid::of(8, width as u32).draw(&images)?;
    let caption = Caption::new(counted(images.len(), "training image")).with("data", &dataset.name).with("run", run);
    save_png(path, &caption.below(&grid)?, &caption)
}

/// Reports a wrong path before the data set is opened and the kernels are compiled.
fn check_exists(path: &Path) -> crate::Result<()> {
    std::fs::metadata(path).map(drop).map_err(Error::file("find", path))
}
