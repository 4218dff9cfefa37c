//! Settings of a training run.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runtime::op::{Likelihood, MAX_MICRO_BATCHES};
use crate::vae::model::{Head, Norm, VaeConfig};
use crate::vae::runner::Hyperparams;

/// Learning rate schedule after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Schedule {
    /// The learning rate stays constant.
    Constant,
    /// The learning rate falls to zero at the last step, along half a cosine.
    Cosine,
}

/// A set of settings that work together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recipe {
    /// Sharp images: the optimal likelihood, 64 latent dimensions, an encoder without pooling at its end, a cosine schedule, clipping,
    /// flipped images, and a validation split.
    Sharp,
    /// The settings of <https://github.com/pi-tau/vae>, with batch norm: the unit likelihood, 16 latent dimensions, pooling, a constant
    /// learning rate, and validation on the test images.
    Seed,
}

impl Recipe {
    /// Returns the settings: AdamW with learning rate 0.01 and weight decay 1e-4, batch size 128, 25 epochs, seed 0, beta 1, and what
    /// the recipe adds.
    #[must_use]
    pub fn settings(self) -> Settings {
        let seed = Settings {
            model: VaeConfig { latent_dim: 16, head: Head::Pool, likelihood: Likelihood::Unit, ..VaeConfig::default() },
            data: None,
            image_size: None,
            train_limit: None,
            val_limit: None,
            val_split: 0.0,
            batch_size: 128,
            accumulate: 1,
            sync_batch_norm: false,
            epochs: 25,
            seed: 0,
            lr: 0.01,
            weight_decay: 1e-4,
            warmup: 1000,
            schedule: Schedule::Constant,
            clip_grad: 0.0,
            beta: 1.0,
            beta_warmup: 0,
            beta_cycle: 0,
            free_bits: 0.0,
            posterior_std: 1.0,
            early_stop: 0,
            flip: false,
            crop: false,
            variants: BTreeMap::new(),
        };
        match self {
            Self::Seed => seed,
            Self::Sharp => Settings {
                model: VaeConfig::default(),
                val_split: 0.1,
                warmup: 500,
                schedule: Schedule::Cosine,
                clip_grad: 1.0,
                posterior_std: 0.05,
                flip: true,
                ..seed
            },
        }
    }
}

impl FromStr for Recipe {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "sharp" => Ok(Self::Sharp),
            "seed" => Ok(Self::Seed),
            _ => Err(Error::Unknown { kind: "recipe", name: name.to_owned(), known: "sharp, seed".to_owned() }),
        }
    }
}

/// Settings of a run. They determine its results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Configuration of the model.
    pub model: VaeConfig,
    /// Data set as given to `--data`; `None` is the default, CIFAR-10.
    pub data: Option<String>,
    /// Height and width to which the images of a folder were to be resized; `None` is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
    /// Number of training images to use, from the first; `None` uses all.
    pub train_limit: Option<usize>,
    /// Number of test images to use, from the first; `None` uses all.
    pub val_limit: Option<usize>,
    /// Share of the training images that are set aside for validation, from 0 to below 1. With 0 the test images validate.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub val_split: f64,
    /// Images of a forward and backward pass. The last one of an epoch may have fewer.
    pub batch_size: usize,
    /// Number of these micro-batches in a step, whose gradients are added before the update. The last step of an epoch may have fewer.
    #[serde(default = "single", skip_serializing_if = "is_single")]
    pub accumulate: usize,
    /// Whether batch norms are over the images of all [ranks](crate::vae::ranks), of which there must then be several: those of the
    /// micro-batches that the ranks run at the same time. The results depend on the number of ranks.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sync_batch_norm: bool,
    /// Total number of epochs.
    pub epochs: u64,
    /// Seed of the initial weights, image order, noise and augmentation.
    pub seed: u64,
    /// Learning rate after the warm-up.
    pub lr: f64,
    /// Decoupled weight decay (AdamW).
    pub weight_decay: f64,
    /// Steps during which the learning rate rises from 1 % to 100 %.
    pub warmup: u64,
    /// Learning rate schedule after the warm-up.
    pub schedule: Schedule,
    /// Largest global gradient norm; 0 disables clipping.
    pub clip_grad: f64,
    /// Weight of the KL term in the loss.
    pub beta: f64,
    /// Steps during which `beta` rises from 0; 0 disables the warm-up.
    pub beta_warmup: u64,
    /// Steps after which the warm-up of `beta` starts again (Fu et al., arXiv:1903.10145); 0 for never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub beta_cycle: u64,
    /// KL divergence in nats below which a latent dimension costs nothing more; 0 for none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub free_bits: f64,
    /// Standard deviation of the latent distributions at the start. With 1 the latent vectors of the first steps are mostly noise, which
    /// the decoder learns to ignore.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub posterior_std: f64,
    /// Epochs without a lower validation loss after which the run ends; 0 for never.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub early_stop: u64,
    /// Flip training images horizontally at random.
    pub flip: bool,
    /// Shift training images by up to 4 pixels at random.
    pub crop: bool,
    /// Requested kernel variants, in the format of [`plan::Options::variants`](crate::runtime::plan::Options::variants). They determine
    /// the order of summation.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub variants: BTreeMap<String, String>,
}

