//! Line charts as SVG. Colors come from the style sheet of the page, so that a chart follows its light or dark mode.

use std::fmt::Write;

use super::Escaped;
use crate::app::viz::canvas::Point;
use crate::app::viz::chart::Axis;
use crate::app::viz::plots::every_nth;

/// Size of a chart in units of its view box; the page shows a unit as about a pixel.
const WIDTH: f64 = 340.0;
const HEIGHT: f64 = 236.0;
/// Space around the axes for their labels.
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 10.0;
const BOTTOM: f64 = 48.0;
/// Largest number of ticks of an axis that is not logarithmic.
const TICKS: usize = 5;
/// Largest number of points per curve: more than one per unit of width are not visible.
const MOST_POINTS: usize = 400;

/// A curve, or dots connected by lines.
pub(super) struct Series {
    /// Class in the style sheet, which also names the curve in the legend.
    pub(super) class: &'static str,
    /// Points with finite values, by increasing x.
    pub(super) points: Vec<Point>,
    /// Whether each point is a dot.
    pub(super) dots: bool,
}

/// A chart of one quantity.
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    pub(super) unit: &'a str,
    /// Unit of the horizontal axis.
    pub(super) x: &'a str,
    /// Whether the vertical axis is logarithmic; values that are not positive are omitted.
    pub(super) log: bool,
    pub(super) series: Vec<Series>,
}

impl Chart<'_> {
    /// Draws the chart as a figure; an empty text if there is nothing to draw.
    pub(super) fn draw(mut self) -> String {
        if self.log {
            self.series.iter_mut().for_each(|series| series.points.retain(|p| p.1 > 0.0));
        }
        self.series.retain(|series| !series.points.is_empty());
        if self.series.is_empty() {
            return String::new();
        }
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        let (low, high) = self.range();
        let last = self.series.iter().filter_map(|s| s.points.last()).map(|p| p.0).fold(1.0, f64::max);
        let (width, height) = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM);
        let (x_axis, y_axis) = (Axis::counts(last, TICKS), self.axis(low, high));
        let x = |v: f64| x_axis.share(v) * width;
        let y = |v: f64| (1.0 - y_axis.share(v)) * height;
        let (title, unit) = (Escaped(self.title), Escaped(self.unit));
        let mut put = |part: std::fmt::Arguments<'_>| {
            // Writing to a string cannot fail.
            let _ = out.write_fmt(part);
        };
        put(format_args!("<figure class=\"chart\"><figcaption><b>{title}</b> <span>{unit}</span></figcaption>\n"));
        put(format_args!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\n"));
        let (right, bottom) = (WIDTH - RIGHT, TOP + height);
        for (value, label) in y_axis.ticks() {
            let at = TOP + y(*value);
            put(format_args!("<path class=\"grid\" d=\"M{LEFT} {at:.1}H{right}\"/>"));
            put(format_args!(
                "<text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>\n",
                LEFT - 8.0,
                at + 5.0
            ));
        }
        put(format_args!("<path class=\"axis\" d=\"M{LEFT} {bottom}H{right}\"/>\n"));
        for (value, label) in x_axis.ticks() {
            let at = LEFT + x(*value);
            put(format_args!("<text x=\"{at:.1}\" y=\"{:.0}\" text-anchor=\"middle\">{label}</text>", bottom + 18.0));
        }
        let (middle, below) = (LEFT + width / 2.0, HEIGHT - 6.0);
        put(format_args!("\n<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">{}</text>\n", Escaped(self.x)));
        // The inner picture cuts off curves above the range.
        put(format_args!("<svg x=\"{LEFT}\" y=\"{TOP}\" width=\"{width}\" height=\"{height}\">\n"));
        for Series { class, points, .. } in &self.series {
            put(format_args!("<polyline class=\"{class}\" points=\""));
            for (px, py) in every_nth(points.clone(), MOST_POINTS) {
                // Far above the range, no position needs to be exact.
                put(format_args!("{:.1},{:.1} ", x(px), y(py).clamp(-height, 2.0 * height)));
            }
            put(format_args!("\"/>\n"));
        }
        put(format_args!("</svg>\n"));
        for Series { class, points, .. } in self.series.iter().filter(|series| series.dots) {
            for (px, py) in every_nth(points.clone(), MOST_POINTS) {
                put(format_args!(
                    "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"{}\"/>",
                    LEFT + x(px),
                    TOP + y(py),
                    // Dots of a long run do not cover each other.
                    if points.len() > 40 { 1.5 } else { 3.0 }
                ));
            }
        }
        put(format_args!("</svg></figure>\n"));
    }

    /// Returns the range of the vertical axis: all dots, and the curves without the highest 1 % of their points, so that the first steps
    /// of a run do not flatten the rest.
    fn range(&self) -> (f64, f64) {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for series in &self.series {
            let mut values: Vec<f64> = series.points.iter().map(|p| p.1).collect();
            values.sort_by(f64::total_cmp);
            let kept = if series.dots { values.len() } else { values.len() - values.len() / 100 };
            for &value in &values[..kept] {
                (low, high) = (low.min(value), high.max(value));
            }
        }
        if self.log {
            let margin = (high / low).powf(0.05).max(1.12);
            return (low / margin, high * margin);
        }
        let margin = (0.05 * (high - low)).max(1e-3 * high.abs()).max(1e-9);
        // An axis that almost reaches zero starts there.
        let start = if low >= 0.0 && low < 0.25 * high { 0.0 } else { low - margin };
        (start, high + margin)
    }

    fn axis(&self, low: f64, high: f64) -> Axis {
        if self.log { Axis::log(low, high) } else { Axis::linear(low, high, TICKS) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(points: Vec<Point>, log: bool) -> Chart<'static> {
        let series = vec![Series { class: "val", points, dots: true }];
        Chart { title: "Loss", unit: "nats", x: "epoch", log, series }
    }

    #[test]
    fn charts_of_any_values_have_finite_coordinates() {
        let single = vec![(1.0, 0.5)];
        let flat = (1..50).map(|i| (f64::from(i), 0.0)).collect();
        let wide = vec![(1.0, f64::from(f32::MIN)), (2.0, f64::from(f32::MAX))];
        let negative = vec![(0.001, -3.0), (0.002, -2.0)];
        for (points, log) in [(single, true), (flat, false), (wide, false), (negative, false)] {
            let svg = chart(points, log).draw();
            assert!(svg.contains("<polyline") && svg.ends_with("</svg></figure>\n"), "{svg}");
            assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.len() < 60_000, "{svg}");
        }
        assert_eq!(chart(vec![], false).draw(), "");
        assert_eq!(chart(vec![(1.0, -1.0)], true).draw(), "");
    }

    #[test]
    fn spike_is_cut_off_and_does_not_flatten_the_curve() {
        let points = (0..1000).map(|i| (f64::from(i), if i == 3 { 1e9 } else { 1.0 + f64::from(i % 3) })).collect();
        let chart = Chart { series: vec![Series { class: "step", points, dots: false }], ..chart(vec![], false) };
        assert!(chart.range().1 < 4.0);
    }
}
