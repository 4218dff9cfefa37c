//! The command line, one file per subcommand. Results go to stdout, diagnostics to stderr.
//!
//! Exit codes: 0 success, 1 failure, 2 usage error, 3 NaN or infinity, 128 + N interrupted by signal N. A usage error shows in the command
//! line alone: an unknown option, or a value that is never accepted. If it depends on files, data or the machine, it is a failure.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueHint};

use crate::Error;
use crate::app::bench::tune::VariantTable;
use crate::app::bench::workloads;
use crate::app::io::atomic;
use crate::runtime::gpu::{AdapterInfo, Gpu, Options, Select, adapters};
use crate::runtime::kernel::Profile;
use crate::runtime::op::{Likelihood, current_key};
use crate::runtime::plan;
use crate::vae::model::{Head, Mode, Norm, VaeConfig};
use crate::vae::runner::Device;

mod bench;
mod check;
mod check_report;
mod completions;
mod config_file;
mod data;
mod devices;
mod encode;
mod eval;
mod export;
mod fit_prior;
mod inference;
mod info;
mod interpolate;
mod kernels;
mod latent;
mod launch;
mod man;
#[cfg(feature = "mpi")]
mod mpi;
mod output;
mod pipeline_cache;
mod preview;
mod progress;
mod reconstruct;
mod report;
mod runs;
mod sample;
mod shared_run;
mod signals;
mod terminal;
mod train;
mod traverse;
mod tune;
mod values;

/// Trains a ResNet variational autoencoder with hand-written WGSL kernels on Vulkan, Metal or DirectX 12.
#[derive(Parser, Debug)]
#[command(version, about, propagate_version = true)]
struct Cli {
    /// Print neither progress nor notes on stderr, only warnings and errors.
    #[arg(long, short, global = true, display_order = 900)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Train a model and write its weights, metrics and images to a run folder.
    Train(Box<train::TrainArgs>),
    /// Generate images from a trained model.
    Sample(sample::SampleArgs),
    /// Show images next to their reconstructions by a trained model.
    Reconstruct(reconstruct::ReconstructArgs),
    /// Interpolate between two images in latent space.
    Interpolate(interpolate::InterpolateArgs),
    /// Vary latent dimensions from -3 to 3 with the others fixed: one row of images per dimension, those that carry most first.
    Traverse(traverse::TraverseArgs),
    /// Plot the latent means of images in two dimensions, and the KL divergence of each latent dimension.
    Latent(latent::LatentArgs),
    /// Encode images: write the mean and log standard deviation of their latent dimensions.
    Encode(encode::EncodeArgs),
    /// Evaluate a trained model on the test images.
    ///
    /// A latent dimension, or unit, is active if the variance of its mean over the images exceeds 0.01. An active dimension may still carry
    /// little, so the report also counts the dimensions that carry 90 % of the KL divergence.
    Eval(eval::EvalArgs),
    /// Fit a prior to the encoded training images, from which samples look more like the data.
    ///
    /// The prior is written beside the model: prior.safetensors, or second_stage.safetensors with --kind second-stage. For weights in
    /// another file than model.safetensors, such as last.safetensors, the name of that file comes first: last.prior.safetensors.
    FitPrior(fit_prior::FitPriorArgs),
    /// List the runs in a folder: epochs, best validation loss, device and size.
    Runs(runs::RunsArgs),
    /// Write the report of a run again: its figures, curves, images and settings on one HTML page.
    Report(report::ReportArgs),
    /// Write a model for other programs: its weights as safetensors, or encoder and decoder as ONNX models.
    Export(export::ExportArgs),
    /// List the adapters that can run the kernels.
    Devices(devices::DevicesArgs),
    /// Download a data set if it is missing, check its files and print its statistics.
    Data(data::DataArgs),
    /// Compare every kernel with the CPU reference on this machine's GPU.
    ///
    /// The gradients of the reference are also compared with finite differences.
    Check(check::CheckArgs),
    /// Summarize a run, and the parameters, compute cost and memory plan of its model.
    Info(info::InfoArgs),
    /// List the kernels of a training step, or print one of them as WGSL, SPIR-V, MSL or HLSL.
    Kernels(kernels::KernelsArgs),
    /// Measure the speed of the training step or of its kernels.
    Bench(bench::BenchArgs),
    /// Time every variant of every kernel of a training step and write a table of the fastest.
    ///
    /// By default the variant of a kernel follows from its shapes and the kind of adapter. Another variant may be faster on your adapter. A
    /// table is valid for one model and batch size, and is used only when --variants names it. Variants sum in different orders, so results
    /// differ in the last bits.
    Tune(tune::TuneArgs),
    /// Print a shell completion script.
    ///
    /// For example, for bash: vae-wgpu completions bash > ~/.local/share/bash-completion/completions/vae-wgpu
    Completions(completions::CompletionsArgs),
    /// Write the manual pages of all commands to a folder.
    Man(man::ManArgs),
}

