//! The data set: shapes, pictures that the page has decoded, or CIFAR-10.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;
use vae_wgpu::vae::data::{self, Images, InMemoryImages, archive, cifar10, shapes::Shapes};
use vae_wgpu::vae::train::Settings;
use wasm_bindgen::JsValue;

use crate::fault::Fault;
use crate::message::{images, json};

/// Pictures in the preview.
const PREVIEW: usize = 64;
/// The class of pictures without classes.
const UNNAMED: &str = "";
/// First bytes of a gzip file.
const GZIP: [u8; 2] = [0x1f, 0x8b];

/// A data set, split as the native program splits it.
pub(crate) struct DataSet {
    name: String,
    all: Arc<dyn Images>,
    pub(crate) train: Arc<dyn Images>,
    pub(crate) held_out: Arc<dyn Images>,
}

/// Pictures as the page describes them.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Pictures {
    width: usize,
    height: usize,
    channels: usize,
    #[serde(default)]
    labels: Option<Vec<u8>>,
    #[serde(default)]
    names: Option<Vec<String>>,
}

impl DataSet {
    /// Splits images.
    fn new(name: String, all: Arc<dyn Images>) -> Result<Self, Fault> {
        let (_, h, w) = all.size();
        if h != w {
            return Err(Fault::invalid(format!("the images have {w}x{h} pixels; they must be square")));
        }
        let share = Settings::default().val_split;
        if (all.len() as f64 * share).round() < 1.0 {
            let least = (0.5 / share).ceil();
            return Err(Fault::invalid(format!("{} images are too few: use at least {least}", all.len())));
        }
        let [train, held_out] = data::split(&all, share)?;
        Ok(Self { name, all, train, held_out })
    }

    /// The first `count` built-in shapes of a seed.
    pub(crate) fn shapes(count: usize, seed: u64) -> Result<Self, Fault> {
        const MOST: usize = 100_000;
        if count > MOST {
            return Err(Fault::invalid(format!("{count} shapes are too many: use at most {MOST}")));
        }
        // Drawing a batch can take longer than a training step.
        let shapes = Shapes::new(seed, 0, count);
        let indices: Vec<u32> = (0..count as u32).collect();
        let mut pixels = Vec::new();
        data::batch(&shapes, &indices, &mut pixels)?;
        let (classes, labels) = (shapes.classes().to_vec(), data::labels(&shapes, &indices));
        let drawn = InMemoryImages::new(shapes.size(), classes, labels, pixels)?;
        Self::new("shapes".to_owned(), Arc::new(drawn))
    }

    /// Pictures from RGBA bytes. Those with one channel are grey: the page has made their colours equal.
    pub(crate) fn pictures(about: Pictures, rgba: &[u8]) -> Result<Self, Fault> {
        let Pictures { width, height, channels, labels, names } = about;
        if channels != 1 && channels != 3 {
            return Err(Fault::invalid(format!("{channels} channels: expected 1 or 3")));
        }
        let pixels = planes(rgba, (channels, height, width))?;
        let count = rgba.len() / (4 * width * height);
        let names = names.unwrap_or_else(|| vec![UNNAMED.to_owned()]);
        let labels = labels.unwrap_or_else(|| vec![0; count]);
        let images = InMemoryImages::new((channels, height, width), names, labels, pixels)?;
        Self::new("pictures".to_owned(), Arc::new(images))
    }

    /// CIFAR-10 or CIFAR-100 from the archive of its binary version, or one file of CIFAR-10. `name` is that of the file.
    pub(crate) fn cifar(name: &str, bytes: &[u8]) -> Result<Self, Fault> {
        if !bytes.starts_with(&GZIP) {
            return Self::new(name.to_owned(), Arc::new(cifar10::parse_file(name, bytes)?));
        }
        let contents = archive::read(name, bytes)?;
        if contents.is_empty() {
            return Err(Fault::invalid(format!(
                "{name} holds neither CIFAR-10 nor CIFAR-100 as binary files. Use {}",
                cifar10::URL
            )));
        }
        let parsed = archive::parse(name, contents)?;
        Self::new(parsed.name, Arc::from(parsed.train))
    }

    /// The data set as the page shows it.
    pub(crate) fn describe(&self) -> Result<JsValue, Fault> {
        let (c, h, w) = self.all.size();
        let classes: Vec<&String> = self.all.classes().iter().filter(|name| *name != UNNAMED).collect();
        let about = json(&json!({
            "name": self.name,
            "count": self.all.len(),
            "validation": self.held_out.len(),
            "size": [c, h, w],
            "classes": classes,
        }))?;
        let first: Vec<u32> = (0..self.all.len().min(PREVIEW) as u32).collect();
        let _ = js_sys::Reflect::set(&about, &"preview".into(), &images(self.all.as_ref(), &first)?);
        Ok(about)
    }
}

/// Returns the planes of RGBA pictures, `[n, c, h, w]`. Their alpha is ignored.
pub(crate) fn planes(rgba: &[u8], (c, h, w): (usize, usize, usize)) -> Result<Vec<u8>, Fault> {
    let picture = w.checked_mul(h).and_then(|pixels| pixels.checked_mul(4)).filter(|bytes| *bytes > 0);
    let Some(picture) = picture.filter(|bytes| rgba.len().is_multiple_of(*bytes)) else {
        return Err(Fault::invalid(format!("{} bytes are not whole images of {w}x{h} pixels", rgba.len())));
    };
    let mut planes = Vec::with_capacity(rgba.len() / 4 * c);
    for pixels in rgba.chunks_exact(picture) {
        for channel in 0..c {
            planes.extend(pixels.chunks_exact(4).map(|pixel| pixel[channel]));
        }
    }
    Ok(planes)
}
