//! Parser for the binary files of CIFAR-10: records of 3,073 bytes, a label followed by the red, green and blue planes of a 32x32 image.

use std::collections::BTreeMap;

use super::{Dataset, InMemoryImages};
use crate::error::{Error, Result};

/// Name of the folder in the official archive, and of an unpacked copy.
pub const FOLDER: &str = "cifar-10-batches-bin";
/// Name of the official archive.
pub const ARCHIVE: &str = "cifar-10-binary.tar.gz";
/// Address of the official archive.
pub const URL: &str = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz";

/// Bytes of a record: one label and 3,072 pixel values.
pub const RECORD: usize = LAYOUT.record();
/// Size limit of a file; those of CIFAR-10 have 30,730,000 bytes.
pub const MAX_FILE: usize = 32 << 20;

const LAYOUT: Layout = Layout { name: "CIFAR-10", url: URL, labels: &[10] };
const PIXELS: usize = 3 * 32 * 32;
const TRAIN: [&str; 5] =
    ["data_batch_1.bin", "data_batch_2.bin", "data_batch_3.bin", "data_batch_4.bin", "data_batch_5.bin"];
const TEST: &str = "test_batch.bin";
const NAMES: &str = "batches.meta.txt";
const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

/// Files of a data set, in the order in which they are read. All but the last are required.
pub const FILES: [&str; 7] = [TRAIN[0], TRAIN[1], TRAIN[2], TRAIN[3], TRAIN[4], TEST, NAMES];

/// Contents of the files, by their names in [`FILES`].
pub type Contents = BTreeMap<&'static str, Vec<u8>>;

/// Returns the entry of [`FILES`] that equals `name`.
#[must_use]
pub fn known(name: &str) -> Option<&'static str> {
    FILES.into_iter().find(|f| *f == name)
}

/// Parses the files of a data set. `origin`, a folder or an archive, is used in messages.
///
/// # Errors
/// [`Error::Data`] with all missing files, or with file, offset and contents of an invalid record.
pub fn parse(origin: &str, mut contents: Contents) -> Result<Dataset> {
    let missing: Vec<&str> = FILES.into_iter().filter(|f| *f != NAMES && !contents.contains_key(f)).collect();
    if !missing.is_empty() {
        return Err(Error::data(
            origin,
            format_args!("not a complete copy of CIFAR-10's binary version: {} missing", missing.join(", ")),
            format_args!("it holds data_batch_1.bin to data_batch_5.bin and test_batch.bin, as {URL} does"),
        ));
    }
    let classes = match contents.get(NAMES) {
        Some(text) => class_names(&member(origin, NAMES), text, CLASSES.len())?,
        None => CLASSES.map(str::to_owned).to_vec(),
    };
    let mut half = |files: &[&'static str]| {
        let total: usize = files.iter().filter_map(|f| contents.get(f)).map(Vec::len).sum();
        let (mut labels, mut pixels) =
            (Vec::with_capacity(total / RECORD), Vec::with_capacity(total / RECORD * PIXELS));
        for file in files {
            // Each file is dropped once it is parsed, to avoid a second copy of 180 MB.
            let bytes = contents.remove(file).unwrap_or_default();
            LAYOUT.parse(&member(origin, file), &bytes, &mut labels, &mut pixels)?;
        }
        InMemoryImages::new((3, 32, 32), classes.clone(), labels, pixels)
    };
    let (train, test) = (half(&TRAIN)?, half(&[TEST])?);
    Dataset::new("CIFAR-10", origin, Box::new(train), Box::new(test))
}

/// Parses one of the files with images, such as `data_batch_1.bin`. `origin` is used in messages.
///
/// # Errors
/// [`Error::Data`] with offset and contents of an invalid record.
pub fn parse_file(origin: &str, bytes: &[u8]) -> Result<InMemoryImages> {
    let (mut labels, mut pixels) = (Vec::new(), Vec::new());
    LAYOUT.parse(origin, bytes, &mut labels, &mut pixels)?;
    InMemoryImages::new((3, 32, 32), CLASSES.map(str::to_owned).to_vec(), labels, pixels)
}

/// Returns the path of a file in `origin`, for messages.
pub(crate) fn member(origin: &str, file: &str) -> String {
    format!("{}/{file}", origin.trim_end_matches(['/', '\\']))
}

/// Layout of the records of a data set: labels, then the red, green and blue planes of a 32x32 image.
pub(super) struct Layout {
    /// Name of the data set.
    pub(super) name: &'static str,
    /// Address of its archive.
    pub(super) url: &'static str,
    /// Number of values of each label byte. The last label is the class.
    pub(super) labels: &'static [u8],
}

impl Layout {
    /// Returns the bytes of a record.
    pub(super) const fn record(&self) -> usize {
        self.labels.len() + PIXELS
    }

