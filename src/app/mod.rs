//! The application: files, run folders, ONNX models, plots, kernel checks, benches and the command line.

pub mod bench;
pub mod check;
#[doc(hidden)]
pub mod cli;
pub mod data;
pub mod io;
pub mod onnx;
pub mod viz;
