//! Batch normalization, with the ReLU behind it where one follows.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, grad, operand};
use crate::runtime::op::norm::channel_reduce::{Columns, Params};
use crate::runtime::op::{
    Case, ChannelShift, Cost, Distribution, Init, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target,
    no_such_pass,
};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::shape::{Shape, Spec};

/// How a [`BatchNorm`] normalizes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormConfig {
    /// Added to the variance: 1e-5.
    pub eps: f64,
    /// Share of the batch in the new running statistics: 0.1.
    pub momentum: f64,
    /// Whether to normalize with the batch's own statistics (and to update the running ones), or with the running ones: true.
    pub training: bool,
    /// Whether a ReLU follows: false.
    pub relu: bool,
}

impl Default for BatchNormConfig {
    fn default() -> Self {
        Self { eps: 1e-5, momentum: 0.1, training: true, relu: false }
    }
}

/// y = (x - mean) / sqrt(variance + eps) * weight + bias, for each channel; then max(y, 0) where asked for.
///
/// `x`, `y`: `[n, c, h, w]`; `weight`, `bias`, `running_mean`, `running_var`: `c` numbers. In training mean and (biased) variance
/// are the batch's, and the running statistics move towards its mean and unbiased variance, as PyTorch has it. `stats` keeps for
/// the gradient the rows shift (the channel's first element), mean - shift, and 1 / sqrt(variance + eps). In evaluation they
/// are the running ones, which the gradient takes as constants.
#[derive(Clone, Copy, Debug)]
pub struct BatchNorm {
    shape: Shape,
    config: BatchNormConfig,
}

impl BatchNorm {
    /// For an input of this shape. Refuses an `eps` that is not above zero, a `momentum` outside 0 to 1, and training with one
    /// value a channel, which has no variance.
    pub fn new(x: Shape, config: BatchNormConfig) -> Result<Self> {
        let x = x.checked(INFO.name, "x")?;
        if !(config.eps > 0.0 && config.eps.is_finite()) {
            return Err(Error::argument(format_args!("eps of {}", INFO.name), "a finite number above 0", config.eps));
        }
        if !(0.0..=1.0).contains(&config.momentum) {
            return Err(Error::argument("momentum of batch_norm", "0 to 1", config.momentum));
        }
        if config.training && x.pixels() == 1 {
            return Err(Error::argument("shape of x of batch_norm in training", "more than one value per channel", x));
        }
        Ok(Self { shape: x, config })
    }

    /// Shape of x and y.
    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }

    /// How it normalizes.
    pub(crate) fn config(&self) -> BatchNormConfig {
        self.config
    }

    /// The same with the ReLU behind it.
    #[must_use]
    pub(crate) fn with_relu(self) -> Self {
        Self { config: BatchNormConfig { relu: true, ..self.config }, ..self }
    }

    /// Moves a running statistic towards the batch's.
    pub(crate) fn update<T: Real>(&self, running: &mut T, batch: T) {
        let momentum = T::from_f64(self.config.momentum);
        *running = (T::from_f64(1.0) - momentum) * *running + momentum * batch;
    }

    /// The elements of a channel, image by image.
    fn planes(&self, channel: usize) -> impl Iterator<Item = Range<usize>> {
        let Shape { n, c, h, w } = self.shape;
        (0..n).map(move |image| (image * c + channel) * h * w).map(move |first| first..first + h * w)
    }

    /// ChannelShift, offset and 1 / sqrt(variance + eps) of a channel in training, and its sum of squared deviations.
    pub(crate) fn moments<T: Real>(&self, x: &[T], channel: usize) -> (T, T, T, T) {
        let count = T::from_usize(self.shape.pixels());
        let planes = || self.planes(channel).filter_map(|plane| x.get(plane)).flatten();
        let shift = planes().next().copied().unwrap_or_default();
        let rough = blocked_sum(planes().map(|x| *x - shift)) / count;
        // What the first pass rounded away, which is as large as the rounding of an outlying shift.
        let offset = rough + blocked_sum(planes().map(|x| *x - shift - rough)) / count;
        let squares = blocked_sum(planes().map(|x| (*x - shift - offset).squared()));
        (shift, offset, self.inverse_std(squares / count), squares)
    }

    pub(crate) fn inverse_std<T: Real>(&self, variance: T) -> T {
        T::from_f64(1.0) / (variance + T::from_f64(self.config.eps)).sqrt()
    }

    fn apply<T: Real>(&self, channel: usize, a: &Channel<T>, x: &[T], y: &mut [T]) {
        for plane in self.planes(channel) {
            for (y, x) in y[plane.clone()].iter_mut().zip(&x[plane]) {
                *y = a.output(*x);
            }
        }
    }

    /// Writes the gradients of one channel; `dx` of all.
    fn gradient<T: Real>(&self, channel: usize, a: &Channel<T>, x: &[T], dy: &[T], dx: &mut [T]) -> (T, T) {
        let (mut dweight, mut dbias) = (T::zero(), T::zero());
        for plane in self.planes(channel) {
            // Image by image: rounds less than one running sum.
            let (mut dw, mut db) = (T::zero(), T::zero());
            for (x, dy) in x[plane.clone()].iter().zip(&dy[plane]) {
                let (xhat, g) = a.masked(*x, *dy);
                db += g;
                dw += g * xhat;
            }
            dweight += dw;
            dbias += db;
        }
        let count = T::from_usize(self.shape.pixels());
        let (mean_g, mean_gx) = (dbias / count, dweight / count);
        let scale = a.weight * a.rstd;
        for plane in self.planes(channel) {
            for ((dx, x), dy) in dx[plane.clone()].iter_mut().zip(&x[plane.clone()]).zip(&dy[plane]) {
                let (xhat, g) = a.masked(*x, *dy);
                *dx = if self.config.training { (g - mean_g - xhat * mean_gx) * scale } else { g * scale };
            }
        }
        (dweight, dbias)
    }

    fn running<T: Real>(&self, mean: T, variance: T, weight: T, bias: T) -> Channel<T> {
        let rstd = self.inverse_std(variance);
        Channel { shift: mean, offset: T::zero(), rstd, weight, bias, relu: self.config.relu }
    }
}

