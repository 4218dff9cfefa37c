//! `vae-wgpu devices`.

use std::process::ExitCode;

use clap::Args;

use super::out;
use crate::runtime::gpu::adapters;

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
            let row = |cells: [&str; 8]| {
                let [index, name, kind, backend, driver, binding, buffer, shared] = cells;
                out(format_args!(
                    "{index:<5} {name:<36} {kind:<10} {backend:<7} {driver:<32} {binding:>11} {buffer:>10} {shared:>9}"
                ))
            };
            row(["index", "name", "type", "backend", "driver", "binding MiB", "buffer MiB", "group KiB"])?;
            for facts in &adapters {
                let limit = |name: &str, unit: u64| facts.limits.get(name).map_or(0, |bytes| bytes / unit).to_string();
                row([
                    &facts.index.to_string(),
                    &facts.name,
                    facts.device_type,
                    facts.backend,
                    [facts.driver.as_str(), &facts.driver_info].join(" ").trim(),
                    &limit("max_storage_buffer_binding_size", 1 << 20),
                    &limit("max_buffer_size", 1 << 20),
                    &limit("max_compute_workgroup_storage_size", 1 << 10),
                ])?;
            }
            row(["cpu", "the CPU reference: slow, for checks", "cpu", "", "", "", "", ""])?;
        }
        if adapters.is_empty() {
            anyhow::bail!(
                "no GPU adapter found: install a graphics driver, or Mesa's software driver (Debian, Ubuntu: apt install mesa-vulkan-drivers)"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
