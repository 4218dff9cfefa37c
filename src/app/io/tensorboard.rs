//! What TensorBoard shows of a run: curves, images, histograms of gradients and hyperparameters.
//!
//! Everything is placed at the number of a training step; what belongs to an epoch, at that of its last step. TensorBoard drops what comes
//! from steps after a checkpoint when a file says that the run continues there, and it can do so only if all values share one axis.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;

use crate::app::io::append::AppendFile;
use crate::app::io::atomic;
use crate::app::io::event_file::{
    Content, Event, Histogram, Hparam, HparamValue, HparamsData, Image, Metadata, Plugin, SessionLog, SessionStart,
    Summary, Value, What, record,
};
use crate::app::viz::image_grid::png_size;
use crate::error::{Error, Result};
use crate::vae::train::Settings;
use crate::vae::train::rows::{EpochRow, StepRow};

/// Parts of the name of an event file around its number. TensorBoard looks for the first part and reads the files in the order of names.
const NAME: (&str, &str) = ("events.out.tfevents.", ".vae-wgpu");

/// Returns the number in the name of an event file: the time of its start in seconds since 1970, or more than that of the file before.
#[must_use]
pub fn number(name: &OsStr) -> Option<u64> {
    name.to_str()?.strip_prefix(NAME.0)?.strip_suffix(NAME.1)?.parse().ok()
}

/// Returns the number of the last event file in a folder; none if there are no such files.
#[must_use]
pub fn last(folder: &Path) -> Option<u64> {
    fs::read_dir(folder).ok()?.flatten().filter_map(|entry| number(&entry.file_name())).max()
}

/// The event file that a run writes to.
#[derive(Debug)]
pub struct Board {
    file: AppendFile,
    /// Number of the step that was shown last, from 1.
    step: u64,
}

impl Board {
    /// Creates an event file after those in `folder` for the steps from `step` on; TensorBoard drops those that earlier files have of them.
    ///
    /// # Errors
    /// [`Error::File`] if the folder or the file cannot be written.
    pub fn create(folder: &Path, step: u64) -> Result<Self> {
        fs::create_dir_all(folder).map_err(Error::file("create folder", folder))?;
        let number = (now() as u64).max(last(folder).map_or(0, |last| last + 1));
        let path = folder.join(format!("{}{number:010}{}", NAME.0, NAME.1));
        let version = What::FileVersion("brain.Event:2".to_owned());
        let start = What::SessionLog(SessionLog { status: SessionLog::START });
        let first = [event(0, version), event(step, start)].map(|event| record(&event)).concat();
        atomic::save_atomic(&path, &first)?;
        Ok(Self { file: AppendFile::open(&path)?, step: step.saturating_sub(1) })
    }

    /// Shows the settings of the run as hyperparameters, under their names in `config.json`.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be written now.
    pub fn push_settings(&mut self, settings: &Settings) -> Result<()> {
        let mut hparams = BTreeMap::new();
        flatten("", &serde_json::to_value(settings).map_err(Error::bug)?, &mut hparams);
        let data = HparamsData { start: Some(SessionStart { hparams, seconds: now() }) };
        let plugin = Plugin { name: "hparams".to_owned(), content: data.encode_to_vec() };
        let tag = "_hparams_/session_start_info".to_owned();
        self.push(vec![Value { tag, metadata: Some(Metadata { plugin: Some(plugin) }), content: None }])
    }

    /// Shows a row of the table of steps.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written now.
    pub fn push_step(&mut self, row: &StepRow) -> Result<()> {
        self.step = row.step;
        self.push_scalars(&[
            ("step/loss", row.total.into()),
            ("step/reconstruction", row.recon.into()),
            ("step/kl", row.kl.into()),
            ("step/gradient_norm", row.grad_norm.into()),
            ("step/learning_rate", row.lr.into()),
            ("step/images_per_second", row.images_per_s.into()),
        ])
    }

