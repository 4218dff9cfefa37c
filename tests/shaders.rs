//! Tests of shaders that need no device: interfaces by reflection, translation to SPIR-V, MSL and HLSL.

#![expect(clippy::unwrap_used, reason = "a test stops where it fails")]

#[path = "shaders/interfaces.rs"]
mod interfaces;
#[path = "shaders/translate.rs"]
mod translate;

use std::process::ExitCode;

use libtest_mimic::Arguments;

fn main() -> ExitCode {
    let mut trials = interfaces::trials();
    trials.extend(translate::trials());
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}
