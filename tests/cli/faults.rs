//! File system faults during a run: two runs in one folder, a full disk, read-only and missing folders, a table that cannot be written.
//! Training continues where it can, warns once, and loses no checkpoint.

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, Lines, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};

use tempfile::TempDir;
use vae_wgpu::app::io::tensor_file;

use crate::runs::{Running, command, device, ok, resume, rows, run_in, signal, start, text};

const CHECKPOINT: &str = "checkpoint.safetensors";
/// Epochs of a run with a fault: long enough for the test to act.
const LONG: &str = "16";

/// Arguments of a run with two steps per epoch.
fn tiny<'a>(out: &'a str, device: &'a str, epochs: &'a str) -> Vec<&'a str> {
    let mut args = vec!["train", "--data", "shapes", "--train-limit", "8", "--val-limit", "4", "--batch-size", "4"];
    args.extend(["--channels", "2", "--blocks", "1", "--latent-dim", "2", "--warmup", "4"]);
    args.extend(["--schedule", "constant", "--val-split", "0"]);
    args.extend(["--device", device, "--epochs", epochs, "--out", out]);
    args
}

/// Asserts that two runs have the same tables and the same checkpoint.
fn assert_same_end(a: &str, b: &str) {
    for table in ["metrics.csv", "epochs.csv"] {
        assert_eq!(rows(a, table), rows(b, table));
    }
    let [a, b] = [a, b].map(|run| tensor_file::load(&Path::new(run).join(CHECKPOINT)).unwrap().tensors);
    assert!(a == b, "the checkpoints differ");
}

/// Runs a command; returns its exit code and stderr.
fn ends(command: &mut Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let said = text(&output.stderr);
    assert!(!said.contains("panicked"), "{said}");
    (output.status.code(), said)
}

fn warnings(said: &str) -> usize {
    said.matches("warning").count()
}

/// A run whose events the test reads.
struct Watched {
    child: Running,
    lines: Lines<BufReader<ChildStdout>>,
    said: String,
}

impl Watched {
    fn new(command: &mut Command) -> Self {
        let mut child = command.arg("--json").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child: Running(child), lines, said: String::new() }
    }

    /// Reads until an event of this kind.
    fn wait_for(&mut self, event: &str) {
        let event = format!("\"event\":\"{event}\"");
        loop {
            let line = self.lines.next().unwrap_or_else(|| panic!("no {event} in\n{}", self.said)).unwrap();
            self.said.push_str(&line);
            self.said.push('\n');
            if line.contains(&event) {
                return;
            }
        }
    }

    /// Reads the rest; returns exit code, events and stderr.
    fn end(mut self) -> (Option<i32>, String, String) {
        for line in self.lines {
            self.said.push_str(&line.unwrap());
            self.said.push('\n');
        }
        let mut words = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut words).unwrap();
        let status = self.child.wait().unwrap();
        assert!(!words.contains("panicked"), "{words}");
        (status.code(), self.said, words)
    }
}

/// User and group id.
const NOBODY: u32 = 65_534;

/// Permissions do not apply to root, so if the tests run as root, the run uses another user.
fn as_somebody(dir: &TempDir, args: &[&str]) -> Command {
    let owner = fs::metadata(dir.path()).unwrap().uid();
    if owner != 0 {
        return command(args);
    }
    let program = dir.path().join("vae-wgpu");
    if !program.exists() {
        // By another process: a child of another test could inherit the file while this one has it open for writing, and a file that is
        // open for writing cannot be run.
        let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_vae-wgpu")).arg(&program).status().unwrap();
        assert!(copied.success());
        mode(&program, 0o755);
        mode(dir.path(), 0o777);
    }
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).current_dir(dir.path()).uid(NOBODY).gid(NOBODY);
    command
}

fn mode(path: &Path, bits: u32) {
    fs::set_permissions(path, Permissions::from_mode(bits)).unwrap();
}

/// A small tmpfs.
struct Disk(PathBuf);

