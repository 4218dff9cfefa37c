//! Principal component analysis: the linear code of a given length with the smallest reconstruction error, as a baseline for the VAE.
//!
//! The components are computed by subspace iteration with Rayleigh-Ritz projection (Halko, Martinsson and Tropp, arXiv:0909.4061),
//! which reads the images once per pass and does not form the covariance matrix. The first passes read only some of the images, which
//! is enough for a start from which few passes over all of them remain. Products are in single precision.

use nalgebra::{DMatrix, DVector};

use crate::error::{Error, Result};
use crate::runtime::sys::threads;
use crate::runtime::tensor::rng;
use crate::runtime::tensor::rng::Stream;
use crate::vae::data;
use crate::vae::data::Images;
use crate::vae::inference::{in_blocks, scaled};

/// Number of images that a thread multiplies at a time. Sums are formed block by block, so results do not depend on the number of
/// threads.
const BLOCK: usize = 512;
/// Largest number of passes over all images, and over some of them before.
const PASSES: usize = 40;
/// Images of the first passes.
const SOME: usize = 5000;
/// Change of the variance that is left, relative, that ends the iteration.
const TOLERANCE: f64 = 5e-4;

/// Projects vectors, `[n, dims]`, on their first two principal components. Returns the coordinates and each component's share of the
/// variance.
///
/// # Errors
/// [`Error::InvalidArgument`] without vectors or with an incomplete one.
pub fn project(vectors: &[f32], dims: usize) -> Result<(Vec<[f64; 2]>, [f64; 2])> {
    if dims == 0 || vectors.is_empty() || !vectors.len().is_multiple_of(dims) {
        return Err(Error::argument("number of values of vectors", format!("a multiple of {dims}"), vectors.len()));
    }
    let count = vectors.len() / dims;
    let mut points = DMatrix::from_iterator(dims, count, vectors.iter().map(|v| f64::from(*v)));
    let mean = points.column_mean();
    points.column_iter_mut().for_each(|mut point| point -= &mean);
    let eigen = (&points * points.transpose() / count as f64).symmetric_eigen();
    let mut order: Vec<usize> = (0..dims).collect();
    order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
    let all: f64 = eigen.eigenvalues.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let share = |i: usize| order.get(i).map_or(0.0, |&at| eigen.eigenvalues[at] / all);
    // Eigenvectors have no sign of their own: the largest entry is made positive.
    let direction = |i: usize| {
        order.get(i).map_or_else(
            || DVector::zeros(dims),
            |&at| {
                let vector = eigen.eigenvectors.column(at).into_owned();
                let largest = vector.iter().copied().fold(0.0, |a: f64, b| if b.abs() > a.abs() { b } else { a });
                if largest < 0.0 { -vector } else { vector }
            },
        )
    };
    let (first, second) = (direction(0), direction(1));
    Ok((points.column_iter().map(|point| [point.dot(&first), point.dot(&second)]).collect(), [share(0), share(1)]))
}

/// Mean image and principal components.
#[derive(Clone, Debug)]
pub struct Pca {
    mean: DVector<f64>,
    /// One orthonormal column per component.
    components: DMatrix<f64>,
}

