//! Tests of the program as its users run it: options, files, resuming, failures.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

// Shared by the others: small runs, and a small model.
#[path = "cli/runs.rs"]
mod runs;
#[path = "cli/trained.rs"]
mod trained;

#[path = "cli/data.rs"]
mod data;
#[path = "cli/encode.rs"]
mod encode;
#[path = "cli/eval.rs"]
mod eval;
#[path = "cli/export.rs"]
mod export;
#[cfg(target_os = "linux")]
#[path = "cli/faults.rs"]
mod faults;
#[path = "cli/info.rs"]
mod info;
#[path = "cli/interpolate.rs"]
mod interpolate;
#[path = "cli/options.rs"]
mod options;
#[path = "cli/pretrained.rs"]
mod pretrained;
#[cfg(target_os = "linux")]
#[path = "cli/preview.rs"]
mod preview;
#[path = "cli/reconstruct.rs"]
mod reconstruct;
#[path = "cli/resume.rs"]
mod resume;
#[path = "cli/sample.rs"]
mod sample;
#[path = "cli/stop.rs"]
mod stop;
#[path = "cli/tools.rs"]
mod tools;
#[path = "cli/train.rs"]
mod train;
#[path = "cli/traverse.rs"]
mod traverse;
