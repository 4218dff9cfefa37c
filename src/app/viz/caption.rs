//! Text around the images of a grid, and captions.

use std::fmt::Display;

use image::RgbImage;

use super::canvas::{Anchor, Canvas, FAINT, INK, text_width};
use super::image_grid::{Grid, ImageBatch};
use crate::error::Result;

/// Sizes of labels and captions.
const LABEL: f64 = 15.0;
const SMALL: f64 = 14.0;
/// Height of a line of text.
const LINE: u32 = 20;
/// Distance of text from images and edges.
const MARGIN: u32 = 8;
/// Captions are not narrower than this, even below a single image.
const MIN_CAPTION: u32 = 280;

/// What an image shows, and where it comes from. It is printed below the image and stored in the PNG file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caption {
    title: String,
    facts: Vec<(&'static str, String)>,
}

impl Caption {
    /// A caption without facts, such as `49 samples`.
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), facts: Vec::new() }
    }

    /// Adds a fact, such as `epoch 3`.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl Display) -> Self {
        self.facts.push((name, value.to_string()));
        self
    }

    /// Returns the title, and the facts in one line.
    pub(super) fn heading(&self) -> (&str, String) {
        let facts: Vec<_> = self.facts.iter().map(|(name, value)| format!("{name} {value}")).collect();
        (&self.title, facts.join(" · "))
    }

    /// Returns the entries for a PNG file.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &str)> {
        let title = (!self.title.is_empty()).then_some(("Title", self.title.as_str()));
        title.into_iter().chain(self.facts.iter().map(|(name, value)| (*name, value.as_str())))
    }

    /// Breaks the caption into lines, between facts.
    fn lines(&self, width: f64) -> Result<Vec<String>> {
        let mut lines = vec![self.title.clone()];
        for (name, value) in &self.facts {
            let fact = format!("{name} {value}");
            let Some(line) = lines.last_mut() else { continue };
            let longer = format!("{line} · {fact}");
            if text_width(&longer, SMALL)? <= width {
                *line = longer;
            } else {
                lines.push(fact);
            }
        }
        Ok(lines)
    }

    /// Returns the image with the caption below it.
    ///
    /// # Errors
    /// [`Error::Bug`](crate::Error::Bug) if the embedded font is invalid.
    pub fn below(&self, image: &RgbImage) -> Result<RgbImage> {
        let lines = self.lines(f64::from(image.width().max(MIN_CAPTION) - 2 * MARGIN))?;
        let mut widest = 0.0f64;
        for line in &lines {
            widest = widest.max(text_width(line, SMALL)?);
        }
        let width = image.width().max(widest.ceil() as u32 + 2 * MARGIN);
        let mut canvas = Canvas::new((width, image.height() + LINE * lines.len() as u32 + MARGIN));
        canvas.place(image, (0, 0));
        for (i, line) in lines.iter().enumerate() {
            let middle = image.height() + LINE * i as u32 + LINE / 2 + MARGIN / 2;
            canvas.text(line, (f64::from(MARGIN), f64::from(middle)), Anchor::Left, SMALL, FAINT)?;
        }
        Ok(canvas.finish())
    }
}

/// Texts around the images of a grid; those that are empty take no space.
#[derive(Clone, Debug, Default)]
pub struct Labels {
    /// On the left of each row.
    pub rows: Vec<String>,
    /// Above each column.
    pub columns: Vec<String>,
    /// Below each group of images, where [`Grid::foot`] leaves space.
    pub groups: Vec<String>,
}

impl Labels {
    /// Draws a grid with its labels.
    ///
    /// # Errors
    /// As [`Grid::draw`].
    pub fn draw(&self, grid: &Grid, images: &ImageBatch) -> Result<RgbImage> {
        self.around(grid, images.size(), &grid.draw(images)?)
    }

    /// Draws a grid whose columns are batches, with its labels.
    ///
    /// # Errors
    /// As [`Grid::draw_columns`].
    pub fn draw_columns(&self, grid: &Grid, columns: &[Option<ImageBatch>]) -> Result<RgbImage> {
        let size = columns.iter().flatten().map(ImageBatch::size).next().unwrap_or_default();
        self.around(grid, size, &grid.draw_columns(columns)?)
    }

