//! `metrics.csv` and `epochs.csv`: append-only tables whose rows survive a kill.
//!
//! Each row is one write, so only the last line can be incomplete; readers drop a last line without a line end. Numbers have enough digits to
//! restore the same bits.

use std::marker::PhantomData;
use std::path::Path;

use crate::app::io::append::AppendFile;
use crate::app::io::atomic;
use crate::error::{Error, Result};
use crate::vae::train::rows::Row;

/// A table open for appending.
#[derive(Debug)]
pub struct Table<R> {
    /// The header line and the rows.
    file: AppendFile,
    rows: PhantomData<R>,
}

impl<R: Row> Table<R> {
    /// Creates an empty table.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written.
    pub fn create(path: &Path) -> Result<Self> {
        atomic::save_atomic(path, format!("{}\n", R::COLUMNS.join(",")).as_bytes())?;
        Self::open(path)
    }

    /// Opens the table of an earlier run, truncates it before the first row that `keep` rejects, and returns the remaining rows. A missing table
    /// is created empty.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, truncated or written, or a kept row is malformed.
    pub fn resume(path: &Path, keep: impl Fn(&R) -> bool) -> Result<(Self, Vec<R>)> {
        if !path.exists() {
            return Ok((Self::create(path)?, Vec::new()));
        }
        let content = atomic::read(path)?;
        let (rows, bytes) = parse(&content, path, keep)?;
        if !content.starts_with(R::COLUMNS.join(",").as_bytes()) {
            // It was written by an earlier version.
            let lines: Vec<_> = std::iter::once(R::COLUMNS.join(",")).chain(rows.iter().map(R::line)).collect();
            atomic::save_atomic(path, format!("{}\n", lines.join("\n")).as_bytes())?;
            return Ok((Self::open(path)?, rows));
        }
        let mut table = Self::open(path)?;
        table.file.truncate(bytes)?;
        Ok((table, rows))
    }

    fn open(path: &Path) -> Result<Self> {
        Ok(Self { file: AppendFile::open(path)?, rows: PhantomData })
    }

    /// Appends a row, as [`AppendFile::push`].
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written; the next call retries.
    pub fn push(&mut self, row: &R) -> Result<()> {
        self.file.push(format!("{}\n", row.line()).as_bytes())
    }

    /// Syncs the rows to disk. Must be called before saving a checkpoint that depends on them.
    ///
    /// # Errors
    /// [`Error::File`] if pending rows cannot be written or the sync fails.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync()
    }
}

/// Reads all rows of a table; an incomplete last line is dropped.
///
/// # Errors
/// [`Error::File`] if the table cannot be read or a row is malformed.
pub fn read<R: Row>(path: &Path) -> Result<Vec<R>> {
    Ok(parse(&atomic::read(path)?, path, |_| true)?.0)
}