/// Options of `train` that its help lists first.
const FIRST: [&str; 5] = ["data", "epochs", "batch_size", "lr", "out"];

const TRAIN_EXAMPLES: &str = "\
Examples:
  vae-wgpu train --data photos --image-size 64
      Trains on a folder of images.
  vae-wgpu train --config demo
      Trains a small model on built-in images, in minutes without a GPU.
  vae-wgpu train --resume runs/2026-01-31-1 --epochs 50
      Continues a run.";

/// The command line, with what derived attributes cannot say.
fn command() -> clap::Command {
    let has = |command: &clap::Command, id: &str| command.get_arguments().any(|arg| arg.get_id() == id);
    let command = Cli::command().mut_subcommands(|sub| match has(&sub, "run") && has(&sub, "data") {
        true => data::with_defaults_of_run(sub),
        false => sub,
    });
    let command = command.mut_subcommand("fit-prior", fit_prior::of_stored_models);
    lenient(command).mut_subcommand("train", |train| {
        FIRST.iter().enumerate().fold(train.after_help(TRAIN_EXAMPLES), |train, (at, id)| {
            train.mut_arg(id, |arg| arg.help_heading(None).display_order(at))
        })
    })
}

/// Lets the last of repeated options win, as in aliases, and reads `-1` after an option as its value and not as another option.
fn lenient(command: clap::Command) -> clap::Command {
    let names: Vec<_> = command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
    let takes_value = |arg: &clap::Arg| arg.get_action().takes_values() && !arg.is_positional();
    let command = command
        .args_override_self(true)
        .mut_args(|arg| if takes_value(&arg) { arg.allow_negative_numbers(true) } else { arg });
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, lenient))
}

