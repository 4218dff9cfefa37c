//! `vae-wgpu interpolate`.

use crate::trained::{DIMS, Stage, caption, side, test_pixels};

#[test]
fn interpolations_show_both_ends_and_the_images_between() {
    let stage = Stage::new();
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
}
