//! Batch norm, also in two halves between which processes exchange its moments, and position norm.

pub mod batch;
pub mod batch_moments;
pub(crate) mod cases;
mod channel_reduce;
pub(crate) mod fused;
pub mod moments_norm;
mod normalize;
pub mod position;

pub use batch::{BatchNorm, BatchNormConfig};
pub use batch_moments::BatchMoments;
pub use moments_norm::MomentsNorm;
pub use position::{PositionNorm, PositionNormConfig};
