//! Plots of a run, drawn from its tables. The embedded font makes them independent of installed fonts.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::LazyLock;

use image::RgbImage;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::{Shift, combinators::IntoLogRange};
use plotters::prelude::*;
use plotters::style::register_font;

use crate::error::{Error, Result};
use crate::vae::train::rows::{EpochRow, StepRow};

/// ASCII subset of DejaVu Sans 2.37 (its licence is in the same folder): `pyftsubset DejaVuSans.ttf --unicodes=20-7E,B7,D7,2013 --layout-features=''
/// --no-hinting`.
const FONT: &[u8] = include_bytes!("../../../assets/DejaVuSans-ascii.ttf");
/// Name under which the font is registered.
pub(super) const INFO: &str = "sans-serif";

const SIZE: (u32, u32) = (1200, 760);
pub(super) const INK: RGBColor = RGBColor(51, 51, 51);
pub(super) const BLUE: RGBColor = RGBColor(31, 119, 180);
pub(super) const ORANGE: RGBColor = RGBColor(230, 120, 20);
const GREEN: RGBColor = RGBColor(44, 145, 60);

/// Largest number of points per curve; screens show no more.
const MAX_POINTS: usize = 2000;
/// Share of the points over which a moving mean extends.
const SMOOTH: f64 = 0.005;

type Canvas<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
pub(super) type Point = (f64, f64);

/// Plots the losses over the steps, raw and smoothed, and the validation losses of each epoch. The KL term has its own panel, because it is
/// much smaller.
///
/// # Errors
/// [`Error::Bug`] if the drawing library fails.
pub fn training_loss(steps: &[StepRow], epochs: &[EpochRow]) -> Result<RgbImage> {
    let ends: BTreeMap<u64, f64> = steps.iter().map(|row| (row.epoch, row.step as f64)).collect();
    let curve = |name, color, of: fn(&StepRow) -> f32, val: fn(&EpochRow) -> f64| {
        let validation = epochs.iter().filter_map(|row| Some((*ends.get(&row.epoch)?, val(row))));
        Curve { name, color, smooth: true, points: points(steps, |r| f64::from(of(r))), marks: finite(validation) }
    };
    let upper = Panel {
        title: "Training loss",
        x: "",
        y: "loss per dimension",
        log: false,
        curves: vec![
            curve("total", BLUE, |r| r.total, |r| r.val_total),
            curve("reconstruction", ORANGE, |r| r.recon, |r| r.val_recon),
        ],
    };
    let lower = Panel {
        title: "",
        x: "step",
        y: "KL per dimension",
        log: false,
        curves: vec![curve("KL", GREEN, |r| r.kl, |r| r.val_kl)],
    };
    draw(|canvas| {
        let (top, bottom) = canvas.split_vertically(SIZE.1 * 3 / 5);
        upper.draw(&top)?;
        lower.draw(&bottom)
    })
}

/// Plots the global gradient norm before clipping over the steps, on a logarithmic axis.
///
/// # Errors
/// [`Error::Bug`] if the drawing library fails.
pub fn grad_norm(steps: &[StepRow]) -> Result<RgbImage> {
    let mut points = points(steps, |row| f64::from(row.grad_norm));
    points.retain(|p| p.1 > 0.0);
    let curves = vec![Curve { name: "gradient norm", color: BLUE, smooth: true, points, marks: Vec::new() }];
    draw(|canvas| {
        Panel { title: "Gradient norm", x: "step", y: "global norm, before clipping", log: true, curves }.draw(canvas)
    })
}

/// Plots the learning rate over the steps.
///
/// # Errors
/// [`Error::Bug`] if the drawing library fails.
pub fn learning_rate(steps: &[StepRow]) -> Result<RgbImage> {
    let points = points(steps, |row| f64::from(row.lr));
    let curves = vec![Curve { name: "learning rate", color: BLUE, smooth: false, points, marks: Vec::new() }];
    draw(|canvas| Panel { title: "Learning rate", x: "step", y: "learning rate", log: false, curves }.draw(canvas))
}

fn points(steps: &[StepRow], value: impl Fn(&StepRow) -> f64) -> Vec<Point> {
    finite(steps.iter().map(|row| (row.step as f64, value(row))))
}

/// Keeps the points within the range of `f32`; the length of an axis between larger ones overflows.
pub(super) fn finite(points: impl Iterator<Item = Point>) -> Vec<Point> {
    points.filter(|p| p.1.abs() <= f64::from(f32::MAX)).collect()
}

/// One quantity over the steps.
struct Curve {
    name: &'static str,
    color: RGBColor,
    /// Whether to draw the raw values pale, with their moving mean on top.
    smooth: bool,
    points: Vec<Point>,
    /// Validation values, drawn as dots.
    marks: Vec<Point>,
}

/// A pair of axes with curves.
struct Panel {
    title: &'static str,
    x: &'static str,
    y: &'static str,
    log: bool,
    curves: Vec<Curve>,
}