impl Disk {
    /// Returns `None` with a message if mounting is not permitted; `VAE_WGPU_REQUIRE_TOOLS=1` makes that a failure.
    fn mount(at: PathBuf, kib: u32) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let options = format!("size={kib}k,mode=777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&at).output();
        if mounted.as_ref().is_ok_and(|output| output.status.success()) {
            return Some(Self(at));
        }
        let required = std::env::var_os("VAE_WGPU_REQUIRE_TOOLS").is_some_and(|v| v != "0");
        assert!(!required, "VAE_WGPU_REQUIRE_TOOLS is set and a tmpfs cannot be mounted: {mounted:?}");
        // Not captured by the test harness.
        let _ = writeln!(std::io::stderr(), "*** SKIPPED: a full disk needs a tmpfs, which only root can mount ***");
        None
    }

    /// Fills it except for `left` bytes; returns the file to remove to free it.
    fn fill(&self, left: u64) -> PathBuf {
        let path = self.0.join("filler");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length - left).unwrap();
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn run_folder_is_locked_until_its_process_ends() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let mut first = start(&tiny(&run, "cpu", "100000"), 1);
    let mut again = tiny(&run, "cpu", "1");
    again.push("--force");
    for args in [&again, &resume(&run, "cpu", "1")] {
        let (code, said) = ends(&mut command(args));
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains("another process is writing to this run folder") && said.lines().count() == 1, "{said}");
        assert!(!said.contains("--out"), "--resume does not accept it: {said}");
    }
    signal(&first, "-KILL");
    first.wait().unwrap();
    ok(&resume(&run, "cpu", "1"));
}

#[test]
fn full_disk_keeps_the_last_checkpoint_and_training_continues() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path().join("disk"), 16 << 10) else { return };
    let (whole, run) = (run_in(&dir, "whole"), run_in(&dir, "disk/run"));
    ok(&tiny(&whole, "cpu", LONG));
    ok(&tiny(&run, "cpu", "1"));
    let checkpoint = fs::read(Path::new(&run).join(CHECKPOINT)).unwrap();
    // Enough space for the settings, not for a checkpoint.
    let filler = disk.fill(8 << 10);
    let (code, said) = ends(&mut command(&resume(&run, "cpu", "3")));
    assert_eq!((code, warnings(&said)), (Some(1), 1), "{said}");
    assert!(said.contains("No space left on device") && said.contains("training continues"), "{said}");
    let last = said.lines().last().unwrap();
    assert!(last.starts_with("error: cannot write ") && last.contains("No space left"), "{said}");
    assert!(fs::read(Path::new(&run).join(CHECKPOINT)).unwrap() == checkpoint, "the checkpoint is another");
    // Space is freed during a run. Earlier files may have taken the space for the settings.
    fs::remove_file(filler).unwrap();
    let filler = disk.fill(8 << 10);
    let mut watched = Watched::new(&mut command(&resume(&run, "cpu", LONG)));
    watched.wait_for("warning");
    fs::remove_file(filler).unwrap();
    let (code, events, words) = watched.end();
    assert_eq!((code, warnings(&events)), (Some(0), 1), "{events}{words}");
    assert_same_end(&run, &whole);
    let left = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.ends_with(".scratch")).count(), 0);
}

#[test]
fn read_only_folder_warns_once_and_training_continues() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, run) = (run_in(&dir, "whole"), run_in(&dir, "run"));
    assert_eq!(ends(&mut as_somebody(&dir, &tiny(&whole, "cpu", LONG))).0, Some(0));
    let folder = Path::new(&run);
    let mut watched = Watched::new(&mut as_somebody(&dir, &tiny(&run, "cpu", LONG)));
    watched.wait_for("epoch");
    mode(folder, 0o555);
    watched.wait_for("warning");
    mode(folder, 0o755);
    let (code, events, words) = watched.end();
    assert_eq!((code, warnings(&events)), (Some(0), 1), "{events}{words}");
    assert_same_end(&run, &whole);

    mode(folder, 0o555);
    let before = fs::read(folder.join(CHECKPOINT)).unwrap();
    let (code, said) = ends(&mut as_somebody(&dir, &resume(&run, "cpu", "17")));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Permission denied") && said.contains("config.json"), "{said}");
    assert!(fs::read(folder.join(CHECKPOINT)).unwrap() == before, "the checkpoint is another");
    let (code, said) = ends(&mut as_somebody(&dir, &tiny(&format!("{run}/inner"), "cpu", "1")));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("Permission denied") && said.contains("inner") && said.lines().count() == 1, "{said}");
    mode(folder, 0o755);
}

