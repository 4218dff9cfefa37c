//! Tensor files on disk.

use std::path::Path;

use crate::app::io::atomic;
use crate::error::Result;
use crate::vae::tensor_file::TensorFile;

/// Reads a safetensors file.
///
/// # Errors
/// As [`TensorFile::from_bytes`], and [`Error::File`](crate::Error::File) if it cannot be read.
pub fn load(path: &Path) -> Result<TensorFile> {
    TensorFile::from_bytes(&atomic::read(path)?, path)
}

/// Writes a safetensors file atomically.
///
/// # Errors
/// As [`TensorFile::to_bytes`] and [`atomic::save_atomic`].
pub fn save(file: &TensorFile, path: &Path) -> Result<()> {
    atomic::save_atomic(path, &file.to_bytes(path)?)
}