impl Pca {
    /// Computes the first `components` components, at most as many as an image has values. Calls `done` after each pass over the
    /// images, with the number of passes.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without images or components.
    pub fn fit(images: &dyn Images, components: usize, done: &mut dyn FnMut(usize)) -> Result<Self> {
        let dims = data::image_bytes(images.size())?;
        if images.is_empty() || components == 0 {
            return Err(Error::argument("number of images or components", "at least 1", 0));
        }
        let kept = components.min(dims);
        // Additional directions speed up the convergence of the requested ones.
        let width = (kept + kept / 2 + 8).min(dims);
        let (mean, variance) = moments(images, dims)?;
        let mut noise = rng::stream(0, Stream::Check, 0);
        let start = rng::normals(&mut noise, dims * width).into_iter().map(f64::from);
        let mut basis = orthonormal(DMatrix::from_iterator(dims, width, start));
        let mut components = DMatrix::zeros(dims, kept);
        let (all, mut passes) = (images.len(), 0);
        for stride in [all.div_ceil(SOME), 1].into_iter().skip(usize::from(all <= SOME)) {
            let read: Vec<u32> = (0..all as u32).step_by(stride).collect();
            let mut explained = 0.0;
            for _ in 0..PASSES {
                let product = scatter_times(images, &read, &mean, &basis)?;
                passes += 1;
                done(passes);
                // Eigenvectors are the principal directions within the basis, eigenvalues the variance along them.
                let eigen = (basis.transpose() * &product).symmetric_eigen();
                let mut order: Vec<usize> = (0..width).collect();
                order.sort_by(|&a, &b| eigen.eigenvalues[b].total_cmp(&eigen.eigenvalues[a]));
                let best = &order[..kept];
                let now = best.iter().map(|&i| eigen.eigenvalues[i]).sum::<f64>() / read.len() as f64;
                components = &basis * eigen.eigenvectors.select_columns(best);
                basis = orthonormal(product);
                if now - explained <= TOLERANCE * (variance - now).max(0.0) {
                    break;
                }
                explained = now;
            }
        }
        Ok(Self { mean, components })
    }

    /// Returns the number of components.
    #[must_use]
    pub fn components(&self) -> usize {
        self.components.ncols()
    }

    /// Returns the mean squared error per dimension (pixel values from -1 to 1) of images projected onto the components.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for images of another size.
    pub fn mse(&self, images: &dyn Images) -> Result<f64> {
        let dims = data::image_bytes(images.size())?;
        if dims != self.mean.len() {
            return Err(Error::argument("values per image", self.mean.len(), dims));
        }
        let basis = self.components.transpose();
        let mut sum = 0.0;
        in_blocks(images, BLOCK, |images| {
            let block = centred(images.values, &self.mean);
            // The components are orthonormal, so the squared norms of projection and error add up.
            sum += block.norm_squared() - (&basis * &block).norm_squared();
            Ok(())
        })?;
        Ok((sum / (images.len() as f64 * dims as f64)).max(0.0))
    }
}

fn orthonormal(matrix: DMatrix<f64>) -> DMatrix<f64> {
    matrix.qr().q()
}

/// Returns the mean image, and the variance summed over all pixels.
fn moments(images: &dyn Images, dims: usize) -> Result<(DVector<f64>, f64)> {
    let (mut sums, mut squares) = (DVector::zeros(dims), 0.0);
    in_blocks(images, BLOCK, |images| {
        for image in images.values.chunks_exact(dims) {
            for (sum, x) in sums.iter_mut().zip(image) {
                let x = scaled(*x);
                *sum += x;
                squares += x * x;
            }
        }
        Ok(())
    })?;
    let mean = sums / images.len() as f64;
    let variance = squares / images.len() as f64 - mean.norm_squared();
    Ok((mean, variance))
}

/// Returns images minus the mean, as columns.
fn centred(pixels: &[u8], mean: &DVector<f64>) -> DMatrix<f64> {
    let dims = mean.len();
    let values = pixels.chunks_exact(dims).flat_map(|p| p.iter().zip(mean).map(|(x, m)| scaled(*x) - m));
    DMatrix::from_iterator(dims, pixels.len() / dims, values)
}

