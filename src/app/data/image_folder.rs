//! A data set from a folder of PNG and JPEG files.
//!
//! Every file is decoded once when the folder is opened, on several threads. This finds broken files before training starts, and decides
//! whether the images are grey. The images stay in memory if they fit; otherwise each is decoded again whenever it is read.
//!
//! Run folders are left out, because their images are not data.
//!
//! The files are sorted by path and then shuffled with a fixed seed. The order is the same in every run, and the first images are of all
//! classes.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::fmt::{self, Debug};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::FetchProgress;
use crate::app::io::atomic;
use crate::app::io::run_folder::RunFolder;
use crate::app::viz::image_grid::ImageBatch;
use crate::error::{Error, Result, printable};
use crate::runtime::sys::{memory, threads};
use crate::vae::data;
use crate::vae::data::archive::ACCEPTED;
use crate::vae::data::{Dataset, Images};
use crate::vae::model::MAX_CLASSES;

/// Sizes of `--image-size`.
pub const SIZES: [usize; 3] = [32, 64, 128];

/// Number of files that are decoded between two reports of progress.
const CHUNK: usize = 1024;
/// Memory for images where the available memory is unknown, in bytes.
const UNKNOWN_MEMORY: u64 = 2 << 30;

/// How a folder of images becomes model input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageOptions {
    /// Height and width to resize to; default 32.
    pub size: usize,
    /// Channels, 1 or 3. `None`, the default, stands for 1 if all files are greyscale, else 3.
    pub channels: Option<usize>,
    /// Whether a single broken file is an error; default false.
    pub strict: bool,
}

impl Default for ImageOptions {
    fn default() -> Self {
        Self { size: SIZES[0], channels: None, strict: false }
    }
}

/// What was read from a folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Number of images.
    pub images: usize,
    /// Number of files, including the skipped ones.
    pub files: usize,
    /// Paths of the broken files, which were skipped, in sorted order.
    pub skipped: Vec<PathBuf>,
    /// Paths of run folders, whose images were left out, in sorted order.
    pub runs: Vec<PathBuf>,
    /// Bytes of the images in memory; `None` if they do not fit and are decoded whenever they are read.
    pub in_memory: Option<u64>,
}

/// A file to decode.
#[derive(Debug)]
struct ImageFile {
    path: PathBuf,
    class: String,
    /// Whether it is in the folder of test images.
    is_test: bool,
}

