//! The commands that use a trained model: a small model for their tests, and what holds for all of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;
use vae_wgpu::app::io::run_config::RunConfig;
use vae_wgpu::app::io::{model, tensor_file};
use vae_wgpu::runtime::graph::Arena;
use vae_wgpu::vae::data;
use vae_wgpu::vae::data::shapes;
use vae_wgpu::vae::model::{Head, Mode, VaeConfig};
use vae_wgpu::vae::runner::{Device, Runner};
use vae_wgpu::vae::tensor_file::TensorFile;
use vae_wgpu::vae::train::Settings;
use vae_wgpu::vae::weights::{TensorSchema, Weights};

pub(crate) const LATENT: usize = 4;
pub(crate) const DIMS: usize = 3 * 32 * 32;

/// A folder with a small model of random weights in the run folder `run`.
pub(crate) struct Stage {
    pub(crate) dir: TempDir,
}

impl Stage {
    pub(crate) fn new() -> Self {
        Self::with_head(Head::Flatten)
    }

    fn with_head(head: Head) -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        let config = VaeConfig { channels: 4, blocks: 1, latent_dim: LATENT, head, ..VaeConfig::default() };
        let graph = config.graph(1, Mode::Encode).unwrap();
        let initial = |arena| vae_wgpu::runtime::graph::initial(&graph, arena, 5).unwrap();
        let mut weights = Weights { params: initial(Arena::Params), states: initial(Arena::States) };
        // Different images have different codes, and different codes different images.
        for (tensor, numbers) in graph.params().iter().zip(&mut weights.params) {
            if tensor.name.ends_with("fc.weight") || tensor.name == "decoder.out.weight" {
                numbers.iter_mut().for_each(|v| *v *= 4.0);
            }
        }
        fs::create_dir(stage.path("run")).unwrap();
        let settings = Settings { data: Some("shapes".into()), ..Settings::default() };
        let about = RunConfig::new(String::new(), Default::default(), settings);
        fs::write(stage.path("run/config.json"), serde_json::to_string(&about).unwrap()).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        tensor_file::save(&weights.into_file(TensorSchema::of(&graph), &json).unwrap(), &stage.model()).unwrap();
        stage
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn model(&self) -> PathBuf {
        self.path("run/model.safetensors")
    }

    /// A command in the folder, on the CPU by default.
    pub(crate) fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vae-wgpu"));
        command.args(line.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        if !line.contains("--device")
            && !["info", "completions", "export"].iter().any(|command| line.starts_with(command))
        {
            command.args(["--device", "cpu"]);
        }
        command
    }

    pub(crate) fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    pub(crate) fn ok(&self, line: &str) -> Output {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        output
    }

