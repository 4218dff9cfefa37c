//! The loss of the VAE: the negative evidence lower bound per dimension, and the gradients from which the backward pass starts.

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Dispatch, Kernel, Lowered, grad, kernel_params, operand, workgroups};
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::{Shape, Spec, pad4};

/// Kind of the operation.
pub(crate) const NAME: &str = "elbo";

/// With N images of D = C * H * W values:
///
/// - recon = (0.5 * sum (x - mean)^2 + 0.5 * ln(2 pi) * N * D) / (N * D): the negative log-likelihood of a Gaussian of unit variance,
/// - kl = 0.5 * sum (mu^2 + exp(2 log_std) - 1 - 2 log_std) / (N * D),
/// - total = recon + beta * kl.
///
/// `x`, `mean`: `[n, c, h, w]`. `h`: `[n, 2 * latent, 1, 1]`, mu before log_std. `beta`: one value. `terms`: total, recon, kl.
///
/// With seeds, the forward pass also computes `seed_mean` and `seed_h`, the gradients of total with respect to `mean` and `h`.
#[derive(Clone, Copy, Debug)]
pub struct Elbo {
    x: Shape,
    h: Shape,
    seeds: bool,
}

/// 0.5 ln(2 pi): the normalization constant of a unit Gaussian, in nats per dimension.
pub(crate) const HALF_LN_2PI: f64 = 0.918_938_533_204_672_7;

impl Elbo {
    /// Creates the loss of images `x`, their reconstructions `mean` and the encoder output `h`; `seeds` adds the gradients.
    ///
    /// # Errors
    ///
    /// If the shapes do not match.
    pub fn new(x: Shape, mean: Shape, h: Shape, seeds: bool) -> Result<Self> {
        let (x, h) = (x.checked(NAME, "x")?, h.checked(NAME, "h")?);
        if mean != x {
            return Err(Error::shape(NAME, "mean", x, mean));
        }
        if h.n != x.n || h.c % 2 != 0 || h.h != 1 || h.w != 1 {
            return Err(Error::argument("shape of h of elbo", format!("[{}, 2 * latent, 1, 1]", x.n), h));
        }
        Ok(Self { x, h, seeds })
    }

    fn latent(&self) -> usize {
        self.h.c / 2
    }
}

impl Reference for Elbo {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[x, mean, h, &[beta]], [terms, seeds @ ..]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        let &mut [ref mut total, ref mut recon, ref mut kl] = &mut **terms else {
            return Err(no_such_pass(self, pass));
        };
        let (half, one, two) = (T::from_f64(0.5), T::from_f64(1.0), T::from_f64(2.0));
        let count = T::from_usize(self.x.len());
        let squares = blocked_sum(x.iter().zip(mean).map(|(&x, &m)| (x - m).squared()));
        let divergence = blocked_sum(h.chunks_exact(self.h.c).flat_map(|row| {
            let (mu, log_std) = row.split_at(self.latent());
            mu.iter().zip(log_std).map(|(&m, &s)| m.squared() + ((two * s).exp() - one - two * s))
        }));
        *recon = half * squares / count + T::from_f64(HALF_LN_2PI);
        *kl = half * divergence / count;
        *total = *recon + beta * *kl;
        if let [seed_mean, seed_h] = seeds {
            for ((seed, &m), &x) in seed_mean.iter_mut().zip(mean).zip(x) {
                *seed = (m - x) / count;
            }
            for (seed, row) in seed_h.chunks_exact_mut(self.h.c).zip(h.chunks_exact(self.h.c)) {
                for (i, (seed, &v)) in seed.iter_mut().zip(row).enumerate() {
                    let slope = if i < self.latent() { v } else { (two * v).exp() - one };
                    *seed = beta * slope / count;
                }
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
            Operand::new("beta", Role::Constant, Spec::flat(1)),
            Operand::new("terms", Role::Output, Spec::flat(3)),
        ];
        if self.seeds {
            operands.push(Operand::new("seed_mean", Role::Saved, images));
            operands.push(Operand::new("seed_h", Role::Saved, h));
        }
        operands
    }

