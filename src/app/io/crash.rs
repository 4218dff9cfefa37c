//! Crash test: kills a run at every write point of a checkpoint and resumes it. The test starts its own executable as the run, which aborts
//! at the write point like a process under `kill -9`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicBool;

use crate::app::io::atomic::fault;
use crate::app::io::run_folder::RunFolder;
use crate::app::io::run_store::FolderStore;
use crate::error::Result;
use crate::runtime::plan;
use crate::vae::data::shapes;
use crate::vae::model::VaeConfig;
use crate::vae::runner::Device;
use crate::vae::tensor_file::TensorFile;
use crate::vae::train::events::{Event, Observer};
use crate::vae::train::{Outcome, Settings, TrainContext, Trainer};

/// Environment variable with the run folder of the child.
const RUN: &str = "VAE_WGPU_TEST_RUN";
const EPOCHS: u64 = 2;

fn settings() -> Settings {
    let model = VaeConfig { channels: 2, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
    Settings { model, batch_size: 4, epochs: EPOCHS, warmup: 2, ..Settings::default() }
}

/// Records the bytes of the checkpoint that a run starts from.
#[derive(Default)]
struct Keeper(Vec<Vec<u8>>);

impl Observer for Keeper {
    fn observe(&mut self, event: &Event<'_>) -> Result<()> {
        if let Event::Started(start) = event {
            self.0.push(fs::read(start.run.join("checkpoint.safetensors")).unwrap());
        }
        Ok(())
    }
}

/// Trains for `epochs` in total in `folder`, resuming a checkpoint if there is one. Returns the checkpoint that the run started from.
fn run(folder: &Path, epochs: u64) -> Vec<u8> {
    let dataset = shapes::dataset().unwrap().limited(Some(6), Some(4)).unwrap();
    let (plan, stop, mut keeper) = (plan::Options::default(), AtomicBool::new(false), Keeper::default());
    let settings = Settings { epochs, ..settings() };
    let context =
        TrainContext { dataset: &dataset, device: &Device::Cpu, plan: &plan, observer: &mut keeper, stop: &stop };
    let resumes = folder.join("checkpoint.safetensors").exists();
    let folder = if resumes { RunFolder::resume(folder) } else { RunFolder::create(Some(folder), true) };
    let mut store = FolderStore::new(folder.unwrap());
    let trainer = if resumes {
        Trainer::resume(settings, &mut store, context)
    } else {
        Trainer::new(settings, &mut store, None, context)
    };
    assert_eq!(trainer.unwrap().run().unwrap(), Outcome::Finished);
    keeper.0.pop().unwrap()
}

/// Not a test by itself, but the run of the child process.
#[test]
fn child_run() {
    let Some(folder) = std::env::var_os(RUN) else { return };
    run(Path::new(&folder), EPOCHS);
}

/// Runs a child until a write point of a file. Returns whether it was killed there.
fn killed(folder: &Path, file: &str, point: usize) -> bool {
    let mut child = Command::new(std::env::current_exe().unwrap());
    let test = format!("{}::child_run", module_path!().split_once("::").unwrap().1);
    child.args(["--exact", &test]).stdout(Stdio::null()).stderr(Stdio::null());
    let status = child.env(RUN, folder).env(fault::VARIABLE, format!("{file}:{point}")).status().unwrap();
    assert_eq!(status.code().is_some(), status.success(), "{file}:{point}: {status}");
    !status.success()
}

/// Returns the output files that do not depend on time.
fn results(folder: &Path) -> BTreeMap<&'static str, Vec<u8>> {
    let files = ["checkpoint.safetensors", "model.safetensors", "reconstruction_history.png", "samples/epoch_02.png"];
    files.map(|file| (file, fs::read(folder.join(file)).unwrap())).into()
}

#[test]
fn kill_at_any_write_point_leaves_the_previous_or_the_new_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    // The same run one epoch at a time gives all possible checkpoints, except for the total number of epochs in their settings.
    let whole = dir.path().join("whole/run");
    let first = run(&whole, EPOCHS);
    let expected = results(&whole);
    let parts = dir.path().join("parts/run");
    run(&parts, 1);
    let state = |bytes: &[u8]| {
        let mut file = TensorFile::from_bytes(bytes, Path::new("checkpoint")).unwrap();
        file.metadata.remove("settings");
        file
    };
    let second = run(&parts, EPOCHS);
    let known = [&first, &second, &expected["checkpoint.safetensors"]].map(|bytes| state(bytes));
    let (mut kills, mut found) = (0, [0; 3]);
    for (file, saves) in [("checkpoint.safetensors", 3), ("model.safetensors", 1)] {
        for point in 0.. {
            let folder = dir.path().join(format!("{file}-{point}/run"));
            if !killed(&folder, file, point) {
                // Each save has seven points.
                assert!(point >= 7 * saves && point % 7 == 0, "{file} has {point} points");
                break;
            }
            kills += 1;
            if let Ok(bytes) = fs::read(folder.join("checkpoint.safetensors")) {
                let now = state(&bytes);
                let at = known.iter().position(|known| *known == now);
                found[at.unwrap_or_else(|| panic!("{file}:{point}: a checkpoint of no step"))] += 1;
            }
            run(&folder, EPOCHS);
            assert!(results(&folder) == expected, "{file}:{point}: another end");
            let scratch = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
            assert_eq!(scratch.filter(|name| name.ends_with(".scratch")).count(), 0, "{file}:{point}");
        }
    }
    assert!(kills >= 28 && found.iter().all(|&n| n > 0), "{kills} kills, checkpoints found: {found:?}");
}
