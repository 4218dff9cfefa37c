//! `vae-wgpu export`: weights for other programs, ONNX models.

use std::fs;

use crate::trained::{Stage, npy, text};

#[test]
fn halves_give_almost_the_same_images() {
    let stage = Stage::new();
    stage.ok("export run --half --out half.safetensors");
    let sizes = [stage.model(), stage.path("half.safetensors")].map(|path| fs::metadata(path).unwrap().len());
    assert!(sizes[1] < sizes[0] * 3 / 4, "{sizes:?}");
    stage.ok("sample run -n 4 --raw --out a.npy");
    stage.ok("sample half.safetensors -n 4 --raw --out b.npy");
    let [a, b] = ["a.npy", "b.npy"].map(|name| npy(&stage.path(name)).1);
    assert_ne!(a, b);
    for (a, b) in a.iter().zip(&b) {
        assert!((a - b).abs() < 0.02, "{a} and {b}");
    }
}

/// `scripts/onnx.sh` compares what the models compute.
#[test]
fn onnx_models_replace_earlier_ones() {
    let stage = Stage::new();
    let files = || ["encoder.onnx", "decoder.onnx"].map(|name| fs::read(stage.path("models").join(name)).unwrap());
    let said = stage.ok("export run --format onnx --out models");
    assert!(text(&said.stderr).contains("encoder and decoder: models/encoder.onnx, models/decoder.onnx"));
    let single = files();
    for file in &single {
        let content = String::from_utf8_lossy(file);
        for part in ["vae-wgpu", env!("CARGO_PKG_VERSION"), r#"{"channels":4,"blocks":1"#, "input_range", "sigma"] {
            assert!(content.contains(part), "{part}");
        }
    }
    stage.ok("export run/model.safetensors --format onnx --half --out models");
    for (single, half) in single.iter().zip(files()) {
        let stored = |file: &[u8]| String::from_utf8_lossy(file).matches("fc.weight.half").count();
        assert!(stored(single) == 0 && stored(&half) > 0);
    }
    assert_eq!(fs::read_dir(stage.path("models")).unwrap().count(), 2);
    // Nothing is written unless both can be.
    fs::create_dir_all(stage.path("taken/decoder.onnx")).unwrap();
    stage.fails("export run --format onnx --out taken", 1, &["taken/decoder.onnx", "is a folder"]);
    assert!(!stage.path("taken/encoder.onnx").exists());
}