    fn passes(&self) -> Passes {
        let inputs = ["x", "mean", "h", "beta"];
        if !self.seeds {
            return Passes::only(Pass::forward(inputs, ["terms"]));
        }
        let aliases = vec![(grad("mean"), operand("seed_mean")), (grad("h"), operand("seed_h"))];
        Passes { aliases, ..Passes::only(Pass::forward(inputs, ["terms", "seed_mean", "seed_h"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["two_stage"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::nhwc(self.x).device_bytes() / 16;
        let partials = workgroups(len, SPAN);
        let stride = pad4(self.h.c);
        let params = Params {
            len: len as u32,
            partials: partials as u32,
            elements: (self.h.n * stride) as u32,
            stride: stride as u32,
            latent: self.latent() as u32,
            scale: (1.0 / self.x.len() as f64) as f32,
        }
        .bytes();
        let [x, mean, h, beta, terms, seed_mean, seed_h] =
            ["x", "mean", "h", "beta", "terms", "seed_mean", "seed_h"].map(|name| Bind::from(operand(name)));
        let sums = Bind::Scratch(0);
        let (recon, finish) = if self.seeds {
            let recon = Dispatch::new(&RECON_SEEDS, [x, mean, sums, seed_mean]);
            (recon, Dispatch::new(&FINISH_SEEDS, [sums, h, beta, terms, seed_h]))
        } else {
            (Dispatch::new(&RECON, [x, mean, sums]), Dispatch::new(&FINISH, [sums, h, beta, terms]))
        };
        let recon = Dispatch { params: params.clone(), workgroups: partials, ..recon };
        Ok(Lowered { dispatches: vec![recon, Dispatch { params, ..finish }], scratch: vec![4 * pad4(partials)] })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let each = if self.seeds { (4, 8) } else { (3, 6) };
        Cost::of(self, pass, (each.0 * self.x.len() + each.1 * self.h.len()) as f64)
    }
}

kernel_params! {
    /// See `shaders/vae/elbo.wgsl`.
    Params { len: u32, partials: u32, elements: u32, stride: u32, latent: u32, scale: f32 }
}

/// Invocations of a workgroup in the first dispatch.
const WIDTH: usize = 64;
/// Vec4s that each of them sums.
const ITEMS: usize = 16;
const SPAN: usize = WIDTH * ITEMS;
/// Invocations of the workgroup of the second dispatch.
const FINISH_WIDTH: usize = 256;

const fn defines(width: usize, seeds: bool) -> [(&'static str, i64); 3] {
    [("SUM_WIDTH", width as i64), ("ITEMS", ITEMS as i64), ("SEEDS", seeds as i64)]
}

static RECON: Kernel = Kernel {
    name: "elbo.forward.recon",
    variant: "two_stage",
    file: "vae/elbo.wgsl",
    source: include_str!("../../../../shaders/vae/elbo.wgsl"),
    entry: "recon",
    defines: &defines(WIDTH, false),
    bindings: &[("x", Read), ("mean", Read), ("sums", ReadWrite)],
    params: Params::FIELDS,
    workgroup: [WIDTH as u32, 1, 1],
    ..Kernel::DEFAULT
};

static RECON_SEEDS: Kernel = Kernel {
    name: "elbo.forward.recon_seeds",
    defines: &defines(WIDTH, true),
    bindings: &[("x", Read), ("mean", Read), ("sums", ReadWrite), ("seed_mean", ReadWrite)],
    ..RECON
};

static FINISH: Kernel = Kernel {
    name: "elbo.forward.finish",
    entry: "finish",
    defines: &defines(FINISH_WIDTH, false),
    bindings: &[("partials", Read), ("h", Read), ("beta", Read), ("terms", ReadWrite)],
    workgroup: [FINISH_WIDTH as u32, 1, 1],
    ..RECON
};

static FINISH_SEEDS: Kernel = Kernel {
    name: "elbo.forward.finish_seeds",
    defines: &defines(FINISH_WIDTH, true),
    bindings: &[("partials", Read), ("h", Read), ("beta", Read), ("terms", ReadWrite), ("seed_h", ReadWrite)],
    ..FINISH
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&RECON, &RECON_SEEDS, &FINISH, &FINISH_SEEDS];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatched_shapes_are_rejected() {
        let x = Shape::new(2, 3, 4, 4);
        assert!(Elbo::new(x, x.with_c(4), Shape::new(2, 8, 1, 1), true).is_err());
        for h in [Shape::new(1, 8, 1, 1), Shape::new(2, 7, 1, 1), Shape::new(2, 8, 2, 1), Shape::new(2, 0, 1, 1)] {
            assert!(Elbo::new(x, x, h, true).is_err(), "{h}");
        }
    }
}
