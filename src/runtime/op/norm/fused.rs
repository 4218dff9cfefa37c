//! The dispatches of a batch norm whose normalization, ReLU and gradient sums are fused into the convolutions before and after it.
//! The formulas are in `shaders/norm/fused_norm.wgsl`.

use crate::runtime::kernel::Access::{Read, ReadWrite, Texture};
use crate::runtime::kernel::{Bind, Dispatch, Kernel, KernelRole, Lowered, Profile, grad, operand};
use crate::runtime::op::BatchNormConfig;
use crate::runtime::op::norm::channel_reduce::{ChannelReduce, LANES, Params, UNROLLED, WIDE_LANES};
use crate::runtime::tensor::Shape;

/// Positions whose statistics are computed together. A convolution that emits statistics has tiles of as many rows.
pub(crate) const CHUNK: usize = 128;
/// Rows of `stats`: pivot, offset, rstd, scale, addend.
pub(crate) const STATS_ROWS: usize = 5;
/// Rows of statistics for each chunk: pivot, mean - pivot, squared deviations.
pub(crate) const STATISTICS_ROWS: usize = 3;

/// On a GPU, up to this many chunks of sums are merged by each workgroup of the gradient of x, instead of by a dispatch between: each
/// workgroup then reads 16 KiB of sums at most.
const MERGED_BY_GRADIENT: usize = 64;

/// A fused batch norm of a tensor on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FusedNorm {
    config: BatchNormConfig,
    /// Chunks of [`CHUNK`] positions, whose statistics or sums are merged.
    chunked: ChannelReduce,
    /// Chunks of the gradient of x, which nothing merges.
    independent: ChannelReduce,
}

impl FusedNorm {
    pub(crate) fn new(x: Shape, config: BatchNormConfig, profile: &Profile) -> Self {
        let chunked = ChannelReduce::with_span(x, CHUNK, profile);
        Self { config, chunked, independent: ChannelReduce::independent(x, profile) }
    }

    /// Appends the dispatch that computes the statistics of the chunks of `x`.
    pub(crate) fn statistics(&self, lowered: &mut Lowered, x: Bind, partials: Bind) {
        let iterations = self.chunked.over_positions() + self.chunked.over_rows();
        lowered.dispatches.push(self.chunked.dispatch(&STATISTICS, &[x, partials], &[]).iterations(iterations));
    }

    /// Adds a scratch buffer for the statistics of the chunks.
    pub(crate) fn statistics_scratch(&self, lowered: &mut Lowered) -> Bind {
        lowered.new_scratch(self.chunked.row_bytes(STATISTICS_ROWS * self.chunked.chunks))
    }

    /// Appends the dispatch that computes `stats`. In training it merges the statistics of the chunks and updates the running
    /// statistics. In evaluation, where `partials` is `None`, it reads the running statistics.
    pub(crate) fn stats(&self, lowered: &mut Lowered, partials: Option<Bind>) {
        let [weight, bias, stats, mean, var] =
            ["norm_weight", "norm_bias", "stats", "running_mean", "running_var"].map(|name| operand(name).into());
        let eps = ("EPS", self.config.eps);
        lowered.dispatches.push(match partials {
            Some(partials) => {
                let overrides = [eps, ("MOMENTUM", self.config.momentum)];
                let merging = self.chunked.merging(self.chunked.chunks);
                let (kernel, unrolled) = if merging.is_wide() { (&MERGE_WIDE, UNROLLED) } else { (&MERGE, 1) };
                let merge = merging.merge(kernel, &[partials, weight, bias, stats, mean, var], &overrides);
                // Once for the mean, once for the squared deviations.
                merge.iterations(2 * (merging.over_chunks(unrolled) + merging.over_rows()))
            }
            None => self.chunked.merge(&RUNNING, &[mean, var, weight, bias, stats], &[eps]),
        });
    }

    /// Appends the dispatches that compute the gradients of `x` and of the norm's parameters.
    ///
    /// `g`: the gradient before the ReLU that follows the norm. `sums`: the sums of the chunks and their number, if a convolution
    /// computed them. `acc`: whether to add to the gradients of `x`, `norm_weight`, `norm_bias`. `texture`: whether to read `x` from
    /// its texture copy.
    pub(crate) fn gradient(
        &self,
        lowered: &mut Lowered,
        g: Bind,
        sums: Option<(Bind, usize)>,
        acc: [bool; 3],
        texture: bool,
    ) {
        let (x, stats) = (operand("x").into(), operand("stats").into());
        let [dx, dweight, dbias] = ["x", "norm_weight", "norm_bias"].map(|name| grad(name).into());
        let (sums, chunks) = sums.unwrap_or_else(|| {
            let partials = lowered.new_scratch(self.chunked.row_bytes(2 * self.chunked.chunks));
            let iterations = self.chunked.over_positions() + self.chunked.over_rows();
            let sums = self.chunked.dispatch(&SUMS, &[x, g, stats, partials], &[]).iterations(iterations);
            lowered.dispatches.push(sums);
            (partials, self.chunked.chunks)
        });
        let acc_params =
            |dispatch: Dispatch| dispatch.accumulate("ACC_DWEIGHT", acc[1]).accumulate("ACC_DBIAS", acc[2]);
        let overrides = [("TRAINING", f64::from(self.config.training))];
        let positions = self.independent.over_positions();
        let merging = self.chunked.merging(chunks);
        let gradient = if merging.is_wide() && chunks <= MERGED_BY_GRADIENT && !texture {
            let bindings = [x, g, stats, sums, dx, dweight, dbias];
            let gradient = self.independent.dispatch_merging(chunks, &GRADIENT_MERGING, &bindings, &overrides);
            let over_chunks = self.independent.with_chunks(chunks).over_chunks(UNROLLED);
            acc_params(gradient.iterations(over_chunks + self.independent.over_rows() + positions))
        } else {
            let totals = lowered.new_scratch(self.chunked.row_bytes(2));
            let (kernel, unrolled) = if merging.is_wide() { (&MERGE_SUMS_WIDE, UNROLLED) } else { (&MERGE_SUMS, 1) };
            let merge = merging.merge(kernel, &[sums, totals, dweight, dbias], &[]);
            let iterations = merging.over_chunks(unrolled) + merging.over_rows();
            lowered.dispatches.push(acc_params(merge.iterations(iterations)));
            let kernel = if texture { &GRADIENT_TEXTURE } else { &GRADIENT };
            self.independent.dispatch(kernel, &[x, g, stats, totals, dx], &overrides).iterations(positions)
        };
        lowered.dispatches.push(gradient.accumulate("ACC_DX", acc[0]));
    }
}

