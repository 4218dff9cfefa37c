//! Whole training steps: compared with the CPU reference, reproducible bit for bit, without leaks.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vae_wgpu::Error;
use vae_wgpu::app::check::bisect;
use vae_wgpu::runtime::gpu::testing::TestHooks;
use vae_wgpu::runtime::gpu::{Gpu, Options as GpuOptions};
use vae_wgpu::runtime::graph::Arena;
use vae_wgpu::runtime::op::Likelihood;
use vae_wgpu::runtime::plan::Options;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::model::{Head, Mode, Norm, VaeConfig};
use vae_wgpu::vae::runner::{Device, Hyperparams, Runner, StepReport};

use crate::accumulated;
use crate::harness::{self, Setup, Suite, everything};

/// All arenas of a training step.
const ARENAS: [Arena; 6] = [
    Arena::Params,
    Arena::Grads,
    Arena::OptimizerState(0),
    Arena::OptimizerState(1),
    Arena::States,
    Arena::SavedStates,
];

const BATCH: usize = 3;

/// A model in which no value is so near to zero that rounding decides what a ReLU does with it. It pools: otherwise a single such value
/// has much weight.
fn small(norm: Norm) -> VaeConfig {
    let head = Head::Pool;
    VaeConfig { channels: 8, blocks: 2, groups: 2, latent_dim: 5, image_size: 16, norm, head, ..VaeConfig::default() }
}

/// A model with one of each kind of block, for tests of many variants: every shape costs a pipeline.
fn smallest(norm: Norm) -> VaeConfig {
    VaeConfig { groups: 1, ..small(norm) }
}

/// A model with all kinds of kernels.
fn one_block(norm: Norm) -> VaeConfig {
    VaeConfig { blocks: 1, ..smallest(norm) }
}

/// The model for a variant: the largest if the adapter chooses the kernels, the smallest for those that take longest to compile.
fn model(norm: Norm, variant: Option<&str>) -> VaeConfig {
    match variant {
        None => small(norm),
        Some("tiled") => one_block(norm),
        Some(_) => smallest(norm),
    }
}

fn gpu(gpu: &Arc<Gpu>) -> Device {
    Device::Gpu(Arc::clone(gpu))
}

fn runner(config: VaeConfig, programs: &[(usize, Mode)], device: &Device, options: &Options) -> Runner {
    let mut runner = Runner::new(config, programs, device, options).unwrap();
    runner.init(5).unwrap();
    runner
}

/// Images and noise of a step: the same for every device.
fn batch(config: &VaeConfig, batch: usize, step: u64) -> (Vec<u8>, Vec<f32>) {
    let mut noise = rng::stream(17, Stream::Check, step);
    let pixels = rng::uniforms(&mut noise, config.images(batch).len(), 127.0).unwrap();
    let images = pixels.iter().map(|p| (p + 128.0) as u8).collect();
    (images, rng::normals(&mut noise, batch * config.latent_dim))
}

fn train(runner: &mut Runner, size: usize, steps: u64) -> Vec<StepReport> {
    let config = *runner.config();
    for _ in 0..steps {
        let (images, eps) = batch(&config, size, runner.step());
        let hyper = Hyperparams { lr: 1e-3, weight_decay: 1e-2, beta: 0.5, clip: 1.0, ..Hyperparams::default() };
        runner.train_with_noise(&images, &eps, &hyper).unwrap();
    }
    runner.reports(true).unwrap()
}

fn bits(tensors: &[Vec<f32>]) -> Vec<Vec<u32>> {
    tensors.iter().map(|t| t.iter().map(|v| v.to_bits()).collect()).collect()
}

fn close(what: &str, a: f32, b: f32, relative: f32) {
    let error = (a - b).abs();
    assert!(error <= relative * b.abs().max(1e-6), "{what}: {a} against {b}");
}

