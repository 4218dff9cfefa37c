//! The loss: the evidence lower bound of the VAE per dimension, and the gradients that start the backward pass.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::{
    Case, Cost, Distribution, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::shape::{Shape, Spec, pad4};

/// With N the batch and D = C * H * W:
///
/// - recon = (0.5 * sum (x - mean)^2 + 0.5 * ln(2 pi) * N * D) / (N * D): the Gaussian negative log-likelihood of unit variance,
/// - kl = 0.5 * sum (mu^2 + exp(2 log_std) - 1 - 2 log_std) / (N * D),
/// - total = recon + beta * kl.
///
/// `x`, `mean`: `[n, c, h, w]`. `h`: `[n, 2 * latent, 1, 1]`, mu before log_std. `beta`: one value.
/// `terms`: total, recon, kl. With seeds, `seed_mean` and `seed_h` are the gradients of total with respect to `mean` and `h`; they
/// cost no pass of their own.
#[derive(Clone, Copy, Debug)]
pub struct Elbo {
    x: Shape,
    h: Shape,
    seeds: bool,
}

const HALF_LN_2PI: f64 = 0.918_938_533_204_672_7;

impl Elbo {
    /// For pixels `x`, their reconstruction `mean` and the encoder's output `h`; `seeds` asks for the gradients too.
    pub fn new(x: Shape, mean: Shape, h: Shape, seeds: bool) -> Result<Self> {
        let (x, h) = (x.checked("elbo", "x")?, h.checked("elbo", "h")?);
        if mean != x {
            return Err(Error::shape("elbo", "mean", x, mean));
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
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let (pixels, h) = (Spec::nhwc(self.x), Spec::nhwc(self.h));
        let mut operands = vec![
            Operand::new("x", Role::Constant, pixels),
            Operand::new("mean", Role::Input, pixels),
            Operand::new("h", Role::Input, h),
            Operand::new("beta", Role::Constant, Spec::flat(1)),
            Operand::new("terms", Role::Output, Spec::flat(3)),
        ];
        if self.seeds {
            operands.push(Operand::new("seed_mean", Role::Saved, pixels));
            operands.push(Operand::new("seed_h", Role::Saved, h));
        }
        operands
    }

    fn passes(&self) -> Passes {
        let (mut writes, mut aliases) = (vec!["terms"], vec![]);
        if self.seeds {
            writes.extend(["seed_mean", "seed_h"]);
            aliases = vec![(grad("mean"), operand("seed_mean")), (grad("h"), operand("seed_h"))];
        }
        Passes { forward: Pass::forward(["x", "mean", "h", "beta"], writes), backward: vec![], aliases }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["two_stage"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        if pass != "forward" {
            return Err(no_such_pass(self, pass));
        }
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
        let (pixels, finish) = if self.seeds { (&PIXELS_SEEDS, &FINISH_SEEDS) } else { (&PIXELS, &FINISH) };
        let bindings = [operand("x").into(), operand("mean").into(), Bind::Scratch(0)];
        let mut pixels = Dispatch { params: params.clone(), workgroups: partials, ..Dispatch::new(pixels, bindings) };
        let bindings = [Bind::Scratch(0), operand("h").into(), operand("beta").into(), operand("terms").into()];
        let mut finish = Dispatch { params, ..Dispatch::new(finish, bindings) };
        if self.seeds {
            pixels.bindings.push(operand("seed_mean").into());
            finish.bindings.push(operand("seed_h").into());
        }
        Ok(Lowered { dispatches: vec![pixels, finish], scratch: vec![4 * pad4(partials)] })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let each = if self.seeds { (4, 8) } else { (3, 6) };
        Cost::of(self, pass, (each.0 * self.x.len() + each.1 * self.h.len()) as f64)
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/elbo.wgsl`.
    Params { len: u32, partials: u32, elements: u32, stride: u32, latent: u32, scale: f32 }
}

/// Lanes of a workgroup of the first stage, and vec4s that each of them sums.
const WIDTH: usize = 64;
const ITEMS: usize = 16;
const SPAN: usize = WIDTH * ITEMS;
/// Lanes of the one workgroup of the second stage.
const FINISH_WIDTH: usize = 256;

const fn defines(width: usize, seeds: bool) -> [(&'static str, i64); 3] {
    [("SUM_WIDTH", width as i64), ("ITEMS", ITEMS as i64), ("SEEDS", seeds as i64)]
}

static PIXELS: Kernel = Kernel {
    name: "elbo.forward.pixels",
    variant: "two_stage",
    file: "vae/elbo.wgsl",
    source: include_str!("../../../../shaders/vae/elbo.wgsl"),
    entry: "pixels",
    defines: &defines(WIDTH, false),
    bindings: &[("x", Access::Read), ("mean", Access::Read), ("sums", Access::ReadWrite)],
    params: Params::FIELDS,
    workgroup: [WIDTH as u32, 1, 1],
    ..Kernel::DEFAULT
};

static PIXELS_SEEDS: Kernel = Kernel {
    name: "elbo.forward.pixels_seeds",
    defines: &defines(WIDTH, true),
    bindings: &[
        ("x", Access::Read),
        ("mean", Access::Read),
        ("sums", Access::ReadWrite),
        ("seed_mean", Access::ReadWrite),
    ],
    ..PIXELS
};

static FINISH: Kernel = Kernel {
    name: "elbo.forward.finish",
    entry: "finish",
    defines: &defines(FINISH_WIDTH, false),
    bindings: &[("partials", Access::Read), ("h", Access::Read), ("beta", Access::Read), ("terms", Access::ReadWrite)],
    workgroup: [FINISH_WIDTH as u32, 1, 1],
    ..PIXELS
};

static FINISH_SEEDS: Kernel = Kernel {
    name: "elbo.forward.finish_seeds",
    defines: &defines(FINISH_WIDTH, true),
    bindings: &[
        ("partials", Access::Read),
        ("h", Access::Read),
        ("beta", Access::Read),
        ("terms", Access::ReadWrite),
        ("seed_h", Access::ReadWrite),
    ],
    ..FINISH
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "elbo",
    kernels: || vec![&PIXELS, &PIXELS_SEEDS, &FINISH, &FINISH_SEEDS],
    cases: || {
        let case = |name: &str, x: Shape, latent: usize, seeds: bool| {
            let elbo = Elbo::new(x, x, Shape::new(x.n, 2 * latent, 1, 1), seeds)?;
            Ok(Case::new(name, elbo).fill("beta", Distribution::Constant(0.75)))
        };
        Ok(vec![
            case("one", Shape::new(1, 1, 1, 1), 1, true)?,
            case("odd", Shape::new(3, 5, 7, 9), 5, true)?,
            // One vec4 more than a workgroup takes, and more latent numbers than the last one has lanes.
            case("tail", Shape::new(41, 4, 5, 5), 7, true)?,
            case("evaluate", Shape::new(2, 3, 8, 8), 16, false)?,
            case("model", Shape::new(16, 3, 32, 32), 16, true)?,
        ])
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_checked() {
        let x = Shape::new(2, 3, 4, 4);
        assert!(Elbo::new(x, x.with_c(4), Shape::new(2, 8, 1, 1), true).is_err());
        for h in [Shape::new(1, 8, 1, 1), Shape::new(2, 7, 1, 1), Shape::new(2, 8, 2, 1), Shape::new(2, 0, 1, 1)] {
            assert!(Elbo::new(x, x, h, true).is_err(), "{h}");
        }
    }
}
