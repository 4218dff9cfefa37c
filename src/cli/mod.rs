//! The command line: one file a subcommand. stdout is data, stderr is talk.
//!
//! Exit codes: 0 done, 1 failure, 2 usage, 3 numeric failure, 130 interrupted.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::Error;
use crate::exec::Device;
use crate::gpu::{Gpu, Options, Select};
use crate::graph::plan;
use crate::model::{Norm, VaeConfig};

mod bench;
mod check;
mod completions;
mod data;
mod devices;
mod encode;
mod eval;
mod info;
mod interpolate;
mod reconstruct;
mod sample;
mod train;
mod trained;
mod traverse;

/// Trains a ResNet U-Net VAE with hand-written WGSL kernels on any Vulkan, Metal or DX12 GPU.
#[derive(Parser, Debug)]
#[command(version, about, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train the model, from nothing to weights and pictures.
    Train(Box<train::TrainArgs>),
    /// Draw new pictures from a trained model.
    Sample(sample::SampleArgs),
    /// Put pictures beside what a trained model makes of them.
    Reconstruct(reconstruct::ReconstructArgs),
    /// Turn one picture into another through the latent space.
    Interpolate(interpolate::InterpolateArgs),
    /// See what each latent number does: a row each, from -3 to 3, the others kept.
    Traverse(traverse::TraverseArgs),
    /// Encode pictures: the mean and log standard deviation of each one's latent numbers.
    Encode(encode::EncodeArgs),
    /// Measure a trained model on the test pictures.
    Eval(eval::EvalArgs),
    /// List the adapters that can run the kernels.
    Devices(devices::DevicesArgs),
    /// Download a data set where it is missing, verify it, and describe it.
    Data(data::DataArgs),
    /// Hold every kernel against the CPU reference on this machine's adapter.
    Check(check::CheckArgs),
    /// Print layers, parameters, work and memory plan of a model.
    Info(info::InfoArgs),
    /// Measure the training step and its kernels.
    Bench(bench::BenchArgs),
    /// Print a script with which a shell completes this command.
    Completions(completions::CompletionsArgs),
}

/// Entry point of the binary.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    let result = match &cli.command {
        Command::Train(args) => args.run(),
        Command::Sample(args) => args.run(),
        Command::Reconstruct(args) => args.run(),
        Command::Interpolate(args) => args.run(),
        Command::Traverse(args) => args.run(),
        Command::Encode(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::Devices(args) => args.run(),
        Command::Data(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Info(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Completions(args) => args.run(),
    };
    match result {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed stderr leaves nobody to tell.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::from(exit_code(&error))
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::NonFinite { .. } | Error::Diverged { .. }) => 3,
        Some(Error::Unknown { .. }) => 2,
        _ => 1,
    }
}

/// Options that choose a device.
#[derive(Args, Debug, Clone)]
struct DeviceArgs {
    /// Device: auto, cpu (the reference: slow), a number from `vae-wgpu devices`, or part of a name.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|N|NAME")]
    device: String,
}

impl DeviceArgs {
    fn open(&self) -> anyhow::Result<Device> {
        if self.device.eq_ignore_ascii_case("cpu") {
            return Ok(Device::Cpu);
        }
        Ok(Device::Gpu(Arc::new(Gpu::open(&Options { select: self.select()?, ..Options::default() })?)))
    }

    fn select(&self) -> anyhow::Result<Select> {
        Ok(self.device.parse::<Select>()?)
    }
}

/// Options that shape the model.
#[derive(Args, Debug, Clone)]
struct ModelArgs {
    /// Channels after the stem; every group doubles them.
    #[arg(long, default_value_t = VaeConfig::default().channels)]
    channels: usize,
    /// Residual blocks in each group.
    #[arg(long, default_value_t = VaeConfig::default().blocks)]
    blocks: usize,
    /// Numbers that a picture is encoded in.
    #[arg(long, default_value_t = VaeConfig::default().latent_dim)]
    latent_dim: usize,
    /// Normalisation: batch or position.
    #[arg(long, default_value = "batch", value_name = "batch|position")]
    norm: Norm,
}

impl ModelArgs {
    fn config(&self) -> crate::Result<VaeConfig> {
        let config = VaeConfig {
            channels: self.channels,
            blocks: self.blocks,
            latent_dim: self.latent_dim,
            norm: self.norm,
            ..VaeConfig::default()
        };
        config.check()?;
        Ok(config)
    }
}

/// Options that change how kernels are chosen and placed.
#[derive(Args, Debug, Clone)]
struct PlanArgs {
    /// Use a variant of an operation's kernels, e.g. conv2d=naive or conv2d.forward=tiled; may be given several times.
    #[arg(long = "variant", value_name = "OP=NAME")]
    variants: Vec<String>,
    /// Refuse a plan that needs more device memory than this.
    #[arg(long, value_name = "MIB")]
    memory_limit: Option<u64>,
}

impl PlanArgs {
    fn options(&self) -> anyhow::Result<plan::Options> {
        let mut variants = BTreeMap::new();
        for given in &self.variants {
            let (op, name) = given.split_once('=').ok_or_else(|| Error::Unknown {
                kind: "variant",
                name: given.clone(),
                known: "OP=NAME, e.g. conv2d=naive".to_owned(),
            })?;
            let family = op.split('.').next().unwrap_or(op);
            if !crate::op::OPS.iter().any(|f| f.name == family) {
                let known = crate::op::OPS.iter().map(|f| f.name).collect::<Vec<_>>().join(", ");
                return Err(Error::Unknown { kind: "operation", name: family.to_owned(), known }.into());
            }
            variants.insert(op.to_owned(), name.to_owned());
        }
        // For checks: the same results with every value in a buffer of its own.
        let share = std::env::var("VAE_WGPU_PLANNER").map_or(true, |v| v != "off");
        Ok(plan::Options { share, variants, budget: self.memory_limit.map(|mib| mib.saturating_mul(1 << 20)) })
    }
}

/// Prints a line of data; a closed pipe ends the command quietly.
fn out(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn options_are_well_formed() {
        Cli::command().debug_assert();
    }
}