    /// Appends the records of `bytes` to `labels` and `pixels`.
    pub(super) fn parse(&self, file: &str, bytes: &[u8], labels: &mut Vec<u8>, pixels: &mut Vec<u8>) -> Result<()> {
        let size = self.record();
        let damaged = |what: String| {
            let Self { name, url, .. } = self;
            Err(Error::data(file, what, format_args!("the file is damaged or not from {name}: download {url} again")))
        };
        if bytes.is_empty() {
            return damaged(format!("byte 0: the file is empty, expected records of {size} bytes"));
        }
        for (i, record) in bytes.chunks(size).enumerate() {
            let offset = i * size;
            let Some((own, image)) = record.split_at_checked(self.labels.len()).filter(|_| record.len() == size) else {
                return damaged(format!(
                    "byte {offset}: record {i} has {} of {size} bytes; the size of {} bytes is not a multiple of {size}",
                    record.len(),
                    bytes.len()
                ));
            };
            let mut known = own.iter().zip(self.labels).enumerate();
            if let Some((at, (label, values))) = known.find(|(_, (label, values))| label >= values) {
                let last = values - 1;
                return damaged(format!("byte {}: record {i} has label {label}, expected 0 to {last}", offset + at));
            }
            labels.extend(own.last());
            pixels.extend_from_slice(image);
        }
        Ok(())
    }
}

/// Parses `count` names, one per line. Ignores blank lines.
pub(super) fn class_names(file: &str, bytes: &[u8], count: usize) -> Result<Vec<String>> {
    let reject = |what: String| Err(Error::data(file, what, "delete the file to use the standard names"));
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(e) => {
            return reject(format!("byte {}: not UTF-8, expected {count} names of classes", e.valid_up_to()));
        }
    };
    let names: Vec<String> =
        text.trim_start_matches('\u{feff}').lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect();
    if names.len() != count {
        return reject(format!("{} names of classes in {} bytes, expected {count}", names.len(), bytes.len()));
    }
    if let Some(i) = names.iter().position(|n| n.chars().count() > 64 || n.chars().any(char::is_control)) {
        return reject(format!("line {}: expected a name of at most 64 printable characters", i + 1));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::data::Images;

    fn file(records: usize) -> Vec<u8> {
        (0..records).flat_map(|i| [vec![(i % 10) as u8], vec![i as u8; PIXELS]].concat()).collect()
    }

    fn contents() -> Contents {
        let mut contents: Contents = FILES[..6].iter().map(|f| (*f, file(3))).collect();
        contents.insert(NAMES, CLASSES.join("\n").into_bytes());
        contents
    }

    fn error_with(name: &'static str, bytes: Vec<u8>) -> String {
        let mut contents = contents();
        contents.insert(name, bytes);
        parse("set", contents).unwrap_err().to_string()
    }

    #[test]
    fn files_are_joined_in_order() {
        let mut contents = contents();
        contents.insert(TRAIN[4], file(5));
        let data = parse("set", contents).unwrap();
        assert_eq!((data.train.len(), data.test.len()), (17, 3));
        assert_eq!((data.train.label(16), data.train.classes()[3].as_str()), (4, "cat"));
        let mut image = vec![0; PIXELS];
        data.train.read_into(16, &mut image).unwrap();
        assert_eq!(image, vec![4; PIXELS]);
    }

    #[test]
    fn single_files_are_parsed() {
        let images = parse_file("some.bin", &file(3)).unwrap();
        assert_eq!((images.len(), images.size(), images.label(2)), (3, (3, 32, 32), 2));
        let error = parse_file("some.bin", &file(3)[1..]).unwrap_err().to_string();
        assert!(error.starts_with("cannot use some.bin: byte 6146:"), "{error}");
    }

    #[test]
    fn truncation_at_any_offset_is_an_error_with_the_offset() {
        let whole = file(3);
        for len in (0..whole.len()).filter(|l| l % RECORD != 0 || *l == 0) {
            let error = error_with(TRAIN[2], whole[..len].to_vec());
            let at = format!("cannot use set/data_batch_3.bin: byte {}:", len / RECORD * RECORD);
            assert!(error.starts_with(&at), "{len}: {error}");
        }
    }

    #[test]
    fn labels_over_nine_are_rejected() {
        let mut bytes = file(3);
        bytes[2 * RECORD] = 10;
        let error = error_with(TEST, bytes);
        assert!(error.contains("test_batch.bin: byte 6146: record 2 has label 10, expected 0 to 9"), "{error}");
    }

    #[test]
    fn missing_files_are_listed() {
        let mut some = contents();
        some.remove(TRAIN[1]);
        some.remove(TEST);
        let error = parse("set", some).unwrap_err().to_string();
        assert!(error.contains("data_batch_2.bin, test_batch.bin missing") && error.contains(URL), "{error}");
        let mut unnamed = contents();
        unnamed.remove(NAMES);
        assert_eq!(parse("set", unnamed).unwrap().train.classes(), CLASSES);
    }

    #[test]
    fn invalid_class_names_are_rejected() {
        assert!(error_with(NAMES, b"cat\ndog\n".to_vec()).contains("2 names"));
        assert!(error_with(NAMES, vec![b'a', 0xff]).contains("byte 1"));
        assert!(error_with(NAMES, b"a\nb\nc\nd\ne\nf\ng\nh\ni\n\x1b[2J".to_vec()).contains("line 10"));
    }
}
