//! A soak test: resident memory, the number of device objects and the time of a step stay constant.
//!
//! In the ordinary suite it takes seconds. `VAE_WGPU_SOAK_MINUTES=60 cargo test --release --test gpu -- soak::` trains for an hour,
//! prints a line each minute, and also checks the time of a step.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vae_wgpu::app::io::run_folder::RunFolder;
use vae_wgpu::app::io::run_store::FolderStore;
use vae_wgpu::runtime::gpu::testing::LiveObjects;
use vae_wgpu::runtime::gpu::{Gpu, Options as GpuOptions};
use vae_wgpu::runtime::plan;
use vae_wgpu::vae::data;
use vae_wgpu::vae::model::VaeConfig;
use vae_wgpu::vae::runner::Device;
use vae_wgpu::vae::train::events::{Event, Observer};
use vae_wgpu::vae::train::{Settings, TrainContext, Trainer};

use crate::harness::{self, Suite};

const BATCH: usize = 32;
/// MiB by which resident memory may grow in the short and in the long run. A run keeps its table rows, a few hundred bytes per step.
const GROWTH: [f64; 2] = [3.0, 16.0];

/// Memory and objects at the end of an epoch.
#[derive(Clone, Copy, Debug)]
struct Sample {
    /// Resident memory in MiB; `None` where the system does not report it.
    resident: Option<f64>,
    objects: LiveObjects,
}

impl Sample {
    fn now(gpu: &Gpu) -> Self {
        Self { resident: resident(), objects: gpu.live_objects() }
    }
}

fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

/// Takes a sample after each epoch and stops the run when its time is over.
struct Watch<'a> {
    gpu: &'a Gpu,
    stop: &'a AtomicBool,
    until: Option<Instant>,
    samples: Vec<Sample>,
    warnings: Vec<String>,
    /// Times of the steps of the current minute, in ms.
    steps: Vec<f64>,
    /// Median of each complete minute, in ms.
    medians: Vec<f64>,
    begun: Instant,
    minutes: u64,
}

impl Observer for Watch<'_> {
    fn observe(&mut self, event: &Event<'_>) -> vae_wgpu::Result<()> {
        match event {
            Event::Step(row) => self.steps.push(1e3 * BATCH as f64 / f64::from(row.images_per_s)),
            Event::Epoch { .. } => {
                let sample = Sample::now(self.gpu);
                self.samples.push(sample);
                if self.begun.elapsed() >= Duration::from_secs(60 * (self.minutes + 1)) {
                    self.minutes = self.begun.elapsed().as_secs() / 60;
                    self.steps.sort_by(f64::total_cmp);
                    let at = |share: f64| self.steps.get((self.steps.len() as f64 * share) as usize).copied();
                    let ms = |share| at(share).map_or_else(|| "-".to_owned(), |ms| format!("{ms:.1}"));
                    let resident = sample.resident.map_or_else(|| "-".to_owned(), |mib| format!("{mib:.1}"));
                    eprintln!(
                        "minute {}: {} epochs, {} steps of {} ms (fastest tenth {}), {resident} MiB resident, {:?}",
                        self.minutes,
                        self.samples.len(),
                        self.steps.len(),
                        ms(0.5),
                        ms(0.1),
                        sample.objects
                    );
                    self.medians.extend(at(0.5));
                    self.steps.clear();
                }
                if self.until.is_some_and(|until| Instant::now() >= until) {
                    self.stop.store(true, Ordering::Release);
                }
            }
            Event::Warning { message } => self.warnings.push((*message).to_owned()),
            _ => {}
        }
        Ok(())
    }
}

/// Ratio of the best minute in the last quarter to the best minute of all. Other load slows single minutes; an accumulating cost slows
/// all of the last ones.
fn slowdown(medians: &[f64]) -> f64 {
    let best = |medians: &[f64]| medians.iter().copied().fold(f64::INFINITY, f64::min);
    best(&medians[medians.len() * 3 / 4..]) / best(medians)
}

/// Set in the child process.
const CHILD: &str = "VAE_WGPU_TEST_SOAK";

/// Whether this process runs the soak test and nothing else.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Runs in a process of its own, because other tests allocate at the same time.
fn memory_and_objects_stay_flat(_: &Arc<Gpu>) {
    if is_child() {
        return soak();
    }
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["soak::memory_and_objects_stay_flat", "--exact"]).env(CHILD, "1");
    assert!(child.status().unwrap().success(), "see the output above");
}

fn soak() {
    let minutes: Option<f64> = std::env::var("VAE_WGPU_SOAK_MINUTES").ok().map(|text| text.parse().unwrap());
    // A device of its own, so that only this run is counted.
    let gpu = Arc::new(Gpu::open(&GpuOptions::default()).unwrap());
    let dataset = data::shapes::dataset().unwrap().limited(Some(256), Some(64)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        model: VaeConfig { channels: 4, blocks: 1, groups: 1, latent_dim: 4, ..VaeConfig::default() },
        batch_size: BATCH,
        epochs: if minutes.is_some() { 1_000_000 } else { 12 },
        lr: 1e-3,
        warmup: 10,
        ..Settings::default()
    };
    let (device, stop, plan) = (Device::Gpu(Arc::clone(&gpu)), AtomicBool::new(false), plan::Options::default());
    let begun = Instant::now();
    let mut watch = Watch {
        gpu: &gpu,
        stop: &stop,
        until: minutes.map(|minutes| begun + Duration::from_secs_f64(60.0 * minutes)),
        samples: Vec::new(),
        warnings: Vec::new(),
        steps: Vec::new(),
        medians: Vec::new(),
        begun,
        minutes: 0,
    };
    let stage = TrainContext { dataset: &dataset, device: &device, plan: &plan, observer: &mut watch, stop: &stop };
    let folder = RunFolder::create(Some(&dir.path().join("run")), false).unwrap();
    let mut store = FolderStore::new(folder);
    Trainer::new(settings, &mut store, None, stage).unwrap().run().unwrap();

    assert_eq!(watch.warnings, Vec::<String>::new());
    if minutes.is_some() && !watch.medians.is_empty() {
        let slowdown = slowdown(&watch.medians);
        assert!(slowdown <= 1.5, "steps became slower, {slowdown:.2} times: {:.1?} ms", watch.medians);
    }
    let samples = watch.samples;
    // The first epochs fill caches and compile the programs for images.
    let (early, late) = (samples[samples.len() / 3], samples[samples.len() - 1]);
    assert!(samples.len() >= 12, "{} epochs", samples.len());
    assert_eq!(early.objects, late.objects, "device objects accumulate");
    if let (Some(early), Some(late)) = (early.resident, late.resident) {
        eprintln!("resident: {early:.1} MiB after a third of {} epochs, {late:.1} at the end", samples.len());
        let growth = GROWTH[usize::from(minutes.is_some())];
        assert!(late < early + growth, "{early:.1} MiB resident after a third of the run, {late:.1} at the end");
    }
}

pub(crate) fn register(tests: &mut Suite) {
    harness::tests!(tests, memory_and_objects_stay_flat);
}
