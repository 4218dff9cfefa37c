//! Files: atomic writes, locks, weights and checkpoints, run folders, tables.

pub mod atomic;
pub mod checkpoint;
pub mod csv;
pub mod run_folder;
pub mod tensor_file;
