//! The tensor runtime: static graphs of operations with hand-written WGSL kernels, which are planned before any memory is allocated
//! and run on a GPU or on the CPU reference.
//!
//! | module | contents |
//! | --- | --- |
//! | [`tensor`] | shapes and layouts, number types, random streams |
//! | [`kernel`] | kernels and dispatches as plain data, the shader preprocessor |
//! | [`op`] | operations: reference, gradients, kernels |
//! | [`graph`] | static graphs and their rewrites: fusion, autodiff, recomputation, optimizer |
//! | [`plan`] | buffers, kernel variants and submissions of a graph for a device |
//! | [`gpu`] | devices, buffers, compiled dispatch lists, timing |
//! | [`exec`] | executors that run graphs |
//! | `sys` (private) | threads, processor affinity, free memory |
//!
//! The runtime knows no model and no run folders.

pub mod exec;
pub mod gpu;
pub mod graph;
pub mod kernel;
pub mod op;
pub mod plan;
pub(crate) mod sys;
pub mod tensor;
