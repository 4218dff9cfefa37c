//! The dispatches of a batch norm whose normalization, ReLU and gradient sums are fused into the convolutions before and after it.
//! The formulas are in `shaders/norm/fused_norm.wgsl`.

use crate::runtime::kernel::Access::{Read, ReadWrite, Texture};
use crate::runtime::kernel::{Bind, Kernel, KernelRole, Lowered, Profile, grad, operand};
use crate::runtime::op::BatchNormConfig;
use crate::runtime::op::norm::channel_reduce::{ChannelReduce, Params};
use crate::runtime::tensor::Shape;

/// Positions whose statistics are computed together. A convolution that emits statistics has tiles of as many rows.
pub(crate) const CHUNK: usize = 128;
/// Rows of `stats`: pivot, offset, rstd, scale, addend.
pub(crate) const STATS_ROWS: usize = 5;
/// Rows of statistics for each chunk: pivot, mean - pivot, squared deviations.
pub(crate) const STATISTICS_ROWS: usize = 3;

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
        lowered.dispatches.push(self.chunked.dispatch(&STATISTICS, &[x, partials], &[]));
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
                self.chunked.merge(&MERGE, &[partials, weight, bias, stats, mean, var], &overrides)
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
            lowered.dispatches.push(self.chunked.dispatch(&SUMS, &[x, g, stats, partials], &[]));
            (partials, self.chunked.chunks)
        });
        let totals = lowered.new_scratch(self.chunked.row_bytes(2));
        let merge = self.chunked.with_chunks(chunks).merge(&MERGE_SUMS, &[sums, totals, dweight, dbias], &[]);
        lowered.dispatches.push(merge.accumulate("ACC_DWEIGHT", acc[1]).accumulate("ACC_DBIAS", acc[2]));
        let kernel = if texture { &GRADIENT_TEXTURE } else { &GRADIENT };
        let overrides = [("TRAINING", f64::from(self.config.training))];
        let gradient = self.independent.dispatch(kernel, &[x, g, stats, totals, dx], &overrides);
        lowered.dispatches.push(gradient.accumulate("ACC_DX", acc[0]));
    }
}

/// All kernels.
pub(crate) fn kernels() -> [&'static Kernel; 7] {
    [&STATISTICS, &MERGE, &RUNNING, &SUMS, &MERGE_SUMS, &GRADIENT, &GRADIENT_TEXTURE]
}

static STATISTICS: Kernel = Kernel {
    name: "fused_norm.statistics",
    variant: "channel_reduce",
    role: KernelRole::FusedNorm,
    file: "norm/fused_norm.wgsl",
    source: include_str!("../../../../shaders/norm/fused_norm.wgsl"),
    defines: &[("STAGE", 0)],
    bindings: &[("x", Read), ("partials", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["GROUPS"],
    ..Kernel::DEFAULT
};

static MERGE: Kernel = Kernel {
    name: "fused_norm.merge",
    defines: &[("STAGE", 1)],
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

static RUNNING: Kernel = Kernel {
    name: "fused_norm.running",
    defines: &[("STAGE", 2)],
    bindings: &[("running_mean", Read), ("running_var", Read), ("weight", Read), ("bias", Read), ("stats", ReadWrite)],
    overrides: &["GROUPS", "EPS"],
    ..STATISTICS
};

static SUMS: Kernel = Kernel {
    name: "fused_norm.sums",
    defines: &[("STAGE", 3)],
    bindings: &[("x", Read), ("g", Read), ("stats", Read), ("partials", ReadWrite)],
    ..STATISTICS
};

static MERGE_SUMS: Kernel = Kernel {
    name: "fused_norm.merge_sums",
    defines: &[("STAGE", 4)],
    bindings: &[("partials", Read), ("totals", ReadWrite), ("dweight", ReadWrite), ("dbias", ReadWrite)],
    overrides: &["GROUPS", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..STATISTICS
};

static GRADIENT: Kernel = Kernel {
    name: "fused_norm.gradient",
    defines: &[("STAGE", 5), ("TEXTURES", 0)],
    bindings: &[("x", Read), ("g", Read), ("stats", Read), ("totals", Read), ("dx", ReadWrite)],
    overrides: &["GROUPS", "TRAINING", "ACC_DX"],
    ..STATISTICS
};

static GRADIENT_TEXTURE: Kernel = Kernel {
    variant: "channel_reduce_tex",
    defines: &[("STAGE", 5), ("TEXTURES", 1)],
    bindings: &[("x", Texture), ("g", Read), ("stats", Read), ("totals", Read), ("dx", ReadWrite)],
    ..GRADIENT
};
