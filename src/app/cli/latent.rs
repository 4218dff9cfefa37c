//! `vae-wgpu latent`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, ValueHint};

use super::encode::field;
use super::inference::{ImagesArgs, TrainedArgs};
use super::note;
use super::output::{bar, check_output};
use crate::app::io::atomic;
use crate::app::viz::image_grid::save_png;
use crate::app::viz::latent_plots::{bars, scatter};
use crate::vae::eval::divergences;
use crate::vae::inference::in_blocks;
use crate::vae::model::Mode;
use crate::vae::pca::project;

#[derive(Args, Debug)]
pub(super) struct LatentArgs {
    /// Output file: the latent means of the images in two dimensions, colored by class. Beside it: their coordinates (.csv), and the KL
    /// divergence of each latent dimension (_kl.png).
    #[arg(long, short, value_name = "FILE", default_value = "latent.png", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

impl LatentArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["png"])?;
        let (table, kl_plot) = (self.out.with_extension("csv"), beside(&self.out, "_kl"));
        for path in [&table, &kl_plot] {
            check_output(path, &["csv", "png"])?;
        }
        let model = self.trained.load()?;
        let images = self.images.open(&self.trained, &model)?;
        let (count, latent) = (images.len(), model.config.latent_dim);
        let mut trained = self.trained.start(&model, &[(Mode::Encode, count)])?;
        let (mut mu, mut kl) = (Vec::with_capacity(count * latent), vec![0.0; latent]);
        let bar = bar(count, "encoding");
        in_blocks(images.as_ref(), trained.batch(), |block| {
            for row in trained.encode(block)?.chunks_exact(2 * latent) {
                mu.extend_from_slice(&row[..latent]);
                for (sum, kl) in kl.iter_mut().zip(divergences(row)) {
                    *sum += kl / count as f64;
                }
                bar.inc(1);
            }
            Ok(())
        })?;
        bar.finish_and_clear();
        let (places, explained) = project(&mu, latent)?;
        let mut rows = String::from("image,class,x,y\n");
        let mut points = Vec::with_capacity(count);
        for (i, [x, y]) in places.into_iter().enumerate() {
            let class = usize::from(images.label(i));
            writeln!(rows, "{i},{},{x},{y}", field(&images.classes()[class]))?;
            points.push((class, x, y));
        }
        let axis =
            |name: &str, share: f64| format!("{name} principal component, {:.0} % of the variance", 100.0 * share);
        let axes = [axis("first", explained[0]), axis("second", explained[1])];
        let title = format!("Latent means of {count} images");
        let [means, divergences] = [title.as_str(), "KL divergence of each latent dimension"]
            .map(|title| self.trained.caption(&model, title).with("split", self.images.split()));
        let plot = scatter(&means, [&axes[0], &axes[1]], images.classes(), &points)?;
        let divergence = bars(&divergences, ["dimensions, sorted", "nats per image"], &kl)?;
        atomic::create_parent(&self.out)?;
        atomic::save_atomic(&table, rows.as_bytes())?;
        save_png(&kl_plot, &divergence, &divergences)?;
        save_png(&self.out, &plot, &means)?;
        for (what, path) in [("latent means", &self.out), ("coordinates", &table), ("KL divergence", &kl_plot)] {
            note(format_args!("{what}: {}", path.display()));
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// `latent_kl.png` for `latent.png`.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}{suffix}.png"))
}
