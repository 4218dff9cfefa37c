//! A step that several ranks share.
//!
//! With N ranks, a step of N * K micro-batches has a block of K for each rank. K is a power of two, so that a block is a subtree of the sum
//! ([`MicroBatch`]) and the step has the bits of one process with N * K micro-batches.

use std::ops::Range;

use super::Settings;
use super::loader::Batch;
use super::synchronized_norms::SynchronizedNorms;
use crate::error::{Error, Result};
use crate::runtime::op::{Exchanges, MicroBatch};
use crate::vae::ranks::Ranks;
use crate::vae::runner::{Hyperparams, Labelled, Runner};

/// The place of a process among those that share each step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    rank: usize,
    ranks: usize,
}

impl Share {
    /// All of each step.
    pub(super) const WHOLE: Self = Self { rank: 0, ranks: 1 };

    pub(super) fn of(ranks: Option<&Ranks>) -> Self {
        ranks.map_or(Self::WHOLE, |ranks| Self { rank: ranks.rank(), ranks: ranks.size() })
    }

    pub(super) fn ranks(self) -> usize {
        self.ranks
    }

    pub(super) fn is_whole(self) -> bool {
        self == Self::WHOLE
    }

    /// Checks that the micro-batches of a step can be shared out.
    pub(super) fn check(self, settings: &Settings) -> Result<()> {
        if self.is_whole() && settings.sync_batch_norm {
            return Err(Error::argument("number of ranks for sync-batch-norm", "at least 2", 1));
        }
        let each = settings.accumulate / self.ranks;
        if self.is_whole() || settings.accumulate.is_multiple_of(self.ranks) && each.is_power_of_two() {
            return Ok(());
        }
        let what = format!("micro-batches of a step on {} ranks", self.ranks);
        let expected = format!("{} times a power of two", self.ranks);
        Err(Error::argument(what, expected, settings.accumulate))
    }

    /// Returns the number of micro-batches of a rank in a whole step.
    pub(super) fn micro_batches(self, settings: &Settings) -> usize {
        settings.accumulate / self.ranks
    }

    /// Returns which of the `len` images of a step are those of this rank.
    pub(super) fn images(self, settings: &Settings, len: usize) -> Range<usize> {
        let each = self.micro_batches(settings).saturating_mul(settings.batch_size);
        len.min(self.rank.saturating_mul(each))..len.min((self.rank + 1).saturating_mul(each))
    }
}

