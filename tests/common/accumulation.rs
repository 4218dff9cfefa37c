//! Gradient accumulation on a device: for tests on the CPU reference and on adapters.

use std::thread;
use vae_wgpu::runtime::graph::Arena;

use vae_wgpu::runtime::op::{Carry, Exchanges, Likelihood, MicroBatch, Part};
use vae_wgpu::runtime::plan::Options;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::model::{Mode, Norm, VaeConfig};
use vae_wgpu::vae::ranks::{Ranks, threads};
use vae_wgpu::vae::runner::{Device, Hyperparams, Runner};

const LATENT: usize = 3;

fn config(norm: Norm) -> VaeConfig {
    let (channels, blocks, groups, image_size, likelihood) = (4, 1, 1, 8, Likelihood::Unit);
    VaeConfig { channels, blocks, groups, latent_dim: LATENT, norm, image_size, likelihood, ..VaeConfig::default() }
}

fn runner(norm: Norm, programs: &[(usize, Mode)], device: &Device) -> Runner {
    let mut runner = Runner::new(config(norm), programs, device, &Options::default()).unwrap();
    runner.init(5).unwrap();
    runner
}

/// Images and noise of a step.
fn batch(count: usize, step: u64) -> (Vec<u8>, Vec<f32>) {
    let mut draw = rng::stream(23, Stream::Check, step);
    let pixels = rng::uniforms(&mut draw, config(Norm::Batch).images(count).len(), 127.0).unwrap();
    (pixels.iter().map(|p| (p + 128.0) as u8).collect(), rng::normals(&mut draw, count * LATENT))
}

fn hyper() -> Hyperparams {
    Hyperparams { weight_decay: 1e-2, beta: 0.5, clip: 1.0, ..Hyperparams::default() }
}

fn bits(tensors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    tensors.iter().map(|t| t.iter().map(|v| v.to_bits()).collect()).collect()
}

/// All that an update changes, and what it is made from.
fn everything(runner: &mut Runner) -> Vec<Vec<Vec<u32>>> {
    let arenas = [
        Arena::Params,
        Arena::Grads,
        Arena::OptimizerState(0),
        Arena::OptimizerState(1),
        Arena::States,
        Arena::SavedStates,
    ];
    arenas.iter().map(|arena| bits(&runner.download(*arena).unwrap())).collect()
}

/// Several processes that have 1, 2 or 4 micro-batches of a step each get the gradients and loss terms of a single process.
pub(crate) fn shares_of_a_step_give_the_same_bits(device: &Device) {
    // Five micro-batches, the last one of one image.
    let (size, of): (usize, usize) = (2, 9);
    let all = of.div_ceil(size);
    let (images, eps) = batch(of, 0);
    let pixels = images.len() / of;
    let programs = [size, of % size].map(|batch| (batch, Mode::Accumulate(all)));
    let mut runner = runner(Norm::Batch, &programs, device);
    let mut process = |first: usize, share: usize| {
        let count = share.min(all - first);
        for index in 0..count {
            let from = (first + index) * size;
            let to = of.min(from + size);
            let micro_batch = MicroBatch { index, count, images: to - from, of };
            let (images, eps) = (&images[from * pixels..to * pixels], &eps[from * LATENT..to * LATENT]);
            runner.accumulate(images, eps, micro_batch, &hyper()).unwrap();
        }
        [Arena::Grads, Arena::Terms].map(|arena| runner.download(arena).unwrap()).concat()
    };
    let whole = process(0, all);
    assert!(whole.iter().flatten().any(|value| *value != 0.0));
    for share in [1, 2, 4] {
        let count = all.div_ceil(share);
        let (mut sum, mut held) = (Vec::new(), vec![Vec::new(); MicroBatch::levels(count)]);
        for index in 0..count {
            sum = process(index * share, share);
            for (level, held) in held.iter_mut().enumerate() {
                match (MicroBatch { index, count, images: 1, of: count }).carry(level) {
                    Carry::Keep => {}
                    Carry::Store => held.clone_from(&sum),
                    Carry::Add => {
                        let held: &Vec<Vec<f32>> = held;
                        let pairs = sum.iter_mut().flatten().zip(held.iter().flatten());
                        pairs.for_each(|(sum, held)| *sum += held);
                    }
                }
            }
        }
        assert_eq!(bits(&sum), bits(&whole), "processes with {share} micro-batches each");
    }
}

