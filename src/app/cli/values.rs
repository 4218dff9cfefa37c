//! Parsers of option values. A rejected value is a usage error that names its option, reported before any work starts.

use std::error;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::builder::{PathBufValueParser, PossibleValuesParser, RangedU64ValueParser, TypedValueParser};

use crate::app::bench::tune::KnownVariants;
use crate::app::data::image_folder::SIZES;
use crate::app::io::model::Origin;
use crate::app::io::pretrained;
use crate::app::io::run_folder::RUNS;
use crate::error::Error;
use crate::runtime::op::MAX_MICRO_BATCHES;
use crate::vae::model::VaeConfig;
use crate::vae::train::POSTERIOR_STDS;

type ParseError = Box<dyn error::Error + Send + Sync>;

/// Returns a parser of a model size that [`VaeConfig::check`] accepts.
pub(super) fn size(
    set: fn(&mut VaeConfig, usize),
) -> impl Fn(&str) -> Result<usize, ParseError> + Clone + Send + Sync + 'static {
    move |text| {
        let (size, mut config) = (text.parse()?, VaeConfig::default());
        set(&mut config, size);
        match config.check() {
            // The option is already named in the message of the parser.
            Err(Error::InvalidArgument { expected, .. }) => Err(format!("expected {expected}").into()),
            other => Ok(other.map(|()| size)?),
        }
    }
}

/// Returns a parser of the path of a run folder, which may be the name of a run in [`RUNS`].
pub(super) fn run() -> impl TypedValueParser<Value = PathBuf> {
    PathBufValueParser::new().try_map(|path| match origin(path) {
        Origin::Path(path) => Ok(path),
        Origin::Pretrained => {
            Err("the pretrained model has no run folder; name your own folder of this name as ./pretrained")
        }
    })
}

/// Returns a parser of a trained model: as [`run`], a file, or the name of the pretrained model.
pub(super) fn model() -> impl TypedValueParser<Value = Origin> {
    PathBufValueParser::new().map(origin)
}

/// Returns a parser of a trained model beside which files can be written: as [`model`], but not the pretrained one.
pub(super) fn stored_model() -> impl TypedValueParser<Value = Origin> {
    model().try_map(|origin| match origin {
        Origin::Path(_) => Ok(origin),
        Origin::Pretrained => Err("it is part of the program and has its prior; fit another one to a copy: \
             `vae-wgpu export pretrained --out model.safetensors`"),
    })
}

/// Returns the model that an argument names. What does not exist may be the name of a run in [`RUNS`].
fn origin(path: PathBuf) -> Origin {
    // A folder of this name is `./pretrained`: what the name means does not depend on the current folder.
    if path.as_os_str() == pretrained::NAME {
        return Origin::Pretrained;
    }
    let named = Path::new(RUNS).join(&path);
    Origin::Path(if !path.exists() && named.is_dir() { named } else { path })
}

/// Returns a parser of the number of micro-batches of a step.
pub(super) fn micro_batches() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=MAX_MICRO_BATCHES as u64)
}

/// Returns a parser of one of `names`, which help and shells list.
pub(super) fn choice<T>(names: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = Error> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse())
}

/// Parses a number from 0 to the largest `f32`, which is the precision of the kernels.
pub(super) fn non_negative(text: &str) -> Result<f64, ParseError> {
    let value: f64 = text.parse()?;
    if (0.0..=f64::from(f32::MAX)).contains(&value) {
        return Ok(value);
    }
    Err("expected a number from 0 to 3e38".into())
}

/// Parses a number from 0 to 100, far beyond which no decoder is meant to see a latent vector.
pub(super) fn temperature(text: &str) -> Result<f64, ParseError> {
    let value: f64 = text.parse()?;
    if (0.0..=100.0).contains(&value) { Ok(value) } else { Err("expected a number from 0 to 100".into()) }
}

/// Parses a number above 0 and at most the largest `f32`.
pub(super) fn positive(text: &str) -> Result<f64, ParseError> {
    let value: f64 = text.parse()?;
    let fits = value > 0.0 && value <= f64::from(f32::MAX);
    if fits { Ok(value) } else { Err("expected a number above 0, at most 3e38".into()) }
}

/// Parses a number from 0 to below 1.
pub(super) fn share(text: &str) -> Result<f64, ParseError> {
    let value: f64 = text.parse()?;
    if (0.0..1.0).contains(&value) { Ok(value) } else { Err("expected a number from 0 to below 1".into()) }
}

/// Formats a number with up to two decimals.
pub(super) fn short(value: f64) -> String {
    // Adding zero turns a negative zero into a positive one.
    ((100.0 * value).round() / 100.0 + 0.0).to_string()
}

/// Parses a time above zero with its unit: `90s`, `1.5m`, `2h`.
pub(super) fn duration(text: &str) -> Result<Duration, ParseError> {
    let expected = "expected a time above zero such as 90s, 15m or 2h";
    let unit = match text.chars().last() {
        Some('s') => 1.0,
        Some('m') => 60.0,
        Some('h') => 3600.0,
        _ => return Err(expected.into()),
    };
    let number: f64 = text.get(..text.len() - 1).unwrap_or_default().parse().map_err(|_| expected)?;
    // At least a millisecond, at most about 30 years.
    let time = Duration::try_from_secs_f64(number * unit).map_err(|_| expected)?;
    if (1e-3..1e9).contains(&time.as_secs_f64()) { Ok(time) } else { Err(expected.into()) }
}

/// Parses a number in [`POSTERIOR_STDS`].
pub(super) fn posterior_std(text: &str) -> Result<f64, ParseError> {
    let value: f64 = text.parse()?;
    if POSTERIOR_STDS.contains(&value) { Ok(value) } else { Err("expected a number from 0.001 to 1000".into()) }
}

/// Parses a size of [`SIZES`].
pub(super) fn image_size(text: &str) -> Result<usize, ParseError> {
    let size = text.parse()?;
    if SIZES.contains(&size) { Ok(size) } else { Err("expected 32, 64 or 128".into()) }
}

/// Parses `OP=NAME`: an operation or a pass, and one of its variants.
pub(super) fn variant(text: &str) -> Result<(String, String), ParseError> {
    let (op, name) = text.split_once('=').ok_or("expected OP=NAME, e.g. conv2d=naive")?;
    KnownVariants::new()?.check(op, name)?;
    Ok((op.to_owned(), name.to_owned()))
}

/// Parses a non-empty value.
pub(super) fn non_empty<T: FromStr<Err: Into<ParseError>>>(text: &str) -> Result<T, ParseError> {
    if text.is_empty() {
        return Err("the value is empty".into());
    }
    text.parse().map_err(Into::into)
}
