//! Runs on the user's own data: folders of images, CIFAR-100 and files in MNIST's format, from training to evaluation.

use std::fs;
use std::path::Path;

use image::{GrayImage, Luma, Rgb, RgbImage};
use serde_json::Value;
use tempfile::TempDir;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;
use vae_wgpu::vae::data::{cifar100, idx};

use crate::runs::{command, ok, run_in, text};
use crate::trained::npy;

/// Trains one epoch of a tiny model on the CPU.
fn train(data: &str, run: &str, more: &str) -> String {
    let line = "train --channels 2 --blocks 1 --latent-dim 2 --epochs 1 --batch-size 64 --device cpu";
    let mut args: Vec<&str> = line.split(' ').collect();
    args.extend(["--data", data, "--out", run]);
    args.extend(more.split_whitespace());
    text(&ok(&args).stderr)
}

fn config(run: &str) -> Value {
    serde_json::from_slice(&fs::read(Path::new(run).join("config.json")).unwrap()).unwrap()
}

/// Samples, reconstructs and evaluates with the data set of the run.
fn use_model(dir: &TempDir, run: &str) -> Value {
    let path = |name: &str| run_in(dir, name);
    ok(&["sample", run, "-n", "4", "--out", &path("s.png"), "--device", "cpu"]);
    ok(&["reconstruct", run, "-n", "4", "--out", &path("r.png"), "--device", "cpu"]);
    let output = ok(&["eval", run, "--no-pca", "--json", "--device", "cpu"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

/// `count` images of different sizes in five class folders, alternately PNG and JPEG.
fn write_images(root: &Path, count: u32) {
    for i in 0..count {
        let class = ["bird", "cat", "dog", "frog", "newt"][i as usize % 5];
        let folder = root.join(class);
        fs::create_dir_all(&folder).unwrap();
        let (width, height) = (20 + i % 13, 20 + i % 7);
        let image =
            RgbImage::from_fn(width, height, |x, y| Rgb([(i % 5 * 50) as u8, (x * 7) as u8, (y * 9 + i) as u8]));
        let kind = if i % 2 == 0 { "png" } else { "jpg" };
        image.save(folder.join(format!("{i:04}.{kind}"))).unwrap();
    }
}

#[test]
fn folder_of_images_is_trained_sampled_and_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (run_in(&dir, "animals"), run_in(&dir, "run"));
    write_images(Path::new(&data), 1000);
    for i in 0..7 {
        fs::write(Path::new(&data).join(format!("cat/broken{i}.png")), "hello").unwrap();
    }
    // All images are read; the reference takes long to train on them.
    let said = train(&data, &run, "--train-limit 96");
    for part in [
        "warning: 7 of 1,007 image files cannot be decoded and are skipped: ",
        "cat/broken4.png and 2 more",
        "data    1,000 images of 3x32x32: 3.1 MB in memory, 7 files skipped; classes: bird, cat, dog, frog, newt\n",
        "done: 1 epoch,",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    // 64 images of 32 pixels, three times enlarged, and a caption.
    let preview = image::image_dimensions(Path::new(&run).join("data_preview.png")).unwrap();
    assert_eq!(preview, (8 * 98 + 2, 8 * 98 + 2 + 28));
    let settings = config(&run)["settings"].clone();
    assert_eq!((&settings["data"], settings.get("image_size")), (&Value::from(data.as_str()), None));
    assert_eq!(use_model(&dir, &run)["images"], 100);
    // A run resumes with its images.
    let resumed = ok(&["train", "--resume", &run, "--epochs", "2", "--device", "cpu"]);
    assert!(text(&resumed.stderr).contains("done: 2 epochs"), "{}", text(&resumed.stderr));
    let described = ok(&["data", "--data", &data, "--json"]);
    let described: Value = serde_json::from_slice(&described.stdout).unwrap();
    assert_eq!((&described["train"]["images"], &described["test"]["images"]), (&900.into(), &100.into()));

    let rejected = command(&["train", "--data", &data, "--strict", "--out", &run_in(&dir, "strict")]).output().unwrap();
    let said = text(&rejected.stderr);
    assert_eq!(rejected.status.code(), Some(1), "{said}");
    assert!(said.contains("cat/broken0.png: ") && said.lines().count() == 1, "{said}");
    assert!(!dir.path().join("strict").exists());
    let quiet = command(&["data", "--data", &data, "--image-size", "48"]).output().unwrap();
    assert_eq!(quiet.status.code(), Some(2));
}

#[test]
fn larger_images_are_remembered_by_the_run() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (run_in(&dir, "animals"), run_in(&dir, "run"));
    write_images(Path::new(&data), 40);
    let said = train(&data, &run, "--image-size 64");
    assert!(said.contains("data    40 images of 3x64x64: "), "{said}");
    let settings = config(&run)["settings"].clone();
    assert_eq!((&settings["image_size"], &settings["model"]["image_size"]), (&64.into(), &64.into()));
    assert_eq!(use_model(&dir, &run)["images"], 4);
    ok(&["train", "--resume", &run, "--epochs", "2", "--device", "cpu"]);
    // Another folder is resized to the model, other data sets are not.
    ok(&["eval", &run, "--data", &data, "--no-pca", "--device", "cpu"]);
    for (more, part) in [
        (&["--data", "shapes"][..], "its images have 3x32x32 values, those of the model 3x64x64. Pass the data set"),
        (&["--image-size", "32"], "invalid --image-size: expected 64, the size of the model's images, found 32"),
    ] {
        let output = command(&[&["eval", run.as_str(), "--device", "cpu"], more].concat()).output().unwrap();
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(part), "{said}");
    }
    let output = command(&["data", "--data", "shapes", "--image-size", "64"]).output().unwrap();
    assert!(text(&output.stderr).contains("only a folder of images is resized"), "{}", text(&output.stderr));
}

#[test]
fn grey_images_are_trained_with_one_channel() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (run_in(&dir, "grey"), run_in(&dir, "run"));
    fs::create_dir(&data).unwrap();
    for i in 0..30u8 {
        GrayImage::from_fn(30, 40, |x, y| Luma([i * 5 + (x + y) as u8]))
            .save(Path::new(&data).join(format!("{i}.png")))
            .unwrap();
    }
    let said = train(&data, &run, "--quiet");
    assert!(said.lines().all(|line| line.starts_with("warning: ")), "{said}");
    assert!(said.contains("warning: only 27 training images: "), "{said}");
    assert_eq!(config(&run)["settings"]["model"]["image_channels"], 1);
    assert_eq!(use_model(&dir, &run)["images"], 3);
}