/// Parses the arguments, runs the command, prints its error on one line and returns the exit code.
#[must_use]
pub fn main() -> ExitCode {
    match parse(std::env::args_os().collect()).and_then(|cli| run(&cli)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            if let Some(usage) = error.downcast_ref::<clap::Error>() {
                if !usage.use_stderr() {
                    let _ = usage.print();
                    return ExitCode::SUCCESS;
                }
                let text = usage.render();
                let text = if console::colors_enabled_stderr() { text.ansi().to_string() } else { text.to_string() };
                eprintln_lossy(in_plain_words(&text).trim_end());
                if let Some(tip) = tip(usage) {
                    eprintln_lossy(format_args!("\n  tip: {tip}"));
                }
                return ExitCode::from(2);
            }
            print_error(&error);
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Prints an error on one line, in color where clap uses color for its errors.
fn print_error(error: &anyhow::Error) {
    let styles = clap::builder::Styles::styled();
    let style = if console::colors_enabled_stderr() { *styles.get_error() } else { Default::default() };
    eprintln_lossy(format_args!("{style}error:{style:#} {}", message(error)));
}

/// Parses the arguments, and for `train` the options in its file.
fn parse(arguments: Vec<OsString>) -> anyhow::Result<Cli> {
    let cli = Cli::from_arg_matches(&command().try_get_matches_from(&arguments)?)?;
    let Command::Train(train) = &cli.command else { return Ok(cli) };
    // Elsewhere the last of repeated options wins.
    for option in ["--config", "--like"] {
        let given = |argument: &&OsString| {
            let argument = argument.to_string_lossy();
            argument == option || argument.split_once('=').is_some_and(|(name, _)| name == option)
        };
        if arguments.iter().filter(given).count() > 1 {
            return Err(conflict(&format!("{option} can be used only once: options on the command line add to it")));
        }
    }
    let options = train.options_of_file()?;
    if options.is_empty() {
        return Ok(cli);
    }
    let mut arguments = arguments;
    // Behind the name of the command, which only --quiet may precede.
    let name = arguments.iter().position(|argument| argument == "train").unwrap_or(1);
    arguments.splice(name + 1..=name, options);
    Ok(Cli::from_arg_matches(&command().try_get_matches_from(arguments)?)?)
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    QUIET.store(cli.quiet, Ordering::Relaxed);
    signals::ignore_file_size_signal();
    match &cli.command {
        Command::Train(args) => args.run(),
        Command::Sample(args) => args.run(),
        Command::Reconstruct(args) => args.run(),
        Command::Interpolate(args) => args.run(),
        Command::Traverse(args) => args.run(),
        Command::Latent(args) => args.run(),
        Command::Encode(args) => args.run(),
        Command::Eval(args) => args.run(),
        Command::FitPrior(args) => args.run(),
        Command::Runs(args) => args.run(),
        Command::Report(args) => args.run(),
        Command::Export(args) => args.run(),
        Command::Devices(args) => args.run(),
        Command::Data(args) => args.run(),
        Command::Check(args) => args.run(),
        Command::Info(args) => args.run(),
        Command::Kernels(args) => args.run(),
        Command::Bench(args) => args.run(),
        Command::Tune(args) => args.run(),
        Command::Completions(args) => args.run(),
        Command::Man(args) => args.run(),
    }
}

/// The message of an error with its causes and hint, on one line.
fn message(error: &anyhow::Error) -> String {
    let hint = error.downcast_ref::<Error>().and_then(Error::trailing_hint);
    let hint = hint.map(|hint| format!(". {hint}")).unwrap_or_default();
    format!("{error:#}{hint}")
}

/// What precedes the name that clap suggests instead of an unknown option.
const SIMILAR: &str = "a similar argument exists: '";

/// Says what is wrong in the words of a user rather than of Rust's parsers.
fn in_plain_words(usage: &str) -> String {
    let number = "expected a whole number that is not negative";
    let words = [
        ("invalid digit found in string", number),
        ("cannot parse integer from empty string", number),
        ("number too large to fit in target type", "the number is too large"),
        ("number would be zero for non-zero type", "expected 1 or more"),
        ("invalid float literal", "expected a number"),
        ("cannot parse float from empty string", "expected a number"),
    ];
    let mut usage = words.iter().fold(usage.to_owned(), |usage, (from, to)| usage.replace(from, to));
    // A name that is accepted but that help does not list.
    if let Some((before, after)) = usage.split_once(SIMILAR)
        && let Some((name, rest)) = after.split_once('\'')
    {
        usage = format!("{before}{SIMILAR}{}'{rest}", name.replace('_', "-"));
    }
    // `: 0 is not in 1..=25`
    if let Some((before, after)) = usage.split_once(" is not in ")
        && let Some((before, _)) = before.rsplit_once(": ")
    {
        let (range, rest) = after.split_at(after.find('\n').unwrap_or(after.len()));
        let (least, most) = range.split_once("..").unwrap_or((range, ""));
        let expected = match most.trim_start_matches('=').parse::<u64>() {
            Ok(most) if most != u64::MAX && most != u64::from(u32::MAX) => format!("{least} to {most}"),
            _ => format!("{least} or more"),
        };
        usage = format!("{before}: expected {expected}{rest}");
    }
    usage
}

/// Help with an error that clap has none for.
fn tip(usage: &clap::Error) -> Option<&'static str> {
    match usage.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(value)) if ["true", "false"].contains(&value.as_str()) => {
            Some("a value of true or false follows an equals sign, as in '--flip=false'")
        }
        _ => None,
    }
}

