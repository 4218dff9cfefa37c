//! Every operation in every case: the reference's gradients against finite differences, and every kernel in every variant
//! against the reference, on two devices: the adapter at its best, and WebGPU's default limits without optional features and
//! with grids folded early (`folded`).
//!
//! Without an adapter the kernel checks are reported as ignored; `VAE_WGPU_REQUIRE_GPU=1` turns that into a failure.

#[path = "common/gpu.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod gpu;

use std::process::ExitCode;
use std::sync::Arc;

use libtest_mimic::{Arguments, Failed, Trial};
use vae_wgpu::app::check::{Check, Outcome, suite};
use vae_wgpu::runtime::gpu::{Gpu, Options};

/// The devices of the checks, by a suffix for their names.
fn devices() -> vae_wgpu::Result<Vec<(&'static str, Arc<Gpu>)>> {
    let folded = Options { webgpu_defaults: true, max_workgroups: Some(7), ..Options::default() };
    let open = |(suffix, options)| Ok((suffix, Arc::new(Gpu::open(&options)?)));
    [("", Options::default()), (" folded", folded)].map(open).into_iter().collect()
}

fn trial(check: Check, suffix: &str, gpu: Option<Arc<Gpu>>) -> Trial {
    let not_applicable = gpu.as_ref().and_then(|gpu| check.not_applicable(gpu.profile()).ok().flatten());
    let name = format!("{check}{suffix}");
    if gpu.is_none() && check.needs_gpu() {
        return gpu::without_adapter(name);
    }
    let kind = if not_applicable.is_some() { "not applicable" } else { "" };
    let run = move || match check.run(gpu.as_deref()) {
        Ok(Outcome::Ran(lines)) if !lines.is_empty() && lines.iter().all(|line| line.passed()) => Ok(()),
        Ok(Outcome::Ran(lines)) => Err(Failed::from(lines.iter().map(|line| format!("{line}\n")).collect::<String>())),
        Ok(Outcome::NotApplicable(why)) => Err(Failed::from(format!("not applicable: {why}"))),
        Err(error) => Err(Failed::from(error)),
    };
    Trial::test(name, run).with_kind(kind).with_ignored_flag(not_applicable.is_some())
}

fn main() -> vae_wgpu::Result<ExitCode> {
    let arguments = Arguments::from_args();
    let checks = suite()?;
    let devices = devices();
    let name = |devices: &Vec<(&str, Arc<Gpu>)>| {
        devices.first().map(|(_, gpu)| gpu.adapter_info().to_string()).unwrap_or_default()
    };
    let mut trials = gpu::announce(&devices, name);
    for check in checks {
        match &devices {
            Ok(devices) if check.needs_gpu() => {
                let each = devices.iter().map(|(suffix, gpu)| trial(check.clone(), suffix, Some(Arc::clone(gpu))));
                trials.extend(each);
            }
            _ => trials.push(trial(check, "", None)),
        }
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}
