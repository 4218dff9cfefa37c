//! Images of a run: the originals, their reconstructions, and the history of these.

use super::RunFolder;
use crate::app::io::atomic;
use crate::app::viz::caption::{Caption, Labels, Pairs, square};
use crate::app::viz::image_grid::{Grid, ImageBatch, decode_rgb, save_png};
use crate::error::Result;

impl RunFolder {
    /// Returns a caption with the name of the run.
    #[must_use]
    pub fn caption(&self, title: impl Into<String>) -> Caption {
        Caption::new(title).with("run", self.name())
    }

    /// Writes the images whose reconstructions follow, and a history of one column.
    ///
    /// # Errors
    /// [`crate::Error::File`] if they cannot be written.
    pub fn save_originals(&self, originals: &ImageBatch) -> Result<()> {
        let caption = self.caption("originals");
        let grid = Grid::of(square(originals.len()), originals.size().0);
        save_png(&self.originals(), &caption.below(&grid.draw(originals)?)?, &caption)?;
        self.save_history(0, originals)
    }

    /// Writes the reconstructions of an epoch, then redraws the history.
    ///
    /// # Errors
    /// [`crate::Error::File`] if they cannot be written.
    pub fn save_reconstructions(&self, epoch: u64, originals: &ImageBatch, images: ImageBatch) -> Result<()> {
        let caption = self.caption("originals | reconstructions").with("epoch", epoch);
        let pairs = Pairs::new(originals.clone(), images)?;
        save_png(&self.reconstructions(epoch), &pairs.draw(&caption)?, &caption)?;
        self.save_history(epoch, originals)
    }

    /// Draws one row per image, and one column per epoch after the originals. Long runs show every second epoch, every fourth and so on, and
    /// the last. Columns that are missing or show other images stay blank, so a kill between two writes loses nothing.
    fn save_history(&self, epoch: u64, originals: &ImageBatch) -> Result<()> {
        // Large images are not enlarged, so that the grid stays within its limit.
        let grid = Grid { scale: if originals.size().0 > 32 { 1 } else { 2 }, ..Grid::default() };
        let epochs = epochs_shown(epoch);
        let shown = epochs.iter().map(|&epoch| self.column(epoch, originals));
        let columns: Vec<_> = std::iter::once(Some(originals.clone())).chain(shown).collect();
        let names = std::iter::once("original".to_owned()).chain(epochs.iter().map(|epoch| format!("epoch {epoch}")));
        let labels = Labels { columns: names.collect(), ..Labels::default() };
        let caption = self.caption("reconstructions after each epoch");
        save_png(&self.history(), &caption.below(&labels.draw_columns(&grid, &columns)?)?, &caption)
    }

    /// Reads the reconstructions of an epoch.
    fn column(&self, epoch: u64, originals: &ImageBatch) -> Option<ImageBatch> {
        let path = self.reconstructions(epoch);
        let bytes = atomic::read(&path).ok()?;
        let image = decode_rgb(&bytes, &path).ok()?;
        let fits = |column: &ImageBatch| column.size() == originals.size() && column.len() == originals.len();
        // Version 0.1.0 wrote the reconstructions alone.
        Pairs::reconstructions(&image, originals).or_else(|| ImageBatch::from_strip(&bytes, &path).ok().filter(fits))
    }
}

/// Largest number of columns in the history; those of images of 32 pixels take 1,190 pixels.
const MAX_COLUMNS: u64 = 18;

