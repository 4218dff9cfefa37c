//! `vae-wgpu train`: a whole run, identical resumed runs, Ctrl-C, kills, non-finite values, invalid arguments.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::runtime::gpu::{Gpu, Options};
use vae_wgpu::runtime::plan;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::model::{Mode, VaeConfig};

use crate::runs::{
    Running, assert_same, command, device, interrupt, ok, resume, rows, run_in, signal, small, start, text,
};

/// Height of a caption of `lines` lines.
fn caption(lines: u32) -> u32 {
    20 * lines + 8
}

#[test]
fn train_writes_all_files_of_a_run() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let output = ok(&small(&run, device(), "2"));
    let said = text(&output.stderr);
    assert!(output.stdout.is_empty(), "{}", text(&output.stdout));
    for part in ["device", "parameters", "    2/2", "active", "done: 2 epochs, 8 steps"] {
        assert!(said.contains(part), "{part} is missing:\n{said}");
    }
    if let Some(compiling) = said.find("compiling kernels") {
        assert!(said.find("device").unwrap() < compiling, "{said}");
    }
    // 100 images in batches of 32: three whole steps and a short one per epoch.
    let steps: Vec<_> = rows(&run, "metrics.csv").iter().map(|row| row.split(',').next().unwrap().to_owned()).collect();
    assert_eq!(steps, ["step", "1", "2", "3", "4", "5", "6", "7", "8"]);
    assert_eq!(rows(&run, "epochs.csv").len(), 1 + 2);
    let path = |name: &str| Path::new(&run).join(name);
    for (picture, width, height) in [
        // The names of columns above, and a caption below.
        ("samples/epoch_01.png", 7 * 98 + 2, 7 * 98 + 2 + caption(1)),
        ("samples/epoch_02.png", 7 * 98 + 2, 7 * 98 + 2 + caption(1)),
        // Three rows of four pairs, with errors below them.
        ("reconstructions/epoch_02.png", 4 * (2 * 98 + 14) - 14 + 2, 3 * 118 + 2 + caption(1)),
        ("reconstructions/originals.png", 4 * 98 + 2, 3 * 98 + 2 + caption(1)),
    ] {
        let found = image::image_dimensions(path(picture)).unwrap();
        assert_eq!(found, (width, height), "{picture}");
    }
    assert!(!path("reconstructions/epoch_00.png").exists());
    // The originals and two epochs, ten images each, with the names of the columns above.
    let (width, height) = image::image_dimensions(path("reconstruction_history.png")).unwrap();
    assert!((3 * 66 + 2..400).contains(&width) && height > 24 + 10 * 66 + 2, "{width}x{height}");
    for picture in ["training_loss.png", "grad_norm.png", "learning_rate.png"] {
        let (width, height) = image::image_dimensions(path(picture)).unwrap();
        assert!(width >= 600 && height >= 300, "{picture}");
    }
    let config: Value = serde_json::from_slice(&fs::read(path("config.json")).unwrap()).unwrap();
    assert_eq!(config["settings"]["batch_size"], 32, "{config}");
    assert!(config["device"].is_string() && config["kernels"].is_object(), "{config}");
    let start = config["starts"][0]["command"].as_str().unwrap();
    assert!(start.contains("train --data shapes --train-limit 100"), "{start}");
    assert!(path("model.safetensors").is_file() && path("checkpoint.safetensors").is_file());
}

/// They would all write to the same folder.
#[cfg(not(feature = "mpi"))]
#[test]
fn several_processes_are_refused_with_the_way_out() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    let launched = |size: &str| {
        let mut command = command(&small(&run, "cpu", "1"));
        command.env("OMPI_COMM_WORLD_SIZE", size).env("OMPI_COMM_WORLD_RANK", "1");
        command.arg("--dry-run").output().unwrap()
    };
    let output = launched("2");
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error: mpirun of OpenMPI has started 2 processes") && said.lines().count() == 1,
        "{said}"
    );
    assert!(said.contains("--features mpi") && said.contains("env -u OMPI_COMM_WORLD_SIZE"), "{said}");
    assert!(!Path::new(&run).exists());
    assert_eq!(launched("1").status.code(), Some(0));
}

#[test]
fn run_is_repeated_from_its_file_or_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let [first, again, like] = ["first/run", "again/run", "like/run"].map(|name| run_in(&dir, name));
    let mut args = small(&first, "cpu", "3");
    args.extend(["--lr", "0.003", "--seed", "7", "--save-every", "2"]);
    ok(&args);
    let file = Path::new(&first).join("train.toml");
    let device = ["--quiet", "--device", "cpu"];
    ok(&[&["train", "--config", file.to_str().unwrap(), "--out", &again], &device[..]].concat());
    assert_same(&first, &again);
    // Options on the command line take precedence.
    ok(&[&["train", "--like", &first, "--epochs", "2", "--out", &like], &device[..]].concat());
    assert_eq!(rows(&like, "epochs.csv").len(), 1 + 2);
    let weights = |run: &str, name: &str| fs::read(Path::new(run).join(name)).unwrap();
    assert!(weights(&first, "weights/epoch_02.safetensors") == weights(&like, "last.safetensors"));
    let kept = fs::read_dir(Path::new(&first).join("weights")).unwrap().count();
    assert_eq!((kept, Path::new(&again).join("weights").exists()), (1, false));
}