fn training_steps_agree_with_the_reference(device: &Arc<Gpu>) {
    let flattening = VaeConfig { head: Head::Flatten, ..small(Norm::Position) };
    for (config, fuse) in [(small(Norm::Batch), true), (small(Norm::Batch), false), (flattening, true)] {
        let options = Options { fuse, ..Options::default() };
        let programs = [(BATCH, Mode::Train), (BATCH, Mode::Evaluate)];
        let mut on_gpu = runner(config, &programs, &gpu(device), &options);
        let mut on_cpu = runner(config, &programs, &Device::Cpu, &Options::default());
        let (gpu_steps, cpu_steps) = (train(&mut on_gpu, BATCH, 3), train(&mut on_cpu, BATCH, 3));
        for (a, b) in gpu_steps.iter().zip(&cpu_steps) {
            assert!(a.finite && b.finite && a.step == b.step);
            let tolerance = if a.step == 0 { 1e-5 } else { 1e-3 };
            close("total", a.total, b.total, tolerance);
            close("recon", a.recon, b.recon, tolerance);
            close("kl", a.kl, b.kl, 10.0 * tolerance);
            close("gradient norm", a.grad_norm, b.grad_norm, 10.0 * tolerance);
        }
        let (images, eps) = batch(&config, BATCH, 0);
        let a = on_gpu.evaluate(&images, &eps, 1.0).unwrap();
        let b = on_cpu.evaluate(&images, &eps, 1.0).unwrap();
        close("evaluated total", a.total, b.total, 1e-3);
        assert_eq!((a.h.len(), a.mean.len()), (b.h.len(), b.mean.len()));
    }
}

/// In every variant, fused steps have the losses, gradients and updates of the unfused graph on the CPU, up to rounding.
fn fused_steps_agree_with_the_unfused_graph(device: &Arc<Gpu>, norm: Norm, variant: Option<&str>) {
    let run = |device: Device, options: &Options| {
        let mut runner = runner(model(norm, variant), &[(BATCH, Mode::Train)], &device, options);
        let mut reports = train(&mut runner, BATCH, 1);
        let grads = runner.download(Arena::Grads).unwrap();
        reports.extend(train(&mut runner, BATCH, 2));
        (reports, grads, runner.download(Arena::Params).unwrap())
    };
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt();
    let size = |a: &[f32]| a.iter().map(|a| f64::from(*a).powi(2)).sum::<f64>().sqrt();
    let (defined, grads, params) = run(Device::Cpu, &Options::default());
    let largest = grads.iter().map(|g| size(g)).fold(0.0, f64::max);
    let mut options = Options::default();
    options.variants.extend(variant.map(|v| ("fused_conv".to_owned(), v.to_owned())));
    let (fused, fused_grads, fused_params) = run(gpu(device), &options);
    for (a, b) in fused.iter().zip(&defined) {
        close("total", a.total, b.total, if a.step == 0 { 1e-5 } else { 1e-3 });
        close("gradient norm", a.grad_norm, b.grad_norm, if a.step == 0 { 1e-4 } else { 1e-2 });
    }
    assert_eq!((fused.len(), fused_grads.len()), (defined.len(), grads.len()));
    for (a, b) in fused_grads.iter().zip(&grads) {
        let error = distance(a, b);
        assert!(error <= 1e-4 * size(b) + 1e-6 * largest, "a gradient is {error:e} away, of {:e}", size(b));
    }
    // Adam turns rounding noise in tiny gradients into whole steps: three of 1e-3 at most.
    for (a, b) in fused_params.iter().zip(&params) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 6.1e-3), "a parameter went elsewhere");
    }
}

/// As on a GPU, where the parts of gradients are added in a few dispatches.
fn joined_sums_give_the_same_bits(device: &Arc<Gpu>) {
    let run = |join_sums| {
        let options = Options { join_sums, ..Options::default() };
        let config = smallest(Norm::Batch);
        let (_, plan) = config.plan(BATCH, Mode::Train, device.profile(), &options).unwrap();
        let mut runner = runner(config, &[(BATCH, Mode::Train)], &gpu(device), &options);
        let reports = train(&mut runner, BATCH, 2);
        (plan.dispatches.len(), (reports, ARENAS.map(|arena| bits(&runner.download(arena).unwrap()))))
    };
    let ((few, joined), (many, apart)) = (run(true), run(false));
    assert!(few < many, "{few} and {many} dispatches");
    assert!(joined == apart, "the bits differ");
}

