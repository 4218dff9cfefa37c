//! The dispatches of a batch norm whose normalization, ReLU and gradient sums have moved into the convolutions around it:
//! `shaders/norm_parts.wgsl` has the formulas.

use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, KernelRole, Lowered, Profile, grad, operand};
use crate::runtime::op::BatchNormConfig;
use crate::runtime::op::conv::geometry::CHUNK;
use crate::runtime::op::norm::channel_reduce::{Columns, Params};
use crate::runtime::tensor::shape::Shape;

/// Rows of `stats`: shift, offset, rstd, scale, addend.
pub(crate) const STATS_ROWS: usize = 5;
/// Rows of statistics a chunk: shift, mean - shift, squared deviations.
pub(crate) const STATISTICS_ROWS: usize = 3;

/// The norm of a tensor on a device.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NormParts {
    config: BatchNormConfig,
    /// Cut into chunks of [`CHUNK`] pixels, whose statistics or sums are merged.
    chunked: Columns,
    /// Cut as suits the device.
    whole: Columns,
}

impl NormParts {
    pub(crate) fn new(x: Shape, config: BatchNormConfig, profile: &Profile) -> Self {
        Self { config, chunked: Columns::spanning(x, CHUNK, profile), whole: Columns::new(x, profile) }
    }

    /// Appends the statistics of the chunks of `x`.
    pub(crate) fn statistics(&self, lowered: &mut Lowered, x: Bind, partials: Bind) {
        lowered.dispatches.push(dispatch(
            &STATISTICS,
            &self.chunked,
            vec![x, partials],
            vec![],
            self.chunked.workgroups(),
        ));
    }

    /// A scratch buffer for the statistics of the chunks.
    pub(crate) fn statistics_scratch(&self, lowered: &mut Lowered) -> Bind {
        lowered.new_scratch(self.chunked.row_bytes(STATISTICS_ROWS * self.chunked.chunks))
    }

    /// Appends `stats` and the new running statistics from the chunks, or from the running statistics in evaluation (`partials`
    /// is `None`).
    pub(crate) fn stats(&self, lowered: &mut Lowered, partials: Option<Bind>) {
        let [weight, bias, stats, mean, var] =
            ["norm_weight", "norm_bias", "stats", "running_mean", "running_var"].map(|name| operand(name).into());
        let eps = ("EPS", self.config.eps);
        let tiles = self.chunked.tiles();
        match partials {
            Some(partials) => {
                let bindings = vec![partials, weight, bias, stats, mean, var];
                let overrides = vec![eps, ("MOMENTUM", self.config.momentum)];
                lowered.dispatches.push(dispatch(&MERGE, &self.chunked, bindings, overrides, tiles));
            }
            None => {
                lowered.dispatches.push(dispatch(
                    &RUNNING,
                    &self.chunked,
                    vec![mean, var, weight, bias, stats],
                    vec![eps],
                    tiles,
                ));
            }
        }
    }

    /// Appends the gradients of `x` and of the norm's parameters from `g`, the gradient behind the norm where the ReLU passes it.
    /// `sums`: those of g's chunks, with their number, where a convolution has made them. `acc`: whether to add to `dx`,
    /// `dnorm_weight`, `dnorm_bias`. `texture`: whether to read x from one.
    pub(crate) fn gradient(
        &self,
        lowered: &mut Lowered,
        g: Bind,
        sums: Option<(Bind, usize)>,
        acc: [bool; 3],
        texture: bool,
    ) {
        let (x, stats) = (operand("x").into(), operand("stats").into());
        let (sums, chunks) = sums.unwrap_or_else(|| {
            let partials = lowered.new_scratch(self.chunked.row_bytes(2 * self.chunked.chunks));
            let bindings = vec![x, g, stats, partials];
            lowered.dispatches.push(dispatch(&SUMS, &self.chunked, bindings, vec![], self.chunked.workgroups()));
            (partials, self.chunked.chunks)
        });
        let totals = lowered.new_scratch(self.chunked.row_bytes(2));
        let merged = self.chunked.with_chunks(chunks);
        let bindings = vec![sums, totals, grad("norm_weight").into(), grad("norm_bias").into()];
        let merge = dispatch(&MERGE_SUMS, &merged, bindings, vec![], merged.tiles());
        lowered.dispatches.push(merge.accumulate("ACC_DWEIGHT", acc[1]).accumulate("ACC_DBIAS", acc[2]));
        let kernel = if texture { &GRADIENT_TEXTURE } else { &GRADIENT };
        let overrides = vec![("TRAINING", f64::from(self.config.training))];
        let bindings = vec![x, g, stats, totals, grad("x").into()];
        let gradient = dispatch(kernel, &self.whole, bindings, overrides, self.whole.workgroups());
        lowered.dispatches.push(gradient.accumulate("ACC_DX", acc[0]));
    }
}

