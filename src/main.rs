//! The command `vae-wgpu`: parse, run, print the error chain on one line, map to an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    vae_wgpu::app::cli::main()
}
