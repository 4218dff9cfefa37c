//! The loss of the VAE: the negative evidence lower bound per dimension, and the gradients from which the backward pass starts.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Dispatch, Kernel, Lowered, grad, kernel_params, operand, tree_levels, workgroups};
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::{Shape, Spec, pad4};

/// Kind of the operation.
pub(crate) const NAME: &str = "elbo";

/// The decoder's distribution of a pixel around its decoded value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Likelihood {
    /// A Gaussian of variance 1.
    #[default]
    Unit,
    /// A Gaussian with one variance for all pixels, at its maximum-likelihood value: the mean squared error of the batch (Rybkin et
    /// al., arXiv:2006.13202). Outside training it is the running average of that value.
    Optimal,
}

impl FromStr for Likelihood {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "unit" => Ok(Self::Unit),
            "optimal" => Ok(Self::Optimal),
            _ => Err(Error::Unknown { kind: "likelihood", name: name.to_owned(), known: "unit, optimal".to_owned() }),
        }
    }
}

/// Configuration of [`Elbo`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ElboConfig {
    /// Distribution of the pixels.
    pub likelihood: Likelihood,
    /// Whether to compute the gradients, and for [`Likelihood::Optimal`] to take the variance from the batch and to update its running
    /// average.
    pub training: bool,
}

/// With N images of D = C * H * W values:
///
/// - mse = sum (x - mean)^2 / (N * D),
/// - recon = 0.5 * (ln(2 pi s2) + mse / s2): the negative log-likelihood per dimension of a Gaussian of variance s2, which is 1 or, for
///   the optimal likelihood, mse in training and `variance` in evaluation,
/// - `kl_dims`: 0.5 * sum_n (mu^2 + exp(2 log_std) - 1 - 2 log_std) / N for each latent dimension, in nats,
/// - kl = sum `kl_dims` / D,
/// - total = recon + beta * sum max(`kl_dims`, free) / D: no dimension gains by a divergence below `free` nats (Kingma et al.,
///   arXiv:1606.04934).
///
/// `x`, `mean`: `[n, c, h, w]`. `h`: `[n, 2 * latent, 1, 1]`, mu before log_std. `objective`: beta, free. `terms`: total, recon, kl,
/// mse. `kl_dims`: one value for each latent dimension. `variance`, for the optimal likelihood: one value, which training moves by a
/// tenth of the way to s2.
///
/// In training the forward pass also computes `seed_mean` and `seed_h`, the gradients of total with respect to `mean` and `h`.
#[derive(Clone, Copy, Debug)]
pub struct Elbo {
    x: Shape,
    h: Shape,
    config: ElboConfig,
    /// Share of the batch in the running average of the variance.
    momentum: f64,
}

/// ln(2 pi): twice the normalization constant of a unit Gaussian, in nats per dimension.
pub(crate) const LN_2PI: f64 = 1.837_877_066_409_345_3;

/// Share of the batch in the running average of the variance, unless it is changed.
const MOMENTUM: f64 = 0.1;

/// Smallest variance of the optimal likelihood, which keeps it finite where all images are reconstructed exactly: a standard deviation
/// of an eighth of a level.
const MIN_VARIANCE: f64 = 1e-6;

impl Elbo {
    /// Creates the loss of images `x`, their reconstructions `mean` and the encoder output `h`.
    ///
    /// # Errors
    ///
    /// If the shapes do not match.
    pub fn new(x: Shape, mean: Shape, h: Shape, config: ElboConfig) -> Result<Self> {
        let (x, h) = (x.checked(NAME, "x")?, h.checked(NAME, "h")?);
        if mean != x {
            return Err(Error::shape(NAME, "mean", x, mean));
        }
        if h.n != x.n || h.c % 2 != 0 || h.h != 1 || h.w != 1 {
            return Err(Error::argument("shape of h of elbo", format!("[{}, 2 * latent, 1, 1]", x.n), h));
        }
        Ok(Self { x, h, config, momentum: MOMENTUM })
    }