/// A usage error about options that exclude each other.
fn conflict(message: &str) -> anyhow::Error {
    clap::Error::raw(ErrorKind::ArgumentConflict, format!("{message}\n")).into()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let broken = |e: &std::io::Error| e.kind() == std::io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref().is_some_and(broken))
}

/// Exit code of NaN or infinity.
const DIVERGED: u8 = 3;

fn exit_code(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>() {
        Some(Error::NonFinite { .. } | Error::NonFiniteOutput { .. } | Error::Rank { diverged: true, .. }) => DIVERGED,
        Some(Error::Unknown { .. }) => 2,
        _ => 1,
    }
}

/// Choice of device.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Device and kernels")]
struct DeviceArgs {
    /// Device to run on: auto, cpu (the slow CPU reference), an index from `vae-wgpu devices`, or part of an adapter name; in several
    /// processes, indices to share out among those of a machine, such as 0,1.
    #[arg(long, default_value = "auto", value_name = "auto|cpu|N|NAME", value_parser = values::non_empty::<String>)]
    device: String,
}

impl DeviceArgs {
    /// Opens the device to run single kernels.
    fn open(&self) -> anyhow::Result<Device> {
        self.open_with(|_| {})
    }

    /// Opens the device to run whole models, with a persistent pipeline cache. `verbose` shows the progress of compilation.
    fn open_for_models(&self, verbose: bool) -> anyhow::Result<Device> {
        self.open_with(|gpu| pipeline_cache::install(gpu, verbose && !is_quiet()))
    }

    fn open_with(&self, prepare: impl FnOnce(&mut Gpu)) -> anyhow::Result<Device> {
        if self.device.eq_ignore_ascii_case("cpu") {
            return Ok(Device::Cpu);
        }
        let pin_driver_threads = std::env::var_os("VAE_WGPU_PIN").is_none_or(|v| v != "off");
        let mut gpu = Gpu::open(&Options { select: self.select()?, pin_driver_threads, ..Options::default() })?;
        prepare(&mut gpu);
        Ok(Device::Gpu(Arc::new(gpu)))
    }

    fn select(&self) -> anyhow::Result<Select> {
        if let Some(indices) = self.indices() {
            anyhow::bail!(
                "--device {} names {} devices, and this is one process: name one, or start several processes (docs/distributed.md)",
                self.device,
                indices.len()
            );
        }
        Ok(self.device.parse::<Select>()?)
    }

    /// The numbers in a list of several.
    fn indices(&self) -> Option<Vec<usize>> {
        let indices: Vec<usize> = self.device.split(',').map(|text| text.trim().parse().ok()).collect::<Option<_>>()?;
        (indices.len() > 1).then_some(indices)
    }

    /// Returns the choice of one process of several on a machine. They take the devices of a list in turn, or with `auto` those of the best
    /// kind.
    fn of_process(&self, local: usize) -> anyhow::Result<Self> {
        let indices = match (self.indices(), self.device.parse::<Select>()?) {
            (Some(indices), _) => indices,
            (None, Select::Auto) => {
                let adapters = adapters()?;
                let best = adapters.iter().max_by_key(|adapter| adapter.rank()).map(|adapter| adapter.device_type);
                adapters
                    .iter()
                    .filter(|adapter| Some(adapter.device_type) == best)
                    .map(|adapter| adapter.index)
                    .collect()
            }
            (None, _) => return Ok(self.clone()),
        };
        let device = indices.get(local % indices.len().max(1)).map_or(self.device.clone(), usize::to_string);
        Ok(Self { device })
    }
}

/// The adapter of a device; the CPU reference has none.
fn adapter(device: &Device) -> Option<&AdapterInfo> {
    match device {
        Device::Cpu => None,
        Device::Gpu(gpu) => Some(gpu.adapter_info()),
    }
}

