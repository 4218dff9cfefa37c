//! Plots of a run, drawn from its tables.

use std::collections::BTreeMap;

use image::RgbImage;

use super::canvas::{Anchor, Area, Canvas, FAINT, Paint, Point};
use super::caption::Caption;
use super::chart::{Axis, Frame, Key, dashes, legend, round_step, title};
use crate::error::Result;
use crate::vae::train::rows::{EpochRow, StepRow};

/// Width and height of a plot in pixels.
pub(super) const SIZE: (u32, u32) = (1200, 760);
/// Area between the axes of a plot with one panel.
pub(super) const PANEL: Area = [92.0, 92.0, 1172.0, 694.0];
/// The same of two panels with a common horizontal axis.
const UPPER: Area = [92.0, 92.0, 1172.0, 428.0];
const LOWER: Area = [92.0, 486.0, 1172.0, 694.0];

pub(super) const BLUE: [u8; 3] = [31, 119, 180];
pub(super) const ORANGE: [u8; 3] = [240, 140, 40];
const GREEN: [u8; 3] = [44, 145, 60];

/// Largest number of points per curve; screens show no more.
const MAX_POINTS: usize = 2000;

/// Plots the losses over the steps, raw and smoothed, and the validation losses of each epoch. The KL term has its own panel, because it is
/// much smaller. The title of the caption stands above the plot, and its facts on the right.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the embedded font is invalid.
pub fn training_loss(caption: &Caption, steps: &[StepRow], epochs: &[EpochRow]) -> Result<RgbImage> {
    let ends = ends(steps);
    let curve = |color, dashed, of: fn(&StepRow) -> f32, val: fn(&EpochRow) -> f64| {
        let validation = epochs.iter().filter_map(|row| Some((*ends.get(&row.epoch)?, val(row))));
        let (points, marks) = (points(steps, |r| f64::from(of(r))), finite(validation));
        Curve { color, smooth: true, dashed, points, marks }
    };
    // Last and dashed: for a small KL term, the total lies on the reconstruction.
    let losses =
        vec![curve(ORANGE, false, |r| r.recon, |r| r.val_recon), curve(BLUE, true, |r| r.total, |r| r.val_total)];
    let kl = vec![curve(GREEN, false, |r| r.kl, |r| r.val_kl)];
    let mut canvas = Canvas::new(SIZE);
    title(&mut canvas, caption)?;
    let upper = Panel { x: "", y: "nats per dimension", log: false, curves: losses, area: UPPER };
    let frame = upper.draw(&mut canvas, &ends)?;
    name_epochs(&mut canvas, &frame, &ends)?;
    let (total, recon, dot) = (Paint(BLUE, 1.0), Paint(ORANGE, 1.0), FAINT);
    let mut entries = vec![(Key::Dashes(total), "total"), (Key::Line(recon), "reconstruction")];
    entries.extend((!epochs.is_empty()).then_some((Key::Dot(dot), "validation")));
    legend(&mut canvas, UPPER, upper.is_freer_below(&frame), &entries)?;
    Panel { x: "step", y: "KL divergence, nats per dimension", log: false, curves: kl, area: LOWER }
        .draw(&mut canvas, &ends)?;
    Ok(canvas.finish())
}

/// Plots the global gradient norm before clipping over the steps, on a logarithmic axis. `caption` as for [`training_loss`].
///
/// # Errors
/// As [`training_loss`].
pub fn grad_norm(caption: &Caption, steps: &[StepRow]) -> Result<RgbImage> {
    let mut points = points(steps, |row| f64::from(row.grad_norm));
    points.retain(|p| p.1 > 0.0);
    let curve = Curve { color: BLUE, smooth: true, dashed: false, points, marks: Vec::new() };
    single(caption, "L2 norm of all gradients, before clipping", true, curve, steps)
}

/// Plots the learning rate over the steps. `caption` as for [`training_loss`].
///
/// # Errors
/// As [`training_loss`].
pub fn learning_rate(caption: &Caption, steps: &[StepRow]) -> Result<RgbImage> {
    let points = points(steps, |row| f64::from(row.lr));
    let curve = Curve { color: BLUE, smooth: false, dashed: false, points, marks: Vec::new() };
    single(caption, "", false, curve, steps)
}

