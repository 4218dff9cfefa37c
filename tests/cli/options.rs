//! Invalid values for every option of every command that `--help` lists. Each is reported in one line that names the option or the file,
//! with exit code 2 (usage) or 1 (failure), and leaves the folder unchanged.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use vae_wgpu::app::io::run_config::RunConfig;
use vae_wgpu::app::io::tensor_file;
use vae_wgpu::runtime::graph::Arena;
use vae_wgpu::vae::model::{Mode, VaeConfig};
use vae_wgpu::vae::train::Settings;
use vae_wgpu::vae::weights::{TensorSchema, Weights};

/// A command with valid arguments, small enough to run.
struct Base {
    command: &'static str,
    positional: &'static str,
    options: &'static str,
    /// Whether its result needs an adapter.
    gpu: bool,
}

const fn base(command: &'static str, positional: &'static str, options: &'static str) -> Base {
    Base { command, positional, options, gpu: false }
}

const MODEL: &str = "--channels 2 --blocks 1 --latent-dim 2 --device cpu";
const SHAPES: &str = "--data shapes --train-limit 8 --val-limit 4";

/// Every command but `help`.
fn bases() -> Vec<Base> {
    vec![
        base("train", "", "--batch-size 4 --epochs 1 --quiet --out new"),
        base("sample", "run", "-n 2 --out new.png"),
        base("reconstruct", "run", "-n 2 --out new.png"),
        base("interpolate", "run", "--from 0 --to 1 --steps 2 --out new.png"),
        base("traverse", "run", "--image 0 --steps 2 --out new.png"),
        base("encode", "run", "--out new.safetensors"),
        base("latent", "run", "--out new.png"),
        base("fit-prior", "run", "--components 2"),
        base("export", "run", "--out new.safetensors"),
        base("eval", "run", "--no-pca"),
        base("data", "", ""),
        base("check", "relu", ""),
        base("info", "", "--batch 2"),
        base("kernels", "", "--batch 2"),
        base("bench step", "", "--batch 2 --steps 1 --warmup 0"),
        Base { gpu: true, ..base("bench kernels", "", "--batch 2") },
        Base { gpu: true, ..base("tune", "", "--batch 2") },
        base("completions", "bash", ""),
        base("man", "new", ""),
        base("devices", "", ""),
        base("runs", "", ""),
        base("report", "run", "--out new.html"),
    ]
}

