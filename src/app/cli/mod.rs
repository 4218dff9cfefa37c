//! The command line: one file a subcommand. stdout is data, stderr is talk.
//!
//! Exit codes: 0 done, 1 failure, 2 usage, 3 numeric failure, 130 interrupted.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};

use crate::Error;
use crate::app::bench::subjects;
use crate::app::bench::tune::Table;
use crate::app::io::atomic;
use crate::runtime::gpu::{AdapterInfo, Gpu, Options, Select};
use crate::runtime::kernel::Profile;
use crate::runtime::plan;
use crate::vae::model::{Mode, Norm, VaeConfig};
use crate::vae::runner::Device;

mod bench;
mod check;
mod completions;
mod data;
mod devices;
mod encode;
mod eval;
mod info;
mod interpolate;
mod pipeline_cache;
mod progress;
mod reconstruct;
mod sample;
mod signals;
mod train;
mod trained;
mod traverse;
mod tune;
mod values;

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
    /// Time every variant of every kernel of a training step, for a table of the best.
    ///
    /// Without a table the variant of a kernel follows from its shapes and the kind of adapter; some adapters have better ones. A table is
    /// for the batch size and the model that it was made with, and is used where --variants names it, never by itself. Other variants add
    /// in another order: the numbers of a run differ in their last bits.
    Tune(tune::TuneArgs),
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
    signals::survive_file_limits();
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
        Command::Tune(args) => args.run(),
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

/// Exit code of an interrupted run: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::NonFinite { .. } | Error::NonFiniteOutput { .. }) => 3,
        Some(Error::Unknown { .. }) => 2,
        _ => 1,
    }
}

/// Options that choose a device.
#[derive(Args, Debug, Clone)]
struct DeviceArgs {
    /// Device: auto, cpu (the reference: slow), a number from `vae-wgpu devices`, or part of a name.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|N|NAME", value_parser = values::given::<String>)]
    device: String,
}

impl DeviceArgs {
    /// For a few kernels at a time.
    fn open(&self) -> anyhow::Result<Device> {
        self.open_with(|_| {})
    }

    /// For whole models: what their kernels become is kept for the next time, and `tell` says whether anything is said meanwhile.
    fn open_for_models(&self, tell: bool) -> anyhow::Result<Device> {
        self.open_with(|gpu| pipeline_cache::watch(gpu, tell))
    }

    fn open_with(&self, prepare: impl FnOnce(&mut Gpu)) -> anyhow::Result<Device> {
        if self.device.eq_ignore_ascii_case("cpu") {
            return Ok(Device::Cpu);
        }
        let mut gpu = Gpu::open(&Options { select: self.select()?, ..Options::default() })?;
        prepare(&mut gpu);
        Ok(Device::Gpu(Arc::new(gpu)))
    }

    fn select(&self) -> anyhow::Result<Select> {
        Ok(self.device.parse::<Select>()?)
    }
}

/// What is known of a device's adapter; the CPU reference has none.
fn adapter(device: &Device) -> Option<&AdapterInfo> {
    match device {
        Device::Cpu => None,
        Device::Gpu(gpu) => Some(gpu.adapter_info()),
    }
}

/// Options that shape the model.
#[derive(Args, Debug, Clone)]
struct ModelArgs {
    /// Channels after the stem; every group doubles them.
    #[arg(long, default_value_t = VaeConfig::default().channels, value_parser = values::size(|c, n| c.channels = n))]
    channels: usize,
    /// Residual blocks in each group.
    #[arg(long, default_value_t = VaeConfig::default().blocks, value_parser = values::size(|c, n| c.blocks = n))]
    blocks: usize,
    /// Numbers that a picture is encoded in.
    #[arg(long, default_value_t = VaeConfig::default().latent_dim, value_parser = values::size(|c, n| c.latent_dim = n))]
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
    #[arg(long = "variant", value_name = "OP=NAME", value_parser = values::variant)]
    variant: Vec<(String, String)>,
    /// Use the variants of a table that `vae-wgpu tune` made, for the shapes that are in it; --variant goes before it.
    #[arg(long, value_name = "FILE")]
    variants: Option<PathBuf>,
    /// Refuse a plan that needs more device memory than this.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
    memory_limit: Option<u64>,
}

