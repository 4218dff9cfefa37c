//! `vae-wgpu sample`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::trained::{TrainedArgs, check_grid, dims, prepare, save_grid, say, square};
use super::values::from_zero;
use crate::checkpoint::{Array, TensorFile};
use crate::files;
use crate::model::Mode;
use crate::report::Pictures;
use crate::rng::{self, Purpose};

/// Draw new pictures from a trained model.
#[derive(Args, Debug)]
pub(super) struct SampleArgs {
    #[command(flatten)]
    trained: TrainedArgs,
    /// Pictures to draw.
    #[arg(short = 'n', long, default_value_t = 49, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Seed of the latent noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Standard deviation of the latent noise.
    #[arg(long, default_value_t = 1.0, value_parser = from_zero)]
    temperature: f64,
    /// Write the numbers (-1 to 1, [n, channels, height, width]) instead of a picture: .npy or .safetensors, as --out ends.
    #[arg(long)]
    raw: bool,
    /// Result [default: samples.png, with --raw samples.npy].
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl SampleArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let default = if self.raw { "samples.npy" } else { "samples.png" };
        let out = self.out.as_deref().unwrap_or(Path::new(default));
        let count = self.count as usize;
        prepare(out, if self.raw { &["npy", "safetensors"] } else { &["png"] })?;
        if !self.raw {
            check_grid(count)?;
        }
        let model = self.trained.load()?;
        let mut trained = self.trained.start(&model, &[(Mode::Decode, count)])?;
        let mut z = rng::normals(&mut rng::stream(self.seed, Purpose::Sample, 0), count * model.config.latent_dim);
        z.iter_mut().for_each(|z| *z *= self.temperature as f32);
        let means = trained.decode(&z)?;
        if self.raw {
            let [c, h, w] = dims(&model.config);
            save_raw(out, Array { dims: vec![count, c, h, w], data: means })?;
            say(format_args!("{count} samples: {}", out.display()));
        } else {
            let pictures = Pictures::from_floats(&means, dims(&model.config))?;
            save_grid(out, square(count), &pictures, "samples")?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// As a NumPy array, or as the tensor `samples` of a safetensors file.
fn save_raw(out: &Path, samples: Array) -> crate::Result<()> {
    if out.extension().is_some_and(|e| e.eq_ignore_ascii_case("npy")) {
        return files::save_atomic(out, &npy(&samples));
    }
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    TensorFile { metadata, tensors: [("samples".to_owned(), samples)].into() }.save(out)
}

/// A NumPy file, version 1.0: magic, length of the header, a Python dictionary padded to 64 bytes, the numbers.
fn npy(array: &Array) -> Vec<u8> {
    const PREFIX: usize = 10;
    let shape: String = array.dims.iter().map(|d| format!("{d}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape.trim_end());
    let length = (PREFIX + header.len() + 1).next_multiple_of(64) - PREFIX;
    header.push_str(&" ".repeat(length - header.len() - 1));
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(array.data.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}
