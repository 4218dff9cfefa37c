//! Parser for IDX files in the format of MNIST: grey images of at most 32x32 pixels, centred on a black 32x32 image, and their labels.
//!
//! A file of images begins with four big-endian numbers of four bytes: 2051, the number of images, height and width. A file of labels
//! begins with 2049 and the number of labels. One byte per pixel or label follows.

use std::collections::BTreeMap;

use super::{Dataset, InMemoryImages};
use crate::error::{Error, Result};

/// Files of a data set: training images and labels, test images and labels.
pub const FILES: [&str; 4] =
    ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"];
/// Size limit of an unpacked file; the largest of MNIST has 47,040,016 bytes.
pub const MAX_FILE: usize = 192 << 20;

/// Height and width of the images that the model gets.
const SIDE: usize = 32;
const IMAGES: u32 = 0x0803;
const LABELS: u32 = 0x0801;

/// Path, for messages, and bytes of each file, by its name in [`FILES`].
pub type Contents = BTreeMap<&'static str, (String, Vec<u8>)>;

/// Parses the files of a data set. `origin`, a folder, is used in messages. The classes are called by their numbers.
///
/// # Errors
/// [`Error::Data`] with all missing files, or with file, offset and contents of an invalid header or a wrong length.
pub fn parse(origin: &str, mut contents: Contents) -> Result<Dataset> {
    let missing: Vec<&str> = FILES.into_iter().filter(|f| !contents.contains_key(f)).collect();
    if !missing.is_empty() {
        let what = format!("not a complete copy of a data set in MNIST's format: {} missing", missing.join(", "));
        return Err(Error::data(origin, what, "copy all four files into the folder, unpacked or as .gz"));
    }
    let mut take = |name| contents.remove(name).unwrap_or_default();
    let mut half = |images, labels| -> Result<(Vec<u8>, Vec<u8>)> {
        let ((images, bytes), (labels, label_bytes)) = (take(images), take(labels));
        let pixels = centred(&images, &bytes)?;
        let count = pixels.len() / (SIDE * SIDE);
        let own = data_of(&labels, &label_bytes, LABELS)?;
        if own.len() != count {
            let what = format!("byte 4: {} labels, expected {count}, the number of images in {images}", own.len());
            return Err(damaged(&labels, what));
        }
        Ok((pixels, own.to_vec()))
    };
    let (train, test) = (half(FILES[0], FILES[1])?, half(FILES[2], FILES[3])?);
    let last = train.1.iter().chain(&test.1).max().copied().unwrap_or_default();
    let classes: Vec<String> = (0..=last).map(|class| class.to_string()).collect();
    let images = |(pixels, labels)| InMemoryImages::new((1, SIDE, SIDE), classes.clone(), labels, pixels);
    Dataset::new("MNIST format", origin, Box::new(images(train)?), Box::new(images(test)?))
}

/// Returns the images of a file, each in the middle of a black one of the size that the model gets.
fn centred(file: &str, bytes: &[u8]) -> Result<Vec<u8>> {
    let data = data_of(file, bytes, IMAGES)?;
    let (h, w) = (number(file, bytes, 8)? as usize, number(file, bytes, 12)? as usize);
    let count = data.len() / (h * w);
    let mut pixels = vec![0; count * SIDE * SIDE];
    let (top, left) = ((SIDE - h) / 2, (SIDE - w) / 2);
    for (image, padded) in data.chunks_exact(h * w).zip(pixels.chunks_exact_mut(SIDE * SIDE)) {
        for (row, padded) in image.chunks_exact(w).zip(padded.chunks_exact_mut(SIDE).skip(top)) {
            padded[left..left + w].copy_from_slice(row);
        }
    }
    Ok(pixels)
}

/// Checks the header and the length of a file and returns what follows the header.
fn data_of<'a>(file: &str, bytes: &'a [u8], magic: u32) -> Result<&'a [u8]> {
    let found = number(file, bytes, 0)?;
    if found != magic {
        let what = match found >> 16 {
            0x1f8b => "a gzip file without the extension .gz".to_owned(),
            _ => format!("{found:08x}, expected {magic:08x}"),
        };
        return Err(damaged(file, format!("byte 0: {what}")));
    }
    let count = number(file, bytes, 4)? as usize;
    let (header, item) = if magic == IMAGES {
        let (h, w) = (number(file, bytes, 8)? as usize, number(file, bytes, 12)? as usize);
        if !(1..=SIDE).contains(&h) || !(1..=SIDE).contains(&w) {
            let what = format!("byte 8: images of {h}x{w} pixels, expected at most {SIDE}x{SIDE}");
            let hint = "save larger images as PNG files and pass their folder, which has --image-size";
            return Err(Error::data(file, what, hint));
        }
        (16, h * w)
    } else {
        (8, 1)
    };
    let expected = count.checked_mul(item).and_then(|size| size.checked_add(header));
    if count == 0 {
        return Err(damaged(file, "byte 4: the header declares 0 items".to_owned()));
    }
    if expected != Some(bytes.len()) {
        let expected = expected.map_or_else(String::new, |size| format!(" and so {size} bytes"));
        let what = format!("byte 4: the header declares {count} items{expected}, and the file has {}", bytes.len());
        return Err(damaged(file, what));
    }
    Ok(&bytes[header..])
}

