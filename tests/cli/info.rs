//! `vae-wgpu info` of a run.

use std::fs;

use serde_json::Value;

use crate::trained::{Stage, text};

#[test]
fn info_describes_a_trained_model() {
    let stage = Stage::new();
    let header = "epoch,train_total,train_recon,train_kl,val_total,val_recon,val_kl,val_mse,active_units,seconds";
    fs::write(stage.path("run/epochs.csv"), format!("{header}\n1,2,2,0,2.5,2,0,1,3,9\n2,1,1,0,1.5,1,0,1,3,9\n"))
        .unwrap();
    let said = text(&stage.ok("info run --batch 4").stdout);
    let first: Vec<_> = said.lines().take(5).collect();
    assert!(first[0].starts_with("run:     run, "), "{said}");
    assert_eq!(
        first[1..],
        ["started: unknown", "data:    shapes", "epochs:  2 of 25", "best:    validation loss 1.5000 in epoch 2"]
    );
    assert!(!said.contains("encoder.stem.weight"), "tensors only with --layers: {said}");
    let json: Value = serde_json::from_slice(&stage.ok("info run --batch 4 --json").stdout).unwrap();
    assert_eq!((&json["run"]["best_epoch"], &json["config"]["channels"]), (&2.into(), &4.into()));
    assert_eq!(json["tensors"][0], serde_json::json!({"name": "encoder.stem.weight", "shape": [4, 3, 3, 3]}));
    assert!(json["memory_bytes"].as_u64().unwrap() > 0 && json["flop_step"].as_f64().unwrap() > 0.0, "{json}");
    assert!(said.contains("planned for: a GPU with WebGPU's default limits (--device auto"), "{said}");
    assert_eq!(json["planned_for"], "a GPU with WebGPU's default limits");
    for model in ["run", "run/model.safetensors"] {
        let said = text(&stage.ok(&format!("info {model} --batch 4 --layers")).stdout);
        let parts =
            ["encoder.stem.weight", "[4, 3, 3, 3]", "parameters: ", "MFLOP", "device memory", "model.safetensors"];
        for part in parts {
            assert!(said.contains(part), "{part} is missing:\n{said}");
        }
    }
}

#[test]
fn missing_weights_of_a_run_are_explained() {
    let stage = Stage::new();
    fs::rename(stage.model(), stage.path("run/last.safetensors")).unwrap();
    let hint = "the file was removed. Pass run/last.safetensors for the weights of the last epoch";
    stage.fails("sample run", 1, &["run/model.safetensors", hint]);
    // What is known of the run is printed all the same.
    let output = stage.run("info run");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).starts_with("run:     run, ") && text(&output.stderr).contains(hint));
    fs::remove_file(stage.path("run/last.safetensors")).unwrap();
    stage.fails("sample run", 1, &["before its first epoch ends"]);
}

#[test]
fn info_plans_for_the_batch_of_the_run() {
    let stage = Stage::new();
    let path = stage.path("run/config.json");
    let config = fs::read_to_string(&path).unwrap();
    assert!(config.contains("\"batch_size\":128"), "{config}");
    fs::write(&path, config.replace("\"batch_size\":128", "\"batch_size\":8")).unwrap();
    for (line, batch) in [("info run", 8), ("info run --batch 4", 4), ("info run/model.safetensors", 128)] {
        let said = text(&stage.ok(line).stdout);
        assert!(said.contains(&format!("device memory at batch {batch}:")), "{line}: {said}");
    }
}

#[test]
fn dispatches_for_a_gpu_are_listed_with_their_work() {
    let stage = Stage::new();
    let said = text(&stage.ok("info --channels 4 --blocks 1 --batch 128 --dispatches").stdout);
    let lines: Vec<&str> = said.lines().skip_while(|line| !line.starts_with("dispatch ")).collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(
        words(lines[0]),
        ["dispatch", "workgroups", "invocations", "iterations", "macs", "useful", "bytes"],
        "{said}"
    );
    let product = lines.iter().find(|line| line.starts_with("encoder.stem/conv2d.forward.naive ")).unwrap();
    let row = words(product);
    // 131,072 positions with 4 channels each, 9 taps of 3 channels, padded to 4.
    assert_eq!(row[1..6], ["2048", "131072", "9", "18874368", "0.75"], "{product}");
    assert!(lines.iter().any(|line| line.starts_with("gradients/joined_sums.vec4 ")), "{said}");
    let total = lines.last().unwrap();
    assert!(total.starts_with(&format!("{} dispatches, ", lines.len() - 2)) && total.contains(" useful, "), "{total}");
}
