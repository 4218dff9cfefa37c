//! Convolutions, transposed convolutions and linear layers, plain or fused with what surrounds them.

pub mod conv2d;
pub mod conv_transpose2d;
pub(crate) mod core;
pub mod fused_conv;
pub(crate) mod kernels;
pub mod linear;

pub use conv_transpose2d::ConvTranspose2d;
pub use conv2d::Conv2d;
pub use fused_conv::FusedConv;
pub use linear::Linear;
