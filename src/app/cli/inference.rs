//! Options that the commands on a trained model share: the model, its device and its images.

use std::fmt::Display;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, fs};

use anyhow::anyhow;
use clap::{Args, ValueEnum, ValueHint};

use super::data::DatasetArgs;
use super::values;
use super::values::non_empty;
use super::{DeviceArgs, PlanArgs, adapter};
use crate::app::data::image_folder;
use crate::app::io::model::Origin;
use crate::app::io::prior;
use crate::app::io::prior::Kind;
use crate::app::io::run_config::RunConfig;
use crate::app::io::run_folder::RunFolder;
use crate::app::viz::caption::Caption;
use crate::app::viz::image_grid::ImageBatch;
use crate::error::Error;
use crate::vae::data;
use crate::vae::data::{Dataset, Images};
use crate::vae::inference::{Model, Trained, check_size};
use crate::vae::model::{Mode, VaeConfig};
use crate::vae::prior::Prior;
use crate::vae::runner::Device;
use crate::vae::train::Settings;

/// Images that a trained model processes at once unless an option says otherwise.
pub(super) const BATCH: usize = 128;

/// Choice of a trained model and its device.
#[derive(Args, Debug, Clone)]
pub(super) struct TrainedArgs {
    /// Run folder written by `vae-wgpu train`, its name if it is in `runs`, a file with weights, or `pretrained`: the model of CIFAR-10
    /// that is part of the program (a folder of this name is ./pretrained).
    #[arg(value_name = "RUN|FILE", index = 1, value_parser = values::model(), value_hint = ValueHint::AnyPath)]
    run: Origin,
    /// Images processed at once.
    #[arg(long, alias = "batch", value_name = "N", default_value = "128")]
    batch_size: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    plan: PlanArgs,
}

impl TrainedArgs {
    /// Reads and checks the model; needs no device.
    pub(super) fn load(&self) -> anyhow::Result<Model> {
        Ok(self.run.load()?)
    }

    /// Returns a prior that was fitted to the model, if there is one of this kind.
    pub(super) fn prior(&self, model: &Model, kind: Kind) -> anyhow::Result<Option<Prior>> {
        Ok(self.run.prior(model, kind)?)
    }

    /// The same, with an error that says how to fit it if there is none.
    pub(super) fn required_prior(&self, model: &Model, kind: Kind) -> anyhow::Result<Prior> {
        self.prior(model, kind)?.ok_or_else(|| match &self.run {
            Origin::Path(_) => {
                let path = prior::path(model, kind);
                anyhow!("{} does not exist; fit this prior with `{}`", path.display(), kind.command(&model.path))
            }
            Origin::Pretrained => anyhow!(
                "the pretrained model has no such prior; fit one to a copy of it: `vae-wgpu export pretrained --out \
                 model.safetensors`, then `{}`",
                kind.command(Path::new("model.safetensors"))
            ),
        })
    }

    /// Returns a caption with the run and the epoch of the model.
    pub(super) fn caption(&self, model: &Model, title: impl Into<String>) -> Caption {
        let caption = match self.run.folder().map(RunFolder::view) {
            Some(Ok(folder)) => folder.caption(title),
            _ => Caption::new(title).with("model", model.path.file_name().unwrap_or_default().to_string_lossy()),
        };
        match model.epoch {
            Some(epoch) => caption.with("epoch", epoch),
            None => caption,
        }
    }

    /// Adds the class of the images to a caption, if the model has classes and all images have the same one.
    pub(super) fn with_class(caption: Caption, model: &Model, labels: &[u8]) -> Caption {
        let name = labels.first().and_then(|label| model.classes.get(usize::from(*label)));
        match name.filter(|_| labels.iter().all(|label| *label == labels[0])) {
            Some(name) => caption.with("class", name),
            None => caption,
        }
    }

    /// Loads the model onto the device, with programs for `work`.
    pub(super) fn start(&self, model: &Model, work: &[(Mode, usize)]) -> anyhow::Result<Trained> {
        self.start_with(true, model, work)
    }

