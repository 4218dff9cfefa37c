//! Images as text that a terminal shows: a graphics protocol, or half blocks, which every terminal with colours can draw.

use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::imageops::{self, ColorMap, FilterType, dither};
use image::{ImageFormat, Rgb, RgbImage, Rgba, RgbaImage};

use crate::error::{Error, Result};

/// Columns and lines of each image. A character is about twice as high as wide.
pub const COLUMNS: usize = 16;
const LINES: u32 = 8;
/// Side of each image in pixels, as the graphics protocols get it.
const SIDE: u32 = 96;

/// How to show an image in a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// The graphics protocol of kitty.
    Kitty,
    /// The inline images of iTerm2.
    Iterm2,
    /// Sixel graphics, with 216 colours.
    Sixel,
    /// Upper half blocks with 24-bit foreground and background colours.
    TrueColor,
    /// The same with the 216 colours of the colour cube that terminals with 256 colours have.
    Cube,
}

/// Returns the number of images in a row that is at most `width` columns wide.
#[must_use]
pub fn fitting(width: usize) -> usize {
    (width + 1) / (COLUMNS + 1)
}

/// Draws images of any size in a row of [`COLUMNS`] columns each, with a column between them. The text ends with a line break.
///
/// # Errors
/// [`Error::Bug`] if the images cannot be encoded.
pub fn row<'a>(images: impl IntoIterator<Item = &'a RgbImage>, protocol: Protocol) -> Result<String> {
    let side = match protocol {
        Protocol::TrueColor | Protocol::Cube => COLUMNS as u32,
        _ => SIDE,
    };
    let tiles: Vec<_> = images.into_iter().map(|image| tile(image, side, protocol)).collect();
    if tiles.is_empty() {
        return Ok(String::new());
    }
    // What lies between the images is transparent.
    let count = tiles.len() as u32;
    let step = side + side / COLUMNS as u32;
    let mut row = RgbaImage::new(count * step - (step - side), side);
    for (x, tile) in (0..).step_by(step as usize).zip(&tiles) {
        for (dx, y, &Rgb([r, g, b])) in tile.enumerate_pixels() {
            row.put_pixel(x + dx, y, Rgba([r, g, b, u8::MAX]));
        }
    }
    let columns = count * (COLUMNS as u32 + 1) - 1;
    let mut text = match protocol {
        Protocol::Kitty => kitty(&png(&row)?, columns),
        Protocol::Iterm2 => iterm2(&png(&row)?, columns),
        Protocol::Sixel => sixel(&row),
        Protocol::TrueColor => half_blocks(&row, |[r, g, b]| format!("2;{r};{g};{b}")),
        Protocol::Cube => half_blocks(&row, |rgb| format!("5;{}", 16 + Cube.index_of(&Rgb(rgb)))),
    };
    text.push('\n');
    Ok(text)
}

/// An image with `side` x `side` pixels, for sixel graphics in the colours of the cube.
fn tile(image: &RgbImage, side: u32, protocol: Protocol) -> RgbImage {
    // Pixels that are enlarged stay squares.
    let filter = if image.width() <= side { FilterType::Nearest } else { FilterType::Triangle };
    let mut tile = imageops::resize(image, side, side, filter);
    // Half blocks are so few that dithered ones look like noise.
    if protocol == Protocol::Sixel {
        dither(&mut tile, &Cube);
    }
    tile
}

/// The colour cube of terminals with 256 colours, where it begins at colour 16.
struct Cube;

impl Cube {
    const LEVELS: [u8; 6] = [0, 95, 135, 175, 215, 255];

    fn level(value: u8) -> usize {
        // Halfway between the levels.
        [48, 115, 155, 195, 235].iter().filter(|&&limit| value >= limit).count()
    }
}

impl ColorMap for Cube {
    type Color = Rgb<u8>;

    fn index_of(&self, Rgb([r, g, b]): &Rgb<u8>) -> usize {
        36 * Self::level(*r) + 6 * Self::level(*g) + Self::level(*b)
    }

    fn map_color(&self, color: &mut Rgb<u8>) {
        color.0 = color.0.map(|value| Self::LEVELS[Self::level(value)]);
    }
}

