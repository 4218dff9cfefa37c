//! Killing a writer at any time leaves a complete checkpoint of a single step.
//!
//! The test starts itself as a child process that saves checkpoints as fast as it can, and kills it.

use std::env;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use rand::RngExt;
use vae_wgpu::Error;
use vae_wgpu::app::io::atomic::FolderLock;
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::runtime::graph::Tensor;
use vae_wgpu::runtime::op::Init;
use vae_wgpu::runtime::tensor::Spec;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::checkpoint::{Checkpoint, RunProgress};
use vae_wgpu::vae::weights::{TensorSchema, Weights};

/// Run folder of the child process.
const WRITER: &str = "VAE_WGPU_TEST_WRITER";
const KILLS: u64 = 20;

fn tensors() -> (Vec<Tensor>, Vec<Tensor>) {
    let tensor = |name: &str, spec| Tensor { name: name.to_owned(), spec, init: Init::Constant(0.0), offset: 0 };
    let params = vec![tensor("a.weight", Spec::conv_weight(64, 64, 3, 3)), tensor("a.bias", Spec::vector(64))];
    (params, vec![tensor("b.running_mean", Spec::vector(64))])
}

/// A checkpoint in which every value is the step.
fn checkpoint(step: u64) -> Checkpoint {
    let (params, states) = tensors();
    let filled =
        |tensors: &[Tensor]| -> Vec<Vec<f32>> { tensors.iter().map(|t| vec![step as f32; t.spec.len()]).collect() };
    Checkpoint {
        progress: RunProgress {
            step,
            epoch: step / 10,
            seed: 7,
            settings: "{}".to_owned(),
            best: Some(step as f64),
            data: None,
        },
        weights: Weights { params: filled(&params), states: filled(&states) },
        moment1: filled(&params),
        moment2: filled(&params),
    }
}

fn load(path: &Path) -> Result<Checkpoint, Error> {
    let (params, states) = tensors();
    Checkpoint::from_file(tensor_file::load(path)?, path, TensorSchema { params: &params, states: &states })
}

/// The child process, not a test by itself. It continues from the existing checkpoint until it is killed.
#[test]
fn writer() {
    let Some(folder) = env::var_os(WRITER) else { return };
    let folder = Path::new(&folder);
    let _lock = FolderLock::take(folder).unwrap();
    let path = folder.join("checkpoint.safetensors");
    let (params, states) = tensors();
    let inventory = TensorSchema { params: &params, states: &states };
    let first = if path.exists() { load(&path).unwrap().progress.step + 1 } else { 0 };
    println!("\nwriting");
    for step in first.. {
        tensor_file::save(&checkpoint(step).into_file(inventory).unwrap(), &path).unwrap();
    }
}

fn start(folder: &Path) -> io::Result<Child> {
    let mut child = Command::new(env::current_exe()?)
        .args(["--exact", "checkpoint::writer", "--nocapture"])
        .env(WRITER, folder)
        .stdout(Stdio::piped())
        .spawn()?;
    let lines = child.stdout.take().map(|out| BufReader::new(out).lines());
    let started = lines.is_some_and(|mut lines| lines.any(|line| line.is_ok_and(|line| line == "writing")));
    assert!(started, "the writer did not start");
    Ok(child)
}

#[test]
fn checkpoint_loads_after_a_kill_at_any_time() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let (params, states) = tensors();
    tensor_file::save(&checkpoint(0).into_file(TensorSchema { params: &params, states: &states }).unwrap(), &path)
        .unwrap();
    let mut moments = rng::stream(1, Stream::Check, 0);
    let mut last = 0;
    let mut cut_short = 0;
    for kill in 0..KILLS {
        // The writer takes the lock, which the previous one lost when it was killed.
        let mut writer = start(dir.path()).unwrap();
        sleep(Duration::from_micros(moments.random_range(0..60_000)));
        writer.kill().unwrap();
        writer.wait().unwrap();
        let found = load(&path).unwrap_or_else(|e| panic!("kill {kill}: {e}"));
        assert_eq!(found, checkpoint(found.progress.step), "kill {kill}: a mixture of steps");
        assert!(found.progress.step >= last, "kill {kill}: step {} after {last}", found.progress.step);
        last = found.progress.step;
        let scratch = std::fs::read_dir(dir.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().ends_with(".scratch"));
        let scratch = scratch.count();
        assert!(scratch <= 1, "kill {kill}: scratch files accumulate");
        cut_short += scratch;
    }
    println!("{KILLS} kills, {cut_short} of them in the middle of writing; {last} checkpoints saved");
    assert!(last > 0, "no checkpoint was saved between the kills");
}

#[test]
fn folder_lock_excludes_a_second_writer() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = start(dir.path()).unwrap();
    let Err(Error::File { doing, source, .. }) = FolderLock::take(dir.path()) else { panic!("two writers") };
    assert_eq!(doing, "lock");
    assert!(source.to_string().contains("another process"), "{source}");
    writer.kill().unwrap();
    writer.wait().unwrap();
    FolderLock::take(dir.path()).unwrap();
}