/// Invalid values of an option, by the expected exit code.
const INVALID: &[(&str, u8, &[&str])] = &[
    ("--device", 2, &[""]),
    ("--device", 1, &["voodoo2", "99", "-1", "0,1"]),
    (
        "--variant",
        2,
        &["", "=", "conv2d", "conv3d=naive", "conv2d=", "conv2d.forward=fastest", "conv2d.sideways=naive"],
    ),
    ("--variants", 2, &[""]),
    ("--variants", 1, &["missing.json", "folder", "text", "empty", "bare.json"]),
    ("--memory-limit", 2, &["", "0", "-1", "1.5", "much", "99999999999999999999"]),
    ("--batch-size", 2, &["", "0", "-1", "1.5", "many", "99999999999999999999"]),
    ("--accumulate", 2, &["", "0", "-1", "1.5", "many", "1025", "99999999999999999999"]),
    ("--micro-batches", 2, &["", "0", "-1", "1.5", "many", "1025", "99999999999999999999"]),
    ("--batch", 2, &["", "0", "-1", "1.5", "many", "99999999999999999999"]),
    ("--data", 2, &[""]),
    ("--data", 1, &["missing", "folder", "text", "empty", "cut.tar.gz", "/dev/null"]),
    ("--image-size", 2, &["", "0", "-1", "31", "32.0", "256", "large", "99999999999999999999"]),
    ("--image-size", 1, &["64"]),
    ("--train-limit", 2, &["", "0", "-1", "1.5", "all", "99999999999999999999"]),
    ("--val-limit", 2, &["", "0", "-1", "1.5", "all", "99999999999999999999"]),
    ("--count", 2, &["", "0", "-1", "1.5", "all", "99999999999999999999"]),
    ("--steps", 2, &["", "0", "-1", "1.5", "all", "1000001", "99999999999999999999"]),
    ("--warmup", 2, &["", "-1", "1.5", "long", "99999999999999999999"]),
    ("--beta-warmup", 2, &["", "-1", "1.5", "long", "99999999999999999999"]),
    ("--seed", 2, &["", "-1", "1.5", "random", "18446744073709551616"]),
    ("--temperature", 2, &["", "nan", "inf", "-1", "hot", "101"]),
    ("--lr", 2, &["", "nan", "inf", "-inf", "-1", "fast", "1e39"]),
    ("--weight-decay", 2, &["", "nan", "inf", "-1", "little", "1e39"]),
    ("--clip-grad", 2, &["", "nan", "inf", "-1", "yes", "1e39"]),
    ("--beta", 2, &["", "nan", "inf", "-1", "alpha", "1e39"]),
    ("--epochs", 2, &["", "0", "-1", "1.5", "all", "1000000001", "18446744073709551615"]),
    ("--channels", 2, &["", "0", "3", "-2", "4098", "wide", "18446744073709551614"]),
    ("--blocks", 2, &["", "0", "-1", "257", "deep", "18446744073709551615"]),
    ("--latent-dim", 2, &["", "0", "-1", "65537", "some", "18446744073709551615"]),
    ("--beta-cycle", 2, &["", "-1", "1.5", "long"]),
    ("--free-bits", 2, &["", "nan", "inf", "-1", "many", "1e39"]),
    ("--val-split", 2, &["", "nan", "-0.1", "1", "half"]),
    ("--recipe", 2, &["", "blurred", "1"]),
    ("--likelihood", 2, &["", "laplace", "1"]),
    ("--flip", 2, &["", "maybe", "1"]),
    ("--crop", 2, &["", "maybe", "1"]),
    ("--sync-batch-norm", 2, &["", "maybe", "1"]),
    ("--posterior-std", 2, &["", "nan", "inf", "0", "-1", "narrow"]),
    ("--early-stop", 2, &["", "-1", "1.5", "soon"]),
    ("--config", 2, &[""]),
    ("--config", 1, &["missing.toml", "folder", "text", "huge.png", "bad.toml"]),
    ("--like", 2, &[""]),
    ("--like", 1, &["missing", "folder", "text"]),
    ("--save-every", 2, &["", "0", "-1", "1.5", "often"]),
    ("--preview", 2, &["", "ascii", "true"]),
    ("--lr-find", 2, &[""]),
    ("--max-time", 2, &["", "0s", "-1h", "5", "h", "1d", "soon", "1e30h"]),
    ("--class", 2, &[""]),
    ("--class", 1, &["star", "0"]),
    ("--prior", 2, &["", "uniform", "1"]),
    ("--kind", 2, &["", "normal", "1"]),
    ("--components", 2, &["", "0", "-1", "1001", "some"]),
    ("--distances", 2, &["", "-1", "1.5", "100001", "all"]),
    ("--dims", 2, &["", "-1", "1.5", "most"]),
    ("--dims", 1, &["99"]),
    ("--names", 2, &["", "keras", "1"]),
    ("--format", 2, &["", "pickle", "1"]),
    ("--norm", 2, &["", "group", "1"]),
    ("--head", 2, &["", "mean", "1"]),
    ("--schedule", 2, &["", "wavy", "1"]),
    ("--emit", 2, &["", "glsl"]),
    ("--split", 2, &["", "validation", "1"]),
    ("--iwae", 2, &["", "-1", "1.5", "100001", "all"]),
    ("--from", 2, &[""]),
    ("--from", 1, &["missing.png", "folder", "text", "empty", "huge.png", "-1", "1.5", "4000000000", "/dev/null"]),
    ("--to", 2, &[""]),
    ("--to", 1, &["missing.png", "folder", "text", "empty", "huge.png", "-1", "4"]),
    ("--image", 2, &[""]),
    ("--image", 1, &["missing.png", "folder", "text", "empty", "huge.png", "-1", "4"]),
    ("--init", 2, &[""]),
    ("--init", 1, &["missing.safetensors", "folder", "text", "empty", "other.safetensors"]),
    ("--resume", 2, &[""]),
    ("--resume", 1, &["missing", "folder", "text", "run"]),
    ("--trace", 2, &[""]),
    ("--report", 2, &[""]),
    ("--report", 1, &["text/new.md", "folder.md", "/proc/new.txt"]),
    ("--only", 2, &[""]),
    ("--out", 2, &[""]),
    ("--out", 1, &["text/new.json", "text/new.png", "/proc/new.png", "folder.png", "text/new.html"]),
];