    /// Runs a command that must fail with this exit code and print these parts on stderr.
    pub(crate) fn fails(&self, line: &str, code: i32, parts: &[&str]) {
        let output = self.run(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in parts {
            assert!(said.contains(part), "{line}: `{part}` is missing: {said}");
        }
        assert!(!said.contains("panicked"), "{line}: {said}");
    }

    pub(crate) fn png(&self, name: &str) -> image::RgbImage {
        image::open(self.path(name)).unwrap().into_rgb8()
    }

    /// The model on the CPU, with programs for `batch`.
    pub(crate) fn runner(&self, batch: usize) -> Runner {
        let model = model::load(&self.model()).unwrap();
        let modes = [Mode::Evaluate, Mode::Encode, Mode::Decode].map(|mode| (batch, mode));
        let mut runner = Runner::new(model.config, &modes, &Device::Cpu, &Default::default()).unwrap();
        runner.upload(Arena::Params, &model.weights.params).unwrap();
        runner.upload(Arena::States, &model.weights.states).unwrap();
        runner
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first test images.
pub(crate) fn test_pixels(count: u32) -> Vec<u8> {
    let mut pixels = Vec::new();
    let test = shapes::dataset().unwrap().test;
    data::batch(test.as_ref(), &(0..count).collect::<Vec<_>>(), &mut pixels).unwrap();
    pixels
}

/// Side of a grid of `cells` images of 32 pixels, each enlarged three times.
pub(crate) fn side(cells: u32) -> u32 {
    cells * (96 + 2) + 2
}

/// Height of a caption of `lines` lines below a grid.
pub(crate) fn caption(lines: u32) -> u32 {
    20 * lines + 8
}

/// Width and height of a grid of pairs of images, with their errors.
pub(crate) fn pairs(columns: u32, rows: u32) -> (u32, u32) {
    (side(2 * columns) + 14 * (columns - 1), side(rows) + 20 * rows)
}

pub(crate) fn npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + length) % 64, 0);
    let numbers = bytes[10 + length..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (text(&bytes[10..10 + length]), numbers)
}

/// `auto` where there is an adapter; where one is required, its absence fails here.
pub(crate) fn has_adapter() -> bool {
    let found = Command::new(env!("CARGO_BIN_EXE_vae-wgpu")).args(["devices", "--json"]).output().unwrap();
    let found = found.status.success();
    let required = std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0");
    assert!(found || !required, "VAE_WGPU_REQUIRE_GPU is set and there is no adapter");
    found
}

/// A conditional model with random weights in the run folder: class c brightens every image by c / 2.
pub(crate) fn conditional(stage: &Stage) {
    let config = VaeConfig { channels: 4, blocks: 1, latent_dim: LATENT, classes: 10, ..VaeConfig::default() };
    let graph = config.graph(1, Mode::Encode).unwrap();
    let initial = |arena| vae_wgpu::runtime::graph::initial(&graph, arena, 5).unwrap();
    let weights = Weights { params: initial(Arena::Params), states: initial(Arena::States) };
    let json = serde_json::to_string(&config).unwrap();
    let mut file = weights.into_file(TensorSchema::of(&graph), &json).unwrap();
    file.metadata.insert("classes".into(), serde_json::to_string(shapes::dataset().unwrap().test.classes()).unwrap());
    let labels = file.tensors.get_mut("decoder.label.weight").unwrap();
    assert_eq!(labels.dims[1], 10);
    for row in labels.data.chunks_exact_mut(10) {
        row.iter_mut().enumerate().for_each(|(class, weight)| *weight = class as f32 / 2.0);
    }
    tensor_file::save(&file, &stage.model()).unwrap();
}

#[test]
fn conditional_models_decode_the_class() {
    let stage = Stage::new();
    conditional(&stage);
    let samples = |options: &str| {
        stage.ok(&format!("sample run -n 10 --raw --out s.npy {options}"));
        npy(&stage.path("s.npy")).1
    };
    let (all, stars) = (samples(""), samples("--class star"));
    assert_eq!(stars, samples("--class 5"));
    assert_eq!(stars, samples("--class STAR"));
    // Without a class there is one sample of each, in order: the sixth is the star.
    let differ = |i: usize| all[i * DIMS..(i + 1) * DIMS] != stars[i * DIMS..(i + 1) * DIMS];
    assert_eq!((0..10).filter(|i| !differ(*i)).collect::<Vec<_>>(), [5]);
    // Labels follow their images through batches.
    assert_eq!(all, samples("--batch-size 3"));
    // The data set says what its images show; of a file nobody does.
    stage.ok("reconstruct run -n 12 --raw");
    let labels: Vec<u8> = (0..12).map(|i| i % 10).collect();
    let (pixels, mut runner) = (test_pixels(12), stage.runner(12));
    let h = runner.encode((&pixels, &labels)).unwrap();
    let mu: Vec<f32> = h.chunks(2 * LATENT).flat_map(|row| row[..LATENT].to_vec()).collect();
    assert_eq!(npy(&stage.path("reconstructions.npy")).1, runner.decode((&mu, &labels)).unwrap());
    image::RgbImage::new(32, 32).save(stage.path("own.png")).unwrap();
    stage.ok("reconstruct run own.png --class ring");
    stage.ok("interpolate run --from own.png --to 3 --class ring");
    stage.ok("traverse run --image own.png --class ring");
    stage.ok("traverse run --class ring");
    // Pictures name their class, also one that nobody chose.
    let names = |line: &str, class: &str| {
        stage.ok(&format!("{line} --out said.png"));
        let file = fs::read(stage.path("said.png")).unwrap();
        assert!(String::from_utf8_lossy(&file).contains(class), "{line}: {class} is missing");
    };
    names("traverse run --class ring", "ring");
    names("traverse run", "circle");
    names("interpolate run --from own.png --to 3 --class ring", "own.png (ring)");
    names("reconstruct run own.png --class ring", "ring");
    names("sample run -n 2 --class ring", "ring");
    stage.ok("eval run --val-limit 20 --no-pca --distances 0");
    for command in ["reconstruct run own.png", "interpolate run --from 0 --to own.png", "traverse run --image own.png"]
    {
        stage.fails(command, 1, &["pass --class with one of circle, square"]);
    }
    stage.fails("sample run --class hexagon", 2, &["hexagon", "circle, square, triangle"]);
    stage.fails("sample run --class 10", 2, &["circle"]);
    // An exported model knows its classes, and the other program has none.
    stage.ok("export run --half --out half.safetensors");
    stage.ok("sample half.safetensors --class star -n 2 --out star.png");
    stage.fails("export run --names seed", 1, &["no conditional models"]);
    stage.ok("export run --format onnx");
    let metadata = fs::read(stage.path("onnx/decoder.onnx")).unwrap();
    assert!(String::from_utf8_lossy(&metadata).contains(r#"["circle","square","triangle""#));
    let missing = runner.decode(&mu).unwrap_err().to_string();
    assert!(missing.contains("number of classes of a batch"), "{missing}");
    assert!(runner.decode((&mu, &vec![10; 12])).unwrap_err().to_string().contains("less than 10"));
}

#[test]
fn classes_are_refused_by_a_model_without_them() {
    let stage = Stage::new();
    for command in ["sample run", "reconstruct run -n 1", "traverse run"] {
        stage.fails(&format!("{command} --class star"), 1, &["trained without --conditional"]);
    }
}

#[test]
fn quiet_commands_print_nothing_and_replaced_files_are_announced() {
    let stage = Stage::new();
    let commands =
        ["sample run -n 1", "reconstruct run -n 1", "encode run --val-limit 1", "traverse run", "export run"];
    for command in commands {
        let output = stage.ok(&format!("{command} -q"));
        assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{command}: {}", text(&output.stderr));
        let said = text(&stage.ok(command).stderr);
        assert!(said.starts_with("note: ") && said.contains("exists and will be replaced"), "{command}: {said}");
    }
    let said = text(&stage.run("-q sample missing").stderr);
    assert!(said.starts_with("error: "), "{said}");
}

#[test]
fn inputs_and_files_of_runs_are_not_replaced() {
    let stage = Stage::new();
    image::RgbImage::new(32, 32).save(stage.path("own.png")).unwrap();
    fs::copy(stage.model(), stage.path("own.safetensors")).unwrap();
    let files = ["run/model.safetensors", "own.safetensors", "own.png"].map(|name| stage.path(name));
    let contents = || files.each_ref().map(|file| fs::read(file).unwrap());
    let before = contents();
    for line in [
        "encode run --val-limit 1 --out run/model.safetensors",
        "export run --half --out ./run/model.safetensors",
        "sample run --raw -n 1 --out run/prior.safetensors",
        "reconstruct run -n 1 --out run/training_loss.png",
        "sample run -n 1 --out run/samples/epoch_01.png",
    ] {
        stage.fails(line, 1, &["it belongs to the run in", "Choose another file"]);
    }
    for line in [
        "export own.safetensors --out ./own.safetensors",
        "sample own.safetensors --raw -n 1 --out own.safetensors",
        "encode own.safetensors own.png --out own.safetensors",
        "reconstruct run own.png --out own.png",
        "interpolate run --from own.png --to 1 --out own.png",
        "traverse run --image own.png --out own.png",
    ] {
        stage.fails(line, 1, &["--out names the input", "pass another file"]);
    }
    assert!(contents() == before, "a file was replaced");
    stage.ok("sample run -n 1 --out run/mine.png");
}

#[test]
fn weights_in_a_run_folder_are_used_with_its_data() {
    let stage = Stage::new();
    fs::create_dir(stage.path("run/weights")).unwrap();
    fs::copy(stage.model(), stage.path("run/weights/epoch_01.safetensors")).unwrap();
    for model in ["run/model.safetensors", "run/weights/epoch_01.safetensors"] {
        let said = stage.ok(&format!("eval {model} --val-limit 2 --no-pca --distances 0 --json")).stdout;
        let report: serde_json::Value = serde_json::from_slice(&said).unwrap();
        assert_eq!((&report["data"], &report["images"]), (&"shapes".into(), &2.into()), "{model}");
    }
}

#[test]
fn incompatible_model_files_are_rejected_with_the_difference() {
    let stage = Stage::new();
    let bytes = fs::read(stage.model()).unwrap();
    let changed = |name: &str, change: &dyn Fn(&mut TensorFile)| {
        let mut file = tensor_file::load(&stage.model()).unwrap();
        change(&mut file);
        tensor_file::save(&file, &stage.path(name)).unwrap();
    };
    fs::write(stage.path("short.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    changed("renamed.safetensors", &|f| {
        let stem = f.tensors.remove("encoder.stem.weight").unwrap();
        f.tensors.insert("stem.kernel".into(), stem);
    });
    changed("reshaped.safetensors", &|f| f.tensors.get_mut("encoder.stem.bias").unwrap().dims = vec![2, 2]);
    changed("silent.safetensors", &|f| {
        f.metadata.clear();
        f.tensors.remove("decoder.fc.weight");
    });
    changed("absurd.safetensors", &|f| {
        let config = f.metadata["config"].replace("\"channels\":4", "\"channels\":3");
        f.metadata.insert("config".into(), config);
    });
    changed("garbled.safetensors", &|f| drop(f.metadata.insert("config".into(), "{".into())));
    for run in ["young", "interrupted"] {
        fs::create_dir(stage.path(run)).unwrap();
        fs::copy(stage.path("run/config.json"), stage.path(run).join("config.json")).unwrap();
    }
    fs::write(stage.path("interrupted/checkpoint.safetensors"), "").unwrap();
    fs::write(stage.path("young/config.json"), "{}").unwrap();
    fs::create_dir(stage.path("empty")).unwrap();
    for (model, parts) in [
        ("short.safetensors", ["cannot parse", "short.safetensors"]),
        ("renamed.safetensors", ["1 missing: `encoder.stem.weight`", "1 unexpected: `stem.kernel`"]),
        ("reshaped.safetensors", ["`encoder.stem.bias` [2, 2] instead of [4]", "1 of another shape"]),
        ("silent.safetensors", ["expected those of a model", "docs/pytorch.md"]),
        ("absurd.safetensors", ["channels", "even"]),
        ("garbled.safetensors", ["configuration of the model", "garbled.safetensors"]),
        ("missing.safetensors", ["missing.safetensors", "cannot read"]),
        ("missing", ["it does not exist", "`vae-wgpu runs` lists"]),
        ("young", ["model.safetensors", "first epoch"]),
        ("interrupted", ["--resume", "interrupted/checkpoint.safetensors"]),
        ("empty", ["config.json", "vae-wgpu train"]),
        (".", ["it contains runs, such as ./", "Name one of them"]),
    ] {
        stage.fails(&format!("sample {model} --out no.png"), 1, &parts);
        // `info` prints what it knows of a run before the error.
        stage.fails(&format!("info {model} --json"), 1, &parts);
    }
    assert!(!stage.path("no.png").exists());
    // A checkpoint holds the same weights and the sizes of their model.
    changed("checkpoint.safetensors", &|f| {
        let config = f.metadata.remove("config").unwrap();
        f.metadata.insert("settings".into(), format!("{{\"model\":{config},\"lr\":0.01}}"));
        f.tensors.insert("adam.m/encoder.stem.bias".into(), f.tensors["encoder.stem.bias"].clone());
    });
    stage.ok("sample checkpoint.safetensors -n 1 --out yes.png");
}

/// Without a configuration the sizes follow from the shapes, and the names may be those of pi-tau/vae, whose encoders pool.
#[test]
fn files_without_sizes_and_with_other_names_are_read() {
    for head in [Head::Pool, Head::Flatten] {
        let stage = Stage::with_head(head);
        let mut bare = tensor_file::load(&stage.model()).unwrap();
        bare.metadata.clear();
        tensor_file::save(&bare, &stage.path("bare.safetensors")).unwrap();
        stage.ok("sample run --prior normal --raw --out samples.npy");
        let same = |model: &str| {
            stage.ok(&format!("sample {model} --raw --out other.npy"));
            let [other, samples] = ["other.npy", "samples.npy"].map(|file| fs::read(stage.path(file)).unwrap());
            assert!(other == samples, "{model}, {head}");
        };
        same("bare.safetensors");
        let export = "export run --names seed --out theirs.safetensors";
        if head == Head::Pool {
            let said = text(&stage.ok(export).stderr);
            assert!(said.contains("no variance of the likelihood"), "{said}");
            same("theirs.safetensors");
        } else {
            stage.fails(export, 1, &["end with pooling, not with --head flatten", "--names own"]);
        }
    }
}

#[test]
fn non_finite_output_exits_with_3() {
    let stage = Stage::new();
    let mut model = tensor_file::load(&stage.model()).unwrap();
    for array in model.tensors.values_mut() {
        array.data.iter_mut().for_each(|v| *v = v.signum() * 1e30);
    }
    tensor_file::save(&model, &stage.path("large.safetensors")).unwrap();
    for line in [
        "sample large.safetensors --out out.png",
        "sample large.safetensors --raw --out out.npy",
        "reconstruct large.safetensors --data shapes --out out.png",
        "interpolate large.safetensors --data shapes --from 0 --to 1 --out out.png",
        "traverse large.safetensors --data shapes --out out.png",
        "encode large.safetensors --data shapes --val-limit 4 --out out.safetensors",
        "eval large.safetensors --data shapes --val-limit 4 --no-pca",
    ] {
        stage.fails(line, 3, &["contains NaN or infinity: the model has diverged"]);
    }
    assert_eq!(fs::read_dir(stage.dir.path()).unwrap().count(), 2, "a result was written");
}

#[test]
fn invalid_arguments_fail_before_anything_is_computed() {
    let stage = Stage::new();
    for (line, code, parts) in [
        ("sample run --out grid.jpg", 2, [".png", "grid.jpg"].as_slice()),
        ("sample run --raw --out grid.png", 2, &[".npy, .safetensors"]),
        ("sample run -n 0", 2, &["--count"]),
        ("sample run -n 100000", 1, &["at most"]),
        ("sample run --temperature nan", 2, &["--temperature"]),
        ("sample run --batch-size 0", 2, &["--batch-size"]),
        ("sample run --out run/model.safetensors/x.png", 1, &["model.safetensors"]),
        ("sample run --out new/folder/x.png", 1, &["cannot create folder new/folder: there is no folder new"]),
        ("sample run --out new/x.png --memory-limit 1 --batch-size 900", 1, &["needs"]),
        ("sample nowhere --out new/x.png", 1, &["nowhere"]),
        ("encode run --data nowhere --out new/x.safetensors", 1, &["nowhere"]),
        ("sample", 2, &["RUN|FILE"]),
        ("encode run --data shapes --out latents.txt", 2, &[".safetensors"]),
        ("encode run --data shapes --split validation", 2, &["train, test"]),
        ("reconstruct run --data nowhere", 1, &["nowhere"]),
        ("traverse run --steps 0", 2, &["--steps"]),
        ("eval run --data shapes --iwae -1", 2, &["-1"]),
        ("info run --channels 8", 2, &["cannot be used with"]),
        ("completions tcl", 2, &["bash"]),
    ] {
        stage.fails(line, code, parts);
    }
    for name in ["samples.png", "grid.jpg", "new"] {
        assert!(!stage.path(name).exists(), "{name}");
    }
    stage.ok("sample run --count 1 --out new/x.png");
    assert!(stage.path("new/x.png").exists());
}
