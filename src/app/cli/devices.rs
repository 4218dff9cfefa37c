//! `vae-wgpu devices`.

use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::runtime::gpu::adapters;

#[derive(Args, Debug)]
pub(super) struct DevicesArgs {
    /// Print a JSON array with limits and features.
    #[arg(long)]
    json: bool,
}

impl DevicesArgs {
    /// Fails (exit code 1) when there is no adapter.
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let adapters = adapters()?;
        if self.json {
            print(serde_json::to_string_pretty(&adapters)?)?;
        } else {
            let row = |cells: [&str; 8]| {
                let [index, name, kind, backend, driver, binding, buffer, shared] = cells;
                print(format_args!(
                    "{index:<5} {name:<36} {kind:<10} {backend:<7} {driver:<32} {binding:>11} {buffer:>10} {shared:>9}"
                ))
            };
            row(["index", "name", "type", "backend", "driver", "binding MiB", "buffer MiB", "group KiB"])?;
            for info in &adapters {
                let limit = |name: &str, unit: u64| info.limits.get(name).map_or(0, |bytes| bytes / unit).to_string();
                row([
                    &info.index.to_string(),
                    &info.name,
                    info.device_type,
                    info.backend,
                    [info.driver.as_str(), &info.driver_info].join(" ").trim(),
                    &limit("max_storage_buffer_binding_size", 1 << 20),
                    &limit("max_buffer_size", 1 << 20),
                    &limit("max_compute_workgroup_storage_size", 1 << 10),
                ])?;
            }
            row(["cpu", "CPU reference (slow, for checks)", "cpu", "", "", "", "", ""])?;
        }
        if adapters.is_empty() {
            anyhow::bail!(
                "no GPU adapter found. Install a graphics driver, or Mesa's software driver (Debian, Ubuntu: apt install mesa-vulkan-drivers)"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}