impl Panel {
    fn draw(&self, canvas: &Canvas<'_>) -> Result<()> {
        let (low, high) = self.range();
        if self.log {
            // Round to whole decades, which have ticks.
            let (first, last) = (low.log10().floor(), high.log10().ceil());
            let (low, high) = (10f64.powf(first), 10f64.powf(last.max(first + 1.0)));
            let label = |v: &f64| if (1e-3..1e4).contains(v) { format!("{v}") } else { format!("{v:e}") };
            self.draw_on(canvas, (low..high).log_scale(), (low, high), &label)
        } else {
            let digits = (1.5 - (high - low).log10()).ceil().clamp(0.0, 9.0) as usize;
            self.draw_on(canvas, low..high, (low, high), &|v: &f64| format!("{v:.digits$}"))
        }
    }

    /// Returns the range of the y axis: all marks, and the curves without the highest 1 % of their points, so that the first steps of a run do
    /// not flatten the rest.
    fn range(&self) -> (f64, f64) {
        let mut values: Vec<f64> = Vec::new();
        let mut high = f64::NEG_INFINITY;
        for curve in &self.curves {
            let mut own: Vec<f64> = curve.points.iter().map(|p| p.1).collect();
            own.sort_by(f64::total_cmp);
            let kept = if curve.smooth { own.len() - own.len() / 100 } else { own.len() };
            values.extend(own.iter().take(kept).chain(curve.marks.iter().map(|(_, y)| y)));
        }
        let mut low = f64::INFINITY;
        for value in values {
            (low, high) = (low.min(value), high.max(value));
        }
        match (self.log, low <= high) {
            (true, true) => (low, high),
            (_, false) => (0.1, 1.0),
            (false, true) => {
                let margin = (0.04 * (high - low)).max(1e-3 * high.abs()).max(1e-9);
                (low - margin, high + margin)
            }
        }
    }

    /// Returns the right corner that the curves do not end in.
    fn legend_corner(&self, (low, high): (f64, f64)) -> SeriesLabelPosition {
        let height = |y: f64| if self.log { (y / low).ln() / (high / low).ln() } else { (y - low) / (high - low) };
        let ends = || self.curves.iter().flat_map(|c| &c.points[c.points.len() * 3 / 4..]);
        let above = ends().filter(|p| height(p.1) > 0.5).count();
        if 2 * above > ends().count() { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperRight }
    }

