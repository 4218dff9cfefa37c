//! The application: files, run folders, ONNX models, plots, kernel checks, benches and the command line. The feature `check` has the kernel
//! checks alone.

#[cfg(feature = "cli")]
pub mod bench;
pub mod check;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
#[cfg(feature = "cli")]
pub mod data;
#[cfg(feature = "cli")]
mod figures;
#[cfg(feature = "cli")]
pub mod io;
#[cfg(feature = "cli")]
pub mod onnx;
#[cfg(feature = "cli")]
pub mod viz;
