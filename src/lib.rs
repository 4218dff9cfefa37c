//! A small tensor runtime that dispatches hand-written WGSL kernels through `wgpu`, and a ResNet VAE built on it.
//!
//! Three layers. Imports point downwards only, and `make lint` enforces it by compiling the lower layers alone:
//!
//! | layer | contains |
//! | --- | --- |
//! | `app` | kernel checks, with the feature `check`; files, run folders, plots, benches, the command line, with the feature `cli` |
//! | [`vae`] | the model, its runner, training, inference, evaluation, data sets in memory |
//! | [`runtime`] | tensors, kernels, operations, graphs, memory plans, devices, executors |
//!
//! [`prelude`] has what most programs import.

#![warn(missing_docs)]

pub mod error;
pub mod prelude;
pub mod runtime;
#[cfg(not(runtime_only))]
pub mod vae;

#[cfg(all(feature = "check", not(runtime_only)))]
pub mod app;

pub use error::{Error, Result};

/// Version of this crate.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The example in the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}
