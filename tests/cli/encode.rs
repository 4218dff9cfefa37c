//! `vae-wgpu encode`: latent vectors compared with the library, in each format.

use std::fs;
use std::path::Path;
use std::process::Command;

use safetensors::{Dtype, SafeTensors};
use vae_wgpu::vae::data;
use vae_wgpu::vae::data::{Images, shapes};

#[cfg(unix)]
use crate::runs::interrupt;
use crate::trained::{LATENT, Stage, npy};

#[test]
fn encode_writes_the_outputs_of_the_encoder() {
    let stage = Stage::new();
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
    let stage = Stage::new();
    fs::create_dir(stage.path("own")).unwrap();
    for (name, color) in [("own/b.png", [255, 0, 0]), ("own/a.png", [0, 255, 0]), ("c.png", [0, 0, 255])] {
        image::RgbImage::from_pixel(40, 32, image::Rgb(color)).save(stage.path(name)).unwrap();
    }
    fs::write(stage.path("own/notes.txt"), "").unwrap();
    fs::create_dir_all(stage.path("deep/a/b")).unwrap();
    for name in ["deep/z.png", "deep/a/b/y.png", "deep/a/x.png"] {
        fs::copy(stage.path("c.png"), stage.path(name)).unwrap();
    }
    stage.ok("encode run deep --out deep.csv");
    let table = fs::read_to_string(stage.path("deep.csv")).unwrap();
    let names: Vec<_> = table.lines().map(|line| line.split(',').next().unwrap()).collect();
    assert_eq!(names, ["image", "deep/a/b/y.png", "deep/a/x.png", "deep/z.png"]);
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
    // Images of runs are not pictures of the user, and what is missing is found before kernels are compiled.
    fs::copy(stage.path("c.png"), stage.path("run/c.png")).unwrap();
    stage.fails("encode run run", 1, &["belong to runs"]);
    stage.fails("encode run c.png missing.png", 1, &["cannot read missing.png"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_leaves_no_partial_file() {
    use std::os::unix::process::ExitStatusExt;
    let stage = Stage::new();
    let mut child = stage.command("encode run --data shapes --split train").spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let (name, number) = interrupt();
    assert!(Command::new("kill").args([name, &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().signal(), Some(number));
    let left: Vec<_> = fs::read_dir(stage.dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, ["run"]);
}