/// Returns the epochs that the history shows after `epoch`: multiples of the smallest sufficient power of two, and the last.
fn epochs_shown(epoch: u64) -> Vec<u64> {
    let mut stride = 1;
    // One column shows the originals, and one may show the last epoch.
    while epoch / stride > MAX_COLUMNS - 2 + u64::from(epoch.is_multiple_of(stride)) {
        stride *= 2;
    }
    let mut shown: Vec<_> = (1..=epoch / stride).map(|i| i * stride).collect();
    shown.extend((!epoch.is_multiple_of(stride)).then_some(epoch));
    shown
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    fn images(first: u8) -> ImageBatch {
        ImageBatch::from_bytes(&(0..30).map(|i| first + i).collect::<Vec<_>>(), [3, 1, 1]).unwrap()
    }

    #[test]
    fn history_of_a_long_run_is_thinned_out() {
        assert!(epochs_shown(0).is_empty());
        assert_eq!(epochs_shown(3), [1, 2, 3]);
        assert_eq!(epochs_shown(17), (1..=17).collect::<Vec<_>>());
        assert_eq!(epochs_shown(18), (1..=9).map(|i| 2 * i).collect::<Vec<_>>());
        assert_eq!(epochs_shown(25)[10..], [22, 24, 25]);
        for epoch in [33, 63, 127, 1000, 999_999_999, u64::MAX] {
            let shown = epochs_shown(epoch);
            assert!((shown.len() as u64) < MAX_COLUMNS && shown.last() == Some(&epoch), "{shown:?}");
            assert!(shown.is_sorted() && shown.len() >= 8, "{shown:?}");
        }
    }

    #[test]
    fn width_of_the_history_is_bounded_and_its_columns_are_labelled() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFolder::create(Some(dir.path()), false).unwrap();
        run.begin().unwrap();
        let originals = ImageBatch::from_bytes(&[200; 8 * 3 * 32 * 32], [3, 32, 32]).unwrap();
        run.save_originals(&originals).unwrap();
        for epoch in 1..=25 {
            run.save_reconstructions(epoch, &originals, originals.clone()).unwrap();
            let history = image::open(run.history()).unwrap().into_rgb8();
            assert!(history.width() <= 1200, "{}", history.width());
            let columns = 1 + epochs_shown(epoch).len() as u32;
            let dark = |x: u32| (0..24).any(|y| (x..x + 66).any(|x| history.get_pixel(x, y).0[0] < 128));
            assert!((0..columns).all(|column| dark(column * 66)), "a column without a label after epoch {epoch}");
        }
        let pair = image::open(run.reconstructions(25)).unwrap().into_rgb8();
        assert!(pair.width() > 500 && run.originals().is_file() && !run.reconstructions(0).exists());
    }

    #[test]
    fn reconstructions_of_version_0_1_0_are_shown_in_the_history() {
        let dir = tempfile::tempdir().unwrap();
        let mut run = RunFolder::create(Some(dir.path()), false).unwrap();
        run.begin().unwrap();
        let history = |run: &RunFolder| {
            run.save_reconstructions(2, &images(0), images(20)).unwrap();
            fs::read(run.history()).unwrap()
        };
        run.save_reconstructions(1, &images(0), images(10)).unwrap();
        let expected = history(&run);
        let strip = Grid { columns: 1, scale: 1, gap: 0, ..Grid::default() }.draw(&images(10)).unwrap();
        save_png(&run.reconstructions(1), &strip, &Caption::new("")).unwrap();
        assert_eq!(history(&run), expected);
        fs::remove_file(run.reconstructions(1)).unwrap();
        assert_ne!(history(&run), expected);
    }

    #[test]
    fn history_is_the_same_after_a_resume() {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (dir.path().join("whole/run"), dir.path().join("parts/run"));
        let history = |out: &Path, epochs: &[u64]| {
            let mut run = RunFolder::create(Some(out), true).unwrap();
            run.begin().unwrap();
            run.save_originals(&images(0)).unwrap();
            for &epoch in epochs {
                run.save_reconstructions(epoch, &images(0), images(10 * epoch as u8)).unwrap();
            }
            fs::read(run.history()).unwrap()
        };
        let expected = history(&whole, &[1, 2, 3]);
        // Killed after epoch 3 but before its checkpoint: epochs 2 and 3 are repeated.
        assert_eq!(history(&parts, &[1, 2, 3, 2, 3]), expected);
        // A lost column stays blank and moves no others.
        let blank = history(&parts, &[3]);
        let size = |png: &[u8]| image::load_from_memory(png).unwrap().into_rgb8().dimensions();
        assert_eq!(size(&blank), size(&expected));
    }
}
