//! The commands: what they print, where, and their exit codes.

use std::process::{Command, Output, Stdio};

use serde_json::Value;
use vae_wgpu::app::bench::tune::VariantTable;
use vae_wgpu::app::bench::workloads;
use vae_wgpu::runtime::gpu::{Gpu, Options};
use vae_wgpu::runtime::plan;
use vae_wgpu::vae::model::{Mode, VaeConfig};

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vae-wgpu"));
    // Otherwise Mesa's device-select layer prints a warning where there is no desktop.
    command.args(args).stdin(Stdio::null()).env("NODEVICE_SELECT", "1");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Whether there is an adapter. Fails if one is required and missing.
fn has_adapter() -> bool {
    let found = run(&["devices", "--json"]).status.success();
    let required = std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0");
    assert!(found || !required, "VAE_WGPU_REQUIRE_GPU is set and there is no adapter");
    found
}

#[test]
fn devices_json_is_an_array_with_profiles() {
    let output = run(&["devices", "--json"]);
    let devices: Value = serde_json::from_slice(&output.stdout).unwrap();
    let devices = devices.as_array().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(devices.is_empty())));
    for device in devices {
        assert!(device["name"].is_string() && device["backend"].is_string(), "{device}");
        assert!(device["profile"]["max_binding"].as_u64().unwrap() >= 128 << 20, "{device}");
    }
}

#[test]
fn missing_adapter_is_reported_with_a_hint() {
    let none = |args: &[&str]| {
        // The list of drivers is empty.
        let mut command = command(args);
        command.env("VK_DRIVER_FILES", "/nonexistent.json").env("VK_ICD_FILENAMES", "/nonexistent.json");
        command.env("WGPU_BACKEND", "vulkan").output().unwrap()
    };
    let output = none(&["bench", "step", "--steps", "1", "--warmup", "0", "--batch", "1", "--channels", "2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no usable GPU adapter"), "{}", stderr(&output));
    assert!(stderr(&output).contains("mesa-vulkan-drivers"), "{}", stderr(&output));
    assert_eq!(none(&["devices", "--json"]).status.code(), Some(1));
}

