//! A mixture of Gaussians with full covariances, fitted to the latent vectors of a trained model (Ghosh et al., arXiv:1903.12436).

use std::collections::BTreeMap;

use nalgebra::{Cholesky, DMatrix, DVector, DVectorView};

use crate::error::{Error, Result};
use crate::runtime::sys::threads;
use crate::runtime::tensor::rng::{self, Stream};
use crate::vae::tensor_file::{Array, TensorFile};

/// Added to the diagonal of covariances, so that they stay positive definite.
const RIDGE: f64 = 1e-4;
/// Change of the mean log density in nats that ends the iteration.
const TOLERANCE: f64 = 1e-3;
/// Largest number of iterations.
const ITERATIONS: usize = 100;
/// Points that a thread processes at a time. Sums are formed block by block, so results do not depend on the number of threads.
const BLOCK: usize = 1024;

/// A mixture of Gaussians with full covariances.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    components: Vec<Component>,
}

#[derive(Clone, Debug, PartialEq)]
struct Component {
    weight: f64,
    /// Class of the images whose latent vectors it was fitted to, if each class has its own components.
    class: Option<u8>,
    mean: DVector<f64>,
    /// Lower Cholesky factor of the covariance.
    factor: DMatrix<f64>,
}

/// What the points contribute to the next components.
struct Sums {
    log_density: f64,
    /// For each component: sum of responsibilities, and of points and their outer products weighted with them.
    moments: Vec<(f64, DVector<f64>, DMatrix<f64>)>,
}

impl Mixture {
    /// Fits a mixture of up to `count` components to `points`, `[n, dims]`, by expectation maximization, starting from centers chosen by
    /// k-means++. Calls `done` after each iteration with its number and the mean log density of the points in nats. The result depends on
    /// the arguments alone.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] without components, or with fewer than two points or an incomplete one.
    pub fn fit(points: &[f32], dims: usize, count: usize, seed: u64, done: &mut dyn FnMut(usize, f64)) -> Result<Self> {
        if count == 0 {
            return Err(Error::argument("number of components", "at least 1", count));
        }
        if dims == 0 || !points.len().is_multiple_of(dims) || points.len() / dims < 2 {
            return Err(Error::argument(
                "number of values of points",
                format!("{dims} for each of 2 or more"),
                points.len(),
            ));
        }
        let points = DMatrix::from_iterator(dims, points.len() / dims, points.iter().map(|v| f64::from(*v)));
        // A covariance needs two points.
        let count = count.min(points.ncols() / 2).max(1);
        let mut mixture = Self::around(&centers(&points, count, seed), &points)?;
        let mut before = f64::NEG_INFINITY;
        for iteration in 1..=ITERATIONS {
            let sums = mixture.expectation(&points)?;
            let log_density = sums.log_density / points.ncols() as f64;
            done(iteration, log_density);
            mixture = Self::maximization(sums, points.ncols())?;
            if log_density - before < TOLERANCE {
                break;
            }
            before = log_density;
        }
        Ok(mixture)
    }

    /// Fits a mixture to the points of each class, `labels`, and joins them: a distribution of latent vector and class. Each class gets its
    /// share of `count` components, and at least one. A class with fewer than two points gets none.
    ///
    /// # Errors
    /// As [`Mixture::fit`]; [`Error::InvalidArgument`] for another number of labels, or if no class has two points.
    pub fn fit_classes(
        points: &[f32],
        labels: &[u8],
        dims: usize,
        count: usize,
        seed: u64,
        done: &mut dyn FnMut(usize, f64),
    ) -> Result<Self> {
        if dims == 0 || points.len() != labels.len() * dims {
            return Err(Error::argument("number of labels", points.len() / dims.max(1), labels.len()));
        }
        let mut by_class: BTreeMap<u8, Vec<f32>> = BTreeMap::new();
        for (point, label) in points.chunks_exact(dims).zip(labels) {
            by_class.entry(*label).or_default().extend_from_slice(point);
        }
        by_class.retain(|_, points| points.len() >= 2 * dims);
        let kept: usize = by_class.values().map(Vec::len).sum();
        let each = count.checked_div(by_class.len()).unwrap_or_default().max(1);
        let (mut components, mut iterations, mut log_density) = (Vec::new(), 0, 0.0);
        for (class, points) in by_class {
            let share = points.len() as f64 / kept as f64;
            let (mut density, mut last) = (0.0, 0);
            let mixture = Self::fit(&points, dims, each, seed, &mut |iteration, now| {
                (last, density) = (iteration, now);
                done(iterations + iteration, log_density + share * now);
            })?;
            iterations += last;
            log_density += share * density;
            let joined = mixture.components.into_iter();
            components.extend(joined.map(|c| Component { weight: c.weight * share, class: Some(class), ..c }));
        }
        if components.is_empty() {
            return Err(Error::argument("points", "two or more of a class", labels.len()));
        }
        Ok(Self { components })
    }

