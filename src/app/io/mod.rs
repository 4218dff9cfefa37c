//! Files: atomic writes, locks, run folders, weights, checkpoints and CSV tables.

pub mod atomic;
pub mod checkpoint;
pub mod csv;
pub mod run_folder;
pub mod tensor_file;