#[test]
fn accumulated_run_counts_whole_steps_and_is_repeated_from_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let [first, again, like] = ["first/run", "again/run", "like/run"].map(|name| run_in(&dir, name));
    // 18 images train: steps of eight, eight and two.
    let line = "train --data shapes --train-limit 20 --val-limit 2 --channels 2 --blocks 1 --latent-dim 2 --epochs 3 --batch-size 4 \
                --accumulate 2 --device cpu --json --out";
    let output = ok(&line.split_whitespace().chain([first.as_str()]).collect::<Vec<_>>());
    let events: Vec<Value> = text(&output.stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let started = &events[0];
    assert_eq!([&started["batch_size"], &started["accumulate"], &started["steps"]], [4, 2, 9], "{started}");
    assert_eq!(events.iter().filter(|event| event["event"] == "step").count(), 9);
    assert_eq!(rows(&first, "metrics.csv").len(), 1 + 9);
    let read = |name: &str| fs::read_to_string(Path::new(&first).join(name)).unwrap();
    assert!(read("train.toml").contains("micro-batches = 2\n"));
    let config: Value = serde_json::from_str(&read("config.json")).unwrap();
    assert_eq!(config["settings"]["accumulate"], 2, "{config}");
    assert!(read("report.html").contains("batches per step"));
    let file = Path::new(&first).join("train.toml");
    // An option of all commands may stand before the command.
    ok(&["--quiet", "train", "--config", file.to_str().unwrap(), "--device", "cpu", "--out", &again]);
    assert_same(&first, &again);
    // Options on the command line take precedence: a step of one batch is not counted as accumulated.
    ok(&["train", "--like", &first, "--accumulate", "1", "--device", "cpu", "--quiet", "--out", &like]);
    assert_eq!(rows(&like, "metrics.csv").len(), 1 + 15);
}

#[test]
fn preparations_write_no_run() {
    let dir = tempfile::tempdir().unwrap();
    let args = ["train", "--data", "shapes", "--train-limit", "40", "--val-limit", "4", "--device", "cpu"];
    let model = ["--channels", "2", "--blocks", "1", "--latent-dim", "2"];
    let run = |more: &[&str]| {
        let output = command(&[&args, &model[..], more].concat()).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
        [output.stdout, output.stderr].map(|said| text(&said).to_owned())
    };
    let files = || fs::read_dir(dir.path()).unwrap().count();
    // 36 images train, 4 validate.
    let [_, said] = run(&["--dry-run", "--batch-size", "auto"]);
    assert!(
        said.contains("36 images, 25 epochs, 50 steps of 32") && said.contains("dry run: ready to train"),
        "{said}"
    );
    let [_, said] = run(&["--dry-run", "--batch-size", "4", "--accumulate", "4"]);
    assert!(said.contains("36 images, 25 epochs, 75 steps of 4 x 4"), "{said}");
    assert_eq!(files(), 0);
    let [found, _] = run(&["--lr-find", "--json", "--batch-size", "8"]);
    let found: Value = serde_json::from_str(&found).unwrap();
    assert!(found["suggested"].as_f64().unwrap() < found["lowest"].as_f64().unwrap(), "{found}");
    assert_eq!(image::image_dimensions(dir.path().join("lr_find.png")).unwrap(), (1200, 760));
    assert_eq!(files(), 1);
}

