//! Data sets in memory: CIFAR-10 from bytes, built-in shapes, or images of the caller.
//!
//! A data set has two [`Images`], one for training and one for validation. Images are bytes, channel by channel (NCHW), and leave
//! this module as batches. The model scales them to `[-1, 1]`. Everything random here (order, flips, crops, shapes) is a
//! pure function of seed and position, so a run can be resumed at any step.
//!
//! This module uses neither files nor the network. The application reads CIFAR-10 from them.

use std::fmt::{self, Debug};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

pub mod augment;
pub mod cifar10;
pub mod shapes;

pub use augment::Augment;

/// Labelled images of one size. [`batch`] reads several of them.
pub trait Images: Send + Sync + Debug {
    /// Returns the number of images.
    fn len(&self) -> usize;

    /// Returns whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns channels, height and width of every image.
    fn size(&self) -> (usize, usize, usize);

    /// Returns the names of the classes. Labels are indices of it.
    fn classes(&self) -> &[String];

    /// Returns the label of image `index`, which is below [`Images::len`].
    fn label(&self, index: usize) -> u8;

    /// Reads image `index` into `pixels`, `c * h * w` bytes: one plane after the other.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if `index` is too large or `pixels` has another length.
    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()>;
}

/// Images in memory.
#[derive(Clone)]
pub struct InMemoryImages {
    size: (usize, usize, usize),
    classes: Vec<String>,
    labels: Vec<u8>,
    pixels: Vec<u8>,
}

impl InMemoryImages {
    /// Wraps images of `size` (channels, height, width) in `pixels` (`labels.len() * c * h * w` bytes, NCHW). Labels are below
    /// `classes.len()`.
    pub fn new(size: (usize, usize, usize), classes: Vec<String>, labels: Vec<u8>, pixels: Vec<u8>) -> Result<Self> {
        let bytes = image_bytes(size)?;
        let expected = bytes.checked_mul(labels.len());
        if expected != Some(pixels.len()) {
            let expected = format!("{bytes} for each of {} labels", labels.len());
            return Err(Error::argument("number of pixel bytes", expected, pixels.len()));
        }
        if let Some((i, label)) = labels.iter().enumerate().find(|(_, l)| usize::from(**l) >= classes.len()) {
            return Err(Error::argument(format!("label {i}"), format!("less than {}", classes.len()), label));
        }
        Ok(Self { size, classes, labels, pixels })
    }
}

impl Debug for InMemoryImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryImages")
            .field("len", &self.labels.len())
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl Images for InMemoryImages {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn size(&self) -> (usize, usize, usize) {
        self.size
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u8 {
        self.labels[index]
    }

    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        check_read(self, index, pixels)?;
        let bytes = pixels.len();
        pixels.copy_from_slice(&self.pixels[index * bytes..][..bytes]);
        Ok(())
    }
}

/// The first images of others.
#[derive(Debug)]
struct First {
    images: Box<dyn Images>,
    len: usize,
}

impl Images for First {
    fn len(&self) -> usize {
        self.len
    }

    fn size(&self) -> (usize, usize, usize) {
        self.images.size()
    }

    fn classes(&self) -> &[String] {
        self.images.classes()
    }

    fn label(&self, index: usize) -> u8 {
        self.images.label(index)
    }

    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        self.images.read_into(index, pixels)
    }
}

/// Images for training and images for validation, of the same size and classes.
#[derive(Debug)]
pub struct Dataset {
    /// Name, e.g. `CIFAR-10`.
    pub name: String,
    /// Origin, e.g. a path.
    pub provenance: String,
    /// Training images.
    pub train: Box<dyn Images>,
    /// Validation images, which are never used for training.
    pub test: Box<dyn Images>,
}

impl Dataset {
    /// Creates a data set. Both halves must have images, of the same size and classes.
    pub fn new(
        name: impl Into<String>,
        provenance: impl Into<String>,
        train: Box<dyn Images>,
        test: Box<dyn Images>,
    ) -> Result<Self> {
        let name = name.into();
        for (half, images) in [("training", &train), ("test", &test)] {
            if images.is_empty() {
                return Err(Error::argument(format!("number of {half} images of {name}"), "at least 1", 0));
            }
        }
        if train.size() != test.size() {
            let size = |(c, h, w)| format!("{c}x{h}x{w}");
            return Err(Error::argument(
                format!("size of the test images of {name}"),
                size(train.size()),
                size(test.size()),
            ));
        }
        if train.classes() != test.classes() {
            let names = |images: &dyn Images| images.classes().join(", ");
            return Err(Error::argument(
                format!("classes of the test images of {name}"),
                names(&*train),
                names(&*test),
            ));
        }
        Ok(Self { name, provenance: provenance.into(), train, test })
    }