/// Size of the model.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Model")]
struct ModelArgs {
    /// Channels after the first convolution; each group of blocks doubles them [default: 32].
    #[arg(long, value_name = "N", value_parser = values::size(|c, n| c.channels = n))]
    channels: Option<usize>,
    /// Residual blocks per group [default: 4].
    #[arg(long, value_name = "N", value_parser = values::size(|c, n| c.blocks = n))]
    blocks: Option<usize>,
    /// Number of latent dimensions [default: 64].
    #[arg(long, value_name = "N", value_parser = values::size(|c, n| c.latent_dim = n), alias = "latent_dim")]
    latent_dim: Option<usize>,
    /// Normalization: batch, or position (over the channels at each pixel) [default: batch].
    #[arg(long, value_name = "NORM", value_parser = values::choice::<Norm>(&["batch", "position"]), hide_possible_values = true,
        hide_short_help = true)]
    norm: Option<Norm>,
    /// What the last layer of the encoder reads: the mean of each channel (pool), or the whole feature map (flatten) [default: flatten].
    #[arg(long, value_name = "HEAD", value_parser = values::choice::<Head>(&["pool", "flatten"]), hide_possible_values = true,
        hide_short_help = true)]
    head: Option<Head>,
    /// Gaussian around a decoded pixel: variance 1 (unit), or one variance for all pixels at its maximum-likelihood value (optimal)
    /// [default: optimal].
    #[arg(long, value_name = "LIKELIHOOD", value_parser = values::choice::<Likelihood>(&["optimal", "unit"]), hide_possible_values = true)]
    likelihood: Option<Likelihood>,
}

impl ModelArgs {
    /// Returns the configuration: `base` with what the options change.
    fn config(&self, base: VaeConfig) -> crate::Result<VaeConfig> {
        let config = VaeConfig {
            channels: self.channels.unwrap_or(base.channels),
            blocks: self.blocks.unwrap_or(base.blocks),
            latent_dim: self.latent_dim.unwrap_or(base.latent_dim),
            norm: self.norm.unwrap_or(base.norm),
            head: self.head.unwrap_or(base.head),
            likelihood: self.likelihood.unwrap_or(base.likelihood),
            ..base
        };
        config.check()?;
        Ok(config)
    }
}

/// Choice of kernel variants and limit on memory.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Device and kernels")]
struct PlanArgs {
    /// Use this kernel variant for an operation or a pass, e.g. conv2d=naive or conv2d.forward=tiled; may be repeated.
    #[arg(long = "variant", value_name = "OP=NAME", value_parser = values::variant, hide_short_help = true)]
    variant: Vec<(String, String)>,
    /// Use the kernel variants in a table written by `vae-wgpu tune`; --variant takes precedence.
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, hide_short_help = true)]
    variants: Option<PathBuf>,
    /// Fail if the plan needs more device memory than this.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..), hide_short_help = true)]
    memory_limit: Option<u64>,
}

/// [`PlanArgs`] with the options that only training has.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Device and kernels")]
struct TrainingPlanArgs {
    #[command(flatten)]
    plan: PlanArgs,
    /// Recompute the activations inside residual blocks during the backward pass: less memory, slower steps, identical results.
    #[arg(long, alias = "checkpoint-blocks", hide_short_help = true)]
    recompute_blocks: bool,
}

impl TrainingPlanArgs {
    fn options(
        &self,
        adapter: Option<&AdapterInfo>,
        config: &VaeConfig,
        programs: &[(usize, Mode)],
    ) -> anyhow::Result<plan::Options> {
        let options = self.plan.options(adapter, config, programs)?;
        Ok(plan::Options { recompute_blocks: self.recompute_blocks, ..options })
    }
}

