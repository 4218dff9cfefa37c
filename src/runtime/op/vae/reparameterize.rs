//! The reparameterization trick: a draw from N(mu, exp(log_std)^2) that is differentiable in mu and log_std.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::{Case, Cost, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec, pad4};

/// z = mu + exp(log_std) * eps. `h`: `[n, 2L, 1, 1]`, mu in channels `0..L` and log_std in `L..2L`; `eps` (standard normal noise)
/// and `z`: `[n, L, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct Reparameterize {
    h: Shape,
    z: Shape,
}

impl Reparameterize {
    /// For an encoder output and noise of these shapes. Refuses an odd number of channels, pictures, and noise that does not fit.
    pub fn new(h: Shape, eps: Shape) -> Result<Self> {
        let h = h.checked(INFO.name, "h")?;
        if h.c % 2 != 0 || h.h != 1 || h.w != 1 {
            return Err(Error::argument("shape of h of reparameterize", "[n, 2 * latent, 1, 1]", h));
        }
        let z = h.with_c(h.c / 2);
        if eps != z {
            return Err(Error::shape(INFO.name, "eps", z, eps));
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
                Ok(())
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
                Ok(())
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }
}

impl Op for Reparameterize {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("h", Role::Input, Spec::nhwc(self.h)),
            Operand::new("eps", Role::Constant, Spec::nhwc(self.z)),
            Operand::new("z", Role::Output, Spec::nhwc(self.z)),
        ]
    }

    fn passes(&self) -> Passes {
        Passes {
            forward: Pass::forward(["h", "eps"], ["z"]),
            backward: vec![Pass::new("backward", [operand("h"), operand("eps"), grad("z")], [grad("h")])],
            aliases: vec![],
        }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["scalar"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let (wide, narrow) = (pad4(self.h.c), pad4(self.z.c));
        let (dispatch, columns) = match pass {
            "forward" => (Dispatch::new(&FORWARD, [operand("h"), operand("eps"), operand("z")]), narrow),
            "backward" => {
                let bindings = [operand("h"), operand("eps"), grad("z"), grad("h")];
                (Dispatch::new(&BACKWARD, bindings).accumulate("ACC", target.acc(0)), wide)
            }
            _ => return Err(no_such_pass(self, pass)),
        };
        let len = self.h.n * columns;
        let params =
            Params { len: len as u32, latent: self.z.c as u32, wide: wide as u32, narrow: narrow as u32 }.bytes();
        Ok(Lowered::one(Dispatch { params, workgroups: workgroups(len, 64), ..dispatch }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 3.0 * self.z.len() as f64)
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/reparameterize.wgsl`.
    Params { len: u32, latent: u32, wide: u32, narrow: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "reparameterize.forward",
    variant: "scalar",
    file: "vae/reparameterize.wgsl",
    source: include_str!("../../../../shaders/vae/reparameterize.wgsl"),
    entry: "forward",
    bindings: &[("h", Access::Read), ("eps", Access::Read), ("z", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "reparameterize.backward",
    entry: "backward",
    bindings: &[("h", Access::Read), ("eps", Access::Read), ("dz", Access::Read), ("dh", Access::ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "reparameterize",
    kernels: || vec![&FORWARD, &BACKWARD],
    cases: || {
        let mut cases = vec![];
        for (name, n, latent) in [("one", 1, 1), ("odd", 7, 5), ("even_padded", 3, 6), ("model", 32, 16)] {
            let z = Shape::new(n, latent, 1, 1);
            cases.push(Case::new(name, Reparameterize::new(z.with_c(2 * latent), z)?));
        }
        Ok(cases)
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_shapes_are_refused() {
        let z = Shape::new(2, 5, 1, 1);
        assert!(Reparameterize::new(z.with_c(10), z).is_ok());
        assert!(Reparameterize::new(z.with_c(11), z).is_err());
        assert!(Reparameterize::new(z.with_c(12), z).is_err());
        assert!(Reparameterize::new(z.with_c(10), z.with_n(1)).is_err());
        assert!(Reparameterize::new(Shape::new(2, 10, 2, 1), Shape::new(2, 5, 2, 1)).is_err());
    }
}