/// Settings at zero are not written, so that earlier versions can resume runs that do not use them.
fn is_zero<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn single() -> usize {
    1
}

fn is_single(count: &usize) -> bool {
    *count == 1
}

fn one() -> f64 {
    1.0
}

fn is_one(value: &f64) -> bool {
    *value == 1.0
}

impl Default for Settings {
    /// [`Recipe::Sharp`].
    fn default() -> Self {
        Recipe::Sharp.settings()
    }
}

/// Largest number of epochs. With up to 2^32 steps per epoch, the noise streams of steps remain distinct from those of validation.
pub const MAX_EPOCHS: u64 = 1_000_000_000;

/// Valid values of [`Settings::posterior_std`].
pub const POSTERIOR_STDS: std::ops::RangeInclusive<f64> = 1e-3..=1e3;

impl Settings {
    /// Checks the ranges of all fields.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] with the name of the setting.
    pub fn check(&self) -> Result<()> {
        self.model.check()?;
        for (what, value) in [
            ("learning rate", self.lr),
            ("weight decay", self.weight_decay),
            ("clip-grad", self.clip_grad),
            ("beta", self.beta),
            ("free bits", self.free_bits),
        ] {
            // Kernels compute in single precision.
            if !(0.0..=f64::from(f32::MAX)).contains(&value) {
                return Err(Error::argument(what, "a number from 0 to 3e38", value));
            }
        }
        if !(0.0..1.0).contains(&self.val_split) {
            return Err(Error::argument("validation split", "a number from 0 to below 1", self.val_split));
        }
        if !POSTERIOR_STDS.contains(&self.posterior_std) {
            let (least, most) = POSTERIOR_STDS.into_inner();
            let expected = format!("a number from {least} to {most}");
            return Err(Error::argument("standard deviation of the posterior", expected, self.posterior_std));
        }
        if self.batch_size == 0 {
            return Err(Error::argument("batch size", "at least 1", 0));
        }
        if !(1..=MAX_MICRO_BATCHES).contains(&self.accumulate) {
            let expected = format!("1 to {MAX_MICRO_BATCHES}");
            return Err(Error::argument("number of micro-batches to accumulate", expected, self.accumulate));
        }
        if self.sync_batch_norm && self.model.norm != Norm::Batch {
            return Err(Error::argument("normalization for sync-batch-norm", "batch", "position"));
        }
        if !(1..=MAX_EPOCHS).contains(&self.epochs) {
            return Err(Error::argument("number of epochs", format!("1 to {MAX_EPOCHS}"), self.epochs));
        }
        Ok(())
    }

    /// Returns the number of images of a step. The last step of an epoch may have fewer.
    #[must_use]
    pub fn images_per_step(&self) -> usize {
        self.batch_size.saturating_mul(self.accumulate)
    }

    /// Whether a run ends early after `done` epochs, of which `best` has the lowest validation loss.
    #[must_use]
    pub fn stops_early(&self, done: u64, best: u64) -> bool {
        self.early_stop > 0 && done.saturating_sub(best) >= self.early_stop
    }

    /// Returns the number of steps of an epoch of this many images, including a shorter last one.
    #[must_use]
    pub fn steps_per_epoch(&self, images: usize) -> u64 {
        images.div_ceil(self.images_per_step()) as u64
    }

    /// Returns the learning rate of a step (from 0) in a run of `steps`.
    #[must_use]
    pub fn lr_at(&self, step: u64, steps: u64) -> f64 {
        let fraction = |part: u64, whole: u64| if whole == 0 { 1.0 } else { part.min(whole) as f64 / whole as f64 };
        let warm = self.lr * (0.01 + 0.99 * fraction(step, self.warmup));
        match self.schedule {
            Schedule::Constant => warm,
            Schedule::Cosine if step < self.warmup => warm,
            Schedule::Cosine => {
                let elapsed = fraction(step - self.warmup, steps.saturating_sub(self.warmup).max(1));
                warm * 0.5 * (1.0 + (std::f64::consts::PI * elapsed).cos())
            }
        }
    }