#[test]
fn missing_run_folder_is_recreated() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, run) = (run_in(&dir, "whole"), run_in(&dir, "run"));
    ok(&tiny(&whole, "cpu", LONG));
    let mut watched = Watched::new(&mut command(&tiny(&run, "cpu", LONG)));
    watched.wait_for("epoch");
    // The run may be writing to it.
    while fs::remove_dir_all(&run).is_err() && Path::new(&run).exists() {}
    let (code, events, words) = watched.end();
    assert_eq!(code, Some(0), "{events}{words}");
    assert!(events.contains("was missing and has been recreated") && warnings(&events) <= 2, "{events}");
    assert_same_end(&run, &whole);
    assert!(Path::new(&run).join("model.safetensors").exists());
    // It can be resumed.
    ok(&resume(&run, "cpu", "17"));
}

#[test]
fn run_stops_when_folder_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let (run, other) = (run_in(&dir, "run"), run_in(&dir, "other"));
    ok(&tiny(&other, "cpu", "2"));
    let mut watched = Watched::new(&mut command(&tiny(&run, "cpu", "100000")));
    watched.wait_for("epoch");
    // At once, because the run makes a folder that is missing again when it saves the next time.
    fs::rename(&run, dir.path().join("away")).unwrap();
    fs::rename(&other, &run).unwrap();
    let files = ["model.safetensors", CHECKPOINT, "metrics.csv", "epochs.csv", "reconstruction_history.png"];
    let read = || files.map(|file| fs::read(Path::new(&run).join(file)).unwrap());
    let before = read();
    let (code, events, words) = watched.end();
    assert_eq!(code, Some(1), "{events}{words}");
    assert!(words.contains("another process has taken over run folder") && words.lines().count() == 1, "{words}");
    assert!(read() == before, "the other run's files were touched");
}

#[test]
fn failed_start_leaves_the_existing_run_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&tiny(&run, "cpu", "1"));
    let checkpoint = fs::read(Path::new(&run).join(CHECKPOINT)).unwrap();
    // 32 channels and latent dimensions.
    fn large(out: &str) -> Vec<&str> {
        let args = tiny(out, "cpu", "1").into_iter().map(|arg| if arg == "2" { "32" } else { arg });
        args.chain(["--memory-limit", "1"]).collect()
    }
    let (code, said) = ends(command(&large(&run)).arg("--force"));
    assert!(code == Some(1) && said.contains("the CPU reference needs") && said.lines().count() == 2, "{said}");
    assert!(fs::read(Path::new(&run).join(CHECKPOINT)).unwrap() == checkpoint, "the old run is gone");
    let new = run_in(&dir, "new");
    assert_eq!(ends(&mut command(&large(&new))).0, Some(1));
    assert!(!Path::new(&new).exists(), "a run that did not start left its folder");
    // A folder that holds no run is not emptied.
    let own = dir.path().join("own");
    fs::create_dir_all(own.join("samples")).unwrap();
    for name in ["config.json", "metrics.csv", "samples/epoch_01.png"] {
        fs::write(own.join(name), "mine").unwrap();
    }
    let (code, said) = ends(command(&tiny(own.to_str().unwrap(), "cpu", "1")).arg("--force"));
    assert!(code == Some(1) && said.contains("contains no run") && said.lines().count() == 1, "{said}");
    assert_eq!(fs::read_dir(&own).unwrap().count(), 3);
}

#[test]
fn file_size_limit_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    assert_eq!(ends(&mut as_somebody(&dir, &tiny(&run, "cpu", "1"))).0, Some(0));
    let before = fs::read(Path::new(&run).join(CHECKPOINT)).unwrap();
    let (code, said) = ends(&mut limited(&dir, "-f 4", &resume(&run, "cpu", "3")));
    assert_eq!((code, warnings(&said)), (Some(1), 1), "{said}");
    assert!(
        said.contains("File too large") && said.lines().last().unwrap().starts_with("error: cannot write "),
        "{said}"
    );
    assert!(fs::read(Path::new(&run).join(CHECKPOINT)).unwrap() == before, "the checkpoint is another");
    let left = fs::read_dir(&run).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    assert_eq!(left.filter(|name| name.ends_with(".scratch")).count(), 0);
}