fn planner_off_gives_the_same_bits(device: &Arc<Gpu>) {
    let run = |share: bool| {
        let options = Options { reuse_buffers: share, ..Options::default() };
        let mut runner = runner(small(Norm::Batch), &[(BATCH, Mode::Train)], &gpu(device), &options);
        let reports = train(&mut runner, BATCH, 3);
        (reports, bits(&runner.download(Arena::Params).unwrap()), bits(&runner.download(Arena::States).unwrap()))
    };
    assert_eq!(run(true), run(false));
}

fn recomputed_blocks_give_the_same_bits_with_less_memory(device: &Arc<Gpu>) {
    for (norm, fuse) in [(Norm::Batch, true), (Norm::Batch, false), (Norm::Position, true), (Norm::Position, false)] {
        let run = |checkpoint: bool| {
            let options = Options { recompute_blocks: checkpoint, fuse, ..Options::default() };
            let mut runner = runner(small(norm), &[(BATCH, Mode::Train)], &gpu(device), &options);
            let reports = train(&mut runner, BATCH, 3);
            (reports, [Arena::Params, Arena::Grads, Arena::States].map(|r| bits(&runner.download(r).unwrap())))
        };
        assert_eq!(run(true), run(false), "{norm:?}, fused: {fuse}");
        let plan = |checkpoint: bool| {
            let options = Options { recompute_blocks: checkpoint, fuse, ..Options::default() };
            let (graph, plan) =
                VaeConfig { norm, ..VaeConfig::default() }.plan(16, Mode::Train, device.profile(), &options).unwrap();
            plan.verify(&graph).unwrap();
            (plan.memory.slots, graph.nodes().len())
        };
        let ((kept, nodes), (less, more_nodes)) = (plan(false), plan(true));
        assert!(more_nodes > nodes && less < kept * 4 / 5, "{norm:?}, fused: {fuse}: {less} of {kept} bytes");
    }
}

fn the_same_seed_gives_the_same_bits(device: &Arc<Gpu>) {
    for norm in [Norm::Batch, Norm::Position] {
        let run = || {
            let mut runner = runner(small(norm), &[(BATCH, Mode::Train)], &gpu(device), &Options::default());
            let reports = train(&mut runner, BATCH, 4);
            (reports, ARENAS.map(|r| bits(&runner.download(r).unwrap())))
        };
        assert_eq!(run(), run());
    }
}

/// Largest relative difference of a loss from the reference. Rounding differs between adapters and training amplifies it; the losses of
/// two adapters differ by at most twice this.
const BAND: f64 = 0.001;

fn losses_of_fifty_steps_stay_close_to_the_reference(device: &Arc<Gpu>) {
    // The optimal likelihood divides gradients by the error, so rounding grows faster as a small model learns.
    let config = VaeConfig { likelihood: Likelihood::Unit, ..small(Norm::Batch) };
    let run = |device: &Device| {
        let mut runner = runner(config, &[(BATCH, Mode::Train)], device, &Options::default());
        train(&mut runner, BATCH, 50)
    };
    let (found, expected) = (run(&gpu(device)), run(&Device::Cpu));
    assert_eq!((found.len(), expected.len()), (50, 50));
    let mut widest = 0.0;
    for (a, b) in found.iter().zip(&expected) {
        assert!(a.total.is_finite() && b.total.is_finite(), "step {}: {} and {}", a.step, a.total, b.total);
        let apart = f64::from(a.total - b.total).abs() / f64::from(b.total).abs();
        assert!(apart <= BAND, "step {}: {} and {} are {apart:.2e} apart", a.step, a.total, b.total);
        widest = f64::max(widest, apart);
    }
    println!("{}: 50 steps, losses at most {widest:.2e} apart, of {BAND}", device.adapter_info());
    let (first, last) = (&expected[0], &expected[49]);
    assert!(last.total < first.total, "the reference does not learn: {} -> {}", first.total, last.total);
}