impl PlanArgs {
    /// Returns the options for programs of these batch sizes and modes; `adapter` is the one that they will run on.
    fn options(
        &self,
        adapter: Option<&AdapterInfo>,
        config: &VaeConfig,
        programs: &[(usize, Mode)],
    ) -> anyhow::Result<plan::Options> {
        let mut variants = self.table(adapter, config, programs)?;
        variants.extend(self.variant.iter().cloned());
        // For tests: no buffer is reused; the results are the same.
        let reuse_buffers = std::env::var("VAE_WGPU_PLANNER").map_or(true, |v| v != "off");
        // For tests: no operations are fused; the results differ by rounding.
        let fuse = std::env::var("VAE_WGPU_FUSE").map_or(true, |v| v != "off");
        let budget = self.memory_limit.map(|mib| mib.saturating_mul(1 << 20));
        Ok(plan::Options { reuse_buffers, fuse, variants, budget, ..plan::Options::default() })
    }

    /// The entries of the table, if one was given. Warns about a table that was made for another adapter, model or batch size.
    fn table(
        &self,
        adapter: Option<&AdapterInfo>,
        config: &VaeConfig,
        programs: &[(usize, Mode)],
    ) -> anyhow::Result<BTreeMap<String, String>> {
        let Some(path) = &self.variants else { return Ok(BTreeMap::new()) };
        let table = VariantTable::from_json(&atomic::read(path)?)
            .map_err(|why| Error::malformed("parse the variants table", path, why))?;
        let warn = |what: &str| eprintln_lossy(format_args!("warning: {}: {what}", path.display()));
        if let Some(mismatch) = adapter.and_then(|info| table.adapter_mismatch(info)) {
            warn(&format!("{mismatch}; other variants may be faster here"));
        }
        let variants: BTreeMap<_, _> =
            table.entries.into_iter().map(|entry| (current_key(&entry.key).into_owned(), entry.variant)).collect();
        let profile = adapter.map_or(Profile::WEBGPU, |info| info.profile);
        let mut used = false;
        for &(batch, mode) in programs {
            // A model that cannot be planned is rejected later, with a better message.
            let Ok((graph, _)) = config.plan(batch, mode, &profile, &plan::Options::default()) else { continue };
            for workload in workloads(&graph)? {
                used |= variants.contains_key(&plan::key(workload.op.as_ref(), &workload.pass)?);
            }
        }
        if !used {
            let batches: Vec<_> = programs.iter().map(|(batch, _)| batch.to_string()).collect();
            let batches = batches.join(" or ");
            warn(&format!(
                "no entry is for this model at batch size {batches}; the table was made with other --batch, --channels or --blocks"
            ));
        }
        Ok(variants)
    }
}

/// Prints a line to stdout; a closed pipe ends the command with success.
fn print(text: impl std::fmt::Display) -> anyhow::Result<()> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Whether --quiet was given. Set once, at the start.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Prints no more progress, as with --quiet.
fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Prints a line of progress or about a result to stderr, unless --quiet was given.
fn note(text: impl std::fmt::Display) {
    if !is_quiet() {
        eprintln_lossy(text);
    }
}

/// Prints a line about a run to stderr, on a terminal broken between words.
fn eprintln_wrapped(text: impl std::fmt::Display) {
    let text = text.to_string();
    match terminal::stderr_width() {
        Some(width) => eprintln_lossy(terminal::wrapped(&text, width)),
        None => eprintln_lossy(text),
    }
}