#[test]
fn device_out_of_memory_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    // 3 GB of activations with a limit of 1 GB.
    let mut args = vec!["train", "--data", "shapes", "--train-limit", "512", "--batch-size", "512", "--epochs", "1"];
    args.extend(["--device", device(), "--quiet", "--out", &run]);
    let (code, said) = ends(&mut limited(&dir, "-v 1000000", &args));
    // The driver may print messages, too.
    assert!(code == Some(1) && said.lines().filter(|line| line.starts_with("error: ")).count() == 1, "{code:?} {said}");
    assert!(!Path::new(&run).exists(), "a run that did not start left its folder");
}

#[test]
fn failure_to_start_a_thread_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let (code, said) = ends(limited(&dir, "-u 1", &tiny(&run, "cpu", "1")).arg("--quiet"));
    assert!(code == Some(1) && said.contains("starting the thread"), "{code:?} {said}");
    assert_eq!(said.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{said}");
}

/// The program under a `ulimit` of the shell.
fn limited(dir: &TempDir, limit: &str, args: &[&str]) -> Command {
    let somebody = as_somebody(dir, args);
    let mut shell = Command::new("bash");
    let script = format!("ulimit {limit} && exec \"$0\" \"$@\"");
    shell.args(["-c", &script]).arg(somebody.get_program()).args(somebody.get_args()).stdin(Stdio::null());
    if let Some(folder) = somebody.get_current_dir() {
        shell.current_dir(folder).uid(NOBODY).gid(NOBODY);
    }
    shell
}

#[test]
fn ignored_signals_stay_ignored() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "trap '' HUP && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_vae-wgpu")])
        .args(tiny(&run, "cpu", LONG));
    let mut watched = Watched::new(&mut shell);
    watched.wait_for("epoch");
    signal(&watched.child, "-HUP");
    let (code, events, words) = watched.end();
    assert_eq!(code, Some(0), "{events}{words}");
    assert_eq!(rows(&run, "epochs.csv").len(), 1 + LONG.parse::<usize>().unwrap());
}

#[test]
fn unwritable_table_warns_and_training_continues() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = Disk::mount(dir.path().join("disk"), 64) else { return };
    let (whole, run) = (run_in(&dir, "whole"), run_in(&dir, "run"));
    ok(&tiny(&whole, "cpu", "70"));
    ok(&tiny(&run, "cpu", "1"));
    let (table, elsewhere) = (Path::new(&run).join("metrics.csv"), disk.0.join("metrics.csv"));
    fs::copy(&table, &elsewhere).unwrap();
    fs::remove_file(&table).unwrap();
    symlink(&elsewhere, &table).unwrap();
    disk.fill(0);
    let (code, said) = ends(&mut command(&resume(&run, "cpu", "70")));
    assert_eq!((code, warnings(&said)), (Some(0), 1), "{said}");
    assert!(said.contains("metrics.csv") && said.contains("training continues"), "{said}");
    for file in ["model.safetensors", CHECKPOINT] {
        let [a, b] = [&run, &whole].map(|run| tensor_file::load(&Path::new(run).join(file)).unwrap().tensors);
        assert!(a == b, "{file} differs");
    }
    assert!(rows(&run, "metrics.csv").len() < rows(&whole, "metrics.csv").len());
}

#[test]
fn report_that_cannot_be_written_is_a_warning() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&tiny(&run, "cpu", "1"));
    let report = Path::new(&run).join("report.html");
    fs::remove_file(&report).unwrap();
    fs::create_dir(&report).unwrap();
    let (code, said) = ends(&mut command(&resume(&run, "cpu", "3")));
    assert_eq!((code, warnings(&said)), (Some(0), 1), "{said}");
    assert!(said.contains("cannot write ") && said.contains("report.html: is a folder"), "{said}");
    assert_eq!(rows(&run, "epochs.csv").len(), 1 + 3);
}

#[test]
fn log_write_error_is_reported_after_everything_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let (code, said) = ends(command(&tiny(&run, "cpu", "2")).arg("--json").stdout(full));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("No space left on device") && said.lines().count() == 1, "{said}");
    assert_eq!(rows(&run, "epochs.csv").len(), 1 + 2);
    ok(&resume(&run, "cpu", "3"));
}
