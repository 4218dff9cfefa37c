//! Axes with ticks, and legends.

use super::canvas::{Anchor, Area, Canvas, FAINT, INK, Paint, Point, text_width};
use super::caption::Caption;
use crate::app::figures::grouped;
use crate::error::Result;

/// Sizes of tick labels and names.
const TICKS: f64 = 16.0;
const NAMES: f64 = 17.0;
/// Mesh lines behind the curves.
const MESH: Paint = Paint([226, 226, 226], 1.0);

/// An axis from its lowest to its highest value.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    log: bool,
    /// Values with their labels.
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis with up to `most` ticks at round values.
    pub(super) fn linear(low: f64, high: f64, most: usize) -> Self {
        Self { low, high, log: false, ticks: labelled(round_values(low, high, round_step((high - low) / most as f64))) }
    }

    /// An axis of counts from 0, with ticks at whole numbers.
    pub(super) fn counts(high: f64, most: usize) -> Self {
        let step = round_step(high / most as f64).max(1.0);
        let tick = |value: f64| (value, grouped(value as u64));
        let ticks = round_values(0.0, high, step).into_iter().map(tick).collect();
        Self { low: 0.0, high, log: false, ticks }
    }

    /// A logarithmic axis between positive values.
    pub(super) fn log(low: f64, high: f64) -> Self {
        const MOST: usize = 9;
        let decades = (low.log10().floor() as i32..=high.log10().ceil() as i32).collect::<Vec<_>>();
        let at = |decades: &[i32], digits: &[f64]| -> Vec<f64> {
            let all = decades.iter().flat_map(|&d| digits.iter().map(move |digit| digit * 10f64.powi(d)));
            all.filter(|value| (low..=high).contains(value)).collect()
        };
        let every = |n: usize| decades.iter().copied().filter(|d| d.rem_euclid(n as i32) == 0).collect::<Vec<_>>();
        let digits: [&[f64]; 4] =
            [&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
        let choices = digits.map(|digits| at(&decades, digits));
        let few = || (2..).map(|n| at(&every(n), &[1.0])).find(|values| values.len() <= MOST);
        let values = choices.into_iter().find(|values| values.len() <= MOST).or_else(few).unwrap_or_default();
        let ticks = if values.len() < 3 {
            labelled(round_values(low, high, round_step((high - low) / 6.0)))
        } else {
            values.into_iter().map(|value| (value, plain(value))).collect()
        };
        Self { low, high, log: true, ticks }
    }

    /// Returns the values with ticks, and their labels.
    pub(super) fn ticks(&self) -> &[(f64, String)] {
        &self.ticks
    }

    /// Returns the place of a value from 0 at the lowest to 1 at the highest; values beyond lie beyond.
    pub(super) fn share(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

/// Returns the smallest of 1, 2 and 5 times a power of ten that is at least `step`.
pub(super) fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.max(1e-300).log10().floor());
    // Tolerates the rounding of the division.
    [1.0, 2.0, 5.0, 10.0].map(|digit| digit * decade).into_iter().find(|&s| s >= step * (1.0 - 1e-9)).unwrap_or(step)
}

/// Returns the multiples of a step in a range.
fn round_values(low: f64, high: f64, step: f64) -> Vec<f64> {
    let (first, last) = ((low / step - 1e-6).ceil(), (high / step + 1e-6).floor());
    // Multiples of a huge value may not be distinct.
    (0..=(last - first).clamp(0.0, 100.0) as u32).map(|i| (first + f64::from(i)) * step).collect()
}

/// Labels evenly spaced values with the decimals that distinguish them.
fn labelled(values: Vec<f64>) -> Vec<(f64, String)> {
    let step = values.windows(2).map(|pair| pair[1] - pair[0]).next().unwrap_or(1.0);
    let largest = values.iter().fold(0.0f64, |most, value| most.max(value.abs()));
    let digits = (-step.log10().floor()).max(0.0) as usize;
    let text = |value: f64| match () {
        () if largest >= 1e6 || (digits > 5 && largest < 1e-3) => plain(value),
        () if value.abs() < step / 2.0 => "0".to_owned(),
        () => format!("{value:.digits$}"),
    };
    values.into_iter().map(|value| (value, text(value))).collect()
}

/// Formats a value with up to three digits.
fn plain(value: f64) -> String {
    let digits = (2.0 - value.abs().max(1e-300).log10().floor()).max(0.0) as usize;
    let text = format!("{value:.digits$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    let short = value == 0.0 || (1e-4..1e6).contains(&value.abs());
    if short { text } else { format!("{:e}", format!("{value:.2e}").parse().unwrap_or(value)) }
}

/// The area between two axes.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) area: Area,
    pub(super) x: Axis,
    pub(super) y: Axis,
}

