//! A prior fitted to the latent vectors of a trained model: a second, small VAE of latent vectors (Dai and Wipf, "Diagnosing and
//! Enhancing VAE Models", arXiv:1903.05789). Its own latent vectors are closer to N(0, I) than those of images are, so a vector u drawn
//! from N(0, I) decodes to a z like that of an image.
//!
//! ```text
//! encoder: z, [n, d] -> linear, ReLU -> linear, ReLU -> linear -> mean and log_std of u, [n, 2 * d]
//! decoder: u, [n, d] -> linear, ReLU -> linear, ReLU -> linear -> mean of z, [n, d]
//! z is Gaussian around that mean, with one variance for all dimensions at its maximum-likelihood value
//! ```
//!
//! For a conditional model, a linear layer of the one-hot class is added to the first layer of both.

use std::path::Path;

use crate::error::{Error, Result};
use crate::runtime::exec::{CpuExecutor, Data, Executor};
use crate::runtime::graph::{Arena, Builder, Graph, Root, ValueId, initial};
use crate::runtime::op::{AdamConfig, Add, Conv, Elbo, ElboConfig, Likelihood, Relu, Reparameterize, StepScalars};
use crate::runtime::plan;
use crate::runtime::tensor::rng::{self, Stream, StreamRng};
use crate::runtime::tensor::{Shape, Spec};
use crate::vae::model::Mode;
use crate::vae::runner::{Device, Labelled, one_hot};
use crate::vae::tensor_file::TensorFile;
use crate::vae::weights::{TensorSchema, Weights};

/// Latent vectors in a training step.
const BATCH: usize = 256;
/// Learning rate of the first step; it falls to zero along a cosine.
const LEARNING_RATE: f64 = 1e-3;
/// Share of the steps over which the weight of the KL term rises from zero to one.
const BETA_WARMUP: f64 = 0.25;
/// Steps on the device before the host waits for them.
const IN_FLIGHT: u64 = 8;
/// Latent vectors that are decoded at a time.
const BLOCK: usize = 256;

/// Sizes of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecondStageConfig {
    /// Latent dimensions of the model, and of this network.
    pub latent_dim: usize,
    /// Classes of a conditional model, 0 for others.
    pub classes: usize,
    /// Outputs of the hidden layers.
    pub hidden: usize,
}

/// A small VAE of latent vectors.
#[derive(Clone, Debug, PartialEq)]
pub struct SecondStage {
    config: SecondStageConfig,
    weights: Weights,
}