/// Opens a folder of images. `progress` gets the number of decoded files.
///
/// # Errors
/// [`Error::Data`] for a folder without images, with more than 256 classes or with too many broken files, [`Error::File`] where a folder
/// cannot be listed.
pub fn open(
    root: &Path,
    options: &ImageOptions,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(Dataset, Summary)> {
    let limit = memory::available().map_or(UNKNOWN_MEMORY, |bytes| bytes / 2);
    open_within(limit, root, options, progress)
}

/// The same with a memory limit in bytes.
fn open_within(
    limit: u64,
    root: &Path,
    options: &ImageOptions,
    progress: &mut dyn FnMut(FetchProgress),
) -> Result<(Dataset, Summary)> {
    if let Some(channels) = options.channels.filter(|channels| ![1, 3].contains(channels)) {
        return Err(Error::argument("number of image channels of the model", "1 or 3 for image files", channels));
    }
    if !(1..=1024).contains(&options.size) {
        return Err(Error::argument("image size", "1 to 1024", options.size));
    }
    let Files { files, has_splits, runs } = list(root)?;
    if files.is_empty() {
        let what = match runs.first() {
            None => "there are no PNG or JPEG images in this folder or in the folders below it".to_owned(),
            Some(run) => format!("all PNG and JPEG images in it belong to runs, such as {}", run.display()),
        };
        return Err(Error::data(root.display(), what, ACCEPTED));
    }
    let classes = class_names(root, &files)?;
    let (area, total) = (options.size * options.size, files.len());
    let (mut images, mut broken) = (Vec::with_capacity(total), Vec::new());
    let (mut has_color, mut bytes) = (false, 0);
    for (chunk, first) in files.chunks(CHUNK).zip((0..).step_by(CHUNK)) {
        progress(FetchProgress::Decoding { done: first, total: total as u64 });
        let decoded = threads::map(chunk, |file| Ok(decode(&file.path, options)))?;
        for (file, decoded) in chunk.iter().zip(decoded) {
            match decoded {
                Ok(planes) => {
                    has_color |= planes.len() > area;
                    bytes += planes.len() as u64;
                    let label = classes.binary_search(&file.class).unwrap_or_default() as u8;
                    let planes = Some(planes).filter(|_| bytes <= limit);
                    images.push((FileImage { path: file.path.clone(), label, planes }, file.is_test));
                }
                Err(error) => broken.push((file.path.clone(), error)),
            }
        }
        if bytes > limit {
            images.iter_mut().for_each(|(image, _)| image.planes = None);
        }
    }
    broken.sort_by(|(a, _), (b, _)| a.cmp(b));
    check_broken(&broken, total, options.strict)?;
    let count = images.len();
    if !has_splits {
        // The files are shuffled, so the last tenth is a random one.
        let first_test = count - (count / 10).max(1);
        images.iter_mut().enumerate().for_each(|(i, (_, is_test))| *is_test = i >= first_test);
    }
    let channels = options.channels.unwrap_or(if has_color { 3 } else { 1 });
    let (test, train): (Vec<_>, Vec<_>) = images.into_iter().partition(|(_, is_test)| *is_test);
    if train.is_empty() || test.is_empty() {
        let what = format!("{} training and {} test images, expected at least 1 of each", train.len(), test.len());
        return Err(Error::data(root.display(), what, "add images"));
    }
    let names: Vec<_> = classes.iter().map(printable).collect();
    let half = |images: Vec<(FileImage, bool)>| {
        let images = images.into_iter().map(|(image, _)| image).collect();
        Box::new(FolderImages {
            options: ImageOptions { channels: Some(channels), ..*options },
            classes: names.clone(),
            images,
        })
    };
    let dataset = Dataset::new(printable(root_name(root)), root.display().to_string(), half(train), half(test))?;
    let skipped = broken.into_iter().map(|(path, _)| path).collect();
    Ok((
        dataset,
        Summary { images: count, files: total, skipped, runs, in_memory: Some(bytes).filter(|b| *b <= limit) },
    ))
}

/// Rejects too many broken files: more than 1 % and more than 10, or all, or any if `strict`.
fn check_broken(broken: &[(PathBuf, Error)], files: usize, strict: bool) -> Result<()> {
    let most = if strict { 0 } else { (files / 100).max(10).min(files - 1) };
    let Some((path, error)) = broken.first().filter(|_| broken.len() > most) else { return Ok(()) };
    let hint = match strict {
        true => "replace or remove it, or leave out --strict, which rejects a folder with a broken file".to_owned(),
        false => format!(
            "{} of {files} image files are broken, and at most {most} are skipped: replace or remove them",
            broken.len()
        ),
    };
    Err(Error::data(path.display(), reason(error), hint))
}

/// Returns the cause of an error.
fn reason(error: &Error) -> String {
    error.source().map_or_else(|| error.to_string(), ToString::to_string)
}

/// The image files below a folder.
struct Files {
    /// In the order of the data set.
    files: Vec<ImageFile>,
    /// Whether all images are in the folders `train` and `test` (or `val`).
    has_splits: bool,
    /// Run folders, which are left out.
    runs: Vec<PathBuf>,
}

/// Returns the image files in a folder and in the folders below it, except run folders, and these run folders: each in sorted order.
pub(crate) fn image_files(root: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut paths, mut folders, mut runs) = (Vec::new(), vec![root.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        if RunFolder::is_run(&folder) {
            runs.push(folder);
            continue;
        }
        for entry in fs::read_dir(&folder).map_err(Error::file("list", &folder))? {
            let entry = entry.map_err(Error::file("list", &folder))?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            // Links to folders are not followed, because they may form a cycle.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                folders.push(path);
            } else if is_image(&path) && fs::metadata(&path).map_or(true, |found| found.is_file()) {
                // A file that cannot be read counts as broken.
                paths.push(path);
            }
        }
    }
    paths.sort();
    runs.sort();
    Ok((paths, runs))
}

