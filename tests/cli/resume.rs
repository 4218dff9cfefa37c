//! `vae-wgpu train --resume`: runs in parts with the bits of a run in one go, and what a checkpoint is checked for.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::runtime::gpu::{Gpu, Options};
use vae_wgpu::runtime::plan;
use vae_wgpu::vae::model::{Mode, VaeConfig};

use crate::runs::{assert_same, caption, command, device, ok, resume, rows, run_in, small, text};

#[test]
fn resumed_run_is_identical_to_an_uninterrupted_one() {
    for device in [device(), "cpu"] {
        let dir = tempfile::tempdir().unwrap();
        let (whole, parts) = (run_in(&dir, "whole/run"), run_in(&dir, "parts/run"));
        ok(&small(&whole, device, "3"));
        // Event files change nothing.
        let mut args = small(&parts, device, "1");
        args.push("--tensorboard");
        ok(&args);
        ok(&resume(&parts, device, "3"));
        assert_same(&whole, &parts);
        let config: Value = serde_json::from_slice(&fs::read(Path::new(&parts).join("config.json")).unwrap()).unwrap();
        let starts = config["starts"].as_array().unwrap();
        assert!(starts.len() == 2 && starts[1]["command"].as_str().unwrap().contains("--resume"), "{starts:?}");
        assert!(!Path::new(&whole).join("tensorboard").exists());
        assert_eq!(fs::read_dir(Path::new(&parts).join("tensorboard")).unwrap().count(), 2);
        // Resuming a finished run changes nothing.
        ok(&resume(&parts, device, "3"));
        assert_same(&whole, &parts);
    }
}

/// Rewrites the tables and the configuration of a run as version 0.1.0 wrote them: fewer columns, and steps from 0.
fn as_version_0_1_0(run: &str) {
    let path = |name: &str| Path::new(run).join(name);
    for (table, added, first) in [("metrics.csv", 1, 0), ("epochs.csv", 3, 1)] {
        let text = fs::read_to_string(path(table)).unwrap();
        let rows = text.lines().enumerate().map(|(i, line)| {
            let mut fields: Vec<String> = line.split(',').map(str::to_owned).collect();
            fields.truncate(fields.len() - added);
            if i > 0 {
                fields[0] = (i - 1 + first).to_string();
            }
            fields.join(",") + "\n"
        });
        fs::write(path(table), rows.collect::<String>()).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(path("config.json")).unwrap()).unwrap();
    config.as_object_mut().unwrap().remove("starts").unwrap();
    fs::write(path("config.json"), config.to_string()).unwrap();
}

#[test]
fn run_of_version_0_1_0_resumes_identically() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, old) = (run_in(&dir, "whole"), run_in(&dir, "old"));
    ok(&small(&whole, "cpu", "3"));
    ok(&small(&old, "cpu", "1"));
    as_version_0_1_0(&old);
    assert!(fs::read_to_string(Path::new(&old).join("metrics.csv")).unwrap().contains("\n0,1,"));
    let said = text(&ok(&resume(&old, "cpu", "3")).stderr);
    assert!(!said.contains("missing"), "{said}");
    assert_eq!(rows(&whole, "metrics.csv"), rows(&old, "metrics.csv"));
    let [whole_epochs, epochs] = [&whole, &old].map(|run| rows(run, "epochs.csv"));
    assert_eq!(whole_epochs[2..], epochs[2..]);
    assert!(epochs[1].ends_with(",NaN,NaN,true") && whole_epochs[1].ends_with(",true"), "{epochs:?}");
    let model = |run: &str| fs::read(Path::new(run).join("model.safetensors")).unwrap();
    assert!(model(&whole) == model(&old), "model.safetensors differs");
}

