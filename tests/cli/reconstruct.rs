//! `vae-wgpu reconstruct`: images of a data set and of files next to their reconstructions.

use std::fs;

use vae_wgpu::app::viz::image_grid::ImageBatch;
use vae_wgpu::runtime::tensor::rng;
use vae_wgpu::runtime::tensor::rng::Stream;

use crate::trained::{DIMS, LATENT, Stage, caption, npy, pairs, test_pixels, text};

#[test]
fn reconstructions_are_shown_next_to_their_inputs() {
    let stage = Stage::new();
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
    fs::create_dir_all(stage.path("outer/inner")).unwrap();
    fs::copy(stage.path("one.png"), stage.path("outer/inner/one.png")).unwrap();
    stage.ok("reconstruct run outer --out outer.png");
    fs::remove_file(stage.path("outer/inner/one.png")).unwrap();
    stage.fails("reconstruct run outer", 1, &["no PNG or JPEG files in this folder or in the folders below it"]);
}

#[test]
fn reconstructions_can_be_sampled() {
    let stage = Stage::new();
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
