//! Rows of the tables of a run, and their CSV format. Values have enough digits to restore the same bits.

use serde::Serialize;

/// A row of a table.
pub trait Row: Sized {
    /// Names of the columns.
    const COLUMNS: &'static [&'static str];

    /// Number of columns in tables of version 0.1.0, which lack the last ones of today.
    const FIRST_COLUMNS: usize;

    /// Formats the row as a line without a line end.
    fn line(&self) -> String;

    /// Parses a line.
    ///
    /// # Errors
    /// The message names the column.
    fn parse(line: &str) -> Result<Self, String>;
}

macro_rules! rows {
    ($($(#[$doc:meta])* struct $name:ident since $first:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Row for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];
            const FIRST_COLUMNS: usize = $first;

            fn line(&self) -> String {
                [$(format!("{:?}", self.$field)),*].join(",")
            }

            fn parse(line: &str) -> Result<Self, String> {
                let mut fields = line.split(',');
                $(
                    let field = fields.next().ok_or(concat!("column ", stringify!($field), " is missing"))?;
                    let $field = field.parse().map_err(|_| format!(concat!("column ", stringify!($field), " holds `{}`"), field))?;
                )*
                match fields.next() {
                    None => Ok(Self { $($field),* }),
                    Some(more) => Err(format!("unexpected extra field `{more}`")),
                }
            }
        }
    )*};
}

rows! {
    /// A training step: a row of `metrics.csv`.
    struct StepRow since 8 {
        /// Index of the step, from 0.
        step: u64,
        /// Epoch of the step, from 1.
        epoch: u64,
        /// Total loss: recon + beta * kl.
        total: f32,
        /// Reconstruction term.
        recon: f32,
        /// KL term.
        kl: f32,
        /// Global gradient norm before clipping.
        grad_norm: f32,
        /// Learning rate.
        lr: f64,
        /// Training speed in images per second.
        images_per_s: f32,
    }

    /// An epoch: a row of `epochs.csv`.
    struct EpochRow since 10 {
        /// Epoch, from 1.
        epoch: u64,
        /// Mean total loss of the training steps.
        train_total: f64,
        /// Mean reconstruction term of the training steps.
        train_recon: f64,
        /// Mean KL term of the training steps.
        train_kl: f64,
        /// Mean total loss over the validation set.
        val_total: f64,
        /// Mean reconstruction term over the validation set.
        val_recon: f64,
        /// Mean KL term over the validation set.
        val_kl: f64,
        /// Mean squared error per pixel value (-1 to 1) of the decoded latent means.
        val_mse: f64,
        /// Number of latent dimensions that depend on the image.
        active_units: u64,
        /// Duration of the epoch in seconds, including validation.
        seconds: f64,
        /// Variational bound on the code length of the validation images, in bits per dimension. NaN in tables of version 0.1.0.
        val_bits: f64,
    }
}
