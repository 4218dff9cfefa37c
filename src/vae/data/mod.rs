//! Data sets: CIFAR-10, CIFAR-100, IDX files as of MNIST, built-in shapes, or images of the caller.
//!
//! A data set consists of training and test [`Images`]. Images are bytes in the order channel, row, column. [`batch`] reads them;
//! the model scales them to -1 to 1. Shuffling, augmentation and shapes are functions of seed and index, so a run can resume at any
//! step.
//!
//! This module does not access files or the network. The application reads the files of data sets.

use std::fmt::{self, Debug};
use std::ops::{Deref, Range};
use std::sync::Arc;

use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::sys::threads;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;

#[cfg(feature = "archive")]
pub mod archive;
pub mod augment;
pub mod cifar10;
pub mod cifar100;
pub mod idx;
pub mod shapes;

pub use augment::Augment;

/// Labelled images of one size.
///
/// ```
/// use vae_wgpu::prelude::*;
///
/// // Two grey images of 2x2 pixels, of one class.
/// let pixels = vec![0, 1, 2, 3, 10, 11, 12, 13];
/// let images = InMemoryImages::new((1, 2, 2), vec!["ramp".into()], vec![0, 0], pixels)?;
/// let mut pixels = Vec::new();
/// data::batch(&images, &[1, 0], &mut pixels)?;
/// assert_eq!(pixels, [10, 11, 12, 13, 0, 1, 2, 3]);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
pub trait Images: Send + Sync + Debug {
    /// Returns the number of images.
    fn len(&self) -> usize;

    /// Returns whether there are no images.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns channels, height and width of every image.
    fn size(&self) -> (usize, usize, usize);

    /// Returns the names of the classes, which labels index.
    fn classes(&self) -> &[String];

    /// Returns the label of image `index`. May panic unless `index` is less than [`Images::len`].
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
    /// Creates images of `size` (channels, height, width) from `pixels`, `[labels.len(), c, h, w]`. Each label is less than
    /// `classes.len()`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a label without a class or another number of bytes.
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

/// Some of other images. `I` is a box or another pointer to them.
#[derive(Clone, Debug)]
pub(crate) struct Subset<I> {
    images: I,
    indices: Vec<u32>,
}

impl<I: Deref<Target: Images> + Clone> Subset<I> {
    /// All images.
    pub(crate) fn all(images: I) -> Self {
        let indices = (0..images.len() as u32).collect();
        Self { images, indices }
    }

    /// Splits images at random into two parts, of which the second has this share. The split is the same in every run.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a part would be empty.
    pub(crate) fn split(images: I, share: f64) -> Result<[Self; 2]> {
        let set_aside = (images.len() as f64 * share).round() as usize;
        if set_aside == 0 || set_aside >= images.len() {
            let expected =
                format!("a share of {} images that leaves both parts at least 1; 0 for no split", images.len());
            return Err(Error::argument("share for validation (val-split)", expected, share));
        }
        let mut order = epoch_order(0, 0, images.len());
        let mut second = order.split_off(images.len() - set_aside);
        order.sort_unstable();
        second.sort_unstable();
        Ok([order, second].map(|indices| Self { images: images.clone(), indices }))
    }
}

impl<I: Deref<Target: Images> + Send + Sync + Debug> Images for Subset<I> {
    fn len(&self) -> usize {
        self.indices.len()
    }

    fn size(&self) -> (usize, usize, usize) {
        self.images.size()
    }

    fn classes(&self) -> &[String] {
        self.images.classes()
    }

    fn label(&self, index: usize) -> u8 {
        self.images.label(self.indices[index] as usize)
    }

    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        check_read(self, index, pixels)?;
        self.images.read_into(self.indices[index] as usize, pixels)
    }
}

/// Splits images at random into two parts, of which the second has this share. The split is the same in every run.
///
/// # Errors
/// [`Error::InvalidArgument`] if a part would be empty.
pub fn split(images: &Arc<dyn Images>, share: f64) -> Result<[Arc<dyn Images>; 2]> {
    Ok(Subset::split(Arc::clone(images), share)?.map(|part| Arc::new(part) as Arc<dyn Images>))
}

