//! The second half of a batch norm over the images of several processes: it normalizes with moments that
//! [`BatchMoments`](super::BatchMoments) has computed and the processes have merged.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Kernel, Lowered, grad, operand};
use crate::runtime::op::norm::batch_moments;
use crate::runtime::op::norm::channel_reduce::{ChannelReduce, Params, defines};
use crate::runtime::op::norm::normalize::Normalize;
use crate::runtime::op::{
    BatchNorm, ChannelShift, Cost, Exchange, Init, Op, Operand, Part, Pass, Passes, Reference, Role, Target,
    no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "moments_norm";

/// y = (x - mean) / sqrt(squares / count + eps) * weight + bias for each channel, followed by max(y, 0) if the norm has a ReLU.
///
/// `x`, `y`: `[n, c, h, w]`; `moments`: as of [`BatchMoments`](super::BatchMoments), of these images and perhaps more; `weight`, `bias`,
/// `running_mean`, `running_var`: `[c]`. The running statistics move towards the mean and the unbiased variance of the moments.
///
/// The backward pass has two parts. `sums` computes the gradients of `weight`, `bias` and `moments`; that of the moments is the way in which
/// each image depends on all others. `direct` computes the gradient of `x` for constant moments.
#[derive(Clone, Copy, Debug)]
pub struct MomentsNorm {
    norm: BatchNorm,
}

impl MomentsNorm {
    /// Creates the second half of a norm, which is in training.
    #[must_use]
    pub fn of(norm: BatchNorm) -> Self {
        Self { norm }
    }

    /// The same norm, followed by a ReLU.
    #[must_use]
    pub(crate) fn with_relu(self) -> Self {
        Self { norm: self.norm.with_relu() }
    }

    fn shape(&self) -> Shape {
        self.norm.shape()
    }

    /// The map of the values of a channel.
    fn map<T: Real>(&self, moments: &[T], weight: &[T], bias: &[T], i: usize) -> Normalize<T> {
        let c = self.shape().c;
        let rstd = self.norm.inverse_std(moments[2 * c + i] / moments[3 * c + i]);
        let relu = self.norm.config().relu;
        Normalize { pivot: moments[i], offset: moments[c + i], rstd, weight: weight[i], bias: bias[i], relu }
    }
}

/// Adds the gradients of the moments, each weighted with the share of its process in the loss, in double precision.
fn add(parts: &[Part]) -> Vec<f32> {
    let len = parts.first().map_or(0, |part| part.values.len());
    let sum = |i: usize| {
        let weighted = |part: &Part| part.weight * f64::from(part.values.get(i).copied().unwrap_or(f32::NAN));
        parts.iter().map(weighted).sum::<f64>() as f32
    };
    (0..len).map(sum).collect()
}

impl Reference for MomentsNorm {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let (c, area) = (self.shape().c, self.shape().h * self.shape().w);
        // The images of a channel, one after the other.
        let channel = |i: usize| (0..self.shape().n).map(move |n| (n * c + i) * area..(n * c + i + 1) * area);
        match (pass, reads, writes) {
            ("forward", [x, moments, weight, bias], [y, running_mean, running_var]) => {
                for i in 0..c {
                    let map = self.map(moments, weight, bias, i);
                    for plane in channel(i) {
                        for (y, x) in y[plane.clone()].iter_mut().zip(&x[plane]) {
                            *y = map.output(*x);
                        }
                    }
                    let unbiased = moments[2 * c + i] / (moments[3 * c + i] - T::from_f64(1.0));
                    self.norm.update(&mut running_mean[i], map.pivot + map.offset);
                    self.norm.update(&mut running_var[i], unbiased);
                }
            }
            ("sums", [x, moments, weight, bias, dy], [dmoments, dweight, dbias]) => {
                for i in 0..c {
                    let map = self.map(moments, weight, bias, i);
                    let (mut sum_g, mut sum_gx) = (T::zero(), T::zero());
                    for plane in channel(i) {
                        // Sums of the images are added at the end, which rounds less than one running sum.
                        let (mut db, mut dw) = (T::zero(), T::zero());
                        for (x, dy) in x[plane.clone()].iter().zip(&dy[plane]) {
                            let (xhat, g) = map.masked(*x, *dy);
                            db += g;
                            dw += g * xhat;
                        }
                        sum_g += db;
                        sum_gx += dw;
                    }
                    (dweight[i], dbias[i]) = (sum_gx, sum_g);
                    let scale = map.weight * map.rstd;
                    let (squares, count) = (moments[2 * c + i], moments[3 * c + i]);
                    let dmean = -(scale * sum_g);
                    let dsquares = T::from_f64(-0.5) * scale * map.rstd * sum_gx / count;
                    let dcount = -(dsquares * (squares / count));
                    for (row, value) in [dmean, dmean, dsquares, dcount].into_iter().enumerate() {
                        dmoments[row * c + i] = value;
                    }
                }
            }
            ("direct", [x, moments, weight, bias, dy], [dx]) => {
                for i in 0..c {
                    let map = self.map(moments, weight, bias, i);
                    for plane in channel(i) {
                        for ((dx, x), dy) in dx[plane.clone()].iter_mut().zip(&x[plane.clone()]).zip(&dy[plane]) {
                            *dx = map.masked(*x, *dy).1 * (map.weight * map.rstd);
                        }
                    }
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for MomentsNorm {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let vector = Spec::vector(self.shape().c);
        vec![
            Operand::new("x", Role::Input, Spec::nhwc(self.shape())),
            Operand::new("moments", Role::Input, batch_moments::spec(self.shape().c)),
            Operand::new("weight", Role::Param(Init::Constant(1.0)), vector),
            Operand::new("bias", Role::Param(Init::Constant(0.0)), vector),
            Operand::new("running_mean", Role::State(0.0), vector),
            Operand::new("running_var", Role::State(1.0), vector),
            Operand::new("y", Role::Output, Spec::nhwc(self.shape())),
        ]
    }

    fn passes(&self) -> Passes {
        let inputs = ["x", "moments", "weight", "bias"];
        let reads = || inputs.map(operand).into_iter().chain([grad("y")]);
        let backward = vec![
            Pass::new("sums", reads(), ["moments", "weight", "bias"].map(grad)),
            Pass::new("direct", reads(), [grad("x")]),
        ];
        let forward = Pass::forward(inputs, ["y"]).updating(["running_mean", "running_var"]);
        Passes { backward, ..Passes::only(forward) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["channel_reduce"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let config = self.norm.config();
        let (eps, relu) = (("EPS", config.eps), ("RELU", f64::from(config.relu)));
        let [x, moments, weight, bias, mean, var, y] =
            ["x", "moments", "weight", "bias", "running_mean", "running_var", "y"].map(|name| operand(name).into());
        let [dy, dx, dmoments, dweight, dbias] = ["y", "x", "moments", "weight", "bias"].map(|name| grad(name).into());
        let independent = ChannelReduce::independent(self.shape(), target.profile);
        match pass {
            "forward" => {
                let bindings = [x, moments, weight, bias, y, mean, var];
                let overrides = [eps, relu, ("MOMENTUM", config.momentum)];
                let normalize = independent.dispatch(&NORMALIZE, &bindings, &overrides);
                Ok(Lowered::one(normalize.iterations(independent.over_positions())))
            }
            "sums" => {
                let reduce = ChannelReduce::new(self.shape(), target.profile);
                let partials = Bind::Scratch(0);
                let sums = reduce.dispatch(&SUMS, &[x, moments, weight, bias, dy, partials], &[eps, relu]);
                let sums = sums.iterations(reduce.over_positions() + reduce.over_rows());
                let bindings = [partials, moments, weight, dmoments, dweight, dbias];
                let merge = reduce
                    .merge(&MERGE_SUMS, &bindings, &[eps])
                    .accumulate("ACC_DMOMENTS", target.acc(0))
                    .accumulate("ACC_DWEIGHT", target.acc(1))
                    .accumulate("ACC_DBIAS", target.acc(2))
                    .iterations(reduce.over_chunks(1) + reduce.over_rows());
                Ok(Lowered { dispatches: vec![sums, merge], scratch: vec![reduce.row_bytes(2 * reduce.chunks)] })
            }
            "direct" => {
                let direct = independent.dispatch(&DIRECT, &[x, moments, weight, bias, dy, dx], &[eps, relu]);
                let direct = direct.iterations(independent.over_positions());
                Ok(Lowered::one(direct.accumulate("ACC_DX", target.acc(0))))
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let per_element = if pass.name == "sums" { 7.0 } else { 4.0 };
        Cost::of(self, pass, per_element * self.shape().len() as f64)
    }

    /// Together with the moments, which move by the same shift.
    fn channel_shift(&self, input: &str) -> ChannelShift {
        if input == "x" { ChannelShift::Absorbs } else { ChannelShift::Depends }
    }

    fn exchange(&self, pass: &str) -> Option<Exchange> {
        (pass == "sums").then_some(Exchange { arg: grad("moments"), merge: add })
    }
}

static NORMALIZE: Kernel = Kernel {
    name: "moments_norm.forward",
    variant: "channel_reduce",
    file: "norm/moments_norm.wgsl",
    source: include_str!("../../../../shaders/norm/moments_norm.wgsl"),
    defines: &defines(0),
    bindings: &[
        ("x", Read),
        ("moments", Read),
        ("weight", Read),
        ("bias", Read),
        ("y", ReadWrite),
        ("running_mean", ReadWrite),
        ("running_var", ReadWrite),
    ],
    params: Params::FIELDS,
    overrides: &["GROUPS", "EPS", "RELU", "MOMENTUM"],
    ..Kernel::DEFAULT
};

static SUMS: Kernel = Kernel {
    name: "moments_norm.sums",
    defines: &defines(1),
    bindings: &[
        ("x", Read),
        ("moments", Read),
        ("weight", Read),
        ("bias", Read),
        ("dy", Read),
        ("partials", ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "RELU"],
    ..NORMALIZE
};

static MERGE_SUMS: Kernel = Kernel {
    name: "moments_norm.merge_sums",
    defines: &defines(2),
    bindings: &[
        ("partials", Read),
        ("moments", Read),
        ("weight", Read),
        ("dmoments", ReadWrite),
        ("dweight", ReadWrite),
        ("dbias", ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "ACC_DMOMENTS", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..NORMALIZE
};

static DIRECT: Kernel = Kernel {
    name: "moments_norm.direct",
    defines: &defines(3),
    bindings: &[("x", Read), ("moments", Read), ("weight", Read), ("bias", Read), ("dy", Read), ("dx", ReadWrite)],
    overrides: &["GROUPS", "EPS", "RELU", "ACC_DX"],
    ..NORMALIZE
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&NORMALIZE, &SUMS, &MERGE_SUMS, &DIRECT];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::{BatchMoments, BatchNormConfig};

    /// Six images of three channels, far from zero, with their gradients.
    const SHAPE: Shape = Shape::new(6, 3, 2, 3);

    fn values(seed: usize, len: usize) -> Vec<f64> {
        (0..len).map(|i| ((i * 37 + seed * 101) as f64 * 0.61).sin() * 1.7).collect()
    }

    fn close(what: &str, found: &[f64], expected: &[f64], limit: f64) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            assert!((found - expected).abs() <= limit * expected.abs().max(1.0), "{what}: {found} against {expected}");
        }
    }

    /// The images in parts of these sizes, as processes have them, give what a batch norm of all of them gives.
    #[test]
    fn parts_have_the_values_and_gradients_of_one_batch() {
        let (weight, bias) = ([1.5, -0.7, 0.9], [0.2, 0.1, -0.4]);
        let (x, dy) = (values(1, SHAPE.len()).iter().map(|x| x + 30.0).collect::<Vec<_>>(), values(2, SHAPE.len()));
        let norm =
            |n| BatchNorm::new(SHAPE.with_n(n), BatchNormConfig { relu: true, ..BatchNormConfig::default() }).unwrap();
        let mut whole = [vec![0.0; SHAPE.len()], vec![0.0; 9], vec![5.0; 3], vec![2.0; 3]];
        norm(6).reference("forward", &[&x, &weight, &bias], &mut whole.each_mut().map(Vec::as_mut_slice)).unwrap();
        let mut grads = [vec![0.0; SHAPE.len()], vec![0.0; 3], vec![0.0; 3]];
        let reads: [&[f64]; 5] = [&x, &weight, &bias, &whole[1], &dy];
        norm(6).reference("backward", &reads, &mut grads.each_mut().map(Vec::as_mut_slice)).unwrap();

        let image = SHAPE.len() / SHAPE.n;
        let parts = [0..1, 1..4, 4..6].map(|images| (norm(images.len()), images.start * image..images.end * image));
        // What the processes send each other has single precision.
        let exchange = |op: &dyn Op, pass: &str, own: &[Vec<f64>], n: f64| -> Vec<f64> {
            let single = |values: &Vec<f64>| values.iter().map(|v| *v as f32).collect();
            let part = |(values, (_, range)): (&Vec<f64>, &(BatchNorm, std::ops::Range<usize>))| Part {
                values: single(values),
                weight: range.len() as f64 / n,
            };
            let all: Vec<Part> = own.iter().zip(&parts).map(part).collect();
            (op.exchange(pass).unwrap().merge)(&all).into_iter().map(f64::from).collect()
        };
        let moments = parts.clone().map(|(norm, range)| {
            let mut moments = vec![0.0; 12];
            BatchMoments::of(norm).reference("forward", &[&x[range]], &mut [&mut moments]).unwrap();
            moments
        });
        let moments = exchange(&BatchMoments::of(norm(1)), "forward", &moments, 1.0);
        let (mut sums, mut dweight, mut dbias) = (Vec::new(), [0.0; 3], [0.0; 3]);
        for (norm, range) in &parts {
            // The loss of a process is the mean over its images; together they weigh as much as the loss of the whole batch.
            let own = range.len() as f64 / SHAPE.len() as f64;
            let dy: Vec<f64> = dy[range.clone()].iter().map(|dy| dy / own).collect();
            let op = MomentsNorm::of(*norm);
            let (mut y, mut mean, mut var) = (vec![0.0; range.len()], [5.0; 3], [2.0; 3]);
            let reads: [&[f64]; 4] = [&x[range.clone()], &moments, &weight, &bias];
            op.reference("forward", &reads, &mut [&mut y, &mut mean, &mut var]).unwrap();
            close("y", &y, &whole[0][range.clone()], 1e-5);
            close("running mean", &mean, &whole[2], 1e-6);
            close("running variance", &var, &whole[3], 1e-6);
            let (mut dmoments, mut dw, mut db) = (vec![0.0; 12], [0.0; 3], [0.0; 3]);
            let reads: [&[f64]; 5] = [&x[range.clone()], &moments, &weight, &bias, &dy];
            op.reference("sums", &reads, &mut [&mut dmoments, &mut dw, &mut db]).unwrap();
            sums.push(dmoments);
            for i in 0..3 {
                dweight[i] += own * dw[i];
                dbias[i] += own * db[i];
            }
        }
        close("dweight", &dweight, &grads[1], 1e-5);
        close("dbias", &dbias, &grads[2], 1e-5);
        for (norm, range) in &parts {
            let own = range.len() as f64 / SHAPE.len() as f64;
            let dy: Vec<f64> = dy[range.clone()].iter().map(|dy| dy / own).collect();
            let (op, len) = (MomentsNorm::of(*norm), range.len() as f64);
            let dmoments = exchange(&op, "sums", &sums, len);
            let (mut direct, mut from_moments) = (vec![0.0; range.len()], vec![0.0; range.len()]);
            let x = &x[range.clone()];
            op.reference("direct", &[x, &moments, &weight, &bias, &dy], &mut [&mut direct]).unwrap();
            BatchMoments::of(*norm).reference("backward", &[x, &moments, &dmoments], &mut [&mut from_moments]).unwrap();
            let dx: Vec<f64> = direct.iter().zip(&from_moments).map(|(a, b)| own * (a + b)).collect();
            close("dx", &dx, &grads[0][range.clone()], 1e-5);
        }
    }
}
