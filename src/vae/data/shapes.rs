//! The built-in data set: ten classes of shapes, 32x32 RGB, drawn when they are read.
//!
//! Image `i` is a function of seed and `i`, with class `i mod 10`. The test images follow the training images. Drawing uses only
//! operations that round identically on every platform, so the bytes are the same everywhere.

use super::{Dataset, Images, check_read};
use crate::error::Result;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::{Stream, StreamRng};

/// Number of training images.
pub const TRAIN: usize = 50_000;
/// Number of test images.
pub const TEST: usize = 10_000;
/// Seed of the images of [`dataset`]. The seed of a run does not affect them.
pub const SEED: u64 = 0;

const SIDE: usize = 32;
const CLASSES: [&str; 10] =
    ["circle", "square", "triangle", "ring", "cross", "star", "diamond", "crescent", "stripes", "checker"];

/// Returns the data set of `--data shapes`: 50,000 training and 10,000 test images.
///
/// # Errors
/// None in practice; as [`Dataset::new`].
pub fn dataset() -> Result<Dataset> {
    let half = |first, len| Box::new(Shapes::new(SEED, first, len));
    Dataset::new("shapes", format!("built in, seed {SEED}"), half(0, TRAIN), half(TRAIN, TEST))
}

/// A range of the built-in images.
#[derive(Clone, Debug)]
pub struct Shapes {
    seed: u64,
    first: usize,
    len: usize,
    classes: Vec<String>,
}

impl Shapes {
    /// Returns images `first .. first + len` of `seed`.
    #[must_use]
    pub fn new(seed: u64, first: usize, len: usize) -> Self {
        Self { seed, first, len, classes: CLASSES.map(str::to_owned).to_vec() }
    }

    fn number(&self, index: usize) -> u64 {
        self.first as u64 + index as u64
    }
}

impl Images for Shapes {
    fn len(&self) -> usize {
        self.len
    }

    fn size(&self) -> (usize, usize, usize) {
        (3, SIDE, SIDE)
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn label(&self, index: usize) -> u8 {
        (self.number(index) % CLASSES.len() as u64) as u8
    }

    fn read_into(&self, index: usize, pixels: &mut [u8]) -> Result<()> {
        check_read(self, index, pixels)?;
        let mut rng = rng::stream(self.seed, Stream::Shapes, self.number(index));
        Scene::draw(self.label(index), &mut rng).paint(pixels);
        Ok(())
    }
}

type Rgb = [f32; 3];
type Point = (f32, f32);

/// Parameters of an image, in units of half its side: x to the right, y down, the center at (0, 0).
struct Scene {
    class: u8,
    centre: Point,
    radius: f32,
    /// Cosine and sine of the rotation of the shape.
    turn: Point,
    /// Further variation within a class, in [0, 1).
    detail: f32,
    shape: [Rgb; 2],
    ground: [Rgb; 2],
    /// Direction of the gradient of the background.
    slope: Point,
}

impl Scene {
    fn draw(class: u8, rng: &mut StreamRng) -> Self {
        let pattern = class >= 8;
        let radius = if pattern { between(rng, 0.34, 0.62) } else { between(rng, 0.42, 0.78) };
        let room = if pattern { 0.4 } else { 0.92 - radius };
        let centre = (between(rng, -room, room), between(rng, -room, room));
        let turn = direction(rng, if matches!(class, 0 | 3 | 7 | 8) { 4 } else { 1 });
        let detail = rng::unit(rng);
        let slope = direction(rng, 4);
        // A muted background and a saturated shape that differ in hue and brightness.
        let hue = rng::unit(rng);
        let dark = rng::below(rng, 2) == 0;
        let value = if dark { between(rng, 0.15, 0.45) } else { between(rng, 0.75, 1.0) };
        let ground = hsv(hue, between(rng, 0.2, 0.6), value);
        let far = hsv(hue + between(rng, -0.12, 0.12), between(rng, 0.2, 0.6), value * between(rng, 0.6, 0.9));
        let hue = hue + between(rng, 0.25, 0.75);
        let value = if dark { between(rng, 0.85, 1.0) } else { between(rng, 0.4, 0.7) };
        let saturation = between(rng, 0.6, 0.95);
        let shape = [hsv(hue, saturation * 0.8, value), hsv(hue + 0.04, saturation, value * 0.75)];
        Self { class, centre, radius, turn, detail, shape, ground: [ground, far], slope }
    }