/// Starts a step of which `batch` has the share of this rank.
pub(super) fn start(
    ranks: &mut Ranks,
    runner: &mut Runner,
    settings: &Settings,
    batch: &Batch,
    hyper: &Hyperparams,
) -> Result<()> {
    let (size, latent) = (settings.batch_size, settings.model.latent_dim);
    let own = batch.images.len();
    let count = own.div_ceil(size);
    let pixels = batch.pixels.len() / own.max(1);
    let norms = settings.sync_batch_norm.then(|| SynchronizedNorms::of(ranks, settings, batch.of));
    // Ranks with a share of a shorter step.
    let all = batch.of.div_ceil(size);
    let sharing = all.div_ceil(Share::of(Some(ranks)).micro_batches(settings));
    let mut statistics = Vec::new();
    for index in 0..norms.as_ref().map_or(count, SynchronizedNorms::micro_batches) {
        if index >= count {
            // The images of other ranks.
            (0..runner.exchanges()?).try_for_each(|_| ranks.gather(&[]).map(drop))?;
            continue;
        }
        let range = index * size..own.min((index + 1) * size);
        let micro_batch = MicroBatch { index, count, images: range.len(), of: batch.of };
        let images = Labelled {
            values: &batch.pixels[range.start * pixels..range.end * pixels],
            labels: &batch.labels[range.clone()],
        };
        let eps = &batch.eps[range.start * latent..range.end * latent];
        let mut gather;
        let mut sum;
        let exchanges = match &norms {
            Some(norms) => {
                gather = |own: &[f32]| norms.gather(ranks, index, own);
                Exchanges::Tensors(&mut gather)
            }
            None if index + 1 == count => {
                sum = |values: &mut [f32]| ranks.sum(values, sharing);
                Exchanges::Sums(&mut sum)
            }
            None => Exchanges::None,
        };
        statistics.push(runner.accumulate_share(images, eps, micro_batch, hyper, exchanges)?);
    }
    // All ranks synchronize the norms of their last micro-batches before they exchange the sums.
    if norms.is_some() || count == 0 {
        runner.exchange_sums(&mut |values| ranks.sum(values, sharing))?;
    }
    let received = match runner.graph()?.states() {
        [] => Vec::new(),
        _ => ranks.gather(bytemuck::cast_slice(&statistics.concat()))?,
    };
    // In the order of the ranks, which is that of their micro-batches.
    let received: Vec<Vec<f32>> = received.iter().map(|bytes| bytemuck::pod_collect_to_vec(bytes)).collect();
    let (received, moves) = match &norms {
        None => (received.concat(), all),
        Some(norms) => (norms.statistics(&received), norms.micro_batches()),
    };
    let statistics: Vec<&[f32]> = match received.len() / moves {
        0 => vec![&[]; moves],
        len => received.chunks(len).collect(),
    };
    runner.update_shares(&statistics, hyper)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::runtime::plan;
    use crate::vae::data::{Dataset, Images, shapes};
    use crate::vae::model::VaeConfig;
    use crate::vae::ranks::threads;
    use crate::vae::runner::Device;
    use crate::vae::train::events::{Event, Observer, Start};
    use crate::vae::train::memory_store::InMemoryRun;
    use crate::vae::train::{Outcome, TrainContext, Trainer};

    fn settings() -> Settings {
        let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, ..VaeConfig::default() };
        // Eleven images in steps of up to four micro-batches: those of the second step have two images and one.
        Settings {
            model,
            batch_size: 2,
            accumulate: 4,
            epochs: 2,
            val_split: 0.0,
            warmup: 2,
            crop: true,
            ..Settings::default()
        }
    }

    fn dataset() -> Dataset {
        shapes::dataset().unwrap().limited(Some(11), Some(5)).unwrap()
    }

    /// Stops the run after a step.
    struct Stopper<'a> {
        after: u64,
        stop: &'a AtomicBool,
        ranks: usize,
    }

    impl Observer for Stopper<'_> {
        fn observe(&mut self, event: &Event<'_>) -> Result<()> {
            match event {
                Event::Started(Start { ranks, .. }) => assert_eq!(*ranks, self.ranks),
                Event::Step(row) => self.stop.store(row.step == self.after, Ordering::Relaxed),
                Event::Finished { communication_s, .. } => assert_eq!(communication_s.is_some(), self.ranks > 1),
                _ => {}
            }
            Ok(())
        }
    }

    /// Begins or resumes a run, as one of several ranks. It stops after a step if that is not 0.
    fn train(
        ranks: Option<&mut Ranks>,
        settings: Settings,
        dataset: &Dataset,
        run: &mut InMemoryRun,
        after: u64,
    ) -> Result<Outcome> {
        let stop = AtomicBool::new(false);
        let mut observer = Stopper { after, stop: &stop, ranks: ranks.as_ref().map_or(1, |ranks| ranks.size()) };
        let plan = plan::Options::default();
        let context = TrainContext { dataset, device: &Device::Cpu, plan: &plan, observer: &mut observer, stop: &stop };
        let mut trainer = match run.checkpoint {
            None => Trainer::new_among(ranks, settings, run, None, context)?,
            Some(_) => Trainer::resume_among(ranks, settings, run, context)?,
        };
        trainer.run()
    }

    /// Runs `body` on several ranks, each of which ends with its error.
    fn on_ranks<T: Send>(count: usize, body: impl Fn(&mut Ranks) -> Result<T> + Sync) -> Vec<Result<T>> {
        let body = &body;
        thread::scope(|scope| {
            let spawn = |mut ranks: Ranks| {
                scope.spawn(move || match body(&mut ranks) {
                    Ok(value) => ranks.end(None).map(|()| value),
                    Err(error) => {
                        let _ = ranks.end(Some((&error.to_string(), false)));
                        Err(error)
                    }
                })
            };
            let threads: Vec<_> = threads::group(count).into_iter().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    /// What a run leaves, without times.
    fn results(run: &InMemoryRun) -> impl PartialEq + use<> {
        let steps: Vec<_> =
            run.steps.iter().map(|row| (row.step, row.total.to_bits(), row.grad_norm.to_bits())).collect();
        let epochs: Vec<_> = run
            .epochs
            .iter()
            .map(|row| (row.val_total.to_bits(), row.train_total.to_bits(), row.active_units))
            .collect();
        (run.checkpoint.clone(), run.model.clone(), run.last.clone(), steps, epochs)
    }

    #[test]
    fn ranks_give_the_bits_of_one_process_also_after_a_resume() {
        let (settings, dataset) = (settings(), dataset());
        let mut alone = InMemoryRun::default();
        assert_eq!(train(None, settings.clone(), &dataset, &mut alone, 0).unwrap(), Outcome::Finished);
        assert_eq!((alone.steps.len(), alone.epochs.len()), (4, 2));
        for (count, resumes_on) in [(2, 4), (4, 2)] {
            let runs = on_ranks(count, |ranks| {
                let mut run = InMemoryRun::default();
                // The last rank stops all, within the second epoch.
                let after = if ranks.rank() + 1 == count { 3 } else { 0 };
                let outcome = train(Some(&mut *ranks), settings.clone(), &dataset, &mut run, after)?;
                assert_eq!(outcome, Outcome::Interrupted);
                Ok(run)
            });
            let part = runs.into_iter().next().unwrap().unwrap();
            assert_eq!(part.steps.len(), 3);
            let runs = on_ranks(resumes_on, |ranks| {
                let mut run = part.clone();
                train(Some(&mut *ranks), settings.clone(), &dataset, &mut run, 0)?;
                Ok(run)
            });
            for run in runs {
                assert!(results(&run.unwrap()) == results(&alone), "{count} ranks, then {resumes_on}");
            }
        }
    }

    #[test]
    fn synchronized_run_resumes_with_its_bits_and_needs_several_ranks() {
        let (settings, dataset) = (Settings { sync_batch_norm: true, ..settings() }, dataset());
        let error = train(None, settings.clone(), &dataset, &mut InMemoryRun::default(), 0).unwrap_err();
        assert!(error.to_string().contains("number of ranks"), "{error}");
        let run = |settings: &Settings, stops: bool| {
            let runs = on_ranks(2, |ranks| {
                let mut run = InMemoryRun::default();
                // Of the second step only the second micro-batch of the second rank is missing.
                if stops {
                    let stopped = train(Some(&mut *ranks), settings.clone(), &dataset, &mut run, 1)?;
                    assert_eq!(stopped, Outcome::Interrupted);
                }
                train(Some(&mut *ranks), settings.clone(), &dataset, &mut run, 0)?;
                Ok(run)
            });
            let runs: Vec<_> = runs.into_iter().map(Result::unwrap).collect();
            assert!(results(&runs[0]) == results(&runs[1]), "the ranks differ");
            results(&runs[0])
        };
        let synchronized = run(&settings, false);
        assert!(synchronized == run(&settings, true));
        assert!(synchronized != run(&Settings { sync_batch_norm: false, ..settings.clone() }, false));
    }

    #[test]
    fn ranks_that_differ_do_not_start() {
        let dataset = dataset();
        let errors = on_ranks(2, |ranks| {
            let lr = if ranks.rank() == 1 { 0.5 } else { 0.01 };
            let mut run = InMemoryRun::default();
            let result = train(Some(&mut *ranks), Settings { lr, ..settings() }, &dataset, &mut run, 0);
            assert!(run.checkpoint.is_none() && run.device.is_none());
            result
        });
        for error in errors {
            let error = error.unwrap_err().to_string();
            assert_eq!(error, "rank 1: its setting `lr` differs from that of rank 0: 0.5, expected 0.01");
        }
    }

    /// Images that can be read a number of times.
    #[derive(Debug)]
    struct Failing(Box<dyn Images>, AtomicUsize);

    impl Images for Failing {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn size(&self) -> (usize, usize, usize) {
            self.0.size()
        }
        fn classes(&self) -> &[String] {
            self.0.classes()
        }
        fn label(&self, index: usize) -> u8 {
            self.0.label(index)
        }
        fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
            if self.1.fetch_sub(1, Ordering::Relaxed) == 0 {
                return Err(Error::data("photos", "an image has vanished", "restore it"));
            }
            self.0.read_into(index, pixels)
        }
    }

    #[test]
    fn a_rank_that_fails_ends_all() {
        let errors = on_ranks(2, |ranks| {
            let mut dataset = dataset();
            if ranks.rank() == 1 {
                // The checksum reads each of the eleven, and the first step four.
                dataset.train = Box::new(Failing(dataset.train, AtomicUsize::new(15)));
            }
            let mut run = InMemoryRun::default();
            let result = train(Some(&mut *ranks), settings(), &dataset, &mut run, 0);
            // The checkpoint of the start.
            assert!(run.checkpoint.is_some());
            result
        });
        let errors: Vec<_> = errors.into_iter().map(|result| result.unwrap_err().to_string()).collect();
        assert!(errors[1].contains("an image has vanished"), "{errors:?}");
        assert_eq!(errors[0], format!("rank 1: {}", errors[1]));
    }

    #[test]
    fn a_step_that_is_not_finite_is_rejected_on_all_ranks() {
        let dataset = dataset();
        let settings = Settings { lr: 1e30, warmup: 0, clip_grad: 0.0, epochs: 20, ..settings() };
        let errors =
            on_ranks(2, |ranks| train(Some(&mut *ranks), settings.clone(), &dataset, &mut InMemoryRun::default(), 0));
        for error in errors {
            let error = error.unwrap_err();
            let diverged = matches!(error, Error::NonFinite { .. } | Error::NonFiniteOutput { .. });
            assert!(diverged || error.to_string().contains("non-finite"), "{error}");
        }
    }

    #[test]
    fn steps_are_shared_out_in_blocks_of_a_power_of_two() {
        let settings = settings();
        let images = |rank, len| Share { rank, ranks: 2 }.images(&settings, len);
        assert_eq!(
            [(0, 8), (1, 8), (0, 3), (1, 3), (1, 5)].map(|(rank, len)| images(rank, len)),
            [0..4, 4..8, 0..3, 3..3, 4..5]
        );
        assert_eq!(Share::WHOLE.images(&settings, 8), 0..8);
        for (ranks, accumulate, valid) in
            [(1, 3, true), (2, 4, true), (3, 6, true), (3, 4, false), (2, 6, false), (8, 4, false)]
        {
            let checked = Share { rank: 0, ranks }.check(&Settings { accumulate, ..settings.clone() });
            assert_eq!(checked.is_ok(), valid, "{accumulate} on {ranks}");
        }
    }
}
