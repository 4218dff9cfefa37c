//! Device faults during a run: the device is lost, reports an error, has too little memory, rejects a kernel, or computes NaN. Each ends
//! the run with a clear error and without hanging. The last checkpoint stays intact, and a run resumed from it ends with the same bytes
//! as an undisturbed one.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc;
use std::time::Duration;

use vae_wgpu::Error;
use vae_wgpu::app::io::run_folder::RunFolder;
use vae_wgpu::app::io::run_store::FolderStore;
use vae_wgpu::runtime::exec::entry::PassProgram;
use vae_wgpu::runtime::gpu::testing::TestHooks;
use vae_wgpu::runtime::gpu::{Gpu, Options, Rewrite};
use vae_wgpu::runtime::graph::Arena;
use vae_wgpu::runtime::op::{Add, Likelihood, Op, Target};
use vae_wgpu::runtime::plan;
use vae_wgpu::runtime::tensor::Shape;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::data::shapes;
use vae_wgpu::vae::model::{Mode, VaeConfig};
use vae_wgpu::vae::runner::{Device, Hyperparams, Runner};
use vae_wgpu::vae::train::events::{Event, Observer};
use vae_wgpu::vae::train::{Outcome, Settings, TrainContext, Trainer};

use crate::harness::{self, Suite};

const BATCH: usize = 4;
/// Two steps per epoch.
const IMAGES: usize = 8;
const EPOCHS: u64 = 3;
/// A step of the second epoch.
const DISTURBED: u64 = 4;

fn model() -> VaeConfig {
    VaeConfig { channels: 4, blocks: 1, groups: 2, latent_dim: 4, ..VaeConfig::default() }
}

fn settings() -> Settings {
    Settings { model: model(), batch_size: BATCH, epochs: EPOCHS, warmup: 2, ..Settings::default() }
}

/// Causes a fault of the device.
type Fault = fn(&Gpu);

/// Causes a fault after a step, once the checkpoint of the previous epoch is written.
struct Disturber {
    gpu: Arc<Gpu>,
    fault: Option<Fault>,
    checkpoint: PathBuf,
    /// The last checkpoint before the fault.
    kept: mpsc::Sender<Vec<u8>>,
}

impl Observer for Disturber {
    fn observe(&mut self, event: &Event<'_>) -> vae_wgpu::Result<()> {
        if let Event::Step(row) = event
            && row.step == DISTURBED
            && let Some(fault) = self.fault
        {
            self.kept.send(fs::read(&self.checkpoint).unwrap()).unwrap();
            fault(&self.gpu);
        }
        Ok(())
    }
}

fn with(hooks: TestHooks) -> Options {
    Options { hooks, ..Options::default() }
}

/// Runs from the start, or from the checkpoint in `folder`, on a device of its own.
fn run(folder: &Path, options: &Options, fault: Option<Fault>) -> (Result<Outcome, Error>, Option<Vec<u8>>) {
    let (kept, last) = mpsc::channel();
    let run = || {
        let gpu = Arc::new(Gpu::open(options)?);
        let dataset = shapes::dataset()?.limited(Some(IMAGES), Some(BATCH))?;
        let checkpoint = folder.join("checkpoint.safetensors");
        let resumed = checkpoint.exists();
        let mut observer = Disturber { gpu: Arc::clone(&gpu), fault, checkpoint, kept };
        let (plan, stop, device) = (plan::Options::default(), AtomicBool::new(false), Device::Gpu(gpu));
        let context =
            TrainContext { dataset: &dataset, device: &device, plan: &plan, observer: &mut observer, stop: &stop };
        let folder = if resumed { RunFolder::resume(folder)? } else { RunFolder::create(Some(folder), true)? };
        let mut store = FolderStore::new(folder);
        let mut trainer = if resumed {
            Trainer::resume(settings(), &mut store, context)?
        } else {
            Trainer::new(settings(), &mut store, None, context)?
        };
        trainer.run()
    };
    (run(), last.try_recv().ok())
}

