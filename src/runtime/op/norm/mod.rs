//! Batch norm and position norm.

pub mod batch;
pub(crate) mod cases;
mod channel_reduce;
pub(crate) mod fused;
mod normalize;
pub mod position;

pub use batch::{BatchNorm, BatchNormConfig};
pub use position::{PositionNorm, PositionNormConfig};
