//! Pieces of the page.

use std::fmt::{self, Display, Write};
use std::io::Cursor;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::{ImageFormat, RgbImage};

use crate::app::viz::image_grid::ImageBatch;

/// An encoded image file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    mime: &'static str,
    bytes: Vec<u8>,
}

/// Larger images are stored as JPEG, so that the page stays small.
const LOSSLESS: u32 = 32;
const JPEG_QUALITY: u8 = 90;

impl Encoded {
    /// Takes the bytes of a PNG file.
    #[must_use]
    pub fn png(bytes: Vec<u8>) -> Self {
        Self { mime: "image/png", bytes }
    }

    /// Encodes an image as JPEG, or without loss if it is at most 32 pixels wide. `None` if the encoder fails.
    #[must_use]
    pub fn new(image: &RgbImage) -> Option<Self> {
        let mut bytes = Cursor::new(Vec::new());
        if image.width() <= LOSSLESS {
            image.write_to(&mut bytes, ImageFormat::Png).ok()?;
            return Some(Self::png(bytes.into_inner()));
        }
        image.write_with_encoder(JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY)).ok()?;
        Some(Self { mime: "image/jpeg", bytes: bytes.into_inner() })
    }

    pub(super) fn tag(&self, alt: &str) -> String {
        format!("<img src=\"data:{};base64,{}\" alt=\"{}\">", self.mime, STANDARD.encode(&self.bytes), Escaped(alt))
    }
}

/// Text with the characters replaced that HTML gives a meaning, and control characters.
pub(super) struct Escaped<T>(pub(super) T);

impl<T: Display> Display for Escaped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_string().chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            '\n' | '\t' => f.write_char(' '),
            c if c.is_control() => f.write_char(char::REPLACEMENT_CHARACTER),
            c => f.write_char(c),
        })
    }
}

pub(super) fn section(title: &str, content: &str) -> String {
    if content.is_empty() { String::new() } else { format!("<h2>{title}</h2>\n{content}") }
}

/// A table with a title, which is omitted if it has no rows.
pub(super) fn group(title: &str, rows: &str) -> String {
    let title = if title.is_empty() { String::new() } else { format!("<h3>{title}</h3>") };
    let table = format!("<div class=\"group\">{title}<table class=\"list\">\n{rows}</table></div>\n");
    if rows.is_empty() { String::new() } else { table }
}

/// A table row of images.
pub(super) fn strip(label: &str, images: &ImageBatch, gap: bool) -> String {
    let cells = images.images().iter().enumerate().filter_map(|(i, image)| {
        Some(format!("<td>{}</td>", Encoded::new(image)?.tag(&format!("image {}, {label}", i + 1))))
    });
    let class = if gap { " class=\"gap\"" } else { "" };
    format!("<tr{class}><th scope=\"row\">{label}</th>{}</tr>\n", cells.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_small_images_are_stored_without_loss() {
        let start =
            |size| Encoded::new(&RgbImage::new(size, size)).map(|image| (image.mime, image.bytes[..2].to_vec()));
        assert_eq!(start(32), Some(("image/png", b"\x89P".to_vec())));
        assert_eq!(start(33), Some(("image/jpeg", b"\xff\xd8".to_vec())));
    }
}