/// With position norm, whose statistics are those of an image, and the unit likelihood, a step of micro-batches is that of one batch, up to
/// rounding.
pub(crate) fn accumulated_steps_agree_with_one_batch(device: &Device) {
    // Micro-batches of four and two images.
    let (size, of) = (4, 6);
    let programs = [(4, Mode::Accumulate(2)), (2, Mode::Accumulate(2)), (1, Mode::Update)];
    let mut parts = runner(Norm::Position, &programs, device);
    let mut whole = runner(Norm::Position, &[(of, Mode::Train)], device);
    for step in 0..3 {
        let (images, eps) = batch(of, step);
        assert_eq!(parts.train_accumulated(&images, &eps, size, &hyper()).unwrap(), step);
        whole.train_with_noise(&images, &eps, &hyper()).unwrap();
        if step == 0 {
            let grads = [&mut parts, &mut whole].map(|runner| runner.download(Arena::Grads).unwrap());
            let apart = distance(&grads[0], &grads[1]);
            assert!(apart < 1e-5, "gradients are {apart:.1e} apart, relative to their size");
        }
    }
    let (parts, whole) = (parts.reports(true).unwrap(), whole.reports(true).unwrap());
    assert_eq!((parts.len(), whole.len()), (3, 3));
    for (a, b) in parts.iter().zip(&whole) {
        let limit = if a.step == 0 { 1e-5 } else { 1e-3 };
        assert!(a.finite && b.finite && a.step == b.step);
        for (a, b) in [(a.total, b.total), (a.recon, b.recon), (a.kl, b.kl), (a.mse, b.mse), (a.grad_norm, b.grad_norm)]
        {
            assert!((a - b).abs() <= limit * b.abs().max(1e-2), "{parts:?} against {whole:?}");
        }
    }
}

/// Returns the distance of two sets of tensors, relative to the size of the second.
fn distance(a: &[Vec<f32>], b: &[Vec<f32>]) -> f64 {
    let square = |a: &f32, b: f32| f64::from(a - b).powi(2);
    let apart: f64 = a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| square(a, *b)).sum();
    (apart / b.iter().flatten().map(|b| square(b, 0.0)).sum::<f64>()).sqrt()
}

/// With batch norm, statistics are those of each micro-batch, so that the step is another one. This also shows that [`distance`] notices.
pub(crate) fn batch_statistics_are_those_of_each_micro_batch(device: &Device) {
    let (images, eps) = batch(6, 0);
    let gradients = |size| {
        let mut runner = runner(Norm::Batch, &[(size, Mode::Accumulate(6 / size)), (1, Mode::Update)], device);
        let first = runner.download(Arena::States).unwrap();
        runner.train_accumulated(&images, &eps, size, &hyper()).unwrap();
        (runner.download(Arena::Grads).unwrap(), distance(&runner.download(Arena::States).unwrap(), &first))
    };
    let ((whole, once), (parts, thrice)) = (gradients(6), gradients(2));
    let apart = distance(&parts, &whole);
    assert!(apart > 1e-2, "gradients are only {apart:.1e} apart");
    assert!(thrice > 1.5 * once, "running statistics moved by {once} and {thrice}");
}

