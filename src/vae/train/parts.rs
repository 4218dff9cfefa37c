//! Which images train and which validate.

use std::ops::Deref;

use crate::error::Result;
use crate::vae::data::{Dataset, Images, Subset};

/// Images to train on and to validate on. `I` is a pointer to images.
#[derive(Debug)]
pub(super) struct Parts<I> {
    pub(super) train: Subset<I>,
    pub(super) validation: Subset<I>,
}

impl<'a> Parts<&'a dyn Images> {
    pub(super) fn of_dataset(dataset: &'a Dataset, val_split: f64) -> Result<Self> {
        Self::of(dataset.train.as_ref(), dataset.test.as_ref(), val_split)
    }
}

impl<I: Deref<Target: Images> + Clone> Parts<I> {
    pub(super) fn of(train: I, test: I, val_split: f64) -> Result<Self> {
        if val_split == 0.0 {
            return Ok(Self { train: Subset::all(train), validation: Subset::all(test) });
        }
        let [train, validation] = Subset::split(train, val_split)?;
        Ok(Self { train, validation })
    }
}
