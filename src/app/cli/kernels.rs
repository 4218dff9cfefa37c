//! `vae-wgpu kernels`.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use super::terminal::stdout_width;
use super::values::non_empty;
use super::{ModelArgs, TrainingPlanArgs, print};
use crate::error::Error;
use crate::runtime::gpu::{Gpu, Options, Select};
use crate::runtime::kernel::emit::{Language, emit};
use crate::runtime::kernel::{Dispatch, Profile};
use crate::vae::model::{Mode, VaeConfig};

#[derive(Args, Debug)]
pub(super) struct KernelsArgs {
    /// Kernel to print; without it all are listed.
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Language to print the kernel in.
    #[arg(long, value_name = "LANGUAGE", default_value = "wgsl", requires = "name")]
    emit: Emit,
    /// Batch size to plan for.
    #[arg(long, alias = "batch-size", value_name = "N", default_value = "128")]
    batch: NonZeroUsize,
    /// Plan for a device (auto, an index, or part of a name) instead of WebGPU's default limits.
    #[arg(long, value_name = "auto|N|NAME", value_parser = non_empty::<Select>)]
    device: Option<Select>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    plan: TrainingPlanArgs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Emit {
    /// WGSL, expanded.
    Wgsl,
    /// SPIR-V, a binary format, for Vulkan.
    Spirv,
    /// Metal Shading Language.
    Msl,
    /// HLSL, for Direct3D 12.
    Hlsl,
}

impl From<Emit> for Language {
    fn from(emit: Emit) -> Self {
        match emit {
            Emit::Wgsl => Self::Wgsl,
            Emit::Spirv => Self::Spirv,
            Emit::Msl => Self::Msl,
            Emit::Hlsl => Self::Hlsl,
        }
    }
}

impl KernelsArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let config = self.model.config(VaeConfig::default())?;
        let gpu = match &self.device {
            Some(select) => Some(Gpu::open(&Options { select: select.clone(), ..Options::default() })?),
            None => None,
        };
        let batch = self.batch.get();
        let options = self.plan.options(gpu.as_ref().map(Gpu::adapter_info), &config, &[(batch, Mode::Train)])?;
        let profile = gpu.as_ref().map_or(Profile::WEBGPU, |gpu| *gpu.profile());
        drop(gpu);
        let (_, plan) = config.plan(batch, Mode::Train, &profile, &options)?;
        let mut kernels: BTreeMap<String, Vec<Dispatch>> = BTreeMap::new();
        for bound in plan.dispatches {
            kernels.entry(name(&bound.dispatch)).or_default().push(bound.dispatch);
        }
        match &self.name {
            None => list(&kernels)?,
            Some(name) => {
                let unknown = || {
                    let similar: Vec<_> = kernels.keys().filter(|key| key.contains(name.as_str())).cloned().collect();
                    let known = match similar.is_empty() {
                        true => "one that `vae-wgpu kernels` lists with the same options".to_owned(),
                        false => similar.join(", "),
                    };
                    Error::Unknown { kind: "kernel", name: name.clone(), known }
                };
                let dispatch = kernels.get(name).and_then(|dispatches| dispatches.first()).ok_or_else(unknown)?;
                if matches!(self.emit, Emit::Spirv) && std::io::stdout().is_terminal() {
                    anyhow::bail!(
                        "SPIR-V is binary: redirect stdout to a file, or choose another language with --emit"
                    );
                }
                let Dispatch { kernel, flags, overrides, .. } = dispatch;
                std::io::stdout().write_all(&emit(kernel, flags, overrides, self.emit.into())?)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Kernel, variant and the flags that are set: `conv2d.forward/tiled_8+NORM+HAS_BIAS`.
fn name(dispatch: &Dispatch) -> String {
    let mut name = format!("{}/{}", dispatch.kernel.name, dispatch.kernel.variant);
    for (flag, value) in dispatch.flags.iter().filter(|(_, value)| *value != 0) {
        name += &if *value == 1 { format!("+{flag}") } else { format!("+{flag}={value}") };
    }
    name
}

fn list(kernels: &BTreeMap<String, Vec<Dispatch>>) -> anyhow::Result<()> {
    // The files are left out where they would not fit behind the names.
    let width = stdout_width().unwrap_or(usize::MAX);
    let names = kernels.keys().map(String::len).max().unwrap_or(0);
    let files = kernels.values().flatten().map(|dispatch| dispatch.kernel.file.len()).max().unwrap_or(0);
    let line = |count: &str, workgroup: &str, name: &str, file: &str| {
        let line = format!("{count:>5} {workgroup:<6} ");
        if line.len() + names + 1 + files > width { line + name } else { format!("{line}{name:<names$} {file}") }
    };
    print(line("count", "group", "kernel", "file"))?;
    for (name, dispatches) in kernels {
        let Some(kernel) = dispatches.first().map(|dispatch| dispatch.kernel) else { continue };
        let workgroup = match kernel.workgroup {
            [x, 1, 1] => x.to_string(),
            [x, y, 1] => format!("{x}x{y}"),
            [x, y, z] => format!("{x}x{y}x{z}"),
        };
        print(line(&dispatches.len().to_string(), &workgroup, name, kernel.file))?;
    }
    Ok(())
}
