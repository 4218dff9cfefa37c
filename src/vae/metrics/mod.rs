//! Distances between images and between sets of images.

pub mod sliced_wasserstein;
pub mod ssim;

pub use sliced_wasserstein::SlicedWasserstein;
pub use ssim::Ssim;