/// Training and test images of the same size and classes.
#[derive(Debug)]
pub struct Dataset {
    /// Name, e.g. `CIFAR-10`.
    pub name: String,
    /// Source, e.g. a path.
    pub provenance: String,
    /// Training images.
    pub train: Box<dyn Images>,
    /// Test images.
    pub test: Box<dyn Images>,
}

/// Images with the labels of another list of classes.
#[derive(Debug)]
struct Relabelled {
    images: Box<dyn Images>,
    classes: Vec<String>,
    /// The new label for each old one.
    labels: Vec<u8>,
}

impl Images for Relabelled {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn size(&self) -> (usize, usize, usize) {
        self.images.size()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u8 {
        self.labels[usize::from(self.images.label(index))]
    }

    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        self.images.read_into(index, pixels)
    }
}

impl Dataset {
    /// Returns the data set with the labels of a conditional model: classes are matched by name. Without classes, or where those of the
    /// model are only numbers, it stays as it is.
    ///
    /// # Errors
    /// [`Error::Data`] for a class that the model does not have.
    pub fn with_classes(self, classes: &[String]) -> Result<Self> {
        let own = self.train.classes();
        if classes.is_empty() || own == classes {
            return Ok(self);
        }
        let are_numbers = classes.iter().enumerate().all(|(number, class)| *class == number.to_string());
        let mut labels = Vec::with_capacity(own.len());
        for name in own {
            let equal = classes.iter().position(|class| class == name);
            let similar = || classes.iter().position(|class| class.eq_ignore_ascii_case(name));
            let Some(label) = equal.or_else(similar) else {
                if are_numbers && own.len() <= classes.len() {
                    return Ok(self);
                }
                let what = format!("the model has no class `{name}`, only {}", classes.join(", "));
                let hint = "name the folders after the classes of the model, or pass image files with --class";
                return Err(Error::data(&self.name, what, hint));
            };
            labels.push(label as u8);
        }
        let relabelled = |images| {
            Box::new(Relabelled { images, classes: classes.to_vec(), labels: labels.clone() }) as Box<dyn Images>
        };
        Ok(Self { train: relabelled(self.train), test: relabelled(self.test), ..self })
    }

    /// Creates a data set.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if there are no training or no test images, or if they differ in size or classes.
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

    /// Keeps the first `train` training images and the first `test` test images. `None`, or more than there are, keeps all.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a limit of 0.
    pub fn limited(self, train: Option<usize>, test: Option<usize>) -> Result<Self> {
        let first = |half: &str, images: Box<dyn Images>, limit: Option<usize>| match limit {
            Some(0) => Err(Error::argument(format!("limit of {half} images"), "at least 1", 0)),
            Some(len) if len < images.len() => {
                Ok(Box::new(Subset { images, indices: (0..len as u32).collect() }) as Box<dyn Images>)
            }
            _ => Ok(images),
        };
        let (train, test) = (first("training", self.train, train)?, first("test", self.test, test)?);
        Ok(Self { train, test, name: self.name, provenance: self.provenance })
    }

    /// Returns a line that identifies the data set: number and size of its images, and a checksum over the pixels and labels of up to
    /// a thousand training and a thousand test images. Checkpoints contain it.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an invalid image size, and errors of the images.
    pub fn fingerprint(&self) -> Result<String> {
        const SAMPLED: usize = 1000;
        let mut checksum = crc32fast::Hasher::new();
        for images in [&self.train, &self.test] {
            let mut image = vec![0; image_bytes(images.size())?];
            for i in (0..images.len()).step_by(images.len().div_ceil(SAMPLED).max(1)) {
                images.read_into(i, &mut image)?;
                checksum.update(&image);
                checksum.update(&[images.label(i)]);
            }
        }
        let ((c, h, w), train, test) = (self.train.size(), self.train.len(), self.test.len());
        // The text is part of the checkpoint format.
        Ok(format!("{train} and {test} pictures of {c}x{h}x{w}, checksum {:08x}", checksum.finalize()))
    }

