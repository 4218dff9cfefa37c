//! What the values of options may be. A wrong one is a usage error that names its option, told before anything is done.

use std::error::Error;
use std::str::FromStr;

use crate::app::bench::tune::Known;
use crate::vae::model::VaeConfig;

type Refusal = Box<dyn Error + Send + Sync>;

/// A size of the model, where [`VaeConfig::check`] takes it.
pub(super) fn size(
    set: fn(&mut VaeConfig, usize),
) -> impl Fn(&str) -> Result<usize, Refusal> + Clone + Send + Sync + 'static {
    move |text| {
        let (size, mut config) = (text.parse()?, VaeConfig::default());
        set(&mut config, size);
        config.check()?;
        Ok(size)
    }
}

/// A number from zero that single precision can hold, as kernels do.
pub(super) fn from_zero(text: &str) -> Result<f64, Refusal> {
    let value: f64 = text.parse()?;
    if (0.0..=f64::from(f32::MAX)).contains(&value) {
        return Ok(value);
    }
    Err(format!("expected a number from 0 to {:e}", f32::MAX).into())
}

/// An operation or entry and one of its variants.
pub(super) fn variant(text: &str) -> Result<(String, String), Refusal> {
    let (op, name) = text.split_once('=').ok_or("expected OP=NAME, e.g. conv2d=naive")?;
    Known::new()?.check(op, name)?;
    Ok((op.to_owned(), name.to_owned()))
}

/// Anything but nothing.
pub(super) fn given<T: FromStr<Err: Into<Refusal>>>(text: &str) -> Result<T, Refusal> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    text.parse().map_err(Into::into)
}
