//! `vae-wgpu encode`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};
use safetensors::tensor::{Dtype, TensorView};

use super::eprintln_lossy;
use super::inference::{ImagesArgs, TrainedArgs};
use super::output::{bar, check_output};
use crate::app::io::atomic;
use crate::error::Error;
use crate::vae::inference::in_blocks;
use crate::vae::model::Mode;
use crate::vae::tensor_file::append_f32;

#[derive(Args, Debug)]
pub(super) struct EncodeArgs {
    /// Output file: tensors mu and log_std ([n, latent], F32) and label ([n], I64).
    #[arg(long, short, value_name = "FILE", default_value = "latents.safetensors", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

impl EncodeArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["safetensors"])?;
        let model = self.trained.load()?;
        let images = self.images.open(&self.trained, &model.config)?;
        let (count, latent) = (images.len(), model.config.latent_dim);
        let mut trained = self.trained.start(&model, &[(Mode::Encode, count)])?;
        let (mut mu, mut log_std) = (Vec::new(), Vec::new());
        let bar = bar(count, "encoding");
        in_blocks(images.as_ref(), trained.batch(), |block| {
            for row in trained.encode(block)?.chunks_exact(2 * latent) {
                append_f32(&mut mu, &row[..latent]);
                append_f32(&mut log_std, &row[latent..]);
                bar.inc(1);
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        let label: Vec<u8> = (0..count).flat_map(|i| i64::from(images.label(i)).to_le_bytes()).collect();
        let tensors = [
            ("mu", TensorView::new(Dtype::F32, vec![count, latent], &mu)?),
            ("log_std", TensorView::new(Dtype::F32, vec![count, latent], &log_std)?),
            ("label", TensorView::new(Dtype::I64, vec![count], &label)?),
        ];
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(Error::bug)?;
        atomic::create_parent(&self.out)?;
        atomic::save_atomic(&self.out, &bytes)?;
        eprintln_lossy(format_args!("latent dimensions of {count} images: {}", self.out.display()));
        Ok(ExitCode::SUCCESS)
    }
}