/// All kernels.
pub(crate) fn kernels() -> Vec<&'static Kernel> {
    let merges = [&MERGE, &MERGE_WIDE, &MERGE_SUMS, &MERGE_SUMS_WIDE];
    let gradients = [&GRADIENT, &GRADIENT_TEXTURE, &GRADIENT_MERGING];
    [&STATISTICS, &RUNNING, &SUMS].into_iter().chain(merges).chain(gradients).collect()
}

/// The defines of a stage whose workgroups have `lanes` invocations, of which each row loads `unrolled` chunks at a time.
const fn defines(stage: i64, lanes: usize, unrolled: usize) -> [(&'static str, i64); 3] {
    [("STAGE", stage), ("LANES", lanes as i64), ("UNROLLED", unrolled as i64)]
}

/// The defines of the gradient of x.
const fn gradient_defines(textures: bool, merging: bool) -> [(&'static str, i64); 5] {
    let [stage, lanes, unrolled] = defines(5, LANES, if merging { UNROLLED } else { 1 });
    [stage, lanes, unrolled, ("TEXTURES", textures as i64), ("MERGING", merging as i64)]
}

static STATISTICS: Kernel = Kernel {
    name: "fused_norm.statistics",
    variant: "channel_reduce",
    role: KernelRole::FusedNorm,
    file: "norm/fused_norm.wgsl",
    source: include_str!("../../../../shaders/norm/fused_norm.wgsl"),
    defines: &defines(0, LANES, 1),
    bindings: &[("x", Read), ("partials", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["GROUPS"],
    ..Kernel::DEFAULT
};

static MERGE: Kernel = Kernel {
    name: "fused_norm.merge",
    defines: &defines(1, LANES, 1),
    bindings: &[
        ("partials", Read),
        ("weight", Read),
        ("bias", Read),
        ("stats", ReadWrite),
        ("running_mean", ReadWrite),
        ("running_var", ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "MOMENTUM"],
    ..STATISTICS
};

static MERGE_WIDE: Kernel = Kernel {
    variant: "channel_reduce_wide",
    defines: &defines(1, WIDE_LANES, UNROLLED),
    workgroup: [WIDE_LANES as u32, 1, 1],
    ..MERGE
};

static RUNNING: Kernel = Kernel {
    name: "fused_norm.running",
    defines: &defines(2, LANES, 1),
    bindings: &[("running_mean", Read), ("running_var", Read), ("weight", Read), ("bias", Read), ("stats", ReadWrite)],
    overrides: &["GROUPS", "EPS"],
    ..STATISTICS
};

static SUMS: Kernel = Kernel {
    name: "fused_norm.sums",
    defines: &defines(3, LANES, 1),
    bindings: &[("x", Read), ("g", Read), ("stats", Read), ("partials", ReadWrite)],
    ..STATISTICS
};

static MERGE_SUMS: Kernel = Kernel {
    name: "fused_norm.merge_sums",
    defines: &defines(4, LANES, 1),
    bindings: &[("partials", Read), ("totals", ReadWrite), ("dweight", ReadWrite), ("dbias", ReadWrite)],
    overrides: &["GROUPS", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..STATISTICS
};

static MERGE_SUMS_WIDE: Kernel = Kernel {
    variant: "channel_reduce_wide",
    defines: &defines(4, WIDE_LANES, UNROLLED),
    workgroup: [WIDE_LANES as u32, 1, 1],
    ..MERGE_SUMS
};

static GRADIENT: Kernel = Kernel {
    name: "fused_norm.gradient",
    defines: &gradient_defines(false, false),
    bindings: &[("x", Read), ("g", Read), ("stats", Read), ("totals", Read), ("dx", ReadWrite)],
    overrides: &["GROUPS", "TRAINING", "ACC_DX"],
    ..STATISTICS
};

static GRADIENT_TEXTURE: Kernel = Kernel {
    variant: "channel_reduce_tex",
    defines: &gradient_defines(true, false),
    bindings: &[("x", Texture), ("g", Read), ("stats", Read), ("totals", Read), ("dx", ReadWrite)],
    ..GRADIENT
};

static GRADIENT_MERGING: Kernel = Kernel {
    variant: "channel_reduce_merging",
    defines: &gradient_defines(false, true),
    bindings: &[
        ("x", Read),
        ("g", Read),
        ("stats", Read),
        ("partials", Read),
        ("dx", ReadWrite),
        ("dweight", ReadWrite),
        ("dbias", ReadWrite),
    ],
    overrides: &["GROUPS", "TRAINING", "ACC_DX", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..GRADIENT
};
