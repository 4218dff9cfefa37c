//! Anti-aliased lines, dots, rectangles and text on an image. The embedded font makes text independent of installed fonts.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, OutlinedGlyph, PxScale, ScaleFont, point};
use image::{Rgb, RgbImage};

use crate::error::{Error, Result};

/// ASCII subset of DejaVu Sans 2.37 (its licence is in the same folder): `pyftsubset DejaVuSans.ttf --unicodes=20-7E,B7,D7,2013 --layout-features=''
/// --no-hinting`.
const FONT: &[u8] = include_bytes!("../../../assets/DejaVuSans-ascii.ttf");
/// Height of capital letters as a share of the size of a text.
const CAPITALS: f64 = 0.63;

/// A color and its opacity from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Paint(pub(super) [u8; 3], pub(super) f64);

/// Color of text and axes.
pub(super) const INK: Paint = Paint([51, 51, 51], 1.0);
/// Color of less important text.
pub(super) const FAINT: Paint = Paint([110, 110, 110], 1.0);

/// A point in pixels from the upper left corner. Pixels have their centers at halves.
pub(super) type Point = (f64, f64);
/// Left, top, right and bottom edge in pixels.
pub(super) type Area = [f64; 4];

/// Part of a text that is at the given point: its left end, its middle or its right end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Anchor {
    Left,
    Middle,
    Right,
}

/// An image to draw on.
#[derive(Debug)]
pub(super) struct Canvas {
    image: RgbImage,
}

impl Canvas {
    /// A white canvas.
    pub(super) fn new((width, height): (u32, u32)) -> Self {
        Self { image: RgbImage::from_pixel(width, height, Rgb([255; 3])) }
    }

    pub(super) fn area(&self) -> Area {
        [0.0, 0.0, f64::from(self.image.width()), f64::from(self.image.height())]
    }

    pub(super) fn finish(self) -> RgbImage {
        self.image
    }

    /// Copies an image to the pixel `(x, y)`.
    pub(super) fn place(&mut self, image: &RgbImage, (x, y): (u32, u32)) {
        image::imageops::replace(&mut self.image, image, i64::from(x), i64::from(y));
    }

    /// Mixes a color into a pixel that is covered by the share `cover`. Pixels outside of the canvas are ignored.
    fn blend(&mut self, (x, y): (i64, i64), Paint(color, opacity): Paint, cover: f64) {
        let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y)) else { return };
        let Some(pixel) = self.image.get_pixel_mut_checked(x, y) else { return };
        let share = opacity * cover.clamp(0.0, 1.0);
        for (old, new) in pixel.0.iter_mut().zip(color) {
            *old = (f64::from(*old) * (1.0 - share) + f64::from(new) * share).round() as u8;
        }
    }

    /// Fills a rectangle.
    pub(super) fn fill(&mut self, [left, top, right, bottom]: Area, paint: Paint) {
        // Length of pixel `i` that lies between two edges.
        let cover = |i: i64, from: f64, to: f64| ((i + 1) as f64).min(to) - (i as f64).max(from);
        for (y, x) in pixels([left, top, right, bottom], self.area()) {
            self.blend((x, y), paint, cover(x, left, right).max(0.0) * cover(y, top, bottom).max(0.0));
        }
    }

    /// Fills a circle.
    pub(super) fn disc(&mut self, center: Point, radius: f64, paint: Paint) {
        let (x, y) = center;
        let reach = radius + 1.0;
        for (row, column) in pixels([x - reach, y - reach, x + reach, y + reach], self.area()) {
            let away = (column as f64 + 0.5 - x).hypot(row as f64 + 0.5 - y);
            self.blend((column, row), paint, radius + 0.5 - away);
        }
    }

    /// Draws a line through points, with round ends and joints. Nothing is drawn outside of `clip`.
    pub(super) fn stroke(&mut self, points: &[Point], width: f64, paint: Paint, clip: Area) {
        let reach = width / 2.0 + 1.0;
        let (mut left, mut right) = (f64::INFINITY, f64::NEG_INFINITY);
        let (mut top, mut bottom) = (f64::INFINITY, f64::NEG_INFINITY);
        for &(x, y) in points {
            (left, right) = (left.min(x - reach), right.max(x + reach));
            (top, bottom) = (top.min(y - reach), bottom.max(y + reach));
        }
        let [l, t, r, b] = inside([left, top, right, bottom], inside(clip, self.area())).map(|edge| edge as i64);
        if l >= r || t >= b {
            return;
        }
        // Where segments overlap, the pixel is painted once.
        let mut covers = vec![0.0f64; ((r - l) * (b - t)) as usize];
        for [(x0, y0), (x1, y1)] in points.windows(2).flat_map(pieces) {
            let bounds = [x0.min(x1) - reach, y0.min(y1) - reach, x0.max(x1) + reach, y0.max(y1) + reach];
            let (dx, dy) = (x1 - x0, y1 - y0);
            for (y, x) in pixels(bounds, [l, t, r, b].map(|edge| edge as f64)) {
                let (px, py) = (x as f64 + 0.5 - x0, y as f64 + 0.5 - y0);
                let along = ((px * dx + py * dy) / (dx * dx + dy * dy).max(1e-12)).clamp(0.0, 1.0);
                let away = ((px - along * dx).powi(2) + (py - along * dy).powi(2)).sqrt();
                let cover = &mut covers[((y - t) * (r - l) + x - l) as usize];
                *cover = cover.max(width / 2.0 + 0.5 - away);
            }
        }
        for (i, cover) in covers.into_iter().enumerate().filter(|(_, cover)| *cover > 0.0) {
            self.blend((l + i as i64 % (r - l), t + i as i64 / (r - l)), paint, cover);
        }
    }

    /// Draws a text whose capital letters have their middle at the height of the point.
    ///
    /// # Errors
    /// [`Error::Bug`] if the font is invalid.
    pub(super) fn text(&mut self, text: &str, at: Point, anchor: Anchor, size: f64, paint: Paint) -> Result<()> {
        let (glyphs, width) = outlines(text, size)?;
        // On whole pixels the strokes of letters are sharper.
        let left = at.0 - [0.0, width / 2.0, width][anchor as usize];
        let (left, baseline) = (left.round(), (at.1 + CAPITALS * size / 2.0).round());
        for glyph in glyphs {
            let bounds = glyph.px_bounds();
            let (x, y) = (left + f64::from(bounds.min.x), baseline + f64::from(bounds.min.y));
            glyph.draw(|dx, dy, cover| {
                self.blend((x as i64 + i64::from(dx), y as i64 + i64::from(dy)), paint, f64::from(cover));
            });
        }
        Ok(())
    }
}