#[test]
fn cifar100_is_trained_sampled_and_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (run_in(&dir, "data"), run_in(&dir, "run"));
    let folder = Path::new(&data).join(cifar100::FOLDER);
    fs::create_dir_all(&folder).unwrap();
    let records = |count: u8| -> Vec<u8> {
        (0..count).flat_map(|i| [vec![i % 20, i % 100], vec![i; cifar100::RECORD - 2]].concat()).collect()
    };
    fs::write(folder.join("train.bin"), records(200)).unwrap();
    fs::write(folder.join("test.bin"), records(30)).unwrap();
    let said = train(&data, &run, "");
    assert!(!said.contains("\ndata ") && !Path::new(&run).join("data_preview.png").exists(), "{said}");
    let report = use_model(&dir, &run);
    assert_eq!((&report["images"], &report["data"]), (&30.into(), &"CIFAR-100".into()));
}

/// Writes the four files of a data set in MNIST's format: image `i` of class `i % 10` has the pixels `pixel(i, y, x)`.
fn write_idx(folder: &str, train: u32, test: u32, pixel: impl Fn(u32, u32, u32) -> u8) {
    fs::create_dir(folder).unwrap();
    for (name, numbers) in idx::FILES.iter().zip([0..train, 0..train, train..train + test, train..train + test]) {
        let images = name.contains("images");
        let mut file = if images { 0x803u32 } else { 0x801 }.to_be_bytes().to_vec();
        file.extend((numbers.len() as u32).to_be_bytes());
        if images {
            file.extend([IDX_SIDE; 2].iter().flat_map(|n| n.to_be_bytes()));
            file.extend(
                numbers
                    .flat_map(|i| (0..IDX_SIDE * IDX_SIDE).map(move |at| (i, at)))
                    .map(|(i, at)| pixel(i, at / IDX_SIDE, at % IDX_SIDE)),
            );
        } else {
            file.extend(numbers.map(|i| (i % 10) as u8));
        }
        fs::write(Path::new(folder).join(name), file).unwrap();
    }
}