#[test]
fn report_has_the_figures_of_the_run_and_can_be_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&small(&run, "cpu", "2"));
    let path = |name: &str| Path::new(&run).join(name);
    let report = fs::read_to_string(path("report.html")).unwrap();
    assert!(report.starts_with("<!doctype html>") && report.ends_with("</html>\n"));
    let rows = rows(&run, "epochs.csv");
    let losses = rows[1..].iter().map(|row| row.split(',').nth(4).unwrap().parse().unwrap());
    let best = losses.fold(f64::INFINITY, f64::min);
    for part in
        ["<h1>run</h1>", "Finished", "epoch 2 of 2</p>", &format!("<dd>{best:.4} "), "shapes", "adapter and driver"]
    {
        assert!(report.contains(part), "{part} is missing:\n{report}");
    }
    // Eight to sixteen originals, their reconstructions after two epochs, and the samples.
    assert_eq!(report.matches("<img src=\"data:image/png;base64,").count(), 3 * 10 + 1);
    assert!(report.len() < 1_000_000, "{} bytes", report.len());
    let again = dir.path().join("new/again.html");
    ok(&["report", &run, "--out", again.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(&again).unwrap(), report);
    // Of another version, and without tables and images.
    for name in ["metrics.csv", "epochs.csv"] {
        fs::remove_file(path(name)).unwrap();
    }
    fs::remove_dir_all(path("samples")).unwrap();
    fs::write(path("config.json"), r#"{"format": 2, "settings": {"epochs": 9}, "machine": "Sun 3"}"#).unwrap();
    ok(&["report", &run]);
    let report = fs::read_to_string(path("report.html")).unwrap();
    assert!(
        report.contains("before the first epoch ended") && report.contains("Sun 3") && report.ends_with("</html>\n")
    );
}

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

#[test]
fn runs_are_listed_and_found_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = command(args).current_dir(dir.path()).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        output
    };
    assert!(text(&run(&["runs"]).stderr).contains("no runs"));
    run(&small("runs/first", "cpu", "2"));
    run(&small("runs/second", "cpu", "1"));
    fs::create_dir(dir.path().join("runs/other")).unwrap();
    let listed = text(&run(&["runs"]).stdout);
    let lines: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        lines.iter().map(|line| line[..3].to_vec()).collect::<Vec<_>>(),
        [["run", "data", "epochs"], ["first", "shapes", "2/2"], ["second", "shapes", "1/1"],]
    );
    let json = text(&run(&["runs", "--json"]).stdout);
    let first: Value = serde_json::from_str(json.lines().next().unwrap()).unwrap();
    // The weights of the best epoch are the model, and those of the last are beside it.
    let model = |name: &str| tensor_file::load(&dir.path().join("runs/first").join(name)).unwrap();
    let (best, last) = (model("model.safetensors"), model("last.safetensors"));
    assert_eq!(best.metadata["epoch"], first["best_epoch"].to_string());
    assert_eq!(best.metadata["val_total"].parse::<f64>().unwrap(), first["best"].as_f64().unwrap());
    assert_eq!(last.metadata["epoch"], "2");
    let checkpoint = model("checkpoint.safetensors");
    assert!(last.tensors.iter().all(|(name, array)| checkpoint.tensors[name] == *array));
    // By name, and the prior of the last weights has a name of its own.
    let limits = ["--train-limit", "50", "--val-limit", "10", "--device", "cpu"];
    run(&["sample", "second", "-n", "1", "--device", "cpu"]);
    run(&[["fit-prior", "runs/first/last.safetensors"].as_slice(), &limits, &["--data", "shapes"]].concat());
    assert!(dir.path().join("runs/first/last.prior.safetensors").exists());
    run(&["sample", "runs/first/last.safetensors", "-n", "1", "--prior", "mixture", "--device", "cpu"]);
}

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

#[test]
fn device_and_run_folder_are_looked_at_before_the_data() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&small(&run, "cpu", "1"));
    for (args, part) in [(["--device", "voodoo"], "voodoo"), (["--out", &run], "contains a run")] {
        let said =
            command(&[["train", "--data", "missing"].as_slice(), args.as_slice()].concat()).output().unwrap().stderr;
        assert!(text(&said).contains(part), "{}", text(&said));
    }
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

