//! Parser for the binary files of CIFAR-100: records of 3,074 bytes, a coarse label and a fine label followed by the red, green and blue
//! planes of a 32x32 image. The fine labels are the classes.

use super::cifar10::{Contents, Layout, class_names, member};
use super::{Dataset, InMemoryImages};
use crate::error::{Error, Result};

/// Name of the folder in the official archive, and of an unpacked copy.
pub const FOLDER: &str = "cifar-100-binary";
/// Name of the official archive.
pub const ARCHIVE: &str = "cifar-100-binary.tar.gz";
/// Address of the official archive.
pub const URL: &str = "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz";

/// Bytes of a record: two labels and 3,072 pixel values.
pub const RECORD: usize = LAYOUT.record();
/// Size limit of a file; the largest of CIFAR-100 has 153,700,000 bytes.
pub const MAX_FILE: usize = 160 << 20;

const LAYOUT: Layout = Layout { name: "CIFAR-100", url: URL, labels: &[20, 100] };
const TRAIN: &str = "train.bin";
const TEST: &str = "test.bin";
const NAMES: &str = "fine_label_names.txt";
const CLASSES: usize = 100;

/// Files of the data set. The last, the names of the classes, is optional.
pub const FILES: [&str; 3] = [TRAIN, TEST, NAMES];

/// Parses the files of the data set. `origin`, a folder or an archive, is used in messages. Without a file of names, the classes are
/// called by their numbers.
///
/// # Errors
/// [`Error::Data`] with all missing files, or with file, offset and contents of an invalid record.
pub fn parse(origin: &str, mut contents: Contents) -> Result<Dataset> {
    let missing: Vec<&str> = [TRAIN, TEST].into_iter().filter(|f| !contents.contains_key(f)).collect();
    if !missing.is_empty() {
        return Err(Error::data(
            origin,
            format_args!("not a complete copy of CIFAR-100's binary version: {} missing", missing.join(", ")),
            format_args!("it holds train.bin and test.bin, as {URL} does"),
        ));
    }
    let classes = match contents.get(NAMES) {
        Some(text) => class_names(&member(origin, NAMES), text, CLASSES)?,
        None => (0..CLASSES).map(|class| class.to_string()).collect(),
    };
    let mut half = |file| {
        let bytes = contents.remove(file).unwrap_or_default();
        let count = bytes.len() / RECORD;
        let (mut labels, mut pixels) = (Vec::with_capacity(count), Vec::with_capacity(count * 3 * 32 * 32));
        LAYOUT.parse(&member(origin, file), &bytes, &mut labels, &mut pixels)?;
        InMemoryImages::new((3, 32, 32), classes.clone(), labels, pixels)
    };
    let (train, test) = (half(TRAIN)?, half(TEST)?);
    Dataset::new("CIFAR-100", origin, Box::new(train), Box::new(test))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(records: usize) -> Vec<u8> {
        (0..records).flat_map(|i| [vec![(i % 20) as u8, (99 - i) as u8], vec![i as u8; RECORD - 2]].concat()).collect()
    }

    fn contents() -> Contents {
        let names = (0..CLASSES).map(|i| format!("class {i}\n")).collect::<String>();
        [(TRAIN, file(5)), (TEST, file(2)), (NAMES, names.into_bytes())].into()
    }

    fn error_with(name: &'static str, bytes: Vec<u8>) -> String {
        let mut contents = contents();
        contents.insert(name, bytes);
        parse("set", contents).unwrap_err().to_string()
    }

    #[test]
    fn fine_labels_are_the_classes() {
        let data = parse("set", contents()).unwrap();
        assert_eq!((data.train.len(), data.test.len(), data.train.size()), (5, 2, (3, 32, 32)));
        assert_eq!((data.train.label(4), data.train.classes()[95].as_str()), (95, "class 95"));
        let mut image = vec![0; RECORD - 2];
        data.train.read_into(4, &mut image).unwrap();
        assert_eq!(image, vec![4; RECORD - 2]);
        let mut unnamed = contents();
        unnamed.remove(NAMES);
        assert_eq!(parse("set", unnamed).unwrap().train.classes()[95], "95");
    }

    #[test]
    fn truncation_at_any_offset_is_an_error_with_the_offset() {
        let whole = file(3);
        for len in (0..whole.len()).filter(|l| l % RECORD != 0 || *l == 0) {
            let error = error_with(TRAIN, whole[..len].to_vec());
            let at = format!("cannot use set/train.bin: byte {}:", len / RECORD * RECORD);
            assert!(error.starts_with(&at), "{len}: {error}");
        }
    }

    #[test]
    fn labels_out_of_range_are_rejected() {
        for (at, label, most) in [(0, 20, 19), (1, 100, 99)] {
            let mut bytes = file(3);
            bytes[RECORD + at] = label;
            let error = error_with(TEST, bytes);
            let expected = format!("test.bin: byte {}: record 1 has label {label}, expected 0 to {most}", RECORD + at);
            assert!(error.contains(&expected), "{error}");
        }
    }

    #[test]
    fn missing_files_and_invalid_names_are_reported() {
        let mut some = contents();
        some.remove(TEST);
        let error = parse("set", some).unwrap_err().to_string();
        assert!(error.contains("test.bin missing") && error.contains(URL), "{error}");
        assert!(error_with(NAMES, b"apple\n".to_vec()).contains("1 names of classes in 6 bytes, expected 100"));
    }
}
