//! The commands that use a trained model: their files, results compared with the library, invalid arguments.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;
use vae_wgpu::app::io::run_config::RunConfig;
use vae_wgpu::app::io::{model, tensor_file};
use vae_wgpu::app::viz::image_grid::ImageBatch;
use vae_wgpu::runtime::graph::Arena;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::data;
use vae_wgpu::vae::data::{Images, shapes};
use vae_wgpu::vae::model::{Mode, VaeConfig};
use vae_wgpu::vae::pca::Pca;
use vae_wgpu::vae::runner::{Device, Runner};
use vae_wgpu::vae::tensor_file::TensorFile;
use vae_wgpu::vae::train::Settings;
use vae_wgpu::vae::weights::{TensorSchema, Weights};

#[cfg(unix)]
use crate::runs::interrupt;

const LATENT: usize = 4;
const DIMS: usize = 3 * 32 * 32;

/// A folder with a small model of random weights in the run folder `run`.
struct TrainContext {
    dir: TempDir,
}

impl TrainContext {
    fn new() -> Self {
        let stage = Self { dir: tempfile::tempdir().unwrap() };
        let config = VaeConfig { channels: 4, blocks: 1, latent_dim: LATENT, ..VaeConfig::default() };
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

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn model(&self) -> PathBuf {
        self.path("run/model.safetensors")
    }

    /// A command in the folder, on the CPU by default.
    fn command(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vae-wgpu"));
        command.args(line.split_whitespace()).current_dir(self.dir.path()).stdin(Stdio::null());
        if !line.contains("--device")
            && !["info", "completions", "export"].iter().any(|command| line.starts_with(command))
        {
            command.args(["--device", "cpu"]);
        }
        command
    }

    fn run(&self, line: &str) -> Output {
        self.command(line).output().unwrap()
    }

    fn ok(&self, line: &str) -> Output {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        output
    }

    /// Runs a command that must fail with this exit code and print these parts on stderr.
    fn fails(&self, line: &str, code: i32, parts: &[&str]) {
        let output = self.run(line);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{line}: {said}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in parts {
            assert!(said.contains(part), "{line}: `{part}` is missing: {said}");
        }
        assert!(!said.contains("panicked"), "{line}: {said}");
    }

    fn png(&self, name: &str) -> image::RgbImage {
        image::open(self.path(name)).unwrap().into_rgb8()
    }

    /// The model on the CPU, with programs for `batch`.
    fn runner(&self, batch: usize) -> Runner {
        let model = model::load(&self.model()).unwrap();
        let modes = [Mode::Evaluate, Mode::Encode, Mode::Decode].map(|mode| (batch, mode));
        let mut runner = Runner::new(model.config, &modes, &Device::Cpu, &Default::default()).unwrap();
        runner.upload(Arena::Params, &model.weights.params).unwrap();
        runner.upload(Arena::States, &model.weights.states).unwrap();
        runner
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The first test images.
fn test_pixels(count: u32) -> Vec<u8> {
    let mut pixels = Vec::new();
    let test = shapes::dataset().unwrap().test;
    data::batch(test.as_ref(), &(0..count).collect::<Vec<_>>(), &mut pixels).unwrap();
    pixels
}

/// Side of a grid of `cells` images of 32 pixels, each enlarged three times.
fn side(cells: u32) -> u32 {
    cells * (96 + 2) + 2
}

/// Height of a caption of `lines` lines below a grid.
fn caption(lines: u32) -> u32 {
    20 * lines + 8
}

/// Width and height of a grid of pairs of images, with their errors.
fn pairs(columns: u32, rows: u32) -> (u32, u32) {
    (side(2 * columns) + 14 * (columns - 1), side(rows) + 20 * rows)
}

fn npy(path: &Path) -> (String, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00");
    let length = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    assert_eq!((10 + length) % 64, 0);
    let numbers = bytes[10 + length..].chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    (text(&bytes[10..10 + length]), numbers)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 2e-5 * b.abs().max(1e-3)
}

/// `auto` where there is an adapter; where one is required, its absence fails here.
fn has_adapter() -> bool {
    let found = Command::new(env!("CARGO_BIN_EXE_vae-wgpu")).args(["devices", "--json"]).output().unwrap();
    let found = found.status.success();
    let required = std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0");
    assert!(found || !required, "VAE_WGPU_REQUIRE_GPU is set and there is no adapter");
    found
}

#[test]
fn samples_depend_only_on_the_seed_and_match_the_decoder() {
    let stage = TrainContext::new();
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
    let stage = TrainContext::new();
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
    stage.ok(&format!("fit-prior run {limits} --components 2"));
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
    for (prior, hint) in [("mixture", "`vae-wgpu fit-prior`"), ("second-stage", "--kind second-stage")] {
        stage.fails(&format!("sample run --prior {prior}"), 1, &["fitted to", hint, "--prior normal"]);
    }
}

/// A conditional model with random weights in the run folder: class c brightens every image by c / 2.
fn conditional(stage: &TrainContext) {
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
    let stage = TrainContext::new();
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
    let stage = TrainContext::new();
    for command in ["sample run", "reconstruct run -n 1", "traverse run"] {
        stage.fails(&format!("{command} --class star"), 1, &["trained without --conditional"]);
    }
}

#[test]
fn halves_give_almost_the_same_images() {
    let stage = TrainContext::new();
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
    let stage = TrainContext::new();
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

#[test]
fn reconstructions_can_be_sampled() {
    let stage = TrainContext::new();
    let run = |options: &str| {
        stage.ok(&format!("reconstruct run -n 3 --raw {options}"));
        npy(&stage.path("reconstructions.npy")).1
    };
    let (mean, sampled) = (run(""), run("--sample"));
    assert_ne!(mean, sampled);
    assert_eq!(sampled, run("--sample --seed 0"));
    assert_ne!(sampled, run("--sample --seed 1"));
    let noise = rng::normals(&mut rng::stream(0, Stream::Sample, 0), 3 * LATENT);
    assert_eq!(sampled, stage.runner(3).evaluate(&test_pixels(3), &noise, 1.0).unwrap().mean);
    stage.fails("reconstruct run --seed 1", 2, &["--sample"]);
}

#[test]
fn samples_agree_between_gpu_and_cpu() {
    let stage = TrainContext::new();
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
fn reconstructions_are_shown_next_to_their_inputs() {
    let stage = TrainContext::new();
    // The data set is that of the run.
    stage.ok("reconstruct run -n 5 --batch-size 2");
    let grid = stage.png("reconstructions.png");
    assert_eq!(grid.dimensions(), (pairs(3, 2).0, pairs(3, 2).1 + caption(1)));
    let pixels = test_pixels(5);
    let mut runner = stage.runner(5);
    let h = runner.encode(&pixels).unwrap();
    let mu: Vec<f32> = h.chunks(2 * LATENT).flat_map(|row| row[..LATENT].to_vec()).collect();
    let numbers = runner.decode(&mu).unwrap();
    let more = stage.ok("reconstruct run -n 9 --raw --data shapes --val-limit 5");
    assert!(text(&more.stderr).contains("only 5 images"), "{}", text(&more.stderr));
    let (header, raw) = npy(&stage.path("reconstructions.npy"));
    assert!(header.contains("(5, 3, 32, 32,)"), "{header}");
    assert_eq!(raw, numbers);
    let decoded = ImageBatch::from_floats(&numbers, [3, 32, 32]).unwrap().to_bytes();
    for (i, pictures) in [&pixels, &decoded].into_iter().enumerate() {
        for picture in 0..5 {
            let (column, row) = (2 * (picture as u32 % 3) + i as u32, picture as u32 / 3);
            let (left, top) = (2 + column * 98 + 14 * (column / 2), 2 + row * 118);
            let found = grid.get_pixel(left + 3 * 10 + 1, top + 3 * 20 + 1).0;
            let expected = [0, 1, 2].map(|c| pictures[picture * DIMS + c * 1024 + 20 * 32 + 10]);
            assert_eq!(found, expected, "{i} {picture}");
        }
    }
    // More than there are gives all of them.
    stage.ok("reconstruct run --data shapes --val-limit 2 -n 64 --out few.png");
    assert_eq!(stage.png("few.png").dimensions(), (pairs(2, 1).0, pairs(2, 1).1 + caption(1)));

    image::RgbImage::from_pixel(50, 40, image::Rgb([255, 0, 0])).save(stage.path("one.png")).unwrap();
    image::RgbImage::from_pixel(20, 60, image::Rgb([0, 0, 255])).save(stage.path("two.jpg")).unwrap();
    stage.ok("reconstruct run one.png two.jpg --out files.png");
    let files = stage.png("files.png");
    assert_eq!(files.dimensions(), (pairs(2, 1).0, pairs(2, 1).1 + caption(1)));
    assert_eq!(files.get_pixel(50, 50).0, [255, 0, 0]);

    // A failure leaves the earlier result unchanged.
    let before = fs::read(stage.path("files.png")).unwrap();
    fs::write(stage.path("text.png"), "hello").unwrap();
    stage.fails("reconstruct run one.png text.png --out files.png", 1, &["decode the image", "text.png"]);
    assert_eq!(fs::read(stage.path("files.png")).unwrap(), before);
    stage.fails("reconstruct run one.png --data shapes", 2, &["cannot be used with"]);
    stage.fails("reconstruct run missing.png", 1, &["missing.png"]);
}

#[test]
fn interpolations_and_traversals_have_the_expected_images() {
    let stage = TrainContext::new();
    stage.ok("interpolate run --data shapes --from 0 --to 3 --steps 4");
    let row = stage.png("interpolation.png");
    assert_eq!(row.dimensions(), (side(6), side(1) + 20 + caption(1)));
    let pixel = |picture: usize| [0, 1, 2].map(|c| test_pixels(4)[picture * DIMS + c * 1024]);
    assert_eq!((row.get_pixel(3, 3).0, row.get_pixel(5 * 98 + 3, 3).0), (pixel(0), pixel(3)));
    // Each image has its label.
    let dark = |cell: u32| (100..118).any(|y| (0..98).any(|x| row.get_pixel(98 * cell + x, y).0[0] < 128));
    assert!((0..6).all(dark) && (0..98 * 6).all(|x| row.get_pixel(x, 99).0 == [255; 3]));
    // Many images stand in rows.
    stage.ok("interpolate run --data shapes --from 0 --to 3 --steps 30 --out long.png");
    let long = stage.png("long.png");
    assert_eq!(long.dimensions(), (side(11), 3 * 118 + 2 + caption(1)));
    assert_eq!(long.get_pixel(9 * 98 + 3, 2 * 118 + 3).0, pixel(3));
    // Between files, without a data set.
    image::RgbImage::from_pixel(50, 40, image::Rgb([255, 0, 0])).save(stage.path("one.png")).unwrap();
    stage.ok("interpolate run --from one.png --to one.png --data nowhere --out files.png");
    let out_of_range = ["an index below 3", "found 3"];
    stage.fails("interpolate run --data shapes --val-limit 3 --from 0 --to 3", 1, &out_of_range);
    stage.fails("interpolate run --data shapes --from 0 --to 3 --steps 1", 2, &["--steps"]);
    stage.fails("interpolate run --data shapes --from 0", 2, &["--to"]);

    stage.ok("traverse run --steps 5");
    let zeros = stage.png("traversal.png");
    // The names of dimensions stand on the left, and the values above.
    let (left, top) = (zeros.width() - side(5), 24);
    assert!((20..100).contains(&left), "{left}");
    assert_eq!(zeros.height(), top + side(LATENT as u32) + caption(1));
    let dark = |x: u32, y: u32, width: u32, height: u32| {
        (y..y + height).any(|y| (x..x + width).any(|x| zeros.get_pixel(x, y).0[0] < 128))
    };
    assert!(
        (0..LATENT as u32).all(|row| dark(0, top + 98 * row, left, 98))
            && (0..5).all(|i| dark(left + 98 * i, 0, 98, top))
    );
    // The middle image is the same in every row.
    let cut = |row: u32| image::imageops::crop_imm(&zeros, left + 2 + 2 * 98, top + 2 + row * 98, 96, 96).to_image();
    assert_eq!(cut(0), cut(3));
    // The original and its reconstruction stand above.
    stage.ok("traverse run --data shapes --image 2 --out image.png");
    let image = stage.png("image.png");
    assert_eq!(image.dimensions(), (left + side(7), 2 * top + 8 + side(1) + side(LATENT as u32) + caption(1)));
    assert_eq!(image.get_pixel(left + 3, top + 3).0, [0, 1, 2].map(|c| test_pixels(3)[2 * DIMS + c * 1024]));
    stage.ok("traverse run --dims 2 --out two.png");
    assert_eq!(stage.png("two.png").dimensions(), (left + side(7), top + side(2) + caption(1)));
    assert_ne!(fs::read(stage.path("image.png")).unwrap(), fs::read(stage.path("traversal.png")).unwrap());
}

#[test]
fn encode_writes_the_outputs_of_the_encoder() {
    let stage = TrainContext::new();
    for (split, limit) in [("test", "--val-limit"), ("train", "--train-limit")] {
        stage.ok(&format!(
            "encode run --data shapes --split {split} {limit} 7 --batch-size 3 --out {split}.safetensors"
        ));
        let bytes = fs::read(stage.path(&format!("{split}.safetensors"))).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let tensor = file.tensor(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, [7, LATENT].as_slice()));
            bytemuck::pod_collect_to_vec(tensor.data())
        };
        let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
        let metadata = metadata.metadata().clone().unwrap();
        assert_eq!((metadata["data"].as_str(), metadata["split"].as_str()), ("shapes", split));
        assert!(Path::new(&metadata["model"]).ends_with("run/model.safetensors"), "{metadata:?}");
        let (mu, log_std) = (floats("mu"), floats("log_std"));
        let dataset = shapes::dataset().unwrap();
        let images: &dyn Images = if split == "test" { dataset.test.as_ref() } else { dataset.train.as_ref() };
        let mut pixels = Vec::new();
        data::batch(images, &[0, 1, 2, 3, 4, 5, 6], &mut pixels).unwrap();
        let h = stage.runner(7).encode(&pixels).unwrap();
        for (i, row) in h.chunks(2 * LATENT).enumerate() {
            assert_eq!(row[..LATENT], mu[i * LATENT..][..LATENT]);
            assert_eq!(row[LATENT..], log_std[i * LATENT..][..LATENT]);
        }
        let label = file.tensor("label").unwrap();
        assert_eq!((label.dtype(), label.shape()), (Dtype::I64, [7].as_slice()));
        let labels: Vec<i64> = bytemuck::pod_collect_to_vec(label.data());
        assert_eq!(labels, (0..7).map(|i| i64::from(images.label(i))).collect::<Vec<_>>());
        // The same values in other formats.
        for out in ["l.csv", "l.npy"] {
            stage.ok(&format!("encode run --data shapes --split {split} {limit} 7 --out {out}"));
        }
        let (header, means) = npy(&stage.path("l.npy"));
        assert!(header.contains(&format!("(7, {LATENT},)")) && means == mu, "{header}");
        let table = fs::read_to_string(stage.path("l.csv")).unwrap();
        let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split(',').collect()).collect();
        assert_eq!(lines[0][..4], ["image", "label", "mu_0", "mu_1"]);
        assert_eq!((lines.len(), lines[7][0], lines[7][1]), (8, "6", images.classes()[labels[6] as usize].as_str()));
        let values: Vec<f32> = lines[7][2..].iter().map(|value| value.parse().unwrap()).collect();
        assert_eq!(values, [&mu[6 * LATENT..], &log_std[6 * LATENT..]].concat());
    }
}

#[test]
fn own_images_are_encoded_and_reconstructed_from_files_and_folders() {
    let stage = TrainContext::new();
    fs::create_dir(stage.path("own")).unwrap();
    for (name, color) in [("own/b.png", [255, 0, 0]), ("own/a.png", [0, 255, 0]), ("c.png", [0, 0, 255])] {
        image::RgbImage::from_pixel(40, 32, image::Rgb(color)).save(stage.path(name)).unwrap();
    }
    fs::write(stage.path("own/notes.txt"), "").unwrap();
    stage.ok("encode run own c.png --batch-size 2 --out own.csv");
    let table = fs::read_to_string(stage.path("own.csv")).unwrap();
    let names: Vec<_> = table.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(names, ["image", "own/a.png", "own/b.png", "c.png"]);
    stage.ok("encode run c.png own/a.png");
    let bytes = fs::read(stage.path("latents.safetensors")).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.metadata().as_ref().unwrap()["files"], "[\"c.png\",\"own/a.png\"]");
    let mu: Vec<f32> =
        bytemuck::pod_collect_to_vec(SafeTensors::deserialize(&bytes).unwrap().tensor("mu").unwrap().data());
    let row = |line: usize| -> Vec<f32> {
        let values = table.lines().nth(line).unwrap().split(',').skip(2).take(LATENT);
        values.map(|value| value.parse().unwrap()).collect()
    };
    assert_eq!(mu, [row(3), row(1)].concat());
    stage.ok("reconstruct run own --out folder.png");
    // Two pairs, with the squared error below each and a caption.
    assert_eq!(stage.png("folder.png").dimensions(), (408, 148));
    fs::create_dir(stage.path("empty")).unwrap();
    for command in ["encode", "reconstruct"] {
        stage.fails(&format!("{command} run empty"), 1, &["empty", "no PNG or JPEG files"]);
    }
    stage.fails("encode run c.png --split test", 2, &["--split"]);
}

#[test]
fn quiet_commands_print_nothing_and_replaced_files_are_announced() {
    let stage = TrainContext::new();
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
fn eval_matches_a_direct_computation() {
    let stage = TrainContext::new();
    let line = "eval run --data shapes --val-limit 5 --train-limit 60 --iwae 3 --seed 9 --json";
    let report: Value = serde_json::from_slice(&stage.ok(&format!("{line} --batch-size 2")).stdout).unwrap();
    let number =
        |name: &str| report.pointer(name).and_then(Value::as_f64).unwrap_or_else(|| panic!("{name}: {report}"));

    let pixels = test_pixels(5);
    let mut runner = stage.runner(5);
    let eps: Vec<Vec<f32>> = (0..3).map(|k| rng::normals(&mut rng::stream(9, Stream::Sample, k), 5 * LATENT)).collect();
    let evaluated = runner.evaluate(&pixels, &eps[0], 1.0).unwrap();
    for (name, value) in [("total", evaluated.total), ("recon", evaluated.recon), ("kl", evaluated.kl)] {
        assert!(close(number(&format!("/{name}")), f64::from(value)), "{name} {value}: {report}");
        assert!(close(number(&format!("/{name}_nats")), f64::from(value) * DIMS as f64), "{name}: {report}");
    }
    let still = runner.evaluate(&pixels, &[0.0; 5 * LATENT], 1.0).unwrap();
    let x: Vec<f64> = pixels.iter().map(|b| f64::from(*b) / 127.5 - 1.0).collect();
    let mse = x.iter().zip(&still.mean).map(|(x, m)| (x - f64::from(*m)).powi(2)).sum::<f64>() / x.len() as f64;
    assert!(close(number("/mse"), mse), "{mse}: {report}");
    assert!(close(number("/psnr"), 10.0 * (4.0 / mse).log10()), "{report}");

    // log N(v; mean, std^2), summed.
    let normal =
        |v: f64, mean: f64, std: f64| -0.5 * ((v - mean) / std).powi(2) - std.ln() - 0.5 * std::f64::consts::TAU.ln();
    let mut bound = 0.0;
    let draws: Vec<Vec<f32>> = eps.iter().map(|e| runner.evaluate(&pixels, e, 1.0).unwrap().mean).collect();
    for i in 0..5 {
        let h = &evaluated.h[i * 2 * LATENT..][..2 * LATENT];
        let weight = |k: usize| -> f64 {
            let picture = i * DIMS..(i + 1) * DIMS;
            let means = &draws[k][picture.clone()];
            let likelihood: f64 = x[picture].iter().zip(means).map(|(x, m)| normal(*x, f64::from(*m), 1.0)).sum();
            let latent: f64 = (0..LATENT)
                .map(|j| {
                    let (mu, std) = (f64::from(h[j]), f64::from(h[LATENT + j]).exp());
                    let z = mu + std * f64::from(eps[k][i * LATENT + j]);
                    normal(z, 0.0, 1.0) - normal(z, mu, std)
                })
                .sum();
            likelihood + latent
        };
        let weights = [weight(0), weight(1), weight(2)];
        let most = weights.iter().copied().fold(f64::MIN, f64::max);
        bound -= (most + (weights.iter().map(|w| (w - most).exp()).sum::<f64>() / 3.0).ln()) / 5.0;
    }
    assert!(close(number("/iwae/nats"), bound), "{bound}: {report}");
    assert_eq!(number("/iwae/samples"), 3.0);

    let variance = |j: usize| {
        let mu: Vec<f64> = evaluated.h.chunks(2 * LATENT).map(|row| f64::from(row[j])).collect();
        let mean = mu.iter().sum::<f64>() / 5.0;
        mu.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5.0
    };
    let active = (0..LATENT).filter(|&j| variance(j) > 0.01).count();
    assert_eq!(number("/active_units"), active as f64);
    let values =
        |name: &str| -> Vec<f64> { report[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
    let (mut kl, sorted) = (values("kl_dims"), values("kl_sorted"));
    kl.sort_by(|a, b| b.total_cmp(a));
    assert_eq!(kl, sorted);
    let most = |count: usize| sorted[..count].iter().sum::<f64>() >= 0.9 * sorted.iter().sum::<f64>();
    let count = number("/kl_90") as usize;
    assert!(most(count) && !most(count - 1), "{report}");

    let dataset = shapes::dataset().unwrap().limited(Some(60), Some(5)).unwrap();
    let pca = Pca::fit(dataset.train.as_ref(), LATENT, &mut |_| ()).unwrap();
    assert!(close(number("/pca/mse"), pca.mse(dataset.test.as_ref()).unwrap()), "{report}");
    assert_eq!((number("/pca/components"), number("/pca/images")), (LATENT as f64, 60.0));
    assert_eq!((number("/images"), number("/latent_dim")), (5.0, LATENT as f64));
    assert!(report["model"].is_string() && report["device"].is_string() && report["data"] == "shapes", "{report}");

    // Noise does not depend on the batch size.
    let whole: Value = serde_json::from_slice(&stage.ok(line).stdout).unwrap();
    assert!(close(number("/iwae/nats"), whole["iwae"]["nats"].as_f64().unwrap()), "{whole}");
    let short: Value =
        serde_json::from_slice(&stage.ok("eval run --data shapes --val-limit 2 --no-pca --json").stdout).unwrap();
    assert!(short["pca"].is_null() && short["iwae"].is_null(), "{short}");
}

#[test]
fn eval_prints_a_table_and_accepts_a_closed_pipe() {
    let stage = TrainContext::new();
    let line = "eval run --data shapes --val-limit 3 --train-limit 20 --iwae 2";
    let table = text(&stage.ok(line).stdout);
    for part in ["total", "recon", "kl", "2 draws", "decoded latent mean", "PCA, 4 components", "active units: "] {
        assert!(table.contains(part), "{part} is missing:\n{table}");
    }
    let mut child = stage.command(line).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
}

#[test]
fn incompatible_model_files_are_rejected_with_the_difference() {
    let stage = TrainContext::new();
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
        ("young", ["model.safetensors", "first epoch"]),
        ("interrupted", ["--resume", "interrupted/checkpoint.safetensors"]),
        ("empty", ["config.json", "vae-wgpu train"]),
    ] {
        stage.fails(&format!("sample {model} --out no.png"), 1, &parts);
        stage.fails(&format!("info {model}"), 1, &parts);
    }
    assert!(!stage.path("no.png").exists());
    // Without a configuration the sizes follow from the shapes, and the names may be those of pi-tau/vae.
    changed("bare.safetensors", &|f| f.metadata.clear());
    stage.ok("sample run --prior normal --raw --out samples.npy");
    stage.ok("sample bare.safetensors --raw --out bare.npy");
    stage.ok("export run --names seed --out theirs.safetensors");
    stage.ok("sample theirs.safetensors --raw --out theirs.npy");
    for other in ["bare.npy", "theirs.npy"] {
        assert!(
            fs::read(stage.path(other)).unwrap() == fs::read(stage.path("samples.npy")).unwrap(),
            "{other} differs"
        );
    }
    // A checkpoint holds the same weights and the sizes of their model.
    changed("checkpoint.safetensors", &|f| {
        let config = f.metadata.remove("config").unwrap();
        f.metadata.insert("settings".into(), format!("{{\"model\":{config},\"lr\":0.01}}"));
        f.tensors.insert("adam.m/encoder.stem.bias".into(), f.tensors["encoder.stem.bias"].clone());
    });
    stage.ok("sample checkpoint.safetensors -n 1 --out yes.png");
}

#[test]
fn non_finite_output_exits_with_3() {
    let stage = TrainContext::new();
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
    let stage = TrainContext::new();
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

#[test]
fn cpu_device_needs_no_adapter() {
    let stage = TrainContext::new();
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

#[test]
fn info_describes_a_trained_model() {
    let stage = TrainContext::new();
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

#[test]
fn completions_cover_every_command() {
    let stage = TrainContext::new();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = text(&stage.ok(&format!("completions {shell}")).stdout);
        for word in ["sample", "reconstruct", "iwae", "temperature"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_partial_file() {
    use std::os::unix::process::ExitStatusExt;
    let stage = TrainContext::new();
    let mut child = stage.command("encode run --data shapes --split train").spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (name, number) = interrupt();
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(number));
    let left: Vec<_> = fs::read_dir(stage.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["run"]);
}
