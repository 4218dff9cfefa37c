//! Batches of images, image grids, PNG output, and decoding of the user's PNG and JPEG files.

use std::io::{self, Cursor};
use std::path::Path;

use byteorder::{BigEndian, ByteOrder};
use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, imageops};

use super::caption::Caption;
use crate::app::io::atomic;
use crate::error::{Error, Result};

/// A batch of 8-bit RGB images. Grey images are passed with one channel, which becomes three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageBatch {
    width: u32,
    height: u32,
    /// Pixels in row-major order with interleaved channels, as in PNG files.
    pixels: Vec<RgbImage>,
}

impl ImageBatch {
    /// Creates a batch from bytes `[n, channels, height, width]`; `n` follows from the length.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for channels other than 1 or 3, zero sizes, or an incomplete last image.
    pub fn from_bytes(bytes: &[u8], [channels, height, width]: [usize; 3]) -> Result<Self> {
        let area = height * width;
        let invalid = |what: &str, expected: &str, found: usize| Err(Error::argument(what, expected, found));
        let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
            return invalid("image size", "less than 2^32", area);
        };
        if channels != 1 && channels != 3 {
            return invalid("number of image channels", "1 or 3", channels);
        }
        if area == 0 || !bytes.len().is_multiple_of(channels * area) {
            return invalid(
                "number of image bytes",
                &format!("a multiple of {channels}x{height}x{width}"),
                bytes.len(),
            );
        }
        let image = |planes: &[u8]| {
            RgbImage::from_fn(w, h, |x, y| {
                let at = y as usize * width + x as usize;
                Rgb([0, 1, 2].map(|c| planes[(c % channels) * area + at]))
            })
        };
        Ok(Self { width: w, height: h, pixels: bytes.chunks_exact(channels * area).map(image).collect() })
    }

    /// Creates a batch from values `[n, channels, height, width]` from -1 (black) to 1 (white); others are clamped.
    ///
    /// # Errors
    /// As [`ImageBatch::from_bytes`].
    pub fn from_floats(values: &[f32], dims: [usize; 3]) -> Result<Self> {
        let bytes: Vec<u8> = values.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect();
        Self::from_bytes(&bytes, dims)
    }

    /// Loads a PNG or JPEG file: applies its orientation, crops the central square and resizes it to `size` x `size`.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or decoded.
    pub fn load(path: &Path, size: u32) -> Result<Self> {
        Self::from_file(&atomic::read(path)?, path, size)
    }

    /// The same from the bytes of the file; `path` is used in errors.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be decoded.
    pub fn from_file(bytes: &[u8], path: &Path, size: u32) -> Result<Self> {
        Ok(Self::from_file_with_color(bytes, path, size)?.0)
    }

    /// The same, and whether the file stores colours.
    ///
    /// # Errors
    /// As [`ImageBatch::from_file`].
    pub fn from_file_with_color(bytes: &[u8], path: &Path, size: u32) -> Result<(Self, bool)> {
        let whole = decode(bytes, path)?;
        let has_color = whole.color().has_color();
        // Crop before resizing: enlarging a narrow strip would take too much memory.
        let side = whole.width().min(whole.height());
        let middle = whole.crop_imm((whole.width() - side) / 2, (whole.height() - side) / 2, side, side);
        drop(whole);
        let image = middle.resize_exact(size, size, FilterType::CatmullRom).into_rgb8();
        Ok((Self { width: size, height: size, pixels: vec![image] }, has_color))
    }

    /// Reads a PNG file with square images one below the other, as version 0.1.0 wrote them; at most 256. `path` is used in errors.
    ///
    /// # Errors
    /// [`Error::File`] if the bytes cannot be decoded or have another shape.
    pub fn from_strip(bytes: &[u8], path: &Path) -> Result<Self> {
        const MOST: u32 = 256;
        let strip = decode_rgb(bytes, path)?;
        let (width, height) = strip.dimensions();
        if width == 0 || !height.is_multiple_of(width) || height / width > MOST {
            let why = format!("{width}x{height} pixels, expected a column of at most {MOST} square images");
            return Err(Error::malformed("decode", path, why));
        }
        let cut = |i| imageops::crop_imm(&strip, 0, i * width, width, width).to_image();
        Ok(Self { width, height: width, pixels: (0..height / width).map(cut).collect() })
    }

    /// Returns the images.
    #[must_use]
    pub fn images(&self) -> &[RgbImage] {
        &self.pixels
    }

    /// Returns the number of images.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pixels.len()
    }

    /// Returns the width and height of each image, in pixels.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Returns whether the batch is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// Returns the bytes `[n, 3, height, width]`, as a model takes them.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let plane = |image: &RgbImage, c: usize| image.pixels().map(|p| p.0[c]).collect::<Vec<_>>();
        self.pixels.iter().flat_map(|p| [0, 1, 2].map(|c| plane(p, c))).flatten().collect()
    }

    /// Returns the bytes `[n, 1, height, width]` of the images in grey: the luma of ITU-R BT.601.
    #[must_use]
    pub fn to_grey_bytes(&self) -> Vec<u8> {
        let grey = |Rgb([r, g, b]): &Rgb<u8>| {
            ((299 * u32::from(*r) + 587 * u32::from(*g) + 114 * u32::from(*b) + 500) / 1000) as u8
        };
        self.pixels.iter().flat_map(|image| image.pixels().map(grey)).collect()
    }

    /// Appends the images of another batch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if they have another size.
    pub fn append(&mut self, other: Self) -> Result<()> {
        if (self.width, self.height) != (other.width, other.height) {
            let (expected, found) =
                (format!("{}x{}", self.width, self.height), format!("{}x{}", other.width, other.height));
            return Err(Error::argument("image size", expected, found));
        }
        self.pixels.extend(other.pixels);
        Ok(())
    }

    /// Interleaves two batches, e.g. originals with their reconstructions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the batches differ in image size or length.
    pub fn interleaved(self, other: Self) -> Result<Self> {
        if self.len() != other.len() {
            return Err(Error::argument("number of images", self.len(), other.len()));
        }
        let mut joined = Self { pixels: Vec::new(), ..self };
        for (a, b) in self.pixels.into_iter().zip(other.pixels) {
            let (width, height) = b.dimensions();
            joined.pixels.push(a);
            joined.append(Self { width, height, pixels: vec![b] })?;
        }
        Ok(joined)
    }

    /// Separates two interleaved batches.
    pub(super) fn deinterleaved(self) -> (Self, Self) {
        let (mut first, mut second) =
            (Self { pixels: Vec::new(), ..self }, Self { pixels: Vec::new(), width: self.width, height: self.height });
        for (i, image) in self.pixels.into_iter().enumerate() {
            if i % 2 == 0 { &mut first } else { &mut second }.pixels.push(image);
        }
        (first, second)
    }

    /// Returns the mean squared error per pixel value (-1 to 1) between each image and its counterpart in another batch.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the batches differ in image size or length.
    pub fn squared_errors(&self, other: &Self) -> Result<Vec<f64>> {
        if (self.width, self.height, self.len()) != (other.width, other.height, other.len()) {
            let size = |p: &Self| format!("{} of {}x{}", p.len(), p.width, p.height);
            return Err(Error::argument("images to compare", size(self), size(other)));
        }
        let error = |(a, b): (&RgbImage, &RgbImage)| {
            let squares = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| (f64::from(a.abs_diff(*b)) / 127.5).powi(2));
            squares.sum::<f64>() / a.as_raw().len().max(1) as f64
        };
        Ok(self.pixels.iter().zip(&other.pixels).map(error).collect())
    }
}