/// Prints a line to stderr and ignores errors, because stderr may be closed.
fn eprintln_lossy(text: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn command_line_definition_is_valid() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_names_the_defaults_that_a_command_has() {
        let help = |name: &str| {
            let mut command = command().term_width(10_000);
            command.build();
            command.find_subcommand_mut(name).unwrap().render_long_help().to_string()
        };
        let (train, sample, eval) = (help("train"), help("sample"), help("eval"));
        assert!(train.contains("else a download]") && train.contains("N training images [default: all]"), "{train}");
        assert!(!sample.contains("that of the run"), "{sample}");
        for default in
            ["data set [default: that of the run]", "N training images [default: as many as the run, of its data set]"]
        {
            assert!(eval.contains(default) && !train.contains(default), "{default}: {eval}");
        }
        // An option that only `train` has.
        for name in ["info", "kernels", "tune"] {
            assert!(!help(name).contains("--recipe"), "{name}");
        }
    }

    #[test]
    fn help_fits_sixty_columns() {
        fn check(command: &mut clap::Command) {
            for help in [command.render_help(), command.render_long_help()] {
                let help = help.to_string();
                let long = help.lines().find(|line| line.chars().count() > 60);
                assert_eq!(long, None, "{}", command.get_name());
            }
            command.get_subcommands_mut().for_each(check);
        }
        let mut command = command().term_width(60);
        command.build();
        check(&mut command);
    }

    #[test]
    fn processes_of_a_machine_take_devices_in_turn() {
        let of = |device: &str, local| DeviceArgs { device: device.to_owned() }.of_process(local).unwrap().device;
        assert_eq!([0, 1, 2, 3].map(|local| of("4,2, 7", local)), ["4", "2", "7", "4"]);
        assert_eq!([0, 5].map(|local| of("3", local)), ["3", "3"]);
        assert_eq!([0, 5].map(|local| of("llvmpipe, 256", local)), ["llvmpipe, 256"; 2]);
        assert_eq!(of("CPU", 1), "CPU");
        let error = DeviceArgs { device: "0,1".to_owned() }.select().unwrap_err().to_string();
        assert!(error.contains("names 2 devices"), "{error}");
    }

    #[test]
    fn invalid_numbers_are_described_in_plain_words() {
        let said = |line: &str| {
            let error = command().try_get_matches_from(line.split(' ')).unwrap_err().render().to_string();
            in_plain_words(&error).lines().next().unwrap().split_once("': ").unwrap().1.to_owned()
        };
        for (line, expected) in [
            ("vae-wgpu train --epochs ten", "expected a whole number that is not negative"),
            ("vae-wgpu train --epochs 1.5", "expected a whole number that is not negative"),
            ("vae-wgpu train --epochs 0", "expected 1 to 1000000000"),
            ("vae-wgpu train --memory-limit 0", "expected 1 or more"),
            ("vae-wgpu train --save-every 0", "expected 1 or more"),
            ("vae-wgpu reconstruct run -n 0", "expected 1 or more"),
            ("vae-wgpu train --seed 99999999999999999999", "the number is too large"),
            ("vae-wgpu train --lr fast", "expected a number"),
        ] {
            assert_eq!(said(line), expected, "{line}");
        }
    }

    #[test]
    fn values_of_switches_need_an_equals_sign() {
        let error = command().try_get_matches_from(["vae-wgpu", "train", "--flip", "false"]).unwrap_err();
        assert!(tip(&error).is_some_and(|tip| tip.contains("'--flip=false'")), "{error}");
        let error = command().try_get_matches_from(["vae-wgpu", "train", "--flips"]).unwrap_err();
        assert_eq!(tip(&error), None, "{error}");
    }

    #[test]
    fn only_listed_names_are_suggested() {
        let error = command().try_get_matches_from(["vae-wgpu", "train", "--latentdim", "4"]).unwrap_err();
        let said = in_plain_words(&error.render().to_string());
        assert!(said.contains("a similar argument exists: '--latent-dim'"), "{said}");
    }

    #[test]
    fn errors_map_to_exit_codes() {
        let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let hint = String::new;
        for (error, code) in [
            (Error::device("training", "the device was lost"), 1),
            (Error::does_not_fit("", 2, 1), 1),
            (Error::Shader { file: hint(), line: 1, message: hint() }, 1),
            (Error::file("write", std::path::Path::new("x"))(full), 1),
            (Error::bug("none"), 1),
            (Error::Unknown { kind: "variant", name: hint(), known: hint() }, 2),
            (Error::NonFinite { tensor: hint(), step: 0 }, 3),
            (Error::NonFiniteOutput { what: hint() }, 3),
            (Error::Rank { rank: 1, message: hint(), diverged: false }, 1),
            (Error::Rank { rank: 1, message: hint(), diverged: true }, 3),
        ] {
            let message = error.to_string();
            assert_eq!(exit_code(&error.into()), code, "{message}");
        }
    }
}