    /// Returns counts and statistics of training and test images. Reads every image once.
    ///
    /// # Errors
    /// As [`Statistics::of`].
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
pub(crate) fn check_read(images: &dyn Images, index: usize, pixels: &[u8]) -> Result<()> {
    if index >= images.len() {
        return Err(Error::argument("index of an image", format!("less than {}", images.len()), index));
    }
    let bytes = image_bytes(images.size())?;
    if pixels.len() != bytes {
        return Err(Error::argument("length of the buffer for an image", bytes, pixels.len()));
    }
    Ok(())
}

/// Returns the number of bytes of an image.
pub(crate) fn image_bytes((c, h, w): (usize, usize, usize)) -> Result<usize> {
    let bytes = c.checked_mul(h).and_then(|b| b.checked_mul(w)).filter(|&b| b > 0);
    bytes.ok_or_else(|| Error::argument("image size", "three positive numbers", format!("{c}x{h}x{w}")))
}

/// Replaces `pixels` by the images with these indices, `[indices.len(), c, h, w]`.
///
/// # Errors
/// [`Error::InvalidArgument`] for an index without an image, and errors of the images.
pub fn batch(images: &dyn Images, indices: &[u32], pixels: &mut Vec<u8>) -> Result<()> {
    let bytes = image_bytes(images.size())?;
    if let Some(index) = indices.iter().find(|i| **i as usize >= images.len()) {
        return Err(Error::argument("index of an image", format!("less than {}", images.len()), index));
    }
    pixels.resize(bytes * indices.len(), 0);
    for (image, &index) in pixels.chunks_exact_mut(bytes).zip(indices) {
        images.read_into(index as usize, image)?;
    }
    Ok(())
}

/// Returns the labels of the images with these indices, each less than [`Images::len`].
#[must_use]
pub fn labels(images: &dyn Images, indices: &[u32]) -> Vec<u8> {
    indices.iter().map(|&index| images.label(index as usize)).collect()
}

/// Returns the shuffled batches of an epoch, in the order of [`epoch_order`]: the bytes of `size` images each, fewer in the last.
///
/// # Errors
/// As [`batch`].
pub fn batches(images: &dyn Images, size: usize, seed: u64, epoch: u64) -> impl Iterator<Item = Result<Vec<u8>>> {
    let order = epoch_order(seed, epoch, images.len());
    let size = size.max(1);
    (0..order.len().div_ceil(size)).map(move |i| {
        let mut pixels = Vec::new();
        batch(images, &order[i * size..order.len().min((i + 1) * size)], &mut pixels)?;
        Ok(pixels)
    })
}

/// Returns the order of `len` images (at most 2^32 - 1) in an epoch: a permutation that depends on the arguments alone, on every
/// platform.
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
    /// Source, e.g. a path.
    pub provenance: String,
    /// Channels of an image.
    pub channels: usize,
    /// Height of an image in pixels.
    pub height: usize,
    /// Width of an image in pixels.
    pub width: usize,
    /// Names of the classes.
    pub classes: Vec<String>,
    /// Training images.
    pub train: Statistics,
    /// Test images.
    pub test: Statistics,
}

/// Counts and moments of images.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Statistics {
    /// Number of images.
    pub images: usize,
    /// Number of images of each class.
    pub histogram: Vec<usize>,
    /// Mean of each channel, from 0 (byte 0) to 1 (byte 255).
    pub mean: Vec<f64>,
    /// Standard deviation of each channel, in the same units.
    pub std: Vec<f64>,
}

/// Images whose statistics a thread computes at a time.
const IMAGES_PER_PART: usize = 500;

