//! The tensor runtime: static graphs of operations with hand-written kernels, planned before any memory exists, and run on a
//! GPU or on the CPU reference. It knows no model and no files.

pub mod exec;
pub mod gpu;
pub mod graph;
pub mod kernel;
pub mod op;
pub mod plan;
pub mod sys;
pub mod tensor;