/// Cases of single commands: command, arguments that replace those of the base, exit code, part of the message.
const PARTICULAR: &[(&str, &str, u8, &str)] = &[
    ("train", "--out text", 1, "text"),
    ("train", "--out run", 1, "--force"),
    ("train", "--out text/new", 1, "text/new"),
    ("train", "--trace new.txt", 1, "cannot profile"),
    ("train", "--out text2/new/run", 1, "there is no folder text2"),
    ("train", "--resume run --lr 1", 2, "--lr"),
    ("train", "--resume missing", 1, "it does not exist"),
    // The option is accepted: what is missing is the checkpoint.
    ("train", "--resume run --tensorboard", 1, "checkpoint.safetensors"),
    ("train", "more", 2, "more"),
    ("train", "--lr-find=new.txt", 2, "new.txt"),
    ("train", "--resume run --image-size 64", 2, "--image-size"),
    ("train", "--resume run --accumulate 2", 2, "--accumulate"),
    ("train", "--resume run --micro-batches 2", 2, "--micro-batches"),
    ("train", "--resume run --sync-batch-norm", 2, "--sync-batch-norm"),
    ("train", "--sync-batch-norm", 1, "in one process"),
    ("train", "--sync-batch-norm --norm position", 1, "expected batch, found position"),
    ("train", "--data broken", 1, "broken/0.png"),
    ("train", "--data broken --strict", 1, "broken/0.png"),
    ("train", "--data python", 1, "Python version"),
    ("train", "--data cut.png", 1, "it is a single image"),
    ("reconstruct", "cut.png --strict", 2, "--strict"),
    // The value is rejected, not taken for an option; the last of repeated options counts.
    ("train", "--lr -1", 2, "--lr"),
    ("train", "--lr 0.01 --lr -1", 2, "--lr"),
    ("train", "--lr 0", 2, "expected a number above 0"),
    ("sample", "--count 2 --count 20001", 1, "20000"),
    ("sample", "--out new.jpg", 2, "new.jpg"),
    ("sample", "--out new", 2, "new"),
    ("sample", "--out run", 2, "run"),
    ("sample", "--raw --out new.png", 2, "new.png"),
    ("sample", "--prior mixture", 1, "fit-prior"),
    ("sample", "--prior second-stage", 1, "fit-prior --kind second-stage"),
    ("latent", "--out new.csv", 2, "new.csv"),
    ("report", "--out new.pdf", 2, "new.pdf"),
    ("export", "--out new.npz", 2, "new.npz"),
    ("export", "--format onnx --names seed --out new", 2, "--names seed"),
    ("export", "--format onnx --out new.onnx", 1, "encoder.onnx and decoder.onnx"),
    ("export", "--format onnx --out text", 1, "text/encoder.onnx"),
    ("export", "--format onnx --out text/new", 1, "text"),
    ("sample", "-n 20001", 1, "20000"),
    ("sample", "-n 1000001", 2, "--count"),
    ("encode", "--out folder.safetensors", 1, "folder.safetensors"),
    ("encode", "--out new.txt", 2, "new.txt"),
    ("data", "shapes", 2, "--data"),
    ("train", "--resume run --conditional", 2, "--conditional"),
    ("reconstruct", "missing.png", 1, "missing.png"),
    ("reconstruct", "folder", 1, "folder"),
    ("reconstruct", "text", 1, "text"),
    ("reconstruct", "huge.png", 1, "huge.png"),
    ("reconstruct", "cut.png", 1, "cut.png"),
    ("tune", "--out new.txt", 2, "new.txt"),
    ("tune", "--out folder.json", 1, "folder.json"),
    ("check", "nonesuch", 1, "nonesuch"),
    ("kernels", "nonesuch", 2, "nonesuch"),
    ("check", "--bisect", 1, "--bisect"),
    ("check", "--bisect --report new.md", 2, "--report"),
    ("check", "--report new.pdf", 2, "new.pdf"),
    ("check", "--report new", 2, "new"),
    ("check", "nonesuch --report new.md", 1, "nonesuch"),
    ("man", "text", 1, "text"),
    ("man", "text/new", 1, "text/new"),
    ("info", "run --channels 8", 2, "--channels"),
    ("info", "run --likelihood unit", 2, "--likelihood"),
    ("fit-prior", "--steps 10", 2, "--kind second-stage"),
    ("fit-prior", "--kind second-stage --components 2", 2, "--kind mixture"),
    ("completions", "tcl", 2, "tcl"),
    ("interpolate", "--steps 1", 2, "--steps"),
    ("interpolate", "--steps 1001", 2, "--steps"),
    ("traverse", "--steps 1001", 2, "--steps"),
    ("bench step", "--batch 18446744073709551615", 1, "batch"),
    ("bench step", "--batch 100000000", 1, "batch"),
    ("info", "--batch 18446744073709551615", 1, "The largest batch that fits is"),
    ("info", "--channels 64 --memory-limit 1", 1, "Not even a batch of 1 fits"),
];