    fn paint(&self, pixels: &mut [u8]) {
        let plane = SIDE * SIDE;
        for i in 0..plane {
            let coordinate = |at: usize| (at as f32 + 0.5) * (2.0 / SIDE as f32) - 1.0;
            let p = (coordinate(i % SIDE), coordinate(i / SIDE));
            let along = 0.5 + 0.35 * (p.0 * self.slope.0 + p.1 * self.slope.1);
            let mut colour = mix(self.ground[0], self.ground[1], along);
            if self.class < 8 {
                // Light from the upper left: a soft shadow, and a shape that darkens downwards.
                let shadow = (0.5 - self.distance((p.0 - 0.07, p.1 - 0.1)) / 0.2).clamp(0.0, 1.0);
                colour = mix(colour, [0.0; 3], 0.4 * shadow);
            }
            let lit = (0.5 + 0.45 * (p.0 - self.centre.0 + p.1 - self.centre.1) / self.radius.max(0.5)).clamp(0.0, 1.0);
            let cover = (0.5 - self.distance(p) * (SIDE as f32 / 2.0)).clamp(0.0, 1.0);
            colour = mix(colour, mix(self.shape[0], self.shape[1], lit), cover);
            for (c, value) in colour.into_iter().enumerate() {
                pixels[c * plane + i] = (value * 255.0 + 0.5) as u8;
            }
        }
    }