fn png(image: &RgbaImage) -> Result<Vec<u8>> {
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).map_err(Error::bug)?;
    Ok(bytes.into_inner())
}

/// <https://sw.kovidgoyal.net/kitty/graphics-protocol>: transmit and display a PNG file, in chunks of at most 4,096 characters. The
/// terminal scales it to columns and lines, and sends no answer (`q=2`).
fn kitty(png: &[u8], columns: u32) -> String {
    const CHUNK: usize = 4096;
    let encoded = STANDARD.encode(png);
    let mut text = String::new();
    let mut rest = encoded.as_str();
    let mut control = format!("a=T,f=100,q=2,c={columns},r={LINES},");
    while !rest.is_empty() {
        let (chunk, others) = rest.split_at(CHUNK.min(rest.len()));
        let more = u8::from(!others.is_empty());
        text += &format!("\x1b_G{control}m={more};{chunk}\x1b\\");
        control.clear();
        rest = others;
    }
    text
}

/// <https://iterm2.com/documentation-images.html>: a file in base64, shown in place.
fn iterm2(png: &[u8], columns: u32) -> String {
    let encoded = STANDARD.encode(png);
    let size = png.len();
    format!("\x1b]1337;File=inline=1;size={size};width={columns};height={LINES};preserveAspectRatio=0:{encoded}\x07")
}

/// Sixel graphics: bands of six rows. In a band, each colour has a line of characters whose lowest six bits, after 63 is subtracted, are the
/// pixels of a column in that colour. The image must have the colours of the cube.
fn sixel(image: &RgbaImage) -> String {
    const BAND: u32 = 6;
    let (width, height) = image.dimensions();
    let color = |x: u32, y: u32| match image.get_pixel_checked(x, y) {
        Some(&Rgba([r, g, b, u8::MAX])) => Some(Cube.index_of(&Rgb([r, g, b]))),
        _ => None,
    };
    // Pixels without a colour stay as they are (second parameter), and pixels are squares (first numbers in quotes).
    let mut text = format!("\x1bP0;1;0q\"1;1;{width};{height}");
    for index in 0..216 {
        let percent = |level: usize| (u32::from(Cube::LEVELS[level]) * 100 + 127) / 255;
        let [r, g, b] = [index / 36, index / 6 % 6, index % 6].map(percent);
        text += &format!("#{index};2;{r};{g};{b}");
    }
    for top in (0..height).step_by(BAND as usize) {
        // The bits of each column, for each colour.
        let mut lines = vec![Vec::new(); 216];
        for (x, y) in (0..BAND).flat_map(|y| (0..width).map(move |x| (x, y))) {
            if let Some(index) = color(x, top + y) {
                lines[index].resize(width as usize, 0u8);
                lines[index][x as usize] |= 1 << y;
            }
        }
        for (index, line) in lines.iter().enumerate().filter(|(_, line)| !line.is_empty()) {
            text += &format!("#{index}");
            for run in line.chunk_by(|a, b| a == b) {
                let character = char::from(63 + run[0]);
                text += &format!("!{}{character}", run.len());
            }
            // Back to the left for the next colour.
            text.push('$');
        }
        text.push('-');
    }
    text += "\x1b\\";
    text
}