/// Names in place of a run from which no model can be read.
const NO_MODELS: [&str; 6] = ["missing", "folder", "text", "empty", "bare.json", "silent.safetensors"];

struct TrainContext(TempDir);

impl TrainContext {
    /// A folder with a small trained model in `run`, and with invalid files.
    fn new() -> Self {
        let stage = Self(tempfile::tempdir().unwrap());
        for folder in ["broken", "python"] {
            fs::create_dir(stage.path(folder)).unwrap();
        }
        fs::write(stage.path("broken/0.png"), "hello").unwrap();
        fs::write(stage.path("python/data_batch_1"), [0x80, 2]).unwrap();
        for folder in ["run", "folder", "folder.png", "folder.json", "folder.md", "folder.safetensors"] {
            fs::create_dir(stage.path(folder)).unwrap();
        }
        let save = |channels: usize, file: &str, about: &str| {
            let config = VaeConfig { channels, blocks: 1, latent_dim: 2, ..VaeConfig::default() };
            let graph = config.graph(1, Mode::Encode).unwrap();
            let initial = |arena| vae_wgpu::runtime::graph::initial(&graph, arena, 5).unwrap();
            let weights = Weights { params: initial(Arena::Params), states: initial(Arena::States) };
            let about = if about.is_empty() { serde_json::to_string(&config).unwrap() } else { about.to_owned() };
            tensor_file::save(&weights.into_file(TensorSchema::of(&graph), &about).unwrap(), &stage.path(file))
                .unwrap();
        };
        save(2, "run/model.safetensors", "");
        save(4, "other.safetensors", "");
        save(2, "silent.safetensors", "{}");
        let settings = Settings { data: Some("shapes".into()), ..Settings::default() };
        let about = RunConfig::new(String::new(), Default::default(), settings);
        fs::write(stage.path("run/config.json"), serde_json::to_string(&about).unwrap()).unwrap();
        fs::write(stage.path("run/run.lock"), "").unwrap();
        let picture = image::RgbImage::from_fn(40, 40, |x, y| image::Rgb([x as u8 * 5, y as u8 * 6, (x ^ y) as u8]));
        picture.save(stage.path("cut.png")).unwrap();
        let png = fs::read(stage.path("cut.png")).unwrap();
        fs::write(stage.path("cut.png"), &png[..png.len() / 2]).unwrap();
        fs::write(stage.path("huge.png"), huge(&png)).unwrap();
        fs::write(stage.path("text"), "hello\n").unwrap();
        fs::write(stage.path("empty"), "").unwrap();
        fs::write(stage.path("bare.json"), "{}").unwrap();
        fs::write(stage.path("bad.toml"), "epochs = 0").unwrap();
        fs::write(stage.path("cut.tar.gz"), [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3, 1]).unwrap();
        stage
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[String]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vae-wgpu"));
        command.args(args).current_dir(self.0.path()).stdin(Stdio::null());
        // Otherwise Mesa prints a message where there is no desktop.
        command.env("NODEVICE_SELECT", "1").env("XDG_RUNTIME_DIR", self.0.path());
        command.output().unwrap()
    }

    /// Everything in the folder, files with their contents.
    fn tree(&self) -> BTreeMap<PathBuf, Option<Vec<u8>>> {
        fn walk(folder: &Path, found: &mut BTreeMap<PathBuf, Option<Vec<u8>>>) {
            for path in fs::read_dir(folder).unwrap().map(|pass| pass.unwrap().path()) {
                if path.is_dir() {
                    walk(&path, found);
                }
                found.insert(path.clone(), path.is_file().then(|| fs::read(&path).unwrap()));
            }
        }
        let mut found = BTreeMap::new();
        walk(self.0.path(), &mut found);
        found
    }
}

