//! Pictures: batches of pixels, grids of them, PNG files, and the user's own PNG and JPEG files.

use std::io::{self, Cursor};
use std::path::Path;

use image::imageops::FilterType;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, Rgb, RgbImage, imageops};

use crate::app::io::atomic;
use crate::error::{Error, Result};

/// A batch of pictures, `[count, 3, height, width]` bytes; grey ones are given as one channel and become three.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pictures {
    width: u32,
    height: u32,
    /// Row by row, colours together: what PNG files hold.
    pixels: Vec<RgbImage>,
}

impl Pictures {
    /// Pictures of `[n, channels, height, width]` bytes, for `n` as it comes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for channels other than 1 or 3, zero sizes, or a broken number of bytes.
    pub fn from_bytes(bytes: &[u8], [channels, height, width]: [usize; 3]) -> Result<Self> {
        let area = height * width;
        let mistake = |what: &str, expected: &str, found: usize| Err(Error::argument(what, expected, found));
        let (Ok(w), Ok(h)) = (u32::try_from(width), u32::try_from(height)) else {
            return mistake("image size", "less than 2^32", area);
        };
        if channels != 1 && channels != 3 {
            return mistake("number of image channels", "1 or 3", channels);
        }
        if area == 0 || !bytes.len().is_multiple_of(channels * area) {
            return mistake(
                "number of image bytes",
                &format!("a multiple of {channels}x{height}x{width}"),
                bytes.len(),
            );
        }
        let picture = |planes: &[u8]| {
            RgbImage::from_fn(w, h, |x, y| {
                let at = y as usize * width + x as usize;
                Rgb([0, 1, 2].map(|c| planes[(c % channels) * area + at]))
            })
        };
        Ok(Self { width: w, height: h, pixels: bytes.chunks_exact(channels * area).map(picture).collect() })
    }

    /// Pictures of `[n, channels, height, width]` numbers from -1 (black) to 1 (white); others are clamped.
    ///
    /// # Errors
    /// As [`Pictures::from_bytes`].
    pub fn from_floats(numbers: &[f32], dims: [usize; 3]) -> Result<Self> {
        let bytes: Vec<u8> = numbers.iter().map(|v| ((v + 1.0) * 127.5).round() as u8).collect();
        Self::from_bytes(&bytes, dims)
    }

    /// The picture in a PNG or JPEG file, upright, its middle cut out and resized to `size` x `size`.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or understood.
    pub fn load(path: &Path, size: u32) -> Result<Self> {
        Self::from_file(&atomic::read(path)?, path, size)
    }

    /// The same from the bytes of the file; `path` is for the message.
    ///
    /// # Errors
    /// [`Error::File`] where they make no sense.
    pub fn from_file(bytes: &[u8], path: &Path, size: u32) -> Result<Self> {
        let whole = decode(bytes, path)?;
        // Cut before it is enlarged: a narrow strip would become endlessly long.
        let side = whole.width().min(whole.height());
        let middle = whole.crop_imm((whole.width() - side) / 2, (whole.height() - side) / 2, side, side);
        drop(whole);
        let picture = middle.resize_exact(size, size, FilterType::CatmullRom).into_rgb8();
        Ok(Self { width: size, height: size, pixels: vec![picture] })
    }

    /// The pictures of a PNG file that [`Pictures::save_strip`] wrote, of which there is one a class at most.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be read or understood.
    pub fn load_strip(path: &Path) -> Result<Self> {
        Self::from_strip(&atomic::read(path)?, path)
    }

    /// The same from the bytes of the file; `path` is for the message.
    ///
    /// # Errors
    /// [`Error::File`] where they make no sense.
    pub fn from_strip(bytes: &[u8], path: &Path) -> Result<Self> {
        const MOST: u32 = 256;
        let strip = decode(bytes, path)?.into_rgb8();
        let (width, height) = strip.dimensions();
        if width == 0 || !height.is_multiple_of(width) || height / width > MOST {
            let why = format!("{width}x{height} pixels, expected a column of at most {MOST} square pictures");
            return Err(Error::malformed("decode", path, why));
        }
        let cut = |i| imageops::crop_imm(&strip, 0, i * width, width, width).to_image();
        Ok(Self { width, height: width, pixels: (0..height / width).map(cut).collect() })
    }

    /// Writes square pictures one below the other as a PNG file, without loss.
    ///
    /// # Errors
    /// [`Error::File`] where it cannot be written.
    pub fn save_strip(&self, path: &Path) -> Result<()> {
        let plain = Grid { columns: 1, scale: 1, gap: 0, ..Grid::default() };
        save_png(path, &plain.draw(self)?)
    }