    /// The same; `verbose` shows the progress of compilation.
    pub(super) fn start_with(&self, verbose: bool, model: &Model, work: &[(Mode, usize)]) -> anyhow::Result<Trained> {
        self.start_on(&self.open(verbose)?, model, work)
    }

    /// Opens the device; `verbose` shows the progress of compilation.
    pub(super) fn open(&self, verbose: bool) -> anyhow::Result<Device> {
        self.device.open_for_models(verbose)
    }

    /// Loads the model onto a device that is open.
    pub(super) fn start_on(&self, device: &Device, model: &Model, work: &[(Mode, usize)]) -> anyhow::Result<Trained> {
        let batch = self.batch_size.get();
        let programs: Vec<_> = work.iter().map(|&(mode, count)| (batch.min(count), mode)).collect();
        let options = self.plan.options(adapter(device), &model.config, &programs)?;
        Ok(model.on(device, &options, batch, work)?)
    }

    /// Returns the options of a data set: those given, or without a data set the one that the run was trained on.
    fn dataset_args(&self, args: &DatasetArgs) -> anyhow::Result<DatasetArgs> {
        match self.run.run_folder() {
            Some(folder) if args.spec().is_none() => {
                let run: RunConfig<Settings> = RunFolder::view(&folder)?.load_config()?;
                args.of_run(&run.settings)
            }
            _ => Ok(args.clone()),
        }
    }

    /// Opens the data set of `args`, or without one the data set that the run was trained on. The images of a folder are resized to those
    /// of the model, and labels are those of its classes.
    pub(super) fn dataset(&self, args: &DatasetArgs, model: &Model) -> anyhow::Result<Dataset> {
        let (args, config) = (self.dataset_args(args)?, &model.config);
        let dataset = args.open(false, Some(config))?.dataset;
        if let Err(Error::InvalidArgument { expected, found, .. }) = check_size(config, dataset.test.as_ref()) {
            let what = format!("its images have {found} values, those of the model {expected}");
            let hint = "pass the data set of the run, or a folder of PNG or JPEG images, which are resized";
            return Err(Error::data(&dataset.name, what, hint).into());
        }
        Ok(dataset.with_classes(&model.classes)?)
    }
}

/// Split of a data set. Its variants have no doc comments, because clap would turn every help text into the long form.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum Split {
    Train,
    Test,
}

/// Choice of images from a data set.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Data set")]
pub(super) struct ImagesArgs {
    #[command(flatten)]
    dataset: DatasetArgs,
    /// Split of the data set to read.
    #[arg(long, value_enum, default_value = "test")]
    split: Split,
}

impl ImagesArgs {
    /// Name of the data set, as stored in a run.
    pub(super) fn data(&self, trained: &TrainedArgs) -> anyhow::Result<String> {
        Ok(trained.dataset_args(&self.dataset)?.spec().unwrap_or_else(|| "CIFAR-10".to_owned()))
    }

    /// Name of the split.
    pub(super) fn split(&self) -> &'static str {
        match self.split {
            Split::Train => "train",
            Split::Test => "test",
        }
    }

    pub(super) fn open(&self, trained: &TrainedArgs, model: &Model) -> anyhow::Result<Box<dyn Images>> {
        let dataset = trained.dataset(&self.dataset, model)?;
        Ok(match self.split {
            Split::Train => dataset.train,
            Split::Test => dataset.test,
        })
    }
}

/// Choice of a class.
#[derive(Args, Debug, Clone)]
pub(super) struct ClassArgs {
    /// Class of the images that come from files or from the prior, by name or number; only for a model trained with --conditional.
    #[arg(long, value_name = "CLASS", value_parser = non_empty::<String>)]
    class: Option<String>,
}

impl ClassArgs {
    /// Returns the chosen class of `model`, if one was chosen.
    pub(super) fn of(&self, model: &Model) -> anyhow::Result<Option<u8>> {
        let Some(name) = &self.class else { return Ok(None) };
        if model.classes.is_empty() {
            anyhow::bail!(
                "{} has no classes to choose from with --class: it was trained without --conditional",
                model.path.display()
            );
        }
        let named = model.classes.iter().position(|class| class.eq_ignore_ascii_case(name));
        let numbered = || name.parse().ok().filter(|number: &usize| *number < model.classes.len());
        let class = named.or_else(numbered).ok_or_else(|| Error::Unknown {
            kind: "class",
            name: name.clone(),
            known: model.classes.join(", "),
        })?;
        Ok(Some(class as u8))
    }

