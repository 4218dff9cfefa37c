//! Image grids, plots and performance traces.

pub mod image_grid;
pub mod plots;
pub mod trace;