/// Two processes that share steps, the second one with one micro-batch or none, get all that one process gets.
pub(crate) fn shared_steps_give_the_bits_of_one_process(device: &Device) {
    let (size, latent) = (2, LATENT);
    let config = VaeConfig { likelihood: Likelihood::Optimal, ..config(Norm::Batch) };
    let runner = |programs: &[(usize, Mode)]| {
        let mut runner = Runner::new(config, programs, device, &Options::default()).unwrap();
        runner.init(5).unwrap();
        runner
    };
    let mut alone = runner(&[(2, Mode::Accumulate(4)), (1, Mode::Accumulate(4)), (1, Mode::Update)]);
    let programs = [(2, Mode::AccumulateShare(2)), (1, Mode::AccumulateShare(2)), (1, Mode::UpdateShares(4))];
    let mut processes = [runner(&programs), runner(&programs)];
    for (step, of) in [(0, 5), (1, 4), (2, 6)] {
        let (images, eps) = batch(of, step);
        alone.train_accumulated(&images, &eps, size, &hyper()).unwrap();
        let pixels = images.len() / of;
        let (mut statistics, mut sums) = (Vec::new(), Vec::new());
        for (runner, first) in processes.iter_mut().zip([0, 2 * size]) {
            let count = (of.saturating_sub(first).div_ceil(size)).min(2);
            for index in 0..count {
                let from = first + index * size;
                let to = of.min(from + size);
                let micro_batch = MicroBatch { index, count, images: to - from, of };
                let (images, eps) = (&images[from * pixels..to * pixels], &eps[from * latent..to * latent]);
                // In the run of the last micro-batch of one, and after that of the other.
                let mut own = Vec::new();
                let mut keep = |values: &mut [f32]| {
                    own.push(values.to_vec());
                    Ok(())
                };
                let last = first == 0 && index + 1 == count;
                let exchanges = if last { Exchanges::Sums(&mut keep) } else { Exchanges::None };
                let of_batch = runner.accumulate_share(images, eps, micro_batch, &hyper(), exchanges);
                statistics.push(of_batch.unwrap());
                sums.extend(last.then_some(own));
            }
            if first > 0 && count > 0 {
                let mut own = Vec::new();
                let keep = &mut |values: &mut [f32]| {
                    own.push(values.to_vec());
                    Ok(())
                };
                runner.exchange_sums(keep).unwrap();
                sums.push(own);
            }
        }
        let statistics: Vec<&[f32]> = statistics.iter().map(Vec::as_slice).collect();
        // A few buckets of gradients, the last one with the loss terms.
        let lengths: Vec<Vec<usize>> = sums.iter().map(|own| own.iter().map(Vec::len).collect()).collect();
        assert!(lengths[0].len() == 4 && lengths.iter().all(|own| *own == lengths[0]), "{lengths:?}");
        let mut sum = sums.pop().unwrap();
        for (sum, other) in sum.iter_mut().flatten().zip(sums.pop().into_iter().flatten().flatten()) {
            *sum += other;
        }
        for runner in &mut processes {
            let mut buckets = sum.iter();
            let all = &mut |values: &mut [f32]| {
                values.copy_from_slice(buckets.next().unwrap());
                Ok(())
            };
            runner.exchange_sums(all).unwrap();
            assert!(runner.update_shares(&[&[]], &hyper()).is_err());
            assert_eq!(runner.update_shares(&statistics, &hyper()).unwrap(), step);
        }
    }
    let expected = (alone.reports(true).unwrap(), everything(&mut alone));
    assert!(expected.0.len() == 3 && expected.0.iter().all(|report| report.finite));
    for runner in &mut processes {
        assert!((runner.reports(true).unwrap(), everything(runner)) == expected);
    }
}

