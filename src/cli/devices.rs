//! `vae-wgpu devices`.

use std::process::ExitCode;

use clap::Args;

use super::out;
use crate::gpu::adapters;

/// List the adapters that can run the kernels.
#[derive(Args, Debug)]
pub(super) struct DevicesArgs {
    /// Print a JSON array with limits and features.
    #[arg(long)]
    json: bool,
}

impl DevicesArgs {
    /// Fails (exit code 1) when there is no adapter.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let adapters = adapters();
        if self.json {
            out(serde_json::to_string_pretty(&adapters)?)?;
        } else {
            for facts in &adapters {
                out(format_args!("{}: {facts}", facts.index))?;
            }
            out("cpu: the CPU reference (slow; for checks)")?;
        }
        if adapters.is_empty() {
            anyhow::bail!(
                "no GPU adapter found: install a graphics driver, or Mesa's software driver (Debian, Ubuntu: apt install mesa-vulkan-drivers)"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
