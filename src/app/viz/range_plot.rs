//! Plot of a learning rate range test.

use image::RgbImage;

use super::canvas::{Canvas, Paint, Point};
use super::caption::Caption;
use super::chart::{Axis, Frame, Key, legend, title};
use super::plots::{BLUE, ORANGE, PANEL, SIZE};
use crate::error::Result;
use crate::vae::train::range_test::RangePoint;

/// Plots the loss over the learning rate, with a vertical line at the learning rate `suggested`. The title of the caption stands above the
/// plot, and its facts on the right.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the embedded font is invalid.
pub fn range_plot(caption: &Caption, points: &[RangePoint], suggested: Option<f64>) -> Result<RgbImage> {
    let rates = || points.iter().map(|point| point.lr);
    let first = rates().fold(1.0, f64::min);
    let last = rates().fold(10.0 * first, f64::max);
    // The last losses may be as large as they like.
    let smoothed = || points.iter().map(|point| point.smoothed);
    let start = smoothed().next().unwrap_or(1.0);
    let low = smoothed().fold(start, f64::min);
    let fall = (start - low).max(1e-3);
    let (low, high) = (low - 0.1 * fall, start + 0.3 * fall);
    let mut canvas = Canvas::new(SIZE);
    title(&mut canvas, caption)?;
    let frame = Frame { area: PANEL, x: Axis::log(first, last), y: Axis::linear(low, high, 8) };
    frame.draw(&mut canvas, "learning rate", "loss, nats per dimension")?;
    for point in points.iter().filter(|point| (low..=high).contains(&point.loss)) {
        canvas.disc(frame.at((point.lr, point.loss)), 3.0, Paint(BLUE, 0.35));
    }
    let line: Vec<Point> =
        points.iter().map(|point| frame.at((point.lr, point.smoothed.min(2.0 * high - low)))).collect();
    canvas.stroke(&line, 3.0, Paint(BLUE, 1.0), PANEL);
    let smoothed = (Key::Line(Paint(BLUE, 1.0)), "smoothed loss");
    let Some(rate) = suggested else {
        legend(&mut canvas, PANEL, true, &[smoothed])?;
        return Ok(canvas.finish());
    };
    canvas.stroke(&[frame.at((rate, low)), frame.at((rate, high))], 2.0, Paint(ORANGE, 1.0), PANEL);
    let mark = format!("steepest fall, {rate:.1e}");
    legend(&mut canvas, PANEL, false, &[smoothed, (Key::Line(Paint(ORANGE, 1.0)), &mark)])?;
    Ok(canvas.finish())
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
        let plot = |points: &[RangePoint], suggested| range_plot(&Caption::new("test"), points, suggested).unwrap();
        let count = |image: &RgbImage, color: [u8; 3]| image.pixels().filter(|p| p.0 == color).count();
        let plain = plot(&points, None);
        assert!(count(&plain, BLUE) > 500 && count(&plain, ORANGE) == 0);
        assert!(count(&plot(&points, Some(1e-3)), ORANGE) > 500);
        // A test that ended at once.
        plot(&points[..1], None);
        plot(&[], None);
    }
}