    /// Number of pictures.
    #[must_use]
    pub fn len(&self) -> usize {
        self.pixels.len()
    }

    /// Width and height of each.
    #[must_use]
    pub fn size(&self) -> (u32, u32) {
        (self.width, self.height)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }

    /// The bytes as a model takes them: `[count, 3, height, width]`.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let plane = |picture: &RgbImage, c: usize| picture.pixels().map(|p| p.0[c]).collect::<Vec<_>>();
        self.pixels.iter().flat_map(|p| [0, 1, 2].map(|c| plane(p, c))).flatten().collect()
    }

    /// Appends pictures.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where they have another size.
    pub fn append(&mut self, other: Self) -> Result<()> {
        if (self.width, self.height) != (other.width, other.height) {
            let (expected, found) =
                (format!("{}x{}", self.width, self.height), format!("{}x{}", other.width, other.height));
            return Err(Error::argument("image size", expected, found));
        }
        self.pixels.extend(other.pixels);
        Ok(())
    }

    /// Pictures taken in turn from two batches: originals beside their reconstructions.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] where sizes or numbers of pictures differ.
    pub fn beside(self, other: Self) -> Result<Self> {
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
}

/// How pictures are laid out: row by row, each enlarged by `scale`, with `gap` around each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Pictures beside each other; default 7.
    pub columns: usize,
    /// Screen pixels of a pixel each way; default 3.
    pub scale: u32,
    /// Screen pixels between pictures and around all; default 2.
    pub gap: u32,
    /// Colour of gaps and of places without a picture; default white.
    pub background: [u8; 3],
}

impl Default for Grid {
    fn default() -> Self {
        Self { columns: 7, scale: 3, gap: 2, background: [255; 3] }
    }
}

/// ImageDecode that a drawn grid may have: 256 million, 768 MB.
const MAX_PIXELS: u64 = 1 << 28;

impl Grid {
    /// The grid as one picture.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a grid without columns or scale or one that is absurdly large.
    pub fn draw(&self, pictures: &Pictures) -> Result<RgbImage> {
        self.draw_cells(pictures.width, pictures.height, &pictures.pixels.iter().map(Some).collect::<Vec<_>>())
    }

    fn draw_cells(&self, width: u32, height: u32, cells: &[Option<&RgbImage>]) -> Result<RgbImage> {
        let Self { columns, scale, gap, background } = *self;
        let rows = cells.len().div_ceil(columns.max(1)).max(1);
        let side = |size: u32, count: usize| -> Option<u32> {
            let cell = size.checked_mul(scale)?.checked_add(gap)?;
            cell.checked_mul(u32::try_from(count).ok()?)?.checked_add(gap)
        };
        let sides = side(width, columns).zip(side(height, rows));
        let fits = |&(w, h): &(u32, u32)| columns > 0 && scale > 0 && u64::from(w) * u64::from(h) <= MAX_PIXELS;
        let Some((total_width, total_height)) = sides.filter(fits) else {
            let found = format!("{columns} columns, {rows} rows, scale {scale}");
            return Err(Error::argument("size of the grid", format!("1 to {MAX_PIXELS} pixels"), found));
        };
        let mut grid = RgbImage::from_pixel(total_width, total_height, Rgb(background));
        for (i, cell) in cells.iter().enumerate() {
            let Some(picture) = cell else { continue };
            let enlarged = imageops::resize(*picture, width * scale, height * scale, FilterType::Nearest);
            let place = |i: usize, size: u32| i64::from(gap + i as u32 * (size * scale + gap));
            imageops::replace(&mut grid, &enlarged, place(i % columns, width), place(i / columns, height));
        }
        Ok(grid)
    }

    /// A grid whose columns are batches of equal length, for those that are there: `columns[0]` is the left one.
    ///
    /// # Errors
    /// As [`Grid::draw`], and where the batches differ in size.
    pub fn draw_columns(&self, columns: &[Option<Pictures>]) -> Result<RgbImage> {
        let Some(first) = columns.iter().flatten().next() else {
            return Err(Error::argument("columns of the grid", "at least one that is present", "none"));
        };
        for other in columns.iter().flatten() {
            if (other.width, other.height, other.len()) != (first.width, first.height, first.len()) {
                let size = |p: &Pictures| format!("{} pictures of {}x{}", p.len(), p.width, p.height);
                return Err(Error::argument("column of the grid", size(first), size(other)));
            }
        }
        let row = |i: usize| columns.iter().map(move |column| column.as_ref().and_then(|c| c.pixels.get(i)));
        let cells: Vec<_> = (0..first.len()).flat_map(row).collect();
        Self { columns: columns.len(), ..*self }.draw_cells(first.width, first.height, &cells)
    }
}

