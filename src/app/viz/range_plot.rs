//! Plot of a learning rate range test.

use image::RgbImage;
use plotters::prelude::*;

use super::plots::{BLUE, INFO, INK, ORANGE, draw, failed};
use crate::error::Result;
use crate::vae::train::range_test::RangePoint;

/// Plots the loss over the learning rate, with a vertical line at the learning rate `suggested`.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the drawing library fails.
pub fn range_plot(points: &[RangePoint], suggested: Option<f64>) -> Result<RgbImage> {
    let rates = || points.iter().map(|point| point.lr);
    let (first, last) = (rates().fold(1.0, f64::min), rates().fold(0.0, f64::max));
    // The last losses may be as large as they like.
    let smoothed = || points.iter().map(|point| point.smoothed);
    let start = smoothed().next().unwrap_or(1.0);
    let low = smoothed().fold(start, f64::min);
    let fall = (start - low).max(1e-3);
    let (low, high) = (low - 0.1 * fall, start + 0.3 * fall);
    let text = |size: u32| (INFO, size).into_font().color(&INK);
    draw(|canvas| {
        let mut builder = ChartBuilder::on(canvas);
        builder.margin(14).margin_right(28).x_label_area_size(56).y_label_area_size(92);
        builder.caption("Learning rate range test", text(26));
        let x = (first..last.max(10.0 * first)).log_scale();
        let mut chart = builder.build_cartesian_2d(x, low..high).map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.axis_style(INK.mix(0.6)).bold_line_style(INK.mix(0.14)).light_line_style(TRANSPARENT);
        mesh.label_style(text(17)).axis_desc_style(text(19)).x_desc("learning rate").y_desc("loss, nats per dimension");
        let rate = |rate: &f64| format!("{rate:.0e}");
        mesh.x_label_formatter(&rate).y_label_formatter(&|loss| format!("{loss:.2}"));
        mesh.draw().map_err(failed)?;
        let visible = |loss: f64| (low..=high).contains(&loss);
        let raw = points.iter().filter(|point| visible(point.loss)).map(|point| (point.lr, point.loss));
        chart.draw_series(raw.map(|at| Circle::new(at, 3, BLUE.mix(0.35).filled()))).map_err(failed)?;
        let line = points.iter().filter(|point| visible(point.smoothed)).map(|point| (point.lr, point.smoothed));
        chart.draw_series(LineSeries::new(line, BLUE.stroke_width(3))).map_err(failed)?;
        if let Some(rate) = suggested {
            let mark = LineSeries::new([(rate, low), (rate, high)], ORANGE.stroke_width(2));
            let key = |(x, y)| PathElement::new([(x, y), (x + 26, y)], ORANGE.stroke_width(2));
            chart.draw_series(mark).map_err(failed)?.label(format!("steepest fall, {rate:.1e}")).legend(key);
            let mut legend = chart.configure_series_labels();
            legend.position(SeriesLabelPosition::UpperRight).margin(14).legend_area_size(36).label_font(text(18));
            legend.background_style(WHITE.mix(0.85)).border_style(INK.mix(0.25));
            legend.draw().map_err(failed)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(lr: f64, loss: f64) -> RangePoint {
        RangePoint { lr, loss, smoothed: loss }
    }

    #[test]
    fn curve_and_mark_are_drawn() {
        let points: Vec<_> = (0..50).map(|n| point(1e-6 * 1.3f64.powi(n), 1.0 - f64::from(n) / 60.0)).collect();
        let count = |image: &RgbImage, (r, g, b): (u8, u8, u8)| image.pixels().filter(|p| p.0 == [r, g, b]).count();
        let (blue, orange) = (BLUE.rgb(), ORANGE.rgb());
        let plain = range_plot(&points, None).unwrap();
        assert!(count(&plain, blue) > 500 && count(&plain, orange) == 0);
        assert!(count(&range_plot(&points, Some(1e-3)).unwrap(), orange) > 500);
        // A test that ended at once.
        range_plot(&points[..1], None).unwrap();
        range_plot(&[], None).unwrap();
    }
}
