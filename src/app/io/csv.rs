//! `metrics.csv` and `epochs.csv`: tables that only grow, whose rows survive a kill.
//!
//! A row is one write, so that a table is never torn but at its end, and a reader drops a last line without its line end. Rows that
//! could not be written (on a full disk, say) are owed: the next one brings them along. Numbers are written with as many digits as
//! bring back the same bits.

use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::app::io::atomic;
use crate::app::io::atomic::trace;
use crate::error::{Error, Result};

/// A row of a table.
pub trait Row: Sized {
    /// Names of the columns.
    const COLUMNS: &'static [&'static str];

    /// The row as a line without its end.
    fn line(&self) -> String;

    /// The row of a line; an error is a sentence about the column.
    fn parse(line: &str) -> Result<Self, String>;
}

macro_rules! rows {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        impl Row for $name {
            const COLUMNS: &'static [&'static str] = &[$(stringify!($field)),*];

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
                    Some(more) => Err(format!("`{more}` stands behind the last column")),
                }
            }
        }
    )*};
}

rows! {
    /// A training step: a row of `metrics.csv`.
    struct StepRow {
        /// Step, from 0.
        step: u64,
        /// Epoch that it belongs to, from 1.
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
        /// Speed.
        images_per_s: f32,
    }

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
        /// Mean squared error of a pixel (-1 to 1), the latent mean decoded.
        val_mse: f64,
        /// Latent numbers that carry something of the picture.
        active_units: u64,
        /// Time that the epoch took, validation included.
        seconds: f64,
    }
}

/// A table open for appending.
#[derive(Debug)]
pub struct Table<R> {
    path: PathBuf,
    file: File,
    /// Bytes of the header and the whole rows that are in the file.
    length: u64,
    /// Whether half a row stands behind them.
    torn: bool,
    /// Rows that are not in the file yet.
    owed: String,
    rows: PhantomData<R>,
}

impl<R: Row> Table<R> {
    /// An empty table.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        atomic::save_atomic(path, format!("{}\n", R::COLUMNS.join(",")).as_bytes())?;
        Self::open(path)
    }

    /// The table of an earlier run, cut off before the first row that is not to be `kept`, and the rows that remain. A table
    /// that is not there starts empty.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read, cut or written, or a kept row makes no sense.
    pub fn resume(path: &Path, keep: impl Fn(&R) -> bool) -> Result<(Self, Vec<R>)> {
        if !path.exists() {
            return Ok((Self::create(path)?, Vec::new()));
        }
        let (rows, bytes) = parse(&atomic::read(path)?, path, keep)?;
        let mut table = Self::open(path)?;
        table.cut(bytes)?;
        Ok((table, rows))
    }

    fn open(path: &Path) -> Result<Self> {
        let open = || {
            let file = File::options().append(true).open(path)?;
            let length = file.metadata()?.len();
            Ok((file, length))
        };
        let (file, length) = open().map_err(Error::file("append to", path))?;
        Ok(Self { path: path.to_owned(), file, length, torn: false, owed: String::new(), rows: PhantomData })
    }

    fn cut(&mut self, length: u64) -> Result<()> {
        self.file.set_len(length).map_err(Error::file("cut", &self.path))?;
        (self.length, self.torn) = (length, false);
        Ok(())
    }

    /// Adds a row, and those that are owed.
    ///
    /// # Errors
    /// [`Error::File`] where they cannot be written; the next call tries again.
    pub fn push(&mut self, row: &R) -> Result<()> {
        self.owed.push_str(&row.line());
        self.owed.push('\n');
        self.settle()
    }

    fn settle(&mut self) -> Result<()> {
        if self.torn {
            self.cut(self.length)?;
        }
        if let Err(error) = self.file.write_all(self.owed.as_bytes()) {
            // Half a row would spoil those behind it.
            self.torn = true;
            let _ = self.cut(self.length);
            return Err(Error::file("append to", &self.path)(error));
        }
        self.length += self.owed.len() as u64;
        self.owed.clear();
        Ok(())
    }

    /// Makes the rows last through a power cut: to be called before a checkpoint that counts on them is saved.
    ///
    /// # Errors
    /// [`Error::File`] where the system cannot do it, or cannot write rows that are owed.
    pub fn sync(&mut self) -> Result<()> {
        self.settle()?;
        trace::record("sync rows", self.file.sync_data()).map_err(Error::file("sync", &self.path))
    }
}