    /// Shows a row of the table of epochs, whose steps were shown last.
    ///
    /// # Errors
    /// As [`Board::push_step`].
    pub fn push_epoch(&mut self, row: &EpochRow) -> Result<()> {
        self.push_scalars(&[
            ("train/loss", row.train_total),
            ("train/reconstruction", row.train_recon),
            ("train/kl", row.train_kl),
            ("validation/loss", row.val_total),
            ("validation/reconstruction", row.val_recon),
            ("validation/kl", row.val_kl),
            ("validation/mse", row.val_mse),
            ("validation/bits_per_dim", row.val_bits),
            ("validation/active_units", row.active_units as f64),
            ("epoch/seconds", row.seconds),
        ])
    }

    /// Shows a PNG file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, or cannot be written now.
    pub fn push_image(&mut self, tag: &str, path: &Path) -> Result<()> {
        let png = atomic::read(path)?;
        let (width, height) = png_size(&png, path)?;
        let image = Image { height: height as i32, width: width as i32, colorspace: 3, png };
        self.push(vec![value(tag, Content::Image(image))])
    }

    /// Shows a histogram of each tensor.
    ///
    /// # Errors
    /// As [`Board::push_step`].
    pub fn push_gradients(&mut self, gradients: &[(&str, &[f32])]) -> Result<()> {
        let show = |&(name, values): &(&str, &[f32])| {
            value(&format!("gradients/{name}"), Content::Histogram(Histogram::of(values)))
        };
        self.push(gradients.iter().map(show).collect())
    }

    /// Syncs what was written to disk.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written or synced.
    pub fn sync(&mut self) -> Result<()> {
        self.file.sync()
    }

    /// Tables of earlier versions have no value in some columns.
    fn push_scalars(&mut self, scalars: &[(&str, f64)]) -> Result<()> {
        let known = scalars.iter().filter(|(_, scalar)| scalar.is_finite());
        self.push(known.map(|&(tag, scalar)| value(tag, Content::Scalar(scalar as f32))).collect())
    }

    fn push(&mut self, values: Vec<Value>) -> Result<()> {
        self.file.push(&record(&event(self.step, What::Summary(Summary { values }))))
    }
}

fn value(tag: &str, content: Content) -> Value {
    Value { tag: tag.to_owned(), metadata: None, content: Some(content) }
}

