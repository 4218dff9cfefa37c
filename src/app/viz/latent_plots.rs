//! Plots of a latent space: images as points in two dimensions, and the KL divergence of each dimension.

use image::RgbImage;

use super::canvas::{Canvas, Paint};
use super::caption::Caption;
use super::chart::{Axis, Frame, Key, legend, title};
use super::plots::{PANEL, SIZE};
use crate::error::Result;

/// Colors of the first classes; others get colors between them.
const COLORS: [[u8; 3]; 10] = [
    [31, 119, 180],
    [255, 127, 14],
    [44, 160, 44],
    [214, 39, 40],
    [148, 103, 189],
    [140, 86, 75],
    [227, 119, 194],
    [127, 127, 127],
    [188, 189, 34],
    [23, 190, 207],
];
/// Classes that the legend names.
const NAMED: usize = 20;

fn color(class: usize) -> [u8; 3] {
    // Hues at distances of the golden ratio, at 60 % saturation and 50 % lightness.
    let hue = (class as f64 * 0.618) % 1.0;
    let channel = |shift: f64| {
        let away = ((hue + shift) % 1.0 * 6.0 - 3.0).abs() - 1.0;
        (255.0 * (0.2 + 0.6 * away.clamp(0.0, 1.0))) as u8
    };
    COLORS.get(class).copied().unwrap_or_else(|| [0.0, 2.0 / 3.0, 1.0 / 3.0].map(channel))
}

/// Plots points `(class, x, y)`, colored by class. The title of the caption stands above the plot, and its facts on the
/// right.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the embedded font is invalid.
pub fn scatter(
    caption: &Caption,
    axes: [&str; 2],
    classes: &[String],
    points: &[(usize, f64, f64)],
) -> Result<RgbImage> {
    let axis = |of: fn(&(usize, f64, f64)) -> f64, most: usize| {
        let (low, high) =
            points.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let margin = 0.04 * (high - low).max(1e-6);
        let (low, high) = if low <= high { (low - margin, high + margin) } else { (0.0, 1.0) };
        Axis::linear(low, high, most)
    };
    let mut canvas = Canvas::new(SIZE);
    title(&mut canvas, caption)?;
    let frame = Frame { area: PANEL, x: axis(|p| p.1, 10), y: axis(|p| p.2, 8) };
    frame.draw(&mut canvas, axes[0], axes[1])?;
    // In the order of the images, so that no class covers the others.
    for &(class, x, y) in points {
        canvas.disc(frame.at((x, y)), 2.5, Paint(color(class), 0.6));
    }
    let key = |(class, name)| (Key::Dot(Paint(color(class), 1.0)), String::as_str(name));
    let entries: Vec<_> = classes.iter().enumerate().take(NAMED).map(key).collect();
    if entries.len() > 1 {
        legend(&mut canvas, PANEL, false, &entries)?;
    }
    Ok(canvas.finish())
}

/// Plots one bar for each value, from the largest to the smallest. `caption` as for [`scatter`].
///
/// # Errors
/// As [`scatter`].
pub fn bars(caption: &Caption, axes: [&str; 2], values: &[f64]) -> Result<RgbImage> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let top = sorted.first().copied().unwrap_or(1.0).max(1e-6) * 1.05;
    let mut canvas = Canvas::new(SIZE);
    title(&mut canvas, caption)?;
    let frame = Frame { area: PANEL, x: Axis::counts(sorted.len().max(1) as f64, 10), y: Axis::linear(0.0, top, 7) };
    frame.draw(&mut canvas, axes[0], axes[1])?;
    for (i, height) in sorted.iter().enumerate() {
        let ((left, top), (right, bottom)) = (frame.at((i as f64 + 0.1, *height)), frame.at((i as f64 + 0.9, 0.0)));
        canvas.fill([left, top, right, bottom], Paint(COLORS[0], 1.0));
    }
    Ok(canvas.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ink(image: &RgbImage) -> usize {
        image.pixels().filter(|p| p.0 != [255; 3]).count()
    }

    #[test]
    fn points_and_bars_of_any_number_are_drawn() {
        let classes: Vec<String> = (0..30).map(|i| format!("class {i}")).collect();
        for count in [0, 1, 500] {
            let points: Vec<_> = (0..count).map(|i| (i % 30, (i as f64).sin(), (i as f64 * 0.7).cos())).collect();
            let plot = scatter(&Caption::new("Latent means"), ["first", "second"], &classes, &points).unwrap();
            assert!(ink(&plot) > 5000 + 5 * count);
            let values: Vec<f64> = (0..count).map(|i| 1.0 / (1.0 + i as f64)).collect();
            assert!(ink(&bars(&Caption::new("KL"), ["dimension", "nats"], &values).unwrap()) > 3000);
        }
    }
}