    /// Returns the class of an image in a file: the chosen one, or any for a model without classes.
    pub(super) fn of_file(&self, model: &Model) -> anyhow::Result<u8> {
        if model.classes.is_empty() {
            return Ok(self.of(model)?.unwrap_or(0));
        }
        self.of(model)?.ok_or_else(|| {
            let known = model.classes.join(", ");
            anyhow!("the model needs to know what the image shows: pass --class with one of {known}")
        })
    }
}

/// An image named on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Index in the data set, from 0.
    Index(u32),
    /// A PNG or JPEG file.
    File(PathBuf),
}

impl FromStr for Source {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::File(text.into()), Self::Index))
    }
}

impl Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => write!(f, "{index}"),
            Self::File(path) => write!(f, "{}", path.file_name().unwrap_or_default().to_string_lossy()),
        }
    }
}

impl Source {
    /// The path of a file.
    pub(super) fn path(&self) -> Option<&Path> {
        match self {
            Self::Index(_) => None,
            Self::File(path) => Some(path),
        }
    }

    /// Reads images, each given with the option that names it, and returns their bytes one after the other, and their classes. Opens the
    /// data set only if an index occurs.
    pub(super) fn read(
        sources: &[(&str, &Self)],
        images: &ImagesArgs,
        class: &ClassArgs,
        trained: &TrainedArgs,
        model: &Model,
    ) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
        let config = &model.config;
        class.of(model)?;
        let from_data = sources.iter().any(|(_, source)| matches!(source, Self::Index(_)));
        let images = if from_data { Some(images.open(trained, model)?) } else { None };
        let (mut all, mut labels) = (Vec::new(), Vec::new());
        for (option, source) in sources {
            match (source, &images) {
                (Self::File(path), _) => {
                    labels.push(class.of_file(model)?);
                    all.extend(from_file(path, config)?);
                }
                (Self::Index(index), Some(images)) => {
                    let mut pixels = Vec::new();
                    if *index as usize >= images.len() {
                        let expected = format!("an index below {} or an image file", images.len());
                        return Err(Error::argument(option, expected, index).into());
                    }
                    data::batch(images.as_ref(), &[*index], &mut pixels)?;
                    labels.push(images.label(*index as usize));
                    all.extend(pixels);
                }
                (Self::Index(_), None) => return Err(Error::bug("an index without a data set").into()),
            }
        }
        Ok((all, labels))
    }
}

/// Replaces each folder in `paths` by the PNG and JPEG files in it and in the folders below it, in the order of their paths.
pub(super) fn image_files(paths: &[PathBuf]) -> crate::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in paths {
        if !fs::metadata(path).map_err(Error::file("read", path))?.is_dir() {
            files.push(path.clone());
            continue;
        }
        let (found, runs) = image_folder::image_files(path)?;
        if found.is_empty() {
            let what = match runs.is_empty() {
                true => "there are no PNG or JPEG files in this folder or in the folders below it",
                false => "its PNG and JPEG files belong to runs",
            };
            return Err(Error::data(path.display(), what, "pass image files, or a folder with image files"));
        }
        files.extend(found);
    }
    Ok(files)
}

/// Loads an image file as model input `[channels, size, size]`: cropped to a square, resized, and converted to grey for a model with one
/// channel.
pub(super) fn from_file(path: &Path, config: &VaeConfig) -> anyhow::Result<Vec<u8>> {
    let image = ImageBatch::load(path, config.image_size as u32)?;
    match config.image_channels {
        3 => Ok(image.to_bytes()),
        1 => Ok(image.to_grey_bytes()),
        other => Err(Error::argument("number of image channels of the model", "1 or 3 for image files", other).into()),
    }
}

/// Channels, height and width of an image.
pub(super) fn dims(config: &VaeConfig) -> [usize; 3] {
    [config.image_channels, config.image_size, config.image_size]
}