    /// The same loss with another share of the batch in the running average of the variance.
    #[must_use]
    pub(crate) fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum, ..self }
    }

    /// Share of the batch in the running average of the variance, if the loss has one.
    pub(crate) fn momentum(&self) -> Option<f64> {
        self.optimal().then_some(self.momentum)
    }

    fn latent(&self) -> usize {
        self.h.c / 2
    }

    fn optimal(&self) -> bool {
        self.config.likelihood == Likelihood::Optimal
    }

    /// The optimal variance for a mean squared error. NaN stays NaN.
    fn optimal_variance<T: Real>(mse: T) -> T {
        let least = T::from_f64(MIN_VARIANCE);
        if mse < least { least } else { mse }
    }

    /// KL divergence of each latent dimension, averaged over the images.
    fn divergences<T: Real>(&self, h: &[T], kl_dims: &mut [T]) {
        let (latent, one, two) = (self.latent(), T::from_f64(1.0), T::from_f64(2.0));
        let images = T::from_usize(self.x.n);
        for (j, kl) in kl_dims.iter_mut().enumerate() {
            let terms = h.chunks_exact(self.h.c).map(|row| {
                let (mu, log_std) = (row[j], row[latent + j]);
                mu.squared() + ((two * log_std).exp() - one - two * log_std)
            });
            *kl = T::from_f64(0.5) * blocked_sum(terms) / images;
        }
    }

    /// Gradients of the total loss with respect to `mean` and `h`.
    fn gradients<T: Real>(&self, [x, mean, h, kl_dims]: [&[T]; 4], [beta, free, s2]: [T; 3], seeds: [&mut [T]; 2]) {
        let (latent, one, two) = (self.latent(), T::from_f64(1.0), T::from_f64(2.0));
        let count = T::from_usize(self.x.len());
        let [seed_mean, seed_h] = seeds;
        for ((seed, &m), &x) in seed_mean.iter_mut().zip(mean).zip(x) {
            *seed = (m - x) / count;
            if self.optimal() {
                *seed = *seed / s2;
            }
        }
        for (seed, row) in seed_h.chunks_exact_mut(self.h.c).zip(h.chunks_exact(self.h.c)) {
            for (i, (seed, &v)) in seed.iter_mut().zip(row).enumerate() {
                let slope = if i < latent { v } else { (two * v).exp() - one };
                let free = kl_dims[i % latent] < free;
                *seed = if free { T::zero() } else { beta * slope / count };
            }
        }
    }
}

impl Reference for Elbo {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[x, mean, h, &[beta, free], ref variance @ ..], [terms, kl_dims, rest @ ..]) =
            (pass, reads, writes)
        else {
            return Err(no_such_pass(self, pass));
        };
        let &mut [ref mut total, ref mut recon, ref mut kl, ref mut mse] = &mut **terms else {
            return Err(no_such_pass(self, pass));
        };
        let (half, ln_2pi) = (T::from_f64(0.5), T::from_f64(LN_2PI));
        *mse = blocked_sum(x.iter().zip(mean).map(|(&x, &m)| (x - m).squared())) / T::from_usize(self.x.len());
        let s2 = match variance {
            &[&[running]] => running,
            _ => Self::optimal_variance(*mse),
        };
        *recon = if self.optimal() { half * (s2.ln() + *mse / s2 + ln_2pi) } else { half * *mse + half * ln_2pi };
        self.divergences(h, kl_dims);
        let dims = T::from_usize(self.x.len() / self.x.n);
        *kl = blocked_sum(kl_dims.iter().copied()) / dims;
        let missing = blocked_sum(kl_dims.iter().map(|&kl| (free - kl).relu())) / dims;
        *total = *recon + beta * (*kl + missing);
        if let [seed_mean, seed_h, running @ ..] = rest {
            self.gradients([x, mean, h, kl_dims], [beta, free, s2], [seed_mean, seed_h]);
            if let [[running]] = running {
                let momentum = T::from_f64(self.momentum);
                *running = (T::from_f64(1.0) - momentum) * *running + momentum * s2;
            }
        }
        Ok(())
    }
}