fn workgroup_order_does_not_change_any_bit(device: &Arc<Gpu>, norm: Norm, variant: Option<&str>) {
    let hooks = TestHooks { reverse_workgroups: true, ..TestHooks::default() };
    let reversed = Arc::new(Gpu::open(&GpuOptions { hooks, ..GpuOptions::default() }).unwrap());
    let run = |device: &Arc<Gpu>| {
        let mut options = Options::default();
        options.variants.extend(variant.map(|v| ("fused_conv".to_owned(), v.to_owned())));
        // The order matters within a kernel, not between blocks, and every pipeline is compiled twice.
        let mut runner = runner(one_block(norm), &[(BATCH, Mode::Train)], &gpu(device), &options);
        let reports = train(&mut runner, BATCH, 3);
        (reports, ARENAS.map(|r| bits(&runner.download(r).unwrap())))
    };
    assert_eq!(run(device), run(&reversed));
}

fn continuing_from_downloaded_tensors_gives_the_same_bits(device: &Arc<Gpu>) {
    let new = || runner(small(Norm::Batch), &[(BATCH, Mode::Train)], &gpu(device), &Options::default());
    let mut whole = new();
    train(&mut whole, BATCH, 6);
    let mut first = new();
    train(&mut first, BATCH, 3);
    let mut second = new();
    for arena in [Arena::Params, Arena::OptimizerState(0), Arena::OptimizerState(1), Arena::States] {
        second.upload(arena, &first.download(arena).unwrap()).unwrap();
    }
    second.resume(0, first.step());
    train(&mut second, BATCH, 3);
    for arena in ARENAS {
        assert_eq!(bits(&whole.download(arena).unwrap()), bits(&second.download(arena).unwrap()), "{arena}");
    }
}

fn many_submissions_give_the_same_bits(device: &Arc<Gpu>) {
    let config = small(Norm::Batch);
    let steps = 4;
    let trained = |longest| {
        let options = Options { longest_submission: longest, ..Options::default() };
        let (_, plan) = config.plan(BATCH, Mode::Train, device.profile(), &options).unwrap();
        let mut runner = runner(config, &[(BATCH, Mode::Train)], &gpu(device), &options);
        train(&mut runner, BATCH, steps);
        (plan.submissions.len(), bits(&runner.download(Arena::Params).unwrap()))
    };
    let (one, whole) = trained(None);
    // Submissions of another model run between those of the step.
    let done = AtomicBool::new(false);
    let (many, parts) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut other = runner(config, &[(2, Mode::Train)], &gpu(device), &Options::default());
            while !done.load(Ordering::Acquire) {
                train(&mut other, 2, 1);
            }
        });
        let trained = trained(Some(1e-4));
        done.store(true, Ordering::Release);
        trained
    });
    assert!(one == 1 && many > 3, "{one} and {many} submissions");
    assert!(whole == parts, "the bits differ");
}

fn training_does_not_leak_device_objects(_: &Arc<Gpu>) {
    // A device of its own: concurrent tests create objects on theirs.
    let device = &Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let mut runner = runner(small(Norm::Batch), &[(BATCH, Mode::Train)], &gpu(device), &Options::default());
    let count = |runner: &mut Runner, steps| {
        train(runner, BATCH, steps);
        device.wait().unwrap();
        device.live_objects()
    };
    let after_10 = count(&mut runner, 10);
    assert!(after_10.buffers > 0 && after_10.bind_groups > 0);
    assert_eq!(after_10, count(&mut runner, 40));
}