fn dispatch(
    kernel: &'static Kernel,
    columns: &Columns,
    bindings: Vec<Bind>,
    mut overrides: Vec<(&'static str, f64)>,
    workgroups: usize,
) -> Dispatch {
    overrides.push(columns.lanes());
    Dispatch { overrides, params: columns.params().bytes(), workgroups, ..Dispatch::new(kernel, bindings) }
}

/// All kernels.
pub(crate) fn kernels() -> [&'static Kernel; 7] {
    [&STATISTICS, &MERGE, &RUNNING, &SUMS, &MERGE_SUMS, &GRADIENT, &GRADIENT_TEXTURE]
}

static STATISTICS: Kernel = Kernel {
    name: "norm_parts.statistics",
    variant: "columns",
    role: KernelRole::FusedNorm,
    file: "norm/fused_norm.wgsl",
    source: include_str!("../../../../shaders/norm/fused_norm.wgsl"),
    entry: "statistics",
    defines: &[("STAGE", 0), ("TEXTURES", 0)],
    bindings: &[("x", Access::Read), ("partials", Access::ReadWrite)],
    params: Params::FIELDS,
    overrides: &["GROUPS"],
    ..Kernel::DEFAULT
};

static MERGE: Kernel = Kernel {
    name: "norm_parts.merge",
    entry: "merge_statistics",
    defines: &[("STAGE", 1), ("TEXTURES", 0)],
    bindings: &[
        ("partials", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("stats", Access::ReadWrite),
        ("running_mean", Access::ReadWrite),
        ("running_var", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "EPS", "MOMENTUM"],
    ..STATISTICS
};

static RUNNING: Kernel = Kernel {
    name: "norm_parts.running",
    entry: "running",
    defines: &[("STAGE", 2), ("TEXTURES", 0)],
    bindings: &[
        ("running_mean", Access::Read),
        ("running_var", Access::Read),
        ("weight", Access::Read),
        ("bias", Access::Read),
        ("stats", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "EPS"],
    ..STATISTICS
};

static SUMS: Kernel = Kernel {
    name: "norm_parts.sums",
    entry: "sums",
    defines: &[("STAGE", 3), ("TEXTURES", 0)],
    bindings: &[("x", Access::Read), ("g", Access::Read), ("stats", Access::Read), ("partials", Access::ReadWrite)],
    ..STATISTICS
};

static MERGE_SUMS: Kernel = Kernel {
    name: "norm_parts.merge_sums",
    entry: "merge_sums",
    defines: &[("STAGE", 4), ("TEXTURES", 0)],
    bindings: &[
        ("partials", Access::Read),
        ("totals", Access::ReadWrite),
        ("dweight", Access::ReadWrite),
        ("dbias", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "ACC_DWEIGHT", "ACC_DBIAS"],
    ..STATISTICS
};

static GRADIENT: Kernel = Kernel {
    name: "norm_parts.gradient",
    entry: "gradient",
    defines: &[("STAGE", 5), ("TEXTURES", 0)],
    bindings: &[
        ("x", Access::Read),
        ("g", Access::Read),
        ("stats", Access::Read),
        ("totals", Access::Read),
        ("dx", Access::ReadWrite),
    ],
    overrides: &["GROUPS", "TRAINING", "ACC_DX"],
    ..STATISTICS
};

static GRADIENT_TEXTURE: Kernel = Kernel {
    variant: "columns_texture",
    defines: &[("STAGE", 5), ("TEXTURES", 1)],
    bindings: &[
        ("x", Access::Texture),
        ("g", Access::Read),
        ("stats", Access::Read),
        ("totals", Access::Read),
        ("dx", Access::ReadWrite),
    ],
    ..GRADIENT
};