/// Four processes with two images each, the last one with one, and norms over the images of all have the gradients and running statistics of
/// one batch, up to rounding, and the same on all.
pub(crate) fn synchronized_norms_are_those_of_one_batch(device: &Device) {
    let (size, of) = (2, 7);
    let (images, eps) = batch(of, 0);
    let pixels = images.len() / of;
    let mut whole = runner(Norm::Batch, &[(of, Mode::Train)], device);
    whole.train_with_noise(&images, &eps, &hyper()).unwrap();
    let process = |ranks: &mut Ranks| {
        let (from, to) = (ranks.rank() * size, of.min((ranks.rank() + 1) * size));
        let programs = [(to - from, Mode::AccumulateSynchronized(1)), (1, Mode::UpdateShares(4))];
        let mut runner = runner(Norm::Batch, &programs, device);
        let micro_batch = MicroBatch { index: 0, count: 1, images: to - from, of };
        let (own_images, own_eps) = (&images[from * pixels..to * pixels], &eps[from * LATENT..to * LATENT]);
        let mut exchanges = 0;
        let mut gather = |own: &[f32]| {
            exchanges += 1;
            let received = ranks.gather(bytemuck::cast_slice(own))?;
            let part = |(rank, bytes): (usize, &Vec<u8>)| Part {
                values: bytemuck::pod_collect_to_vec(bytes),
                weight: (of - rank * size).min(size) as f64 / (to - from) as f64,
            };
            Ok(received.iter().enumerate().map(part).collect())
        };
        let with = Exchanges::Tensors(&mut gather);
        let statistics = runner.accumulate_share(own_images, own_eps, micro_batch, &hyper(), with).unwrap();
        assert_eq!(exchanges, runner.exchanges().unwrap());
        runner.exchange_sums(&mut |values| ranks.sum(values, 4)).unwrap();
        runner.update_shares(&[&statistics], &hyper()).unwrap();
        let report = runner.reports(true).unwrap().remove(0);
        (report, [Arena::Grads, Arena::States, Arena::Params].map(|arena| runner.download(arena).unwrap()))
    };
    let process = &process;
    let processes: Vec<_> = thread::scope(|scope| {
        let spawn = |mut ranks: Ranks| scope.spawn(move || process(&mut ranks));
        let threads: Vec<_> = threads::group(4).into_iter().map(spawn).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let expected = whole.reports(true).unwrap().remove(0);
    let (report, [grads, states, _]) = &processes[0];
    for (a, b) in [(report.total, expected.total), (report.kl, expected.kl), (report.grad_norm, expected.grad_norm)] {
        assert!((a - b).abs() <= 1e-5 * b.abs(), "{report:?} against {expected:?}");
    }
    for (what, values, arena) in [("gradients", grads, Arena::Grads), ("running statistics", states, Arena::States)] {
        let apart = distance(values, &whole.download(arena).unwrap());
        assert!(apart < 1e-5, "{what} are {apart:.1e} apart, relative to their size");
    }
    assert!(processes.iter().all(|process| *process == processes[0]), "the processes differ");
}

/// A step of one micro-batch has the bits of a step without accumulation.
pub(crate) fn single_micro_batch_gives_the_bits_of_a_step(device: &Device) {
    let mut plain = runner(Norm::Batch, &[(3, Mode::Train)], device);
    let mut single = runner(Norm::Batch, &[(3, Mode::Accumulate(1)), (1, Mode::Update)], device);
    for step in 0..2 {
        let (images, eps) = batch(3, step);
        plain.train_with_noise(&images, &eps, &hyper()).unwrap();
        single.train_accumulated(&images, &eps, 5, &hyper()).unwrap();
    }
    assert_eq!(plain.reports(true).unwrap(), single.reports(true).unwrap());
    assert_eq!(everything(&mut plain), everything(&mut single));
}

/// Also those of the micro-batches that were finite.
pub(crate) fn non_finite_micro_batch_rejects_the_whole_step(device: &Device) {
    let programs = [(2, Mode::Accumulate(3)), (1, Mode::Update)];
    let mut runner = runner(Norm::Batch, &programs, device);
    let kept = |runner: &mut Runner| {
        let mut kept = everything(runner);
        // The gradients show what was wrong.
        kept.remove(1);
        kept
    };
    let step = |runner: &mut Runner, poisoned: Option<usize>| {
        let (images, mut eps) = batch(6, runner.step());
        if let Some(micro_batch) = poisoned {
            eps[micro_batch * 2 * LATENT] = f32::NAN;
        }
        runner.train_accumulated(&images, &eps, 2, &hyper()).unwrap();
        runner.reports(true).unwrap().pop().unwrap()
    };
    assert!(step(&mut runner, None).finite);
    for micro_batch in 0..3 {
        let before = kept(&mut runner);
        let report = step(&mut runner, Some(micro_batch));
        assert!(!report.finite && report.total.is_nan(), "{report:?}");
        assert_eq!(kept(&mut runner), before, "micro-batch {micro_batch}");
    }
    let before = kept(&mut runner);
    let report = step(&mut runner, None);
    assert!(report.finite && report.total.is_finite() && report.grad_norm > 0.0, "{report:?}");
    assert_ne!(kept(&mut runner), before);
}
