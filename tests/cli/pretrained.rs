//! `pretrained`, the name of the model that is part of the program.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vae_wgpu::app::io::tensor_file;

use crate::trained::{Stage, side};

/// A folder with a run folder that has the name of the pretrained model.
fn stage() -> Stage {
    let stage = Stage::new();
    fs::rename(stage.path("run"), stage.path("pretrained")).unwrap();
    stage
}

/// Whether an image has this entry.
fn says(stage: &Stage, image: &str, entry: &str) -> bool {
    fs::read(stage.path(image)).unwrap().windows(entry.len()).any(|part| part == entry.as_bytes())
}

#[test]
fn pretrained_model_needs_no_files() {
    let stage = stage();
    stage.ok("sample pretrained -n 4");
    assert!(says(&stage, "samples.png", "model\0pretrained") && says(&stage, "samples.png", "prior\0mixture"));
    assert!(stage.png("samples.png").height() > side(2));
    // A folder of this name is meant only as a path.
    stage.ok("sample ./pretrained -n 4 --out own.png");
    assert!(says(&stage, "own.png", "run\0pretrained") && says(&stage, "own.png", "prior\0N(0, I)"));
    image::RgbImage::new(40, 50).save(stage.path("mine.png")).unwrap();
    stage.ok("reconstruct pretrained mine.png");
    let mut files: Vec<_> = fs::read_dir(stage.dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(files, ["mine.png", "own.png", "pretrained", "reconstructions.png", "samples.png"]);
}

#[test]
fn pretrained_model_is_described_exported_and_trained_further() {
    let stage = stage();
    let about: Value = serde_json::from_slice(&stage.ok("info pretrained --batch 1 --json").stdout).unwrap();
    assert_eq!((&about["model"], &about["run"]), (&Value::from("pretrained"), &Value::Null));
    assert_eq!((&about["parameters"], &about["config"]["latent_dim"]), (&Value::from(565_763), &Value::from(64)));
    stage.ok("export pretrained --half --out copy.safetensors");
    let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/pretrained/model.safetensors");
    let [copy, original] = [stage.path("copy.safetensors"), original].map(|path| tensor_file::load(&path).unwrap());
    assert!(copy.tensors == original.tensors && copy.metadata["kl_dims"] == original.metadata["kl_dims"]);
    let train = "train --data shapes --train-limit 8 --val-limit 4 --batch-size 4 --init pretrained --dry-run";
    stage.ok(&format!("{train} --channels 16 --head pool"));
    stage.fails(train, 1, &["cannot use pretrained", "--channels"]);
}

#[test]
fn pretrained_model_has_no_folder_to_write_to() {
    let stage = stage();
    stage.fails(
        "fit-prior pretrained --data shapes",
        2,
        &["'pretrained' for '<RUN|FILE>'", "`vae-wgpu export pretrained"],
    );
    stage.fails("train --resume pretrained", 2, &["'pretrained' for '--resume <RUN>'", "./pretrained"]);
    stage.fails("train --like pretrained", 2, &["'pretrained' for '--like <RUN>'", "./pretrained"]);
    stage.fails(
        "sample pretrained --prior second-stage",
        1,
        &["no such prior", "`vae-wgpu fit-prior --kind second-stage "],
    );
    stage.fails("sample pretrained --class ship", 1, &["pretrained has no classes", "without --conditional"]);
    stage.fails("reconstruct pretrained --data nowhere", 1, &["nowhere"]);
}

/// On Linux a variable moves the user's cache, which may have the data set.
#[cfg(target_os = "linux")]
#[test]
fn pretrained_model_asks_for_its_data_set() {
    let stage = stage();
    let mut command = stage.command("reconstruct pretrained -n 1");
    command.env_remove("NO_PROXY").env_remove("no_proxy");
    for proxy in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"] {
        command.env(proxy, "http://127.0.0.1:9");
    }
    let output = command.env("XDG_CACHE_HOME", stage.path("cache")).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    for part in ["cannot download", "cifar-10-binary.tar.gz", "Place the archive in", "--data"] {
        assert!(said.contains(part), "{part}: {said}");
    }
}
