//! Image grids, plots, reports and performance traces.

pub mod caption;
pub mod image_grid;
pub mod latent_plots;
pub mod plots;
pub mod range_plot;
pub mod report;
pub mod trace;
