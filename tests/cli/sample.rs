//! `vae-wgpu sample`: samples compared with the library, priors, devices.

use std::fs;

use serde_json::Value;
use vae_wgpu::app::io::run_folder::RunFolder;
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;

use crate::trained::{DIMS, LATENT, Stage, caption, has_adapter, npy, side, text};

#[test]
fn samples_depend_only_on_the_seed_and_match_the_decoder() {
    let stage = Stage::new();
    let output = stage.ok("sample run -n 5 --out new/grid.png");
    assert!(output.stdout.is_empty() && text(&output.stderr).contains("new/grid.png"));
    assert_eq!(stage.png("new/grid.png").dimensions(), (side(3), side(2) + caption(2)));
    stage.ok("sample run/model.safetensors");
    assert_eq!(stage.png("samples.png").dimensions(), (side(7), side(7) + caption(1)));
    // One image is enlarged further, and the file says where it comes from.
    stage.ok("sample run -n 1 --out one.png --seed 7 --temperature 0.5");
    assert_eq!(stage.png("one.png").dimensions(), (9 * 32 + 4, 9 * 32 + 4 + caption(2)));
    let bytes = fs::read(stage.path("one.png")).unwrap();
    for (name, value) in [
        ("Title", "1 sample"),
        ("run", "run"),
        ("seed", "7"),
        ("prior", "N(0, I)"),
        ("temperature", "0.5"),
        ("Software", "vae-wgpu "),
    ] {
        let entry = format!("{name}\0{value}");
        assert!(bytes.windows(entry.len()).any(|part| part == entry.as_bytes()), "{name}");
    }

    stage.ok("sample run -n 5 --raw --out a.npy");
    let (header, samples) = npy(&stage.path("a.npy"));
    assert!(header.contains("'<f4'") && header.contains("(5, 3, 32, 32,)"), "{header}");
    let z = rng::normals(&mut rng::stream(0, Stream::Sample, 0), 5 * LATENT);
    assert_eq!(samples, stage.runner(5).decode(&z).unwrap());
    assert_ne!(samples[..DIMS], samples[DIMS..2 * DIMS]);

    // In batches, including a partial last one.
    stage.ok("sample run -n 5 --raw --out b.safetensors --batch-size 2");
    let file = tensor_file::load(&stage.path("b.safetensors")).unwrap();
    assert_eq!(file.tensors["samples"].dims, [5, 3, 32, 32]);
    assert_eq!(file.tensors["samples"].data, samples);
    stage.ok("sample run -n 5 --raw --out c.npy --seed 1");
    assert_ne!(npy(&stage.path("c.npy")).1, samples);
    stage.ok("sample run -n 2 --raw --out cold.npy --temperature 0");
    let cold = npy(&stage.path("cold.npy")).1;
    assert_eq!(cold[..DIMS], cold[DIMS..]);
}

#[test]
fn samples_come_from_the_prior_that_is_asked_for() {
    let stage = Stage::new();
    let sample = |prior: &str| {
        stage.ok(&format!("sample run -n 4 --raw --out z.npy {prior}"));
        npy(&stage.path("z.npy")).1
    };
    let normal = sample("");
    stage.fails("sample run --prior second-stage", 1, &["second_stage.safetensors", "fit-prior --kind second-stage"]);
    let limits = "--data shapes --train-limit 40 --val-limit 4";
    let said = stage.ok(&format!("fit-prior run --kind second-stage --steps 5 {limits}")).stderr;
    assert!(text(&said).contains("VAE of latent vectors"), "{}", text(&said));
    // It is drawn from only if asked for.
    assert_eq!(sample(""), normal);
    let second = sample("--prior second-stage");
    assert!(second != normal && second == sample("--prior second-stage"));
    let said = text(&stage.ok("fit-prior run --data shapes --train-limit 3 --components 5").stderr);
    assert!(said.contains("Gaussians, as many of 5 as the images allow"), "{said}");
    fs::write(stage.path("run/checkpoint.safetensors"), "").unwrap();
    let in_use = RunFolder::resume(&stage.path("run")).unwrap();
    stage.fails("fit-prior run --data shapes --train-limit 3", 1, &["another process is writing to the run"]);
    drop(in_use);
    let said = text(&stage.ok(&format!("fit-prior run {limits} --components 2")).stderr);
    assert!(said.contains("note: run/prior.safetensors exists and will be replaced"), "{said}");
    // It belongs to the weights in one file.
    fs::copy(stage.model(), stage.path("run/last.safetensors")).unwrap();
    let said = text(&stage.ok("sample run/last.safetensors -n 4 --raw --out last.npy").stderr);
    let parts =
        ["samples are from N(0, I)", "belongs to model.safetensors", "`vae-wgpu fit-prior run/last.safetensors`"];
    assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    assert_eq!(npy(&stage.path("last.npy")).1, normal);
    let mixture = sample("");
    assert!(mixture != normal && mixture != second && mixture == sample("--prior mixture"));
    assert_eq!(sample("--prior normal"), normal);
    let line = format!("eval run {limits} --no-pca --distances 4 --json");
    let report: Value = serde_json::from_slice(&stage.ok(&line).stdout).unwrap();
    for prior in ["normal", "mixture", "second_stage"] {
        assert!(report["distances"][prior].as_f64().is_some_and(|distance| distance > 0.0), "{prior}: {report}");
    }
    // Other weights in the same place.
    let mut model = tensor_file::load(&stage.model()).unwrap();
    model.tensors.get_mut("encoder.stem.bias").unwrap().data[0] += 1.0;
    tensor_file::save(&model, &stage.model()).unwrap();
    let said = stage.ok(&line).stderr;
    let warnings =
        ["prior.safetensors was fitted to other weights", "again with `vae-wgpu fit-prior --kind second-stage run`"];
    assert!(warnings.iter().all(|part| text(&said).contains(part)), "{}", text(&said));
    for (prior, hint) in [("mixture", "`vae-wgpu fit-prior run`"), ("second-stage", "--kind second-stage run`")] {
        stage.fails(&format!("sample run --prior {prior}"), 1, &["fitted to", hint, "--prior normal"]);
    }
}

#[test]
fn samples_agree_between_gpu_and_cpu() {
    let stage = Stage::new();
    if !has_adapter() {
        return;
    }
    stage.ok("sample run -n 5 --batch-size 3 --raw --out gpu.npy --device auto");
    stage.ok("sample run -n 5 --raw --out cpu.npy");
    let (gpu, cpu) = (npy(&stage.path("gpu.npy")).1, npy(&stage.path("cpu.npy")).1);
    assert_eq!(gpu.len(), cpu.len());
    for (a, b) in gpu.iter().zip(&cpu) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
    stage.ok("eval run --data shapes --val-limit 5 --batch-size 3 --no-pca --device auto");
}

#[test]
fn cpu_device_needs_no_adapter() {
    let stage = Stage::new();
    let without = |line: &str| {
        let mut command = stage.command(line);
        command.env("VK_DRIVER_FILES", "/nonexistent.json").env("VK_ICD_FILENAMES", "/nonexistent.json");
        command.env("WGPU_BACKEND", "vulkan").output().unwrap()
    };
    let output = without("sample run -n 1 --device cpu");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let output = without("sample run -n 1 --device auto");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("no usable GPU adapter"), "{}", text(&output.stderr));
}