/// Draws a plot of one curve.
fn single(caption: &Caption, y: &str, log: bool, curve: Curve, steps: &[StepRow]) -> Result<RgbImage> {
    let ends = ends(steps);
    let mut canvas = Canvas::new(SIZE);
    title(&mut canvas, caption)?;
    let panel = Panel { x: "step", y, log, curves: vec![curve], area: PANEL };
    let frame = panel.draw(&mut canvas, &ends)?;
    name_epochs(&mut canvas, &frame, &ends)?;
    Ok(canvas.finish())
}

/// Returns the step at which each epoch ends; a diverged step ends none.
fn ends(steps: &[StepRow]) -> BTreeMap<u64, f64> {
    steps.iter().filter(|row| row.total.is_finite()).map(|row| (row.epoch, row.step as f64)).collect()
}

/// Returns the epochs whose ends are marked: up to 20, at round numbers.
fn marked(ends: &BTreeMap<u64, f64>) -> impl Iterator<Item = (u64, f64)> {
    let last = ends.keys().last().copied().unwrap_or(0);
    let every = round_step(last as f64 / 20.0).max(1.0) as u64;
    ends.iter().filter(move |(epoch, _)| epoch.is_multiple_of(every)).map(|(epoch, step)| (*epoch, *step))
}

/// Writes the numbers of epochs above their ends.
fn name_epochs(canvas: &mut Canvas, frame: &Frame, ends: &BTreeMap<u64, f64>) -> Result<()> {
    let [left, top, ..] = frame.area;
    let mut named = marked(ends).peekable();
    if named.peek().is_some() {
        canvas.text("epoch", (left - 12.0, top - 14.0), Anchor::Right, 14.0, FAINT)?;
    }
    for (epoch, step) in named {
        let x = frame.at((step, 0.0)).0;
        canvas.text(&epoch.to_string(), (x, top - 14.0), Anchor::Middle, 14.0, FAINT)?;
    }
    Ok(())
}

fn points(steps: &[StepRow], value: impl Fn(&StepRow) -> f64) -> Vec<Point> {
    finite(steps.iter().map(|row| (row.step as f64, value(row))))
}

/// Keeps the points within the range of `f32`.
pub(super) fn finite(points: impl Iterator<Item = Point>) -> Vec<Point> {
    points.filter(|p| p.1.abs() <= f64::from(f32::MAX)).collect()
}

/// One quantity over the steps.
struct Curve {
    color: [u8; 3],
    /// Whether to draw the raw values pale, with their moving mean on top.
    smooth: bool,
    dashed: bool,
    points: Vec<Point>,
    /// Validation values, drawn as dots.
    marks: Vec<Point>,
}

/// A pair of axes with curves.
struct Panel<'a> {
    x: &'a str,
    y: &'a str,
    log: bool,
    curves: Vec<Curve>,
    area: Area,
}