fn non_finite_step_changes_nothing(device: &Arc<Gpu>) {
    for (poison, norm, tensor, device) in [
        (f32::NAN, Norm::Batch, "decoder.out.weight", gpu(device)),
        (f32::INFINITY, Norm::Position, "decoder.out.weight", gpu(device)),
        // Before all norms: every activation and batch statistic after it becomes NaN, too.
        (f32::NAN, Norm::Batch, "encoder.stem.weight", gpu(device)),
        (f32::NAN, Norm::Batch, "encoder.stem.weight", Device::Cpu),
    ] {
        let mut runner = runner(small(norm), &[(BATCH, Mode::Train)], &device, &Options::default());
        let healthy = runner.download(Arena::Params).unwrap();
        train(&mut runner, BATCH, 1);
        let (_, at) = runner.graph().unwrap().tensor(tensor).unwrap();
        let mut params = runner.download(Arena::Params).unwrap();
        params[at][1] = poison;
        runner.upload(Arena::Params, &params).unwrap();
        let kept = |runner: &mut Runner| {
            [Arena::Params, Arena::OptimizerState(0), Arena::OptimizerState(1), Arena::States]
                .map(|arena| bits(&runner.download(arena).unwrap()))
        };
        let before = kept(&mut runner);
        let report = train(&mut runner, BATCH, 1).pop().unwrap();
        assert!(!report.finite, "{report:?}");
        assert_eq!(before, kept(&mut runner));
        assert_eq!(runner.first_non_finite().unwrap().as_deref(), Some(tensor));
        // Training continues once the cause is removed.
        runner.upload(Arena::Params, &healthy).unwrap();
        assert!(train(&mut runner, BATCH, 1).pop().unwrap().finite);
        assert_ne!(before, kept(&mut runner));
    }
}

fn programs_of_several_sizes_share_parameters(device: &Arc<Gpu>) {
    let config = small(Norm::Batch);
    let programs = [(4, Mode::Train), (3, Mode::Train), (4, Mode::Evaluate), (4, Mode::Encode), (4, Mode::Decode)];
    let mut runner = runner(config, &programs, &gpu(device), &Options::default());
    train(&mut runner, 4, 2);
    let before = bits(&runner.download(Arena::Params).unwrap());
    train(&mut runner, 3, 1);
    assert_ne!(before, bits(&runner.download(Arena::Params).unwrap()));
    let (images, _) = batch(&config, 4, 0);
    let still = vec![0.0; 4 * config.latent_dim];
    let whole = runner.evaluate(&images, &still, 1.0).unwrap();
    let h = runner.encode(&images).unwrap();
    assert_eq!(whole.h, h);
    let mu: Vec<f32> = h.chunks(2 * config.latent_dim).flat_map(|h| h[..config.latent_dim].to_vec()).collect();
    assert_eq!(runner.decode(&mu).unwrap(), whole.mean);
    // Programs for other batch sizes are compiled on demand.
    let values = whole.mean.len() / 4;
    assert_eq!(runner.decode(&mu[..3 * config.latent_dim]).unwrap(), whole.mean[..3 * values]);
    assert!(matches!(runner.decode(&mu[1..]), Err(Error::InvalidArgument { .. })));
}

/// One test, so that the pipelines of the small model are compiled once.
fn accumulated_steps_are_those_of_one_batch_or_of_several_processes(device: &Arc<Gpu>) {
    let device = &gpu(device);
    accumulated::shares_of_a_step_give_the_same_bits(device);
    accumulated::accumulated_steps_agree_with_one_batch(device);
    accumulated::batch_statistics_are_those_of_each_micro_batch(device);
    accumulated::shared_steps_give_the_bits_of_one_process(device);
    accumulated::synchronized_norms_are_those_of_one_batch(device);
    accumulated::single_micro_batch_gives_the_bits_of_a_step(device);
    accumulated::non_finite_micro_batch_rejects_the_whole_step(device);
}

