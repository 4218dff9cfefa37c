//! `vae-wgpu devices`.

use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::runtime::gpu::{AdapterInfo, adapters};

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
            for info in &adapters {
                print(entry(info))?;
            }
            print("cpu    CPU reference (slow, for checks)")?;
        }
        if adapters.is_empty() {
            anyhow::bail!(
                "no GPU adapter found. Install a graphics driver, or Mesa's software driver (Debian, Ubuntu: apt install mesa-vulkan-drivers)"
            );
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Three lines that fit a terminal of 80 columns: index and name; type, backend and driver; limits.
fn entry(info: &AdapterInfo) -> String {
    let AdapterInfo { index, name, device_type, backend, limits, .. } = info;
    let limit = |name: &str, unit: u64| limits.get(name).map_or(0, |bytes| bytes / unit);
    format!(
        "{index:<6} {name}\n       {device_type}, {backend}, driver {}\n       \
         largest binding {} MiB, buffer {} MiB, workgroup memory {} KiB",
        info.driver_and_version(),
        limit("max_storage_buffer_binding_size", 1 << 20),
        limit("max_buffer_size", 1 << 20),
        limit("max_compute_workgroup_storage_size", 1 << 10),
    )
}
