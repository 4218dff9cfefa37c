//! Structural similarity of two images.

/// Structural similarity (Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004) with the
/// paper's constants: a Gaussian window of 11x11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03. Averaged over the windows
/// that lie inside the image, and over the channels. The window is smaller in images below 11 pixels.
#[derive(Clone, Debug)]
pub struct Ssim {
    size: [usize; 3],
    /// Weights of a row of the window, which is separable.
    window: Vec<f64>,
}

/// Range of pixel values, which are from -1 to 1.
const RANGE: f64 = 2.0;
const SIGMA: f64 = 1.5;

impl Ssim {
    /// Prepares for images of `size`: channels, height, width.
    #[must_use]
    pub fn new(size: [usize; 3]) -> Self {
        let [_, height, width] = size;
        let radius = (height.min(width).max(1) - 1) / 2;
        let radius = radius.min(5) as i32;
        let weight = |x: i32| (-f64::from(x * x) / (2.0 * SIGMA * SIGMA)).exp();
        let sum: f64 = (-radius..=radius).map(weight).sum();
        Self { size, window: (-radius..=radius).map(|x| weight(x) / sum).collect() }
    }

    /// Returns the similarity of two images, `[c, h, w]` with values from -1 to 1: 1 for equal ones.
    #[must_use]
    pub fn of(&self, a: &[f64], b: &[f64]) -> f64 {
        let [channels, height, width] = self.size;
        let (c1, c2) = ((0.01 * RANGE).powi(2), (0.03 * RANGE).powi(2));
        let (mut sum, mut count) = (0.0, 0.0);
        for (a, b) in a.chunks_exact(height * width).zip(b.chunks_exact(height * width)).take(channels) {
            let product = |f: fn(f64, f64) -> f64| self.blurred(a.iter().zip(b).map(|(a, b)| f(*a, *b)));
            let [mean_a, mean_b] = [product(|a, _| a), product(|_, b| b)];
            let [aa, bb, ab] = [product(|a, _| a * a), product(|_, b| b * b), product(|a, b| a * b)];
            for (((ma, mb), (aa, bb)), ab) in mean_a.iter().zip(&mean_b).zip(aa.iter().zip(&bb)).zip(&ab) {
                let (var_a, var_b, covariance) = (aa - ma * ma, bb - mb * mb, ab - ma * mb);
                let luminance = (2.0 * ma * mb + c1) / (ma * ma + mb * mb + c1);
                sum += luminance * (2.0 * covariance + c2) / (var_a + var_b + c2);
                count += 1.0;
            }
        }
        sum / count
    }

    /// Weighted averages of a plane under all windows inside it.
    fn blurred(&self, plane: impl Iterator<Item = f64>) -> Vec<f64> {
        let [_, height, width] = self.size;
        let across = self.blurred_rows(&plane.collect::<Vec<_>>(), width);
        self.blurred_rows(&across, height)
    }

    /// Weighted averages along the rows of a plane. Returns its transpose, so that a second call averages along the columns.
    fn blurred_rows(&self, plane: &[f64], width: usize) -> Vec<f64> {
        let (height, columns) = (plane.len() / width, width + 1 - self.window.len());
        let mut averages = vec![0.0; columns * height];
        for (y, row) in plane.chunks_exact(width).enumerate() {
            for (x, values) in row.windows(self.window.len()).enumerate() {
                averages[x * height + y] = self.window.iter().zip(values).map(|(weight, value)| weight * value).sum();
            }
        }
        averages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(scale: f64, shift: f64) -> Vec<f64> {
        (0..3 * 16 * 16).map(|i| scale * (f64::from(i) * 0.7).sin() + shift).collect()
    }

    #[test]
    fn similarity_of_known_images() {
        let ssim = Ssim::new([3, 16, 16]);
        let image = wave(0.5, 0.0);
        assert!((ssim.of(&image, &image) - 1.0).abs() < 1e-12);
        // Constant images: only the luminance differs.
        let flat = |value: f64| vec![value; image.len()];
        let (a, b, c1) = (0.2, 0.6, 0.0004);
        let luminance = (2.0 * a * b + c1) / (a * a + b * b + c1);
        assert!((ssim.of(&flat(a), &flat(b)) - luminance).abs() < 1e-9);
        // Local means are zero, so only the structure differs.
        let board =
            |sign: f64| (0..3 * 256).map(|i| if (i + i / 16) % 2 == 0 { sign } else { -sign }).collect::<Vec<_>>();
        assert!(ssim.of(&board(0.5), &board(-0.5)) < -0.9);
        let blurred = wave(0.1, 0.0);
        let similarity = ssim.of(&image, &blurred);
        assert!((0.1..0.9).contains(&similarity), "{similarity}");
        assert_eq!(ssim.of(&image, &blurred), ssim.of(&blurred, &image));
    }

    #[test]
    fn small_images_have_a_small_window() {
        for size in [1, 2, 5, 8] {
            let image: Vec<f64> = (0..size * size).map(|i| (i % 7) as f64 / 7.0).collect();
            assert!((Ssim::new([1, size, size]).of(&image, &image) - 1.0).abs() < 1e-12);
        }
    }
}