/// The same for training.
#[derive(Args, Debug, Clone)]
struct TrainingPlanArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// Keep only the inputs of residual blocks for the backward pass and compute the rest again: less memory, a longer step, the same
    /// results.
    #[arg(long)]
    checkpoint_blocks: bool,
}

impl TrainingPlanArgs {
    /// As [`PlanArgs::options`].
    fn options(
        &self,
        adapter: Option<&AdapterInfo>,
        config: &VaeConfig,
        programs: &[(usize, Mode)],
    ) -> anyhow::Result<plan::Options> {
        let options = self.plan.options(adapter, config, programs)?;
        Ok(plan::Options { checkpoint: self.checkpoint_blocks, ..options })
    }
}

impl PlanArgs {
    /// For programs of these batch sizes; `adapter` is where they will run.
    fn options(
        &self,
        adapter: Option<&AdapterInfo>,
        config: &VaeConfig,
        programs: &[(usize, Mode)],
    ) -> anyhow::Result<plan::Options> {
        let mut variants = self.table(adapter, config, programs)?;
        variants.extend(self.variant.iter().cloned());
        // For checks: the same results with every value in a buffer of its own.
        let share = std::env::var("VAE_WGPU_PLANNER").map_or(true, |v| v != "off");
        // The same results, but for rounding, with every operation a node of its own.
        let fuse = std::env::var("VAE_WGPU_FUSE").map_or(true, |v| v != "off");
        let budget = self.memory_limit.map(|mib| mib.saturating_mul(1 << 20));
        Ok(plan::Options { share, fuse, variants, budget, ..plan::Options::default() })
    }

    /// The choices of the table, if one was given. It is used as it is; that it may not fit is told.
    fn table(
        &self,
        adapter: Option<&AdapterInfo>,
        config: &VaeConfig,
        programs: &[(usize, Mode)],
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let Some(path) = &self.variants else { return Ok(BTreeMap::new()) };
        let table = Table::from_json(&atomic::read(path)?)
            .map_err(|why| Error::garbled("understand the table of variants in", path, why))?;
        let warn = |what: &str| trained::say(format_args!("warning: {}: {what}", path.display()));
        if let Some(foreign) = adapter.and_then(|facts| table.foreign(facts)) {
            warn(&format!("{foreign}: its choices may not be the best here"));
        }
        let variants: BTreeMap<_, _> = table.entries.into_iter().map(|choice| (choice.key, choice.variant)).collect();
        let profile = adapter.map_or(Profile::WEBGPU, |facts| facts.profile);
        let mut used = false;
        for &(batch, mode) in programs {
            // What cannot be planned is refused elsewhere, with what was asked for.
            let Ok((graph, _)) = config.plan(batch, mode, &profile, &plan::Options::default()) else { continue };
            for subject in subjects(&graph)? {
                used |= variants.contains_key(&plan::key(subject.op.as_ref(), &subject.pass)?);
            }
        }
        if !used {
            let batches: Vec<_> = programs.iter().map(|(batch, _)| batch.to_string()).collect();
            let batches = batches.join(" or ");
            warn(&format!(
                "nothing in it is for this model in batches of {batches}: it was made with other --batch, --channels or --blocks"
            ));
        }
        Ok(variants)
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

    #[test]
    fn failures_have_their_exit_codes() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let hint = String::new;
        for (error, code) in [
            (Error::device("training", "the device was lost"), 1),
            (Error::DoesNotFit { what: hint(), needed: 2, limit: 1, hint: hint() }, 1),
            (Error::Shader { file: hint(), line: 1, message: hint() }, 1),
            (Error::file("write", std::path::Path::new("x"))(full), 1),
            (Error::bug("none"), 1),
            (Error::Unknown { kind: "variant", name: hint(), known: hint() }, 2),
            (Error::NonFinite { tensor: hint(), step: 0 }, 3),
            (Error::NonFiniteOutput { what: hint() }, 3),
        ] {
            let said = error.to_string();
            assert_eq!(exit_code(&error.into()), code, "{said}");
        }
    }
}