    /// Components around centers, all with the covariance of the points.
    fn around(centers: &[DVector<f64>], points: &DMatrix<f64>) -> Result<Self> {
        let mean = points.column_mean();
        let mut centered = points.clone();
        centered.column_iter_mut().for_each(|mut point| point -= &mean);
        let covariance = &centered * centered.transpose() / points.ncols() as f64;
        let weight = 1.0 / centers.len() as f64;
        let component = |center: &DVector<f64>| Component::new(weight, center.clone(), covariance.clone());
        Ok(Self { components: centers.iter().map(component).collect::<Result<_>>()? })
    }

    fn expectation(&self, points: &DMatrix<f64>) -> Result<Sums> {
        let blocks: Vec<usize> = (0..points.ncols()).step_by(BLOCK).collect();
        let sums = threads::map(&blocks, |&first| {
            let block = points.columns(first, BLOCK.min(points.ncols() - first)).into_owned();
            Ok(self.block(&block))
        })?;
        let sum = |mut a: Sums, b: Sums| {
            a.log_density += b.log_density;
            for (a, b) in a.moments.iter_mut().zip(b.moments) {
                a.0 += b.0;
                a.1 += b.1;
                a.2 += b.2;
            }
            a
        };
        sums.into_iter().reduce(sum).ok_or_else(|| Error::bug("a mixture of no points"))
    }

    fn block(&self, points: &DMatrix<f64>) -> Sums {
        let densities: Vec<_> = self.components.iter().map(|component| component.log_densities(points)).collect();
        let (mut responsibilities, mut log_density) = (DMatrix::zeros(densities.len(), points.ncols()), 0.0);
        for (i, mut column) in responsibilities.column_iter_mut().enumerate() {
            let largest = densities.iter().map(|d| d[i]).fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = densities.iter().map(|d| (d[i] - largest).exp()).sum();
            log_density += largest + sum.ln();
            for (share, density) in column.iter_mut().zip(&densities) {
                *share = (density[i] - largest).exp() / sum;
            }
        }
        let moments = responsibilities.row_iter().map(|shares| {
            let mut weighted = points.clone();
            for (mut point, share) in weighted.column_iter_mut().zip(shares.iter()) {
                point *= *share;
            }
            (shares.sum(), weighted.column_sum(), &weighted * points.transpose())
        });
        Sums { log_density, moments: moments.collect() }
    }

    /// The components with the largest likelihood for these sums. Components without points are dropped.
    fn maximization(sums: Sums, points: usize) -> Result<Self> {
        let mut components = Vec::new();
        for (total, sum, squares) in sums.moments {
            // A covariance needs more than one point.
            if total > 1.0 {
                let mean = sum / total;
                let covariance = squares / total - &mean * mean.transpose();
                components.push(Component::new(total / points as f64, mean, covariance)?);
            }
        }
        Ok(Self { components })
    }

    /// Returns the number of components.
    #[must_use]
    pub fn components(&self) -> usize {
        self.components.len()
    }

    /// Returns the number of latent dimensions.
    #[must_use]
    pub fn dims(&self) -> usize {
        self.components.first().map_or(0, |component| component.mean.len())
    }

    /// Draws `count` latent vectors, `[count, dims]`. `temperature` scales the distance from the mean of the component.
    #[must_use]
    pub fn sample(&self, count: usize, seed: u64, temperature: f64) -> Vec<f32> {
        self.draw(std::iter::repeat_n(None, count), seed, temperature)
    }

    /// Draws a latent vector of each class in `labels`, `[labels.len(), dims]`: from the components of that class, or from all if it has
    /// none.
    #[must_use]
    pub fn sample_classes(&self, labels: &[u8], seed: u64, temperature: f64) -> Vec<f32> {
        self.draw(labels.iter().map(|label| Some(*label)), seed, temperature)
    }

