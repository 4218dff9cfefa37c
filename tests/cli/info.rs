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
    for model in ["run", "run/model.safetensors"] {
        let said = text(&stage.ok(&format!("info {model} --batch 4 --layers")).stdout);
        let parts =
            ["encoder.stem.weight", "[4, 3, 3, 3]", "parameters: ", "MFLOP", "device memory", "model.safetensors"];
        for part in parts {
            assert!(said.contains(part), "{part} is missing:\n{said}");
        }
    }
}