fn list(root: &Path) -> Result<Files> {
    let (paths, runs) = image_files(root)?;
    let folders = |path: &Path| -> Vec<String> {
        let below = path.strip_prefix(root).unwrap_or(path).parent().unwrap_or(Path::new(""));
        let names = below.components().filter(|c| matches!(c, Component::Normal(_)));
        names.map(|c| c.as_os_str().to_string_lossy().into_owned()).take(2).collect()
    };
    let tops: BTreeSet<_> = paths.iter().map(|path| folders(path).into_iter().next()).collect();
    let tops: Vec<_> = tops.iter().map(Option::as_deref).collect();
    let has_splits = [["test", "train"], ["train", "val"]].iter().any(|splits| tops == splits.map(Some));
    let file = |path: &PathBuf| {
        let mut folders = folders(path).into_iter();
        let is_test = has_splits && folders.next().is_some_and(|split| split != "train");
        ImageFile { class: folders.next().unwrap_or_else(|| root_name(root)), path: path.clone(), is_test }
    };
    let order = data::epoch_order(0, 0, paths.len());
    let files = order.iter().filter_map(|&i| paths.get(i as usize)).map(file).collect();
    Ok(Files { files, has_splits, runs })
}

pub(crate) fn is_image(path: &Path) -> bool {
    let kind = path.extension().unwrap_or_default();
    ["png", "jpg", "jpeg"].iter().any(|known| kind.eq_ignore_ascii_case(known))
}