    fn draw(&self, classes: impl Iterator<Item = Option<u8>>, seed: u64, temperature: f64) -> Vec<f32> {
        let dims = self.dims();
        let mut choices = rng::stream(seed, Stream::Prior, 0);
        let mut noise = rng::stream(seed, Stream::Sample, 0);
        let mut samples = Vec::new();
        for class in classes {
            let has_its_own = class.is_some() && self.components.iter().any(|component| component.class == class);
            let eligible = || self.components.iter().filter(move |component| !has_its_own || component.class == class);
            let total: f64 = if has_its_own { eligible().map(|component| component.weight).sum() } else { 1.0 };
            let mut place = total * f64::from(rng::below(&mut choices, u32::MAX)) / f64::from(u32::MAX);
            let chosen = eligible().find(|component| {
                place -= component.weight;
                place < 0.0
            });
            let normal = DVector::from_iterator(dims, rng::normals(&mut noise, dims).into_iter().map(f64::from));
            if let Some(component) = chosen.or(eligible().next_back()) {
                let z = &component.mean + &component.factor * normal * temperature;
                samples.extend(z.iter().map(|v| *v as f32));
            }
        }
        samples
    }

    /// Returns the mixture as a file: `mixture.weights` `[k]`, `mixture.means` `[k, dims]` and `mixture.factors` `[k, dims, dims]`, the
    /// lower Cholesky factors of the covariances. If each class has its own components, also `mixture.classes` `[k]`.
    #[must_use]
    pub fn to_file(&self) -> TensorFile {
        let (count, dims) = (self.components(), self.dims());
        let array = |dims: &[usize], values: &mut dyn Iterator<Item = f64>| Array {
            dims: dims.to_vec(),
            data: values.map(|v| v as f32).collect(),
        };
        let all = || self.components.iter();
        let mut file = TensorFile::default();
        file.metadata.insert("format".into(), "pt".into());
        file.tensors.insert(WEIGHTS.into(), array(&[count], &mut all().map(|c| c.weight)));
        file.tensors.insert(MEANS.into(), array(&[count, dims], &mut all().flat_map(|c| c.mean.iter().copied())));
        let factors = all().flat_map(|c| c.factor.row_iter().flat_map(|row| row.iter().copied().collect::<Vec<_>>()));
        file.tensors.insert(FACTORS.into(), array(&[count, dims, dims], &mut factors.into_iter()));
        let classes: Option<Vec<f64>> = all().map(|c| c.class.map(f64::from)).collect();
        if let Some(classes) = classes {
            file.tensors.insert(CLASSES.into(), array(&[count], &mut classes.into_iter()));
        }
        file
    }

    /// Reads a mixture of `dims` dimensions from a file. `path` is used in messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a tensor is missing, unexpected or of another shape.
    pub fn from_file(file: TensorFile, path: &std::path::Path, dims: usize) -> Result<Self> {
        let count = file.tensors.get(WEIGHTS).map_or(1, |weights| weights.data.len());
        let mut names = vec![(WEIGHTS, vec![count]), (MEANS, vec![count, dims]), (FACTORS, vec![count, dims, dims])];
        if file.tensors.contains_key(CLASSES) {
            names.push((CLASSES, vec![count]));
        }
        let names: Vec<_> = names.into_iter().map(|(name, dims)| (name.to_owned(), dims)).collect();
        let tensors = file.take(path, &names)?;
        let [weights, means, factors, classes @ ..] = tensors.as_slice() else {
            return Err(Error::bug("a mixture of other tensors"));
        };
        let classes: Vec<Option<u8>> = match classes {
            [classes, ..] => classes.iter().map(|class| Some(*class as u8)).collect(),
            [] => vec![None; count],
        };
        let wide = |values: &[f32]| values.iter().map(|v| f64::from(*v)).collect::<Vec<_>>();
        let rows = means.chunks_exact(dims).zip(factors.chunks_exact(dims * dims));
        let mut components = Vec::with_capacity(count);
        for ((weight, class), (mean, factor)) in weights.iter().zip(classes).zip(rows) {
            components.push(Component {
                weight: f64::from(*weight),
                class,
                mean: DVector::from_vec(wide(mean)),
                factor: DMatrix::from_row_slice(dims, dims, &wide(factor)),
            });
        }
        Ok(Self { components })
    }
}