impl Panel<'_> {
    /// Returns the range of the y axis: all marks, and the curves without the highest 1 % of their points, so that the first steps of a run do
    /// not flatten the rest. A logarithmic axis has room for all points.
    fn range(&self) -> (f64, f64) {
        let mut values: Vec<f64> = Vec::new();
        for curve in &self.curves {
            let mut own: Vec<f64> = curve.points.iter().map(|p| p.1).collect();
            own.sort_by(f64::total_cmp);
            let kept = if curve.smooth && !self.log { own.len() - own.len() / 100 } else { own.len() };
            values.extend(own.iter().take(kept).chain(curve.marks.iter().map(|(_, y)| y)));
        }
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        match (self.log, low <= high) {
            (_, false) => (0.1, 1.0),
            (true, true) => {
                let margin = (high / low).powf(0.04).max(1.02);
                (low / margin, high * margin)
            }
            (false, true) => {
                let margin = (0.04 * (high - low)).max(1e-3 * high.abs()).max(1e-9);
                (low - margin, high + margin)
            }
        }
    }

    /// Draws the axes, the ends of epochs and the curves.
    fn draw(&self, canvas: &mut Canvas, ends: &BTreeMap<u64, f64>) -> Result<Frame> {
        let (low, high) = self.range();
        let last = ends.values().copied().fold(1.0, f64::max);
        let y = if self.log { Axis::log(low, high) } else { Axis::linear(low, high, 7) };
        let frame = Frame { area: self.area, x: Axis::counts(1.01 * last, 10), y };
        frame.draw(canvas, self.x, self.y)?;
        let [_, top, _, bottom] = self.area;
        for (_, step) in marked(ends) {
            let x = frame.at((step, 0.0)).0.floor();
            for y in (top as u32..bottom as u32).step_by(6) {
                canvas.fill([x, f64::from(y), x + 1.0, f64::from(y) + 2.0], Paint([150; 3], 1.0));
            }
        }
        let pixels = |points: Vec<Point>| points.into_iter().map(|p| frame.at(p)).collect::<Vec<_>>();
        for curve in self.curves.iter().filter(|curve| curve.smooth) {
            canvas.stroke(&pixels(outline(&curve.points)), 1.0, Paint(curve.color, 0.4), self.area);
        }
        for curve in &self.curves {
            let points = if curve.smooth { moving_mean(&curve.points) } else { curve.points.clone() };
            let points = pixels(every_nth(points, MAX_POINTS));
            let parts = if curve.dashed { dashes(&points) } else { vec![points] };
            for part in parts {
                canvas.stroke(&part, 3.0, Paint(curve.color, 1.0), self.area);
            }
        }
        for curve in &self.curves {
            for &mark in &curve.marks {
                canvas.disc(frame.at(mark), 7.0, Paint([255; 3], 1.0));
                canvas.disc(frame.at(mark), 5.0, Paint(curve.color, 1.0));
            }
        }
        Ok(frame)
    }

    /// Returns whether a legend covers less in the lower right corner than in the upper one.
    fn is_freer_below(&self, frame: &Frame) -> bool {
        let covered = |below: bool| {
            let inside = |&&(x, y): &&Point| {
                let (x, y) = (frame.x.share(x), frame.y.share(y));
                x > 0.8 && (0.0..=1.0).contains(&y) && if below { y < 0.35 } else { y > 0.65 }
            };
            let curves = self.curves.iter().flat_map(|c| outline(&c.points)).filter(|p| inside(&p)).count();
            // A hidden dot is worse than hidden points of a curve.
            let marks = self.curves.iter().flat_map(|c| &c.marks).filter(inside).count();
            curves + MAX_POINTS * marks
        };
        covered(true) < covered(false)
    }
}

/// Keeps the minimum and maximum of each of [`MAX_POINTS`] / 2 intervals, in order: the outline of a noisy curve.
fn outline(points: &[Point]) -> Vec<Point> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let stretch = |points: &[Point]| {
        let extreme = |sign: f64| points.iter().copied().max_by(|a, b| (sign * a.1).total_cmp(&(sign * b.1)));
        let mut pair: Vec<Point> = [extreme(-1.0), extreme(1.0)].into_iter().flatten().collect();
        pair.sort_by(|a, b| a.0.total_cmp(&b.0));
        pair
    };
    points.chunks(points.len().div_ceil(MAX_POINTS / 2)).flat_map(stretch).collect()
}

/// Thins evenly to at most `most` points, from the end, so that the last point is kept.
pub(super) fn every_nth(points: Vec<Point>, most: usize) -> Vec<Point> {
    let every = points.len().div_ceil(most).max(1);
    let mut kept: Vec<Point> = points.into_iter().rev().step_by(every).collect();
    kept.reverse();
    kept
}