    fn draw_on<Y>(&self, canvas: &Canvas<'_>, y: Y, range: (f64, f64), y_label: &dyn Fn(&f64) -> String) -> Result<()>
    where
        Y: AsRangedCoord<Value = f64>,
        Y::CoordDescType: ValueFormatter<f64>,
    {
        let last = self.curves.iter().filter_map(|c| c.points.last()).map(|p| p.0).fold(1.0, f64::max);
        let inside = |&(x, y): &Point| (x, y.clamp(range.0, range.1));
        let text = |size: u32| (INFO, size).into_font().color(&INK);
        let mut builder = ChartBuilder::on(canvas);
        builder
            .margin(14)
            .margin_right(28)
            .x_label_area_size(if self.x.is_empty() { 30 } else { 56 })
            .y_label_area_size(92);
        if !self.title.is_empty() {
            builder.caption(self.title, text(26));
        }
        let mut chart = builder.build_cartesian_2d(0.0..last * 1.01, y).map_err(failed)?;
        chart
            .configure_mesh()
            .axis_style(INK.mix(0.6))
            .bold_line_style(INK.mix(0.14))
            .light_line_style(if self.log { INK.mix(0.05) } else { TRANSPARENT })
            .label_style(text(17))
            .axis_desc_style(text(19))
            .x_desc(self.x)
            .y_desc(self.y)
            .x_labels(10)
            .y_labels(7)
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&y_label)
            .draw()
            .map_err(failed)?;
        for curve in &self.curves {
            let line = |points: Vec<Point>, style: ShapeStyle| {
                let visible = points.into_iter().skip_while(|p| p.1 > range.1);
                LineSeries::new(visible.map(|p| inside(&p)), style)
            };
            let solid = curve.color.stroke_width(3);
            if curve.smooth {
                let pale = curve.color.mix(0.25).stroke_width(1);
                chart.draw_series(line(outline(&curve.points), pale)).map_err(failed)?;
            }
            let points = if curve.smooth { moving_mean(&curve.points, SMOOTH) } else { curve.points.clone() };
            let key = move |(x, y)| PathElement::new([(x, y), (x + 26, y)], solid);
            chart
                .draw_series(line(every_nth(points, MAX_POINTS), solid))
                .map_err(failed)?
                .label(curve.name)
                .legend(key);
            if !curve.marks.is_empty() {
                let (color, ring) = (curve.color, WHITE.stroke_width(1));
                let dot = move |center: (i32, i32)| {
                    EmptyElement::at(center)
                        + Circle::new((0, 0), 7, WHITE.filled())
                        + Circle::new((0, 0), 5, color.filled())
                };
                let dots = curve.marks.iter().map(|mark| {
                    EmptyElement::at(inside(mark))
                        + Circle::new((0, 0), 7, WHITE.filled())
                        + Circle::new((0, 0), 5, color.filled())
                        + Circle::new((0, 0), 7, ring)
                });
                let name = format!("{}, validation", curve.name);
                chart.draw_series(dots).map_err(failed)?.label(name).legend(move |(x, y)| dot((x + 13, y)));
            }
        }
        chart
            .configure_series_labels()
            .position(self.legend_corner(range))
            .margin(14)
            .legend_area_size(36)
            .label_font(text(18))
            .background_style(WHITE.mix(0.85))
            .border_style(INK.mix(0.25))
            .draw()
            .map_err(failed)
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

/// Returns the exponential moving mean over about `share` of the points, at most 100, with bias correction.
pub(super) fn moving_mean(points: &[Point], share: f64) -> Vec<Point> {
    let keep = 1.0 - 1.0 / (points.len() as f64 * share).clamp(1.0, 100.0);
    let (mut sum, mut weight) = (0.0, 0.0);
    let mean = |&(x, y): &Point| {
        (sum, weight) = (keep * sum + y, keep * weight + 1.0);
        (x, sum / weight)
    };
    points.iter().map(mean).collect()
}

/// Makes the embedded font known to the drawing library.
pub(super) fn register_fonts() -> Result<()> {
    static REGISTERED: LazyLock<bool> = LazyLock::new(|| register_font(INFO, FontStyle::Normal, FONT).is_ok());
    if *REGISTERED { Ok(()) } else { Err(Error::bug("the embedded font is invalid")) }
}

pub(super) fn draw(paint: impl FnOnce(&Canvas<'_>) -> Result<()>) -> Result<RgbImage> {
    register_fonts()?;
    let mut pixels = vec![255; (SIZE.0 * SIZE.1 * 3) as usize];
    let canvas = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
    paint(&canvas)?;
    canvas.present().map_err(failed)?;
    drop(canvas);
    RgbImage::from_raw(SIZE.0, SIZE.1, pixels).ok_or_else(|| Error::bug("a plot has an unexpected size"))
}

/// Drawing into memory fails only through a bug in this file.
pub(super) fn failed(error: impl Display) -> Error {
    Error::bug(format!("plot: {error}"))
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
            let lr = 0.01 * (0.01 + 0.99 * (step.min(1000) as f32) / 1000.0);
            StepRow {
                step,
                epoch: 1 + (step - 1) / per_epoch,
                total: recon + kl,
                recon,
                kl,
                grad_norm,
                lr,
                ..StepRow::default()
            }
        };
        let epoch = |epoch: u64| {
            let fall = 0.02 / epoch as f64;
            EpochRow { epoch, val_total: 0.957 + fall, val_recon: 0.945 + fall, val_kl: 0.012, ..EpochRow::default() }
        };
        ((1..=steps).map(row).collect(), (1..=steps / per_epoch).map(epoch).collect())
    }

    fn ink(image: &RgbImage) -> usize {
        image.pixels().filter(|p| p.0 != [255; 3]).count()
    }

    #[test]
    fn runs_of_any_length_are_plotted() {
        for steps in [0, 1, 2, 150, 9775] {
            let (rows, epochs) = run(steps, 391.min(steps.max(1)));
            for (name, plot) in [
                ("training_loss", training_loss(&rows, &epochs).unwrap()),
                ("grad_norm", grad_norm(&rows).unwrap()),
                ("learning_rate", learning_rate(&rows).unwrap()),
            ] {
                assert_eq!(plot.dimensions(), SIZE);
                assert!(ink(&plot) > 5000, "{name} of {steps}");
                if let Ok(dir) = std::env::var("PLOTS") {
                    plot.save(format!("{dir}/{name}_{steps}.png")).unwrap();
                }
            }
        }
    }

    #[test]
    fn non_finite_values_are_omitted() {
        let (mut rows, mut epochs) = run(500, 100);
        let expected = training_loss(&rows, &epochs).unwrap();
        rows.push(StepRow {
            step: 501,
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
        assert_eq!(training_loss(&rows, &epochs).unwrap(), expected);
        assert!(grad_norm(&rows).is_ok());
    }

    #[test]
    fn thinning_keeps_extremes_order_and_the_last_point() {
        let points: Vec<Point> =
            (0..9775).map(|i| (f64::from(i), if i == 4321 { 9.0 } else { f64::from(i % 7) })).collect();
        let thin = outline(&points);
        assert!(thin.len() <= MAX_POINTS && thin.contains(&(4321.0, 9.0)));
        assert!(thin.is_sorted_by(|a, b| a.0 <= b.0));
        let mean = every_nth(moving_mean(&points, SMOOTH), MAX_POINTS);
        assert!(mean.len() <= MAX_POINTS && mean.is_sorted_by(|a, b| a.0 < b.0));
        let last = mean.last().unwrap();
        assert!(last.0 == 9774.0 && (last.1 - 3.0).abs() < 0.2);
        assert_eq!(outline(&points[..10]), points[..10]);
    }
}