const WEIGHTS: &str = "mixture.weights";
const MEANS: &str = "mixture.means";
const FACTORS: &str = "mixture.factors";
const CLASSES: &str = "mixture.classes";

impl Component {
    fn new(weight: f64, mean: DVector<f64>, mut covariance: DMatrix<f64>) -> Result<Self> {
        for i in 0..mean.len() {
            covariance[(i, i)] += RIDGE;
        }
        let factor = Cholesky::new(covariance).ok_or_else(|| Error::NonFiniteOutput { what: "a covariance".into() })?;
        Ok(Self { weight, class: None, mean, factor: factor.unpack() })
    }

    /// log (weight * density) of each point.
    fn log_densities(&self, points: &DMatrix<f64>) -> Vec<f64> {
        let mut centered = points.clone();
        centered.column_iter_mut().for_each(|mut point| point -= &self.mean);
        // The diagonal of the factor is positive, so there is a solution.
        self.factor.solve_lower_triangular_mut(&mut centered);
        let log_det: f64 = self.factor.diagonal().iter().map(|v| v.ln()).sum();
        let constant = self.weight.ln() - log_det - 0.5 * self.mean.len() as f64 * std::f64::consts::TAU.ln();
        centered.column_iter().map(|point| constant - 0.5 * point.norm_squared()).collect()
    }
}

