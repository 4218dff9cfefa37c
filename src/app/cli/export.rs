//! `vae-wgpu export`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum, ValueHint};

use super::note;
use super::output::check_output;
use super::values::run;
use crate::app::io::{atomic, model};
use crate::error::Error;
use crate::runtime::op::Likelihood;
use crate::vae::model::{Mode, VARIANCE};
use crate::vae::names::to_seed;
use crate::vae::weights::{CLASSES, KL_DIMS, TensorSchema};

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// Run folder written by `vae-wgpu train`, its name if it is in `runs`, or a file with weights.
    #[arg(value_name = "RUN|FILE", value_parser = run(), value_hint = ValueHint::AnyPath)]
    run: PathBuf,
    /// Names of the tensors: those of vae-wgpu, or those of github.com/pi-tau/vae.
    #[arg(long, value_enum, default_value = "own")]
    names: Names,
    /// Store the weights of layers as 16-bit floats, which takes half of the space.
    #[arg(long)]
    half: bool,
    /// Output file.
    #[arg(long, short, value_name = "FILE", default_value = "weights.safetensors", value_hint = ValueHint::FilePath)]
    out: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Names {
    Own,
    Seed,
}

impl ExportArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["safetensors"])?;
        let model = model::load(&self.run)?;
        let mut config = model.config;
        if self.names == Names::Seed && config.classes > 0 {
            anyhow::bail!("pi-tau/vae has no conditional models: export {} with --names own", model.path.display());
        }
        let graph = config.graph(1, Mode::Encode)?;
        if self.names == Names::Seed {
            config.likelihood = Likelihood::Unit;
        }
        let mut file = model.weights.into_file(TensorSchema::of(&graph), &serde_json::to_string(&config)?)?;
        if let Some(kl_dims) = &model.kl_dims {
            file.metadata.insert(KL_DIMS.to_owned(), serde_json::to_string(kl_dims)?);
        }
        if !model.classes.is_empty() {
            file.metadata.insert(CLASSES.to_owned(), serde_json::to_string(&model.classes)?);
        }
        if self.names == Names::Seed {
            // The variance of the likelihood has no counterpart, and images do not depend on it.
            file.tensors.remove(VARIANCE);
            let renamed = std::mem::take(&mut file.tensors).into_iter().map(|(name, array)| {
                let theirs = to_seed(&name, config.groups, config.blocks);
                Ok((theirs.ok_or_else(|| Error::bug(format!("no name for `{name}`")))?, array))
            });
            file.tensors = renamed.collect::<crate::Result<_>>()?;
        }
        atomic::create_parent(&self.out)?;
        let bytes = if self.half { file.to_half_bytes(&self.out)? } else { file.to_bytes(&self.out)? };
        atomic::save_atomic(&self.out, &bytes)?;
        note(format_args!("{} tensors: {}", file.tensors.len(), self.out.display()));
        Ok(ExitCode::SUCCESS)
    }
}