/// Returns the moving mean over about 1/60 of the points, at most 61, half of them on each side.
pub(super) fn moving_mean(points: &[Point]) -> Vec<Point> {
    let reach = (points.len() / 120).min(30);
    let mean = |(i, &(x, _)): (usize, &Point)| {
        let window = &points[i.saturating_sub(reach)..(i + reach + 1).min(points.len())];
        (x, window.iter().map(|p| p.1).sum::<f64>() / window.len() as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(steps: u64, per_epoch: u64) -> (Vec<StepRow>, Vec<EpochRow>) {
        let noise =
            |step: u64| ((step.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as f64 / (1u64 << 24) as f64 - 0.5) as f32;
        let row = |step: u64| {
            let t = step as f32;
            let kl = 0.012 * (1.0 - (-t / 300.0).exp()) + 0.001 * noise(step + 7);
            let recon = 0.945 + 0.6 * (-t / 60.0).exp() + 0.02 * noise(step);
            let grad_norm = 0.05 + 3.0 * (-t / 200.0).exp() * (1.0 + noise(step + 3));
            let lr = 0.01 * (0.01 + 0.99 * (step.min(1000) as f64) / 1000.0);
            StepRow {
                step,
                epoch: 1 + step / per_epoch,
                total: recon + kl,
                recon,
                kl,
                grad_norm,
                lr: lr as f32,
                images_per_s: 60.0,
                elapsed_s: t,
            }
        };
        let epoch = |epoch: u64| {
            let fall = 0.02 / epoch as f64;
            EpochRow { epoch, val_total: 0.957 + fall, val_recon: 0.945 + fall, val_kl: 0.012, ..EpochRow::default() }
        };
        ((0..steps).map(row).collect(), (1..=steps / per_epoch).map(epoch).collect())
    }

    fn caption() -> Caption {
        Caption::new("Plot").with("run", "test")
    }

    fn ink(image: &RgbImage) -> usize {
        image.pixels().filter(|p| p.0 != [255; 3]).count()
    }

    #[test]
    fn runs_of_any_length_are_plotted() {
        for steps in [0, 1, 2, 150, 9775] {
            let (rows, epochs) = run(steps, 391.min(steps.max(1)));
            for (name, plot) in [
                ("training_loss", training_loss(&caption(), &rows, &epochs).unwrap()),
                ("grad_norm", grad_norm(&caption(), &rows).unwrap()),
                ("learning_rate", learning_rate(&caption(), &rows).unwrap()),
            ] {
                assert_eq!(plot.dimensions(), SIZE);
                assert!(ink(&plot) > 5000, "{name} of {steps}");
                if let Ok(dir) = std::env::var("PLOTS") {
                    plot.save(format!("{dir}/{name}_{steps}.png")).unwrap();
                }
            }
        }
    }

    /// Returns the columns of the row of pixels `y` in which a color occurs.
    fn columns_with(image: &RgbImage, y: u32, color: [u8; 3]) -> Vec<u32> {
        (0..image.width()).filter(|&x| image.get_pixel(x, y).0 == color).collect()
    }

    fn count(image: &RgbImage, color: [u8; 3]) -> usize {
        image.pixels().filter(|pixel| pixel.0 == color).count()
    }

    #[test]
    fn curves_beyond_the_axis_are_cut_off_at_its_border() {
        let (mut rows, _) = run(300, 300);
        rows[150].kl = 9.0;
        let plot = training_loss(&caption(), &rows, &[]).unwrap();
        let top = columns_with(&plot, LOWER[1] as u32 + 1, GREEN);
        assert!((2..20).contains(&top.len()), "{top:?}");
        let above = (UPPER[3] as u32 + 30..LOWER[1] as u32).any(|y| !columns_with(&plot, y, GREEN).is_empty());
        assert!(!above, "a curve leaves its panel");
    }

    #[test]
    fn total_and_reconstruction_are_visible_where_they_coincide() {
        let (mut rows, _) = run(300, 300);
        for row in &mut rows {
            row.total = row.recon;
        }
        let plot = training_loss(&caption(), &rows, &[]).unwrap();
        let (total, recon) = (count(&plot, BLUE), count(&plot, ORANGE));
        assert!(total > 500 && recon > 500 && total < 3 * recon && recon < 3 * total, "{total} {recon}");
    }

    #[test]
    fn legends_are_drawn_only_for_several_curves() {
        let (rows, epochs) = run(300, 100);
        // The edges of the box.
        let legend = |plot: RgbImage| (0..SIZE.1).any(|y| columns_with(&plot, y, [205; 3]).len() > 60);
        assert!(legend(training_loss(&caption(), &rows, &epochs).unwrap()));
        assert!(!legend(grad_norm(&caption(), &rows).unwrap()) && !legend(learning_rate(&caption(), &rows).unwrap()));
    }

    #[test]
    fn legend_stands_where_it_covers_no_validation_loss() {
        // The losses of the first steps are high and that of the epoch is low, or the other way round.
        for (steps, validation) in [(9.0, 1.0), (1.0, 9.0)] {
            let (mut rows, _) = run(3, 3);
            for row in &mut rows {
                (row.total, row.recon) = (steps, steps);
            }
            let epoch = EpochRow { epoch: 1, val_total: validation, val_recon: validation, ..EpochRow::default() };
            let plot = training_loss(&caption(), &rows, &[epoch]).unwrap();
            let dot = (1100..1172).flat_map(|x| (92..428).map(move |y| (x, y)));
            let blue = dot.filter(|&(x, y)| plot.get_pixel(x, y).0 == BLUE).count();
            assert!(blue > 40, "{blue}");
        }
    }

    #[test]
    fn values_of_single_steps_are_visible_behind_their_mean() {
        let plot = grad_norm(&caption(), &run(2000, 500).0).unwrap();
        let tinted = |[r, _, b]: [u8; 3]| r > BLUE[0] + 40 && b > r.saturating_add(15);
        let pale = plot.pixels().filter(|pixel| tinted(pixel.0)).count();
        let mean = count(&plot, BLUE);
        assert!(pale > 2000 && mean > 1000, "{pale} {mean}");
    }

    #[test]
    fn ends_of_epochs_and_the_run_are_named() {
        let (rows, _) = run(400, 100);
        let plot = |rows: &[StepRow], run: &str| learning_rate(&Caption::new("Plot").with("run", run), rows).unwrap();
        let four = plot(&rows, "a");
        // The marks begin at the upper end of the axis, and numbers are above them.
        let marks = columns_with(&four, PANEL[1] as u32, [150; 3]);
        assert_eq!(marks.len(), 4, "{marks:?}");
        let number = |x: u32| (PANEL[1] as u32 - 22..PANEL[1] as u32 - 6).any(|y| four.get_pixel(x, y).0[0] < 180);
        assert!(marks.iter().all(|&x| (x - 6..x + 6).any(number)));
        // The name of the run is in the upper right corner, and nothing else depends on it.
        let other = plot(&rows, "b");
        let differ: Vec<_> =
            four.enumerate_pixels().filter(|(x, y, pixel)| other.get_pixel(*x, *y) != *pixel).collect();
        assert!(!differ.is_empty() && differ.iter().all(|(x, y, _)| *x > 1000 && *y < 50));
        // Many epochs are marked at round numbers.
        let (many, _) = run(2000, 20);
        assert_eq!(columns_with(&plot(&many, "a"), PANEL[1] as u32, [150; 3]).len(), 20);
    }

    #[test]
    fn non_finite_values_are_omitted() {
        let (mut rows, mut epochs) = run(500, 100);
        let expected = training_loss(&caption(), &rows, &epochs).unwrap();
        rows.push(StepRow {
            step: 500,
            epoch: 6,
            total: f32::NAN,
            recon: f32::INFINITY,
            kl: f32::NAN,
            ..StepRow::default()
        });
        epochs.push(EpochRow {
            epoch: 6,
            val_total: f64::NAN,
            val_recon: f64::NAN,
            val_kl: f64::NAN,
            ..EpochRow::default()
        });
        assert!(training_loss(&caption(), &rows, &epochs).unwrap() == expected);
        assert!(grad_norm(&caption(), &rows).is_ok());
    }

    #[test]
    fn thinning_keeps_extremes_order_and_the_last_point() {
        let points: Vec<Point> =
            (0..9775).map(|i| (f64::from(i), if i == 4321 { 9.0 } else { f64::from(i % 7) })).collect();
        let thin = outline(&points);
        assert!(thin.len() <= MAX_POINTS && thin.contains(&(4321.0, 9.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
        let mean = every_nth(moving_mean(&points), MAX_POINTS);
        assert!(mean.len() <= MAX_POINTS && mean.is_sorted_by(|a, b| a.0 < b.0));
        let last = mean.last().unwrap();
        assert!(last.0 == 9774.0 && (last.1 - 3.0).abs() < 0.2);
        assert_eq!(outline(&points[..10]), points[..10]);
    }
}