    /// Signed distance from `p` to the outline, negative inside. Formulas after Inigo Quilez's collection.
    fn distance(&self, p: Point) -> f32 {
        let (x, y) = (p.0 - self.centre.0, p.1 - self.centre.1);
        let (x, y) = (self.turn.0 * x + self.turn.1 * y, self.turn.0 * y - self.turn.1 * x);
        let (r, detail) = (self.radius, self.detail);
        match self.class {
            0 => length(x, y) - 0.9 * r,
            1 => rectangle(x, y, 0.78 * r, 0.78 * r),
            2 => triangle(x, y + 0.12 * r, 0.88 * r),
            3 => (length(x, y) - 0.76 * r).abs() - (0.14 + 0.08 * detail) * r,
            4 => {
                let arm = (0.2 + 0.12 * detail) * r;
                rectangle(x, y, arm, 0.95 * r).min(rectangle(x, y, 0.95 * r, arm))
            }
            5 => star(x, y, r),
            6 => {
                let half = (0.5 + 0.1 * detail) * r;
                ((x.abs() / half + y.abs() / r) - 1.0) * half * r / length(half, r)
            }
            7 => (length(x, y) - 0.9 * r).max((0.62 + 0.12 * detail) * r - length(x - (0.4 + 0.1 * detail) * r, y)),
            8 => wave(x, r) - (0.2 + 0.1 * detail) * r,
            _ => {
                // Inside where exactly one of the two waves is low.
                let (a, b) = (wave(x, 1.6 * r) - 0.4 * r, wave(y, 1.6 * r) - 0.4 * r);
                a.max(b).min(-a.min(b))
            }
        }
    }
}

fn between(rng: &mut StreamRng, low: f32, high: f32) -> f32 {
    low + (high - low) * rng::unit(rng)
}

/// A unit vector within 45 degrees of one of the first `quarters` axes, from a rational parametrisation of the circle.
fn direction(rng: &mut StreamRng, quarters: u32) -> Point {
    let t = between(rng, -0.414, 0.414);
    let (x, y) = ((1.0 - t * t) / (1.0 + t * t), 2.0 * t / (1.0 + t * t));
    match rng::below(rng, quarters) {
        0 => (x, y),
        1 => (-y, x),
        2 => (-x, -y),
        _ => (y, -x),
    }
}

fn length(x: f32, y: f32) -> f32 {
    (x * x + y * y).sqrt()
}

/// Distance of `x` to the nearest multiple of `period`.
fn wave(x: f32, period: f32) -> f32 {
    (x - (x / period).round() * period).abs()
}

fn rectangle(x: f32, y: f32, half_width: f32, half_height: f32) -> f32 {
    let (dx, dy) = (x.abs() - half_width, y.abs() - half_height);
    length(dx.max(0.0), dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// Equilateral, pointing up, with sides of `2 * half`.
fn triangle(x: f32, y: f32, half: f32) -> f32 {
    const SQRT_3: f32 = 1.732_050_8;
    let (mut x, mut y) = (x.abs() - half, -y + half / SQRT_3);
    if x + SQRT_3 * y > 0.0 {
        (x, y) = (0.5 * (x - SQRT_3 * y), 0.5 * (-SQRT_3 * x - y));
    }
    x -= x.clamp(-2.0 * half, 0.0);
    if y > 0.0 { -length(x, y) } else { length(x, y) }
}

/// Five points on a circle of radius `r`, pointing up.
fn star(x: f32, y: f32, r: f32) -> f32 {
    // Cosine and sine of 36 degrees.
    const K: Point = (0.809_017, -0.587_785_24);
    const INNER: f32 = 0.45;
    let (mut x, mut y) = (x.abs(), -y);
    let d = (K.0 * x + K.1 * y).max(0.0);
    (x, y) = (x - 2.0 * d * K.0, y - 2.0 * d * K.1);
    let d = (-K.0 * x + K.1 * y).max(0.0);
    (x, y) = (x + 2.0 * d * K.0, y - 2.0 * d * K.1);
    (x, y) = (x.abs(), y - r);
    let edge = (INNER * -K.1, INNER * K.0 - 1.0);
    let along = ((x * edge.0 + y * edge.1) / (edge.0 * edge.0 + edge.1 * edge.1)).clamp(0.0, r);
    let outside = y * edge.0 - x * edge.1;
    let d = length(x - edge.0 * along, y - edge.1 * along);
    if outside < 0.0 { -d } else { d }
}

fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [0, 1, 2].map(|c| a[c] + (b[c] - a[c]) * t)
}

/// Hue in turns, saturation and value in [0, 1].
fn hsv(hue: f32, saturation: f32, value: f32) -> Rgb {
    [5.0, 3.0, 1.0].map(|offset: f32| {
        let k = (offset + hue * 6.0).rem_euclid(6.0);
        value * (1.0 - saturation * k.min(4.0 - k).clamp(0.0, 1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_stable() {
        let data = dataset().unwrap();
        assert_eq!((data.train.len(), data.test.len()), (TRAIN, TEST));
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut image = vec![0; 3072];
        for index in (0..TEST).step_by(97) {
            data.test.read_into(index, &mut image).unwrap();
            for &byte in &image {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
        assert_eq!(hash, 18_244_778_071_169_634_217, "the built-in images have changed");
    }

    #[test]
    fn ranges_and_seeds_give_different_images() {
        let image = |shapes: &Shapes, index| {
            let mut pixels = vec![0; 3072];
            shapes.read_into(index, &mut pixels).unwrap();
            pixels
        };
        let (train, test) = (Shapes::new(0, 0, 20), Shapes::new(0, 10, 10));
        assert_eq!(image(&train, 13), image(&test, 3));
        assert_eq!((train.label(13), test.label(3)), (3, 3));
        assert_ne!(image(&train, 3), image(&train, 13));
        assert_ne!(image(&train, 3), image(&Shapes::new(1, 0, 20), 3));
    }

    #[test]
    fn every_image_shows_a_shape() {
        for number in 0..2000 {
            let mut rng = rng::stream(SEED, Stream::Shapes, number);
            let scene = Scene::draw((number % 10) as u8, &mut rng);
            let coordinate = |at: usize| (at as f32 + 0.5) / 16.0 - 1.0;
            let inside = (0..1024).filter(|i| scene.distance((coordinate(i % 32), coordinate(i / 32))) < 0.0).count();
            assert!((30..800).contains(&inside), "image {number}: {inside} pixels");
            let apart = |s: Rgb, g: Rgb| (0..3).map(|c| (s[c] - g[c]).abs()).fold(0.0, f32::max);
            let pairs = scene.shape.iter().flat_map(|s| scene.ground.map(|g| apart(*s, g)));
            let contrast = pairs.fold(1.0, f32::min);
            assert!(contrast > 0.1, "image {number}: contrast {contrast}");
        }
    }
}