/// Computes X X^T Q, with one of the images `read` in each column of X and an orthonormal basis Q.
fn scatter_times(images: &dyn Images, read: &[u32], mean: &DVector<f64>, basis: &DMatrix<f64>) -> Result<DMatrix<f64>> {
    let transposed: DMatrix<f32> = basis.transpose().map(|v| v as f32);
    let mean = mean.map(|v| v as f32);
    let block = |indices: &&[u32]| -> Result<DMatrix<f32>> {
        let mut pixels = Vec::new();
        data::batch(images, indices, &mut pixels)?;
        let values = pixels.chunks_exact(mean.len());
        let values = values.flat_map(|p| p.iter().zip(&mean).map(|(x, m)| scaled(*x) as f32 - m));
        let x = DMatrix::from_iterator(mean.len(), indices.len(), values);
        let codes = (&transposed * &x).transpose();
        Ok(x * codes)
    };
    let blocks: Vec<&[u32]> = read.chunks(BLOCK).collect();
    let mut sum = DMatrix::zeros(basis.nrows(), basis.ncols());
    // In order, so that the sum does not depend on the number of threads.
    for group in blocks.chunks(threads::cores()) {
        for part in threads::map(group, block)? {
            sum += part.map(f64::from);
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vae::data::InMemoryImages;
    use crate::vae::data::shapes::Shapes;

    #[test]
    fn vectors_are_projected_on_the_directions_of_largest_variance() {
        // Long in the direction (0, 0.6, 0.8), shorter along the first axis.
        let points: Vec<f32> = (0..200)
            .flat_map(|i| {
                let (along, across) = ((i as f32 * 0.37).sin() * 5.0, (i as f32 * 1.7).cos());
                [1.0 + across, 2.0 + 0.6 * along, 3.0 + 0.8 * along]
            })
            .collect();
        let (places, [first, second]) = project(&points, 3).unwrap();
        assert!(first > 0.9 && first + second > 0.999, "{first} {second}");
        let expected: Vec<f64> = (0..200).map(|i| (i as f64 * 0.37).sin() * 5.0).collect();
        let mean = expected.iter().sum::<f64>() / 200.0;
        for ([x, _], want) in places.iter().zip(&expected) {
            assert!((x - (want - mean)).abs() < 0.2, "{x} {want}");
        }
        // One dimension has no second component.
        assert!(project(&[1.0, 2.0, 4.0], 1).unwrap().0.iter().all(|[_, y]| *y == 0.0));
        assert!(project(&[], 3).is_err() && project(&[1.0; 4], 3).is_err());
    }

    #[test]
    fn components_are_eigenvectors_of_the_covariance() {
        let mut noise = rng::stream(3, Stream::Check, 0);
        let (dims, count) = (4 * 6, 700);
        // The variance decreases from pixel to pixel.
        let pixel = |(i, v): (usize, f32)| (128.0 + v * 60.0 / (1.0 + (i % dims) as f32 * 0.5)).clamp(0.0, 255.0) as u8;
        let pixels: Vec<u8> = rng::normals(&mut noise, dims * count).into_iter().enumerate().map(pixel).collect();
        let images = InMemoryImages::new((1, 4, 6), vec!["x".into()], vec![0; count], pixels.clone()).unwrap();
        let x = centred(&pixels, &moments(&images, dims).unwrap().0);
        let mut eigenvalues: Vec<f64> = (&x * x.transpose()).symmetric_eigenvalues().iter().copied().collect();
        eigenvalues.sort_by(|a, b| b.total_cmp(a));
        for components in [1, 3, 8, 24, 100] {
            let left: f64 = eigenvalues.iter().skip(components).sum::<f64>() / (dims * count) as f64;
            let mse = Pca::fit(&images, components, &mut |_| ()).unwrap().mse(&images).unwrap();
            assert!((mse - left).abs() <= 1e-5 * left + 1e-12, "{components}: {mse} {left}");
        }
    }

    #[test]
    fn fewer_images_than_components_are_exact() {
        let images = Shapes::new(0, 0, 5);
        let pca = Pca::fit(&images, 8, &mut |_| ()).unwrap();
        assert!(pca.mse(&images).unwrap() < 1e-12);
        assert!(pca.mse(&Shapes::new(0, 100, 5)).unwrap() > 1e-3);
        assert!(Pca::fit(&Shapes::new(0, 0, 0), 1, &mut |_| ()).is_err());
    }
}
