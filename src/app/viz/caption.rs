//! Text beside the rows of an image grid.

use image::{RgbImage, imageops};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::plots::{INFO, INK, failed, register_fonts};
use crate::error::{Error, Result};

/// Width in pixels of the space for text.
const WIDTH: u32 = 190;
const TEXT: u32 = 20;

/// Adds a label to the left of each row of a grid, whose rows are of equal height.
///
/// # Errors
/// [`Error::Bug`] if the drawing library fails.
pub fn label_rows(grid: &RgbImage, labels: &[String]) -> Result<RgbImage> {
    register_fonts()?;
    let (width, height) = (grid.width() + WIDTH, grid.height());
    let mut pixels = vec![255; width as usize * height as usize * 3];
    let canvas = BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area();
    let anchor = Pos::new(HPos::Right, VPos::Center);
    let row = f64::from(height) / labels.len().max(1) as f64;
    for (i, label) in labels.iter().enumerate() {
        let place = (WIDTH as i32 - 10, (row * (i as f64 + 0.5)) as i32);
        let style = (INFO, TEXT).into_font().color(&INK).pos(anchor);
        canvas.draw(&Text::new(label.as_str(), place, style)).map_err(failed)?;
    }
    canvas.present().map_err(failed)?;
    drop(canvas);
    let mut image =
        RgbImage::from_raw(width, height, pixels).ok_or_else(|| Error::bug("a caption has an unexpected size"))?;
    imageops::replace(&mut image, grid, i64::from(WIDTH), 0);
    Ok(image)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    #[test]
    fn every_row_has_its_label_and_the_grid_is_unchanged() {
        let grid = RgbImage::from_fn(60, 120, |x, y| Rgb([x as u8, y as u8, 7]));
        let labels = ["dimension 3".to_owned(), String::new(), "dimension 1".to_owned()];
        let image = label_rows(&grid, &labels).unwrap();
        assert_eq!(image.dimensions(), (60 + WIDTH, 120));
        let ink = |from: u32| (from..from + 40).any(|y| (0..WIDTH).any(|x| image.get_pixel(x, y).0 != [255; 3]));
        assert_eq!([0, 40, 80].map(ink), [true, false, true]);
        assert!(grid.enumerate_pixels().all(|(x, y, pixel)| image.get_pixel(x + WIDTH, y) == pixel));
    }
}
