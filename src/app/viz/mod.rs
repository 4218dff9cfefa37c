//! Image grids, plots, reports and performance traces.

mod canvas;
pub mod caption;
mod chart;
pub mod image_grid;
pub mod latent_plots;
pub mod plots;
pub mod range_plot;
pub mod report;
pub mod trace;