impl SecondStage {
    /// Fits the VAE to latent vectors, `[n, latent_dim]`, with their classes for a conditional model. Calls `done` now and then with
    /// the number of steps so far and the loss per dimension, and once at the end. The result depends on the arguments and on the
    /// device.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for no or incomplete vectors or another number of classes, [`Error::NonFiniteOutput`] if the loss is
    /// not finite, and errors of the device.
    pub fn fit<'a>(
        latents: impl Into<Labelled<'a, f32>>,
        config: SecondStageConfig,
        steps: u64,
        seed: u64,
        device: &Device,
        options: &plan::Options,
        done: &mut dyn FnMut(u64, f64),
    ) -> Result<Self> {
        let (latents, SecondStageConfig { latent_dim, classes, .. }) = (latents.into(), config);
        let count = latents.values.len() / latent_dim.max(1);
        if count == 0 || latents.values.len() != count * latent_dim {
            return Err(Error::argument(
                "latent vectors",
                format!("a multiple of {latent_dim} values"),
                latents.values.len(),
            ));
        }
        if classes > 0 && latents.labels.len() != count {
            return Err(Error::argument("number of classes", count, latents.labels.len()));
        }
        let batch = BATCH.min(count);
        let graph = config.graph(batch, Mode::Train)?;
        let first = [Arena::Params, Arena::States].map(|arena| initial(&graph, arena, seed));
        let mut exec = device.executor(options)?;
        let program = exec.add(graph)?;
        for (arena, first) in [Arena::Params, Arena::States].into_iter().zip(first) {
            exec.upload(arena, &first?)?;
        }
        let [z, eps, objective, hyperparams] =
            ["z", "eps", "objective", "hyperparams"].map(|name| exec.input(program, name));
        let (z, eps, objective, hyperparams) = (z?, eps?, objective?, hyperparams?);
        let terms = exec.output(program, "terms")?;
        let mut batches = Batches::new(count, rng::stream(seed, Stream::Prior, 3));
        let mut noise = rng::stream(seed, Stream::Prior, 4);
        for step in 0..steps {
            let rows = batches.next(batch);
            let values: Vec<f32> =
                rows.iter().flat_map(|row| latents.values[row * latent_dim..][..latent_dim].iter().copied()).collect();
            exec.write(z, Data::F32(&values))?;
            if classes > 0 {
                let labels: Vec<u8> = rows.iter().map(|row| latents.labels[*row]).collect();
                let input = exec.input(program, "labels")?;
                exec.write(input, Data::F32(&one_hot(&labels, classes)?))?;
            }
            exec.write(eps, Data::F32(&rng::normals(&mut noise, batch * latent_dim)))?;
            let progress = step as f64 / steps as f64;
            exec.write(objective, Data::F32(&[(progress / BETA_WARMUP).min(1.0) as f32, 0.0]))?;
            let (bias_correction1, bias_correction2) = AdamConfig::default().bias_corrections(step);
            let scalars = StepScalars {
                lr: (LEARNING_RATE * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())) as f32,
                bias_correction1,
                bias_correction2,
                weight_decay: 0.0,
                clip: 1.0,
            };
            exec.write(hyperparams, Data::F32(&scalars.to_array()))?;
            exec.run(program, &[terms])?;
            if let Some(report) = exec.reports((step + 1) % IN_FLIGHT == 0 || step + 1 == steps)?.last() {
                let loss = report.values.first().and_then(|terms| terms.first()).copied().unwrap_or(f32::NAN);
                if !loss.is_finite() {
                    return Err(Error::NonFiniteOutput { what: "the loss of the second-stage VAE".into() });
                }
                done(step + 1, f64::from(loss));
            }
        }
        let weights = Weights { params: exec.download(Arena::Params)?, states: exec.download(Arena::States)? };
        Ok(Self { config, weights })
    }

    /// Draws `count` latent vectors, `[count, latent_dim]`. `temperature` scales the standard deviation of all noise. For a conditional
    /// model, `labels` holds the class of each vector; otherwise it is ignored.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of classes than `count`, or a class that the model does not have.
    pub fn sample(&self, count: usize, labels: &[u8], seed: u64, temperature: f64) -> Result<Vec<f32>> {
        let SecondStageConfig { latent_dim, classes, .. } = self.config;
        if classes > 0 && labels.len() != count {
            return Err(Error::argument("number of classes", count, labels.len()));
        }
        let mut exec = CpuExecutor::<f32>::within(None);
        let mut noise = rng::stream(seed, Stream::Sample, 0);
        let mut samples = Vec::with_capacity(count * latent_dim);
        let mut last = None;
        let spread = self.weights.variance(&self.config.graph(1, Mode::Decode)?)?.sqrt() * temperature;
        for first in (0..count).step_by(BLOCK) {
            let batch = BLOCK.min(count - first);
            // All blocks but the last have one size.
            let program = match last {
                Some((size, program)) if size == batch => program,
                _ => exec.add(self.config.graph(batch, Mode::Decode)?)?,
            };
            if first == 0 {
                for arena in [Arena::Params, Arena::States] {
                    exec.upload(arena, self.weights.arena(arena)?)?;
                }
            }
            last = Some((batch, program));
            let u = rng::normals(&mut noise, batch * latent_dim).into_iter().map(|u| u * temperature as f32);
            let input = exec.input(program, "u")?;
            exec.write(input, Data::F32(&u.collect::<Vec<_>>()))?;
            if classes > 0 {
                let input = exec.input(program, "labels")?;
                exec.write(input, Data::F32(&one_hot(&labels[first..first + batch], classes)?))?;
            }
            exec.run(program, &[])?;
            let output = exec.output(program, "mean")?;
            let mean = exec.read(output)?;
            let around = rng::normals(&mut noise, batch * latent_dim);
            samples.extend(mean.iter().zip(around).map(|(mean, normal)| mean + spread as f32 * normal));
        }
        Ok(samples)
    }

    /// Returns the weights as a file with PyTorch's names and shapes.
    ///
    /// # Errors
    /// [`Error::Bug`] for weights of another network.
    pub fn to_file(&self) -> Result<TensorFile> {
        let graph = self.config.graph(1, Mode::Decode)?;
        let mut file = self.weights.clone().into_file(TensorSchema::of(&graph), "")?;
        file.metadata.remove("config");
        Ok(file)
    }

    /// Reads the weights from a file, for a model with this many latent dimensions and classes. `path` is used in messages.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if a tensor is missing, unexpected or of another shape.
    pub fn from_file(file: TensorFile, path: &Path, latent_dim: usize, classes: usize) -> Result<Self> {
        let hidden = file.tensors.get(FIRST_BIAS).map_or(1, |bias| bias.data.len());
        let config = SecondStageConfig { latent_dim, classes, hidden };
        let graph = config.graph(1, Mode::Decode)?;
        let weights = Weights::from_file(file, path, TensorSchema::of(&graph))?;
        Ok(Self { config, weights })
    }
}

