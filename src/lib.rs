//! vae-wgpu
pub mod error;
pub mod gpu;
pub mod op;
pub mod real;
pub mod rng;
pub mod shader;
pub mod shape;
