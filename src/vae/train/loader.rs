//! Prepares the batches of an epoch on another thread while the device runs earlier steps.
//!
//! A batch depends on the settings and its step alone, not on the thread or the time.

use std::ops::Range;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{Builder, Scope};

use web_time::Instant;

use super::shared_step::Share;
use super::{Settings, noise};
use crate::error::{Error, Result};
use crate::vae::data;
use crate::vae::data::{Augment, Images};

/// Number of prepared batches that wait. More than one evens out variations in the time of preparing and stepping.
const DEPTH: usize = 2;

/// Images and noise of a training step, of all micro-batches of a rank.
#[derive(Debug)]
pub(super) struct Batch {
    /// Number of images of the step, on all ranks.
    pub(super) of: usize,
    /// Which of them are here.
    pub(super) images: Range<usize>,
    /// Augmented images, `[images, c, h, w]`.
    pub(super) pixels: Vec<u8>,
    /// Class of each image.
    pub(super) labels: Vec<u8>,
    /// Noise, `[images, latent]`.
    pub(super) eps: Vec<f32>,
    /// Start and end of the preparation.
    pub(super) prepared: [Instant; 2],
}

/// An epoch that has been trained in part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Epoch {
    /// Epoch, from 1.
    pub(super) number: u64,
    /// Index of its first step in the run.
    pub(super) first_step: u64,
    /// Number of its steps that have been trained.
    pub(super) done: usize,
}

/// Prepares the remaining batches of an epoch, in order. Nothing follows an error. The thread ends when all batches have been received
/// or when the receiver is dropped.
pub(super) fn start<'scope>(
    scope: &'scope Scope<'scope, '_>,
    settings: &'scope Settings,
    images: &'scope dyn Images,
    share: Share,
    epoch: Epoch,
) -> Result<Receiver<Result<Batch>>> {
    let (sender, receiver) = sync_channel(DEPTH);
    let prepare = move || prepare(settings, images, share, epoch, &sender);
    let started = Builder::new().spawn_scoped(scope, prepare);
    started.map_err(|e| Error::device("starting the thread that prepares batches", e))?;
    Ok(receiver)
}

fn prepare(settings: &Settings, images: &dyn Images, share: Share, epoch: Epoch, sender: &SyncSender<Result<Batch>>) {
    let order = data::epoch_order(settings.seed, epoch.number, images.len());
    for (step, indices) in (epoch.first_step..).zip(order.chunks(settings.images_per_step())).skip(epoch.done) {
        let batch = batch(settings, images, share, (epoch.number, step), indices);
        let failed = batch.is_err();
        // Sending fails if the trainer has left the epoch.
        if sender.send(batch).is_err() || failed {
            return;
        }
    }
}

/// Prepares a share of the batch of a step. `indices` are those of all its images.
pub(super) fn batch(
    settings: &Settings,
    images: &dyn Images,
    share: Share,
    (epoch, step): (u64, u64),
    indices: &[u32],
) -> Result<Batch> {
    let begun = Instant::now();
    let of = indices.len();
    let range = share.images(settings, of);
    let indices = &indices[range.clone()];
    let mut pixels = Vec::new();
    data::batch(images, indices, &mut pixels)?;
    let augment = Augment { flip: settings.flip, crop: settings.crop };
    augment.apply(settings.seed, epoch, indices, images.size(), &mut pixels)?;
    // That of the images before them comes first.
    let eps = noise(settings, step, range.end).split_off(range.start * settings.model.latent_dim);
    let labels = data::labels(images, indices);
    Ok(Batch { of, images: range, pixels, labels, eps, prepared: [begun, Instant::now()] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::data::shapes;

    fn settings() -> Settings {
        Settings { batch_size: 7, seed: 3, flip: true, crop: true, ..Settings::default() }
    }

    fn received(done: usize, most: usize) -> Vec<Batch> {
        let settings = settings();
        let images = shapes::dataset().unwrap().limited(Some(30), Some(1)).unwrap().train;
        std::thread::scope(|scope| {
            let epoch = Epoch { number: 2, first_step: 5, done };
            let batches = start(scope, &settings, images.as_ref(), Share::WHOLE, epoch).unwrap();
            // Batches that are not received must not block the thread.
            batches.iter().take(most).collect::<Result<_>>().unwrap()
        })
    }

    #[test]
    fn batches_are_in_order_from_any_step() {
        let all = received(0, 99);
        assert_eq!(all.iter().map(|b| b.of).collect::<Vec<_>>(), [7, 7, 7, 7, 2]);
        for (done, most) in [(0, 1), (2, 99), (4, 99), (5, 99), (0, 0)] {
            let some = received(done, most);
            assert_eq!(some.len(), most.min(5 - done));
            for (a, b) in some.iter().zip(&all[done..]) {
                assert!(a.pixels == b.pixels && a.eps == b.eps);
            }
        }
        assert_eq!(all[1].eps, noise(&settings(), 6, 7));
        assert!(all.iter().all(|b| b.prepared[0] <= b.prepared[1]));
    }

    #[test]
    fn nothing_follows_an_error() {
        /// Images of an impossible size.
        #[derive(Debug)]
        struct Odd(Box<dyn Images>);
        impl Images for Odd {
            fn len(&self) -> usize {
                self.0.len()
            }
            fn size(&self) -> (usize, usize, usize) {
                (usize::MAX, 2, 2)
            }
            fn classes(&self) -> &[String] {
                self.0.classes()
            }
            fn label(&self, index: usize) -> u8 {
                self.0.label(index)
            }
            fn read_into(&self, _: usize, _: &mut [u8]) -> Result<()> {
                Ok(())
            }
        }
        let (settings, images) = (settings(), Odd(shapes::dataset().unwrap().test));
        let received = std::thread::scope(|scope| {
            let epoch = Epoch { number: 1, first_step: 0, done: 0 };
            start(scope, &settings, &images, Share::WHOLE, epoch)
                .unwrap()
                .iter()
                .map(|batch| batch.is_ok())
                .collect::<Vec<_>>()
        });
        assert_eq!(received, [false]);
    }
}