#[test]
fn conditional_run_draws_a_row_of_each_class_and_resumes_identically() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (run_in(&dir, "whole/run"), run_in(&dir, "parts/run"));
    let train = |run: &str, epochs: &str| {
        let mut args = small(run, device(), epochs);
        args.push("--conditional");
        ok(&args);
    };
    train(&whole, "3");
    train(&parts, "1");
    ok(&resume(&parts, device(), "3"));
    assert_same(&whole, &parts);
    // Ten rows of eight samples, with the names of the classes on their left.
    let (width, height) = image::image_dimensions(Path::new(&whole).join("samples/epoch_03.png")).unwrap();
    assert!(width > 8 * 98 + 2 + 40 && height == 10 * 98 + 2 + caption(1), "{width}x{height}");
    let model = tensor_file::load(&Path::new(&whole).join("model.safetensors")).unwrap();
    let classes: Vec<String> = serde_json::from_str(&model.metadata["classes"]).unwrap();
    assert_eq!((classes.len(), classes[5].as_str()), (10, "star"));
    assert_eq!(model.tensors["encoder.label.weight"].dims, [6, 10]);
    // Each class has its own part of the prior.
    let prior = tensor_file::load(&Path::new(&whole).join("prior.safetensors")).unwrap();
    assert_eq!(prior.tensors["mixture.classes"].data, (0..10).map(|class| class as f32).collect::<Vec<_>>());
    let sampled = dir.path().join("stars.png");
    ok(&["sample", &whole, "--class", "star", "-n", "4", "--device", device(), "--out", sampled.to_str().unwrap()]);
    assert!(sampled.is_file());
    // Images without classes cannot train a conditional model.
    let folder = dir.path().join("images");
    fs::create_dir(&folder).unwrap();
    for i in 0..20 {
        image::RgbImage::from_pixel(32, 32, image::Rgb([i, 2 * i, 3 * i]))
            .save(folder.join(format!("{i}.png")))
            .unwrap();
    }
    let output = command(&["train", "--data", folder.to_str().unwrap(), "--conditional", "--device", "cpu"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    let said = text(&output.stderr);
    assert!(output.status.code() == Some(1) && said.contains("leave out --conditional"), "{said}");
    assert!(!dir.path().join("runs").exists());
}

/// Three epochs with and without buffer reuse, with blocks recomputed or kept, and with one to three threads of a software driver, pinned
/// or not.
#[test]
fn weights_are_identical_across_thread_counts_and_planner_settings() {
    let (dir, device) = (tempfile::tempdir().unwrap(), device());
    let first = run_in(&dir, "first/run");
    ok(&small(&first, device, "3"));
    for (i, (option, name, value)) in [
        (None, "LP_NUM_THREADS", "2"),
        (None, "LP_NUM_THREADS", "1"),
        (None, "LP_NUM_THREADS", "3"),
        (None, "VAE_WGPU_PLANNER", "off"),
        (None, "VAE_WGPU_PIN", "off"),
        (Some("--checkpoint-blocks"), "VAE_WGPU_PLANNER", "on"),
    ]
    .into_iter()
    .enumerate()
    {
        let run = run_in(&dir, &format!("{i}/run"));
        let mut args = small(&run, device, "3");
        args.extend(option);
        let output = command(&args).env(name, value).output().unwrap();
        assert!(output.status.success(), "{option:?} {name}={value}: {}", text(&output.stderr));
        assert_same(&first, &run);
    }
}

#[test]
fn resume_keeps_the_kernel_variants() {
    let device = device();
    if device == "cpu" {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (run_in(&dir, "whole/run"), run_in(&dir, "parts/run"));
    // A single shape from a table, and a whole operation.
    let config = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, ..VaeConfig::default() };
    let gpu = Gpu::open(&Options::default()).unwrap();
    let (graph, _) = config.plan(32, Mode::Train, gpu.profile(), &plan::Options::default()).unwrap();
    drop(gpu);
    let stem = graph.nodes().iter().find(|n| n.name == "encoder.stem").unwrap();
    let key = plan::key(stem.op.as_ref(), &stem.pass).unwrap();
    let table = serde_json::json!({
        "format": 1, "version": "0.1.0", "adapter": "Voodoo 2", "driver": "",
        "entries": [{"key": key, "variant": "naive", "ms": 1.0}],
    });
    let file = run_in(&dir, "table.json");
    fs::write(&file, table.to_string()).unwrap();
    let with = |run: &str, epochs: &str| {
        let mut args: Vec<String> = small(run, device, epochs).into_iter().map(str::to_owned).collect();
        args.extend(["--variants", &file, "--variant", "linear=naive"].map(str::to_owned));
        let output = ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(text(&output.stderr).contains("made on Voodoo 2"), "{}", text(&output.stderr));
    };
    with(&whole, "3");
    with(&parts, "1");
    let config =
        || -> Value { serde_json::from_slice(&fs::read(Path::new(&parts).join("config.json")).unwrap()).unwrap() };
    let asked = serde_json::json!({"linear": "naive", key.as_str(): "naive"});
    assert_eq!(config()["settings"]["variants"], asked);
    let kernels = config()["kernels"].clone();
    assert!(kernels["conv2d.forward"].as_str().unwrap().split(", ").any(|v| v == "naive"), "{kernels}");
    // Without variants on the command line and without the table.
    fs::remove_file(&file).unwrap();
    ok(&resume(&parts, device, "3"));
    assert_same(&whole, &parts);
    assert_eq!((&config()["settings"]["variants"], &config()["kernels"]), (&asked, &kernels));
    // A smaller total is rejected before kernels are compiled, and changes nothing; the same total trains nothing.
    let output = command(&resume(&parts, device, "2")).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert!(said.contains("at least 3, which the run has finished") && !said.contains("device "), "{said}");
    assert_eq!(config()["settings"]["epochs"], 3);
    assert!(text(&ok(&resume(&parts, device, "3")).stderr).contains("is complete: 3 epochs"));
    assert_same(&whole, &parts);
    let mut args = resume(&parts, device, "4");
    args.extend(["--variant", "conv2d=naive"]);
    ok(&args);
    assert_eq!(config()["settings"]["variants"], serde_json::json!({"conv2d": "naive"}));
    assert_ne!(config()["kernels"], kernels);
}

/// A folder in the format of CIFAR-10 with as many images as [`small`] uses.
fn other_pictures(folder: &Path) {
    fs::create_dir(folder).unwrap();
    let records = |count| [0; 3073].repeat(count);
    for i in 1..=5 {
        fs::write(folder.join(format!("data_batch_{i}.bin")), records(20)).unwrap();
    }
    fs::write(folder.join("test_batch.bin"), records(40)).unwrap();
}

#[test]
fn resume_validates_checkpoint_and_data() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&small(&run, "cpu", "1"));
    let goes_on = |data: &str| {
        let mut args = resume(&run, "cpu", "2");
        args.extend(["--data", data]);
        let output = command(&args).output().unwrap();
        let said = text(&output.stderr);
        assert!(!said.contains("panicked"), "{said}");
        (output.status.code(), said)
    };
    // Other images of the same number and size.
    let others = run_in(&dir, "others");
    other_pictures(Path::new(&others));
    let (code, said) = goes_on(&others);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("data set: expected 100 and 40 pictures of 3x32x32, checksum "), "{said}");
    // Progress in the checkpoint.
    let checkpoint = Path::new(&run).join("checkpoint.safetensors");
    let healthy = fs::read(&checkpoint).unwrap();
    for (key, value, part) in [
        ("step", "18446744073709551615", "step: expected at most"),
        ("step", "9", "epoch: expected 2 to 2 after 9 steps"),
        ("epoch", "2", "epoch: expected 0 to 1 after 4 steps"),
        ("epoch", "7", "number of epochs: expected at least 7, which the run has finished"),
        ("best", "NaN", "best: expected a finite number"),
        ("best", "nil\n\u{1b}[2J", "best: expected a number, found `nil??[2J`"),
    ] {
        let mut file = tensor_file::load(&checkpoint).unwrap();
        file.metadata.insert(key.to_owned(), value.to_owned());
        tensor_file::save(&file, &checkpoint).unwrap();
        let (code, said) = goes_on("shapes");
        // What is wrong with the settings is reported before the device is shown.
        let errors = said.lines().filter(|line| !line.starts_with("device  ")).count();
        assert!(code == Some(1) && said.contains(part) && errors == 1, "{key} {value}: {said}");
        fs::write(&checkpoint, &healthy).unwrap();
    }
    // Rows of the table.
    let table = Path::new(&run).join("metrics.csv");
    let rows = fs::read_to_string(&table).unwrap();
    let lines: Vec<&str> = rows.lines().collect();
    fs::write(&table, [lines[0], lines[2], lines[1], lines[3], ""].join("\n")).unwrap();
    let (code, said) = goes_on("shapes");
    assert!(code == Some(1) && said.contains("metrics.csv: its rows are not in order"), "{said}");
    fs::write(&table, [lines[0], lines[1], lines[4], ""].join("\n")).unwrap();
    let (code, said) = goes_on("shapes");
    assert!(code == Some(0) && said.contains("metrics.csv: 2 of 4 rows are missing"), "{said}");
    // The run now has two epochs, and so has the file that repeats it.
    let repeat = fs::read_to_string(Path::new(&run).join("train.toml")).unwrap();
    assert!(repeat.contains("\nepochs = 2\n"), "{repeat}");
    // A lost configuration is written again.
    let config = Path::new(&run).join("config.json");
    fs::remove_file(&config).unwrap();
    let said = command(&["info", &run]).output().unwrap();
    assert_eq!(said.status.code(), Some(1));
    assert!(text(&said.stderr).contains("train --resume"), "{}", text(&said.stderr));
    ok(&["sample", &run, "-n", "2", "--device", "cpu", "--out", &run_in(&dir, "two.png")]);
    let (code, said) = goes_on("shapes");
    assert!(code == Some(0) && config.is_file(), "{said}");
    fs::write(&checkpoint, &healthy[..100]).unwrap();
    let (code, said) = goes_on("shapes");
    let way_out = format!("train --init {}", Path::new(&run).join("model.safetensors").display());
    assert!(code == Some(1) && said.contains("checkpoint.safetensors") && said.contains(&way_out), "{said}");
}