    /// Keeps the first `train` and the first `test` images. A limit above their number keeps all. A limit of 0 is an error.
    pub fn limited(self, train: Option<usize>, test: Option<usize>) -> Result<Self> {
        let first = |half: &str, images: Box<dyn Images>, limit: Option<usize>| match limit {
            Some(0) => Err(Error::argument(format!("limit of {half} images"), "at least 1", 0)),
            Some(len) if len < images.len() => Ok(Box::new(First { images, len }) as Box<dyn Images>),
            _ => Ok(images),
        };
        let (train, test) = (first("training", self.train, train)?, first("test", self.test, test)?);
        Ok(Self { train, test, name: self.name, provenance: self.provenance })
    }

    /// Returns a line that identifies the data set: number and size of the images, and a checksum over a thousand of each half
    /// with their labels.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for images of an impossible size.
    pub fn fingerprint(&self) -> Result<String> {
        const LOOKED_AT: usize = 1000;
        let mut checksum = crc32fast::Hasher::new();
        for images in [&self.train, &self.test] {
            let mut picture = vec![0; image_bytes(images.size())?];
            for i in (0..images.len()).step_by(images.len().div_ceil(LOOKED_AT).max(1)) {
                images.read_into(i, &mut picture)?;
                checksum.update(&picture);
                checksum.update(&[images.label(i)]);
            }
        }
        let ((c, h, w), train, test) = (self.train.size(), self.train.len(), self.test.len());
        Ok(format!("{train} and {test} pictures of {c}x{h}x{w}, checksum {:08x}", checksum.finalize()))
    }

    /// Computes counts and statistics of both halves. Reads every image once.
    pub fn describe(&self) -> Result<Description> {
        let (channels, height, width) = self.train.size();
        Ok(Description {
            name: self.name.clone(),
            provenance: self.provenance.clone(),
            channels,
            height,
            width,
            classes: self.train.classes().to_vec(),
            train: Statistics::of(&*self.train)?,
            test: Statistics::of(&*self.test)?,
        })
    }
}

/// Checks the arguments of [`Images::read_into`].
fn check_read(images: &dyn Images, index: usize, pixels: &[u8]) -> Result<()> {
    if index >= images.len() {
        return Err(Error::argument("index of an image", format!("less than {}", images.len()), index));
    }
    let bytes = image_bytes(images.size())?;
    if pixels.len() != bytes {
        return Err(Error::argument("length of the buffer for an image", bytes, pixels.len()));
    }
    Ok(())
}

/// Returns the bytes of one image.
pub(crate) fn image_bytes((c, h, w): (usize, usize, usize)) -> Result<usize> {
    let bytes = c.checked_mul(h).and_then(|b| b.checked_mul(w)).filter(|&b| b > 0);
    bytes.ok_or_else(|| Error::argument("image size", "three positive numbers", format!("{c}x{h}x{w}")))
}

/// Reads the images at `indices` into `pixels`, in that order: `indices.len() * c * h * w` bytes, NCHW.
pub fn batch(images: &dyn Images, indices: &[u32], pixels: &mut Vec<u8>) -> Result<()> {
    let bytes = image_bytes(images.size())?;
    if let Some(index) = indices.iter().find(|i| **i as usize >= images.len()) {
        return Err(Error::argument("index of an image", format!("less than {}", images.len()), index));
    }
    pixels.resize(bytes * indices.len(), 0);
    for (picture, &index) in pixels.chunks_exact_mut(bytes).zip(indices) {
        images.read_into(index as usize, picture)?;
    }
    Ok(())
}

/// Returns the order in which epoch `epoch` (from 0) visits `len` images (at most 2^32 - 1): a permutation that depends on the arguments
/// alone, on every platform.
#[must_use]
pub fn epoch_order(seed: u64, epoch: u64, len: usize) -> Vec<u32> {
    let len = u32::try_from(len).unwrap_or(u32::MAX);
    let mut rng = rng::stream(seed, Stream::Shuffle, epoch);
    let mut order: Vec<u32> = (0..len).collect();
    for last in (1..len).rev() {
        order.swap(last as usize, rng::below(&mut rng, last + 1) as usize);
    }
    order
}

/// Description of a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// Name of the data set.
    pub name: String,
    /// Origin.
    pub provenance: String,
    /// Channels of an image.
    pub channels: usize,
    /// Rows of an image.
    pub height: usize,
    /// Columns of an image.
    pub width: usize,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Training images.
    pub train: Statistics,
    /// Validation images.
    pub test: Statistics,
}

/// Counts and statistics of one half of a data set.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Returns the number of images.
    pub images: usize,
    /// Number of images of each class.
    pub histogram: Vec<usize>,
    /// Mean of each channel, from 0 to 1 (byte / 255).
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, in the same units.
    pub std: Vec<f64>,
}