    fn around(&self, grid: &Grid, (width, height): (u32, u32), drawn: &RgbImage) -> Result<RgbImage> {
        let mut left = 0;
        for label in &self.rows {
            left = left.max(text_width(label, LABEL)?.ceil() as u32 + 2 * MARGIN);
        }
        let top = if self.columns.is_empty() { 0 } else { LINE + 4 };
        let mut canvas = Canvas::new((drawn.width() + left, drawn.height() + top));
        canvas.place(drawn, (left, top));
        let x = |column: usize| f64::from(left + grid.offset(column, 0, (width, height)).0);
        let y = |row: usize| f64::from(top + grid.offset(0, row, (width, height)).1);
        let (width, height) = (f64::from(width * grid.scale), f64::from(height * grid.scale));
        for (row, label) in self.rows.iter().enumerate() {
            canvas.text(label, (f64::from(left - MARGIN), y(row) + height / 2.0), Anchor::Right, LABEL, INK)?;
        }
        for (column, label) in self.columns.iter().enumerate() {
            canvas.text(label, (x(column) + width / 2.0, f64::from(top / 2)), Anchor::Middle, SMALL, INK)?;
        }
        let per_row = (grid.columns / grid.group).max(1);
        for (i, label) in self.groups.iter().enumerate() {
            let (first, row) = (i % per_row * grid.group, i / per_row);
            let middle = (x(first) + x(first + grid.group - 1) + width) / 2.0;
            let below = y(row) + height + f64::from(grid.foot) / 2.0;
            canvas.text(label, (middle, below), Anchor::Middle, SMALL, INK)?;
        }
        Ok(canvas.finish())
    }
}

/// Puts two images one below the other, with their right edges in line.
#[must_use]
pub fn stack(upper: &RgbImage, lower: &RgbImage) -> RgbImage {
    let width = upper.width().max(lower.width());
    let mut canvas = Canvas::new((width, upper.height() + lower.height() + MARGIN));
    canvas.place(upper, (width - upper.width(), 0));
    canvas.place(lower, (width - lower.width(), upper.height() + MARGIN));
    canvas.finish()
}

/// Originals with their reconstructions on the right, and the squared error below each pair.
#[derive(Clone, Debug)]
pub struct Pairs {
    grid: Grid,
    images: ImageBatch,
    labels: Labels,
}

impl Pairs {
    /// Pairs two batches of equal length.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) if the batches differ in image size or length.
    pub fn new(originals: ImageBatch, reconstructions: ImageBatch) -> Result<Self> {
        let errors = originals.squared_errors(&reconstructions)?;
        let grid = Self::grid(originals.len(), originals.size().0);
        let labels = Labels { groups: errors.iter().map(|e| format!("mse {e:.4}")).collect(), ..Labels::default() };
        Ok(Self { grid, images: originals.interleaved(reconstructions)?, labels })
    }

    fn grid(count: usize, size: u32) -> Grid {
        Grid { group: 2, foot: LINE, ..Grid::of(2 * square(count), size) }
    }

    /// Draws the pairs with a caption.
    ///
    /// # Errors
    /// As [`Grid::draw`].
    pub fn draw(&self, caption: &Caption) -> Result<RgbImage> {
        caption.below(&self.labels.draw(&self.grid, &self.images)?)
    }

    /// Returns the reconstructions in an image that was drawn of these originals, without loss, or nothing if it shows others.
    #[must_use]
    pub fn reconstructions(image: &RgbImage, originals: &ImageBatch) -> Option<ImageBatch> {
        let (shown, reconstructions) = Self::read(image, originals.len(), originals.size())?;
        (shown == *originals).then_some(reconstructions)
    }

    /// Returns the originals and the reconstructions in an image of `count` pairs of images of this width and height. Returns nothing if
    /// the image has less space.
    #[must_use]
    pub fn read(image: &RgbImage, count: usize, size: (u32, u32)) -> Option<(ImageBatch, ImageBatch)> {
        Some(Self::grid(count, size.0).read(image, 2 * count, size)?.deinterleaved())
    }
}