impl Op for Elbo {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let (images, h) = (Spec::nhwc(self.x), Spec::nhwc(self.h));
        let mut operands = vec![
            Operand::new("x", Role::Constant, images),
            Operand::new("mean", Role::Input, images),
            Operand::new("h", Role::Input, h),
            Operand::new("objective", Role::Constant, Spec::flat(2)),
            Operand::new("terms", Role::Output, Spec::flat(4)),
            Operand::new("kl_dims", Role::Output, Spec::flat(self.latent())),
        ];
        if self.optimal() {
            operands.push(Operand::new("variance", Role::State(1.0), Spec::vector(1)));
        }
        if self.config.training {
            operands.push(Operand::new("seed_mean", Role::Saved, images));
            operands.push(Operand::new("seed_h", Role::Saved, h));
        }
        operands
    }

    fn passes(&self) -> Passes {
        let (inputs, outputs) = (["x", "mean", "h", "objective"], ["terms", "kl_dims"]);
        let variance = self.optimal().then_some("variance");
        if !self.config.training {
            return Passes::only(Pass::forward(inputs.into_iter().chain(variance), outputs));
        }
        let forward = Pass::forward(inputs, outputs.into_iter().chain(["seed_mean", "seed_h"])).updating(variance);
        let aliases = vec![(grad("mean"), operand("seed_mean")), (grad("h"), operand("seed_h"))];
        Passes { aliases, ..Passes::only(forward) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["two_stage"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let (latent, dims) = (self.latent(), self.x.len() / self.x.n);
        let len = Spec::nhwc(self.x).device_bytes() / 16;
        let partials = workgroups(len, SPAN);
        let stride = pad4(self.h.c);
        let params = Params {
            len: len as u32,
            partials: partials as u32,
            elements: (self.h.n * stride) as u32,
            images: self.x.n as u32,
            stride: stride as u32,
            latent: latent as u32,
            scale: (1.0 / self.x.len() as f64) as f32,
            per_image: (1.0 / self.x.n as f64) as f32,
            per_dim: (1.0 / dims as f64) as f32,
        }
        .bytes();
        let [x, mean, h, objective, terms, kl_dims, seed_mean, seed_h, variance] =
            ["x", "mean", "h", "objective", "terms", "kl_dims", "seed_mean", "seed_h", "variance"]
                .map(|name| Bind::from(operand(name)));
        let sums = Bind::Scratch(0);
        let momentum = ("MOMENTUM", self.momentum);
        let elements = if self.config.training { self.h.n * stride } else { 0 };
        let finish_iterations: usize = [partials, latent, elements].iter().map(|n| n.div_ceil(FINISH_WIDTH)).sum();
        let (training, optimal) = (self.config.training, self.optimal());
        let squares = if training && !optimal {
            Dispatch::new(&SQUARES_SEEDS, [x, mean, sums, seed_mean])
        } else {
            Dispatch::new(&SQUARES, [x, mean, sums])
        };
        let loss = [sums, kl_dims, objective, terms];
        let finish = match (training, optimal) {
            (false, false) => Dispatch::new(&FINISH, loss),
            (false, true) => Dispatch::new(&FINISH_OPTIMAL, loss.into_iter().chain([variance])),
            (true, false) => Dispatch::new(&FINISH_SEEDS, loss.into_iter().chain([h, seed_h])),
            (true, true) => {
                let bindings = loss.into_iter().chain([h, seed_h, variance]);
                Dispatch { overrides: vec![momentum], ..Dispatch::new(&FINISH_OPTIMAL_SEEDS, bindings) }
            }
        };
        let divergence = Dispatch::new(&DIVERGENCE, [h, kl_dims]);
        let divergence = divergence.iterations(self.x.n.div_ceil(WIDTH) + tree_levels(WIDTH));
        let mut dispatches = vec![
            Dispatch { workgroups: partials, ..squares.iterations(ITEMS + tree_levels(WIDTH)) },
            Dispatch { workgroups: pad4(latent), ..divergence },
            finish.iterations(finish_iterations + tree_levels(FINISH_WIDTH)),
        ];
        if training && optimal {
            let gradient = Dispatch::new(&GRADIENT, [x, mean, terms, seed_mean]);
            dispatches.push(Dispatch { workgroups: workgroups(len, WIDTH), ..gradient });
        }
        for dispatch in &mut dispatches {
            dispatch.params.clone_from(&params);
        }
        Ok(Lowered { dispatches, scratch: vec![4 * pad4(partials)] })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let each = if self.config.training { (4, 8) } else { (3, 6) };
        Cost::of(self, pass, (each.0 * self.x.len() + each.1 * self.h.len()) as f64)
    }
}

kernel_params! {
    /// See `shaders/vae/elbo.wgsl`.
    Params {
        len: u32,
        partials: u32,
        elements: u32,
        images: u32,
        stride: u32,
        latent: u32,
        scale: f32,
        per_image: f32,
        per_dim: f32,
    }
}

/// Invocations of a workgroup in all dispatches but `finish`.
const WIDTH: usize = 64;
/// Vec4s that each of them sums.
const ITEMS: usize = 16;
const SPAN: usize = WIDTH * ITEMS;
/// Invocations of the workgroup of `finish`.
const FINISH_WIDTH: usize = 256;

const fn defines(width: usize, seeds: bool, optimal: bool) -> [(&'static str, i64); 4] {
    [("SUM_WIDTH", width as i64), ("ITEMS", ITEMS as i64), ("SEEDS", seeds as i64), ("OPTIMAL", optimal as i64)]
}

static SQUARES: Kernel = Kernel {
    name: "elbo.forward.squares",
    variant: "two_stage",
    file: "vae/elbo.wgsl",
    source: include_str!("../../../../shaders/vae/elbo.wgsl"),
    entry: "squares",
    defines: &defines(WIDTH, false, false),
    bindings: &[("x", Read), ("mean", Read), ("sums", ReadWrite)],
    params: Params::FIELDS,
    workgroup: [WIDTH as u32, 1, 1],
    ..Kernel::DEFAULT
};

static SQUARES_SEEDS: Kernel = Kernel {
    name: "elbo.forward.squares_seeds",
    defines: &defines(WIDTH, true, false),
    bindings: &[("x", Read), ("mean", Read), ("sums", ReadWrite), ("seed_mean", ReadWrite)],
    ..SQUARES
};

static DIVERGENCE: Kernel = Kernel {
    name: "elbo.forward.divergence",
    entry: "divergence",
    bindings: &[("posterior", Read), ("divergences", ReadWrite)],
    ..SQUARES
};

static GRADIENT: Kernel = Kernel {
    name: "elbo.forward.gradient",
    entry: "gradient",
    defines: &defines(WIDTH, true, true),
    bindings: &[("x", Read), ("mean", Read), ("losses", Read), ("seed_mean", ReadWrite)],
    ..SQUARES
};

static FINISH: Kernel = Kernel {
    name: "elbo.forward.finish",
    entry: "finish",
    defines: &defines(FINISH_WIDTH, false, false),
    bindings: &[("partials", Read), ("kl_dims", Read), ("objective", Read), ("terms", ReadWrite)],
    workgroup: [FINISH_WIDTH as u32, 1, 1],
    ..SQUARES
};

static FINISH_SEEDS: Kernel = Kernel {
    name: "elbo.forward.finish_seeds",
    defines: &defines(FINISH_WIDTH, true, false),
    bindings: &[
        ("partials", Read),
        ("kl_dims", Read),
        ("objective", Read),
        ("terms", ReadWrite),
        ("h", Read),
        ("seed_h", ReadWrite),
    ],
    ..FINISH
};

static FINISH_OPTIMAL: Kernel = Kernel {
    name: "elbo.forward.finish_optimal",
    defines: &defines(FINISH_WIDTH, false, true),
    bindings: &[("partials", Read), ("kl_dims", Read), ("objective", Read), ("terms", ReadWrite), ("variance", Read)],
    ..FINISH
};

static FINISH_OPTIMAL_SEEDS: Kernel = Kernel {
    name: "elbo.forward.finish_optimal_seeds",
    defines: &defines(FINISH_WIDTH, true, true),
    bindings: &[
        ("partials", Read),
        ("kl_dims", Read),
        ("objective", Read),
        ("terms", ReadWrite),
        ("h", Read),
        ("seed_h", ReadWrite),
        ("variance", ReadWrite),
    ],
    overrides: &["MOMENTUM"],
    ..FINISH
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] =
    &[&SQUARES, &SQUARES_SEEDS, &DIVERGENCE, &FINISH, &FINISH_SEEDS, &FINISH_OPTIMAL, &FINISH_OPTIMAL_SEEDS, &GRADIENT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatched_shapes_are_rejected() {
        let x = Shape::new(2, 3, 4, 4);
        let config = ElboConfig { likelihood: Likelihood::Unit, training: true };
        assert!(Elbo::new(x, x.with_c(4), Shape::new(2, 8, 1, 1), config).is_err());
        for h in [Shape::new(1, 8, 1, 1), Shape::new(2, 7, 1, 1), Shape::new(2, 8, 2, 1), Shape::new(2, 0, 1, 1)] {
            assert!(Elbo::new(x, x, h, config).is_err(), "{h}");
        }
    }
}