fn accumulated_steps_agree_with_the_reference(device: &Arc<Gpu>) {
    let config = smallest(Norm::Batch);
    // Micro-batches of two images, the last one of one.
    let programs = [(2, Mode::Accumulate(2)), (1, Mode::Accumulate(2)), (1, Mode::Update)];
    let run = |device: &Device| {
        let mut runner = runner(config, &programs, device, &Options::default());
        for step in 0..3 {
            let (images, eps) = batch(&config, BATCH, step);
            runner.train_accumulated(&images, &eps, 2, &Hyperparams { clip: 1.0, ..Hyperparams::default() }).unwrap();
        }
        (runner.reports(true).unwrap(), ARENAS.map(|arena| bits(&runner.download(arena).unwrap())))
    };
    let (found, expected) = (run(&gpu(device)), run(&Device::Cpu));
    assert_eq!((found.0.len(), expected.0.len()), (3, 3));
    for (a, b) in found.0.iter().zip(&expected.0) {
        assert!(a.finite && b.finite && a.step == b.step);
        let tolerance = if a.step == 0 { 1e-5 } else { 1e-3 };
        close("total", a.total, b.total, tolerance);
        close("mse", a.mse, b.mse, tolerance);
        close("gradient norm", a.grad_norm, b.grad_norm, 10.0 * tolerance);
    }
    // The same seed gives the same bits.
    assert_eq!(found, run(&gpu(device)));
}

fn overfits_a_single_batch(device: &Arc<Gpu>) {
    let config = small(Norm::Batch);
    let mut runner = runner(config, &[(BATCH, Mode::Train)], &gpu(device), &Options::default());
    let (images, _) = batch(&config, BATCH, 0);
    // Smooth images: five latent dimensions cannot encode noise.
    let images: Vec<u8> = (0..images.len()).map(|i| ((i / 256) * 23 % 200 + i % 16 * 3) as u8).collect();
    let mut reports = Vec::new();
    for step in 0..150 {
        let (_, eps) = batch(&config, BATCH, step);
        let hyper = Hyperparams { lr: 5e-3, weight_decay: 0.0, beta: 0.0, ..Hyperparams::default() };
        runner.train_with_noise(&images, &eps, &hyper).unwrap();
        reports.extend(runner.reports(false).unwrap());
    }
    reports.extend(runner.reports(true).unwrap());
    assert_eq!(reports.len(), 150);
    let (first, last) = (reports[0].mse, reports[149].mse);
    assert!(last < 0.2 * first, "mean squared error {first} -> {last}");
}

fn variants_agree_in_training(device: &Arc<Gpu>) {
    let chosen = {
        let mut runner = runner(one_block(Norm::Batch), &[(BATCH, Mode::Train)], &gpu(device), &Options::default());
        train(&mut runner, BATCH, 2)
    };
    for variant in ["naive", "tiled", "register_tiled"] {
        let variants = ["conv2d", "conv_transpose2d", "linear"].map(|op| (op.to_owned(), variant.to_owned()));
        let options = Options { variants: variants.into(), ..Options::default() };
        let mut runner = runner(one_block(Norm::Batch), &[(BATCH, Mode::Train)], &gpu(device), &options);
        for (a, b) in train(&mut runner, BATCH, 2).iter().zip(&chosen) {
            close(variant, a.total, b.total, 1e-4);
        }
    }
}

fn bisect_finds_no_divergence(device: &Arc<Gpu>) {
    for config in [small(Norm::Position), VaeConfig { head: Head::Flatten, ..small(Norm::Batch) }] {
        let distances = bisect(device, &config, BATCH, &Options::default()).unwrap();
        assert!(distances.len() > 100);
        for distance in distances {
            assert!(distance.passed(), "{distance}");
        }
    }
}

fn default_model_trains_within_webgpu_default_limits(_: &Arc<Gpu>) {
    let plain = Gpu::open(&GpuOptions { webgpu_defaults: true, ..GpuOptions::default() }).unwrap();
    let device = Device::Gpu(Arc::new(plain));
    let mut runner = runner(VaeConfig::default(), &[(2, Mode::Train)], &device, &Options::default());
    let report = train(&mut runner, 2, 1).pop().unwrap();
    assert!(report.finite && report.total > 0.5 && report.total < 3.0, "{report:?}");
}

