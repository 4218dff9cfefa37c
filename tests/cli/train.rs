//! `vae-wgpu train`: the files of a run, how it is repeated, its report, its output, invalid arguments.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::vae::model::{Mode, VaeConfig};

use crate::runs::{assert_same, caption, command, device, ok, resume, rows, run_in, small, text};

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
        said.contains("36 images and 4 to validate, 25 epochs, 50 steps of 32")
            && said.contains("dry run: ready to train"),
        "{said}"
    );
    assert!(said.contains("the warm-up of 500 steps is longer than the run of 50"), "{said}");
    let [_, said] = run(&["--dry-run", "--quiet", "--beta-warmup", "1000"]);
    assert!(said.lines().count() == 2 && said.contains("the warm-up of beta over 1000 steps is longer"), "{said}");
    let [_, said] = run(&["--dry-run", "--batch-size", "4", "--accumulate", "4"]);
    assert!(said.contains("36 images and 4 to validate, 25 epochs, 75 steps of 4 x 4"), "{said}");
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
    // A prior that somebody has fitted stays as long as the weights do.
    let prior = || fs::read(dir.path().join("runs/first/prior.safetensors")).unwrap();
    let fitted = prior();
    run(&["fit-prior", "first", "--components", "2", "--device", "cpu"]);
    let own = prior();
    assert!(own != fitted);
    run(&["train", "--resume", "first", "--device", "cpu"]);
    assert!(prior() == own, "the prior was replaced");
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
    let said = text(&output.stderr);
    let expected = "size of the model: expected --channels 4, found --channels 2. Pass what was found as options";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn train_reports_invalid_arguments() {
    let dir = tempfile::tempdir().unwrap();
    let run = run_in(&dir, "run");
    ok(&small(&run, "cpu", "1"));
    let nowhere = run_in(&dir, "nowhere");
    let lacking = run_in(&dir, "lacking.toml");
    fs::write(&lacking, "beta-cycle = 5\n").unwrap();
    let with = |more: &[&str]| {
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
        (with(&["--beta-warmup", "20", "--beta-cycle", "10"]), 2, "at least the 20 steps in which beta rises"),
        (with(&["--config", "demo", "--config=small"]), 2, "--config can be used only once"),
        (with(&["--config", &lacking]), 1, "were not provided: --beta-warmup"),
        (with(&["--accumulate", "2", "--micro-batches", "2"]), 2, "cannot be used with '--micro-batches"),
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
