//! Images, plots and traces for people.

pub mod image_grid;
pub mod plots;
pub mod trace;
