//! `vae-wgpu train`.

use std::ffi::OsString;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum, ValueHint};
use serde_json::json;

use super::data::DatasetArgs;
use super::inference::BATCH;
use super::launch::Group;
use super::output::check_output;
use super::preview::PreviewArgs;
use super::values;
use super::values::{choice, duration, micro_batches, non_negative, positive, posterior_std, run, share};
use super::{
    DIVERGED, DeviceArgs, ModelArgs, TrainingPlanArgs, adapter, be_quiet, config_file, conflict, eprintln_lossy,
    eprintln_wrapped, exit_code, fit_prior, is_quiet, launch, message, print, print_error, shared_run, signals,
};
use crate::app::cli::progress::observer;
use crate::app::data::Opened;
use crate::app::figures::counted;
use crate::app::io::atomic::create_parent;
use crate::app::io::model;
use crate::app::io::model::Origin;
use crate::app::io::prior;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::run_store::FolderStore;
use crate::app::viz::caption::Caption;
use crate::app::viz::image_grid::{Grid, ImageBatch, save_png};
use crate::app::viz::range_plot::range_plot;
use crate::error::Error;
use crate::runtime::plan;
use crate::vae::data;
use crate::vae::data::Dataset;
use crate::vae::inference::config_of;
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::runner::Device;
use crate::vae::train::events::{Event, Observer, Quiet};
use crate::vae::train::memory_store::InMemoryRun;
use crate::vae::train::range_test::{RangePoint, range_test, steepest};
use crate::vae::train::store::RunStore;
use crate::vae::train::{MAX_EPOCHS, Outcome, Recipe, Schedule, Settings, TrainContext, Trainer, largest_batch};
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
    /// Read options from a TOML file: names without dashes, such as `batch-size = 64`; options on the command line take precedence. Each
    /// run writes one that repeats it, train.toml. Presets: demo (a small model on built-in images), small (half the channels),
    /// seed (--recipe seed).
    #[arg(long, value_name = "FILE|PRESET", value_hint = ValueHint::FilePath)]
    config: Option<PathBuf>,
    /// Use the settings of this run; options on the command line take precedence.
    #[arg(long, value_name = "RUN", conflicts_with_all = ["config", "recipe"], value_parser = run(), value_hint = ValueHint::DirPath)]
    like: Option<PathBuf>,
    /// Resume a run with its saved settings and kernel variants. --epochs sets a new total; --variant and --variants override the saved
    /// variants.
    #[arg(long, value_name = "RUN", conflicts_with_all = [
        "out", "force", "config", "like", "init", "batch_size", "accumulate", "micro_batches", "sync_batch_norm", "seed", "lr", "weight_decay", "warmup", "schedule", "clip_grad", "beta", "beta_warmup",
        "beta_cycle", "free_bits", "flip", "crop", "channels", "blocks", "latent_dim", "norm", "head", "likelihood", "train_limit",
        "val_limit", "val_split", "recipe", "image_size", "conditional", "posterior_std",
    ], value_parser = run(), value_hint = ValueHint::DirPath)]
    resume: Option<PathBuf>,
    /// Initialize the weights from a run, a safetensors file with PyTorch's tensor names and shapes, or `pretrained` (--channels 16
    /// --head pool).
    #[arg(long, value_name = "RUN|FILE", value_parser = values::model(), value_hint = ValueHint::AnyPath)]
    init: Option<Origin>,
    /// Stop after this time, such as 90m or 2h, save a checkpoint and end; --resume continues.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    max_time: Option<Duration>,
    /// Do all that comes before the first step, then end: open the data and the device, plan the memory, compile the kernels. Writes no
    /// files.
    #[arg(long, conflicts_with_all = ["resume", "lr_find"], hide_short_help = true)]
    dry_run: bool,
    /// Instead of training, try learning rates from 1e-6 to 1 in 100 steps, name the one at which the loss falls fastest, and plot the
    /// loss over the learning rate.
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "lr_find.png", require_equals = true,
        conflicts_with = "resume", value_hint = ValueHint::FilePath, hide_short_help = true)]
    lr_find: Option<PathBuf>,
    /// Keep the weights after every N epochs, in weights/epoch_NN.safetensors. By default those of the best and the last epoch are kept.
    #[arg(long, value_name = "N", hide_short_help = true)]
    save_every: Option<NonZeroU64>,
}

