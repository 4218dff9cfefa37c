//! The ResNet VAE: model, runner, training, inference, evaluation, and data sets in memory.

pub mod checkpoint;
pub mod data;
pub mod eval;
pub mod inference;
pub mod metrics;
pub mod model;
pub mod names;
#[cfg(feature = "statistics")]
pub mod pca;
#[cfg(feature = "statistics")]
pub mod prior;
pub mod ranks;
pub mod runner;
pub mod tensor_file;
pub mod train;
pub mod weights;
