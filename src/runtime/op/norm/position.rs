//! Position normalization, with the ReLU that follows it if there is one.

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Dispatch, Kernel, Lowered, grad, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::norm::channel_reduce::{self, ChannelReduce, defines};
use crate::runtime::op::norm::normalize::Normalize;
use crate::runtime::op::{Cost, Init, Op, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "position_norm";

/// Settings of a [`PositionNorm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PositionNormConfig {
    /// Added to the variance. Default: 1e-5.
    pub eps: f64,
    /// Whether a ReLU follows. Default: false.
    pub relu: bool,
}

impl Default for PositionNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, relu: false }
    }
}

/// Layer normalization over the channels at each position (image, row and column):
/// y = (x - mean) / sqrt(variance + eps) * weight + bias, followed by max(y, 0) if [`PositionNormConfig::relu`] is set.
///
/// `x`, `y`: `[n, c, h, w]`; `weight`, `bias`: `[c]`. Mean and (biased) variance are those of the `c` values at a position. `stats`,
/// `[n, 3, h, w]`, keeps for the gradient pivot (the first channel of the position), mean - pivot, and 1 / sqrt(variance + eps).
#[derive(Clone, Copy, Debug)]
pub struct PositionNorm {
    shape: Shape,
    config: PositionNormConfig,
}

impl PositionNorm {
    /// Creates the norm of an input of this shape.
    ///
    /// # Errors
    ///
    /// If `eps` is not above zero.
    pub fn new(x: Shape, config: PositionNormConfig) -> Result<Self> {
        let x = x.checked(NAME, "x")?;
        x.with_c(3).checked(NAME, "statistics of x")?;
        if !(config.eps > 0.0 && config.eps.is_finite()) {
            return Err(Error::argument("eps of position_norm", "a finite number above 0", config.eps));
        }
        Ok(Self { shape: x, config })
    }

    /// Returns the settings.
    #[must_use]
    pub fn config(&self) -> PositionNormConfig {
        self.config
    }

    /// The same norm, followed by a ReLU.
    #[must_use]
    pub(crate) fn with_relu(self) -> Self {
        Self { config: PositionNormConfig { relu: true, ..self.config }, ..self }
    }

    fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], y: &mut [T], stats: &mut [T]) {
        let relu = self.config.relu;
        let area = self.shape.h * self.shape.w;
        let channels = T::from_usize(self.shape.c);
        let images = x.chunks_exact(self.shape.c * area).zip(y.chunks_exact_mut(self.shape.c * area));
        for ((x, y), stats) in images.zip(stats.chunks_exact_mut(3 * area)) {
            let (pivot, rest) = stats.split_at_mut(area);
            let (offset, rstd) = rest.split_at_mut(area);
            pivot.copy_from_slice(&x[..area]);
            offset.fill(T::zero());
            rstd.fill(T::zero());
            for x in x.chunks_exact(area) {
                for ((offset, x), pivot) in offset.iter_mut().zip(x).zip(&*pivot) {
                    *offset += *x - *pivot;
                }
            }
            offset.iter_mut().for_each(|sum| *sum = *sum / channels);
            for x in x.chunks_exact(area) {
                for (((rstd, x), pivot), offset) in rstd.iter_mut().zip(x).zip(&*pivot).zip(&*offset) {
                    *rstd += (*x - *pivot - *offset).squared();
                }
            }
            let eps = T::from_f64(self.config.eps);
            rstd.iter_mut().for_each(|squares| *squares = T::from_f64(1.0) / (*squares / channels + eps).sqrt());
            let planes = x.chunks_exact(area).zip(y.chunks_exact_mut(area)).zip(weight.iter().zip(bias));
            for ((x, y), (&weight, &bias)) in planes {
                for (i, (y, x)) in y.iter_mut().zip(x).enumerate() {
                    let map = Normalize { pivot: pivot[i], offset: offset[i], rstd: rstd[i], weight, bias, relu };
                    *y = map.output(*x);
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
            let masked = |channel: usize, i: usize| {
                let map = Normalize {
                    pivot: stats[i],
                    offset: stats[area + i],
                    rstd: stats[2 * area + i],
                    weight: weight[channel],
                    bias: bias[channel],
                    relu: self.config.relu,
                };
                map.masked(x[channel * area + i], dy[channel * area + i])
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
                    *dx = (g * weight[channel] - mean_g[i] - xhat * mean_gx[i]) * stats[2 * area + i];
                }
            }
        }
    }

    /// A dispatch of one invocation for each position.
    fn by_position(&self, kernel: &'static Kernel, bindings: &[Bind], overrides: &[(&'static str, f64)]) -> Dispatch {
        let (len, Shape { c, .. }) = (self.shape.positions(), self.shape);
        let params = Params { len: len as u32, channels: c as u32, groups: c.div_ceil(4) as u32 }.bytes();
        // Twice over the channel groups.
        let dispatch = elementwise(kernel, bindings.iter().copied(), len, params).iterations(2 * c.div_ceil(4));
        Dispatch { overrides: overrides.to_vec(), ..dispatch }
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
        NAME
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
        let inputs = ["x", "weight", "bias"];
        let reads = inputs.into_iter().chain(["stats"]).map(operand).chain([grad("y")]);
        let backward = vec![Pass::new("backward", reads, inputs.map(grad))];
        Passes { backward, ..Passes::only(Pass::forward(inputs, ["y", "stats"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["channel_reduce"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let relu = ("RELU", f64::from(self.config.relu));
        let [x, weight, bias, y, stats] = ["x", "weight", "bias", "y", "stats"].map(|name| operand(name).into());
        if pass == "forward" {
            let overrides = [relu, ("EPS", self.config.eps)];
            return Ok(Lowered::one(self.by_position(&FORWARD, &[x, weight, bias, y, stats], &overrides)));
        }
        if pass != "backward" {
            return Err(no_such_pass(self, pass));
        }
        let [dy, dx, dweight, dbias] = ["y", "x", "weight", "bias"].map(|name| grad(name).into());
        let partials = Bind::Scratch(0);
        let reduce = ChannelReduce::new(self.shape, target.profile);
        let gradient = self.by_position(&GRADIENT, &[x, weight, bias, stats, dy, dx], &[relu]);
        let merge = reduce
            .merge(&MERGE, &[partials, dweight, dbias], &[])
            .iterations(reduce.over_chunks(1) + reduce.over_rows());
        Ok(Lowered {
            dispatches: vec![
                gradient.accumulate("ACC_DX", target.acc(0)),
                reduce
                    .dispatch(&SUMS, &[x, weight, bias, stats, dy, partials], &[relu])
                    .iterations(reduce.over_positions() + reduce.over_rows()),
                merge.accumulate("ACC_DWEIGHT", target.acc(1)).accumulate("ACC_DBIAS", target.acc(2)),
            ],
            scratch: vec![reduce.row_bytes(2 * reduce.chunks)],
        })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        // Forward: difference, mean, squared deviation; normalize, weight, bias.
        let per_element = if pass.name == "forward" { 9.0 } else { 16.0 };
        Cost::of(self, pass, per_element * self.shape.len() as f64)
    }
}

kernel_params! {
    /// See `shaders/norm/position_norm.wgsl`: the params of the kernels that have one invocation for each position.
    Params { len: u32, channels: u32, groups: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "position_norm.forward",
    variant: "channel_reduce",
    file: "norm/position_norm.wgsl",
    source: include_str!("../../../../shaders/norm/position_norm.wgsl"),
    defines: &[("STAGE", 0)],
    bindings: &[("x", Read), ("weight", Read), ("bias", Read), ("y", ReadWrite), ("stats", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["RELU", "EPS"],
    ..Kernel::DEFAULT
};

static GRADIENT: Kernel = Kernel {
    name: "position_norm.backward.gradient",
    defines: &[("STAGE", 1)],
    bindings: &[("x", Read), ("weight", Read), ("bias", Read), ("stats", Read), ("dy", Read), ("dx", ReadWrite)],
    overrides: &["RELU", "ACC_DX"],
    ..FORWARD
};

static SUMS: Kernel = Kernel {
    name: "position_norm.backward.sums",
    defines: &defines(2),
    bindings: &[("x", Read), ("weight", Read), ("bias", Read), ("stats", Read), ("dy", Read), ("partials", ReadWrite)],
    params: channel_reduce::Params::FIELDS,
    overrides: &["RELU", "GROUPS"],
    ..FORWARD
};

static MERGE: Kernel = Kernel {
    name: "position_norm.backward.merge",
    defines: &defines(3),
    bindings: &[("partials", Read), ("dweight", ReadWrite), ("dbias", ReadWrite)],
    overrides: &["GROUPS", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..SUMS
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD, &GRADIENT, &SUMS, &MERGE];

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