fn event(step: u64, what: What) -> Event {
    Event { wall_time: now(), step: step as i64, what: Some(what) }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// Adds the numbers, texts and switches in `json`; `name` is its own name, and a dot joins the names of nested ones.
fn flatten(name: &str, json: &serde_json::Value, hparams: &mut BTreeMap<String, Hparam>) {
    use serde_json::Value as Json;
    let value = match json {
        Json::Object(fields) => {
            for (field, json) in fields {
                let name = if name.is_empty() { field.clone() } else { format!("{name}.{field}") };
                flatten(&name, json, hparams);
            }
            return;
        }
        Json::Number(number) => number.as_f64().map(HparamValue::Number),
        Json::String(text) => Some(HparamValue::Text(text.clone())),
        Json::Bool(on) => Some(HparamValue::Bool(*on)),
        Json::Null | Json::Array(_) => None,
    };
    if value.is_some() {
        hparams.insert(name.to_owned(), Hparam { value });
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::app::viz::caption::Caption;
    use crate::app::viz::image_grid::{Grid, ImageBatch, save_png};

    /// The steps of the values in a folder that TensorBoard shows, by name.
    pub(crate) fn shown(folder: &Path) -> BTreeMap<String, Vec<i64>> {
        let mut shown: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for event in files(folder).iter().flat_map(|file| events(file)) {
            match event.what {
                Some(What::SessionLog(_)) => {
                    shown.values_mut().for_each(|steps| steps.retain(|step| *step < event.step));
                }
                Some(What::Summary(Summary { values })) => {
                    for value in values {
                        shown.entry(value.tag).or_default().push(event.step);
                    }
                }
                _ => {}
            }
        }
        shown
    }

    /// The events of a file.
    fn events(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let (mut rest, mut events) = (bytes.as_slice(), Vec::new());
        while let Some((length, tail)) = rest.split_first_chunk() {
            let length = u64::from_le_bytes(*length) as usize;
            let event = Event::decode(&tail[4..4 + length]).unwrap();
            assert_eq!(record(&event), rest[..length + 16]);
            events.push(event);
            rest = &tail[length + 8..];
        }
        events
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }

    fn scalars(event: &Event) -> Vec<(&str, f32)> {
        let Some(What::Summary(summary)) = &event.what else { panic!("{event:?}") };
        let scalar = |value: &'_ Value| match value.content {
            Some(Content::Scalar(scalar)) => scalar,
            _ => panic!("{value:?}"),
        };
        summary.values.iter().map(|value| (value.tag.as_str(), scalar(value))).collect()
    }

    #[test]
    fn file_holds_rows_images_and_gradients_at_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("tensorboard");
        let mut board = Board::create(&folder, 0).unwrap();
        let png = dir.path().join("strip.png");
        let images = ImageBatch::from_bytes(&[7; 24], [3, 2, 2]).unwrap();
        let strip = Grid { columns: 1, scale: 1, gap: 0, ..Grid::default() }.draw(&images).unwrap();
        save_png(&png, &strip, &Caption::new("")).unwrap();
        board.push_settings(&Settings::default()).unwrap();
        board.push_image("originals", &png).unwrap();
        board.push_step(&StepRow { step: 4, lr: 0.25, ..StepRow::default() }).unwrap();
        board.push_gradients(&[("stem.weight", &[1.0, 2.0])]).unwrap();
        board.push_epoch(&EpochRow { epoch: 1, val_kl: 0.5, val_bits: f64::NAN, ..EpochRow::default() }).unwrap();
        board.sync().unwrap();

        let events = events(&files(&folder)[0]);
        assert_eq!(events.iter().map(|event| event.step).collect::<Vec<_>>(), [0, 0, 0, 0, 4, 4, 4]);
        assert!(events.iter().all(|event| event.wall_time > 1.7e9));
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        assert_eq!(events[1].what, Some(What::SessionLog(SessionLog { status: SessionLog::START })));
        let only = |event: &Event| match &event.what {
            Some(What::Summary(Summary { values })) if values.len() == 1 => values[0].clone(),
            other => panic!("{other:?}"),
        };
        let plugin = only(&events[2]).metadata.unwrap().plugin.unwrap();
        let hparams = HparamsData::decode(plugin.content.as_slice()).unwrap().start.unwrap().hparams;
        let of = |name: &str| hparams[name].value.clone().unwrap();
        assert_eq!(of("lr"), HparamValue::Number(0.01));
        assert_eq!(of("model.channels"), HparamValue::Number(Settings::default().model.channels as f64));
        assert_eq!((of("schedule"), of("flip")), (HparamValue::Text("cosine".to_owned()), HparamValue::Bool(true)));
        assert!(!hparams.contains_key("data"), "the default has no name");
        let Some(Content::Image(image)) = only(&events[3]).content else { panic!("{:?}", events[3]) };
        assert_eq!((image.width, image.height), (2, 4));
        assert!(image.png == fs::read(&png).unwrap());
        let step = scalars(&events[4]);
        assert!(step.len() == 6 && step.contains(&("step/learning_rate", 0.25)), "{step:?}");
        let gradient = only(&events[5]);
        assert_eq!(gradient.tag, "gradients/stem.weight");
        assert_eq!(gradient.content, Some(Content::Histogram(Histogram::of(&[1.0, 2.0]))));
        let epoch = scalars(&events[6]);
        assert!(epoch.len() == 9 && epoch.contains(&("validation/kl", 0.5)), "{epoch:?}");
    }

    #[test]
    fn later_files_come_after_earlier_ones_and_start_at_their_step() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last(&dir.path().join("missing")), None);
        fs::write(dir.path().join("events.out.tfevents.5000000000.vae-wgpu"), "").unwrap();
        fs::write(dir.path().join("events.out.tfevents.6000000000.of-another-program"), "").unwrap();
        for step in [8, 12] {
            Board::create(dir.path(), step).unwrap();
        }
        assert_eq!(last(dir.path()), Some(5_000_000_002));
        let files = files(dir.path());
        assert_eq!([&files[1], &files[2]].map(|file| events(file)[1].step), [8, 12]);
    }
}
