//! The application: files, run folders, plots, kernel checks, benches and the command line.

pub mod bench;
pub mod check;
#[doc(hidden)]
pub mod cli;
pub mod data;
pub mod io;
pub mod viz;
