//! Batch normalization, with the ReLU that follows it if there is one.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Kernel, Lowered, grad, operand};
use crate::runtime::op::norm::channel_reduce::{ChannelReduce, Params, defines};
use crate::runtime::op::norm::normalize::Normalize;
use crate::runtime::op::{ChannelShift, Cost, Init, Op, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "batch_norm";

/// Settings of a [`BatchNorm`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance. Default: 1e-5.
    pub eps: f64,
    /// Weight of the batch in the new running statistics, from 0 to 1. Default: 0.1.
    pub momentum: f64,
    /// Whether to normalize with the statistics of the batch and to update the running ones, or to normalize with the running ones.
    /// Default: true.
    pub training: bool,
    /// Whether a ReLU follows. Default: false.
    pub relu: bool,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, training: true, relu: false }
    }
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias for each channel, followed by max(y, 0) if [`BatchNormConfig::relu`] is set.
///
/// `x`, `y`: `[n, c, h, w]`; `weight`, `bias`, `running_mean`, `running_var`: `[c]`. In training, mean and (biased) variance are those
/// of the batch, and as in PyTorch the running statistics move towards the mean and the unbiased variance of the batch. In evaluation
/// they are the running statistics, which the gradient treats as constants.
///
/// `stats`, `[3, c]`, keeps for the gradient the rows pivot (the first value of the channel), mean - pivot, and
/// 1 / sqrt(variance + eps). Deviations are computed from x - pivot, because sums of x and x^2 cancel when the mean is far above the
/// standard deviation.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    shape: Shape,
    config: BatchNormConfig,
}

impl BatchNorm {
    /// Creates the norm of an input of this shape.
    ///
    /// # Errors
    ///
    /// If `eps` is not above zero, `momentum` is not from 0 to 1, or a channel has only one value in training, and so no variance.
    pub fn new(x: Shape, config: BatchNormConfig) -> Result<Self> {
        let x = x.checked(NAME, "x")?;
        if !(config.eps > 0.0 && config.eps.is_finite()) {
            return Err(Error::argument("eps of batch_norm", "a finite number above 0", config.eps));
        }
        if !(0.0..=1.0).contains(&config.momentum) {
            return Err(Error::argument("momentum of batch_norm", "0 to 1", config.momentum));
        }
        if config.training && x.positions() == 1 {
            return Err(Error::argument("shape of x of batch_norm in training", "more than one value per channel", x));
        }
        Ok(Self { shape: x, config })
    }

