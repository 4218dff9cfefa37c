//! `vae-wgpu export`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueEnum, ValueHint};

use super::output::{check_not_input, check_output};
use super::values;
use super::{conflict, note};
use crate::app::io::atomic;
use crate::app::io::model::Origin;
use crate::app::io::run_folder::RunFolder;
use crate::app::onnx;
use crate::error::Error;
use crate::runtime::op::Likelihood;
use crate::vae::inference::Model;
use crate::vae::model::{Head, Mode, VARIANCE};
use crate::vae::names::to_seed;
use crate::vae::weights::{CLASSES, KL_DIMS, TensorSchema};

#[derive(Args, Debug)]
pub(super) struct ExportArgs {
    /// Run folder written by `vae-wgpu train`, its name if it is in `runs`, a file with weights, or `pretrained`.
    #[arg(value_name = "RUN|FILE", value_parser = values::model(), value_hint = ValueHint::AnyPath)]
    run: Origin,
    /// File format: the weights (safetensors), or encoder and decoder as models that other programs run (onnx).
    #[arg(long, value_enum, default_value = "safetensors", hide_possible_values = true)]
    format: Format,
    /// Names of the tensors in a safetensors file: those of vae-wgpu (own), or of github.com/pi-tau/vae (seed).
    #[arg(long, value_enum, default_value = "own", hide_possible_values = true)]
    names: Names,
    /// Store the weights of layers as 16-bit floats, which takes half of the space.
    #[arg(long)]
    half: bool,
    /// Output file [default: weights.safetensors]; with --format onnx, the folder for encoder.onnx and decoder.onnx [default: onnx].
    #[arg(long, short, value_name = "FILE|FOLDER", value_hint = ValueHint::AnyPath)]
    out: Option<PathBuf>,
}

// No doc comments: clap would turn the help texts into the long form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Safetensors,
    Onnx,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Names {
    Own,
    Seed,
}

impl ExportArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        match self.format {
            Format::Safetensors => self.safetensors(self.out.as_deref().unwrap_or(Path::new("weights.safetensors")))?,
            Format::Onnx => self.onnx(self.out.as_deref().unwrap_or(Path::new("onnx")))?,
        }
        Ok(ExitCode::SUCCESS)
    }

    fn safetensors(&self, out: &Path) -> anyhow::Result<()> {
        check_output(out, &["safetensors"])?;
        let model = self.run.load()?;
        check_not_input(out, [model.path.as_path()])?;
        let mut config = model.config;
        if self.names == Names::Seed && config.classes > 0 {
            anyhow::bail!("pi-tau/vae has no conditional models: export {} with --names own", model.path.display());
        }
        if self.names == Names::Seed && config.head != Head::Pool {
            let path = model.path.display();
            anyhow::bail!(
                "the encoders of pi-tau/vae end with pooling, not with --head {}: export {path} with --names own",
                config.head
            );
        }
        let graph = config.graph(1, Mode::Encode)?;
        if self.names == Names::Seed && config.likelihood == Likelihood::Optimal {
            config.likelihood = Likelihood::Unit;
            note(
                "note: pi-tau/vae has no variance of the likelihood: bits per dimension of the file are those of variance 1",
            );
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
        atomic::create_parent(out)?;
        let bytes = if self.half { file.to_half_bytes(out)? } else { file.to_bytes(out)? };
        atomic::save_atomic(out, &bytes)?;
        note(format_args!("{} tensors: {}", file.tensors.len(), out.display()));
        Ok(())
    }

    /// Writes the two models of ONNX into a folder. Computes both before it writes the first.
    fn onnx(&self, folder: &Path) -> anyhow::Result<()> {
        if self.names == Names::Seed {
            return Err(conflict(
                "--names seed names the tensors of a safetensors file: leave it out with --format onnx",
            ));
        }
        if folder.extension().is_some_and(|kind| kind == "onnx") && !folder.is_dir() {
            let folder = folder.display();
            anyhow::bail!(
                "--format onnx writes encoder.onnx and decoder.onnx: pass their folder as --out, not {folder}"
            );
        }
        let files = ["encoder.onnx", "decoder.onnx"].map(|name| folder.join(name));
        for file in &files {
            check_output(file, &["onnx"])?;
        }
        let model = self.run.load()?;
        let run = run_name(&self.run, &model);
        let options = onnx::Options { run: &run, half: self.half };
        let models = [onnx::encoder(&model, options)?, onnx::decoder(&model, options)?];
        for (file, bytes) in files.iter().zip(&models) {
            atomic::create_parent(file)?;
            atomic::save_atomic(file, bytes)?;
        }
        let [encoder, decoder] = files.map(|file| file.display().to_string());
        note(format_args!("encoder and decoder: {encoder}, {decoder}"));
        Ok(())
    }
}

/// The name of a run folder, or of what stands for it.
fn run_name(run: &Origin, model: &Model) -> String {
    let file = || model.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match run.folder().map(RunFolder::view) {
        Some(Ok(folder)) => folder.name(),
        _ => file(),
    }
}