/// Layout of a grid of images in row-major order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Images per row; default 7.
    pub columns: usize,
    /// Enlargement of each image; default 3.
    pub scale: u32,
    /// Pixels between images and around the grid; default 2.
    pub gap: u32,
    /// Images that belong together, with more space to their neighbours in the row; default 1.
    pub group: usize,
    /// Pixels below each row, for text; default 0.
    pub foot: u32,
    /// Colour of gaps and empty cells; default white.
    pub background: [u8; 3],
}

impl Default for Grid {
    fn default() -> Self {
        Self { columns: 7, scale: 3, gap: 2, group: 1, foot: 0, background: [255; 3] }
    }
}

/// Limit on the pixels of a grid: 256 million, which take 768 MB.
const MAX_PIXELS: u64 = 1 << 28;

/// Pixels between groups of images, in addition to the gap between images.
const GROUP_GAP: u32 = 14;

impl Grid {
    /// A grid of images of `size` x `size` pixels, enlarged to about 96 pixels, or so far that a grid of few columns is not tiny.
    #[must_use]
    pub fn of(columns: usize, size: u32) -> Self {
        const CELL: u32 = 96;
        const MIN_WIDTH: u32 = 300;
        let size = size.max(1);
        let usual = (CELL + size / 2) / size;
        let few = (MIN_WIDTH / size).checked_div(u32::try_from(columns).unwrap_or(u32::MAX)).unwrap_or(1);
        Self { columns, scale: usual.max(few).max(1), ..Self::default() }
    }