/// A small PNG that claims to have 30,000 by 30,000 pixels.
fn huge(png: &[u8]) -> Vec<u8> {
    let mut huge = png.to_vec();
    huge[16..20].copy_from_slice(&30_000u32.to_be_bytes());
    huge[20..24].copy_from_slice(&30_000u32.to_be_bytes());
    let crc = huge[12..29].iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| (crc >> 1) ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 })
    });
    huge[29..33].copy_from_slice(&(!crc).to_be_bytes());
    huge
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// The options in the help of a command, and whether they take a value.
fn options(stage: &TrainContext, command: &str) -> BTreeMap<String, bool> {
    let help = stage.run(&words(&format!("{command} --help")));
    assert!(help.status.success(), "{command}");
    let help = String::from_utf8(help.stdout).unwrap();
    let named = help.lines().filter_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| word.len() == 3 && word.ends_with(','));
        let name = words.next().filter(|word| word.starts_with("--"))?;
        // `--flip[=<BOOL>]`: the value may be left out.
        let (name, may_have_value) = name.split_once("[=").map_or((name, false), |(name, _)| (name, true));
        Some((name.to_owned(), may_have_value || words.next().is_some_and(|word| word.starts_with('<'))))
    });
    named.filter(|(name, _)| name != "--help" && name != "--version").collect()
}

/// The arguments of a base, except those that are given.
fn line(base: &Base, options: &BTreeMap<String, bool>, given: &[String]) -> Vec<String> {
    let mut args = words(base.command);
    let names: Vec<&str> = given.iter().filter_map(|g| g.split('=').next()).collect();
    // `--resume` conflicts with settings, files with a data set.
    let resumes = names.contains(&"--resume");
    let files = base.command == "reconstruct" && given.iter().any(|g| !g.starts_with('-'));
    let trained = base.command == "info" && given.iter().any(|g| g == "run");
    args.extend(words(if ["info", "check", "completions", "man"].contains(&base.command) {
        if given.iter().any(|g| !g.starts_with('-')) || names.contains(&"--bisect") { "" } else { base.positional }
    } else {
        base.positional
    }));
    let defaults = [base.options, MODEL, SHAPES].map(words).concat();
    let mut defaults = defaults.iter().peekable();
    while let Some(name) = defaults.next() {
        let value = defaults.next_if(|next| !next.starts_with('-'));
        let long = if name == "-n" { "--count" } else { name };
        let known = options.contains_key(long);
        let planned_for_no_device = matches!(base.command, "info" | "kernels") && long == "--device";
        let excluded = resumes && !matches!(long, "--device" | "--data" | "--quiet")
            || files && ["--data", "--train-limit", "--val-limit", "--count"].contains(&long)
            || trained && ["--channels", "--blocks", "--latent-dim"].contains(&long);
        if known && !planned_for_no_device && !excluded && !names.contains(&long) && !names.contains(&name.as_str()) {
            args.push(name.clone());
            args.extend(value.cloned());
        }
    }
    args.extend(given.iter().cloned());
    args
}