/// Columns of the most square grid of `count` cells.
#[must_use]
pub fn square(count: usize) -> usize {
    let side = count.isqrt();
    side + usize::from(side * side < count)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Rgb;

    fn images(count: usize, size: usize, first: u8) -> ImageBatch {
        let bytes: Vec<u8> = (0..count * 3 * size * size).map(|i| (i * 7 + first as usize) as u8).collect();
        ImageBatch::from_bytes(&bytes, [3, size, size]).unwrap()
    }

    fn texts(count: usize) -> Vec<String> {
        (0..count).map(|i| if i == 1 { String::new() } else { format!("label {i}") }).collect()
    }

    #[test]
    fn every_row_column_and_group_has_its_label_and_the_grid_is_unchanged() {
        let grid = Grid { columns: 6, scale: 4, group: 2, foot: 20, ..Grid::default() };
        let plain = grid.draw(&images(18, 10, 0)).unwrap();
        let labels = Labels { rows: texts(3), columns: texts(6), groups: texts(9) };
        let drawn = labels.draw(&grid, &images(18, 10, 0)).unwrap();
        let (left, top) = (drawn.width() - plain.width(), drawn.height() - plain.height());
        let ink = |x: u32, y: u32, width: u32, height: u32| {
            let dark = |p: &Rgb<u8>| p.0.iter().all(|&v| v < 128);
            (y..y + height).any(|y| (x..x + width).any(|x| dark(drawn.get_pixel(x, y))))
        };
        let size = (10, 10);
        let y = |row: usize| top + grid.offset(0, row, size).1;
        let x = |column: usize| left + grid.offset(column, 0, size).0;
        assert_eq!([0, 1, 2].map(|row| ink(0, y(row), left, 40)), [true, false, true]);
        assert_eq!([0, 1, 2, 3].map(|column| ink(x(column), 0, 40, top)), [true, false, true, true]);
        assert_eq!(
            [0, 1, 2, 4].map(|group| ink(x(group % 3 * 2), y(group / 3) + 41, 82, 18)),
            [true, false, true, true]
        );
        // Text stands on white alone.
        for (column, row) in (0..18).map(|i| (i % 6, i / 6)) {
            let cell = |image: &RgbImage, dx: u32, dy: u32| {
                let (cx, cy) = grid.offset(column, row, size);
                image::imageops::crop_imm(image, dx + cx, dy + cy, 40, 40).to_image()
            };
            assert!(cell(&drawn, left, top) == cell(&plain, 0, 0), "{column} {row}");
        }
    }

    #[test]
    fn captions_wrap_between_facts_and_widen_tiny_images() {
        let caption = Caption::new("49 samples").with("run", "2026-01-31-1").with("epoch", 3).with("temperature", 0.7);
        assert_eq!(caption.lines(1000.0).unwrap(), ["49 samples · run 2026-01-31-1 · epoch 3 · temperature 0.7"]);
        assert_eq!(caption.lines(200.0).unwrap(), ["49 samples · run 2026-01-31-1", "epoch 3 · temperature 0.7"]);
        let large = RgbImage::from_pixel(500, 30, Rgb([7; 3]));
        assert_eq!(caption.below(&large).unwrap().dimensions(), (500, 30 + LINE + MARGIN));
        let small = RgbImage::from_pixel(10, 10, Rgb([7; 3]));
        let drawn = caption.below(&small).unwrap();
        assert!((200..=MIN_CAPTION).contains(&drawn.width()), "{}", drawn.width());
        assert!((0..10).all(|i| drawn.get_pixel(i, i).0 == [7; 3]) && drawn.get_pixel(10, 5).0 == [255; 3]);
        let long = Caption::new("x").with("run", "y".repeat(200));
        assert!(long.below(&small).unwrap().width() > 1000, "nothing is cut off");
    }

    #[test]
    fn pairs_can_be_read_back_without_loss() {
        for count in [1, 8, 10, 16] {
            let (originals, others) = (images(count, 32, 1), images(count, 32, 100));
            let pairs = Pairs::new(originals.clone(), others.clone()).unwrap();
            for caption in [Caption::new("a"), Caption::new("b".repeat(300)).with("run", "c".repeat(300))] {
                let drawn = pairs.draw(&caption).unwrap();
                assert_eq!(Pairs::reconstructions(&drawn, &originals), Some(others.clone()));
                assert_eq!(Pairs::reconstructions(&drawn, &others), None, "of other originals");
                assert_eq!(Pairs::reconstructions(&drawn, &images(count + 9, 32, 1)), None, "of more originals");
            }
        }
        assert!(Pairs::new(images(2, 8, 0), images(3, 8, 0)).is_err());
    }

    #[test]
    fn stacked_images_end_at_the_same_edge() {
        let image = |width, value| RgbImage::from_pixel(width, 10, Rgb([value; 3]));
        let both = stack(&image(20, 1), &image(30, 2));
        assert_eq!(both.dimensions(), (30, 20 + MARGIN));
        let at = |x, y| both.get_pixel(x, y).0[0];
        assert_eq!([at(9, 5), at(10, 5), at(29, 5), at(0, 10 + MARGIN)], [255, 1, 1, 2]);
    }
}
