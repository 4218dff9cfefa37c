//! Small runs of the program.

use std::fs;
use std::io::{BufRead, BufReader};
use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vae-wgpu"));
    command.args(args).stdin(Stdio::null());
    command
}

/// Arguments of a small run into `out`.
pub(crate) fn small<'a>(out: &'a str, device: &'a str, epochs: &'a str) -> Vec<&'a str> {
    let mut args = vec!["train", "--data", "shapes", "--train-limit", "100", "--val-limit", "40", "--batch-size", "32"];
    args.extend(["--channels", "2", "--blocks", "1", "--latent-dim", "3", "--warmup", "4", "--flip", "--crop"]);
    // Tests resume with more epochs, and count four steps of 100 images.
    args.extend(["--schedule", "constant", "--val-split", "0"]);
    args.extend(["--device", device, "--epochs", epochs, "--out", out]);
    args
}

pub(crate) fn resume<'a>(run: &'a str, device: &'a str, epochs: &'a str) -> Vec<&'a str> {
    vec!["train", "--resume", run, "--device", device, "--epochs", epochs]
}

pub(crate) fn ok(args: &[&str]) -> Output {
    let output = command(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
    output
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Name of a run folder in `dir`.
pub(crate) fn run_in(dir: &TempDir, name: &str) -> String {
    dir.path().join(name).to_str().unwrap().to_owned()
}

/// `auto` if there is an adapter, else `cpu`. Fails if an adapter is required and missing.
pub(crate) fn device() -> &'static str {
    let found = command(&["devices", "--json"]).output().unwrap().status.success();
    let required = std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0");
    assert!(found || !required, "VAE_WGPU_REQUIRE_GPU is set and there is no adapter");
    if found { "auto" } else { "cpu" }
}

/// A table without the columns that are times.
pub(crate) fn rows(run: &str, table: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(run).join(table)).unwrap();
    let header: Vec<&str> = text.lines().next().unwrap().split(',').collect();
    let is_time = |column: usize| ["seconds", "images_per_s", "elapsed_s"].contains(&header[column]);
    let without = |line: &str| {
        let others = line.split(',').enumerate().filter(|(column, _)| !is_time(*column));
        others.map(|(_, value)| value).collect::<Vec<_>>().join(",")
    };
    text.lines().map(without).collect()
}

/// Asserts that two runs of the same name are identical: the bytes of the weights and images, and table rows except for times.
pub(crate) fn assert_same(a: &str, b: &str) {
    let bytes = |run: &str, file: &str| {
        let path = Path::new(run).join(file);
        fs::read(&path).map_err(|e| format!("{}: {e}", path.display())).unwrap()
    };
    assert!(bytes(a, "model.safetensors") == bytes(b, "model.safetensors"), "model.safetensors differs");
    for table in ["metrics.csv", "epochs.csv"] {
        assert_eq!(rows(a, table), rows(b, table));
    }
    for picture in ["reconstruction_history.png", "samples/epoch_03.png"] {
        assert!(bytes(a, picture) == bytes(b, picture), "{picture} differs");
    }
}

/// Starts a run and waits until `steps` of its steps have been reported.
pub(crate) fn start(args: &[&str], steps: usize) -> Running {
    let mut args = args.to_vec();
    args.push("--json");
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..steps {
        while !lines.next().expect("the run ended early").unwrap().contains("\"event\":\"step\"") {}
    }
    // Events after these are not read: a broken pipe must not stop the run.
    Running(child)
}

/// A run that ends with its test at the latest, also if the test fails.
pub(crate) struct Running(pub(crate) Child);

impl Deref for Running {
    type Target = Child;
    fn deref(&self) -> &Child {
        &self.0
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Child {
        &mut self.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(unix)]
pub(crate) fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// Name and number of the signal of Ctrl-C, or of `SIGTERM` where the tests, and so their children, ignore the former: scripts start
/// background jobs like that.
#[cfg(unix)]
pub(crate) fn interrupt() -> (&'static str, i32) {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("SigIgn:")?.trim(), 16).ok());
    if ignored.unwrap_or(0) & 2 == 0 { ("-INT", 2) } else { ("-TERM", 15) }
}

/// Height of a caption of `lines` lines.
pub(crate) fn caption(lines: u32) -> u32 {
    20 * lines + 8
}