/// All rows of a table; a last line that a kill cut short is dropped.
///
/// # Errors
/// [`Error::File`] where the table cannot be read or a row makes no sense.
pub fn read<R: Row>(path: &Path) -> Result<Vec<R>> {
    Ok(parse(&atomic::read(path)?, path, |_| true)?.0)
}

/// The first rows of a table's bytes, as long as they are kept, and the number of bytes that they and the header take; `path` is for the
/// message.
///
/// # Errors
/// [`Error::File`] where a row makes no sense.
pub fn parse<R: Row>(bytes: &[u8], path: &Path, keep: impl Fn(&R) -> bool) -> Result<(Vec<R>, u64)> {
    let wrong = |line: usize, why: String| Error::malformed("parse", path, format!("line {line}: {why}"));
    let mut rows = Vec::new();
    let mut length = 0;
    for (line, number) in bytes.split_inclusive(|&b| b == b'\n').zip(1..) {
        let Some((b'\n', text)) = line.split_last() else { break };
        let text = std::str::from_utf8(text).map_err(|e| wrong(number, e.to_string()))?;
        if number == 1 {
            let columns = R::COLUMNS.join(",");
            if text != columns {
                return Err(wrong(1, format!("expected the columns `{columns}`, found `{text}`")));
            }
        } else {
            let row = R::parse(text).map_err(|why| wrong(number, why))?;
            if !keep(&row) {
                break;
            }
            rows.push(row);
        }
        length += line.len() as u64;
    }
    if length == 0 {
        return Err(wrong(1, "there is no line with the names of the columns".to_owned()));
    }
    Ok((rows, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn row(step: u64) -> StepRow {
        let x = step as f32;
        StepRow {
            step,
            epoch: 1 + step / 4,
            total: 0.1 + x,
            recon: 1.0 / (x + 3.0),
            kl: 1e-30,
            lr: 0.1 + 0.2,
            ..StepRow::default()
        }
    }

    fn written(path: &Path, steps: u64) -> Table<StepRow> {
        let mut table = Table::create(path).unwrap();
        (0..steps).for_each(|step| table.push(&row(step)).unwrap());
        table.sync().unwrap();
        table
    }

    #[test]
    fn rows_come_back_bit_for_bit() {
        let values = [0.1f32, f32::MIN_POSITIVE, 1e-45, f32::MAX, -0.0, 16_777_217.0, 1.0 / 3.0];
        for value in values {
            let row = StepRow { total: value, lr: f64::from(value) / 3.0, ..row(7) };
            let back = StepRow::parse(&row.line()).unwrap();
            assert_eq!((back.total.to_bits(), back.lr.to_bits()), (row.total.to_bits(), row.lr.to_bits()));
            assert_eq!(back, row);
        }
        let diverged = StepRow { total: f32::NAN, kl: f32::INFINITY, ..row(0) };
        assert!(StepRow::parse(&diverged.line()).unwrap().total.is_nan());
        let epoch = EpochRow { epoch: 2, val_total: 0.1 + 0.2, active_units: 16, ..EpochRow::default() };
        assert_eq!(EpochRow::parse(&epoch.line()).unwrap(), epoch);
    }

    #[test]
    fn a_table_is_plain_csv() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        written(&path, 1);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "step,epoch,total,recon,kl,grad_norm,lr,images_per_s\n0,1,0.1,0.33333334,1e-30,0.0,0.30000000000000004,0.0\n"
        );
    }

    #[test]
    fn resuming_gives_the_file_of_an_uninterrupted_run() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole.csv"), dir.path().join("parts.csv"));
        written(&whole, 9);
        drop(written(&parts, 7));
        let mut torn = File::options().append(true).open(&parts).unwrap();
        torn.write_all(b"7,2,0.1,0.").unwrap();
        assert_eq!(read::<StepRow>(&parts).unwrap().len(), 7);
        let (mut table, rows) = Table::resume(&parts, |row: &StepRow| row.step < 5).unwrap();
        assert_eq!(rows, (0..5).map(row).collect::<Vec<_>>());
        (5..9).for_each(|step| table.push(&row(step)).unwrap());
        assert_eq!(fs::read(&whole).unwrap(), fs::read(&parts).unwrap());
        let (_, rows) = Table::<EpochRow>::resume(&dir.path().join("epochs.csv"), |_| true).unwrap();
        assert_eq!(rows, []);
    }

    /// Reading and writing a file that is always full is a matter of the system.
    #[cfg(target_os = "linux")]
    #[test]
    fn rows_that_could_not_be_written_come_with_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, path) = (dir.path().join("whole.csv"), dir.path().join("metrics.csv"));
        written(&whole, 6);
        let mut table = written(&path, 2);
        let full = File::options().append(true).open("/dev/full").unwrap();
        let good = std::mem::replace(&mut table.file, full);
        let error = table.push(&row(2)).unwrap_err();
        assert!(matches!(error, Error::File { source, .. } if source.kind() == std::io::ErrorKind::StorageFull));
        assert!(table.push(&row(3)).is_err() && table.sync().is_err());
        assert_eq!(read::<StepRow>(&path).unwrap().len(), 2);
        // Half a row got through before the disk was full.
        table.file = good;
        table.file.write_all(b"2,1,0.").unwrap();
        (4..6).for_each(|step| table.push(&row(step)).unwrap());
        assert_eq!(fs::read(&whole).unwrap(), fs::read(&path).unwrap());
    }

    #[test]
    fn cut_anywhere_the_whole_rows_remain() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        written(&path, 5);
        let bytes = fs::read(&path).unwrap();
        let header = bytes.iter().position(|&b| b == b'\n').unwrap() + 1;
        for length in 0..bytes.len() {
            fs::write(&path, &bytes[..length]).unwrap();
            let rows = read::<StepRow>(&path);
            if length < header {
                assert!(rows.unwrap_err().to_string().starts_with("cannot parse "));
            } else {
                let whole = bytes[header..length].iter().filter(|&&b| b == b'\n').count();
                assert_eq!(rows.unwrap().len(), whole);
            }
        }
    }

    #[test]
    fn nonsense_names_line_and_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        written(&path, 3);
        let good = fs::read_to_string(&path).unwrap();
        let cases = [
            (good.replace("\n1,1,", "\n1,one,"), "line 3: column epoch holds `one`"),
            (good.replace(",0.30000000000000004,0.0\n2", "\n2"), "line 3: column lr is missing"),
            (good.replace("\n1,1,", "\n1,1,1,"), "line 3: `0.0` stands behind the last column"),
            (good.replace("total", "loss"), "line 1: expected the columns"),
            (good.replace("\n1,1,", "\n\n"), "line 3: column step holds ``"),
        ];
        for (text, expected) in cases {
            fs::write(&path, text).unwrap();
            let Err(Error::File { source, .. }) = read::<StepRow>(&path) else { panic!("{expected}") };
            assert!(source.to_string().contains(expected), "{source}");
            // Beyond the checkpoint nothing is looked at.
            let resumed = Table::<StepRow>::resume(&path, |_| false);
            assert_eq!(resumed.is_ok(), !expected.starts_with("line 1"));
        }
        fs::write(&path, [good.as_bytes(), b"\xff\n"].concat()).unwrap();
        assert!(read::<StepRow>(&path).is_err());
    }
}