/// Cuts a segment into pieces of at most 16 pixels: few pixels around them are far from the line.
fn pieces(segment: &[Point]) -> impl Iterator<Item = [Point; 2]> {
    const LONGEST: f64 = 16.0;
    let (from, to) = (segment.first().copied().unwrap_or_default(), segment.last().copied().unwrap_or_default());
    let (dx, dy) = (to.0 - from.0, to.1 - from.1);
    let count = (dx.hypot(dy) / LONGEST).ceil().clamp(1.0, 1e4);
    let at = move |i: u32| (from.0 + dx * f64::from(i) / count, from.1 + dy * f64::from(i) / count);
    (0..count as u32).map(move |i| [at(i), at(i + 1)])
}

/// Returns the part of one area that lies in another, extended to whole pixels.
fn inside(area: Area, within: Area) -> Area {
    let [left, top, right, bottom] = area;
    let [l, t, r, b] = within;
    [left.floor().max(l), top.floor().max(t), right.ceil().min(r), bottom.ceil().min(b)]
}

/// Returns the rows and columns of the pixels of an area that lie in another.
fn pixels(area: Area, within: Area) -> impl Iterator<Item = (i64, i64)> {
    let [left, top, right, bottom] = inside(area, within).map(|edge| edge as i64);
    (top..bottom).flat_map(move |y| (left..right).map(move |x| (y, x)))
}

fn font() -> Result<&'static FontRef<'static>> {
    static PARSED: LazyLock<Option<FontRef<'static>>> = LazyLock::new(|| FontRef::try_from_slice(FONT).ok());
    PARSED.as_ref().ok_or_else(|| Error::bug("the embedded font is invalid"))
}

/// Returns the letters of a text that starts at (0, 0), and its width in pixels. `size` is the height of a line.
fn outlines(text: &str, size: f64) -> Result<(Vec<OutlinedGlyph>, f64)> {
    let font = font()?;
    let scale = PxScale::from(size as f32);
    let scaled = font.as_scaled(scale);
    let (mut x, mut last, mut glyphs) = (0.0, None, Vec::new());
    for letter in text.chars() {
        let id = font.glyph_id(letter);
        x += last.map_or(0.0, |last| scaled.kern(last, id));
        glyphs.extend(font.outline_glyph(id.with_scale_and_position(scale, point(x, 0.0))));
        x += scaled.h_advance(id);
        last = Some(id);
    }
    Ok((glyphs, f64::from(x)))
}

