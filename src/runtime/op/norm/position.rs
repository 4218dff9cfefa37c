//! Layer normalization over the channels of each pixel, with the ReLU behind it where one follows.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::norm::channel_reduce::{Columns, Params};
use crate::runtime::op::{
    Case, Cost, Distribution, Init, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// How a [`PositionNorm`] normalizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionNormConfig {
    /// Added to the variance: 1e-5.
    pub eps: f64,
    /// Whether a ReLU follows: false.
    pub relu: bool,
}

impl Default for PositionNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, relu: false }
    }
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, with mean and (biased) variance over the channels of each pixel; then
/// max(y, 0) where asked for.
///
/// `x`, `y`: `[n, c, h, w]`; `weight`, `bias`: `c` numbers. `stats`, `[n, 3, h, w]`, keeps for the gradient shift (the pixel's first
/// channel), mean - shift, and 1 / sqrt(variance + eps).
#[derive(Clone, Copy, Debug)]
pub struct PositionNorm {
    shape: Shape,
    config: PositionNormConfig,
}

impl PositionNorm {
    /// The same with the ReLU behind it.
    #[must_use]
    pub(crate) fn with_relu(self) -> Self {
        Self { config: PositionNormConfig { relu: true, ..self.config }, ..self }
    }

    /// For an input of this shape. Refuses an `eps` that is not above zero.
    pub fn new(x: Shape, config: PositionNormConfig) -> Result<Self> {
        let x = x.checked(INFO.name, "x")?;
        x.with_c(3).checked(INFO.name, "statistics of x")?;
        if !(config.eps > 0.0 && config.eps.is_finite()) {
            return Err(Error::argument(format_args!("eps of {}", INFO.name), "a finite number above 0", config.eps));
        }
        Ok(Self { shape: x, config })
    }

    fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], y: &mut [T], stats: &mut [T]) {
        let area = self.shape.h * self.shape.w;
        let channels = T::from_usize(self.shape.c);
        let images = x.chunks_exact(self.shape.c * area).zip(y.chunks_exact_mut(self.shape.c * area));
        for ((x, y), stats) in images.zip(stats.chunks_exact_mut(3 * area)) {
            let (shift, rest) = stats.split_at_mut(area);
            let (offset, rstd) = rest.split_at_mut(area);
            shift.copy_from_slice(&x[..area]);
            offset.fill(T::zero());
            rstd.fill(T::zero());
            for x in x.chunks_exact(area) {
                for ((offset, x), shift) in offset.iter_mut().zip(x).zip(&*shift) {
                    *offset += *x - *shift;
                }
            }
            offset.iter_mut().for_each(|sum| *sum = *sum / channels);
            for x in x.chunks_exact(area) {
                for (((rstd, x), shift), offset) in rstd.iter_mut().zip(x).zip(&*shift).zip(&*offset) {
                    *rstd += (*x - *shift - *offset).squared();
                }
            }
            let eps = T::from_f64(self.config.eps);
            rstd.iter_mut().for_each(|squares| *squares = T::from_f64(1.0) / (*squares / channels + eps).sqrt());
            let planes = x.chunks_exact(area).zip(y.chunks_exact_mut(area)).zip(weight.iter().zip(bias));
            for ((x, y), (weight, bias)) in planes {
                for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                    let v = (*x - shift[i] - offset[i]) * rstd[i] * *weight + *bias;
                    *y = if self.config.relu { v.relu() } else { v };
                }
            }
        }
    }

    fn backward<T: Real>(&self, [x, weight, bias, stats, dy]: [&[T]; 5], [dx, dweight, dbias]: [&mut [T]; 3]) {
        let area = self.shape.h * self.shape.w;
        let size = self.shape.c * area;
        let channels = T::from_usize(self.shape.c);
        dweight.fill(T::zero());
        dbias.fill(T::zero());
        let (mut mean_g, mut mean_gx) = (vec![T::zero(); area], vec![T::zero(); area]);
        let images = x.chunks_exact(size).zip(dy.chunks_exact(size)).zip(dx.chunks_exact_mut(size));
        for (((x, dy), dx), stats) in images.zip(stats.chunks_exact(3 * area)) {
            let (shift, rest) = stats.split_at(area);
            let (offset, rstd) = rest.split_at(area);
            // The normalized x and dy as it arrives before the ReLU, of one element.
            let masked = |channel: usize, i: usize| {
                let at = channel * area + i;
                let xhat = (x[at] - shift[i] - offset[i]) * rstd[i];
                let cut = self.config.relu && xhat * weight[channel] + bias[channel] <= T::zero();
                (xhat, if cut { T::zero() } else { dy[at] })
            };
            mean_g.fill(T::zero());
            mean_gx.fill(T::zero());
            for channel in 0..self.shape.c {
                for i in 0..area {
                    let (xhat, g) = masked(channel, i);
                    dbias[channel] += g;
                    dweight[channel] += g * xhat;
                    mean_g[i] += g * weight[channel];
                    mean_gx[i] += g * weight[channel] * xhat;
                }
            }
            mean_g.iter_mut().chain(&mut mean_gx).for_each(|sum| *sum = *sum / channels);
            for (channel, dx) in dx.chunks_exact_mut(area).enumerate() {
                for (i, dx) in dx.iter_mut().enumerate() {
                    let (xhat, g) = masked(channel, i);
                    *dx = (g * weight[channel] - mean_g[i] - xhat * mean_gx[i]) * rstd[i];
                }
            }
        }
    }
}

