//! A small tensor runtime that dispatches hand-written WGSL kernels through `wgpu`, and a ResNet VAE built on it.
//!
//! Three layers; imports point downwards only, and the compiler checks it:
//!
//! | layer | holds |
//! | --- | --- |
//! | [`app`] | files, run folders, plots, kernel checks, benches, the command line |
//! | [`vae`] | the model, its runner, training, inference, evaluation, data sets in memory |
//! | [`runtime`] | tensors, kernels, operations, graphs, memory plans, devices, executors |

#![warn(missing_docs)]

pub mod error;

pub mod runtime;

#[cfg(not(runtime_only))]
pub mod vae;

#[cfg(all(feature = "cli", not(runtime_only)))]
pub mod app;

pub use error::{Error, Result};