    /// Returns the upper left corner of the cell in a column and row, for images of `size`.
    pub(super) fn offset(&self, column: usize, row: usize, (width, height): (u32, u32)) -> (u32, u32) {
        let Self { scale, gap, foot, .. } = *self;
        let wide = (column / self.group.max(1)) as u32 * self.group_gap();
        (gap + column as u32 * (width * scale + gap) + wide, gap + row as u32 * (height * scale + gap + foot))
    }

    fn group_gap(&self) -> u32 {
        if self.group > 1 { GROUP_GAP } else { 0 }
    }

    /// Returns the images of a drawn grid; `size` is that of an image before its enlargement. Returns nothing if the grid has less space.
    pub(super) fn read(&self, drawn: &RgbImage, count: usize, size: (u32, u32)) -> Option<ImageBatch> {
        let (width, height) = size;
        let corner = |i: usize| self.offset(i % self.columns, i / self.columns, size);
        let cut = |i: usize| {
            let (x, y) = corner(i);
            let at = |dx: u32, dy: u32| drawn.get_pixel_checked(x + dx * self.scale, y + dy * self.scale).copied();
            at(width - 1, height - 1)?;
            Some(RgbImage::from_fn(width, height, |dx, dy| at(dx, dy).unwrap_or(Rgb([0; 3]))))
        };
        let pixels = (0..count).map(cut).collect::<Option<Vec<_>>>()?;
        Some(ImageBatch { width, height, pixels })
    }

    /// Draws the grid as one image.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for zero columns, zero scale, or more than 2^28 pixels.
    pub fn draw(&self, images: &ImageBatch) -> Result<RgbImage> {
        self.draw_cells(images.width, images.height, &images.pixels.iter().map(Some).collect::<Vec<_>>())
    }

    fn draw_cells(&self, width: u32, height: u32, cells: &[Option<&RgbImage>]) -> Result<RgbImage> {
        let Self { columns, scale, gap, group, foot, background } = *self;
        let rows = cells.len().div_ceil(columns.max(1)).max(1);
        let side = |size: u32, count: usize, extra: u32| -> Option<u32> {
            let cell = size.checked_mul(scale)?.checked_add(gap)?.checked_add(extra)?;
            cell.checked_mul(u32::try_from(count).ok()?)?.checked_add(gap)
        };
        let between = (columns.saturating_sub(1) / group.max(1)) as u32 * self.group_gap();
        let total_width = side(width, columns, 0).and_then(|width| width.checked_add(between));
        let sides = total_width.zip(side(height, rows, foot));
        let fits = |&(w, h): &(u32, u32)| columns > 0 && scale > 0 && u64::from(w) * u64::from(h) <= MAX_PIXELS;
        let Some((total_width, total_height)) = sides.filter(fits) else {
            let found = format!("{columns} columns, {rows} rows, scale {scale}");
            return Err(Error::argument("size of the grid", format!("1 to {MAX_PIXELS} pixels"), found));
        };
        let mut grid = RgbImage::from_pixel(total_width, total_height, Rgb(background));
        for (i, cell) in cells.iter().enumerate() {
            let Some(image) = cell else { continue };
            let enlarged = imageops::resize(*image, width * scale, height * scale, FilterType::Nearest);
            let (x, y) = self.offset(i % columns, i / columns, (width, height));
            imageops::replace(&mut grid, &enlarged, i64::from(x), i64::from(y));
        }
        Ok(grid)
    }

