//! Tensors: shapes and layouts, the number types of the CPU reference, and random streams.

pub mod real;
pub mod rng;
pub mod shape;