/// Returns the error of a run with a fault. A hang or a panic fails the test.
fn error_after(folder: &Path, fault: Fault) -> Error {
    let (done, result) = mpsc::channel();
    let place = folder.to_owned();
    let thread = std::thread::spawn(move || {
        done.send(run(&place, &Options::default(), Some(fault))).unwrap();
    });
    let (outcome, kept) = match result.recv_timeout(Duration::from_secs(300)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("the run hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("the run panicked: {:?}", thread.join()),
    };
    let error = outcome.unwrap_err();
    assert!(kept.unwrap() == fs::read(folder.join("checkpoint.safetensors")).unwrap(), "the checkpoint was touched");
    error
}

fn device_fault_ends_the_run_and_keeps_the_checkpoint(_: &Arc<Gpu>) {
    let dir = tempfile::tempdir().unwrap();
    let whole = dir.path().join("whole");
    assert_eq!(run(&whole, &Options::default(), None).0.unwrap(), Outcome::Finished);
    let faults: [(&str, Fault, &str); 3] = [
        ("lost", |gpu| gpu.device().destroy(), "was lost"),
        ("mistake", |gpu| drop(invalid_buffer(gpu)), "reported by the device"),
        ("memory", |gpu| drop(oversized_buffer(gpu)), "reported by the device"),
    ];
    for (name, fault, part) in faults {
        let folder = dir.path().join(name);
        let error = error_after(&folder, fault);
        assert!(matches!(error, Error::Device { .. }), "{name}: {error:?}");
        assert!(error.to_string().contains(part), "{name}: {error}");
        assert_eq!(run(&folder, &Options::default(), None).0.unwrap(), Outcome::Finished);
        for file in ["checkpoint.safetensors", "model.safetensors"] {
            let [a, b] = [&folder, &whole].map(|folder| fs::read(folder.join(file)).unwrap());
            assert!(a == b, "{name}: {file} differs");
        }
    }
}

/// Creates a buffer with an invalid usage, outside of any error scope.
fn invalid_buffer(gpu: &Gpu) -> wgpu::Buffer {
    let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::STORAGE;
    gpu.device().create_buffer(&wgpu::BufferDescriptor {
        label: Some("bad"),
        size: 16,
        usage,
        mapped_at_creation: false,
    })
}

fn oversized_buffer(gpu: &Gpu) -> wgpu::Buffer {
    let (usage, size) = (wgpu::BufferUsages::STORAGE, gpu.device().limits().max_buffer_size + 4);
    gpu.device().create_buffer(&wgpu::BufferDescriptor { label: Some("big"), size, usage, mapped_at_creation: false })
}

fn lost_device_reports_every_later_call(_: &Arc<Gpu>) {
    let gpu = Gpu::open(&Options::default()).unwrap();
    let buffer = gpu.buffer("numbers", 64).unwrap();
    gpu.device().destroy();
    for _ in 0..2 {
        for error in [
            gpu.write(&buffer, 0, &[1; 64]).and_then(|()| gpu.wait()).unwrap_err(),
            gpu.read(&buffer, 0, 64).unwrap_err(),
            gpu.submit(gpu.encoder("nothing")).unwrap_err(),
            gpu.health().unwrap_err(),
        ] {
            assert!(error.to_string().contains("was lost"), "{error}");
        }
    }
}

fn oversized_batch_is_rejected_with_the_largest_that_fits(_: &Arc<Gpu>) {
    // Large enough for a batch of 1 or 2.
    let options = with(TestHooks { max_buffer: Some(600_000), ..TestHooks::default() });
    let device = Device::Gpu(Arc::new(Gpu::open(&options).unwrap()));
    let start = |batch| Runner::new(model(), &[(batch, Mode::Train)], &device, &plan::Options::default());
    let error = start(512).unwrap_err();
    assert!(matches!(error, Error::DoesNotFit { .. }), "{error:?}");
    let said = error.to_string();
    let (_, fits) = said.rsplit_once("The largest batch that fits is ").unwrap_or_else(|| panic!("{said}"));
    let fits: usize = fits.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap();
    assert!(fits > 0, "{said}");
    start(fits).unwrap();
    assert!(start(fits + 1).is_err());
    // Each buffer fits, but not all together.
    let options = with(TestHooks { memory: Some(2_000_000), ..TestHooks::default() });
    let device = Device::Gpu(Arc::new(Gpu::open(&options).unwrap()));
    let start = |batch| Runner::new(model(), &[(batch, Mode::Train)], &device, &plan::Options::default());
    let said = start(64).unwrap_err().to_string();
    assert!(
        said.starts_with("the plan of batch 64 needs ") && said.contains("The largest batch that fits is "),
        "{said}"
    );
    let fits: usize = said.rsplit(' ').next().unwrap().parse().unwrap();
    start(fits).unwrap();
    assert!(start(fits + 1).is_err());
    // A run is rejected before anything is written.
    let dir = tempfile::tempdir().unwrap();
    for hooks in [
        TestHooks { max_buffer: Some(40_000), ..TestHooks::default() },
        TestHooks { memory: Some(100_000), ..TestHooks::default() },
    ] {
        let folder = dir.path().join("run");
        let error = run(&folder, &with(hooks), None).0;
        assert!(matches!(error, Err(Error::DoesNotFit { .. })), "{error:?}");
        assert!(!folder.exists());
    }
}

fn kernel_compile_error_names_the_kernel(gpu: &Arc<Gpu>) {
    let shape = Shape::new(1, 4, 8, 8);
    let op = Add::new(shape, shape).unwrap();
    let target = Target { profile: gpu.profile(), variant: None, accumulate: &[false] };
    let lowered = op.lower("forward", &target).unwrap();
    let compile = |rewrite: Option<Rewrite<'_>>| {
        let allocate = |_, bytes: usize| gpu.buffer("test", bytes as u64);
        PassProgram::new(gpu, &op, &op.passes().forward, &lowered, rewrite, allocate)
    };
    for change in
        ["\nthis is no WGSL", "\nfn unknown() -> f32 { return missing; }", "\nfn wrong() -> u32 { return 1.5; }"]
    {
        let broken = compile(Some(&|_, text| Ok(text + change)));
        let error = broken.unwrap_err();
        assert!(error.to_string().contains("add"), "{change}: {error}");
        gpu.health().unwrap();
    }
    let failing = compile(Some(&|kernel, _| {
        Err(Error::Shader { file: kernel.file.to_owned(), line: 7, message: "as asked".to_owned() })
    }));
    assert!(failing.unwrap_err().to_string().contains(":7: as asked"));
    compile(None).unwrap();
}

