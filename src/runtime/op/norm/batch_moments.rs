//! The moments of a batch, which processes merge: the first half of a batch norm over the images of several processes.
//!
//! [`MomentsNorm`](super::MomentsNorm) is the other half. Both together compute what [`BatchNorm`] computes, in two steps between which
//! the moments can be exchanged. The gradient of the moments is exchanged in the same way.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Bind, Kernel, Lowered, grad, operand};
use crate::runtime::op::norm::channel_reduce::{ChannelReduce, Params, defines};
use crate::runtime::op::{
    BatchNorm, ChannelShift, Cost, Exchange, Op, Operand, Part, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "batch_moments";

/// Rows of `moments`: pivot, offset, squares, count.
pub(super) const ROWS: usize = 4;

/// Shape and layout of the moments of `channels` channels.
pub(super) fn spec(channels: usize) -> Spec {
    Spec::nhwc(Shape::new(ROWS, channels, 1, 1))
}

/// The moments of each channel.
///
/// `x`: `[n, c, h, w]`. `moments`: `[4, c]`, the rows pivot (a value of the channel), offset = mean - pivot, squares (the sum of squared
/// deviations from the mean), and count, the number of values. The moments of several batches merge into those of all their images.
///
/// The gradient of the row `offset` is that of the mean. The pivot is only a point of reference, so its row has no share in `dx`.
#[derive(Clone, Copy, Debug)]
pub struct BatchMoments {
    norm: BatchNorm,
}

impl BatchMoments {
    /// Creates the first half of a norm.
    #[must_use]
    pub fn of(norm: BatchNorm) -> Self {
        Self { norm }
    }

    fn shape(&self) -> Shape {
        self.norm.shape()
    }
}

/// Merges the moments of batches by the parallel update of Chan, Golub and LeVeque, in double precision. The pivot is that of the first.
pub(super) fn merge(parts: &[Part]) -> Vec<f32> {
    let Some(first) = parts.first() else { return Vec::new() };
    let mut merged = first.values.clone();
    let c = merged.len() / ROWS;
    for channel in 0..c {
        let row = |part: &Part, row: usize| f64::from(part.values.get(row * c + channel).copied().unwrap_or(f32::NAN));
        let pivot = row(first, 0);
        let (mut offset, mut squares, mut count) = (row(first, 1), row(first, 2), row(first, 3));
        for part in parts.iter().skip(1) {
            let all = count + row(part, 3);
            let share = row(part, 3) / all;
            let apart = (row(part, 0) - pivot) + row(part, 1) - offset;
            squares += row(part, 2) + apart * apart * count * share;
            offset += apart * share;
            count = all;
        }
        for (row, value) in [(1, offset), (2, squares), (3, count)] {
            if let Some(cell) = merged.get_mut(row * c + channel) {
                *cell = value as f32;
            }
        }
    }
    merged
}

impl Reference for BatchMoments {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let (c, area) = (self.shape().c, self.shape().h * self.shape().w);
        match (pass, reads, writes) {
            ("forward", [x], [moments]) => {
                for i in 0..c {
                    let (pivot, offset, _, squares) = self.norm.moments(x, i);
                    let count = T::from_usize(self.shape().positions());
                    for (row, value) in [pivot, offset, squares, count].into_iter().enumerate() {
                        moments[row * c + i] = value;
                    }
                }
            }
            ("backward", [x, moments, dmoments], [dx]) => {
                let planes = dx.chunks_exact_mut(area).zip(x.chunks_exact(area)).zip((0..c).cycle());
                for ((dx, x), i) in planes {
                    let (pivot, offset, count) = (moments[i], moments[c + i], moments[3 * c + i]);
                    let (from_mean, from_squares) = (dmoments[c + i] / count, T::from_f64(2.0) * dmoments[2 * c + i]);
                    for (dx, x) in dx.iter_mut().zip(x) {
                        *dx = from_mean + from_squares * (*x - pivot - offset);
                    }
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for BatchMoments {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("x", Role::Input, Spec::nhwc(self.shape())),
            Operand::new("moments", Role::Output, spec(self.shape().c)),
        ]
    }

    fn passes(&self) -> Passes {
        // By the time of the backward pass the moments are those of all processes.
        let reads = [operand("x"), operand("moments"), grad("moments")];
        let backward = vec![Pass::new("backward", reads, [grad("x")])];
        Passes { backward, ..Passes::only(Pass::forward(["x"], ["moments"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["channel_reduce"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let [x, moments, dmoments, dx] = [operand("x"), operand("moments"), grad("moments"), grad("x")].map(Bind::from);
        match pass {
            "forward" => {
                let reduce = ChannelReduce::new(self.shape(), target.profile);
                let partials = Bind::Scratch(0);
                Ok(Lowered {
                    dispatches: vec![
                        reduce
                            .dispatch(&STATISTICS, &[x, partials], &[])
                            .iterations(reduce.over_positions() + reduce.over_row_pairs()),
                        reduce
                            .merge(&MERGE, &[x, partials, moments], &[])
                            .iterations(reduce.over_chunks(1) + reduce.over_row_pairs()),
                    ],
                    scratch: vec![reduce.row_bytes(2 * reduce.chunks)],
                })
            }
            "backward" => {
                let reduce = ChannelReduce::independent(self.shape(), target.profile);
                let gradient = reduce.dispatch(&GRADIENT, &[x, moments, dmoments, dx], &[]);
                let gradient = gradient.iterations(reduce.over_positions());
                Ok(Lowered::one(gradient.accumulate("ACC_DX", target.acc(0))))
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let per_element = if pass.name == "forward" { 5.0 } else { 4.0 };
        Cost::of(self, pass, per_element * self.shape().len() as f64)
    }

    /// The norm that the moments belong to has the same `x`, and both together absorb a shift.
    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Absorbs
    }

    fn exchange(&self, pass: &str) -> Option<Exchange> {
        (pass == "forward").then_some(Exchange { arg: operand("moments"), merge })
    }
}

static STATISTICS: Kernel = Kernel {
    name: "batch_moments.forward.statistics",
    variant: "channel_reduce",
    file: "norm/batch_moments.wgsl",
    source: include_str!("../../../../shaders/norm/batch_moments.wgsl"),
    defines: &defines(0),
    bindings: &[("x", Read), ("partials", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["GROUPS"],
    ..Kernel::DEFAULT
};

static MERGE: Kernel = Kernel {
    name: "batch_moments.forward.merge",
    defines: &defines(1),
    bindings: &[("x", Read), ("partials", Read), ("moments", ReadWrite)],
    ..STATISTICS
};

static GRADIENT: Kernel = Kernel {
    name: "batch_moments.backward",
    defines: &defines(2),
    bindings: &[("x", Read), ("moments", Read), ("dmoments", Read), ("dx", ReadWrite)],
    overrides: &["GROUPS", "ACC_DX"],
    ..STATISTICS
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&STATISTICS, &MERGE, &GRADIENT];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::op::BatchNormConfig;

    #[test]
    fn moments_of_parts_merge_into_those_of_all_images() {
        // Three images of two channels, far from zero.
        let value = |i: usize| 1000.0 + (i as f32 * 0.37).sin() + if i % 8 < 4 { 0.0 } else { 50.0 };
        let x: Vec<f32> = (0..3 * 8).map(value).collect();
        let moments = |images: std::ops::Range<usize>| {
            let norm = BatchNorm::new(Shape::new(images.len(), 2, 2, 2), BatchNormConfig::default()).unwrap();
            let mut moments = vec![0.0; ROWS * 2];
            let x = &x[8 * images.start..8 * images.end];
            BatchMoments::of(norm).reference("forward", &[x], &mut [&mut moments]).unwrap();
            moments
        };
        let parts: Vec<Part> = [0..1, 1..3].map(|images| Part { values: moments(images), weight: 1.0 }).into();
        let (merged, all) = (merge(&parts), moments(0..3));
        assert_eq!((&merged[..2], &merged[6..]), (&all[..2], [12.0; 2].as_slice()));
        for (merged, all) in merged.iter().zip(&all) {
            assert!((merged - all).abs() <= 1e-5 * all.abs(), "{merged} against {all}");
        }
        assert_eq!(merge(&parts[..1]), parts[0].values);
    }
}
