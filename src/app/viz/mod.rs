//! Image grids, plots, reports, performance traces, and images in a terminal.

mod canvas;
pub mod caption;
mod chart;
pub mod image_grid;
pub mod latent_plots;
pub mod plots;
pub mod range_plot;
pub mod report;
pub mod terminal;
pub mod trace;
