//! `vae-wgpu interpolate`.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueHint};

use super::inference::{ClassArgs, ImagesArgs, Source, TrainedArgs, dims};
use super::output::{check_not_input, check_output, save_image};
use super::values::non_empty;
use crate::app::viz::caption::Labels;
use crate::app::viz::image_grid::{Grid, ImageBatch};
use crate::vae::inference::{Model, posterior_means};
use crate::vae::model::Mode;

#[derive(Args, Debug)]
#[command(
    override_usage = "vae-wgpu interpolate [OPTIONS] --from <I|FILE>\n                            --to <J|FILE> <RUN|FILE>"
)]
pub(super) struct InterpolateArgs {
    /// First image: its index in the data set, or a PNG or JPEG file.
    #[arg(long, value_name = "I|FILE", value_parser = non_empty::<Source>)]
    from: Source,
    /// Last image: its index in the data set, or a PNG or JPEG file.
    #[arg(long, value_name = "J|FILE", value_parser = non_empty::<Source>)]
    to: Source,
    /// Number of decoded images, including both ends.
    #[arg(long, value_name = "N", default_value_t = 9, value_parser = clap::value_parser!(u32).range(2..=1000))]
    steps: u32,
    /// Output file: the decoded images in rows, labelled with their share of the way, and the originals at both ends.
    #[arg(long, short, value_name = "FILE", default_value = "interpolation.png", value_hint = ValueHint::FilePath)]
    out: PathBuf,
    #[command(flatten)]
    class: ClassArgs,
    #[command(flatten)]
    trained: TrainedArgs,
    #[command(flatten)]
    images: ImagesArgs,
}

/// Returns the point at share `t` of the way from `a` to `b` on a sphere around the origin (Shoemake, "Animating Rotation with Quaternion
/// Curves", 1985). Most of a Gaussian's mass lies near a sphere, which a straight line leaves.
fn slerp(a: &[f32], b: &[f32], t: f32) -> Vec<f32> {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let angle = (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()).clamp(-1.0, 1.0).acos();
    // Vectors in the same or in opposite directions, or of length zero, span no plane.
    let [from, to] =
        if angle.sin() > 1e-3 { [1.0 - t, t].map(|share| (share * angle).sin() / angle.sin()) } else { [1.0 - t, t] };
    a.iter().zip(b).map(|(a, b)| from * a + to * b).collect()
}

/// Returns an image with its class: `3 (cat)`; without one for a model without classes.
fn named(source: &Source, model: &Model, label: u8) -> String {
    match model.classes.get(usize::from(label)) {
        Some(class) => format!("{source} ({class})"),
        None => source.to_string(),
    }
}

/// Returns the columns of the grid for `count` images: one row if it is not too long, else rows of almost equal length.
fn columns(count: usize) -> usize {
    const MOST: usize = 12;
    count.div_ceil(count.div_ceil(MOST))
}

impl InterpolateArgs {
    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        check_output(&self.out, &["png"])?;
        let model = self.trained.load()?;
        check_not_input(&self.out, [&self.from, &self.to].into_iter().filter_map(Source::path))?;
        let (config, dims) = (&model.config, dims(&model.config));
        let ends = [("--from", &self.from), ("--to", &self.to)];
        let (pixels, labels) = Source::read(&ends, &self.images, &self.class, &self.trained, &model)?;
        let steps = self.steps as usize;
        let mut trained = self.trained.start(&model, &[(Mode::Encode, 2), (Mode::Decode, steps)])?;
        let mu = posterior_means(&trained.encode((&pixels, &labels))?, config.latent_dim);
        let (from, to) = mu.split_at(config.latent_dim);
        let z: Vec<f32> = (0..steps).flat_map(|step| slerp(from, to, step as f32 / (steps - 1) as f32)).collect();
        let ends = [&self.from, &self.to].into_iter().zip(&labels);
        let ends: Vec<String> = ends.map(|(source, label)| named(source, &model, *label)).collect();
        // The class changes halfway.
        let labels: Vec<u8> = (0..steps).map(|step| labels[usize::from(2 * step >= steps)]).collect();
        let (first, last) = pixels.split_at(pixels.len() / 2);
        let mut images = ImageBatch::from_bytes(first, dims)?;
        images.append(ImageBatch::from_floats(&trained.decode((&z, &labels))?, dims)?)?;
        images.append(ImageBatch::from_bytes(last, dims)?)?;
        let share = |step: usize| format!("{:.2}", step as f64 / (steps - 1) as f64);
        let original = || std::iter::once("original".to_owned());
        let names = original().chain((0..steps).map(share)).chain(original()).collect();
        let grid = Grid { foot: 20, ..Grid::of(columns(steps + 2), images.size().0) };
        let image = Labels { groups: names, ..Labels::default() }.draw(&grid, &images)?;
        let mut caption = self.trained.caption(&model, "interpolation");
        if [&self.from, &self.to].iter().any(|source| matches!(source, Source::Index(_))) {
            caption = caption.with("split", self.images.split());
        }
        for (key, end) in ["from", "to"].into_iter().zip(ends) {
            caption = caption.with(key, end);
        }
        let what = "interpolation, with the originals at both ends";
        save_image(&self.out, &caption.below(&image)?, &caption, what)?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_rows_are_broken_evenly() {
        assert_eq!([4, 11, 12, 13, 32, 1002].map(columns), [4, 11, 12, 7, 11, 12]);
    }

    #[test]
    fn interpolation_follows_the_sphere() {
        let (a, b) = ([3.0f32, 0.0, 0.0], [0.0f32, 3.0, 0.0]);
        for (t, want) in [(0.0, a), (1.0, b), (0.5, [4.5f32.sqrt(), 4.5f32.sqrt(), 0.0])] {
            let got = slerp(&a, &b, t);
            assert!(got.iter().zip(want).all(|(g, w)| (g - w).abs() < 1e-5), "{t}: {got:?}");
        }
        // No plane: a straight line.
        assert_eq!(slerp(&a, &[-3.0, 0.0, 0.0], 0.5), [0.0; 3]);
        assert_eq!(slerp(&a, &[0.0; 3], 0.5), [1.5, 0.0, 0.0]);
    }
}
