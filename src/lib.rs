//! A small tensor runtime that dispatches hand-written WGSL kernels through `wgpu`, and a ResNet VAE built on it.
//!
//! A training step is data: a list of dispatches over planned buffers, made once from a static graph, checked before any memory
//! exists, and replayed every step.
//!
//! ```text
//! model (names, blocks) -> Graph (nodes, shapes) -> with_gradients (backward nodes) -> with_adam -> plan (slots, dispatches)
//!    -> exec::GpuExecutor | exec::CpuExecutor
//! ```
//!
//! Modules lie on floors; imports point strictly down (tested):
//!
//! | floor | modules |
//! | --- | --- |
//! | 7 | `cli` |
//! | 6 | [`train`]; [`trained`] |
//! | 5 | [`checkpoint`]; [`report`] |
//! | 4 | [`check`], [`mod@bench`], [`files`], [`data`] (its parsing, drawing and augmentation touch no files) |
//! | 3 | [`exec`] |
//! | 2 | [`gpu`]; [`graph`], [`model`] |
//! | 1 | [`op`] |
//! | 0 | [`error`], [`shape`], [`real`], [`rng`], [`shader`], `parallel` |

#![warn(missing_docs)]

pub mod error;
mod memory;
mod parallel;
pub mod real;
pub mod rng;
pub mod shader;
pub mod shape;

pub mod op;

pub mod gpu;
pub mod graph;
pub mod model;

pub mod exec;

pub mod data;
pub mod files;

pub mod checkpoint;
pub mod report;

pub mod train;
pub mod trained;

pub mod bench;
pub mod check;

#[doc(hidden)]
pub mod cli;

pub use error::{Error, Result};
