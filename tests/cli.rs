//! Tests of the program as its users run it: options, files, resuming, failures.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test stops where it fails")]

#[path = "cli/runs.rs"]
mod runs;

#[path = "cli/data.rs"]
mod data;
#[cfg(target_os = "linux")]
#[path = "cli/faults.rs"]
mod faults;
#[path = "cli/inference.rs"]
mod inference;
#[path = "cli/options.rs"]
mod options;
#[path = "cli/tools.rs"]
mod tools;
#[path = "cli/train.rs"]
mod train;
