//! What a run leaves for people: tables, pictures, plots, and what the terminal shows.

pub mod picture;
pub mod plots;
pub mod profile;
pub mod progress;
pub mod run_folder;
pub mod table;

pub use picture::{Grid, Pictures, save_png};
pub use progress::{Event, Observer, Start, observer};
pub use run_folder::{RunConfig, RunFolder};
pub use table::{EpochRow, StepRow, Table};
