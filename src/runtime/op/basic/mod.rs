//! Elementwise operations, resampling and pooling.

pub mod add;
pub(crate) mod cases;
pub(crate) mod column_sum;
mod elementwise;
pub mod global_avg_pool;
pub mod image_decode;
pub mod relu;
pub mod upsample;

pub use add::Add;
pub(crate) use elementwise::elementwise;
pub use global_avg_pool::GlobalAvgPool;
pub use image_decode::ImageDecode;
pub use relu::Relu;
pub use upsample::Upsample;