/// Rows in random order, each once before any comes again.
struct Batches {
    order: Vec<usize>,
    next: usize,
    random: StreamRng,
}

impl Batches {
    fn new(count: usize, random: StreamRng) -> Self {
        Self { order: (0..count).collect(), next: count, random }
    }

    /// Returns `size` rows. The rows that are left at the end of an order and do not fill a batch are passed over.
    fn next(&mut self, size: usize) -> &[usize] {
        if self.next + size > self.order.len() {
            for i in (1..self.order.len()).rev() {
                self.order.swap(i, rng::below(&mut self.random, i as u32 + 1) as usize);
            }
            self.next = 0;
        }
        self.next += size;
        &self.order[self.next - size..self.next]
    }
}

/// Name of the tensor whose length is the number of outputs of the hidden layers.
const FIRST_BIAS: &str = "encoder.fc1.bias";

impl SecondStageConfig {
    /// The graph of the VAE: loss, gradients and update ([`Mode::Train`]), or the decoder. Inputs: `z`, and `eps` or `u` (all `[batch,
    /// latent]`), `labels` (`[batch, classes]`), `objective` and `hyperparams` as in [`VaeConfig::graph`]. Outputs: `terms`, `mean`.
    ///
    /// [`VaeConfig::graph`]: crate::vae::model::VaeConfig::graph
    fn graph(&self, batch: usize, mode: Mode) -> Result<Graph> {
        let vectors = |len| Spec::nhwc(Shape::new(batch, len, 1, 1));
        let mut b = Builder::new();
        let z = b.input("z", vectors(self.latent_dim))?;
        let labels = if self.classes == 0 { None } else { Some(b.input("labels", vectors(self.classes))?) };
        let h = b.scope("encoder", |b| self.perceptron(b, z, labels, 2 * self.latent_dim))?;
        let u = if mode == Mode::Decode {
            b.input("u", vectors(self.latent_dim))?
        } else {
            let eps = b.input("eps", vectors(self.latent_dim))?;
            b.apply("reparameterize", &[h, eps], |s| Reparameterize::new(s[0], s[1]))?
        };
        let mean = b.scope("decoder", |b| self.perceptron(b, u, labels, self.latent_dim))?;
        let objective = b.input("objective", Spec::flat(2))?;
        let config = ElboConfig { likelihood: Likelihood::Optimal, training: mode == Mode::Train };
        let losses = b.apply_all("loss", &[z, mean, h, objective], |s| Elbo::new(s[0], s[1], s[2], config))?;
        let &[terms, _] = losses.as_slice() else { return Err(Error::bug("a loss with other outputs")) };
        let graph = b.output("mean", mean).output("terms", terms).build();
        match mode {
            Mode::Train => graph.with_gradients(&[Root::Loss(terms)], &[])?.with_adam(AdamConfig::default(), terms),
            _ => graph.only(&["mean"]),
        }
    }

