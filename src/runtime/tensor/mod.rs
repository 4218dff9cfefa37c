//! Tensors: shapes and layouts, the number types of the CPU reference, and random streams.

pub mod real;
pub mod rng;
mod shape;
mod spec;

pub use shape::{MAX_ELEMENTS, Shape, pad4};
pub use spec::{Layout, Spec};