/// Returns the name of a folder, which is also the class of the images directly in it.
fn root_name(root: &Path) -> String {
    let path = fs::canonicalize(root).unwrap_or_else(|_| root.to_owned());
    path.file_name().map_or_else(|| "images".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Returns the names of all classes in sorted order.
fn class_names(root: &Path, files: &[ImageFile]) -> Result<Vec<String>> {
    let names: BTreeSet<&String> = files.iter().map(|file| &file.class).collect();
    if names.len() > MAX_CLASSES {
        let what = format!("{} folders with images, expected at most {MAX_CLASSES} classes", names.len());
        let hint = "merge folders, or move all of them into one folder, which is then the only class";
        return Err(Error::data(root.display(), what, hint));
    }
    Ok(names.into_iter().cloned().collect())
}

/// Decodes a file into one plane, or into three if it stores colours and the channels are not 1.
fn decode(path: &Path, options: &ImageOptions) -> Result<Box<[u8]>> {
    let bytes = atomic::read(path)?;
    let (image, has_color) = ImageBatch::from_file_with_color(&bytes, path, options.size as u32)?;
    let is_grey = !has_color || options.channels == Some(1);
    Ok(if is_grey { image.to_grey_bytes() } else { image.to_bytes() }.into_boxed_slice())
}

struct FileImage {
    path: PathBuf,
    label: u8,
    /// One plane or three, if it is kept in memory.
    planes: Option<Box<[u8]>>,
}

/// Images from files, in memory or decoded whenever they are read.
struct FolderImages {
    /// Options with the channels of every image.
    options: ImageOptions,
    classes: Vec<String>,
    images: Vec<FileImage>,
}

impl Debug for FolderImages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FolderImages")
            .field("len", &self.images.len())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl Images for FolderImages {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn size(&self) -> (usize, usize, usize) {
        (self.options.channels.unwrap_or(3), self.options.size, self.options.size)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u8 {
        self.images[index].label
    }

    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        data::check_read(self, index, pixels)?;
        let image = &self.images[index];
        let decoded;
        let planes = match &image.planes {
            Some(planes) => planes,
            None => {
                let gone =
                    |e| Error::data(image.path.display(), reason(&e), "restore the file, which could be read before");
                decoded = decode(&image.path, &self.options).map_err(gone)?;
                &decoded
            }
        };
        // A grey image has one plane for all channels.
        pixels.chunks_exact_mut(planes.len()).for_each(|channels| channels.copy_from_slice(planes));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::io::run_config::RunConfig;
    use image::{GrayImage, Luma, Rgb, RgbImage};

    fn save(root: &Path, name: &str, shade: u8) {
        let path = root.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        RgbImage::from_pixel(40, 50, Rgb([shade, 0, 255 - shade])).save(&path).unwrap();
    }

    fn open_quietly(root: &Path, limit: u64, options: ImageOptions) -> Result<(Dataset, Summary)> {
        open_within(limit, root, &options, &mut |_| ())
    }

    fn opened(root: &Path) -> (Dataset, Summary) {
        open_quietly(root, u64::MAX, ImageOptions::default()).unwrap()
    }

    fn refusal(root: &Path, strict: bool) -> String {
        open_quietly(root, u64::MAX, ImageOptions { strict, ..ImageOptions::default() }).unwrap_err().to_string()
    }

    fn pixels(images: &dyn Images) -> Vec<u8> {
        let mut pixels = Vec::new();
        data::batch(images, &(0..images.len() as u32).collect::<Vec<_>>(), &mut pixels).unwrap();
        pixels
    }

    #[test]
    fn classes_are_the_folders_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("pets");
        for i in 0..20 {
            save(&root, &format!("dog/deep/er/{i}.png"), i);
            save(&root, &format!("cat/{i}.JPG"), i);
        }
        save(&root, "here.jpeg", 1);
        for ignored in [".hidden/a.png", "cat/.b.png"] {
            save(&root, ignored, 1);
        }
        fs::write(root.join("cat/notes.txt"), "hello").unwrap();
        let (data, summary) = opened(&root);
        assert_eq!(
            (data.train.classes(), data.name.as_str()),
            (&["cat", "dog", "pets"].map(str::to_owned)[..], "pets")
        );
        assert_eq!((data.train.len(), data.test.len(), data.train.size()), (37, 4, (3, 32, 32)));
        assert_eq!((summary.images, summary.files, summary.in_memory), (41, 41, Some(41 * 3072)));
        // The same images in the same order, and of all classes from the start.
        let again = opened(&root).0;
        assert_eq!(pixels(data.train.as_ref()), pixels(again.train.as_ref()));
        assert_eq!(data.fingerprint().unwrap(), again.fingerprint().unwrap());
        assert_eq!((0..8).map(|i| data.train.label(i)).collect::<BTreeSet<_>>(), [0, 1].into());
    }

    #[test]
    fn split_folders_are_kept() {
        for test in ["test", "val"] {
            let dir = tempfile::tempdir().unwrap();
            for i in 0..9 {
                save(dir.path(), &format!("train/{}/{i}.png", ["a", "b"][i % 2]), i as u8);
            }
            save(dir.path(), &format!("{test}/c/1.png"), 200);
            let (data, _) = opened(dir.path());
            assert_eq!((data.train.len(), data.test.len()), (9, 1));
            assert_eq!((data.train.classes(), data.test.label(0)), (&["a", "b", "c"].map(str::to_owned)[..], 2));
        }
        // With another folder beside them, all are classes.
        let dir = tempfile::tempdir().unwrap();
        for name in ["train/1.png", "test/1.png", "bus/1.png"] {
            save(dir.path(), name, 1);
        }
        assert_eq!(opened(dir.path()).0.train.classes(), ["bus", "test", "train"]);
    }

    #[test]
    fn images_are_the_same_from_memory_and_from_files() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..12 {
            save(dir.path(), &format!("{i}.png"), i * 20);
        }
        GrayImage::from_fn(9, 9, |x, y| Luma([(x * 20 + y) as u8])).save(dir.path().join("grey.png")).unwrap();
        for channels in [None, Some(1), Some(3)] {
            let options = ImageOptions { channels, size: 64, ..ImageOptions::default() };
            let (kept, memory) = open_quietly(dir.path(), u64::MAX, options).unwrap();
            let (anew, files) = open_quietly(dir.path(), 64 * 64 * 5, options).unwrap();
            assert!(memory.in_memory.is_some() && files.in_memory.is_none());
            assert_eq!(kept.train.size(), (channels.unwrap_or(3), 64, 64));
            assert_eq!(pixels(kept.train.as_ref()), pixels(anew.train.as_ref()));
            assert_eq!(kept.fingerprint().unwrap(), anew.fingerprint().unwrap());
        }
        let (anew, _) = open_quietly(dir.path(), 0, ImageOptions::default()).unwrap();
        for entry in fs::read_dir(dir.path()).unwrap() {
            fs::write(entry.unwrap().path(), "gone").unwrap();
        }
        let error = anew.train.read_into(0, &mut [0; 3072]).unwrap_err();
        assert!(matches!(&error, Error::Data { .. }) && error.to_string().contains(".png: "), "{error}");
        assert!(open_quietly(dir.path(), 0, ImageOptions { channels: Some(2), ..ImageOptions::default() }).is_err());
    }

    #[test]
    fn greyscale_files_give_one_channel() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..10u8 {
            let kind = if i % 2 == 0 { "png" } else { "jpg" };
            GrayImage::from_pixel(20, 30, Luma([i * 25])).save(dir.path().join(format!("{i}.{kind}"))).unwrap();
        }
        let (data, summary) = opened(dir.path());
        assert_eq!((data.train.size(), summary.in_memory), ((1, 32, 32), Some(10 * 1024)));
        save(dir.path(), "colour.png", 7);
        assert_eq!(opened(dir.path()).0.train.size(), (3, 32, 32));
    }

    #[test]
    fn few_broken_files_are_skipped_and_many_are_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for i in 0..30 {
            save(dir.path(), &format!("good/{i}.png"), i);
        }
        for i in 0..10 {
            fs::write(dir.path().join(format!("good/broken{i}.jpg")), "hello").unwrap();
        }
        let (data, summary) = opened(dir.path());
        assert_eq!((data.train.len(), data.test.len(), summary.files, summary.skipped.len()), (27, 3, 40, 10));
        assert!(summary.skipped[0].ends_with("good/broken0.jpg"));
        let error = refusal(dir.path(), true);
        assert!(error.contains("good/broken0.jpg: ") && error.contains("--strict"), "{error}");
        fs::write(dir.path().join("good/a\n.png"), "").unwrap();
        let error = refusal(dir.path(), false);
        assert!(error.contains("good/a?.png: ") && error.contains("11 of 41 image files are broken"), "{error}");
    }

    #[test]
    fn images_of_runs_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("runs/first");
        save(dir.path(), "runs/first/samples/epoch_01.png", 1);
        let config = RunConfig::new(String::new(), Default::default(), ());
        fs::write(run.join("config.json"), serde_json::to_string(&config).unwrap()).unwrap();
        for name in [dir.path(), &run] {
            let error = refusal(name, false);
            assert!(error.contains("belong to runs, such as") && error.contains("runs/first"), "{error}");
        }
        for i in 0..5 {
            save(dir.path(), &format!("cat/{i}.png"), i);
        }
        let (data, summary) = opened(dir.path());
        assert_eq!((data.train.classes(), summary.files), (&["cat".to_owned()][..], 5));
        assert_eq!(summary.runs, [run]);
    }

    #[test]
    fn folders_without_enough_images_are_rejected() {
        let dir = tempfile::tempdir().unwrap();
        assert!(refusal(dir.path(), false).contains("there are no PNG or JPEG images in this folder"));
        fs::write(dir.path().join("a.png"), "hello").unwrap();
        assert!(refusal(dir.path(), false).contains("1 of 1 image files are broken"));
        save(dir.path(), "a.png", 3);
        assert!(refusal(dir.path(), false).contains("0 training and 1 test images"));
        save(dir.path(), "b.png", 3);
        assert_eq!(opened(dir.path()).0.test.len(), 1);
        for i in 0..256 {
            save(dir.path(), &format!("class{i}/a.png"), 3);
        }
        assert!(refusal(dir.path(), false).contains("257 folders with images, expected at most 256 classes"));
        assert!(open_quietly(dir.path(), 0, ImageOptions { size: 0, ..ImageOptions::default() }).is_err());
    }
}
