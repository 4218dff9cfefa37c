//! Rows of the tables of a run, and their CSV format. Values have enough digits to restore the same bits. Tables of version 0.1.0, which have
//! fewer columns and count steps from 0, are converted.

use std::str::FromStr;

use serde::Serialize;

/// A row of a table.
pub trait Row: Sized {
    /// Names of the columns.
    const COLUMNS: &'static [&'static str];

    /// Fields of the last columns in rows of version 0.1.0, which lack these columns.
    const ADDED: &'static [&'static str];

    /// Formats the row as a line without a line end.
    fn line(&self) -> String;

    /// Parses a line.
    ///
    /// # Errors
    /// The message names the column.
    fn parse(line: &str) -> Result<Self, String>;

    /// Converts a row of version 0.1.0, whose missing columns hold [`Row::ADDED`]. `before` are the rows before it.
    fn convert(&mut self, before: &[Self]);
}

macro_rules! rows {
    ($(
        $(#[$doc:meta])* struct $name:ident {
            $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
        }
        after {
            $($(#[$added_doc:meta])* $added:ident: $added_type:ty = $value:literal,)*
        }
        convert $convert:expr;
    )*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
            $($(#[$added_doc])* pub $added: $added_type,)*
        }

        impl Row for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field),)* $(stringify!($added)),*];
            const ADDED: &'static [&'static str] = &[$($value),*];

            fn line(&self) -> String {
                [$(format!("{:?}", self.$field),)* $(format!("{:?}", self.$added)),*].join(",")
            }

            fn parse(line: &str) -> Result<Self, String> {
                let mut fields = line.split(',');
                let mut next = |column: &str| fields.next().ok_or_else(|| format!("column {column} is missing"));
                $(let $field = parse(stringify!($field), next(stringify!($field))?)?;)*
                $(let $added = parse(stringify!($added), next(stringify!($added))?)?;)*
                match fields.next() {
                    None => Ok(Self { $($field,)* $($added),* }),
                    Some(more) => Err(format!("unexpected extra field `{more}`")),
                }
            }

            fn convert(&mut self, before: &[Self]) {
                let convert: fn(&mut Self, &[Self]) = $convert;
                convert(self, before);
            }
        }
    )*};
}

fn parse<T: FromStr>(column: &str, field: &str) -> Result<T, String> {
    field.parse().map_err(|_| format!("column {column} holds `{field}`"))
}

rows! {
    /// A training step: a row of `metrics.csv`.
    struct StepRow {
        /// Number of the step, from 1.
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
        /// Learning rate, as the kernels get it.
        lr: f32,
        /// Training speed in images per second.
        images_per_s: f32,
    }
    after {
        /// Training time of the run so far in seconds, without the time between its parts. NaN in rows of version 0.1.0.
        elapsed_s: f32 = "NaN",
    }
    // Version 0.1.0 counted steps from 0.
    convert |row, _| row.step = row.step.saturating_add(1);

    /// An epoch: a row of `epochs.csv`.
    struct EpochRow {
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
    }
    after {
        /// Variational bound on the code length of the validation images, in bits per dimension. NaN in rows of version 0.1.0.
        val_bits: f64 = "NaN",
        /// Learning rate of the last step. NaN in rows of version 0.1.0.
        lr: f32 = "NaN",
        /// Whether the validation loss is the lowest so far, so that the weights of this epoch became the model of the run.
        best: bool = "false",
    }
    convert |row, before| {
        row.best = before.iter().rfind(|row| row.best).is_none_or(|best| row.val_total < best.val_total);
    };
}