/// Writes a PNG file, atomically.
///
/// # Errors
/// [`Error::File`] where it cannot be written.
pub fn save_png(path: &Path, picture: &RgbImage) -> Result<()> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).map_err(|e| Error::file("write", path)(io::Error::other(e)))?;
    atomic::save_atomic(path, bytes.get_ref())
}

/// Bytes of a decoded picture that a byte of its file can stand for. PNG: deflate's 1,032, for palette entries of a bit that become three
/// bytes. JPEG: a block of 8x8 pixels that are all the same takes a few bits for each colour; 1,024 leaves room for blank pages.
const PNG_EXPANSION: u64 = 1032 * 8 * 3;
const JPEG_EXPANSION: u64 = 1024;
/// The most bytes that a decoded picture may have (64 million pixels; phones take 50), and what the smallest may.
const MAX_MEMORY: u64 = 192 << 20;
const MIN_MEMORY: u64 = 1 << 20;

fn decode(bytes: &[u8], path: &Path) -> Result<DynamicImage> {
    let malformed = |error: image::ImageError| Error::malformed("decode the image", path, error);
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(Error::file("read", path))?;
    let expansion = if reader.format() == Some(ImageFormat::Jpeg) { JPEG_EXPANSION } else { PNG_EXPANSION };
    let most = (bytes.len() as u64).saturating_mul(expansion).clamp(MIN_MEMORY, MAX_MEMORY);
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(most);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(malformed)?;
    // Whatever size the header tells, no more is allocated than the file can fill.
    let (width, height) = decoder.dimensions();
    if width == 0 || height == 0 || decoder.total_bytes() > most {
        let why = format!("{width}x{height} pixels in {} bytes: expected what fits into {most} bytes", bytes.len());
        return Err(Error::malformed("decode the image", path, why));
    }
    let orientation = decoder.orientation().map_err(malformed)?;
    let mut picture = DynamicImage::from_decoder(decoder).map_err(malformed)?;
    picture.apply_orientation(orientation);
    Ok(picture)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const DIMS: [usize; 3] = [3, 4, 4];

    fn pictures(count: usize, first: u8) -> Pictures {
        let bytes: Vec<u8> = (0..count * 48).map(|i| (i * 7 + first as usize) as u8).collect();
        Pictures::from_bytes(&bytes, DIMS).unwrap()
    }

    #[test]
    fn bytes_come_back_and_planes_become_pixels() {
        let bytes: Vec<u8> = (0..96).collect();
        let pictures = Pictures::from_bytes(&bytes, DIMS).unwrap();
        assert_eq!(pictures.len(), 2);
        assert_eq!(pictures.to_bytes(), bytes);
        assert_eq!(pictures.pixels[1].get_pixel(3, 2).0, [48 + 11, 48 + 16 + 11, 48 + 32 + 11]);
        let grey = Pictures::from_bytes(&[1, 2, 3, 4], [1, 2, 2]).unwrap();
        assert_eq!(grey.pixels[0].get_pixel(1, 1).0, [4; 3]);
    }

    #[test]
    fn every_byte_survives_the_way_through_numbers() {
        let bytes: Vec<u8> = (0..=255).collect();
        let numbers: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 127.5 - 1.0).collect();
        assert_eq!(
            Pictures::from_floats(&numbers, [1, 16, 16]).unwrap(),
            Pictures::from_bytes(&bytes, [1, 16, 16]).unwrap()
        );
        let odd = Pictures::from_floats(&[-7.0, 3.0, f32::NAN, 0.0], [1, 2, 2]).unwrap();
        assert_eq!(odd.pixels[0].pixels().map(|p| p.0[0]).collect::<Vec<_>>(), [0, 255, 0, 128]);
    }

    #[test]
    fn sizes_are_checked() {
        for (length, dims) in [(48, [2, 4, 4]), (47, DIMS), (48, [3, 0, 4])] {
            assert!(matches!(Pictures::from_bytes(&vec![0; length], dims), Err(Error::InvalidArgument { .. })));
        }
        assert!(pictures(1, 0).append(Pictures::from_bytes(&[0; 4], [1, 2, 2]).unwrap()).is_err());
        assert!(pictures(1, 0).beside(pictures(2, 0)).is_err());
    }

    #[test]
    fn a_grid_places_enlarged_pictures() {
        let (pictures, grid) = (pictures(5, 0), Grid { columns: 3, scale: 2, gap: 1, background: [9, 8, 7] });
        let drawn = grid.draw(&pictures).unwrap();
        assert_eq!(drawn.dimensions(), (3 * 9 + 1, 2 * 9 + 1));
        for (x, y, pixel) in drawn.enumerate_pixels() {
            let (column, row) = (x / 9, y / 9);
            let inside = x % 9 > 0 && y % 9 > 0 && row * 3 + column < 5;
            let expected = if inside {
                *pictures.pixels[(row * 3 + column) as usize].get_pixel((x % 9 - 1) / 2, (y % 9 - 1) / 2)
            } else {
                Rgb([9, 8, 7])
            };
            assert_eq!(*pixel, expected, "{x} {y}");
        }
        for absurd in [Grid { columns: 0, ..grid }, Grid { scale: 0, ..grid }, Grid { scale: u32::MAX, ..grid }] {
            assert!(absurd.draw(&pictures).is_err());
        }
        assert!(Grid { scale: 5000, ..grid }.draw(&pictures).is_err());
    }

    #[test]
    fn columns_may_be_missing() {
        let grid = Grid { scale: 1, gap: 0, background: [1; 3], ..Grid::default() };
        let columns = [Some(pictures(2, 0)), None, Some(pictures(2, 5))];
        let drawn = grid.draw_columns(&columns).unwrap();
        assert_eq!(drawn.dimensions(), (12, 8));
        assert_eq!(drawn.get_pixel(6, 5).0, [1; 3]);
        assert_eq!(drawn.get_pixel(9, 5), columns[2].as_ref().unwrap().pixels[1].get_pixel(1, 1));
        assert!(grid.draw_columns(&[None]).is_err());
        assert!(grid.draw_columns(&[Some(pictures(2, 0)), Some(pictures(3, 0))]).is_err());
        let both = pictures(2, 0).beside(pictures(2, 5)).unwrap();
        assert_eq!(both.pixels[3], pictures(2, 5).pixels[1]);
    }

    #[test]
    fn strips_keep_every_pixel() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("strip.png");
        pictures(10, 3).save_strip(&path).unwrap();
        assert_eq!(Pictures::load_strip(&path).unwrap(), pictures(10, 3));
        let bytes = fs::read(&path).unwrap();
        for length in (0..bytes.len() - 12).step_by(7) {
            fs::write(&path, &bytes[..length]).unwrap();
            assert!(matches!(Pictures::load_strip(&path), Err(Error::File { .. })), "{length}");
        }
    }

    #[test]
    fn files_of_users_are_cut_and_resized() {
        let dir = tempfile::tempdir().unwrap();
        let wide = RgbImage::from_fn(90, 30, |x, _| Rgb(if (30..60).contains(&x) { [200, 40, 10] } else { [0; 3] }));
        for name in ["wide.png", "wide.jpg"] {
            let path = dir.path().join(name);
            wide.save(&path).unwrap();
            let picture = Pictures::load(&path, 32).unwrap();
            assert_eq!(picture.to_bytes().len(), 3 * 32 * 32);
            let middle = picture.pixels[0].get_pixel(16, 16).0;
            assert!(middle.iter().zip([200, 40, 10]).all(|(&a, b)| a.abs_diff(b) < 6), "{middle:?}");
        }
        // A strip is cut before it is enlarged; what a header tells is not believed.
        let strip = RgbImage::from_pixel(1, 40_000, Rgb([1, 2, 3]));
        let path = dir.path().join("strip.png");
        strip.save(&path).unwrap();
        assert_eq!(Pictures::load(&path, 32).unwrap().pixels[0].get_pixel(9, 9).0, [1, 2, 3]);
        let mut lies = Vec::new();
        strip.write_to(&mut Cursor::new(&mut lies), ImageFormat::Jpeg).unwrap();
        let sizes = lies.windows(2).position(|w| w == [0xff, 0xc0]).unwrap() + 5;
        lies[sizes..sizes + 4].fill(0xf0);
        let error = Pictures::from_file(&lies, &path, 32).unwrap_err();
        assert!(
            matches!(&error, Error::File { source, .. } if source.to_string().contains("61680x61680")),
            "{error:?}"
        );
        let path = dir.path().join("text.png");
        fs::write(&path, "hello").unwrap();
        let error = Pictures::load(&path, 32).unwrap_err();
        assert!(error.to_string().starts_with("cannot decode the image "), "{error}");
    }
}
