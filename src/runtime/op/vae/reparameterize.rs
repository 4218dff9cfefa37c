//! The reparameterization trick: a sample from N(mu, exp(log_std)^2) that is differentiable in mu and log_std.

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, grad, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec, pad4};

/// Kind of the operation.
pub(crate) const NAME: &str = "reparameterize";

/// z = mu + exp(log_std) * eps. `h`: `[n, 2L, 1, 1]`, mu in channels `0..L` and log_std in `L..2L`; `eps` (standard normal noise)
/// and `z`: `[n, L, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Reparameterize {
    h: Shape,
    z: Shape,
}

impl Reparameterize {
    /// Creates the sampling for an encoder output and noise of these shapes.
    ///
    /// # Errors
    ///
    /// If `h` has an odd number of channels or more than one position, or `eps` does not have half its channels.
    pub fn new(h: Shape, eps: Shape) -> Result<Self> {
        let h = h.checked(NAME, "h")?;
        if h.c % 2 != 0 || h.h != 1 || h.w != 1 {
            return Err(Error::argument("shape of h of reparameterize", "[n, 2 * latent, 1, 1]", h));
        }
        let z = h.with_c(h.c / 2);
        if eps != z {
            return Err(Error::shape(NAME, "eps", z, eps));
        }
        Ok(Self { h, z })
    }
}

impl Reference for Reparameterize {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let latent = self.z.c;
        match (pass, reads, writes) {
            ("forward", [h, eps], [z]) => {
                let rows = h.chunks_exact(2 * latent).zip(eps.chunks_exact(latent));
                for (z, (h, eps)) in z.chunks_exact_mut(latent).zip(rows) {
                    let (mu, log_std) = h.split_at(latent);
                    for (((z, mu), log_std), eps) in z.iter_mut().zip(mu).zip(log_std).zip(eps) {
                        *z = *mu + log_std.exp() * *eps;
                    }
                }
            }
            ("backward", [h, eps, dz], [dh]) => {
                let rows = h.chunks_exact(2 * latent).zip(eps.chunks_exact(latent)).zip(dz.chunks_exact(latent));
                for (dh, ((h, eps), dz)) in dh.chunks_exact_mut(2 * latent).zip(rows) {
                    let (dmu, dlog_std) = dh.split_at_mut(latent);
                    dmu.copy_from_slice(dz);
                    for (((d, log_std), eps), dz) in dlog_std.iter_mut().zip(&h[latent..]).zip(eps).zip(dz) {
                        *d = *dz * (log_std.exp() * *eps);
                    }
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for Reparameterize {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("h", Role::Input, Spec::nhwc(self.h)),
            Operand::new("eps", Role::Constant, Spec::nhwc(self.z)),
            Operand::new("z", Role::Output, Spec::nhwc(self.z)),
        ]
    }

    fn passes(&self) -> Passes {
        let backward = vec![Pass::new("backward", [operand("h"), operand("eps"), grad("z")], [grad("h")])];
        Passes { backward, ..Passes::only(Pass::forward(["h", "eps"], ["z"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["scalar"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let (wide, narrow) = (pad4(self.h.c), pad4(self.z.c));
        let len = self.h.n * if pass == "forward" { narrow } else { wide };
        let params =
            Params { len: len as u32, latent: self.z.c as u32, wide: wide as u32, narrow: narrow as u32 }.bytes();
        let [h, eps, z] = ["h", "eps", "z"].map(operand);
        Ok(Lowered::one(match pass {
            "forward" => elementwise(&FORWARD, [h, eps, z], len, params),
            "backward" => {
                elementwise(&BACKWARD, [h, eps, grad("z"), grad("h")], len, params).accumulate("ACC", target.acc(0))
            }
            _ => return Err(no_such_pass(self, pass)),
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 3.0 * self.z.len() as f64)
    }
}

kernel_params! {
    /// See `shaders/vae/reparameterize.wgsl`.
    Params { len: u32, latent: u32, wide: u32, narrow: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "reparameterize.forward",
    variant: "scalar",
    file: "vae/reparameterize.wgsl",
    source: include_str!("../../../../shaders/vae/reparameterize.wgsl"),
    defines: &[("BACKWARD", 0)],
    bindings: &[("h", Read), ("eps", Read), ("z", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "reparameterize.backward",
    defines: &[("BACKWARD", 1)],
    bindings: &[("h", Read), ("eps", Read), ("dz", Read), ("dh", ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mismatched_shapes_are_rejected() {
        let z = Shape::new(2, 5, 1, 1);
        assert!(Reparameterize::new(z.with_c(10), z).is_ok());
        assert!(Reparameterize::new(z.with_c(11), z).is_err());
        assert!(Reparameterize::new(z.with_c(12), z).is_err());
        assert!(Reparameterize::new(z.with_c(10), z.with_n(1)).is_err());
        assert!(Reparameterize::new(Shape::new(2, 10, 2, 1), Shape::new(2, 5, 2, 1)).is_err());
    }
}