impl Reference for PositionNorm {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [x, weight, bias], [y, stats]) => self.forward(x, weight, bias, y, stats),
            ("backward", [x, weight, bias, stats, dy], [dx, dweight, dbias]) => {
                self.backward([x, weight, bias, stats, dy], [dx, dweight, dbias]);
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for PositionNorm {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let vector = Spec::vector(self.shape.c);
        vec![
            Operand::new("x", Role::Input, Spec::nhwc(self.shape)),
            Operand::new("weight", Role::Param(Init::Constant(1.0)), vector),
            Operand::new("bias", Role::Param(Init::Constant(0.0)), vector),
            Operand::new("y", Role::Output, Spec::nhwc(self.shape)),
            Operand::new("stats", Role::Saved, Spec::nhwc(self.shape.with_c(3))),
        ]
    }

    fn passes(&self) -> Passes {
        Passes {
            forward: Pass::forward(["x", "weight", "bias"], ["y", "stats"]),
            backward: vec![Pass::new(
                "backward",
                [operand("x"), operand("weight"), operand("bias"), operand("stats"), grad("y")],
                [grad("x"), grad("weight"), grad("bias")],
            )],
            aliases: vec![],
        }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["columns"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let columns = Columns::new(self.shape, target.profile);
        let relu = ("RELU", f64::from(self.config.relu));
        let dispatch = |kernel, bindings: &[Bind], overrides, workgroups| Dispatch {
            overrides,
            params: columns.params().bytes(),
            workgroups,
            ..Dispatch::new(kernel, bindings.iter().copied())
        };
        let [x, weight, bias, y, stats] = ["x", "weight", "bias", "y", "stats"].map(|name| operand(name).into());
        let [dx, dy, dweight, dbias] = ["x", "y", "weight", "bias"].map(|name| grad(name).into());
        let partials = Bind::Scratch(0);
        let by_pixel = workgroups(self.shape.pixels(), 64);
        Ok(match pass {
            "forward" => {
                let overrides = vec![relu, ("EPS", self.config.eps)];
                Lowered::one(dispatch(&FORWARD, &[x, weight, bias, y, stats], overrides, by_pixel))
            }
            "backward" => Lowered {
                dispatches: vec![
                    dispatch(&GRADIENT, &[x, weight, bias, stats, dy, dx], vec![relu], by_pixel)
                        .accumulate("ACC_DX", target.acc(0)),
                    dispatch(
                        &SUMS,
                        &[x, weight, bias, stats, dy, partials],
                        vec![relu, columns.lanes()],
                        columns.workgroups(),
                    ),
                    dispatch(&MERGE, &[partials, dweight, dbias], vec![columns.lanes()], columns.tiles())
                        .accumulate("ACC_DWEIGHT", target.acc(1))
                        .accumulate("ACC_DBIAS", target.acc(2)),
                ],
                scratch: vec![columns.row_bytes(2 * columns.chunks)],
            },
            _ => return Err(no_such_pass(self, pass)),
        })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        // Forward: difference, mean, squared deviation; normalize, scale and shift.
        let per_element = if pass.name == "forward" { 9.0 } else { 16.0 };
        Cost::of(self, pass, per_element * self.shape.len() as f64)
    }
}

static FORWARD: Kernel = Kernel {
    name: "position_norm.forward",
    variant: "columns",
    file: "norm/position_norm.wgsl",
    source: include_str!("../../../../shaders/norm/position_norm.wgsl"),
    entry: "forward",
    defines: &[("STAGE", 0)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("y", Access::ReadWrite),
        ("stats", Access::ReadWrite),
    ],
    params: Params::FIELDS,
    overrides: &["RELU", "EPS"],
    ..Kernel::DEFAULT
};

static GRADIENT: Kernel = Kernel {
    name: "position_norm.backward.gradient",
    entry: "gradient",
    defines: &[("STAGE", 1)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("stats", Access::Read),
        ("dy", Access::Read),
        ("dx", Access::ReadWrite),
    ],
    overrides: &["RELU", "ACC_DX"],
    ..FORWARD
};

static SUMS: Kernel = Kernel {
    name: "position_norm.backward.sums",
    entry: "sums",
    defines: &[("STAGE", 2)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("stats", Access::Read),
        ("dy", Access::Read),
        ("partials", Access::ReadWrite),
    ],
    overrides: &["RELU", "GROUPS"],
    ..FORWARD
};

static MERGE: Kernel = Kernel {
    name: "position_norm.backward.merge",
    entry: "merge",
    defines: &[("STAGE", 3)],
    bindings: &[("partials", Access::Read), ("dweight", Access::ReadWrite), ("dbias", Access::ReadWrite)],
    overrides: &["GROUPS", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..FORWARD
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "position_norm",
    kernels: || vec![&FORWARD, &GRADIENT, &SUMS, &MERGE],
    cases: || {
        let standard = Distribution::Normal(0.0, 1.0);
        let mut cases = vec![];
        for (name, shape, relu, x) in [
            ("odd", Shape::new(3, 5, 7, 3), false, standard),
            ("odd_relu", Shape::new(3, 5, 7, 3), true, standard),
            ("group_of_tiles", Shape::new(2, 35, 3, 5), false, standard),
            ("group_of_tiles_relu", Shape::new(2, 35, 3, 5), true, standard),
            ("two_channels", Shape::new(1, 2, 1, 1), false, standard),
            ("one", Shape::new(1, 1, 1, 1), false, standard),
            ("many_chunks", Shape::new(5, 3, 29, 31), true, standard),
            ("model", Shape::new(2, 64, 16, 16), true, standard),
            ("mean_100_std_half", Shape::new(2, 30, 9, 9), false, Distribution::Normal(100.0, 0.5)),
            ("mean_1000_std_hundredth", Shape::new(2, 30, 9, 9), false, Distribution::Normal(1000.0, 0.01)),
            ("std_thousandth", Shape::new(2, 30, 9, 9), false, Distribution::Normal(0.0, 0.001)),
        ] {
            let op = PositionNorm::new(shape, PositionNormConfig { relu, ..PositionNormConfig::default() })?;
            let case = Case::new(name, op).fill("x", x);
            // Difference quotients need x of order one and few elements near the ReLU's kink.
            let smooth = x == standard && shape.len() < 2000;
            cases.push(if smooth { case } else { case.not_differentiated() });
        }
        Ok(cases)
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn eps_must_be_above_zero() {
        let x = Shape::new(2, 5, 3, 3);
        for eps in [0.0, -1e-5, f64::NAN, f64::INFINITY] {
            assert!(PositionNorm::new(x, PositionNormConfig { eps, relu: false }).is_err());
        }
    }
}
