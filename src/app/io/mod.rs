//! Files: atomic writes, locks, tensor files, run folders, tables, TensorBoard's event files.

pub mod append;
pub mod atomic;
#[cfg(test)]
mod crash;
pub mod csv;
pub mod event_file;
pub mod model;
pub mod pretrained;
pub mod prior;
pub mod run_config;
pub mod run_folder;
pub mod run_report;
pub mod run_store;
pub mod settings_file;
pub mod tensor_file;
pub mod tensorboard;