    /// Draws a grid whose columns are batches of equal length, from left to right. `None` leaves a column empty.
    ///
    /// # Errors
    /// As [`Grid::draw`], and if the batches differ in image size or length.
    pub fn draw_columns(&self, columns: &[Option<ImageBatch>]) -> Result<RgbImage> {
        let Some(first) = columns.iter().flatten().next() else {
            return Err(Error::argument("columns of the grid", "at least one that is present", "none"));
        };
        for other in columns.iter().flatten() {
            if (other.width, other.height, other.len()) != (first.width, first.height, first.len()) {
                let size = |p: &ImageBatch| format!("{} images of {}x{}", p.len(), p.width, p.height);
                return Err(Error::argument("column of the grid", size(first), size(other)));
            }
        }
        let row = |i: usize| columns.iter().map(move |column| column.as_ref().and_then(|c| c.pixels.get(i)));
        let cells: Vec<_> = (0..first.len()).flat_map(row).collect();
        Self { columns: columns.len(), ..*self }.draw_cells(first.width, first.height, &cells)
    }
}

/// Writes a PNG file, atomically, with the facts of its caption as text entries.
///
/// # Errors
/// [`Error::File`] if it cannot be written.
pub fn save_png(path: &Path, image: &RgbImage, caption: &Caption) -> Result<()> {
    let bytes = png_bytes(image, caption).map_err(|e| Error::file("write", path)(io::Error::other(e)))?;
    atomic::save_atomic(path, &bytes)
}

fn png_bytes(image: &RgbImage, caption: &Caption) -> std::result::Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Fast);
    let software = ("Software", concat!("vae-wgpu ", env!("CARGO_PKG_VERSION")));
    for (name, text) in caption.entries().chain([software]) {
        // The simpler kind of entry is limited to Latin-1.
        if text.is_ascii() {
            encoder.add_text_chunk(name.to_owned(), text.to_owned())?;
        } else {
            encoder.add_itxt_chunk(name.to_owned(), text.to_owned())?;
        }
    }
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Decodes a PNG or JPEG file; `path` is used in errors.
///
/// # Errors
/// [`Error::File`] if the bytes cannot be decoded.
pub fn decode_rgb(bytes: &[u8], path: &Path) -> Result<RgbImage> {
    Ok(decode(bytes, path)?.into_rgb8())
}

/// Returns width and height of a PNG file from its bytes; `path` is used in errors.
///
/// # Errors
/// [`Error::File`] if it is no PNG file.
pub fn png_size(bytes: &[u8], path: &Path) -> Result<(u32, u32)> {
    let reader = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Png);
    reader.into_dimensions().map_err(|error| Error::malformed("decode the image", path, error))
}

/// Largest ratio of decoded bytes to file bytes. PNG: deflate reaches 1,032, and a palette entry of one bit decodes to three bytes. JPEG: a
/// uniform block of 8x8 pixels takes a few bits per colour; 1,024 leaves room for blank pages.
const PNG_EXPANSION: u64 = 1032 * 8 * 3;
const JPEG_EXPANSION: u64 = 1024;
/// Bounds on the memory limit of a decoded image in bytes. The upper one is 64 million pixels; phone cameras have 50.
const MAX_MEMORY: u64 = 192 << 20;
const MIN_MEMORY: u64 = 1 << 20;

fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    let malformed = |error: image::ImageError| Error::malformed("decode the image", path, error);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(Error::file("read", path))?;
    let format = reader.format();
    let expansion = if format == Some(ImageFormat::Jpeg) { JPEG_EXPANSION } else { PNG_EXPANSION };
    let most = (bytes.len() as u64).saturating_mul(expansion).clamp(MIN_MEMORY, MAX_MEMORY);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(most);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(malformed)?;
    // Do not trust the size in the header: allocate no more than the file can fill.
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 || decoder.total_bytes() > most {
        let why = format!(
            "{width}x{height} pixels in a file of {} bytes: expected at most {most} decoded bytes",
            bytes.len()
        );
        return Err(Error::malformed("decode the image", path, why));
    }
    if format == Some(ImageFormat::Jpeg) && !has_jpeg_end(bytes) {
        // The decoder would fill the rest with grey.
        return Err(Error::malformed("decode the image", path, "the file ends before the image does"));
    }
    let orientation = decoder.orientation().map_err(malformed)?;
    let mut image = DynamicImage::from_decoder(decoder).map_err(malformed)?;
    image.apply_orientation(orientation);
    Ok(image)
}