/// Parses the rows up to the first one that `keep` rejects, and returns them with the length in bytes of the header and these rows. Rows of
/// an earlier version, whose header has fewer columns, are converted. `path` is used in errors.
///
/// # Errors
/// [`Error::File`] if a row is malformed.
pub fn parse<R: Row>(bytes: &[u8], path: &Path, keep: impl Fn(&R) -> bool) -> Result<(Vec<R>, u64)> {
    let malformed = |line: usize, why: String| {
        let way_out = match line {
            1 => "Repair this line, or remove the file: the run can do without it",
            _ => "Repair or remove this line",
        };
        Error::malformed("parse", path, format!("line {line}: {why}. {way_out}"))
    };
    let mut rows = Vec::new();
    let mut length = 0;
    let mut missing: &[&str] = &[];
    for (line, number) in bytes.split_inclusive(|&b| b == b'\n').zip(1..) {
        let Some((b'\n', text)) = line.split_last() else { break };
        let text = std::str::from_utf8(text).map_err(|e| malformed(number, e.to_string()))?;
        if number == 1 {
            let columns = R::COLUMNS.len();
            let written = (columns - R::ADDED.len()..=columns).find(|&n| R::COLUMNS[..n].join(",") == text);
            let Some(written) = written else {
                let columns = R::COLUMNS.join(",");
                return Err(malformed(1, format!("expected the columns `{columns}`, found `{text}`")));
            };
            missing = &R::ADDED[R::ADDED.len() - (columns - written)..];
        } else {
            let fields: Vec<_> = std::iter::once(text).chain(missing.iter().copied()).collect();
            let mut row = R::parse(&fields.join(",")).map_err(|why| malformed(number, why))?;
            if !missing.is_empty() {
                row.convert(&rows);
            }
            if !keep(&row) {
                break;
            }
            rows.push(row);
        }
        length += line.len() as u64;
    }
    if length == 0 {
        return Err(malformed(1, "the header line is missing".to_owned()));
    }
    Ok((rows, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::train::rows::{EpochRow, StepRow};
    use std::fs::{self, File};
    use std::io::Write;

    fn row(step: u64) -> StepRow {
        let x = step as f32;
        StepRow {
            step,
            epoch: 1 + (step - 1) / 4,
            total: 0.1 + x,
            recon: 1.0 / (x + 3.0),
            kl: 1e-30,
            lr: 0.3,
            ..StepRow::default()
        }
    }

    fn written(path: &Path, steps: u64) -> Table<StepRow> {
        let mut table = Table::create(path).unwrap();
        (1..=steps).for_each(|step| table.push(&row(step)).unwrap());
        table.sync().unwrap();
        table
    }

    #[test]
    fn rows_round_trip_bit_for_bit() {
        let values = [0.1f32, f32::MIN_POSITIVE, 1e-45, f32::MAX, -0.0, 16_777_217.0, 1.0 / 3.0];
        for value in values {
            let row = StepRow { total: value, lr: value / 3.0, ..row(7) };
            let back = StepRow::parse(&row.line()).unwrap();
            assert_eq!((back.total.to_bits(), back.lr.to_bits()), (row.total.to_bits(), row.lr.to_bits()));
            assert_eq!(back, row);
        }
        let diverged = StepRow { total: f32::NAN, kl: f32::INFINITY, ..row(1) };
        assert!(StepRow::parse(&diverged.line()).unwrap().total.is_nan());
        let epoch = EpochRow { epoch: 2, val_total: 0.1 + 0.2, active_units: 16, best: true, ..EpochRow::default() };
        assert_eq!(EpochRow::parse(&epoch.line()).unwrap(), epoch);
    }

    #[test]
    fn tables_are_plain_csv() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        written(&path, 1);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(
            text,
            "step,epoch,total,recon,kl,grad_norm,lr,images_per_s,elapsed_s\n1,1,1.1,0.25,1e-30,0.0,0.3,0.0,0.0\n"
        );
    }

    #[test]
    fn resumed_table_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole.csv"), dir.path().join("parts.csv"));
        written(&whole, 9);
        drop(written(&parts, 7));
        let mut torn = File::options().append(true).open(&parts).unwrap();
        torn.write_all(b"8,2,0.1,0.").unwrap();
        assert_eq!(read::<StepRow>(&parts).unwrap().len(), 7);
        let (mut table, rows) = Table::resume(&parts, |row: &StepRow| row.step <= 5).unwrap();
        assert_eq!(rows, (1..=5).map(row).collect::<Vec<_>>());
        (6..=9).for_each(|step| table.push(&row(step)).unwrap());
        assert_eq!(fs::read(&whole).unwrap(), fs::read(&parts).unwrap());
        let (_, rows) = Table::<EpochRow>::resume(&dir.path().join("epochs.csv"), |_| true).unwrap();
        assert_eq!(rows, []);
    }

    #[test]
    fn tables_of_an_earlier_version_are_converted() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("epochs.csv");
        let first = EpochRow::COLUMNS.len() - EpochRow::ADDED.len();
        let row = "1,0.5,0.25,0.25,0.5,0.25,0.25,0.125,16,9.0";
        // Of version 0.1.0, and of a later one with another column.
        for (columns, bits) in [(first, ""), (first + 1, ",7.5")] {
            let old = EpochRow::COLUMNS[..columns].join(",");
            let worse = row.replacen("1,", "2,", 1).replace(",0.5,0.25,0.25,0.125", ",0.75,0.5,0.25,0.125");
            let later = row.replacen('1', "3", 1);
            fs::write(&path, format!("{old}\n{row}{bits}\n{worse}{bits}\n{later}{bits}\n4,")).unwrap();
            let (mut table, rows) = Table::resume(&path, |row: &EpochRow| row.epoch <= 2).unwrap();
            assert_eq!(rows.iter().map(|row| (row.epoch, row.best)).collect::<Vec<_>>(), [(1, true), (2, false)]);
            assert_eq!((rows[0].active_units, rows[0].seconds), (16, 9.0));
            assert_eq!((rows[0].val_bits.is_nan(), rows[0].lr.is_nan()), (bits.is_empty(), true));
            table.push(&EpochRow { epoch: 3, val_bits: 7.0, ..EpochRow::default() }).unwrap();
            let bits = if bits.is_empty() { ",NaN" } else { bits };
            assert_eq!(
                fs::read_to_string(&path).unwrap(),
                format!(
                    "{}\n{row}{bits},NaN,true\n{worse}{bits},NaN,false\n3,0.0,0.0,0.0,0.0,0.0,0.0,0.0,0,0.0,7.0,0.0,false\n",
                    EpochRow::COLUMNS.join(",")
                )
            );
        }
        fs::write(&path, format!("{},other\n", EpochRow::COLUMNS[..first].join(","))).unwrap();
        assert!(Table::resume(&path, |_: &EpochRow| true).is_err());
    }

    #[test]
    fn steps_of_an_earlier_version_are_counted_from_1() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        let old = "step,epoch,total,recon,kl,grad_norm,lr,images_per_s\n";
        let lines = ["0,1,1.5,1.0,0.5,2.0,0.00025840000000000005,9.0\n", "1,1,1.5,1.0,0.5,2.0,0.01,9.0\n"];
        fs::write(&path, format!("{old}{}{}{}", lines[0], lines[1], lines[1].replacen('1', "2", 1))).unwrap();
        let steps = |rows: &[StepRow]| rows.iter().map(|row| row.step).collect::<Vec<_>>();
        assert_eq!(steps(&read(&path).unwrap()), [1, 2, 3]);
        // A checkpoint after two steps keeps the first two rows.
        let (_, rows) = Table::resume(&path, |row: &StepRow| row.step <= 2).unwrap();
        assert!(steps(&rows) == [1, 2] && rows[0].elapsed_s.is_nan());
        // Resuming again converts nothing twice.
        let expected = "step,epoch,total,recon,kl,grad_norm,lr,images_per_s,elapsed_s\n\
                        1,1,1.5,1.0,0.5,2.0,0.0002584,9.0,NaN\n2,1,1.5,1.0,0.5,2.0,0.01,9.0,NaN\n";
        for _ in 0..2 {
            assert_eq!(fs::read_to_string(&path).unwrap(), expected);
            let (_, rows) = Table::resume(&path, |row: &StepRow| row.step <= 2).unwrap();
            assert_eq!(steps(&rows), [1, 2]);
        }
    }

    #[test]
    fn truncation_keeps_the_complete_rows() {
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
    fn malformed_rows_name_line_and_column() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.csv");
        written(&path, 3);
        let good = fs::read_to_string(&path).unwrap();
        let cases = [
            (good.replace("\n2,1,", "\n2,one,"), "line 3: column epoch holds `one`"),
            (good.replace(",0.3,0.0,0.0\n3", "\n3"), "line 3: column lr is missing"),
            (good.replace("\n2,1,", "\n2,1,1,"), "line 3: unexpected extra field `0.0`"),
            (good.replace("total", "loss"), "line 1: expected the columns"),
            (good.replace("\n2,1,", "\n\n"), "line 3: column step holds ``"),
        ];
        for (text, expected) in cases {
            fs::write(&path, text).unwrap();
            let Err(Error::File { source, .. }) = read::<StepRow>(&path) else { panic!("{expected}") };
            assert!(source.to_string().contains(expected), "{source}");
            // Rows after the checkpoint are not parsed.
            let resumed = Table::<StepRow>::resume(&path, |_| false);
            assert_eq!(resumed.is_ok(), !expected.starts_with("line 1"));
        }
        fs::write(&path, [good.as_bytes(), b"\xff\n"].concat()).unwrap();
        assert!(read::<StepRow>(&path).is_err());
    }
}