impl Frame {
    /// Returns where on the canvas a point is.
    pub(super) fn at(&self, (x, y): Point) -> Point {
        let [left, top, right, bottom] = self.area;
        (left + self.x.share(x) * (right - left), bottom - self.y.share(y) * (bottom - top))
    }

    /// Draws mesh, axes, tick labels and names. The name of the vertical axis is above it. A horizontal axis without a name has no labels.
    ///
    /// # Errors
    /// [`Error::Bug`](crate::Error::Bug) if the font is invalid.
    pub(super) fn draw(&self, canvas: &mut Canvas, x_name: &str, y_name: &str) -> Result<()> {
        let [left, top, right, bottom] = self.area.map(f64::round);
        for (value, label) in &self.y.ticks {
            let y = self.at((self.x.low, *value)).1;
            canvas.fill([left, y.floor(), right, y.floor() + 1.0], MESH);
            canvas.text(label, (left - 12.0, y), Anchor::Right, TICKS, INK)?;
        }
        for (value, label) in &self.x.ticks {
            let x = self.at((*value, self.y.low)).0;
            canvas.fill([x.floor(), top, x.floor() + 1.0, bottom], MESH);
            if !x_name.is_empty() {
                canvas.fill([x.floor(), bottom, x.floor() + 1.0, bottom + 6.0], FAINT);
                canvas.text(label, (x, bottom + 18.0), Anchor::Middle, TICKS, INK)?;
            }
        }
        canvas.fill([left - 1.0, top, left, bottom + 1.0], FAINT);
        canvas.fill([left - 1.0, bottom, right, bottom + 1.0], FAINT);
        canvas.text(x_name, ((left + right) / 2.0, bottom + 44.0), Anchor::Middle, NAMES, INK)?;
        canvas.text(y_name, (14.0, top - 34.0), Anchor::Left, NAMES, INK)
    }
}

/// Draws the title of a caption on the left, and its facts on the right.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the font is invalid.
pub(super) fn title(canvas: &mut Canvas, caption: &Caption) -> Result<()> {
    let (title, facts) = caption.heading();
    let right = canvas.area()[2] - 28.0;
    canvas.text(title, (14.0, 28.0), Anchor::Left, 25.0, INK)?;
    canvas.text(&facts, (right, 28.0), Anchor::Right, NAMES, FAINT)
}

/// How a legend shows a series.
#[derive(Clone, Copy, Debug)]
pub(super) enum Key {
    Line(Paint),
    Dashes(Paint),
    Dot(Paint),
}

/// Draws a legend in the upper right corner of an area, or in the lower right one.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the font is invalid.
pub(super) fn legend(canvas: &mut Canvas, area: Area, below: bool, entries: &[(Key, &str)]) -> Result<()> {
    const LINE: f64 = 24.0;
    const KEY: f64 = 34.0;
    let mut width = 0.0f64;
    for (_, name) in entries {
        width = width.max(text_width(name, TICKS)?);
    }
    let (width, height) = ((width + KEY + 36.0).round(), LINE * entries.len() as f64 + 12.0);
    let [_, top, right, bottom] = area.map(f64::round);
    let (x, y) = (right - width - 12.0, if below { bottom - height - 12.0 } else { top + 12.0 });
    canvas.fill([x - 1.0, y - 1.0, x + width + 1.0, y + height + 1.0], Paint([205; 3], 1.0));
    canvas.fill([x, y, x + width, y + height], Paint([255; 3], 1.0));
    for (i, (key, name)) in entries.iter().enumerate() {
        let (left, middle) = (x + 12.0, y + 6.0 + LINE * (i as f64 + 0.5));
        let whole = canvas.area();
        match *key {
            Key::Line(paint) => canvas.stroke(&[(left, middle), (left + KEY, middle)], 3.0, paint, whole),
            Key::Dashes(paint) => {
                for dash in dashes(&[(left, middle), (left + KEY, middle)]) {
                    canvas.stroke(&dash, 3.0, paint, whole);
                }
            }
            Key::Dot(paint) => canvas.disc((left + KEY / 2.0, middle), 5.0, paint),
        }
        canvas.text(name, (left + KEY + 12.0, middle), Anchor::Left, TICKS, INK)?;
    }
    Ok(())
}