    /// Shape of x and y.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    pub(crate) fn config(&self) -> BatchNormConfig {
        self.config
    }

    /// The same norm with another momentum.
    #[must_use]
    pub(crate) fn with_momentum(self, momentum: f64) -> Self {
        Self { config: BatchNormConfig { momentum, ..self.config }, ..self }
    }

    /// The same norm, followed by a ReLU.
    #[must_use]
    pub(crate) fn with_relu(self) -> Self {
        Self { config: BatchNormConfig { relu: true, ..self.config }, ..self }
    }

    /// Moves a running statistic towards that of the batch.
    pub(crate) fn update<T: Real>(&self, running: &mut T, batch: T) {
        let momentum = T::from_f64(self.config.momentum);
        *running = (T::from_f64(1.0) - momentum) * *running + momentum * batch;
    }

    /// The elements of a channel, image by image.
    fn planes(&self, channel: usize) -> impl Iterator<Item = Range<usize>> {
        let Shape { n, c, h, w } = self.shape;
        (0..n).map(move |image| (image * c + channel) * h * w).map(move |first| first..first + h * w)
    }

    /// Pivot, offset, 1 / sqrt(variance + eps) and sum of squared deviations of a channel of the batch.
    pub(crate) fn moments<T: Real>(&self, x: &[T], channel: usize) -> (T, T, T, T) {
        let count = T::from_usize(self.shape.positions());
        let planes = || self.planes(channel).filter_map(|plane| x.get(plane)).flatten();
        let pivot = planes().next().copied().unwrap_or_default();
        let rough = blocked_sum(planes().map(|x| *x - pivot)) / count;
        // The second pass corrects the rounding of the first, which is large if the pivot is an outlier.
        let offset = rough + blocked_sum(planes().map(|x| *x - pivot - rough)) / count;
        let squares = blocked_sum(planes().map(|x| (*x - pivot - offset).squared()));
        (pivot, offset, self.inverse_std(squares / count), squares)
    }

    pub(crate) fn inverse_std<T: Real>(&self, variance: T) -> T {
        T::from_f64(1.0) / (variance + T::from_f64(self.config.eps)).sqrt()
    }

    fn apply<T: Real>(&self, channel: usize, map: &Normalize<T>, x: &[T], y: &mut [T]) {
        for plane in self.planes(channel) {
            for (y, x) in y[plane.clone()].iter_mut().zip(&x[plane]) {
                *y = map.output(*x);
            }
        }
    }

    /// Writes `dx` of one channel and returns its `dweight` and `dbias`.
    fn gradient<T: Real>(&self, channel: usize, map: &Normalize<T>, x: &[T], dy: &[T], dx: &mut [T]) -> (T, T) {
        let (mut dweight, mut dbias) = (T::zero(), T::zero());
        for plane in self.planes(channel) {
            // Sums of the images are added at the end, which rounds less than one running sum.
            let (mut dw, mut db) = (T::zero(), T::zero());
            for (x, dy) in x[plane.clone()].iter().zip(&dy[plane]) {
                let (xhat, g) = map.masked(*x, *dy);
                db += g;
                dw += g * xhat;
            }
            dweight += dw;
            dbias += db;
        }
        let count = T::from_usize(self.shape.positions());
        let (mean_g, mean_gx) = (dbias / count, dweight / count);
        let scale = map.weight * map.rstd;
        for plane in self.planes(channel) {
            for ((dx, x), dy) in dx[plane.clone()].iter_mut().zip(&x[plane.clone()]).zip(&dy[plane]) {
                let (xhat, g) = map.masked(*x, *dy);
                *dx = if self.config.training { (g - mean_g - xhat * mean_gx) * scale } else { g * scale };
            }
        }
        (dweight, dbias)
    }

    fn running<T: Real>(&self, mean: T, variance: T, weight: T, bias: T) -> Normalize<T> {
        let rstd = self.inverse_std(variance);
        Normalize { pivot: mean, offset: T::zero(), rstd, weight, bias, relu: self.config.relu }
    }
}