/// Returns the big-endian number at an offset.
fn number(file: &str, bytes: &[u8], at: usize) -> Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    let missing = || damaged(file, format!("byte {at}: the file ends within its header, after {} bytes", bytes.len()));
    word.map(u32::from_be_bytes).ok_or_else(missing)
}

fn damaged(file: &str, what: String) -> Error {
    Error::data(file, what, "the file is damaged or not in MNIST's format: download it again")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(magic: u32, sizes: &[u32], data: &[u8]) -> Vec<u8> {
        let header = std::iter::once(&magic).chain(sizes).flat_map(|n| n.to_be_bytes());
        header.chain(data.iter().copied()).collect()
    }

    fn images(count: u32, h: u32, w: u32) -> Vec<u8> {
        file(IMAGES, &[count, h, w], &(0..count * h * w).map(|i| (i % 251 + 1) as u8).collect::<Vec<_>>())
    }

    fn contents() -> Contents {
        let labels = |values: &[u8]| file(LABELS, &[values.len() as u32], values);
        let all = [images(3, 28, 28), labels(&[7, 0, 9]), images(2, 28, 28), labels(&[1, 2])];
        FILES.into_iter().zip(all).map(|(name, bytes)| (name, (format!("set/{name}"), bytes))).collect()
    }

    fn error_with(which: usize, bytes: Vec<u8>) -> String {
        let mut contents = contents();
        contents.insert(FILES[which], (format!("set/{}", FILES[which]), bytes));
        parse("set", contents).unwrap_err().to_string()
    }

    #[test]
    fn images_are_centred_on_black() {
        let data = parse("set", contents()).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.train.size()), (3, 2, (1, 32, 32)));
        assert_eq!((data.train.label(2), data.train.classes().len()), (9, 10));
        let mut image = vec![0; 1024];
        data.train.read_into(1, &mut image).unwrap();
        for (i, &pixel) in image.iter().enumerate() {
            let (y, x) = (i / 32, i % 32);
            let inside = (2..30).contains(&y) && (2..30).contains(&x);
            let expected = if inside { ((784 + (y - 2) * 28 + x - 2) % 251 + 1) as u8 } else { 0 };
            assert_eq!(pixel, expected, "{x} {y}");
        }
        // Odd sizes and the largest.
        for (h, w, at) in [(1, 1, 15 * 32 + 15), (32, 32, 0), (31, 5, 13)] {
            let mut contents = contents();
            contents.insert(FILES[0], (String::new(), images(3, h, w)));
            parse("set", contents).unwrap().train.read_into(0, &mut image).unwrap();
            assert_eq!(image.iter().position(|&p| p == 1), Some(at), "{h}x{w}");
        }
    }

    #[test]
    fn truncation_at_any_offset_is_an_error_with_the_offset() {
        for which in 0..4 {
            let whole = contents()[FILES[which]].1.clone();
            for len in 0..whole.len() {
                let header = [16, 8][which % 2];
                let at = if len < header { len / 4 * 4 } else { 4 };
                let error = error_with(which, whole[..len].to_vec());
                let expected = format!("cannot use set/{}: byte {at}: ", FILES[which]);
                assert!(error.starts_with(&expected), "{len}: {error}");
            }
            assert!(error_with(which, [&whole[..], &[0]].concat()).contains(": byte 4: "), "a longer file");
        }
    }

    #[test]
    fn wrong_headers_are_rejected() {
        assert!(error_with(0, file(LABELS, &[1], &[0])).contains("byte 0: 00000801, expected 00000803"));
        assert!(error_with(3, images(1, 1, 1)).contains("byte 0: 00000803, expected 00000801"));
        assert!(error_with(0, vec![0x1f, 0x8b, 8, 0]).contains("byte 0: a gzip file without the extension .gz"));
        for (h, w) in [(33, 28), (28, 33), (0, 28), (28, 0), (u32::MAX, u32::MAX)] {
            let error = error_with(0, file(IMAGES, &[1, h, w], &[]));
            assert!(error.contains(&format!("byte 8: images of {h}x{w} pixels, expected at most 32x32")), "{error}");
        }
        assert!(error_with(0, file(IMAGES, &[u32::MAX, 32, 32], &[0; 9])).contains("byte 4: "));
        assert!(error_with(0, file(IMAGES, &[0, 28, 28], &[])).contains("byte 4: the header declares 0 items"));
        let error = error_with(1, file(LABELS, &[2], &[1, 2]));
        assert!(error.contains("train-labels-idx1-ubyte: byte 4: 2 labels, expected 3, the number"), "{error}");
    }

    #[test]
    fn missing_files_are_listed() {
        let mut some = contents();
        some.remove(FILES[1]);
        some.remove(FILES[2]);
        let error = parse("set", some).unwrap_err().to_string();
        assert!(error.contains("train-labels-idx1-ubyte, t10k-images-idx3-ubyte missing"), "{error}");
    }
}