/// Returns the width of a text in pixels.
///
/// # Errors
/// [`Error::Bug`] if the font is invalid.
pub(super) fn text_width(text: &str, size: f64) -> Result<f64> {
    Ok(outlines(text, size)?.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLACK: Paint = Paint([0; 3], 1.0);

    /// Ink in each column: 0 for white, 1 for each black pixel.
    fn columns(canvas: Canvas) -> Vec<f64> {
        let image = canvas.finish();
        let ink = |x: u32, y: u32| 1.0 - f64::from(image.get_pixel(x, y).0[0]) / 255.0;
        (0..image.width()).map(|x| (0..image.height()).map(|y| ink(x, y)).sum()).collect()
    }

    #[test]
    fn slope_of_a_line_is_even() {
        // One pixel of rise in 40: each column has the same ink, and its center rises evenly.
        let mut canvas = Canvas::new((200, 20));
        let area = canvas.area();
        canvas.stroke(&[(-50.0, 15.0), (90.0, 11.5), (250.0, 7.5)], 3.0, BLACK, area);
        let image = canvas.finish();
        let mut last = f64::INFINITY;
        for x in 0..200 {
            let ink: Vec<f64> = (0..20).map(|y| 1.0 - f64::from(image.get_pixel(x, y).0[0]) / 255.0).collect();
            let sum: f64 = ink.iter().sum();
            let center = ink.iter().enumerate().map(|(y, ink)| (y as f64 + 0.5) * ink).sum::<f64>() / sum;
            let expected = 15.0 - (f64::from(x) + 50.5) / 40.0;
            assert!((sum - 3.0).abs() < 0.02 && (center - expected).abs() < 0.02, "{x}: {sum} {center} {expected}");
            assert!(center < last);
            last = center;
        }
    }

    #[test]
    fn nothing_is_drawn_outside_of_the_clip_area() {
        let mut canvas = Canvas::new((40, 40));
        canvas.stroke(&[(5.0, 20.0), (20.0, 20.0), (20.0, -1e30), (25.0, 9e30)], 3.0, BLACK, [10.0, 10.0, 30.0, 30.0]);
        canvas.fill([-9.0, 30.5, 5.0, 99.0], BLACK);
        let image = canvas.finish();
        assert!(image.enumerate_pixels().any(|(_, y, pixel)| y == 10 && pixel.0 == [0; 3]), "reaches the border");
        for (x, y, pixel) in image.enumerate_pixels() {
            let (clipped, filled) = ((10..30).contains(&x) && (10..30).contains(&y), x < 5 && y >= 30);
            assert!(clipped || filled || pixel.0 == [255; 3], "{x} {y}");
            assert!(!filled || pixel.0 == [if y == 30 { 128 } else { 0 }; 3], "{x} {y}");
        }
    }

    #[test]
    fn overlapping_segments_are_painted_once() {
        let mut canvas = Canvas::new((30, 9));
        let area = canvas.area();
        canvas.stroke(&[(5.0, 4.5), (25.0, 4.5), (10.0, 4.5)], 3.0, Paint([0; 3], 0.5), area);
        assert!(canvas.finish().pixels().all(|pixel| pixel.0[0] >= 127));
    }

    #[test]
    fn letters_stand_at_even_distances() {
        // The gaps between the bars of `lll` differ by no more than the width of anti-aliasing.
        let mut canvas = Canvas::new((120, 40));
        canvas.text("llllllll", (60.0, 20.0), Anchor::Middle, 17.0, BLACK).unwrap();
        let ink = columns(canvas);
        let center = |from: usize, to: usize| {
            let part = &ink[from..to];
            let sum: f64 = part.iter().sum();
            from as f64 + part.iter().enumerate().map(|(x, ink)| x as f64 * ink).sum::<f64>() / sum
        };
        let starts: Vec<usize> = (1..ink.len()).filter(|&x| ink[x] > 0.0 && ink[x - 1] == 0.0).collect();
        assert_eq!(starts.len(), 8);
        let ends = starts.iter().skip(1).copied().chain([ink.len()]);
        let centers: Vec<f64> = starts.iter().zip(ends).map(|(&from, to)| center(from, to)).collect();
        let gap = (centers[7] - centers[0]) / 7.0;
        assert!(centers.windows(2).all(|pair| (pair[1] - pair[0] - gap).abs() < 0.1), "{centers:?}");
        // A text is where its anchor says, and as wide as announced.
        let width = text_width("mmm", 17.0).unwrap();
        for (anchor, left) in
            [(Anchor::Left, 60.0), (Anchor::Middle, 60.0 - width / 2.0), (Anchor::Right, 60.0 - width)]
        {
            let mut canvas = Canvas::new((120, 40));
            canvas.text("mmm", (60.0, 20.0), anchor, 17.0, BLACK).unwrap();
            let ink = columns(canvas);
            let first = ink.iter().position(|&ink| ink > 0.0).unwrap() as f64;
            let last = ink.iter().rposition(|&ink| ink > 0.0).unwrap() as f64;
            assert!((first - left).abs() < 3.0 && (last - left - width).abs() < 3.0, "{anchor:?} {first} {last}");
        }
    }
}