/// Splits a line into dashes.
pub(super) fn dashes(points: &[Point]) -> Vec<Vec<Point>> {
    /// Lengths of a dash and of a gap in pixels.
    const LENGTHS: [f64; 2] = [8.0, 10.0];
    let (mut parts, mut on, mut left) = (Vec::new(), true, LENGTHS[0]);
    let mut part: Vec<Point> = points.first().copied().into_iter().collect();
    for pair in points.windows(2) {
        let &[(mut x, mut y), (x1, y1)] = pair else { continue };
        let mut rest = (x1 - x).hypot(y1 - y);
        while rest > left {
            (x, y) = (x + (x1 - x) * left / rest, y + (y1 - y) * left / rest);
            rest -= left;
            if on {
                part.push((x, y));
                parts.push(std::mem::take(&mut part));
            } else {
                part = vec![(x, y)];
            }
            on = !on;
            left = LENGTHS[usize::from(!on)];
        }
        left -= rest;
        if on {
            part.push((x1, y1));
        }
    }
    parts.extend((part.len() > 1).then_some(part));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.1.as_str()).collect()
    }

    #[test]
    fn counts_have_distinct_whole_ticks() {
        assert_eq!(labels(&Axis::counts(1.0, 10)), ["0", "1"]);
        assert_eq!(labels(&Axis::counts(2.02, 10)), ["0", "1", "2"]);
        assert_eq!(labels(&Axis::counts(7.0, 10)), ["0", "1", "2", "3", "4", "5", "6", "7"]);
        assert_eq!(
            labels(&Axis::counts(9775.0, 10)),
            ["0", "1,000", "2,000", "3,000", "4,000", "5,000", "6,000", "7,000", "8,000", "9,000"]
        );
        assert_eq!(labels(&Axis::counts(3e6, 3)), ["0", "1,000,000", "2,000,000", "3,000,000"]);
    }

    #[test]
    fn linear_ticks_have_no_superfluous_zeros() {
        assert_eq!(labels(&Axis::linear(0.97, 1.41, 7)), ["1.0", "1.1", "1.2", "1.3", "1.4"]);
        assert_eq!(labels(&Axis::linear(0.0, 0.01, 5)), ["0", "0.002", "0.004", "0.006", "0.008", "0.010"]);
        assert_eq!(labels(&Axis::linear(-3.0, 25.0, 7)), ["0", "5", "10", "15", "20", "25"]);
        assert_eq!(labels(&Axis::linear(0.0, 2e-6, 4)), ["0", "5e-7", "1e-6", "1.5e-6", "2e-6"]);
        assert_eq!(labels(&Axis::linear(0.0, 3e38, 3)), ["0", "1e38", "2e38", "3e38"]);
    }

    #[test]
    fn log_axes_fit_the_data_and_label_every_tick() {
        assert_eq!(labels(&Axis::log(0.042, 3.1)), ["0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(labels(&Axis::log(0.009, 13.0)), ["0.01", "0.03", "0.1", "0.3", "1", "3", "10"]);
        assert_eq!(labels(&Axis::log(0.0009, 130.0)), ["0.001", "0.01", "0.1", "1", "10", "100"]);
        assert_eq!(labels(&Axis::log(0.55, 3.1)), ["0.6", "0.7", "0.8", "0.9", "1", "2", "3"]);
        assert_eq!(labels(&Axis::log(0.52, 0.61)), ["0.52", "0.54", "0.56", "0.58", "0.60"]);
        let wide = Axis::log(1e-30, 1e30);
        assert!((3..=9).contains(&wide.ticks.len()), "{wide:?}");
        let axis = Axis::log(0.1, 10.0);
        assert!((axis.share(1.0) - 0.5).abs() < 1e-12 && axis.share(0.1) == 0.0 && axis.share(100.0) > 1.0);
    }

    #[test]
    fn dashes_cover_their_share_of_the_line() {
        let length = |part: &Vec<Point>| part.windows(2).map(|p| (p[1].0 - p[0].0).hypot(p[1].1 - p[0].1)).sum::<f64>();
        let parts = dashes(&[(0.0, 0.0), (94.0, 0.0), (94.0, 66.0)]);
        assert_eq!(parts.len(), 9);
        assert!((parts.iter().map(length).sum::<f64>() - 72.0).abs() < 1e-9);
        assert_eq!(parts[5], [(90.0, 0.0), (94.0, 0.0), (94.0, 4.0)]);
        assert!(dashes(&[]).is_empty() && dashes(&[(1.0, 1.0)]).is_empty());
    }
}
