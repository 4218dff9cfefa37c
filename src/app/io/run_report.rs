//! `report.html`: collects what the report of a run shows, and writes it.

use std::io::ErrorKind;
use std::path::Path;

use image::RgbImage;
use serde_json::Value;

use crate::app::io::run_folder::RunFolder;
use crate::app::io::{atomic, csv};
use crate::app::viz::caption::Pairs;
use crate::app::viz::image_grid::{ImageBatch, decode_rgb};
use crate::app::viz::report::{Encoded, Pictures, Report};
use crate::error::{Error, Result};
use crate::vae::train::MOST_SHOWN;
use crate::vae::train::rows::{EpochRow, Row, StepRow};
use crate::vae::train::store::RunState;

/// Largest number of epochs whose reconstructions are in a report.
const MOST_EPOCHS: u32 = 6;
/// Size of a file with samples in bytes above which the report has a JPEG copy.
const LARGE: usize = 500_000;

/// Writes the report of a run with these rows to `out`.
///
/// # Errors
/// [`Error::File`] if `config.json` cannot be read or the report cannot be written.
pub fn save(folder: &RunFolder, out: &Path, rows: (&[StepRow], &[EpochRow]), state: RunState<'_>) -> Result<()> {
    let config = config(folder)?;
    save_with(folder, out, &config, rows, state)
}

/// Writes the report of any run folder, of this or an earlier version, in progress or not. Missing tables count as empty.
///
/// # Errors
/// [`Error::File`] if `config.json` or a table cannot be read, or the report cannot be written.
pub fn save_of_folder(folder: &RunFolder, out: &Path) -> Result<()> {
    let config = config(folder)?;
    let (steps, epochs): (Vec<StepRow>, Vec<EpochRow>) = (table(&folder.metrics())?, table(&folder.epochs())?);
    let state = state(&config, &epochs, folder.is_in_use());
    save_with(folder, out, &config, (&steps, &epochs), state)
}

fn save_with(
    folder: &RunFolder,
    out: &Path,
    config: &Value,
    (steps, epochs): (&[StepRow], &[EpochRow]),
    state: RunState<'_>,
) -> Result<()> {
    let size = config.pointer("/settings/model/image_size").and_then(Value::as_u64);
    let pictures = pictures(folder, epochs, size.and_then(|size| u32::try_from(size).ok()));
    let report = Report { name: &folder.name(), state, config, steps, epochs, pictures: &pictures };
    atomic::save_atomic(out, report.page().as_bytes())
}

/// Reads `config.json` of any version.
fn config(folder: &RunFolder) -> Result<Value> {
    let path = folder.config();
    serde_json::from_slice(&atomic::read(&path)?).map_err(|e| Error::malformed("parse", &path, e))
}

fn table<R: Row>(path: &Path) -> Result<Vec<R>> {
    match csv::read(path) {
        Err(Error::File { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        rows => rows,
    }
}

/// Returns the state of a run that another process runs or ran.
fn state(config: &Value, epochs: &[EpochRow], in_use: bool) -> RunState<'static> {
    let setting = |name: &str| config.get("settings").and_then(|settings| settings.get(name)).and_then(Value::as_u64);
    let done = epochs.last().map_or(0, |row| row.epoch);
    let best = epochs.iter().min_by(|a, b| a.val_total.total_cmp(&b.val_total)).map_or(0, |row| row.epoch);
    let patience = setting("early_stop").filter(|patience| *patience > 0);
    let stopped_early = patience.is_some_and(|patience| done.saturating_sub(best) >= patience);
    if in_use {
        RunState::Running
    } else if setting("epochs").is_none_or(|all| done >= all) || stopped_early {
        RunState::Finished
    } else {
        RunState::Interrupted
    }
}

/// Loads the images of a run that are there. `size` is the height and width of an image.
fn pictures(folder: &RunFolder, epochs: &[EpochRow], size: Option<u32>) -> Pictures {
    let done: Vec<u64> = epochs.iter().map(|row| row.epoch).collect();
    let mut originals: Option<ImageBatch> = None;
    let mut reconstructions = Vec::new();
    for epoch in spread(&done) {
        let Some((shown, images)) = size.and_then(|size| pairs(&folder.reconstructions(epoch), size)) else { continue };
        if *originals.get_or_insert_with(|| shown.clone()) == shown {
            reconstructions.push((epoch, images));
        }
    }
    let samples = done.last().and_then(|&epoch| Some((epoch, samples(&folder.samples(epoch))?)));
    Pictures { originals, reconstructions, samples }
}

/// Reads the originals and reconstructions after an epoch: as many as there are before the first blank place.
fn pairs(path: &Path, size: u32) -> Option<(ImageBatch, ImageBatch)> {
    let image = decode_rgb(&atomic::read(path).ok()?, path).ok()?;
    let is_blank = |image: &RgbImage| image.pixels().all(|pixel| pixel.0 == [255; 3]);
    (1..=MOST_SHOWN).rev().filter_map(|count| Pairs::read(&image, count, (size, size))).find(
        |(originals, reconstructions)| {
            let last = |images: &ImageBatch| images.images().last().is_some_and(is_blank);
            !(last(originals) && last(reconstructions))
        },
    )
}

fn samples(path: &Path) -> Option<Encoded> {
    let bytes = atomic::read(path).ok()?;
    if bytes.len() > LARGE { Encoded::new(&decode_rgb(&bytes, path).ok()?) } else { Some(Encoded::png(bytes)) }
}

/// Returns the last of the epochs, then earlier ones: more from the start of the run, where images change most.
fn spread(epochs: &[u64]) -> Vec<u64> {
    let last = epochs.len() as f64;
    let at = |i: u32| last.powf(f64::from(i) / f64::from(MOST_EPOCHS - 1)).round() as usize;
    let mut shown: Vec<u64> =
        (0..MOST_EPOCHS).rev().filter_map(|i| epochs.get(at(i).saturating_sub(1)).copied()).collect();
    shown.dedup();
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn shown_epochs_include_the_first_and_the_last() {
        let epochs = |count: u64| (1..=count).collect::<Vec<_>>();
        assert_eq!(spread(&epochs(0)), [] as [u64; 0]);
        assert_eq!(spread(&epochs(1)), [1]);
        assert_eq!(spread(&epochs(3)), [3, 2, 1]);
        assert_eq!(spread(&epochs(25)), [25, 13, 7, 4, 2, 1]);
        let long = spread(&epochs(1000));
        assert!(long.len() == 6 && long[0] == 1000 && long[5] == 1, "{long:?}");
    }

    #[test]
    fn state_follows_from_settings_and_rows() {
        let rows = |losses: &[f64]| {
            let row = |(epoch, &val_total)| EpochRow { epoch, val_total, ..EpochRow::default() };
            (1..).zip(losses).map(row).collect::<Vec<_>>()
        };
        let config = json!({"settings": {"epochs": 4, "early_stop": 2}});
        for (losses, in_use, expected) in [
            (&[3.0, 2.0, 1.0, 0.5][..], false, RunState::Finished),
            (&[3.0, 1.0, 2.0][..], false, RunState::Interrupted),
            (&[1.0, 2.0, 3.0][..], false, RunState::Finished),
            (&[1.0][..], true, RunState::Running),
            (&[][..], false, RunState::Interrupted),
        ] {
            assert_eq!(state(&config, &rows(losses), in_use), expected, "{losses:?}");
        }
        assert_eq!(state(&json!({}), &[], false), RunState::Finished, "an unknown number of epochs");
    }
}