/// Hyperparameters.
#[derive(Args, Debug)]
#[command(next_help_heading = "Training")]
struct TrainingArgs {
    /// Settings to start from: sharp (optimal likelihood, cosine schedule, clipping, flipped images, a validation split), or seed (those
    /// of github.com/pi-tau/vae: unit likelihood, 16 latent dimensions; its images are blurred) [default: sharp].
    #[arg(long, value_name = "RECIPE", value_parser = choice::<Recipe>(&["sharp", "seed"]), hide_possible_values = true)]
    recipe: Option<Recipe>,
    /// Total number of epochs [default: 25].
    #[arg(long, short, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MAX_EPOCHS))]
    epochs: Option<u64>,
    /// Images per training step, or with --accumulate per micro-batch; auto: the largest power of two up to 1024 that the device has memory
    /// for [default: 128].
    #[arg(long, short, value_name = "N|auto", aliases = ["batch", "batch_size"])]
    batch_size: Option<BatchSize>,
    /// Micro-batches per training step, in each of several processes, whose gradients are added before the update: the step of a batch K
    /// times as large, in the memory of one [default: 1].
    #[arg(long, value_name = "K", value_parser = micro_batches(), conflicts_with = "micro_batches", hide_short_help = true)]
    accumulate: Option<usize>,
    /// Micro-batches per training step in all processes together, in place of --accumulate: what train.toml has, so that it repeats a run
    /// on another number of processes.
    #[arg(long, value_name = "N", value_parser = micro_batches(), hide_short_help = true)]
    micro_batches: Option<usize>,
    /// Compute the statistics of batch norm over the images of all processes, as those of one larger batch: for small batches on many
    /// devices. The processes wait for each other at every norm [default: false].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", require_equals = true, hide_short_help = true)]
    sync_batch_norm: Option<bool>,
    /// Seed of the initial weights, image order, noise and augmentation [default: 0].
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Learning rate after the warm-up [default: 0.01].
    #[arg(long, value_name = "RATE", value_parser = positive)]
    lr: Option<f64>,
    /// Steps during which the learning rate rises from a hundredth of --lr to --lr [default: 500; with --recipe seed: 1000].
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

/// Progress, profiling and TensorBoard.
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
    /// Write event files for TensorBoard to the folder `tensorboard` of the run: losses, images, gradients and settings. A resumed run
    /// that has them continues them. Results do not change.
    #[arg(long)]
    tensorboard: bool,
    /// Print one JSON object per event to stdout.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    preview: PreviewArgs,
}

/// Value of --batch-size.
#[derive(Clone, Copy, Debug)]
enum BatchSize {
    Auto,
    Images(NonZeroUsize),
}

impl FromStr for BatchSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::Images).map_err(|_| "expected a number above 0, or auto".to_owned()),
        }
    }
}

/// Own images that are too few for a model to learn anything but themselves.
const FEW_IMAGES: usize = 100;

/// Largest batch size that is chosen automatically.
const MOST_IMAGES: usize = 1024;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScheduleArg {
    Constant,
    Cosine,
}