    /// Returns the hyperparameters of a step (from 0) in a run of `steps`.
    #[must_use]
    pub fn hyperparams(&self, step: u64, steps: u64) -> Hyperparams {
        Hyperparams {
            lr: self.lr_at(step, steps),
            weight_decay: self.weight_decay,
            beta: self.beta_at(step),
            free_bits: self.free_bits,
            clip: self.clip_grad,
        }
    }

    /// Returns the weight of the KL term in a step (from 0).
    #[must_use]
    pub fn beta_at(&self, step: u64) -> f64 {
        let step = if self.beta_cycle == 0 { step } else { step % self.beta_cycle };
        if self.beta_warmup == 0 { self.beta } else { self.beta * (step as f64 / self.beta_warmup as f64).min(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::tensor::rng;
    use crate::runtime::tensor::rng::Stream;

    #[test]
    fn learning_rate_warms_up_and_decays() {
        let settings = Recipe::Seed.settings();
        assert!((settings.lr_at(0, 9775) - 1e-4).abs() < 1e-12);
        assert!((settings.lr_at(500, 9775) - 0.01 * (0.01 + 0.99 * 0.5)).abs() < 1e-12);
        assert!((settings.lr_at(1000, 9775) - 0.01).abs() < 1e-12);
        assert!((settings.lr_at(9000, 9775) - 0.01).abs() < 1e-12);
        let cosine = Settings { schedule: Schedule::Cosine, ..settings };
        assert!((cosine.lr_at(999, 9775) - settings_at(999)).abs() < 1e-12);
        assert!((cosine.lr_at(1000 + 8775 / 2, 9775) - 0.005).abs() < 1e-5);
        assert!(cosine.lr_at(9775, 9775).abs() < 1e-12);
    }

    fn settings_at(step: u64) -> f64 {
        Recipe::Seed.settings().lr_at(step, 9775)
    }

    #[test]
    fn beta_warms_up() {
        let settings = Settings { beta: 2.0, beta_warmup: 10, ..Settings::default() };
        assert_eq!([0, 5, 10, 20].map(|s| settings.beta_at(s)), [0.0, 1.0, 2.0, 2.0]);
        assert_eq!(Settings::default().beta_at(0), 1.0);
    }

    #[test]
    fn beta_warms_up_in_each_cycle() {
        let settings = Settings { beta: 2.0, beta_warmup: 10, beta_cycle: 20, ..Settings::default() };
        assert_eq!([0, 5, 10, 19, 20, 25, 39].map(|s| settings.beta_at(s)), [0.0, 1.0, 2.0, 2.0, 0.0, 1.0, 2.0]);
    }

    /// A resumed run must compute with the same values.
    #[test]
    fn settings_round_trip_bit_for_bit() {
        let mut draw = rng::stream(1, Stream::Check, 0);
        for _ in 0..10_000 {
            let word = || (u64::from(rng::below(&mut draw, u32::MAX)) << 32) | 0x9e37_79b9;
            let lr =
                f64::from_bits(std::iter::repeat_with(word).find(|bits| f64::from_bits(*bits).is_finite()).unwrap());
            let settings = Settings { lr, ..Settings::default() };
            let json = serde_json::to_string(&settings).unwrap();
            let back: Settings = serde_json::from_str(&json).unwrap();
            assert_eq!(back.lr.to_bits(), lr.to_bits(), "{json}");
        }
    }

    #[test]
    fn invalid_settings_are_rejected() {
        for settings in [
            Settings { lr: f64::NAN, ..Settings::default() },
            Settings { lr: -1.0, ..Settings::default() },
            Settings { batch_size: 0, ..Settings::default() },
            Settings { accumulate: 0, ..Settings::default() },
            Settings { accumulate: MAX_MICRO_BATCHES + 1, ..Settings::default() },
            Settings {
                sync_batch_norm: true,
                model: VaeConfig { norm: Norm::Position, ..VaeConfig::default() },
                ..Settings::default()
            },
            Settings { epochs: 0, ..Settings::default() },
            Settings { epochs: u64::MAX, ..Settings::default() },
            Settings { clip_grad: 1e39, ..Settings::default() },
            Settings { beta: f64::INFINITY, ..Settings::default() },
            Settings { free_bits: -1.0, ..Settings::default() },
            Settings { posterior_std: 0.0, ..Settings::default() },
            Settings { posterior_std: f64::NAN, ..Settings::default() },
            Settings { val_split: 1.0, ..Settings::default() },
            Settings { val_split: f64::NAN, ..Settings::default() },
        ] {
            assert!(settings.check().is_err(), "{settings:?}");
        }
    }
}