impl Reference for BatchNorm {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let (c, relu) = (self.shape.c, self.config.relu);
        match (pass, reads, writes) {
            ("forward", [x, weight, bias], [y, stats, running_mean, running_var]) => {
                for i in 0..c {
                    let (shift, offset, rstd, squares) = self.moments(x, i);
                    self.apply(i, &Channel { shift, offset, rstd, weight: weight[i], bias: bias[i], relu }, x, y);
                    (stats[i], stats[c + i], stats[2 * c + i]) = (shift, offset, rstd);
                    let unbiased = squares / T::from_usize(self.shape.pixels() - 1);
                    self.update(&mut running_mean[i], shift + offset);
                    self.update(&mut running_var[i], unbiased);
                }
            }
            ("forward", [x, weight, bias, mean, variance], [y]) => {
                for i in 0..c {
                    let a = self.running(mean[i], variance[i], weight[i], bias[i]);
                    self.apply(i, &a, x, y);
                }
            }
            ("backward", [x, weight, bias, stats, dy], [dx, dweight, dbias]) => {
                for i in 0..c {
                    let (shift, offset, rstd) = (stats[i], stats[c + i], stats[2 * c + i]);
                    let a = Channel { shift, offset, rstd, weight: weight[i], bias: bias[i], relu };
                    (dweight[i], dbias[i]) = self.gradient(i, &a, x, dy, dx);
                }
            }
            ("backward", [x, weight, bias, mean, variance, dy], [dx, dweight, dbias]) => {
                for i in 0..c {
                    let a = self.running(mean[i], variance[i], weight[i], bias[i]);
                    (dweight[i], dbias[i]) = self.gradient(i, &a, x, dy, dx);
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

/// The map of one channel: y = ((x - shift) - offset) * rstd * weight + bias, then the ReLU.
struct Channel<T> {
    shift: T,
    offset: T,
    rstd: T,
    weight: T,
    bias: T,
    relu: bool,
}

impl<T: Real> Channel<T> {
    fn normalized(&self, x: T) -> T {
        (x - self.shift - self.offset) * self.rstd
    }

    fn output(&self, x: T) -> T {
        let y = self.normalized(x) * self.weight + self.bias;
        if self.relu { y.relu() } else { y }
    }

    /// The normalized x, and dy as it arrives before the ReLU.
    fn masked(&self, x: T, dy: T) -> (T, T) {
        let xhat = self.normalized(x);
        let cut = self.relu && xhat * self.weight + self.bias <= T::zero();
        (xhat, if cut { T::zero() } else { dy })
    }
}

impl Op for BatchNorm {
    fn kind(&self) -> &'static str {
        INFO.name
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
        if self.config.training {
            Passes {
                forward: Pass::forward(["x", "weight", "bias"], ["y", "stats"])
                    .updating(["running_mean", "running_var"]),
                backward: vec![Pass::new(
                    "backward",
                    [operand("x"), operand("weight"), operand("bias"), operand("stats"), grad("y")],
                    [grad("x"), grad("weight"), grad("bias")],
                )],
                aliases: vec![],
            }
        } else {
            Passes {
                forward: Pass::forward(["x", "weight", "bias", "running_mean", "running_var"], ["y"]),
                backward: vec![Pass::new(
                    "backward",
                    [
                        operand("x"),
                        operand("weight"),
                        operand("bias"),
                        operand("running_mean"),
                        operand("running_var"),
                        grad("y"),
                    ],
                    [grad("x"), grad("weight"), grad("bias")],
                )],
                aliases: vec![],
            }
        }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["columns"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let columns = Columns::new(self.shape, target.profile);
        let training = self.config.training;
        let eps = ("EPS", self.config.eps);
        let relu = ("RELU", f64::from(self.config.relu));
        let dispatch = |kernel, bindings: &[Bind], mut overrides: Vec<(&'static str, f64)>| {
            overrides.push(columns.lanes());
            Dispatch {
                overrides,
                params: columns.params().bytes(),
                workgroups: columns.workgroups(),
                ..Dispatch::new(kernel, bindings.iter().copied())
            }
        };
        let [x, weight, bias, mean, var] =
            ["x", "weight", "bias", "running_mean", "running_var"].map(|name| operand(name).into());
        let (y, stats, dy) = (operand("y").into(), operand("stats").into(), grad("y").into());
        let scratch = Bind::Scratch(0);
        Ok(match (pass, training) {
            ("forward", true) => {
                let overrides = vec![eps, relu, ("MOMENTUM", self.config.momentum)];
                Lowered {
                    dispatches: vec![
                        dispatch(&STATISTICS, &[x, scratch], vec![]),
                        dispatch(&NORMALIZE, &[x, weight, bias, scratch, y, stats, mean, var], overrides),
                    ],
                    scratch: vec![columns.row_bytes(2 * columns.chunks)],
                }
            }
            ("forward", false) => Lowered::one(dispatch(&EVALUATE, &[x, weight, bias, mean, var, y], vec![eps, relu])),
            ("backward", _) => {
                let sums = if training {
                    dispatch(&SUMS, &[x, weight, bias, dy, scratch, stats], vec![relu])
                } else {
                    dispatch(&SUMS_EVALUATION, &[x, weight, bias, dy, scratch, mean, var], vec![eps, relu])
                };
                let [dx, dweight, dbias] = ["x", "weight", "bias"].map(|name| grad(name).into());
                let overrides = vec![relu, ("TRAINING", f64::from(training))];
                let gradient = dispatch(&GRADIENT, &[x, dy, scratch, dx, dweight, dbias], overrides)
                    .accumulate("ACC_DX", target.acc(0))
                    .accumulate("ACC_DWEIGHT", target.acc(1))
                    .accumulate("ACC_DBIAS", target.acc(2));
                Lowered { dispatches: vec![sums, gradient], scratch: vec![columns.row_bytes(5 + 2 * columns.chunks)] }
            }
            _ => return Err(no_such_pass(self, pass)),
        })
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let per_element = match (pass.name, self.config.training) {
            ("forward", true) => 9.0, // difference, mean, squared deviation; normalize, scale and shift
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

static STATISTICS: Kernel = Kernel {
    name: "batch_norm.forward.statistics",
    variant: "columns",
    file: "norm/batch_norm.wgsl",
    source: include_str!("../../../../shaders/norm/batch_norm.wgsl"),
    entry: "statistics",
    defines: &[("STAGE", 0)],
    bindings: &[("x", Access::Read), ("partials", Access::ReadWrite)],
    params: Params::FIELDS,
    overrides: &["GROUPS"],
    ..Kernel::DEFAULT
};

static NORMALIZE: Kernel = Kernel {
    name: "batch_norm.forward.normalize",
    entry: "normalize_batch",
    defines: &[("STAGE", 1)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("partials", Access::Read),
        ("y", Access::ReadWrite),
        ("stats", Access::ReadWrite),
        ("running_mean", Access::ReadWrite),
        ("running_var", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "MOMENTUM", "RELU"],
    ..STATISTICS
};

static EVALUATE: Kernel = Kernel {
    name: "batch_norm.forward.evaluate",
    entry: "evaluate",
    defines: &[("STAGE", 2)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("running_mean", Access::Read),
        ("running_var", Access::Read),
        ("y", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "RELU"],
    ..STATISTICS
};

static SUMS: Kernel = Kernel {
    name: "batch_norm.backward.sums",
    entry: "sums",
    defines: &[("STAGE", 3)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("dy", Access::Read),
        ("scratch", Access::ReadWrite),
        ("stats", Access::Read),
    ],
    overrides: &["GROUPS", "RELU"],
    ..STATISTICS
};

static SUMS_EVALUATION: Kernel = Kernel {
    name: "batch_norm.backward.sums_evaluation",
    defines: &[("STAGE", 4)],
    bindings: &[
        ("x", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("dy", Access::Read),
        ("scratch", Access::ReadWrite),
        ("running_mean", Access::Read),
        ("running_var", Access::Read),
    ],
    overrides: &["GROUPS", "EPS", "RELU"],
    ..SUMS
};

static GRADIENT: Kernel = Kernel {
    name: "batch_norm.backward.gradient",
    entry: "gradient",
    defines: &[("STAGE", 5)],
    bindings: &[
        ("x", Access::Read),
        ("dy", Access::Read),
        ("scratch", Access::Read),
        ("dx", Access::ReadWrite),
        ("dweight", Access::ReadWrite),
        ("dbias", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "RELU", "TRAINING", "ACC_DX", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..STATISTICS
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "batch_norm",
    kernels: || vec![&STATISTICS, &NORMALIZE, &EVALUATE, &SUMS, &SUMS_EVALUATION, &GRADIENT],
    cases: || {
        let mut cases = vec![];
        let mut add = |name: &str, shape: Shape, training: bool, relu: bool, x: Distribution| -> Result<()> {
            let op = BatchNorm::new(shape, BatchNormConfig { training, relu, ..BatchNormConfig::default() })?;
            let mode = if training { "training" } else { "evaluation" };
            let name = format!("{name}_{mode}{}", if relu { "_relu" } else { "" });
            let case = Case::new(name, op).fill("x", x).fill("running_var", Distribution::Uniform(0.5, 2.0));
            // Differences quotients need x of order one and few elements near the ReLU's kink.
            let smooth = x == Distribution::Normal(0.0, 1.0) && shape.len() < 2000;
            cases.push(if smooth { case } else { case.not_differentiated() });
            Ok(())
        };
        let standard = Distribution::Normal(0.0, 1.0);
        for training in [true, false] {
            for relu in [false, true] {
                add("odd", Shape::new(3, 5, 7, 3), training, relu, standard)?;
                add("group_of_tiles", Shape::new(2, 35, 3, 5), training, relu, standard)?;
            }
        }
        add("two_values", Shape::new(2, 1, 1, 1), true, false, standard)?;
        add("one", Shape::new(1, 1, 1, 1), false, true, standard)?;
        add("many_chunks", Shape::new(5, 3, 29, 31), true, true, standard)?;
        add("model", Shape::new(8, 64, 16, 16), true, true, standard)?;
        // A one-pass variance in f32 would be lost in each of these.
        add("mean_100_std_half", Shape::new(8, 6, 9, 9), true, false, Distribution::Normal(100.0, 0.5))?;
        add("mean_1000_std_hundredth", Shape::new(8, 6, 9, 9), true, false, Distribution::Normal(1000.0, 0.01))?;
        add("std_thousandth", Shape::new(8, 6, 9, 9), true, false, Distribution::Normal(0.0, 0.001))?;
        Ok(cases)
    },
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_a_channel_has_no_variance() {
        let config = BatchNormConfig::default();
        assert!(BatchNorm::new(Shape::new(1, 8, 1, 1), config).is_err());
        assert!(BatchNorm::new(Shape::new(1, 8, 1, 1), BatchNormConfig { training: false, ..config }).is_ok());
        assert!(BatchNorm::new(Shape::new(2, 8, 1, 1), BatchNormConfig { eps: f64::NAN, ..config }).is_err());
        assert!(BatchNorm::new(Shape::new(2, 8, 1, 1), BatchNormConfig { momentum: 1.5, ..config }).is_err());
    }

    #[test]
    fn running_statistics_are_pytorchs() {
        let op = BatchNorm::new(Shape::new(4, 1, 1, 1), BatchNormConfig::default()).unwrap();
        let (mut y, mut stats, mut mean, mut var) = ([0.0; 4], [0.0; 3], [10.0], [1.0]);
        let reads: [&[f64]; 3] = [&[1.0, 2.0, 3.0, 6.0], &[1.0], &[0.0]];
        op.reference("forward", &reads, &mut [&mut y, &mut stats, &mut mean, &mut var]).unwrap();
        assert!((mean[0] - (9.0 + 0.3)).abs() < 1e-12); // the batch's mean is 3
        assert!((var[0] - (0.9 + 0.1 * 14.0 / 3.0)).abs() < 1e-12); // its unbiased variance 14/3
    }
}