impl Statistics {
    /// Reads every image once. Sums are exact.
    pub fn of(images: &dyn Images) -> Result<Self> {
        let (channels, ..) = images.size();
        let bytes = image_bytes(images.size())?;
        let mut picture = vec![0u8; bytes];
        let mut histogram = vec![0usize; images.classes().len()];
        let mut sums = vec![(0u64, 0u64); channels];
        for index in 0..images.len() {
            images.read_into(index, &mut picture)?;
            if let Some(count) = histogram.get_mut(usize::from(images.label(index))) {
                *count += 1;
            }
            for (plane, (sum, squares)) in picture.chunks_exact(bytes / channels).zip(&mut sums) {
                *sum += plane.iter().map(|&b| u64::from(b)).sum::<u64>();
                *squares += plane.iter().map(|&b| u64::from(b) * u64::from(b)).sum::<u64>();
            }
        }
        let count = (images.len() * (bytes / channels)).max(1) as f64;
        let moments = |&(sum, squares): &(u64, u64)| {
            let mean = sum as f64 / count;
            (mean / 255.0, (squares as f64 / count - mean * mean).max(0.0).sqrt() / 255.0)
        };
        let (mean, std) = sums.iter().map(moments).unzip();
        Ok(Self { images: images.len(), histogram, mean, std })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny(count: usize) -> InMemoryImages {
        let classes = vec!["a".to_owned(), "b".to_owned()];
        let labels = (0..count).map(|i| (i % 2) as u8).collect();
        InMemoryImages::new((1, 2, 2), classes, labels, (0..count * 4).map(|i| i as u8).collect()).unwrap()
    }

    #[test]
    fn epoch_order_is_a_fixed_permutation() {
        let order = epoch_order(0, 0, 1000);
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..1000).collect::<Vec<u32>>());
        assert_eq!(order, epoch_order(0, 0, 1000));
        assert_ne!(order, epoch_order(0, 1, 1000));
        assert_ne!(order, epoch_order(1, 0, 1000));
        assert_eq!(epoch_order(3, 2, 12), GOLDEN, "the meaning of a seed has changed");
        assert!(epoch_order(0, 0, 0).is_empty());
    }

    const GOLDEN: [u32; 12] = [4, 10, 2, 9, 3, 1, 11, 8, 5, 7, 6, 0];

    #[test]
    fn orders_are_even() {
        let mut counts = [[0u32; 5]; 5];
        for epoch in 0..10_000 {
            for (place, &index) in epoch_order(1, epoch, 5).iter().enumerate() {
                counts[place][index as usize] += 1;
            }
        }
        assert!(counts.iter().flatten().all(|c| c.abs_diff(2000) < 200), "{counts:?}");
    }

    #[test]
    fn batches_contain_the_requested_images() {
        let images = tiny(5);
        let mut pixels = vec![9; 100];
        batch(&images, &[4, 0], &mut pixels).unwrap();
        assert_eq!(pixels, [16, 17, 18, 19, 0, 1, 2, 3]);
        batch(&images, &[], &mut pixels).unwrap();
        assert!(pixels.is_empty());
        let error = batch(&images, &[0, 5], &mut pixels).unwrap_err().to_string();
        assert!(error.contains("less than 5") && error.contains("found 5"), "{error}");
    }

    #[test]
    fn limits_keep_the_first_images() {
        let new = || Dataset::new("tiny", "test", Box::new(tiny(5)), Box::new(tiny(3))).unwrap();
        let both = new().limited(Some(2), Some(100)).unwrap();
        assert_eq!((both.train.len(), both.test.len()), (2, 3));
        assert_eq!(both.train.label(1), 1);
        assert!(new().limited(None, Some(0)).is_err());
        assert!(new().limited(Some(0), None).is_err());
        let described = both.describe().unwrap();
        assert_eq!(described.train.histogram, [1, 1]);
        assert!((described.train.mean[0] - 3.5 / 255.0).abs() < 1e-12);
        assert!((described.train.std[0] - 5.25f64.sqrt() / 255.0).abs() < 1e-12);
    }

    #[test]
    fn mismatched_images_are_rejected() {
        let classes = || vec!["a".to_owned()];
        assert!(InMemoryImages::new((1, 2, 2), classes(), vec![0], vec![0; 5]).is_err());
        assert!(InMemoryImages::new((1, 2, 2), classes(), vec![1], vec![0; 4]).is_err());
        assert!(InMemoryImages::new((0, 2, 2), classes(), vec![], vec![]).is_err());
        assert!(InMemoryImages::new((usize::MAX, 2, 2), classes(), vec![0], vec![0; 4]).is_err());
        let empty = InMemoryImages::new((1, 2, 2), classes(), vec![], vec![]).unwrap();
        assert!(Dataset::new("x", "y", Box::new(tiny(1)), Box::new(empty)).is_err());
        let other = InMemoryImages::new((1, 4, 1), vec!["a".into(), "b".into()], vec![0], vec![0; 4]).unwrap();
        assert!(Dataset::new("x", "y", Box::new(tiny(1)), Box::new(other)).is_err());
    }
}
