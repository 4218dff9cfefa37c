//! Plots of a latent space: images as points in two dimensions, and the KL divergence of each dimension.

use image::RgbImage;
use plotters::prelude::*;

use super::plots::{INFO, INK, draw, failed};
use crate::error::Result;

/// Colors of the first classes; others get colors between them.
const COLORS: [RGBColor; 10] = [
    RGBColor(31, 119, 180),
    RGBColor(255, 127, 14),
    RGBColor(44, 160, 44),
    RGBColor(214, 39, 40),
    RGBColor(148, 103, 189),
    RGBColor(140, 86, 75),
    RGBColor(227, 119, 194),
    RGBColor(127, 127, 127),
    RGBColor(188, 189, 34),
    RGBColor(23, 190, 207),
];
/// Classes that the legend names.
const NAMED: usize = 20;

fn color(class: usize) -> RGBColor {
    COLORS.get(class).copied().unwrap_or_else(|| {
        let (r, g, b) = HSLColor((class as f64 * 0.618) % 1.0, 0.6, 0.5).to_backend_color().rgb;
        RGBColor(r, g, b)
    })
}

/// Plots points `(class, x, y)`, colored by class.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the drawing library fails.
pub fn scatter(title: &str, axes: [&str; 2], classes: &[String], points: &[(usize, f64, f64)]) -> Result<RgbImage> {
    let range = |of: fn(&(usize, f64, f64)) -> f64| {
        let (low, high) =
            points.iter().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
        let margin = 0.04 * (high - low).max(1e-6);
        if low <= high { low - margin..high + margin } else { 0.0..1.0 }
    };
    let text = |size: u32| (INFO, size).into_font().color(&INK);
    draw(|canvas| {
        let mut builder = ChartBuilder::on(canvas);
        builder.margin(14).margin_right(28).x_label_area_size(56).y_label_area_size(92).caption(title, text(26));
        let mut chart = builder.build_cartesian_2d(range(|p| p.1), range(|p| p.2)).map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.axis_style(INK.mix(0.6)).bold_line_style(INK.mix(0.14)).light_line_style(TRANSPARENT);
        mesh.label_style(text(17)).axis_desc_style(text(19)).x_desc(axes[0]).y_desc(axes[1]);
        mesh.draw().map_err(failed)?;
        // In the order of the images, so that no class covers the others.
        let dots = points.iter().map(|&(class, x, y)| Circle::new((x, y), 2, color(class).mix(0.6).filled()));
        chart.draw_series(dots).map_err(failed)?;
        for (class, name) in classes.iter().enumerate().take(NAMED) {
            let key = move |(x, y)| Circle::new((x + 13, y), 5, color(class).filled());
            chart.draw_series(std::iter::empty::<Circle<(f64, f64), i32>>()).map_err(failed)?.label(name).legend(key);
        }
        let mut legend = chart.configure_series_labels();
        legend.position(SeriesLabelPosition::UpperRight).margin(14).legend_area_size(30).label_font(text(16));
        legend.background_style(WHITE.mix(0.85)).border_style(INK.mix(0.25)).draw().map_err(failed)
    })
}

/// Plots one bar for each value, from the largest to the smallest.
///
/// # Errors
/// [`Error::Bug`](crate::Error::Bug) if the drawing library fails.
pub fn bars(title: &str, axes: [&str; 2], values: &[f64]) -> Result<RgbImage> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let top = sorted.first().copied().unwrap_or(1.0).max(1e-6) * 1.05;
    let text = |size: u32| (INFO, size).into_font().color(&INK);
    draw(|canvas| {
        let mut builder = ChartBuilder::on(canvas);
        builder.margin(14).margin_right(28).x_label_area_size(56).y_label_area_size(92).caption(title, text(26));
        let mut chart = builder.build_cartesian_2d(0.0..sorted.len().max(1) as f64, 0.0..top).map_err(failed)?;
        let mut mesh = chart.configure_mesh();
        mesh.axis_style(INK.mix(0.6)).bold_line_style(INK.mix(0.14)).light_line_style(TRANSPARENT).disable_x_mesh();
        mesh.label_style(text(17)).axis_desc_style(text(19)).x_desc(axes[0]).y_desc(axes[1]);
        mesh.draw().map_err(failed)?;
        let bar = |(i, height): (usize, &f64)| {
            Rectangle::new([(i as f64 + 0.1, 0.0), (i as f64 + 0.9, *height)], COLORS[0].filled())
        };
        chart.draw_series(sorted.iter().enumerate().map(bar)).map_err(failed)?;
        Ok(())
    })
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
            let plot = scatter("Latent means", ["first", "second"], &classes, &points).unwrap();
            assert!(ink(&plot) > 5000 + 5 * count);
            let values: Vec<f64> = (0..count).map(|i| 1.0 / (1.0 + i as f64)).collect();
            assert!(ink(&bars("KL", ["dimension", "nats"], &values).unwrap()) > 3000);
        }
    }
}