const IDX_SIDE: u32 = 28;

#[test]
fn idx_files_are_trained_sampled_and_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (run_in(&dir, "digits"), run_in(&dir, "run"));
    write_idx(&data, 100, 20, |i, y, x| ((i * 784 + y * 28 + x) * 7) as u8);
    train(&data, &run, "");
    assert_eq!(config(&run)["settings"]["model"]["image_channels"], 1);
    assert_eq!(use_model(&dir, &run)["images"], 20);
}

/// Image `i` of ten shapes, bright on black, by `i % 10`: position and brightness vary.
fn white_shape(i: u32, y: u32, x: u32) -> u8 {
    let mut random = rng::stream(1, Stream::Check, i.into());
    let mut shift = || rng::below(&mut random, 5) as f32 - 2.0;
    let (x, y) = ((x as f32 - 13.5 + shift()) / 13.5, (y as f32 - 13.5 + shift()) / 13.5);
    let (far, length) = (x.abs().max(y.abs()), x.hypot(y));
    let inside = match i % 10 {
        0 => length < 0.6,
        1 => (0.5..0.8).contains(&length),
        2 => far < 0.5,
        3 => (0.6..0.85).contains(&far),
        4 => x.abs().min(y.abs()) < 0.15 && far < 0.8,
        5 => y.abs() < 0.2,
        6 => x.abs() < 0.2,
        7 => (x - y).abs() < 0.25,
        8 => (x + y).abs() < 0.25,
        _ => x.abs() < (y + 0.7) / 2.0 && y < 0.7,
    };
    if inside { (160.0 + 95.0 * rng::unit(&mut random)) as u8 } else { 0 }
}

/// For each class, the mean of 64 samples is nearer to the mean of the test images of the class than to that of any other.
#[test]
fn samples_of_a_class_look_like_its_test_images() {
    let dir = tempfile::tempdir().unwrap();
    let (data, run) = (run_in(&dir, "shapes"), run_in(&dir, "run"));
    write_idx(&data, 1000, 200, white_shape);
    let line = "train --conditional --channels 4 --blocks 1 --latent-dim 4 --epochs 8 --batch-size 32 --device cpu";
    ok(&line.split(' ').chain(["--data", &data, "--out", &run]).collect::<Vec<_>>());
    let pixels = (0..IDX_SIDE).flat_map(|y| (0..IDX_SIDE).map(move |x| (y, x)));
    let tests: Vec<Vec<f32>> = (0..10)
        .map(|class| {
            let mean = |(y, x)| (100..120).map(|i| f32::from(white_shape(10 * i + class, y, x))).sum::<f32>() / 20.0;
            pixels.clone().map(|at| mean(at) / 127.5 - 1.0).collect()
        })
        .collect();
    let distance = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>();
    let mut followed = 0;
    for class in 0..10 {
        let (name, file) = (class.to_string(), run_in(&dir, "samples.npy"));
        ok(&["sample", &run, "-n", "64", "--class", &name, "--raw", "--out", &file, "--device", "cpu"]);
        let samples = npy(Path::new(&file)).1;
        // The images are padded to 32 pixels.
        let mean = |(y, x): (u32, u32)| {
            samples.chunks_exact(32 * 32).map(|image| image[((y + 2) * 32 + x + 2) as usize]).sum::<f32>() / 64.0
        };
        let mean: Vec<f32> = pixels.clone().map(mean).collect();
        let distances: Vec<f32> = tests.iter().map(|test| distance(&mean, test)).collect();
        let nearest = (0..10).min_by(|a, b| distances[*a].total_cmp(&distances[*b])).unwrap();
        followed += u32::from(nearest == class);
    }
    assert!(followed >= 8, "the samples of {followed} classes of 10 look like their class");
}
