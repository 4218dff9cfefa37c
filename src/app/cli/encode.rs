//! `vae-wgpu encode`.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};
use safetensors::tensor::{Dtype, TensorView};

use super::inference::{ClassArgs, ImagesArgs, TrainedArgs, from_file, image_files};
use super::note;
use super::output::{bar, check_not_input, check_output, save_raw};
use crate::app::figures::counted;
use crate::app::io::atomic;
use crate::error::Error;
use crate::vae::inference::{Model, in_blocks};
use crate::vae::model::Mode;
use crate::vae::runner::Labelled;
use crate::vae::tensor_file::{Array, append_f32};

#[derive(Args, Debug)]
pub(super) struct EncodeArgs {
    /// PNG or JPEG files, or folders with such files at any depth, to encode instead of images of a data set; cropped to a square and resized.
    #[arg(value_name = "FILE|DIR", index = 2, conflicts_with_all = [
        "data", "image_size", "strict", "split", "train_limit", "val_limit",
    ], value_hint = ValueHint::AnyPath)]
    files: Vec<PathBuf>,
    /// Output file: .safetensors (tensors mu and log_std, [n, latent], F32, and label, [n], I64), .csv (a row per image), or .npy (mu alone).
    #[arg(long, short, value_name = "FILE", default_value = "latents.safetensors", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

/// Encoded images.
#[derive(Default)]
struct Latents {
    /// `[n, latent]` each.
    mu: Vec<f32>,
    log_std: Vec<f32>,
    /// Number and name of the class of each image; files have none.
    labels: Vec<(u8, String)>,
    /// Index of each image in its split, or its path.
    names: Vec<String>,
    /// Where the images come from: keys and values of the metadata.
    source: HashMap<String, String>,
}

impl EncodeArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["safetensors", "npy", "csv"])?;
        let model = self.trained.load()?;
        check_not_input(&self.out, [model.path.as_path()])?;
        let latents = if self.files.is_empty() { self.of_data_set(&model)? } else { self.of_files(&model)? };
        let (count, latent) = (latents.names.len(), model.config.latent_dim);
        match self.out.extension().unwrap_or_default().to_string_lossy().to_lowercase().as_str() {
            "npy" => save_raw(&self.out, "mu", Array { dims: vec![count, latent], data: latents.mu })?,
            "csv" => save(&self.out, latents.table(latent)?.as_bytes())?,
            _ => save(&self.out, &latents.tensors(latent, &model)?)?,
        }
        note(format_args!("latent dimensions of {}: {}", counted(count as u64, "image"), self.out.display()));
        Ok(ExitCode::SUCCESS)
    }

    fn of_data_set(&self, model: &Model) -> anyhow::Result<Latents> {
        self.class.of(model)?;
        let images = self.images.open(&self.trained, model)?;
        let count = images.len();
        let mut trained = self.trained.start(model, &[(Mode::Encode, count)])?;
        let class = |i| {
            let label = images.label(i);
            (label, images.classes().get(usize::from(label)).cloned().unwrap_or_default())
        };
        let mut latents = Latents {
            labels: (0..count).map(class).collect(),
            names: (0..count).map(|i| i.to_string()).collect(),
            source: [
                ("data".to_owned(), self.images.data(&self.trained)?),
                ("split".to_owned(), self.images.split().to_owned()),
            ]
            .into(),
            ..Latents::default()
        };
        let bar = bar(count, "encoding");
        in_blocks(images.as_ref(), trained.batch(), |block| {
            latents.add(&trained.encode(block)?, model.config.latent_dim);
            bar.set_position((latents.mu.len() / model.config.latent_dim) as u64);
            Ok(())
        })?;
        bar.finish_and_clear();
        Ok(latents)
    }

    fn of_files(&self, model: &Model) -> anyhow::Result<Latents> {
        let label = self.class.of_file(model)?;
        let class = model.classes.get(usize::from(label)).cloned().unwrap_or_default();
        let files = image_files(&self.files)?;
        let mut trained = self.trained.start(model, &[(Mode::Encode, files.len())])?;
        let mut latents = Latents { labels: vec![(label, class); files.len()], ..Latents::default() };
        let bar = bar(files.len(), "encoding");
        for block in files.chunks(trained.batch()) {
            let mut pixels = Vec::new();
            for file in block {
                pixels.extend(from_file(file, &model.config)?);
                latents.names.push(file.display().to_string());
            }
            let labels = vec![label; block.len()];
            latents.add(&trained.encode(Labelled { values: &pixels, labels: &labels })?, model.config.latent_dim);
            bar.inc(block.len() as u64);
        }
        bar.finish_and_clear();
        latents.source.insert("files".to_owned(), serde_json::to_string(&latents.names)?);
        Ok(latents)
    }
}

fn save(out: &Path, bytes: &[u8]) -> crate::Result<()> {
    atomic::create_parent(out)?;
    atomic::save_atomic(out, bytes)
}

impl Latents {
    /// Adds the outputs of the encoder for some images.
    fn add(&mut self, h: &[f32], latent: usize) {
        for row in h.chunks_exact(2 * latent) {
            let (mu, log_std) = row.split_at(latent);
            self.mu.extend_from_slice(mu);
            self.log_std.extend_from_slice(log_std);
        }
    }

    fn tensors(&self, latent: usize, model: &Model) -> anyhow::Result<Vec<u8>> {
        let count = self.names.len();
        let bytes = |values: &[f32]| {
            let mut bytes = Vec::new();
            append_f32(&mut bytes, values);
            bytes
        };
        let (mu, log_std) = (bytes(&self.mu), bytes(&self.log_std));
        let label: Vec<u8> = self.labels.iter().flat_map(|(label, _)| i64::from(*label).to_le_bytes()).collect();
        let tensors = [
            ("mu", TensorView::new(Dtype::F32, vec![count, latent], &mu)?),
            ("log_std", TensorView::new(Dtype::F32, vec![count, latent], &log_std)?),
            ("label", TensorView::new(Dtype::I64, vec![count], &label)?),
        ];
        let mut metadata = self.source.clone();
        metadata.insert("format".to_owned(), "pt".to_owned());
        metadata.insert("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        metadata.insert("model".to_owned(), model.path.display().to_string());
        Ok(safetensors::serialize(tensors, Some(metadata)).map_err(Error::bug)?)
    }

    /// A table with the columns `image`, `label`, `mu_0` and so on, and `log_std_0` and so on.
    fn table(&self, latent: usize) -> anyhow::Result<String> {
        let columns = |name: &str| (0..latent).map(|i| format!(",{name}_{i}")).collect::<String>();
        let mut table = format!("image,label{}{}\n", columns("mu"), columns("log_std"));
        let rows = self.mu.chunks_exact(latent).zip(self.log_std.chunks_exact(latent));
        for ((name, (_, class)), (mu, log_std)) in self.names.iter().zip(&self.labels).zip(rows) {
            write!(table, "{},{}", field(name), field(class))?;
            for value in mu.iter().chain(log_std) {
                write!(table, ",{value:?}")?;
            }
            table.push('\n');
        }
        Ok(table)
    }
}

/// Quotes a field of a CSV file if it needs quotes.
pub(super) fn field(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_where_csv_requires_it() {
        let fields = ["cat", "a,b.png", "5\" disk", ""].map(field);
        assert_eq!(fields, ["cat", "\"a,b.png\"", "\"5\"\" disk\"", ""]);
    }
}