impl Statistics {
    /// Computes the statistics of `images`, with exact sums. Reads every image once.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for an invalid image size, and errors of the images.
    pub fn of(images: &dyn Images) -> Result<Self> {
        let (channels, ..) = images.size();
        let bytes = image_bytes(images.size())?;
        // Sums of pixel values and of their squares, for each channel.
        let sums_of = |range: &Range<usize>| {
            let mut image = vec![0u8; bytes];
            let mut sums = vec![(0u64, 0u64); channels];
            for index in range.clone() {
                images.read_into(index, &mut image)?;
                for (plane, (sum, squares)) in image.chunks_exact(bytes / channels).zip(&mut sums) {
                    *sum += plane.iter().map(|&b| u64::from(b)).sum::<u64>();
                    *squares += plane.iter().map(|&b| u64::from(b) * u64::from(b)).sum::<u64>();
                }
            }
            Ok(sums)
        };
        let starts = (0..images.len()).step_by(IMAGES_PER_PART);
        let parts: Vec<_> = starts.map(|start| start..images.len().min(start + IMAGES_PER_PART)).collect();
        let mut sums = vec![(0, 0); channels];
        for part in threads::map(&parts, sums_of)? {
            for ((sum, squares), (more, more_squares)) in sums.iter_mut().zip(part) {
                (*sum, *squares) = (*sum + more, *squares + more_squares);
            }
        }
        let mut histogram = vec![0usize; images.classes().len()];
        for index in 0..images.len() {
            if let Some(count) = histogram.get_mut(usize::from(images.label(index))) {
                *count += 1;
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
    fn classes_are_matched_by_name() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let dataset = |own: &[&str]| {
            let half = || {
                let images = InMemoryImages::new((1, 1, 1), names(own), vec![1, 0], vec![5, 6]);
                Box::new(images.unwrap())
            };
            Dataset::new("pets", "here", half(), half()).unwrap()
        };
        let of = |own: &[&str], classes: &[&str]| {
            let relabelled = dataset(own).with_classes(&names(classes))?;
            let mut pixels = [0];
            relabelled.test.read_into(1, &mut pixels)?;
            assert_eq!((pixels, relabelled.test.len(), relabelled.test.size()), ([6], 2, (1, 1, 1)));
            Ok::<_, Error>((relabelled.train.classes().len(), [0, 1].map(|index| relabelled.train.label(index))))
        };
        let labels = |classes: &[&str]| of(&["cat", "dog"], classes);
        assert_eq!(labels(&["plane", "Dog", "cat"]).unwrap(), (3, [1, 2]));
        assert_eq!(of(&["1", "3"], &["0", "1", "2", "3"]).unwrap(), (4, [3, 1]));
        for same in [&["cat", "dog"][..], &[], &["0", "1", "2"]] {
            assert_eq!(labels(same).unwrap(), (2, [1, 0]), "{same:?}");
        }
        assert_eq!(labels(&["DOG", "dog", "CAT", "cat"]).unwrap(), (4, [1, 3]));
        let error = labels(&["cat", "horse"]).unwrap_err().to_string();
        assert!(error.contains("no class `dog`, only cat, horse"), "{error}");
    }

    #[test]
    fn orders_are_permutations_and_stable() {
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
    fn splits_are_disjoint_and_the_same_in_every_run() {
        let images = tiny(100);
        let [train, validation] = Subset::split(&images, 0.1).unwrap();
        assert_eq!((train.len(), validation.len()), (90, 10));
        assert!(train.indices.is_sorted() && validation.indices.is_sorted());
        let mut both = [train.indices.as_slice(), &validation.indices].concat();
        both.sort_unstable();
        assert_eq!(both, (0..100).collect::<Vec<u32>>());
        assert_eq!(Subset::split(&images, 0.1).unwrap()[1].indices, validation.indices);
        let mut pixels = vec![0; 4];
        validation.read_into(3, &mut pixels).unwrap();
        assert_eq!(pixels[0], (validation.indices[3] * 4) as u8);
        assert_eq!(validation.label(3), (validation.indices[3] % 2) as u8);
        assert!(validation.read_into(10, &mut pixels).is_err());
        for share in [0.0, 0.004, 0.996, 1.0, f64::NAN] {
            assert!(Subset::split(&images, share).is_err(), "{share}");
        }
    }

    #[test]
    fn orders_are_uniform() {
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