#[test]
fn unknown_device_is_rejected() {
    let output = run(&["check", "relu", "--device", "voodoo2"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("voodoo2"), "{}", stderr(&output));
    assert!(output.stdout.is_empty());
}

#[test]
fn info_prints_the_model_and_its_plan() {
    let output = run(&["info", "--layers"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let text = stdout(&output);
    for part in ["encoder.stem.weight", "parameters: 2434691", "activations, gradients", "not trained: 79 biases"] {
        assert!(text.contains(part), "{part} is missing:\n{text}");
    }
}

#[test]
fn info_plans_accumulated_steps() {
    let info = |more: &[&str]| {
        let output =
            run(&[["info", "--channels", "4", "--blocks", "1", "--head", "pool", "--json"].as_slice(), more].concat());
        assert!(output.status.success(), "{}", stderr(&output));
        serde_json::from_str::<Value>(&stdout(&output)).unwrap()
    };
    let (small, large) = (info(&["--batch", "8"]), info(&["--batch", "32"]));
    let parts = info(&["--batch", "8", "--accumulate", "4"]);
    let number = |info: &Value, name: &str| info[name].as_f64().unwrap();
    let flop = number(&parts, "flop_step") / number(&large, "flop_step");
    assert!((0.99..1.01).contains(&flop), "{flop}");
    assert!(number(&parts, "dispatches") > 3.9 * number(&small, "dispatches"));
    let memory = [&small, &parts, &large].map(|info| number(info, "memory_bytes"));
    assert!(memory.is_sorted() && memory[1] < 0.5 * memory[2], "{memory:?}");
    let of = |info: &Value, kernel: &str| {
        let kernels = info["kernels"].as_array().unwrap();
        kernels.iter().find(|row| row["kernel"] == kernel).map(|row| row["dispatches"].as_u64().unwrap())
    };
    // Two levels for four micro-batches, each for gradients and loss terms.
    assert_eq!(
        ["scale.forward", "accumulate.forward", "adam.forward"].map(|name| of(&parts, name)),
        [8, 16, 1].map(Some)
    );
    assert_eq!(of(&small, "scale.forward"), None);
}

#[test]
fn oversized_batch_reports_the_largest_that_fits() {
    for args in [["info", "--batch", "100000"].as_slice(), &["info", "--batch", "128", "--memory-limit", "300"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("The largest batch that fits is"), "{}", stderr(&output));
    }
}

#[test]
fn invalid_arguments_have_the_documented_exit_codes() {
    for (args, code, part) in [
        (["info", "--batch", "-1"].as_slice(), 2, "-1"),
        (&["info", "--batch", "0"], 2, "--batch"),
        // The size of a batch has both names everywhere.
        (&["info", "--batch-size", "0"], 2, "invalid value '0' for '--batch"),
        (&["train", "--batch", "0"], 2, "invalid value '0' for '--batch-size"),
        (&["sample", "run", "--batch", "0"], 2, "invalid value '0' for '--batch-size"),
        (&["info", "--batch", "99999999999999999999"], 2, "--batch"),
        (&["info", "--batch", "18446744073709551615"], 1, "The largest batch that fits is"),
        (&["info", "--channels", "3"], 2, "even"),
        (&["info", "--channels", "0"], 2, "even"),
        (&["info", "--blocks", "0"], 2, "blocks"),
        (&["info", "--latent-dim", "0"], 2, "latent"),
        (&["info", "--norm", "group"], 2, "batch, position"),
        (&["info", "--variant", "conv2d"], 2, "OP=NAME"),
        (&["info", "--variant", "conv3d=naive"], 2, "conv2d"),
        (&["info", "--variant", "conv2d.forward=fastest"], 2, "naive"),
        (&["bench", "step", "--steps", "0"], 2, "--steps"),
        (&["frobnicate"], 2, "frobnicate"),
        (&[], 2, "Usage"),
        (&["check", "--device", "cpu", "no such check"], 1, "no check matches"),
    ] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
        assert!(stderr(&output).contains(part), "{args:?}: {}", stderr(&output));
        assert!(!stderr(&output).contains("panicked"), "{args:?}: {}", stderr(&output));
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    for args in [["--help"], ["--version"]] {
        let output = run(&args);
        assert!(output.status.success() && !output.stdout.is_empty() && output.stderr.is_empty());
    }
}

#[test]
fn completions_cover_every_command() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = stdout(&run(&["completions", shell]));
        for word in ["sample", "reconstruct", "iwae", "temperature"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[test]
fn closed_pipe_is_a_silent_success() {
    let mut child = command(&["info"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stderr(&output).contains("panicked") && !stderr(&output).contains("Broken"), "{}", stderr(&output));
}

#[test]
fn check_runs_on_the_reference_alone() {
    let output = run(&["check", "relu", "--device", "cpu"]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stdout(&output).contains(" 0 failed"), "{}", stdout(&output));
}

#[test]
fn check_report_holds_every_check_and_describes_the_device() {
    let device = if has_adapter() { "auto" } else { "cpu" };
    let dir = tempfile::tempdir().unwrap();
    let (text, json) = (dir.path().join("new/report.md"), dir.path().join("report.txt"));
    let output = run(&["check", "global_avg_pool", "--device", device, "--report", text.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let report = std::fs::read_to_string(&text).unwrap();
    let printed = stdout(&output);
    let checks: Vec<&str> =
        printed.lines().filter(|line| line.starts_with("ok ") || line.starts_with("not ")).collect();
    assert!(checks.len() > 1, "{printed}");
    for line in &checks {
        assert!(report.contains(&format!("\n{line}\n")), "{line}:\n{report}");
    }
    let tally = printed.lines().last().unwrap();
    assert!(report.contains(&format!("| checks | {tally} |")), "{tally}:\n{report}");
    for part in [
        "only checks whose name contains `global_avg_pool`",
        "| system | ",
        "| processor | ",
        "UTC",
        env!("CARGO_PKG_VERSION"),
    ] {
        assert!(report.contains(part), "{part}:\n{report}");
    }
    if device == "auto" {
        for part in ["| driver | ", "| multiply-add rate | ", " GB/s", "| max_buffer_size | ", "| conv2d.forward | "] {
            assert!(report.contains(part), "{part}:\n{report}");
        }
    }
    assert!(!report.contains("incomplete") && !report.contains("not measured"), "{report}");
    // The file only: nothing else is left beside it.
    assert_eq!(std::fs::read_dir(text.parent().unwrap()).unwrap().count(), 1);
    let said = stderr(&output);
    assert!(said.contains("report: ") && said.contains(text.to_str().unwrap()), "{said}");

    let output = run(&["check", "global_avg_pool", "--device", "cpu", "--json", "--report", json.to_str().unwrap()]);
    assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
    assert!(stdout(&output).lines().all(|line| serde_json::from_str::<Value>(line).unwrap()["verdict"] == "ok"));
    let report = std::fs::read_to_string(&json).unwrap();
    assert!(report.contains("only the CPU reference was checked"), "{report}");
}

#[test]
fn bench_step_prints_the_common_json_line() {
    let device = if has_adapter() { "auto" } else { "cpu" };
    let output = run(&[
        "bench",
        "step",
        "--batch",
        "4",
        "--steps",
        "2",
        "--warmup",
        "1",
        "--channels",
        "4",
        "--blocks",
        "1",
        "--device",
        device,
        "--json",
    ]);
    assert!(output.status.success(), "{}", stderr(&output));
    let line: Value = serde_json::from_str(stdout(&output).trim()).unwrap();
    assert_eq!(line["peer"], "vae-wgpu");
    for field in [
        "warmup_s",
        "step_ms_median",
        "step_ms_min",
        "images_per_s",
        "loss_first",
        "loss_last",
        "encode_ms",
        "in_flight",
    ] {
        assert!(line[field].as_f64().unwrap().is_finite(), "{field}: {line}");
    }
    if device == "auto" {
        assert!(line["roof_pct"].as_f64().unwrap() > 0.0, "{line}");
    } else {
        assert!(line["roof_pct"].is_null(), "{line}");
    }
}

/// The model of other tests, too: its kernels are compiled once.
const TINY: [&str; 8] = ["--batch", "2", "--channels", "4", "--blocks", "1", "--latent-dim", "4"];

#[test]
fn bench_kernels_has_a_row_for_every_shape_and_a_summary() {
    let none = run(&[["bench", "kernels", "--device", "cpu"].as_slice(), &TINY].concat());
    assert_eq!(none.status.code(), Some(1));
    assert!(stderr(&none).contains("vae-wgpu devices"), "{}", stderr(&none));
    if !has_adapter() {
        return;
    }
    let none = run(&["bench", "kernels", "--only", "conv3d"]);
    assert_eq!(none.status.code(), Some(2));
    // The names are those of `info`, `kernels` and `--variant`.
    for part in ["unknown kernel `conv3d`", "conv2d.forward, ", "batch_norm.backward"] {
        assert!(stderr(&none).contains(part), "{part}: {}", stderr(&none));
    }
    let json = run(&[["bench", "kernels", "--json"].as_slice(), &TINY].concat());
    assert!(json.status.success(), "{}", stderr(&json));
    let lines: Vec<Value> = stdout(&json).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (first, kernels) = lines.split_first().unwrap();
    assert!(first["adapter"].is_string() && first["roof"]["gflops"].as_f64().unwrap() > 0.0, "{first}");
    let config = VaeConfig { channels: 4, blocks: 1, latent_dim: 4, ..VaeConfig::default() };
    let gpu = Gpu::open(&Options::default()).unwrap();
    let (graph, _) = config.plan(2, Mode::Train, gpu.profile(), &plan::Options::default()).unwrap();
    let workloads = workloads(&graph).unwrap();
    assert_eq!(kernels.len(), workloads.len());
    for (kernel, workload) in kernels.iter().zip(&workloads) {
        assert_eq!((&kernel["name"], &kernel["count"]), (&workload.name.as_str().into(), &workload.count.into()));
        for field in ["ms", "gb_s", "roof_pct"] {
            assert!(kernel[field].as_f64().unwrap() > 0.0, "{field}: {kernel}");
        }
        assert!(kernel["gflops"].is_number() && !kernel["variant"].as_str().unwrap().is_empty(), "{kernel}");
    }

    let only = ["bench", "kernels", "--only", "linear.forward", "--variant", "linear=naive"];
    let table = run(&[only.as_slice(), &TINY].concat());
    assert!(table.status.success(), "{}", stderr(&table));
    let text = stdout(&table);
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("linear.forward")).collect();
    assert!(rows.len() == 2 && rows.iter().all(|row| row.contains(" naive ")), "{text}");
    assert!(text.contains("adapter: ") && text.contains("roof: "), "{text}");
    assert!(text.lines().last().unwrap().starts_with("2 convolutions and linear layers: median "), "{text}");
}

#[test]
fn closed_pipe_ends_bench_kernels_silently() {
    if !has_adapter() {
        return;
    }
    let args = [["bench", "kernels"].as_slice(), &TINY].concat();
    let mut child = command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(output.stderr.is_empty() || !stderr(&output).contains("error"), "{}", stderr(&output));
}

#[test]
fn kernels_are_listed_and_printed_in_every_language() {
    let listed = run(&[["kernels"].as_slice(), &TINY].concat());
    let list = stdout(&listed);
    let name = list.split_whitespace().find(|word| word.starts_with("conv2d.forward/"));
    let name = name.expect("a convolution");
    for (language, part) in
        [("wgsl", "@compute"), ("spirv", "\u{3}\u{2}#\u{7}"), ("msl", "kernel void"), ("hlsl", "[numthreads(")]
    {
        let output = run(&[["kernels", name, "--emit", language].as_slice(), &TINY].concat());
        assert!(output.status.success(), "{language}: {}", stderr(&output));
        assert!(String::from_utf8_lossy(&output.stdout).contains(part), "{language}");
    }
    let unknown = run(&[["kernels", "nonesuch"].as_slice(), &TINY].concat());
    assert_eq!(unknown.status.code(), Some(2));
    assert!(
        stderr(&unknown).contains("unknown kernel `nonesuch`: expected one that `vae-wgpu kernels` lists"),
        "{}",
        stderr(&unknown)
    );
    let similar = run(&[["kernels", "conv2d.forward"].as_slice(), &TINY].concat());
    assert!(similar.status.code() == Some(2) && stderr(&similar).contains(name), "{}", stderr(&similar));
}

#[test]
fn tune_writes_a_table_that_is_used_only_on_request() {
    let none = run(&[["tune", "--device", "cpu"].as_slice(), &TINY].concat());
    assert_eq!(none.status.code(), Some(1));
    assert!(stderr(&none).contains("no variants to choose from"), "{}", stderr(&none));
    if !has_adapter() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/table.json");
    let file = path.to_str().unwrap();
    let none = run(&[["tune", "--only", "relu"].as_slice(), &TINY].concat());
    assert_eq!(none.status.code(), Some(2), "{}", stdout(&none));
    let tuned = run(&[["tune", "--only", "linear.forward", "--out", file].as_slice(), &TINY].concat());
    assert!(tuned.status.success(), "{}", stderr(&tuned));
    assert!(stdout(&tuned).contains("of 2 kernels gain"), "{}", stdout(&tuned));
    assert!(stdout(&tuned).lines().skip(1).all(|line| line.chars().count() <= 80), "{}", stdout(&tuned));
    assert!(stderr(&tuned).contains("--variants"), "{}", stderr(&tuned));

    let mut table = VariantTable::from_json(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(table.entries.len(), 2);
    assert!(table.entries.iter().all(|e| e.key.starts_with("linear.forward [2, ") && e.ms > 0.0), "{table:?}");
    let info = |more: &[&str]| {
        let output = run(&[["info", "--device", "auto", "--dispatches"].as_slice(), &TINY, more].concat());
        assert!(output.status.success(), "{more:?}: {}", stderr(&output));
        // Software drivers may print messages.
        let said = stderr(&output).lines().filter(|l| l.starts_with("warning")).collect::<String>();
        let forward = |name| {
            let line = stdout(&output).lines().find(|l| l.starts_with(name)).unwrap().to_owned();
            line.split(' ').next().unwrap().rsplit('.').next().unwrap().to_owned()
        };
        ([forward("encoder.fc/conv2d.forward"), forward("decoder.fc/conv2d.forward")], said)
    };
    assert_eq!(info(&["--variants", file]).1, "");
    // A variant for each of the two shapes.
    for (choice, variant) in table.entries.iter_mut().zip(["naive", "tiled"]) {
        choice.variant = variant.into();
    }
    std::fs::write(&path, table.to_json().unwrap()).unwrap();
    let ([encoder, decoder], said) = info(&["--variants", file]);
    assert!(encoder == "naive" && decoder.starts_with("tiled") && said.is_empty(), "{encoder} {decoder} {said}");
    // The command line has priority.
    for variant in ["linear=naive", "linear.forward=naive"] {
        assert_eq!(info(&["--variants", file, "--variant", variant]).0, ["naive", "naive"]);
    }
    // Warns if the table is from another adapter or matches nothing.
    table.adapter = "Voodoo 2".into();
    std::fs::write(&path, table.to_json().unwrap()).unwrap();
    let ([_, decoder], said) = info(&["--variants", file]);
    assert!(decoder.starts_with("tiled"), "{decoder}");
    assert!(said.contains("Voodoo 2") && said.contains("this is ") && said.contains(file), "{said}");
    let other = run(&["info", "--channels", "4", "--blocks", "1", "--batch", "3", "--variants", file]);
    assert!(other.status.success() && stderr(&other).contains("batch size 3"), "{}", stderr(&other));

    table.entries[0].variant = "quickest".into();
    std::fs::write(&path, table.to_json().unwrap()).unwrap();
    for args in [["info", "--variants", file].as_slice(), &["bench", "step", "--variants", file]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(file) && stderr(&output).contains("`quickest`"), "{}", stderr(&output));
        assert!(stderr(&output).contains("naive"), "{}", stderr(&output));
    }
    let missing = run(&["info", "--variants", "/no/such/table.json"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("/no/such/table.json"), "{}", stderr(&missing));
}

/// Files below a folder, other than those of Mesa's index.
#[cfg(target_os = "linux")]
fn cached(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    let count = |entry: std::fs::DirEntry| match entry.file_type().unwrap().is_dir() {
        true => cached(&entry.path()),
        false => usize::from(entry.file_name() != "index"),
    };
    entries.map(|entry| count(entry.unwrap())).sum()
}

/// Mesa's software driver compiles a kernel again for textures of other kinds of sizes, if they are not chosen with care.
#[cfg(target_os = "linux")]
#[test]
fn software_driver_compiles_everything_before_the_first_step_and_once() {
    if !has_adapter() || !stdout(&run(&["devices"])).contains("llvmpipe") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let train = |run: &str, epochs: &str| {
        // Batches of 16 and of 8 for training, of 16 and of 4 for validation.
        let mut args =
            vec!["train", "--data", "shapes", "--train-limit", "40", "--val-limit", "20", "--val-split", "0"];
        args.extend([
            "--batch-size",
            "16",
            "--channels",
            "4",
            "--blocks",
            "1",
            "--latent-dim",
            "4",
            "--epochs",
            epochs,
        ]);
        let mut command = command(&[args.as_slice(), &["--device", "llvmpipe", "--out", run]].concat());
        let output = command.current_dir(dir.path()).env("XDG_CACHE_HOME", dir.path().join("cache")).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        cached(&dir.path().join("cache/mesa_shader_cache"))
    };
    let first = train("first", "1");
    assert!(first > 50, "{first} kernels in the cache");
    assert_eq!(train("second", "2"), first);
}

/// On Linux a variable moves the user's cache.
#[cfg(target_os = "linux")]
#[test]
fn pipeline_cache_is_kept_and_rebuilt_if_damaged() {
    if !has_adapter() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let step = |cache: &str, more: &[&str]| {
        let steps = ["--steps", "1", "--warmup", "0"];
        let mut command = command(&[["bench", "step"].as_slice(), &TINY, &steps, more].concat());
        let output = command.env("XDG_CACHE_HOME", dir.path()).env("VAE_WGPU_PIPELINE_CACHE", cache).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        output
    };
    let folder = dir.path().join("vae-wgpu/pipelines");
    let output = step("off", &["--json"]);
    assert!(!folder.exists() && !stderr(&output).contains("compiling"), "{}", stderr(&output));
    let output = step("on", &[]);
    assert_eq!(stderr(&output).matches("compiling kernels").count(), 1, "{}", stderr(&output));
    let devices: Value = serde_json::from_slice(&run(&["devices", "--json"]).stdout).unwrap();
    if !devices[0]["features"].as_array().unwrap().contains(&"pipeline_cache".into()) {
        return;
    }
    let files = || std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    let [file] = files().try_into().unwrap();
    let first = std::fs::read(&file).unwrap();
    for damaged in [b"".as_slice(), b"invalid", &first[..first.len() - 1]] {
        std::fs::write(&file, damaged).unwrap();
        step("on", &["--json"]);
        assert_eq!(files(), std::slice::from_ref(&file));
        let again = std::fs::read(&file).unwrap();
        assert!(again.starts_with(b"vae-wgpu pipelines 2\n") && again != damaged);
    }
    step("on", &["--json"]);
}

#[test]
fn errors_have_the_color_of_those_of_the_parser() {
    let begins = |args: &[&str], name: &str| {
        let output = command(args).env_remove("NO_COLOR").env(name, "1").output().unwrap();
        stderr(&output).split("error:").next().unwrap().to_owned()
    };
    let (own, parser) = (["sample", "missing"].as_slice(), ["sample", "--unknown"].as_slice());
    assert_eq!(begins(own, "CLICOLOR_FORCE"), begins(parser, "CLICOLOR_FORCE"));
    assert!(begins(own, "CLICOLOR_FORCE").starts_with('\u{1b}'));
    assert_eq!((begins(own, "NO_COLOR").as_str(), begins(parser, "NO_COLOR").as_str()), ("", ""));
}

#[test]
fn data_set_is_named_with_or_without_its_option() {
    let limits = ["--train-limit", "8", "--val-limit", "4", "--json"];
    let [short, long] = [["data", "shapes"].as_slice(), &["data", "--data", "shapes"]]
        .map(|args| stdout(&run(&[args, &limits].concat())));
    assert!(short.contains("\"shapes\"") && short == long, "{short}");
}
