//! Batch norm and position norm.

pub mod batch;
pub mod channel_reduce;
pub(crate) mod fused;
pub mod position;

pub use batch::{BatchNorm, BatchNormConfig};
pub use position::{PositionNorm, PositionNormConfig};
