//! `vae-wgpu traverse`.

use std::fs;

use crate::trained::{DIMS, LATENT, Stage, caption, side, test_pixels};

#[test]
fn traversals_vary_one_dimension_in_each_row() {
    let stage = Stage::new();
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
