//! Models in files.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use crate::app::io::run_folder::RunFolder;
use crate::app::io::tensor_file;
use crate::error::{Error, Result};
use crate::vae::inference::Model;

/// Loads the `model.safetensors` of a run folder, any such file, or a checkpoint.
///
/// # Errors
/// [`Error::File`] if it cannot be read, and the errors of [`Model::from_file`].
pub fn load(run_or_file: &Path) -> Result<Model> {
    let path = if run_or_file.is_dir() { RunFolder::view(run_or_file)?.model() } else { run_or_file.to_owned() };
    if let Err(error) = fs::metadata(&path)
        && error.kind() == ErrorKind::NotFound
        && run_or_file.is_dir()
    {
        let mut why = "the run has no weights before its first epoch ends".to_owned();
        let checkpoint = RunFolder::view(run_or_file)?.checkpoint();
        if checkpoint.exists() {
            why += &format!(". Continue it with --resume, or pass {} for the weights so far", checkpoint.display());
        }
        return Err(Error::file("find", &path)(io::Error::new(ErrorKind::NotFound, why)));
    }
    Model::from_file(tensor_file::load(&path)?, path)
}
