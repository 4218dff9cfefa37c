//! Output files of the commands: checks of their paths, image grids, raw values, and progress bars.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use byteorder::{ByteOrder, LittleEndian};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::draws_bars;
use super::{eprintln_lossy, is_quiet, note};
use crate::app::figures::{clock, grouped};
use crate::app::io::run_folder::RunFolder;
use crate::app::io::{atomic, tensor_file};
use crate::app::viz::caption::Caption;
use crate::app::viz::image_grid::save_png;
use crate::error::Error;
use crate::vae::tensor_file::{Array, TensorFile, append_f32};

/// Checks before any work that a result can be written: `out` has one of the extensions `kinds`, belongs to no run, and its folder is
/// writable or can be created. Announces that a file will be replaced. Leaves no files.
pub(super) fn check_output(out: &Path, kinds: &[&str]) -> anyhow::Result<()> {
    if let Some(run) = RunFolder::of_file(out) {
        anyhow::bail!(
            "cannot write {}: it belongs to the run in {}. Choose another file",
            out.display(),
            run.display()
        );
    }
    check_output_of_run(out, kinds)
}

/// The same for a file that may belong to a run.
pub(super) fn check_output_of_run(out: &Path, kinds: &[&str]) -> anyhow::Result<()> {
    let kind = out.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if !kinds.contains(&kind.as_str()) {
        let known = kinds.iter().map(|k| format!(".{k}")).collect::<Vec<_>>().join(", ");
        return Err(Error::Unknown { kind: "file extension of", name: out.display().to_string(), known }.into());
    }
    atomic::check_writable(out)?;
    announce_replaced(out);
    Ok(())
}

/// Announces that a file will be replaced, if it exists.
pub(super) fn announce_replaced(out: &Path) {
    if out.is_file() {
        note(format_args!("note: {} exists and will be replaced", out.display()));
    }
}

/// Checks that a result does not replace a file that it is made from.
pub(super) fn check_not_input<'a>(out: &Path, inputs: impl IntoIterator<Item = &'a Path>) -> anyhow::Result<()> {
    let Ok(replaced) = fs::canonicalize(out) else { return Ok(()) };
    for input in inputs {
        if fs::canonicalize(input).is_ok_and(|input| input == replaced) {
            anyhow::bail!("--out names the input {}: pass another file", input.display());
        }
    }
    Ok(())
}

/// Rejects a grid of more than 20,000 images before they are computed.
pub(super) fn check_grid(images: usize) -> anyhow::Result<()> {
    const MOST: usize = 20_000;
    if images > MOST {
        return Err(Error::argument("number of images in the grid", format!("at most {MOST}"), images).into());
    }
    Ok(())
}

/// Writes an image with its caption and prints its path.
pub(super) fn save_image(out: &Path, image: &RgbImage, caption: &Caption, what: &str) -> anyhow::Result<()> {
    atomic::create_parent(out)?;
    save_png(out, image, caption)?;
    note(format_args!("{what}: {}", out.display()));
    Ok(())
}

/// Returns a progress bar up to `total`, which is shown only if stderr is a terminal and --quiet was not given.
pub(super) fn bar(total: usize, what: &'static str) -> ProgressBar {
    let bar = if is_quiet() { ProgressBar::hidden() } else { ProgressBar::new(total as u64) }.with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
}

/// Progress through counted parts whose results are lines on stdout: a bar below them on a terminal, else a line on stderr at intervals.
pub(super) struct Counter {
    bar: ProgressBar,
    what: &'static str,
    /// Interval between lines; `None` where nothing is shown or the bar is.
    every: Option<Duration>,
    started: Instant,
    printed: Instant,
}

impl Counter {
    /// Counts to `total`; shows nothing unless `shown`.
    pub(super) fn new(total: usize, what: &'static str, shown: bool) -> Self {
        let bar = bar(total, what);
        let plain = bar.is_hidden() || !draws_bars();
        if plain || !shown {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let now = Instant::now();
        Self { bar, what, every: (plain && shown).then_some(Duration::from_secs(10)), started: now, printed: now }
    }

    /// Hides the bar while `print` writes lines.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        self.bar.suspend(print)
    }

    /// Counts a part.
    pub(super) fn advance(&mut self) {
        self.bar.inc(1);
        let (done, total) = (self.bar.position(), self.bar.length().unwrap_or_default());
        if self.every.is_some_and(|every| self.printed.elapsed() >= every) && done < total {
            self.printed = Instant::now();
            eprintln_lossy(counted_line(self.what, done, total, self.started.elapsed().as_secs_f64()));
        }
    }

    /// Removes the bar.
    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `checking 120/1,008, 2:10 left`, if every part takes as long.
fn counted_line(what: &str, done: u64, total: u64, seconds: f64) -> String {
    let left = seconds / done as f64 * total.saturating_sub(done) as f64;
    format!("{what} {}/{}, {} left", grouped(done), grouped(total), clock(left))
}

/// Extensions of files for raw values.
pub(super) const RAW: &[&str] = &["npy", "safetensors"];

/// Writes `array` as a NumPy file, or as the tensor `name` of a safetensors file, depending on the extension of `out`.
pub(super) fn save_raw(out: &Path, name: &str, array: Array) -> crate::Result<()> {
    atomic::create_parent(out)?;
    if out.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) {
        return atomic::save_atomic(out, &npy(&array));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    tensor_file::save(&TensorFile { metadata, tensors: [(name.to_owned(), array)].into() }, out)
}

/// Encodes a NumPy file, version 1.0: magic, header length, a Python dictionary padded to 64 bytes, the values.
fn npy(array: &Array) -> Vec<u8> {
    const PREFIX: usize = 10;
    let shape: String = array.dims.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    let length = (PREFIX + header.len() + 1).next_multiple_of(64) - PREFIX;
    header.push_str(&" ".repeat(length - header.len() - 1));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend([0; 2]);
    LittleEndian::write_u16(&mut bytes[PREFIX - 2..], length as u16);
    bytes.extend(header.as_bytes());
    append_f32(&mut bytes, &array.data);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_reports_the_time_left() {
        assert_eq!(counted_line("checking", 250, 1000, 43.0), "checking 250/1,000, 2:09 left");
        let mut counter = Counter::new(3, "checking", false);
        for _ in 0..3 {
            counter.suspend(|| ());
            counter.advance();
        }
        counter.finish();
        assert!(counter.every.is_none() && counter.bar.position() == 3);
    }
}