impl Reference for BatchNorm {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let (c, relu) = (self.shape.c, self.config.relu);
        match (pass, reads, writes) {
            ("forward", [x, weight, bias], [y, stats, running_mean, running_var]) => {
                for i in 0..c {
                    let (pivot, offset, rstd, squares) = self.moments(x, i);
                    self.apply(i, &Normalize { pivot, offset, rstd, weight: weight[i], bias: bias[i], relu }, x, y);
                    (stats[i], stats[c + i], stats[2 * c + i]) = (pivot, offset, rstd);
                    let unbiased = squares / T::from_usize(self.shape.positions() - 1);
                    self.update(&mut running_mean[i], pivot + offset);
                    self.update(&mut running_var[i], unbiased);
                }
            }
            ("forward", [x, weight, bias, mean, variance], [y]) => {
                for i in 0..c {
                    let map = self.running(mean[i], variance[i], weight[i], bias[i]);
                    self.apply(i, &map, x, y);
                }
            }
            ("backward", [x, weight, bias, stats, dy], [dx, dweight, dbias]) => {
                for i in 0..c {
                    let (pivot, offset, rstd) = (stats[i], stats[c + i], stats[2 * c + i]);
                    let map = Normalize { pivot, offset, rstd, weight: weight[i], bias: bias[i], relu };
                    (dweight[i], dbias[i]) = self.gradient(i, &map, x, dy, dx);
                }
            }
            ("backward", [x, weight, bias, mean, variance, dy], [dx, dweight, dbias]) => {
                for i in 0..c {
                    let map = self.running(mean[i], variance[i], weight[i], bias[i]);
                    (dweight[i], dbias[i]) = self.gradient(i, &map, x, dy, dx);
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for BatchNorm {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let vector = Spec::vector(self.shape.c);
        let mut operands = vec![
            Operand::new("x", Role::Input, Spec::nhwc(self.shape)),
            Operand::new("weight", Role::Param(Init::Constant(1.0)), vector),
            Operand::new("bias", Role::Param(Init::Constant(0.0)), vector),
            Operand::new("running_mean", Role::State(0.0), vector),
            Operand::new("running_var", Role::State(1.0), vector),
            Operand::new("y", Role::Output, Spec::nhwc(self.shape)),
        ];
        if self.config.training {
            operands.push(Operand::new("stats", Role::Saved, Spec::nhwc(Shape::new(3, self.shape.c, 1, 1))));
        }
        operands
    }

    fn passes(&self) -> Passes {
        let (inputs, running) = (["x", "weight", "bias"], ["running_mean", "running_var"]);
        let (forward, constants) = if self.config.training {
            (Pass::forward(inputs, ["y", "stats"]).updating(running), vec!["stats"])
        } else {
            (Pass::forward(inputs.into_iter().chain(running), ["y"]), running.to_vec())
        };
        let reads = inputs.into_iter().chain(constants).map(operand).chain([grad("y")]);
        let backward = vec![Pass::new("backward", reads, inputs.map(grad))];
        Passes { backward, ..Passes::only(forward) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["channel_reduce"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let reduce = ChannelReduce::new(self.shape, target.profile);
        let training = self.config.training;
        let eps = ("EPS", self.config.eps);
        let relu = ("RELU", f64::from(self.config.relu));
        let [x, weight, bias, mean, var, y, stats] =
            ["x", "weight", "bias", "running_mean", "running_var", "y", "stats"].map(|name| operand(name).into());
        let [dy, dx, dweight, dbias] = ["y", "x", "weight", "bias"].map(|name| grad(name).into());
        let partials = Bind::Scratch(0);
        let (dispatches, rows) = match (pass, training) {
            ("forward", true) => {
                let statistics = reduce
                    .dispatch(&STATISTICS, &[x, partials], &[])
                    .iterations(reduce.over_positions() + reduce.over_row_pairs());
                let bindings = [x, weight, bias, partials, y, stats, mean, var];
                let overrides = [eps, relu, ("MOMENTUM", self.config.momentum)];
                let normalize = reduce
                    .dispatch(&NORMALIZE, &bindings, &overrides)
                    .iterations(reduce.over_chunks(1) + reduce.over_row_pairs() + reduce.over_positions());
                (vec![statistics, normalize], 2 * reduce.chunks)
            }
            ("forward", false) => {
                let bindings = [x, weight, bias, mean, var, y];
                let evaluate = reduce.dispatch(&EVALUATE, &bindings, &[eps, relu]).iterations(reduce.over_positions());
                return Ok(Lowered::one(evaluate));
            }
            ("backward", _) => {
                let sums = if training {
                    reduce.dispatch(&SUMS, &[x, weight, bias, stats, dy, partials], &[relu])
                } else {
                    reduce.dispatch(&SUMS_EVALUATION, &[x, weight, bias, mean, var, dy, partials], &[eps, relu])
                };
                let sums = sums.iterations(reduce.over_positions() + reduce.over_rows());
                let overrides = [relu, ("TRAINING", f64::from(training))];
                let gradient = reduce
                    .dispatch(&GRADIENT, &[x, dy, partials, dx, dweight, dbias], &overrides)
                    .accumulate("ACC_DX", target.acc(0))
                    .accumulate("ACC_DWEIGHT", target.acc(1))
                    .accumulate("ACC_DBIAS", target.acc(2))
                    .iterations(reduce.over_chunks(1) + reduce.over_rows() + reduce.over_positions());
                (vec![sums, gradient], HEADER_ROWS + 2 * reduce.chunks)
            }
            _ => return Err(no_such_pass(self, pass)),
        };
        Ok(Lowered { dispatches, scratch: vec![reduce.row_bytes(rows)] })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let per_element = match (pass.name, self.config.training) {
            ("forward", true) => 9.0, // difference, mean, squared deviation; normalize, weight, bias
            ("forward", false) => 4.0,
            (_, true) => 13.0,
            (_, false) => 9.0,
        };
        Cost::of(self, pass, per_element * self.shape.len() as f64)
    }

    fn channel_shift(&self, _input: &str) -> ChannelShift {
        if self.config.training { ChannelShift::Absorbs } else { ChannelShift::Depends }
    }
}

/// Rows of `partials` before the sums of the chunks, in the backward pass: `HEADER` in the shader.
const HEADER_ROWS: usize = 5;

static STATISTICS: Kernel = Kernel {
    name: "batch_norm.forward.statistics",
    variant: "channel_reduce",
    file: "norm/batch_norm.wgsl",
    source: include_str!("../../../../shaders/norm/batch_norm.wgsl"),
    defines: &defines(0),
    bindings: &[("x", Read), ("partials", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["GROUPS"],
    ..Kernel::DEFAULT
};

static NORMALIZE: Kernel = Kernel {
    name: "batch_norm.forward.normalize",
    defines: &defines(1),
    bindings: &[
        ("x", Read),
        ("weight", Read),
        ("bias", Read),
        ("partials", Read),
        ("y", ReadWrite),
        ("stats", ReadWrite),
        ("running_mean", ReadWrite),
        ("running_var", ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "MOMENTUM", "RELU"],
    ..STATISTICS
};

static EVALUATE: Kernel = Kernel {
    name: "batch_norm.forward.evaluate",
    defines: &defines(2),
    bindings: &[
        ("x", Read),
        ("weight", Read),
        ("bias", Read),
        ("running_mean", Read),
        ("running_var", Read),
        ("y", ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "RELU"],
    ..STATISTICS
};

static SUMS: Kernel = Kernel {
    name: "batch_norm.backward.sums",
    defines: &defines(3),
    bindings: &[("x", Read), ("weight", Read), ("bias", Read), ("stats", Read), ("dy", Read), ("partials", ReadWrite)],
    overrides: &["GROUPS", "RELU"],
    ..STATISTICS
};

static SUMS_EVALUATION: Kernel = Kernel {
    name: "batch_norm.backward.sums_evaluation",
    defines: &defines(4),
    bindings: &[
        ("x", Read),
        ("weight", Read),
        ("bias", Read),
        ("running_mean", Read),
        ("running_var", Read),
        ("dy", Read),
        ("partials", ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "RELU"],
    ..STATISTICS
};

static GRADIENT: Kernel = Kernel {
    name: "batch_norm.backward.gradient",
    defines: &defines(5),
    bindings: &[
        ("x", Read),
        ("dy", Read),
        ("partials", Read),
        ("dx", ReadWrite),
        ("dweight", ReadWrite),
        ("dbias", ReadWrite),
    ],
    overrides: &["GROUPS", "RELU", "TRAINING", "ACC_DX", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..STATISTICS
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&STATISTICS, &NORMALIZE, &EVALUATE, &SUMS, &SUMS_EVALUATION, &GRADIENT];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_settings_and_shapes_are_rejected() {
        let config = BatchNormConfig::default();
        assert!(BatchNorm::new(Shape::new(1, 8, 1, 1), config).is_err());
        assert!(BatchNorm::new(Shape::new(1, 8, 1, 1), BatchNormConfig { training: false, ..config }).is_ok());
        assert!(BatchNorm::new(Shape::new(2, 8, 1, 1), BatchNormConfig { eps: f64::NAN, ..config }).is_err());
        assert!(BatchNorm::new(Shape::new(2, 8, 1, 1), BatchNormConfig { momentum: 1.5, ..config }).is_err());
    }

    #[test]
    fn running_statistics_match_pytorch() {
        let op = BatchNorm::new(Shape::new(4, 1, 1, 1), BatchNormConfig::default()).unwrap();
        let (mut y, mut stats, mut mean, mut var) = ([0.0; 4], [0.0; 3], [10.0], [1.0]);
        let reads: [&[f64]; 3] = [&[1.0, 2.0, 3.0, 6.0], &[1.0], &[0.0]];
        op.reference("forward", &reads, &mut [&mut y, &mut stats, &mut mean, &mut var]).unwrap();
        assert!((mean[0] - (9.0 + 0.3)).abs() < 1e-12); // the mean of the batch is 3
        assert!((var[0] - (0.9 + 0.1 * 14.0 / 3.0)).abs() < 1e-12); // its unbiased variance is 14/3
    }
}
