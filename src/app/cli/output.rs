//! Output files of the commands: checks of their paths, image grids, raw values, and progress bars.

use std::path::Path;

use byteorder::{ByteOrder, LittleEndian};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};

use super::eprintln_lossy;
use crate::app::io::atomic::check_writable;
use crate::app::io::{atomic, tensor_file};
use crate::app::viz::caption::Caption;
use crate::app::viz::image_grid::save_png;
use crate::error::Error;
use crate::vae::tensor_file::{Array, TensorFile, append_f32};

/// Checks before any work that a result can be written: `out` has one of the extensions `kinds`, and its folder is writable or can be
/// created. Leaves no files.
pub(super) fn check_output(out: &Path, kinds: &[&str]) -> anyhow::Result<()> {
    let kind = out.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    if !kinds.contains(&kind.as_str()) {
        let known = kinds.iter().map(|k| format!(".{k}")).collect::<Vec<_>>().join(", ");
        return Err(Error::Unknown { kind: "file extension of", name: out.display().to_string(), known }.into());
    }
    // Of a path with missing folders, the first missing one is checked instead of the file.
    let missing = out.ancestors().skip(1).take_while(|f| !f.as_os_str().is_empty() && !f.exists()).last();
    Ok(check_writable(missing.unwrap_or(out))?)
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
    eprintln_lossy(format_args!("{what}: {}", out.display()));
    Ok(())
}

/// Returns a progress bar up to `total`, which is shown only if stderr is a terminal.
pub(super) fn bar(total: usize, what: &'static str) -> ProgressBar {
    let bar = ProgressBar::new(total as u64).with_message(what);
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    bar
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
