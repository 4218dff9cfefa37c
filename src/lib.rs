//! vae-wgpu
pub mod error;
pub mod graph;
pub mod op;
pub mod real;
pub mod rng;
pub mod shader;
pub mod shape;

pub use error::{Error, Result};