/// Runs a command and checks the common rules; returns a description of the violation, if any.
fn refused(stage: &TrainContext, args: &[String], code: u8, parts: &[&str]) -> Option<String> {
    let before = stage.tree();
    let output = stage.run(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let complain = |what: &str| Some(format!("{args:?}: {what} (exit {:?}): {said}", output.status.code()));
    if output.status.code() != Some(code.into()) {
        return complain(&format!("exit code {code} expected"));
    }
    if !parts.iter().any(|part| said.contains(part)) {
        return complain(&format!("none of {parts:?} is named"));
    }
    // clap adds hints after an empty line.
    let message = said.split("\n\n").next().unwrap_or_default().trim_end();
    let lines = message.lines().filter(|line| !line.trim_start().starts_with("[possible values")).count();
    if lines != 1 || !said.starts_with("error: ") || (code == 1 && said.trim_end() != message) {
        return complain("one line expected");
    }
    if ["digit found", " is not in ", "non-zero type", "float literal"].iter().any(|part| said.contains(part)) {
        return complain("the words of a parser");
    }
    if !output.stdout.is_empty() {
        return complain("something on stdout");
    }
    if stage.tree() != before {
        return complain("the folder was changed");
    }
    None
}

fn has_adapter(stage: &TrainContext) -> bool {
    let found = stage.run(&words("devices --json")).status.success();
    let required = std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0");
    assert!(found || !required, "VAE_WGPU_REQUIRE_GPU is set and there is no adapter");
    found
}

#[test]
fn baseline_commands_succeed() {
    let stage = TrainContext::new();
    let adapter = has_adapter(&stage);
    for base in bases().iter().filter(|base| !base.gpu && (base.command != "devices" || adapter)) {
        let args = line(base, &options(&stage, base.command), &[]);
        let output = stage.run(&args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let commands = String::from_utf8(stage.run(&words("--help")).stdout).unwrap();
    let listed = commands.lines().skip_while(|l| *l != "Commands:").skip(1).take_while(|l| !l.is_empty());
    // Deeper lines continue a description.
    let listed = listed.filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    for command in listed.filter_map(|l| l.split_whitespace().next()).filter(|c| *c != "help") {
        assert!(bases().iter().any(|b| b.command.split(' ').next() == Some(command)), "{command} is not tested");
    }
}

#[test]
fn invalid_option_values_fail_cleanly() {
    let stage = TrainContext::new();
    let adapter = has_adapter(&stage);
    let (mut complaints, mut rows) = (Vec::new(), 0);
    let mut check = |args: &[String], code: u8, parts: &[&str]| {
        rows += 1;
        complaints.extend(refused(&stage, args, code, parts));
    };
    for base in &bases() {
        let options = options(&stage, base.command);
        for (option, valued) in &options {
            if !valued {
                check(&line(base, &options, &[format!("{option}=maybe")]), 2, &[option]);
                continue;
            }
            let mut known = false;
            for (_, code, values) in INVALID.iter().filter(|(name, ..)| name == option) {
                known = true;
                for value in *values {
                    // Only paths with the file extension of the command reach the file system.
                    let kind = Path::new(value).extension();
                    let own = base.options.split_whitespace().last().map(Path::new).and_then(Path::extension);
                    if option == "--out" && kind.is_some() && kind != own {
                        continue;
                    }
                    let mut given = vec![format!("{option}={value}")];
                    if base.gpu && *code == 1 && option != "--device" && option != "--out" {
                        if !adapter {
                            continue;
                        }
                        given.push("--device=auto".to_owned());
                    }
                    let (mut parts, file) = (vec![option.as_str()], format!("cannot read {value}:"));
                    // The message may name the file, or its parent, instead of the option.
                    match value.parse::<f64>() {
                        _ if *code == 2 => {}
                        Ok(_) => parts.push(&file),
                        Err(_) => parts.extend([*value, value.rsplit_once('/').map_or(*value, |(parent, _)| parent)]),
                    }
                    check(&line(base, &options, &given), *code, &parts);
                }
            }
            assert!(known, "{}: no invalid values for {option}", base.command);
        }
        check(&line(base, &options, &["--frobnicate".to_owned()]), 2, &["--frobnicate"]);
        if base.positional == "run" {
            for model in NO_MODELS {
                let args = line(base, &options, &[]);
                let args: Vec<_> = args.iter().map(|a| if a == "run" { model.to_owned() } else { a.clone() }).collect();
                check(&args, 1, &[model]);
            }
        }
    }
    for (command, given, code, part) in PARTICULAR {
        let base = bases().into_iter().find(|b| b.command == *command).unwrap();
        check(&line(&base, &options(&stage, command), &words(given)), *code, &[part]);
    }
    assert!(complaints.is_empty(), "{} of {rows}:\n{}", complaints.len(), complaints.join("\n"));
    assert!(rows > 500, "only {rows} rows");
}

#[test]
fn unwritable_trace_fails_before_the_run() {
    let stage = TrainContext::new();
    if !has_adapter(&stage) {
        return;
    }
    let train = &bases()[0];
    let options = options(&stage, "train");
    for (trace, code) in [("new.txt", 2), ("folder.json", 1), ("text/new.json", 1)] {
        let args = line(train, &options, &words(&format!("--device auto --trace {trace}")));
        assert_eq!(refused(&stage, &args, code, &[trace, "the folder text"]), None);
    }
}