fn timing_does_not_change_any_bit(device: &Arc<Gpu>) {
    let config = small(Norm::Batch);
    let programs = [(BATCH, Mode::Train)];
    let plain = {
        let mut runner = runner(config, &programs, &gpu(device), &Options::default());
        let reports = train(&mut runner, BATCH, 3);
        assert!(runner.spans().unwrap().is_empty());
        (reports, bits(&runner.download(Arena::Params).unwrap()))
    };
    for timestamps in [true, false] {
        let options = GpuOptions { timestamps, ..GpuOptions::default() };
        let other = Arc::new(Gpu::open(&options).unwrap());
        let able = other.device().features().contains(wgpu::Features::TIMESTAMP_QUERY);
        assert!(timestamps || !able);
        let mut runner = runner(config, &programs, &gpu(&other), &Options::default());
        let mut reports = train(&mut runner, BATCH, 1);
        assert_eq!(runner.time_next().unwrap(), able);
        reports.extend(train(&mut runner, BATCH, 2));
        // Only the first of the two steps was timed.
        let spans = runner.spans().unwrap();
        assert_eq!(spans.len(), if able { runner.dispatches() } else { 0 });
        for span in &spans {
            assert_eq!(span.ns.is_some(), span.begin_ns.is_some());
            assert!(
                span.ns.is_none_or(|ns| ns > 0.0 && ns < 1e10) && span.begin_ns.is_none_or(|ns| ns >= 0.0),
                "{span:?}"
            );
        }
        assert!(runner.spans().unwrap().is_empty());
        assert_eq!((reports, bits(&runner.download(Arena::Params).unwrap())), plain);
    }
}

pub(crate) fn register(tests: &mut Suite) {
    // These take the most pipelines: a test for each norm and variant, so that all threads have some.
    for norm in [Norm::Batch, Norm::Position] {
        for variant in [None, Some("naive"), Some("tiled"), Some("register_tiled")] {
            let case = format!("{norm:?} norm, {}", variant.unwrap_or("the adapter's choice"));
            // These compile every kernel twice.
            let slow = variant.is_some_and(|variant| variant != "naive");
            if variant.is_none() || norm == Norm::Batch && (everything() || !slow) {
                let name = format!("workgroup_order_does_not_change_any_bit: {case}");
                tests.on(Setup::Full, name, move |gpu| {
                    workgroup_order_does_not_change_any_bit(gpu, norm, variant);
                    Ok(())
                });
            }
            let name = format!("fused_steps_agree_with_the_unfused_graph: {case}");
            // The whole plan is one for GPUs.
            let as_gpu = variant == Some("tiled") && norm == Norm::Batch;
            let setup = if as_gpu { Setup::AsGpu } else { Setup::Full };
            tests.on(setup, name, move |gpu| {
                fused_steps_agree_with_the_unfused_graph(gpu, norm, variant);
                Ok(())
            });
        }
    }
    tests.on(Setup::AsGpu, "joined_sums_give_the_same_bits", |gpu| {
        joined_sums_give_the_same_bits(gpu);
        Ok(())
    });
    harness::tests!(
        tests,
        timing_does_not_change_any_bit,
        training_steps_agree_with_the_reference,
        losses_of_fifty_steps_stay_close_to_the_reference,
        planner_off_gives_the_same_bits,
        recomputed_blocks_give_the_same_bits_with_less_memory,
        the_same_seed_gives_the_same_bits,
        continuing_from_downloaded_tensors_gives_the_same_bits,
        many_submissions_give_the_same_bits,
        training_does_not_leak_device_objects,
        non_finite_step_changes_nothing,
        programs_of_several_sizes_share_parameters,
        accumulated_steps_are_those_of_one_batch_or_of_several_processes,
        accumulated_steps_agree_with_the_reference,
        overfits_a_single_batch,
        variants_agree_in_training,
        bisect_finds_no_divergence,
        default_model_trains_within_webgpu_default_limits,
    );
}