impl TrainArgs {
    /// Returns the options of --config or --like as arguments, except those that an option on the command line replaces.
    pub(super) fn options_of_file(&self) -> anyhow::Result<Vec<OsString>> {
        let mut options = match (&self.run.config, &self.run.like) {
            (Some(file), _) => config_file::from_file(file)?,
            (_, Some(run)) => config_file::from_run(run)?,
            _ => Vec::new(),
        };
        // Two options for the same number; others are replaced by their last value.
        if self.training.accumulate.or(self.training.micro_batches).is_some() {
            options.retain(|option| {
                let option = option.to_string_lossy();
                !["--accumulate=", "--micro-batches="].iter().any(|name| option.starts_with(name))
            });
        }
        Ok(options)
    }

    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let group = launch::join()?;
        let Some(mut group) = group else {
            let result = self.train(None);
            return result.inspect_err(|error| self.print_event(error));
        };
        if !group.is_first() {
            be_quiet();
        }
        let result = self.train(Some(&mut group));
        let (first, ranks) = (group.is_first(), &mut group.ranks);
        let result = match result {
            Ok(code) => ranks.end(None).map(|()| code).map_err(anyhow::Error::from),
            Err(error) => {
                // A rank that does not answer changes nothing in the cause.
                let _ = ranks.end(Some((&message(&error), exit_code(&error) == DIVERGED)));
                Err(error)
            }
        };
        Ok(result.unwrap_or_else(|error| {
            // Rank 0 has heard of the error, unless it is silent.
            if first || ranks.is_lost() {
                self.print_event(&error);
                print_error(&error);
            }
            ExitCode::from(exit_code(&error))
        }))
    }

    /// Prints an error as an event. The error itself is printed on stderr, too.
    fn print_event(&self, error: &anyhow::Error) {
        if self.output.json {
            let _ = print(json!({"event": "error", "message": message(error), "exit_code": exit_code(error)}));
        }
    }

    /// Trains, as one process of a group if there is one.
    fn train(&self, mut group: Option<&mut Group>) -> anyhow::Result<ExitCode> {
        // The others train the same model, but only the first one shows and keeps it.
        let first = group.as_ref().is_none_or(|group| group.is_first());
        if let Some(table) = &self.plan.plan.variants {
            check_exists(table)?;
        }
        if let Some(Origin::Path(weights)) = &self.run.init {
            check_exists(weights)?;
        }
        let (mut settings, resumed) = self.settings(first)?;
        if let Some(group) = &group {
            let TrainingArgs { accumulate, micro_batches, .. } = self.training;
            let shared = shared_run::micro_batches(group.ranks.size(), accumulate, micro_batches)?;
            if resumed.is_none() {
                settings.accumulate = shared;
            }
            self.check_group()?;
        }
        settings.check()?;
        if settings.sync_batch_norm && group.is_none() {
            anyhow::bail!(
                "cannot synchronize batch norms (--sync-batch-norm) in one process: start several with mpirun, or leave the option out \
                 (docs/distributed.md)"
            );
        }
        if first {
            RunFolder::check(self.run.out.as_deref(), self.run.force)?;
        }
        let quiet = is_quiet() || self.output.json;
        let model = resumed.as_ref().map(|_| &settings.model);
        let args = self.dataset.of_run(&settings)?;
        // What may be refused at once is looked at before a download.
        let device = match &group {
            Some(group) => self.device.of_process(group.local)?.open_for_models(!quiet)?,
            None => self.device.open_for_models(!quiet)?,
        };
        let profile = first && (self.output.profile || self.output.trace.is_some());
        if profile && matches!(device, Device::Cpu) {
            anyhow::bail!(
                "cannot profile: the CPU reference runs no kernels. Choose a GPU adapter with --device; `vae-wgpu devices` lists them"
            );
        }
        if let Some(trace) = &self.output.trace {
            check_output(trace, &["json"])?;
        }
        if let Some(plot) = &self.run.lr_find {
            check_output(plot, &["png"])?;
        }
        // The first process downloads what is missing. The others find it there.
        if let Some(group) = group.as_mut().filter(|_| !first) {
            group.ranks.gather_patiently(&[])?;
        }
        let Opened { dataset, images } = args.open(quiet, model)?;
        if let Some(group) = group.as_mut().filter(|_| first) {
            group.ranks.gather_patiently(&[])?;
        }
        if resumed.is_none() {
            fit_to_images(&mut settings.model, &dataset, self.training.conditional)?;
        }
        let (init, init_file) = self.init(&settings)?.unzip();
        let batch = settings.batch_size.min(dataset.train.len());
        let plan = self.plan.options(adapter(&device), &settings.model, &[(batch, Mode::Train)])?;
        let mut observer: Box<dyn Observer> = match first {
            true => observer(self.output.json, is_quiet(), self.output.preview.get()),
            false => Box::new(Quiet),
        };
        if let Some(group) = &mut group {
            let shared = shared_run::shared_adapter(&mut group.ranks, group.node, adapter(&device))?;
            if let Some(message) = shared.filter(|_| first) {
                observer.observe(&Event::Warning { message: &message })?;
            }
        }
        if images.is_some() && first && dataset.train.len() < FEW_IMAGES {
            let message = format!(
                "only {}: the model will learn them by heart. Hundreds or more show what images have in common",
                counted(dataset.train.len() as u64, "training image")
            );
            observer.observe(&Event::Warning { message: &message })?;
        }
        // The run ends after the current step.
        let stop = Arc::new(AtomicBool::new(false));
        let requests = signals::set_on_request(&stop, quiet)?;
        let timed_out = self.run.max_time.filter(|_| first).map(|time| signals::set_after(time, &stop)).transpose()?;
        let context =
            TrainContext { dataset: &dataset, device: &device, plan: &plan, observer: observer.as_mut(), stop: &stop };
        // Before kernels are compiled for it, which may take a while.
        let show_device = || {
            if !quiet {
                eprintln_wrapped(format_args!("device  {}", device.describe()));
            }
        };
        if resumed.is_none() && matches!(self.training.batch_size, Some(BatchSize::Auto)) {
            settings.batch_size = largest_batch(&settings, MOST_IMAGES, &context)?;
            if let Some(group) = &mut group {
                settings.batch_size = group.ranks.least(settings.batch_size)?;
            }
        }
        if let Some(plot) = &self.run.lr_find {
            show_device();
            let batch_size = settings.images_per_step();
            let (points, outcome) = range_test(settings, init.as_ref(), context)?;
            if outcome == Outcome::Interrupted && !is_over(timed_out.as_deref()) {
                return Ok(requests.exit_code());
            }
            return self.report_range_test(&points, batch_size, plot);
        }
        if self.run.dry_run {
            show_device();
            let mut nowhere = InMemoryRun::default();
            let ranks = group.map(|group| &mut group.ranks);
            Trainer::new_among(ranks, settings, &mut nowhere, init.as_ref(), context)?.announce()?;
            if !quiet {
                eprintln_lossy("dry run: ready to train; no files were written");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let ranks = group.map(|group| &mut group.ranks);
        if !first {
            let mut nowhere = InMemoryRun::default();
            let mut trainer = match resumed {
                Some(resumed) => {
                    nowhere.checkpoint = Some(resumed.load_checkpoint()?);
                    Trainer::resume_among(ranks, settings, &mut nowhere, context)?
                }
                None => Trainer::new_among(ranks, settings, &mut nowhere, init.as_ref(), context)?,
            };
            return Ok(match trainer.run()? {
                Outcome::Interrupted => requests.exit_code(),
                Outcome::Finished => ExitCode::SUCCESS,
            });
        }
        let mut store;
        let mut trainer = match resumed {
            Some(resumed) => {
                store = resumed.keep_every(self.run.save_every);
                show_device();
                Trainer::resume_among(ranks, settings, &mut store, context)?
            }
            None => {
                let folder = RunFolder::create(self.run.out.as_deref(), self.run.force)?;
                let (preview, name) = (folder.data_preview(), folder.name());
                store = FolderStore::new(folder)
                    .initialized_from(init_file)
                    .keep_every(self.run.save_every)
                    .with_tensorboard(self.output.tensorboard);
                show_device();
                let trainer = Trainer::new_among(ranks, settings, &mut store, init.as_ref(), context)?;
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
                // The run is complete: a signal ends the process at once.
                requests.quit_at_once();
                self.fit_prior(&run, &dataset, &device, &plan);
                Ok(ExitCode::SUCCESS)
            }
            Outcome::Interrupted if is_over(timed_out.as_deref()) => Ok(ExitCode::SUCCESS),
            Outcome::Interrupted => Ok(requests.exit_code()),
        }
    }

    /// Rejects what several processes cannot do.
    fn check_group(&self) -> anyhow::Result<()> {
        if self.run.lr_find.is_some() {
            anyhow::bail!(
                "cannot try learning rates in several processes: start one, with --accumulate for its share and theirs"
            );
        }
        Ok(())
    }

    /// Returns the settings, and the folder of the run to resume, opened for writing if `writes` is set.
    pub(super) fn settings(&self, writes: bool) -> anyhow::Result<(Settings, Option<FolderStore>)> {
        if let Some(run) = &self.run.resume {
            let folder = if writes { RunFolder::resume(run)? } else { RunFolder::view(run)? };
            let store = FolderStore::new(folder).with_tensorboard(self.output.tensorboard);
            let (mut settings, progress) = store.saved()?;
            settings.epochs = self.training.epochs.unwrap_or(settings.epochs);
            progress.check_epochs(settings.epochs)?;
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
            batch_size: match t.batch_size {
                Some(BatchSize::Images(count)) => count.get(),
                // Determined when data and device are open.
                Some(BatchSize::Auto) | None => base.batch_size,
            },
            accumulate: t.micro_batches.or(t.accumulate).unwrap_or(base.accumulate),
            sync_batch_norm: t.sync_batch_norm.unwrap_or(base.sync_batch_norm),
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
        if (1..settings.beta_warmup).contains(&settings.beta_cycle) {
            let expected = format!("0, or at least the {} steps in which beta rises", settings.beta_warmup);
            return Err(conflict(&Error::argument("--beta-cycle", expected, settings.beta_cycle).to_string()));
        }
        Ok((settings, None))
    }

    /// Plots a range test and prints what it found.
    fn report_range_test(&self, points: &[RangePoint], batch_size: usize, plot: &Path) -> anyhow::Result<ExitCode> {
        let suggested = steepest(points);
        create_parent(plot)?;
        let caption =
            Caption::new("Learning rate range test").with("batch size", batch_size).with("steps", points.len());
        save_png(plot, &range_plot(&caption, points, suggested)?, &caption)?;
        let lowest = points.iter().min_by(|a, b| a.smoothed.total_cmp(&b.smoothed)).map(|point| point.lr);
        if self.output.json {
            let points: Vec<_> = points.iter().map(|point| [point.lr, point.loss, point.smoothed]).collect();
            print(serde_json::json!({ "suggested": suggested, "lowest": lowest, "points": points }))?;
            return Ok(ExitCode::SUCCESS);
        }
        match (suggested, lowest) {
            (Some(suggested), Some(lowest)) => {
                print(format_args!(
                    "--lr {suggested:.1e}: the loss falls fastest there, and is lowest at {lowest:.1e}"
                ))?;
            }
            _ => print("the loss does not fall at any learning rate")?,
        }
        if !is_quiet() {
            eprintln_lossy(format_args!("plot: {}", plot.display()));
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Fits a prior to the best weights of the run, unless one is there. The run is complete without it, so a failure is a warning.
    fn fit_prior(&self, run: &Path, dataset: &Dataset, device: &Device, plan: &plan::Options) {
        let fit = || {
            let model = model::load(run)?;
            if prior::load(&model, prior::Kind::Mixture).is_ok_and(|found| found.is_some()) {
                return Ok(None);
            }
            let images = dataset.train.as_ref();
            let mut trained = model.on(device, plan, BATCH, &[(Mode::Encode, images.len())])?;
            fit_prior::fit_mixture(&model, &mut trained, images, fit_prior::COMPONENTS as usize, 0).map(Some)
        };
        match fit() {
            Ok(Some(said)) if !is_quiet() && !self.output.json => eprintln_wrapped(said),
            Ok(_) => {}
            Err(error) => eprintln_lossy(format_args!("warning: no prior was fitted: {error:#}")),
        }
    }

    /// Loads the initial weights. Returns them with the absolute path of their file, or the name of the pretrained model.
    fn init(&self, settings: &Settings) -> anyhow::Result<Option<(Weights, PathBuf)>> {
        let Some(origin) = &self.run.init else { return Ok(None) };
        let graph = settings.model.graph(1, Mode::Encode)?;
        let (file, path) = origin.weights()?;
        // A file without sizes is compared tensor by tensor.
        if let Ok(found) = config_of(&file, &path) {
            check_sizes(&path, &found, &settings.model)?;
        }
        let weights = Weights::from_foreign_file(file, &path, TensorSchema::of(&graph))?;
        let path = match origin {
            Origin::Pretrained => path,
            Origin::Path(_) => std::path::absolute(&path).unwrap_or(path),
        };
        Ok(Some((weights, path)))
    }
}

/// Rejects weights of a model of other sizes, and names the options that differ.
fn check_sizes(path: &Path, found: &VaeConfig, wanted: &VaeConfig) -> crate::Result<()> {
    let sizes = |model: &VaeConfig| {
        [
            format!("--channels {}", model.channels),
            format!("--blocks {}", model.blocks),
            format!("--latent-dim {}", model.latent_dim),
            format!("--norm {}", model.norm),
            format!("--head {}", model.head),
            format!("--image-size {}", model.image_size),
            format!("images of {}", counted(model.image_channels as u64, "channel")),
            match model.classes {
                0 => "no --conditional".to_owned(),
                classes => format!("--conditional with {classes} classes"),
            },
        ]
    };
    let (found, wanted) = (sizes(found), sizes(wanted));
    if found == wanted {
        return Ok(());
    }
    let differing = |these: &[String], those: &[String]| {
        let sizes = these.iter().zip(those).filter(|(this, that)| this != that);
        sizes.map(|(this, _)| this.as_str()).collect::<Vec<_>>().join(", ")
    };
    Err(Error::Checkpoint {
        path: path.to_owned(),
        what: "size of the model".into(),
        expected: differing(&wanted, &found),
        found: differing(&found, &wanted),
        hint: "pass what was found as options of this run, or leave out --init".into(),
    })
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
    let caption =
        Caption::new(counted(images.len() as u64, "training image")).with("data", &dataset.name).with("run", run);
    save_png(path, &caption.below(&grid)?, &caption)
}

/// Reports a wrong path before the data set is opened and the kernels are compiled.
fn check_exists(path: &Path) -> crate::Result<()> {
    std::fs::metadata(path).map(drop).map_err(Error::file("find", path))
}

/// Whether the time of --max-time ended the run.
fn is_over(timed_out: Option<&AtomicBool>) -> bool {
    timed_out.is_some_and(|timed_out| timed_out.load(Ordering::SeqCst))
}