/// Whether a JPEG file has the marker at the end of the image, which is missing where the file was cut off (ITU-T T.81, annex B).
fn has_jpeg_end(bytes: &[u8]) -> bool {
    const END: u8 = 0xd9;
    let mut at = 0;
    // Between markers is compressed data, in which 0xff is followed by 0, or a part of the file that is not needed.
    while let Some(marker) = bytes.get(at..).and_then(|rest| rest.iter().position(|byte| *byte == 0xff)) {
        at += marker + 1;
        match bytes.get(at) {
            Some(&END) => return true,
            // Compressed data, filling, restarts, the start of the image: without a length.
            Some(0 | 0xff | 0x01 | 0xd0..=0xd8) => {}
            Some(_) => match bytes.get(at + 1..at + 3) {
                Some(length) => at += 1 + usize::from(BigEndian::read_u16(length)),
                None => return false,
            },
            None => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DIMS: [usize; 3] = [3, 4, 4];

    #[test]
    fn truncated_files_are_rejected_at_any_length() {
        let image = RgbImage::from_fn(40, 24, |x, y| Rgb([(x * 6) as u8, (y * 10) as u8, (x * y) as u8]));
        for format in [ImageFormat::Png, ImageFormat::Jpeg] {
            let mut file = Cursor::new(Vec::new());
            image.write_to(&mut file, format).unwrap();
            let bytes = file.into_inner();
            let decoded = |bytes: &[u8]| ImageBatch::from_file(bytes, Path::new("x"), 8);
            assert_eq!(decoded(&bytes).unwrap().len(), 1);
            // Cameras append data of their own.
            assert_eq!(decoded(&[&bytes[..], b"more"].concat()).unwrap().len(), 1);
            // The last chunk of a PNG file says only that there is no other.
            let needed = bytes.len() - if format == ImageFormat::Png { 12 } else { 0 };
            for length in 0..needed {
                assert!(decoded(&bytes[..length]).is_err(), "{format:?}: {length} of {}", bytes.len());
            }
        }
    }

    fn images(count: usize, first: u8) -> ImageBatch {
        let bytes: Vec<u8> = (0..count * 48).map(|i| (i * 7 + first as usize) as u8).collect();
        ImageBatch::from_bytes(&bytes, DIMS).unwrap()
    }

    #[test]
    fn batches_round_trip_and_planes_are_interleaved() {
        let bytes: Vec<u8> = (0..96).collect();
        let images = ImageBatch::from_bytes(&bytes, DIMS).unwrap();
        assert_eq!(images.len(), 2);
        assert_eq!(images.to_bytes(), bytes);
        assert_eq!(images.pixels[1].get_pixel(3, 2).0, [48 + 11, 48 + 16 + 11, 48 + 32 + 11]);
        let grey = ImageBatch::from_bytes(&[1, 2, 3, 4], [1, 2, 2]).unwrap();
        assert_eq!(grey.pixels[0].get_pixel(1, 1).0, [4; 3]);
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(ImageBatch::from_bytes(&all, [1, 16, 16]).unwrap().to_grey_bytes(), all);
    }

    #[test]
    fn bytes_survive_conversion_to_floats() {
        let bytes: Vec<u8> = (0..=255).collect();
        let numbers: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        assert_eq!(
            ImageBatch::from_floats(&numbers, [1, 16, 16]).unwrap(),
            ImageBatch::from_bytes(&bytes, [1, 16, 16]).unwrap()
        );
        let odd = ImageBatch::from_floats(&[-7.0, 3.0, f32::NAN, 0.0], [1, 2, 2]).unwrap();
        assert_eq!(odd.pixels[0].pixels().map(|p| p.0[0]).collect::<Vec<_>>(), [0, 255, 0, 128]);
    }

    #[test]
    fn invalid_sizes_are_rejected() {
        for (length, dims) in [(48, [2, 4, 4]), (47, DIMS), (48, [3, 0, 4])] {
            assert!(matches!(ImageBatch::from_bytes(&vec![0; length], dims), Err(Error::InvalidArgument { .. })));
        }
        assert!(images(1, 0).append(ImageBatch::from_bytes(&[0; 4], [1, 2, 2]).unwrap()).is_err());
        assert!(images(1, 0).interleaved(images(2, 0)).is_err());
    }

    #[test]
    fn grid_places_enlarged_images() {
        let (images, grid) =
            (images(5, 0), Grid { columns: 3, scale: 2, gap: 1, background: [9, 8, 7], ..Grid::default() });
        let drawn = grid.draw(&images).unwrap();
        assert_eq!(drawn.dimensions(), (3 * 9 + 1, 2 * 9 + 1));
        for (x, y, pixel) in drawn.enumerate_pixels() {
            let (column, row) = (x / 9, y / 9);
            let inside = x % 9 > 0 && y % 9 > 0 && row * 3 + column < 5;
            let expected = if inside {
                *images.pixels[(row * 3 + column) as usize].get_pixel((x % 9 - 1) / 2, (y % 9 - 1) / 2)
            } else {
                Rgb([9, 8, 7])
            };
            assert_eq!(*pixel, expected, "{x} {y}");
        }
        for absurd in [Grid { columns: 0, ..grid }, Grid { scale: 0, ..grid }, Grid { scale: u32::MAX, ..grid }] {
            assert!(absurd.draw(&images).is_err());
        }
        assert!(Grid { scale: 5000, ..grid }.draw(&images).is_err());
    }

    #[test]
    fn missing_columns_stay_blank() {
        let grid = Grid { scale: 1, gap: 0, background: [1; 3], ..Grid::default() };
        let columns = [Some(images(2, 0)), None, Some(images(2, 5))];
        let drawn = grid.draw_columns(&columns).unwrap();
        assert_eq!(drawn.dimensions(), (12, 8));
        assert_eq!(drawn.get_pixel(6, 5).0, [1; 3]);
        assert_eq!(drawn.get_pixel(9, 5), columns[2].as_ref().unwrap().pixels[1].get_pixel(1, 1));
        assert!(grid.draw_columns(&[None]).is_err());
        assert!(grid.draw_columns(&[Some(images(2, 0)), Some(images(3, 0))]).is_err());
        let both = images(2, 0).interleaved(images(2, 5)).unwrap();
        assert_eq!(both.pixels[3], images(2, 5).pixels[1]);
        assert_eq!(both.deinterleaved(), (images(2, 0), images(2, 5)));
    }

    #[test]
    fn groups_are_apart_and_rows_leave_space_for_text() {
        let grid = Grid { columns: 4, scale: 1, gap: 1, group: 2, foot: 5, ..Grid::default() };
        let drawn = grid.draw(&images(6, 0)).unwrap();
        assert_eq!(drawn.dimensions(), (4 * 5 + 1 + GROUP_GAP, 2 * (5 + 5) + 1));
        let filled = |x: u32, y: u32| drawn.get_pixel(x, y).0 != [255; 3];
        assert_eq!(
            [1, 5, 6, 9, 10, 10 + GROUP_GAP, 11 + GROUP_GAP].map(|x| filled(x, 2)),
            [true, false, true, true, false, false, true]
        );
        assert_eq!([4, 5, 10, 11, 14, 15].map(|y| filled(2, y)), [true, false, false, true, true, false]);
        assert_eq!(grid.read(&drawn, 6, (4, 4)), Some(images(6, 0)));
        assert_eq!(grid.read(&drawn, 9, (4, 4)), None);
    }

    #[test]
    fn few_images_are_enlarged_further() {
        let scales = [(1, 32), (2, 32), (3, 32), (7, 32), (100, 32), (7, 64), (7, 128), (1, 128), (7, 28), (7, 1000)];
        assert_eq!(scales.map(|(columns, size)| Grid::of(columns, size).scale), [9, 4, 3, 3, 3, 2, 1, 2, 3, 1]);
    }

    #[test]
    fn squared_errors_are_those_of_the_scale_of_the_model() {
        let of = |values: &[f32]| ImageBatch::from_floats(values, [1, 1, 2]).unwrap();
        let errors = of(&[-1.0, -1.0, 0.2, 0.2]).squared_errors(&of(&[1.0, -1.0, 0.2, 0.2])).unwrap();
        assert_eq!(errors, [2.0, 0.0]);
        assert!(of(&[0.0, 0.0]).squared_errors(&of(&[0.0; 4])).is_err());
    }

    #[test]
    fn strips_are_cut_and_files_are_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("strip.png");
        let strip = Grid { columns: 1, scale: 1, gap: 0, ..Grid::default() };
        save_png(&path, &strip.draw(&images(10, 3)).unwrap(), &Caption::new("")).unwrap();
        let load = || ImageBatch::from_strip(&fs::read(&path).unwrap(), &path);
        assert_eq!(load().unwrap(), images(10, 3));
        let bytes = fs::read(&path).unwrap();
        for length in (0..bytes.len() - 12).step_by(7) {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(matches!(load(), Err(Error::File { .. })), "{length}");
        }
        save_png(&path, &RgbImage::new(3, 7), &Caption::new("")).unwrap();
        assert!(load().unwrap_err().to_string().starts_with("cannot decode "));
    }

    #[test]
    fn png_files_store_the_caption() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        let image = RgbImage::from_fn(7, 5, |x, y| Rgb([x as u8, y as u8, 9]));
        let caption = Caption::new("49 samples").with("run", "größe").with("epoch", 3);
        save_png(&path, &image, &caption).unwrap();
        assert_eq!(decode_rgb(&fs::read(&path).unwrap(), &path).unwrap(), image);
        let reader = png::Decoder::new(io::BufReader::new(fs::File::open(&path).unwrap())).read_info().unwrap();
        let info = reader.info();
        let texts: Vec<_> =
            info.uncompressed_latin1_text.iter().map(|t| (t.keyword.as_str(), t.text.as_str())).collect();
        let version = format!("vae-wgpu {}", env!("CARGO_PKG_VERSION"));
        assert_eq!(texts, [("Title", "49 samples"), ("epoch", "3"), ("Software", version.as_str())]);
        assert_eq!(info.utf8_text[0].keyword, "run");
        assert_eq!(info.utf8_text[0].get_text().unwrap(), "größe");
    }

    #[test]
    fn image_files_are_cropped_resized_and_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let wide = RgbImage::from_fn(90, 30, |x, _| Rgb(if (30..60).contains(&x) { [200, 40, 10] } else { [0; 3] }));
        for name in ["wide.png", "wide.jpg"] {
            let path = dir.path().join(name);
            wide.save(&path).unwrap();
            let image = ImageBatch::load(&path, 32).unwrap();
            assert_eq!(image.to_bytes().len(), 3 * 32 * 32);
            let middle = image.pixels[0].get_pixel(16, 16).0;
            assert!(middle.iter().zip([200, 40, 10]).all(|(&a, b)| a.abs_diff(b) < 6), "{middle:?}");
        }
        // A narrow strip is cropped before it is resized, and a false size in a header is rejected.
        let strip = RgbImage::from_pixel(1, 40_000, Rgb([1, 2, 3]));
        let path = dir.path().join("strip.png");
        strip.save(&path).unwrap();
        assert_eq!(ImageBatch::load(&path, 32).unwrap().pixels[0].get_pixel(9, 9).0, [1, 2, 3]);
        let mut lies = Vec::new();
        strip.write_to(&mut Cursor::new(&mut lies), ImageFormat::Jpeg).unwrap();
        let sizes = lies.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
        lies[sizes..sizes + 4].fill(0xf0);
        let error = ImageBatch::from_file(&lies, &path, 32).unwrap_err();
        assert!(
            matches!(&error, Error::File { source, .. } if source.to_string().contains("61680x61680")),
            "{error:?}"
        );
        let path = dir.path().join("text.png");
        fs::write(&path, "hello").unwrap();
        let error = ImageBatch::load(&path, 32).unwrap_err();
        assert!(error.to_string().starts_with("cannot decode the image "), "{error}");
    }
}
