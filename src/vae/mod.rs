//! The ResNet VAE: its model, training, inference, evaluation and data sets.

pub mod data;
pub mod eval;
pub mod inference;
pub mod model;
pub mod pca;
pub mod runner;
pub mod train;