#[test]
fn json_prints_one_object_per_event_and_quiet_prints_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (json, quiet) = (run_in(&dir, "json"), run_in(&dir, "quiet"));
    let mut args = small(&json, "cpu", "1");
    args.push("--json");
    let events: Vec<Value> = text(&ok(&args).stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let names: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["started", "step", "step", "step", "step", "epoch", "finished"]);
    assert_eq!(events[0]["parameters"].as_u64().unwrap(), {
        let config = VaeConfig { channels: 2, blocks: 1, latent_dim: 3, ..Default::default() };
        config.graph(1, Mode::Evaluate).unwrap().parameter_count() as u64
    });
    for field in ["train_total", "val_total", "val_recon", "val_kl", "val_mse", "active_units"] {
        assert!(events[5][field].is_number(), "{field}: {}", events[5]);
    }
    let mut args = small(&quiet, "cpu", "1");
    args.push("--quiet");
    let output = ok(&args);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn profiling_does_not_change_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, profiled, cpu) = (run_in(&dir, "plain/run"), run_in(&dir, "profiled/run"), run_in(&dir, "cpu"));
    let trace = run_in(&dir, "new/trace.json");
    let mut args = small(&cpu, "cpu", "1");
    args.extend(["--trace", &trace]);
    let output = command(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("cannot profile"), "{}", text(&output.stderr));
    assert!(!Path::new(&cpu).exists());
    let device = device();
    if device == "cpu" {
        return;
    }
    ok(&small(&plain, device, "3"));
    let mut args = small(&profiled, device, "3");
    args.extend(["--profile", "--trace", &trace]);
    let said = text(&ok(&args).stderr);
    assert_same(&plain, &profiled);
    if said.contains("no timestamp queries") {
        return;
    }
    // The fourth step is the short one at the end of the first epoch.
    for part in ["profile of step 5", "dispatches", "conv2d.forward", "total on the device", "host: prepare "] {
        assert!(said.contains(part), "{part} is missing:\n{said}");
    }
    let trace: Value = serde_json::from_slice(&fs::read(&trace).unwrap()).unwrap();
    let events: Vec<&Value> = trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
    let track = |tid: u32| events.iter().filter(move |e| e["tid"] == tid);
    assert_eq!(
        track(2).map(|e| e["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["prepare", "encode and submit", "wait"]
    );
    assert!(track(1).any(|e| e["name"].as_str().unwrap().starts_with("encoder.stem/conv2d.forward")), "{trace}");
    for event in &events {
        assert!(event["ts"].as_f64().unwrap() >= 0.0 && event["dur"].as_f64().unwrap() >= 0.0, "{event}");
    }
    assert!(track(1).all(|e| e["args"]["kernel"].is_string() && e["args"]["variant"].is_string()), "{trace}");

    // As an event, and in a resumed run. A finished run has no step left.
    let mut args = resume(&profiled, device, "4");
    args.extend(["--profile", "--json"]);
    let events: Vec<Value> = text(&ok(&args).stdout).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let profile = events.iter().find(|e| e["event"] == "profile").unwrap();
    assert_eq!(profile["step"], 16, "{profile}");
    assert!(profile["kernels"].as_array().unwrap().iter().all(|k| k["ms"].as_f64().unwrap() > 0.0), "{profile}");
    let mut args = resume(&profiled, device, "4");
    args.push("--profile");
    assert!(text(&ok(&args).stderr).contains("no step left"));
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
}

#[test]
fn init_weights_are_validated_first() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second, third) = (run_in(&dir, "first"), run_in(&dir, "second"), run_in(&dir, "third"));
    ok(&small(&first, "cpu", "1"));
    let model = format!("{first}/model.safetensors");
    let mut args = small(&second, "cpu", "1");
    args.extend(["--init", &model]);
    ok(&args);
    // Other initial weights give other results.
    assert_ne!(rows(&first, "metrics.csv"), rows(&second, "metrics.csv"));
    let mut args = small(&third, "cpu", "1");
    let at = args.iter().position(|a| *a == "--channels").unwrap();
    args[at + 1] = "4";
    args.extend(["--init", &model]);
    let output = command(&args).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("encoder.stem.weight"), "{}", text(&output.stderr));
}

#[test]
fn train_reports_invalid_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&small(&run, "cpu", "1"));
    let nowhere = run_in(&dir, "nowhere");
    let with = |more: &[&'static str]| {
        let mut args = small(&nowhere, "cpu", "1");
        args.extend(more);
        args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>()
    };
    let words = |args: &[&str]| args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>();
    for (args, code, part) in [
        (words(&small(&run, "cpu", "1")), 1, "--force"),
        (words(&resume(&nowhere, "cpu", "2")), 1, "cannot find a run in"),
        (words(&["train", "--resume", &run, "--lr", "0.1"]), 2, "--lr"),
        (words(&["train", "--resume", &run, "--train-limit", "7"]), 2, "--train-limit"),
        (with(&["--lr", "nan"]), 2, "--lr"),
        (with(&["--lr", "quick"]), 2, "--lr"),
        (with(&["--weight-decay=-1"]), 2, "--weight-decay"),
        (with(&["--init", "no-such-file"]), 1, "no-such-file"),
        (with(&["--variants", "no-such-table"]), 1, "no-such-table"),
        (with(&["--trace", "trace.txt"]), 1, "cannot profile"),
        (with(&["--recipe", "wavy"]), 2, "sharp, seed"),
        (words(&["train", "--data", "/no/such/folder", "--device", "cpu", "--out", &nowhere]), 1, "/no/such/folder"),
        (words(&["train", "--data", "shapes", "--train-limit", "0", "--out", &nowhere]), 2, "--train-limit"),
        (words(&["train", "--data", "shapes", "--epochs", "0", "--device", "cpu", "--out", &nowhere]), 2, "--epochs"),
        (
            words(&["train", "--data", "shapes", "--batch-size", "0", "--device", "cpu", "--out", &nowhere]),
            2,
            "--batch-size",
        ),
    ] {
        let output = command(&args.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: {said}");
        assert!(!said.contains("panicked"), "{said}");
    }
    assert!(!Path::new(&nowhere).exists());
    // --force replaces the run.
    let mut args = small(&run, "cpu", "1");
    args.push("--force");
    ok(&args);
}