/// Chooses `count` of the points, each with a probability that grows with the squared distance from those before (k-means++; Arthur and
/// Vassilvitskii, 2007).
fn centers(points: &DMatrix<f64>, count: usize, seed: u64) -> Vec<DVector<f64>> {
    let mut rng = rng::stream(seed, Stream::Prior, 1);
    let mut nearest = vec![1.0; points.ncols()];
    let mut centers: Vec<DVector<f64>> = Vec::new();
    for _ in 0..count.min(points.ncols()) {
        let mut place = f64::from(rng::below(&mut rng, u32::MAX)) / f64::from(u32::MAX) * nearest.iter().sum::<f64>();
        let chosen = nearest.iter().position(|distance| {
            place -= distance;
            place < 0.0
        });
        let center = points.column(chosen.unwrap_or(points.ncols() - 1)).into_owned();
        let squared = |point: DVectorView<'_, f64>| (point - &center).norm_squared();
        let first = centers.is_empty();
        for (nearest, point) in nearest.iter_mut().zip(points.column_iter()) {
            *nearest = if first { squared(point) } else { nearest.min(squared(point)) };
        }
        centers.push(center);
    }
    centers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Two clouds: around (4, 0), long in the direction (1, 1), and around (-4, 1), with a quarter of the points.
    fn clouds(count: usize) -> Vec<f32> {
        let normals = rng::normals(&mut rng::stream(3, Stream::Check, 0), 2 * count);
        let point = |(i, n): (usize, &[f32])| {
            if i % 4 == 0 { [-4.0 + 0.5 * n[0], 1.0 + 0.5 * n[1]] } else { [4.0 + n[0], n[0] + 0.3 * n[1]] }
        };
        normals.chunks_exact(2).enumerate().flat_map(point).collect()
    }

    #[test]
    fn clouds_are_found_with_their_weights_and_covariances() {
        let points = clouds(8000);
        let mut densities = Vec::new();
        let mixture = Mixture::fit(&points, 2, 2, 0, &mut |_, density| densities.push(density)).unwrap();
        assert!(densities.is_sorted(), "{densities:?}");
        let small = mixture.components.iter().find(|c| c.mean[0] < 0.0).unwrap();
        let large = mixture.components.iter().find(|c| c.mean[0] > 0.0).unwrap();
        assert!((small.weight - 0.25).abs() < 0.01 && (large.weight - 0.75).abs() < 0.01);
        assert!((&large.mean - DVector::from_vec(vec![4.0, 0.0])).norm() < 0.1);
        let covariance = &large.factor * large.factor.transpose();
        for (got, want) in covariance.iter().zip([1.0, 1.0, 1.0, 1.09]) {
            assert!((got - want).abs() < 0.1, "{covariance}");
        }
    }

    #[test]
    fn samples_have_the_moments_of_the_points_and_repeat() {
        let points = clouds(4000);
        let mixture = Mixture::fit(&points, 2, 3, 1, &mut |_, _| {}).unwrap();
        assert_eq!(mixture, Mixture::fit(&points, 2, 3, 1, &mut |_, _| {}).unwrap());
        let samples = mixture.sample(4000, 5, 1.0);
        assert_eq!(samples, mixture.sample(4000, 5, 1.0));
        for axis in 0..2 {
            let moments = |values: &[f32]| {
                let values: Vec<f64> = values.iter().skip(axis).step_by(2).map(|v| f64::from(*v)).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                (mean, (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt())
            };
            let ((a, s), (b, t)) = (moments(&points), moments(&samples));
            assert!((a - b).abs() < 0.2 && (s - t).abs() < 0.2, "{a} {s} {b} {t}");
        }
        // At temperature 0 only the means are left.
        let cold = mixture.sample(100, 5, 0.0);
        assert!(cold.chunks_exact(2).all(|z| mixture.components.iter().any(|c| (c.mean[0] as f32) == z[0])));
    }

    #[test]
    fn files_round_trip_and_other_sizes_are_rejected() {
        let mixture = Mixture::fit(&clouds(500), 2, 2, 0, &mut |_, _| {}).unwrap();
        let bytes = mixture.to_file().to_bytes(Path::new("x")).unwrap();
        let read =
            |dims| Mixture::from_file(TensorFile::from_bytes(&bytes, Path::new("x")).unwrap(), Path::new("x"), dims);
        let back = read(2).unwrap();
        assert_eq!(back.to_file().to_bytes(Path::new("x")).unwrap(), bytes);
        assert_eq!(back.components(), 2);
        assert!(read(3).is_err());
    }

    #[test]
    fn samples_of_a_class_come_from_its_points() {
        let points = clouds(2000);
        let labels: Vec<u8> = (0..2000).map(|i| if i % 4 == 0 { 3 } else { 1 }).collect();
        let mixture = Mixture::fit_classes(&points, &labels, 2, 4, 0, &mut |_, _| {}).unwrap();
        assert_eq!(mixture.components(), 4);
        assert!((mixture.components.iter().map(|c| c.weight).sum::<f64>() - 1.0).abs() < 1e-9);
        let bytes = mixture.to_file().to_bytes(Path::new("x")).unwrap();
        let file = TensorFile::from_bytes(&bytes, Path::new("x")).unwrap();
        let mixture = Mixture::from_file(file, Path::new("x"), 2).unwrap();
        let wanted = [3, 1, 1, 3].repeat(50);
        let samples = mixture.sample_classes(&wanted, 7, 1.0);
        let right = samples.chunks_exact(2).zip(&wanted).filter(|(z, label)| (z[0] < 0.0) == (**label == 3)).count();
        assert_eq!(right, wanted.len());
        // All components stand in for a class without its own.
        assert!(mixture.sample_classes(&[0; 40], 7, 1.0).chunks_exact(2).any(|z| z[0] > 0.0));
        assert!(Mixture::fit_classes(&points, &labels[1..], 2, 4, 0, &mut |_, _| {}).is_err());
        assert!(Mixture::fit_classes(&points[..4], &[0, 1], 2, 4, 0, &mut |_, _| {}).is_err());
    }

    #[test]
    fn too_few_points_are_rejected_and_equal_points_survive() {
        assert!(Mixture::fit(&[1.0, 2.0], 2, 1, 0, &mut |_, _| {}).is_err());
        assert!(Mixture::fit(&[1.0; 7], 2, 1, 0, &mut |_, _| {}).is_err());
        assert!(Mixture::fit(&[1.0; 8], 2, 0, 0, &mut |_, _| {}).is_err());
        for seed in 0..20 {
            // Each component needs two points.
            let pair = Mixture::fit(&[0.0, 1.0, 2.0, 3.0], 2, 10, seed, &mut |_, _| {}).unwrap();
            assert_eq!(pair.components(), 1);
        }
        let mixture = Mixture::fit(&[1.0; 80], 2, 3, 0, &mut |_, _| {}).unwrap();
        assert!(mixture.sample(10, 0, 1.0).iter().all(|v| (v - 1.0).abs() < 0.1));
    }
}