/// A character for two pixels, one above the other: its upper half has the foreground colour, the rest is background.
fn half_blocks(image: &RgbaImage, color: impl Fn([u8; 3]) -> String) -> String {
    let mut text = String::new();
    for y in (0..image.height()).step_by(2) {
        let mut last = None;
        for x in 0..image.width() {
            let [upper, lower] = [y, y + 1].map(|y| image.get_pixel_checked(x, y).copied().unwrap_or(Rgba([0; 4])).0);
            let colors = (upper[3] > 0).then(|| [upper, lower].map(|[r, g, b, _]| color([r, g, b])));
            if colors != last {
                match &colors {
                    Some([upper, lower]) => text += &format!("\x1b[38;{upper};48;{lower}m"),
                    None => text += "\x1b[0m",
                }
            }
            text.push(if colors.is_some() { '▀' } else { ' ' });
            last = colors;
        }
        text += "\x1b[0m";
        if y + 2 < image.height() {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of 32x32 pixels with a gradient each.
    fn images() -> [RgbImage; 2] {
        [40, 200].map(|blue| RgbImage::from_fn(32, 32, |x, y| Rgb([8 * x as u8, 8 * y as u8, blue])))
    }

    #[test]
    fn rows_fit_the_terminal() {
        assert_eq!([0, 15, 16, 32, 33, 60, 80, 100, 200].map(fitting), [0, 0, 1, 1, 2, 3, 4, 5, 11]);
        let text = row(&images(), Protocol::TrueColor).unwrap();
        let lines: Vec<_> = text.lines().map(console::strip_ansi_codes).collect();
        assert_eq!(lines.len(), LINES as usize);
        let block = "▀".repeat(COLUMNS);
        assert!(lines.iter().all(|line| *line == format!("{block} {block}")), "{lines:?}");
        assert_eq!(row(&[], Protocol::Kitty).unwrap(), "");
    }

    #[test]
    fn half_blocks_hold_two_pixels_each() {
        let pixel = |value: u8| Rgba([value, 0, 9, 255]);
        let image = RgbaImage::from_fn(3, 2, |x, y| if x == 1 { Rgba([0; 4]) } else { pixel((x + 10 * y) as u8) });
        let text = half_blocks(&image, |[r, g, b]| format!("2;{r};{g};{b}"));
        assert_eq!(text, "\x1b[38;2;0;0;9;48;2;10;0;9m▀\x1b[0m \x1b[38;2;2;0;9;48;2;12;0;9m▀\x1b[0m");
        // Equal colours are named once, and an odd last row has a black one below it.
        let text = half_blocks(&RgbaImage::from_pixel(2, 3, pixel(1)), |[r, ..]| format!("5;{r}"));
        assert_eq!(text, "\x1b[38;5;1;48;5;1m▀▀\x1b[0m\n\x1b[38;5;1;48;5;0m▀▀\x1b[0m");
    }

    #[test]
    fn cube_is_that_of_terminals_with_256_colors() {
        let index = |rgb: [u8; 3]| 16 + Cube.index_of(&Rgb(rgb));
        assert_eq!([[0; 3], [255; 3], [255, 0, 0], [0, 95, 135], [1, 94, 136]].map(index), [16, 231, 196, 24, 24]);
        // The nearest level in every case.
        for value in 0..=255u8 {
            let distance = |level: &u8| level.abs_diff(value);
            let nearest = Cube::LEVELS.iter().map(distance).min().unwrap();
            assert_eq!(Cube::LEVELS[Cube::level(value)].abs_diff(value), nearest, "{value}");
        }
        // Dithered, the mean of a grey between two levels remains.
        let tile = tile(&RgbImage::from_pixel(32, 32, Rgb([115; 3])), SIDE, Protocol::Sixel);
        let mean = tile.pixels().map(|p| f64::from(p.0[0])).sum::<f64>() / f64::from(SIDE * SIDE);
        assert!(tile.pixels().all(|p| [95, 135].contains(&p.0[0])) && (mean - 115.0).abs() < 2.0, "{mean}");
    }

    /// The image in a PNG file in base64.
    fn decoded(base64: &str) -> RgbaImage {
        image::load_from_memory(&STANDARD.decode(base64).unwrap()).unwrap().into_rgba8()
    }

    /// The pixels of the second image, enlarged three times.
    fn assert_second_image(row: &RgbaImage) {
        assert_eq!(row.dimensions(), (2 * 96 + 6, 96));
        for (x, y, pixel) in images()[1].enumerate_pixels() {
            let found = row.get_pixel(102 + 3 * x + 1, 3 * y + 1);
            assert_eq!(found.0, [pixel.0[0], pixel.0[1], pixel.0[2], 255], "{x} {y}");
        }
        assert_eq!(row.get_pixel(98, 50).0[3], 0);
    }

    #[test]
    fn kitty_gets_a_png_file_in_chunks() {
        let noise =
            RgbImage::from_fn(96, 96, |x, y| Rgb([(x * x * 7 + y * y * 13) as u8, (x * y) as u8, (x ^ y) as u8]));
        let text = row([&noise, &images()[1]], Protocol::Kitty).unwrap();
        let chunks: Vec<_> = text.strip_suffix("\x1b\\\n").unwrap().split("\x1b\\").collect();
        assert!(chunks.len() > 2, "{}", chunks.len());
        let mut whole = String::new();
        for (i, chunk) in chunks.iter().enumerate() {
            let (control, data) = chunk.strip_prefix("\x1b_G").unwrap().split_once(';').unwrap();
            let more = u8::from(i + 1 < chunks.len());
            let first = if i == 0 { "a=T,f=100,q=2,c=33,r=8," } else { "" };
            assert_eq!(control, format!("{first}m={more}"));
            assert!(data.len() == 4096 || more == 0, "{}", data.len());
            whole += data;
        }
        assert_second_image(&decoded(&whole));
    }

    #[test]
    fn iterm2_gets_a_png_file() {
        let text = row(&images(), Protocol::Iterm2).unwrap();
        let (arguments, data) = text.strip_suffix("\x07\n").unwrap().split_once(':').unwrap();
        let size = STANDARD.decode(data).unwrap().len();
        let expected = format!("\x1b]1337;File=inline=1;size={size};width=33;height=8;preserveAspectRatio=0");
        assert_eq!(arguments, expected);
        assert_second_image(&decoded(data));
    }

    /// Draws sixel graphics: the colour of each pixel, if it has one.
    fn draw_sixel(text: &str) -> (Vec<Vec<Option<usize>>>, Vec<String>) {
        let data = text.strip_prefix("\x1bP0;1;0q\"1;1;").unwrap().strip_suffix("\x1b\\\n").unwrap();
        let start = data.find('#').unwrap();
        let (width, height) = data[..start].split_once(';').unwrap();
        let mut pixels = vec![vec![None; width.parse().unwrap()]; height.parse().unwrap()];
        let (mut palette, mut color, mut x, mut band) = (Vec::new(), 0, 0, 0);
        let mut rest = &data[start..];
        while let Some(command) = rest.chars().next() {
            let end = rest[1..].find(|c: char| !c.is_ascii_digit() && c != ';').map_or(rest.len(), |end| end + 1);
            let argument = &rest[1..end];
            rest = &rest[end..];
            match command {
                '#' => match argument.split_once(";2;") {
                    Some((index, rgb)) => {
                        assert_eq!(index, palette.len().to_string());
                        palette.push(rgb.to_owned());
                    }
                    None => color = argument.parse().unwrap(),
                },
                '$' => x = 0,
                '-' => (x, band) = (0, band + 6),
                '!' => {
                    let bits = rest.as_bytes()[0] - 63;
                    rest = &rest[1..];
                    for _ in 0..argument.parse().unwrap() {
                        (0..6).filter(|y| bits & (1 << y) != 0).for_each(|y| pixels[band + y][x] = Some(color));
                        x += 1;
                    }
                }
                other => panic!("{other}"),
            }
        }
        (pixels, palette)
    }

    #[test]
    fn sixel_graphics_hold_every_pixel() {
        let (pixels, palette) = draw_sixel(&row(&images(), Protocol::Sixel).unwrap());
        assert_eq!((palette.len(), palette[0].as_str(), palette[215].as_str()), (216, "0;0;0", "100;100;100"));
        assert_eq!((palette[36 + 2].as_str(), pixels.len(), pixels[0].len()), ("37;0;53", 96, 198));
        let tiles = images().map(|image| tile(&image, SIDE, Protocol::Sixel));
        for (y, row) in pixels.iter().enumerate() {
            for (x, found) in row.iter().enumerate() {
                let expected = match x {
                    0..96 => Some(tiles[0].get_pixel(x as u32, y as u32)),
                    96..102 => None,
                    _ => Some(tiles[1].get_pixel(x as u32 - 102, y as u32)),
                };
                assert_eq!(*found, expected.map(|pixel| Cube.index_of(pixel)), "{x} {y}");
            }
        }
    }
}