/// Runs a training step; `poison` replaces one value of its noise.
fn step(runner: &mut Runner, poison: Option<f32>) -> bool {
    let mut noise = rng::stream(3, Stream::Check, 0);
    let mut eps = rng::normals(&mut noise, BATCH * model().latent_dim);
    if let Some(poison) = poison {
        eps[5] = poison;
    }
    let images = vec![77; model().images(BATCH).len()];
    let hyper = Hyperparams { lr: 1e-3, weight_decay: 0.0, clip: 1.0, ..Hyperparams::default() };
    runner.train_with_noise(&images, &eps, &hyper).unwrap();
    runner.reports(true).unwrap().pop().unwrap().finite
}

fn bits(runner: &mut Runner) -> Vec<Vec<u32>> {
    let arenas = [Arena::Params, Arena::States, Arena::OptimizerState(0), Arena::OptimizerState(1)];
    let tensors = arenas.map(|arena| runner.download(arena).unwrap()).concat();
    tensors.iter().map(|t| t.iter().map(|v| v.to_bits()).collect()).collect()
}

fn non_finite_values_are_detected_before_the_update_and_named(gpu: &Arc<Gpu>) {
    for device in [Device::Gpu(Arc::clone(gpu)), Device::Cpu] {
        let config = VaeConfig { likelihood: Likelihood::Unit, ..model() };
        let mut runner = Runner::new(config, &[(BATCH, Mode::Train)], &device, &plan::Options::default()).unwrap();
        runner.init(1).unwrap();
        assert!(step(&mut runner, None));
        let healthy = bits(&mut runner);
        let caught = |runner: &mut Runner, poison: Option<f32>, tensor: &str| {
            let before = bits(runner);
            assert!(!step(runner, poison), "{tensor}");
            assert!(bits(runner) == before, "{tensor}: the update was made");
            assert_eq!(runner.first_non_finite().unwrap().as_deref(), Some(tensor));
        };
        // Input: all gradients hold it, and the first is named.
        for poison in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            caught(&mut runner, Some(poison), "the gradient of encoder.stem.weight");
        }
        assert!(bits(&mut runner) == healthy);
        // Every weight.
        let params = runner.download(Arena::Params).unwrap();
        let names: Vec<_> = runner.graph().unwrap().params().iter().map(|t| t.name.clone()).collect();
        for (i, name) in names.iter().enumerate() {
            for poison in [f32::NAN, f32::INFINITY] {
                let mut poisoned = params.clone();
                let last = poisoned[i].len() - 1;
                poisoned[i][last] = poison;
                runner.upload(Arena::Params, &poisoned).unwrap();
                caught(&mut runner, None, name);
            }
        }
        // Gradients of finite weights, too large for single precision: of all tensors, and of one of the last alone.
        let large: [(&[_], _); 2] = [
            (&[("decoder.out.weight", 1e30)], "the gradient of encoder.stem.weight"),
            (&[("decoder.norm.weight", 1e30), ("decoder.out.weight", 1e-20)], "the gradient of decoder.out.weight"),
        ];
        for (weights, tensor) in large {
            let mut large = params.clone();
            for (weight, value) in weights {
                let at = names.iter().position(|name| name == weight).unwrap();
                large[at].fill(*value);
            }
            runner.upload(Arena::Params, &large).unwrap();
            caught(&mut runner, None, tensor);
        }
        runner.upload(Arena::Params, &params).unwrap();
        assert!(step(&mut runner, None));
    }
}