    /// Adds three linear layers with ReLUs between them.
    fn perceptron(&self, b: &mut Builder, x: ValueId, labels: Option<ValueId>, out: usize) -> Result<ValueId> {
        let linear =
            |b: &mut Builder, name: &str, x, out| b.apply(name, &[x], |s| Conv::linear(s[0], Shape::vector(out)));
        let mut h = linear(b, "fc1", x, self.hidden)?;
        if let Some(labels) = labels {
            let of_label = linear(b, "label", labels, self.hidden)?;
            h = b.apply("label.add", &[h, of_label], |s| Add::new(s[0], s[1]))?;
        }
        let h = b.apply("fc1.relu", &[h], |s| Relu::new(s[0]))?;
        let h = linear(b, "fc2", h, self.hidden)?;
        let h = b.apply("fc2.relu", &[h], |s| Relu::new(s[0]))?;
        linear(b, "fc3", h, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Latent vectors on a ring, at which N(0, I) has most of its density in the hole.
    fn ring(count: usize) -> Vec<f32> {
        let mut random = rng::stream(1, Stream::Check, 0);
        (0..count)
            .flat_map(|_| {
                let (angle, radius) =
                    (rng::unit(&mut random) * std::f32::consts::TAU, 2.0 + 0.1 * rng::unit(&mut random));
                [angle.cos() * radius, angle.sin() * radius]
            })
            .collect()
    }

    #[test]
    fn samples_lie_where_the_latent_vectors_do() {
        let points = ring(2000);
        let mut losses = Vec::new();
        let config = SecondStageConfig { latent_dim: 2, classes: 0, hidden: 32 };
        let mut note = |step, loss| losses.push((step, loss));
        let options = plan::Options::default();
        let fitted = SecondStage::fit(&points, config, 1000, 0, &Device::Cpu, &options, &mut note).unwrap();
        assert_eq!(losses.last().unwrap().0, 1000);
        let samples = fitted.sample(500, &[], 0, 1.0).unwrap();
        let near = |z: &[f32]| (z[0].hypot(z[1]) - 2.05).abs() < 0.5;
        let share = samples.chunks_exact(2).filter(|z| near(z)).count();
        assert!(share > 300, "{share} of 500 samples are near the ring, where N(0, I) has 131");
        for quadrant in [(true, true), (true, false), (false, true), (false, false)] {
            let share = samples.chunks_exact(2).filter(|z| (z[0] > 0.0, z[1] > 0.0) == quadrant).count();
            assert!(share > 60, "{share} of 500 samples in {quadrant:?}");
        }
        // Several blocks, of which two have the same size.
        assert_eq!(fitted.sample(600, &[], 0, 1.0).unwrap()[..2 * BLOCK], fitted.sample(BLOCK, &[], 0, 1.0).unwrap());
        let file = fitted.to_file().unwrap();
        assert_eq!(SecondStage::from_file(file, Path::new("x"), 2, 0).unwrap(), fitted);
    }

    #[test]
    fn fits_repeat_and_samples_of_a_class_lie_where_its_latent_vectors_do() {
        // Class 0 to the left, class 1 to the right.
        let labels: Vec<u8> = (0..500).map(|i| (i % 2) as u8).collect();
        let noise = rng::normals(&mut rng::stream(2, Stream::Check, 0), 500);
        let points: Vec<f32> =
            labels.iter().zip(noise).map(|(label, n)| f32::from(*label) * 4.0 - 2.0 + 0.3 * n).collect();
        let config = SecondStageConfig { latent_dim: 1, classes: 2, hidden: 16 };
        let options = plan::Options::default();
        let latents = (&points, &labels);
        let fit = || SecondStage::fit(latents, config, 300, 0, &Device::Cpu, &options, &mut |_, _| {}).unwrap();
        let fitted = fit();
        assert_eq!(fitted, fit());
        let samples = fitted.sample(100, &labels[..100], 0, 1.0).unwrap();
        for (z, label) in samples.iter().zip(&labels) {
            assert_eq!(*z > 0.0, *label == 1, "{z} of class {label}");
        }
        assert!(fitted.sample(3, &labels[..2], 0, 1.0).is_err());
    }
}
