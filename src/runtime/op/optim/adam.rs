//! AdamW: the update of all parameters in one dispatch.

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::optim::StepScalars;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "adam";

/// The hyperparameters of Adam that do not change during a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
}

impl Default for AdamConfig {
    /// PyTorch's defaults: 0.9, 0.999, 1e-8.
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.999, eps: 1e-8 }
    }
}

impl AdamConfig {
    /// Returns `1 - beta1^t` and `1 - beta2^t` for [`StepScalars`]. `step` counts from 0, so t is `step + 1`.
    #[must_use]
    pub fn bias_corrections(&self, step: u64) -> (f32, f32) {
        let t = (step + 1) as f64;
        ((1.0 - self.beta1.powf(t)) as f32, (1.0 - self.beta2.powf(t)) as f32)
    }
}

/// One step of PyTorch's AdamW, with `clip_grad_norm_` before it:
///
/// - g = grads * min(clip / (norm + 1e-6), 1) where clip > 0,
/// - params *= 1 - lr * weight_decay,
/// - m = beta1 * m + (1 - beta1) * g,
/// - v = beta2 * v + (1 - beta2) * g^2,
/// - params -= lr / bias_correction1 * m / (sqrt(v) / sqrt(bias_correction2) + eps).
///
/// Nothing changes unless the finite flag, the second value of `norm`, is 1.
///
/// `grads`, `params`, `m`, `v`: flat buffers of all parameters, padding included. `norm`: from
/// [`GradNorm`](crate::runtime::op::GradNorm). `hyperparams`: [`StepScalars`], whose bias corrections must be computed from
/// [`Adam::config`].
#[derive(Clone, Copy, Debug)]
pub struct Adam {
    len: usize,
    config: AdamConfig,
}

impl Adam {
    /// Creates the update of `len` parameters.
    ///
    /// # Errors
    ///
    /// If a beta is not from 0 to below 1, or `eps` is not above zero.
    pub fn new(len: usize, config: AdamConfig) -> Result<Self> {
        Shape::vector(len).checked(NAME, "params")?;
        for (what, beta) in [("beta1", config.beta1), ("beta2", config.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::argument(format!("{what} of adam"), "a number from 0 to below 1", beta));
            }
        }
        if !(config.eps > 0.0 && config.eps.is_finite()) {
            return Err(Error::argument("eps of adam", "a positive number", config.eps));
        }
        Ok(Self { len, config })
    }

    /// The hyperparameters that it was created with.
    #[must_use]
    pub const fn config(&self) -> AdamConfig {
        self.config
    }
}

impl Reference for Adam {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[grads, norm, hyperparams], [params, m, v]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        let &[lr, bias_correction1, bias_correction2, weight_decay, clip] = hyperparams else {
            return Err(no_such_pass(self, pass));
        };
        let one = T::from_f64(1.0);
        if norm[1] != one {
            return Ok(());
        }
        let AdamConfig { beta1, beta2, eps } = self.config;
        let (rest1, rest2) = (T::from_f64(1.0 - beta1), T::from_f64(1.0 - beta2));
        let (beta1, beta2, eps) = (T::from_f64(beta1), T::from_f64(beta2), T::from_f64(eps));
        let rate = lr / bias_correction1;
        let root2 = bias_correction2.sqrt();
        let keep = one - lr * weight_decay;
        let scale = if clip > T::zero() { clip / (norm[0] + T::from_f64(1e-6)) } else { one };
        for (((p, m), v), &g) in params.iter_mut().zip(&mut **m).zip(&mut **v).zip(grads) {
            let g = if scale < one { g * scale } else { g };
            *m = beta1 * *m + rest1 * g;
            *v = beta2 * *v + rest2 * g.squared();
            *p = *p * keep - rate * (*m / (v.sqrt() / root2 + eps));
        }
        Ok(())
    }
}

impl Op for Adam {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::flat(self.len);
        vec![
            Operand::new("grads", Role::Constant, spec),
            Operand::new("norm", Role::Constant, Spec::flat(4)),
            Operand::new("hyperparams", Role::Constant, Spec::flat(StepScalars::LEN)),
            Operand::new("params", Role::State(0.0), spec),
            Operand::new("m", Role::State(0.0), spec),
            Operand::new("v", Role::State(0.0), spec),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["grads", "norm", "hyperparams"], []).updating(["params", "m", "v"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::flat(self.len).device_bytes() / 16;
        let AdamConfig { beta1, beta2, eps } = self.config;
        let params = Params {
            len: len as u32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            rest1: (1.0 - beta1) as f32,
            rest2: (1.0 - beta2) as f32,
            eps: eps as f32,
        }
        .bytes();
        let bindings = ["grads", "norm", "hyperparams", "params", "m", "v"].map(operand);
        Ok(Lowered::one(elementwise(&FORWARD, bindings, len, params)))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, (15 * self.len) as f64)
    }
}

kernel_params! {
    /// See `shaders/optim/adam.wgsl`.
    Params { len: u32, beta1: f32, beta2: f32, rest1: f32, rest2: f32, eps: f32 }
}

static FORWARD: Kernel = Kernel {
    name: "adam.forward",
    variant: "vec4",
    file: "optim/adam.wgsl",
    source: include_str!("../../../../shaders/optim/adam.wgsl"),
    bindings: &[
        ("grads", Read),
        ("norm", Read),
        ("hyperparams", Read),
        ("params", ReadWrite),
        ("m", ReadWrite),
        ("v", ReadWrite),
    ],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::optim::cases::UNCLIPPED;

    /// From zero moments the first step is lr against the sign of the gradient, whatever its magnitude.
    #[test]
    fn first_step_is_the_learning_rate() {
        let config = AdamConfig::default();
        let (bias_correction1, bias_correction2) = config.bias_corrections(0);
        let step = StepScalars { lr: 0.01, bias_correction1, bias_correction2, ..StepScalars::default() }.to_array();
        for g in [1e-4f32, 1.0, -30.0] {
            let (mut p, mut m, mut v) = ([2.0f32], [0.0f32], [0.0f32]);
            let op = Adam::new(1, config).unwrap();
            op.reference("forward", &[&[g], &[g.abs(), 1.0, 0.0, 0.0], &step], &mut [&mut p, &mut m, &mut v]).unwrap();
            assert!((p[0] - (2.0 - 0.01 * g.signum())).abs() < 2e-6, "{g}: {}", p[0]);
        }
    }

    #[test]
    fn rejected_step_changes_nothing() {
        let op = Adam::new(1, AdamConfig::default()).unwrap();
        let (mut p, mut m, mut v) = ([2.0f32], [3.0f32], [4.0f32]);
        let norm = [f32::NAN, 0.0, 0.0, 0.0];
        op.reference("forward", &[&[f32::NAN], &norm, &UNCLIPPED], &mut [&mut p, &mut m, &mut v]).unwrap();
        assert_eq!((p, m, v), ([2.0], [3.0], [4.0]));
    }

    #[test]
    fn invalid_settings_are_rejected() {
        for (beta1, beta2, eps) in [(1.0, 0.9, 1e-8), (0.9, -0.1, 1e-8), (0.9, f64::NAN, 1e-8), (0.9, 0.9, 0.0)] {
            assert!(Adam::new(4, AdamConfig { beta1, beta2, eps }).is_err());
        }
        assert!(Adam::new(0, AdamConfig::default()).is_err());
    }
}