/// With the optimal likelihood an infinite error has gradients of zero, so only the loss shows it.
fn infinite_error_of_the_optimal_likelihood_is_detected(gpu: &Arc<Gpu>) {
    for device in [Device::Gpu(Arc::clone(gpu)), Device::Cpu] {
        let config = VaeConfig { likelihood: Likelihood::Optimal, ..model() };
        let mut runner = Runner::new(config, &[(BATCH, Mode::Train)], &device, &plan::Options::default()).unwrap();
        runner.init(1).unwrap();
        let at = runner.graph().unwrap().params().iter().position(|t| t.name == "decoder.out.weight").unwrap();
        let mut params = runner.download(Arena::Params).unwrap();
        params[at].fill(1e30);
        runner.upload(Arena::Params, &params).unwrap();
        let before = bits(&mut runner);
        assert!(!step(&mut runner, None));
        assert!(bits(&mut runner) == before, "the update was made");
        assert_eq!(runner.first_non_finite().unwrap(), None);
    }
}

pub(crate) fn register(tests: &mut Suite) {
    harness::tests!(
        tests,
        device_fault_ends_the_run_and_keeps_the_checkpoint,
        lost_device_reports_every_later_call,
        oversized_batch_is_rejected_with_the_largest_that_fits,
        kernel_compile_error_names_the_kernel,
        non_finite_values_are_detected_before_the_update_and_named,
        infinite_error_of_the_optimal_likelihood_is_detected,
    );
}
