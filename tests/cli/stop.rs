//! What ends a run before its last epoch: its time, Ctrl-C, a kill, values that are not finite.

use std::fs;
#[cfg(unix)]
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
#[cfg(unix)]
use std::process::Stdio;
#[cfg(unix)]
use std::time::Duration;

use serde_json::Value;
use vae_wgpu::app::io::tensor_file;
#[cfg(unix)]
use vae_wgpu::runtime::tensor::rng;
#[cfg(unix)]
use vae_wgpu::runtime::tensor::rng::Stream;

#[cfg(unix)]
use crate::runs::{Running, assert_same, interrupt, signal, start};
use crate::runs::{command, device, ok, resume, rows, run_in, small, text};

#[test]
fn run_stops_when_its_time_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let mut args = small(&run, "cpu", "1000000");
    args.extend(["--max-time", "1.5s"]);
    let said = text(&ok(&args).stderr);
    assert!(said.contains("interrupted after") && said.contains("--resume"), "{said}");
    assert!(said.contains("\nthe time of --max-time is up: stopping after this step\n"), "{said}");
    let epochs = rows(&run, "epochs.csv").len().max(3).to_string();
    ok(&resume(&run, "cpu", &epochs));
    // A run can start from the weights of another.
    let other = run_in(&dir, "other");
    let mut args = small(&other, "cpu", "1");
    args.extend(["--init", &run]);
    ok(&args);
}

#[cfg(unix)]
#[test]
fn ctrl_c_is_acknowledged_before_the_step_ends() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let mut args = vec!["train", "--data", "shapes", "--train-limit", "200", "--val-limit", "10", "--out", &run];
    // A step takes longer than the acknowledgement.
    args.extend(["--batch-size", "100", "--channels", "16", "--blocks", "1", "--device", "cpu"]);
    let mut child = command(&args).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.starts_with("step 1/")));
    // In the middle of the next step.
    std::thread::sleep(Duration::from_millis(200));
    signal(&child, interrupt().0);
    let said: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(128 + interrupt().1), "{said:?}");
    let at = |part: &str| said.iter().position(|line| line.starts_with(part));
    let (acknowledged, saved) = (at("stopping after this step"), at("interrupted after"));
    assert!(acknowledged.is_some() && acknowledged < saved, "{said:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_a_checkpoint_that_resumes_identically() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (run_in(&dir, "whole/run"), run_in(&dir, "parts/run"));
    // Too many epochs to finish before the signal.
    let reported = |status: &str| {
        let report = fs::read_to_string(Path::new(&parts).join("report.html")).unwrap();
        report.contains(&format!("<title>run: {status}</title>")) && report.ends_with("</html>\n")
    };
    let mut run = small(&parts, "cpu", "1000000");
    for (name, number) in [interrupt(), ("-TERM", 15)] {
        let mut child = start(&run, 6);
        signal(&child, name);
        let status = child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(status.code(), Some(128 + number), "{status:?}: {said}");
        assert!(reported("Interrupted"));
        run = resume(&parts, "cpu", "1000000");
    }
    // One epoch more than it had done, because the table has a header.
    let epochs = rows(&parts, "epochs.csv").len().max(3).to_string();
    ok(&resume(&parts, "cpu", &epochs));
    assert!(reported("Finished"));
    ok(&small(&whole, "cpu", &epochs));
    assert_same(&whole, &parts);
}

/// Twenty kills at random times, each followed by a resume.
#[cfg(unix)]
#[test]
fn repeatedly_killed_run_is_identical_to_an_uninterrupted_one() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, killed) = (run_in(&dir, "whole/run"), run_in(&dir, "killed/run"));
    const EPOCHS: &str = "24";
    ok(&small(&whole, "cpu", EPOCHS));
    let mut moments = rng::stream(3, Stream::Check, 0);
    let mut kills = 0;
    let mut child = start(&small(&killed, "cpu", EPOCHS), 1);
    while kills < 20 {
        let wait = rng::below(&mut moments, 120);
        std::thread::sleep(Duration::from_millis(u64::from(wait)));
        if child.try_wait().unwrap().is_none() {
            signal(&child, "-KILL");
            kills += 1;
        }
        child.wait().unwrap();
        let again = command(&resume(&killed, "cpu", EPOCHS)).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        child = Running(again.unwrap());
        if kills < 20 && rows(&killed, "epochs.csv").len() > 24 {
            break; // finished before the twentieth kill
        }
    }
    child.wait().unwrap();
    assert!(kills >= 10, "only {kills} kills hit a running process");
    ok(&resume(&killed, "cpu", EPOCHS));
    assert_same(&whole, &killed);
}

/// Finite gradients with infinite squares would make infinite moments, which a checkpoint rejects.
#[test]
fn non_finite_gradient_norm_ends_the_run_before_the_update() {
    let dir = tempfile::tempdir().unwrap();
    for device in ["cpu", device()] {
        let run = run_in(&dir, device);
        let mut args = small(&run, device, "2");
        args.extend(["--beta", "1e25"]);
        let output = command(&args).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{said}");
        assert!(said.contains("non-finite value in the global gradient norm at step 1"), "{said}");
        let checkpoint = tensor_file::load(&Path::new(&run).join("checkpoint.safetensors")).unwrap();
        assert_eq!(checkpoint.metadata["step"], "0");
    }
}

#[test]
fn non_finite_loss_ends_the_run_before_the_update() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let mut args = small(&run, "cpu", "2");
    args.extend(["--lr", "1e38", "--json"]);
    let output = command(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    let said = text(&output.stderr);
    assert!(said.contains("non-finite value in") && said.contains("at step"), "{said}");
    // The last event is what stderr says.
    let last: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!((&last["event"], &last["exit_code"]), (&"error".into(), &3.into()));
    let message = last["message"].as_str().unwrap();
    assert!(message.contains("Try a lower learning rate") && said.contains(message), "{message}");
    let bytes = fs::read(Path::new(&run).join("checkpoint.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    for (name, tensor) in file.tensors() {
        let numbers: Vec<f32> = bytemuck::pod_collect_to_vec(tensor.data());
        assert!(numbers.iter().all(|v| v.is_finite()), "{name}");
    }
}
