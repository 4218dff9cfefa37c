//! Kernels with deliberate mistakes, which the checks must detect.
//!
//! A row edits the expanded WGSL of one kernel and names the check that must fail. The unedited kernel passes it in
//! `tests/gpu/kernels.rs`.

use std::collections::BTreeMap;

use libtest_mimic::Failed;
use vae_wgpu::app::check::{Check, CheckKind, CheckOutcome, Comparison, Patch, PreparedCase, suite};
use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::kernel::Lowered;
use vae_wgpu::runtime::op::{Case, Cost, Op, Operand, Pass, Passes, Reference, Role, Target, grad, operand};
use vae_wgpu::runtime::tensor::real::Real;
use vae_wgpu::runtime::tensor::{Shape, Spec};
use vae_wgpu::{Error, Result};

use crate::harness::{Setup, Suite};

/// A kernel with a mistake.
struct Mutant {
    /// The mistake.
    fault: &'static str,
    /// `op/case/pass/variant` of the check that must fail.
    check: &'static str,
    /// `kernel`, or `kernel/variant` if the variant of the kernel differs from that of the check.
    kernel: &'static str,
    /// The edit.
    find: &'static str,
    replace: &'static str,
    /// The device on which the check fails.
    setup: Setup,
}

const fn mutant(
    fault: &'static str,
    check: &'static str,
    kernel: &'static str,
    find: &'static str,
    replace: &'static str,
) -> Mutant {
    Mutant { fault, check, kernel, find, replace, setup: Setup::Full }
}

/// A mistake in a kernel that only GPUs dispatch.
const fn as_gpu(
    fault: &'static str,
    check: &'static str,
    kernel: &'static str,
    find: &'static str,
    replace: &'static str,
) -> Mutant {
    Mutant { setup: Setup::AsGpu, ..mutant(fault, check, kernel, find, replace) }
}

#[rustfmt::skip]
const MUTANTS: &[Mutant] = &[
    mutant("no output", "relu/odd/forward/vec4", "relu.forward", "y[i] = rectified(", "let unused = rectified("),
    mutant("NaN output", "relu/odd/forward/vec4", "relu.forward", "y[i] = rectified(", "y[i] = bitcast<vec4<f32>>(vec4<u32>(0x7fc00001u)) + rectified("),
    mutant("one element NaN", "relu/odd/forward/vec4", "relu.forward", "y[i] = rectified(", "y[i] = bitcast<f32>(select(0u, 0x7fc00001u, i == 7u)) + rectified("),
    mutant("last elements unwritten", "relu/odd/forward/vec4", "relu.forward", "i < p.len", "i + 1u < p.len"),
    mutant("one element unwritten", "relu/odd/forward/vec4", "relu.forward", "i < p.len", "i < p.len && i != 5u"),
    mutant("writes behind the tensor", "relu/odd/forward/vec4", "relu.forward", "i < p.len", "i <= p.len"),
    mutant("no rectifier", "relu/odd/forward/vec4", "relu.forward", "y[i] = rectified(x[i]);", "y[i] = x[i];"),
    mutant("mask of the gradient instead of the input", "relu/odd/backward/vec4", "relu.backward", "cut_off(x[i])", "cut_off(dy[i])"),
    mutant("accumulates instead of storing", "relu/odd/backward/vec4", "relu.backward", "if ACC {", "if true {"),
    mutant("stores instead of accumulating", "relu/odd/backward/vec4", "relu.backward", "if ACC {", "if ACC && false {"),
    mutant("wrong sign", "add/odd/forward/vec4", "add.forward", "a[i] + b[i]", "a[i] - b[i]"),
    mutant("swapped channels", "add/odd/forward/vec4", "add.forward", "b[i];", "b[i].yxzw;"),
    mutant("one operand twice", "add/wide/forward/vec4", "add.forward", "a[i] + b[i]", "a[i] + a[i]"),
    mutant("off by one part in a million", "add/odd/forward/vec4", "add.forward", "a[i] + b[i]", "(a[i] + b[i]) * 1.000001"),
    Mutant { setup: Setup::Folded, ..mutant("grid not unfolded", "relu/wide/forward/vec4", "relu.forward", "workgroup.y * workgroups.x + workgroup.x", "workgroup.x") },
    mutant("off-by-one stride", "upsample/odd/forward/vec4", "upsample.forward", "2u * row * p.width", "2u * row * (p.width + 1u)"),
    mutant("a term dropped", "upsample/odd/backward/vec4", "upsample.backward", "(dy[upper] + dy[upper + p.groups])", "dy[upper]"),
    mutant("last pixel of a sum missing", "global_avg_pool/head/forward/vec4", "global_avg_pool.forward", "k < p.area", "k + 1u < p.area"),
    mutant("dirty padding", "reparameterize/odd/forward/scalar", "reparameterize.forward", "var v = 0.0", "var v = 1e-30"),
    mutant("wrong reduction tail", "elbo/tail/forward/two_stage", "elbo.forward.squares_seeds", "group * 1024u + lane", "group * 1023u + lane"),
    mutant("a partial sum left out", "elbo/tail/forward/two_stage", "elbo.forward.finish_seeds", "sum.x += partials[i]", "sum.x = partials[i] * select(1.0, 0.0, i + 1u == q.partials)"),
    mutant("seed with the wrong sign", "elbo/odd/forward/two_stage", "elbo.forward.squares_seeds", "mean[i] - x[i]", "x[i] - mean[i]"),
    mutant("last image left out", "elbo/many/forward/two_stage", "elbo.forward.divergence", "n < r.images", "n + 1u < r.images"),
    mutant("standard deviation of another dimension", "elbo/odd/forward/two_stage", "elbo.forward.divergence", "r.latent + dim", "r.latent"),
    mutant("free bits ignored in the gradient", "elbo/free_bits/forward/two_stage", "elbo.forward.finish_seeds", "kl_dims[column] < free", "kl_dims[column] < 0.0"),
    mutant("free bits ignored in the loss", "elbo/free_bits/forward/two_stage", "elbo.forward.finish_seeds", "sum.z += max(free - kl, 0.0);", ""),
    mutant("dimensions left out", "elbo/many/forward/two_stage", "elbo.forward.finish_seeds", "dim < q.latent; dim +=", "dim < min(q.latent, 256u); dim +="),
    mutant("logarithm forgotten", "elbo/odd_optimal/forward/two_stage", "elbo.forward.finish_optimal_seeds", "log(s2) + mse / s2", "mse / s2"),
    mutant("running variance replaced", "elbo/odd_optimal/forward/two_stage", "elbo.forward.finish_optimal_seeds", "(1.0 - MOMENTUM) * variance[0] + ", ""),
    mutant("variance of the batch in evaluation", "elbo/evaluate_optimal/forward/two_stage", "elbo.forward.finish_optimal", "let s2 = variance[0];", "let s2 = mse;"),
    mutant("gradient of the unit likelihood", "elbo/odd_optimal/forward/two_stage", "elbo.forward.gradient", "p.scale / optimal_variance(losses[0].w)", "p.scale"),
    mutant("no smallest variance", "elbo/exact_optimal/forward/two_stage", "elbo.forward.finish_optimal_seeds", "bitcast<u32>(mse) < bitcast<u32>(MIN_VARIANCE)", "mse < 0.0"),
    mutant("half of the tree not summed", "grad_norm/tail/forward/two_stage", "grad_norm.forward.partial", "half > 0u", "half > 1u"),
    mutant("flag ignores infinity", "grad_norm/infinite_loss/forward/two_stage", "grad_norm.forward.finish", "not_finite(terms[0]) | ", ""),
    mutant("mean without its own term", "batch_moments/odd/backward/channel_reduce", "batch_moments.backward", "from_mean + from_squares", "from_squares"),
    mutant("gradient of the variance without the ReLU", "moments_norm/odd_relu/sums/channel_reduce", "moments_norm.sums", "masked(dy[at], xhat, w, b)", "dy[at]"),
    mutant("biased running variance", "moments_norm/odd/forward/channel_reduce", "moments_norm.forward", "count_of(g) - 1.0", "count_of(g)"),
    mutant("missing bias", "batch_norm/odd_training/forward/channel_reduce", "batch_norm.forward.normalize", "xhat * weight + bias;", "xhat * weight;"),
    mutant("stale running mean", "batch_norm/odd_training/forward/channel_reduce", "batch_norm.forward.normalize", "MOMENTUM * mean;", "MOMENTUM * running_mean[g];"),
    mutant("statistics of another channel group", "batch_norm/group_of_tiles_training/forward/channel_reduce", "batch_norm.forward.normalize", "normalize(here, n, weight[g]", "normalize(here, n, weight[0]"),
    mutant("biased running variance", "batch_norm/odd_training/forward/channel_reduce", "batch_norm.forward.normalize", "f32(p.positions - 1u)", "f32(p.positions)"),
    mutant("one-pass cancellation", "batch_norm/mean_1000_std_hundredth_training/forward/channel_reduce", "batch_norm.forward.normalize", "(kept(x - n.pivot, p.channels) - n.offset)", "(x - (n.pivot + n.offset))"),
    mutant("stale statistics in the gradient", "batch_norm/odd_training/backward/channel_reduce", "batch_norm.backward.gradient", "xhat * mean.b", "xhat * 0.0"),
    mutant("missing bias", "position_norm/odd/forward/channel_reduce", "position_norm.forward", "xhat * weight + bias;", "xhat * weight;"),
    mutant("mean of the gradient forgotten", "position_norm/odd/backward/channel_reduce", "position_norm.backward.gradient", "(d - mean_g)", "d"),
    mutant("dirty padding", "position_norm/odd/backward/channel_reduce", "position_norm.backward.gradient", "channel < vec4<u32>(p.channels)", "channel < vec4<u32>(p.channels + 1u)"),
    mutant("last chunk left out", "position_norm/many_chunks/backward/channel_reduce", "position_norm.backward.merge", "chunk < p.chunks;", "chunk + 1u < p.chunks;"),
    mutant("decay forgotten", "adam/odd/forward/vec4", "adam.forward", "(1.0 - hyperparams.lr * hyperparams.weight_decay)", "1.0"),
    mutant("moment not stored", "adam/odd/forward/vec4", "adam.forward", "m[i] = first;", ""),
    mutant("a refused step kept", "restore_states/rejected/forward/vec4", "restore_states.forward", "norm[1] == 1.0", "norm[1] <= 1.0"),
    mutant("share forgotten", "scale/odd/forward/vec4", "scale.forward", "micro_batch[0] * sum[i]", "sum[i]"),
    mutant("block before forgotten", "accumulate/add/forward/vec4", "accumulate.forward", "partial[i] + sum[i]", "sum[i]"),
    mutant("block not kept", "accumulate/store/forward/vec4", "accumulate.forward", "partial[i] = sum[i];", ""),
    mutant("carry of another level", "accumulate/store/forward/vec4", "accumulate.forward", "1u + p.level", "p.level"),
    mutant("statistics of the first batch alone", "replay_states/all/forward/vec4", "replay_states.forward", "statistics[m * p.len + i]", "statistics[i]"),
    mutant("one batch too many", "replay_states/fewer/forward/vec4", "replay_states.forward", "m < end", "m <= end"),
    mutant("present statistics for the accepted ones", "replay_states/one/forward/vec4", "replay_states.forward", "accepted[i]", "states[i]"),
    mutant("stored without a carry", "accumulate/keep/forward/vec4", "accumulate.forward", "carry == STORE", "carry != ADD"),
    mutant("missing bias", "conv2d/3x3_stride2_odd/forward/tiled", "conv2d.forward/tiled_8", "+ column.bias", ""),
    mutant("missing bias", "conv2d/3x3_stride2_odd/forward/naive", "conv2d.forward", "+ column.bias", ""),
    mutant("flipped kernel", "conv2d/3x3_stride2_odd/forward/naive", "conv2d.forward", "((ky * KW + kx) * X_C4 + i)", "(((KH - 1u - ky) * KW + (KW - 1u - kx)) * X_C4 + i)"),
    mutant("kernel rows for columns", "conv2d/3x3_stride2_odd/forward/register_tiled", "conv2d.forward/register_tiled_4", "Tap(i32(tap / KW), i32(tap % KW))", "Tap(i32(tap % KW), i32(tap / KW))"),
    mutant("missing halo", "conv2d/3x3_stride2_odd/forward/tiled", "conv2d.forward/tiled_8", "y < X_H && x < X_W", "y < X_H && x < X_W - 1u"),
    mutant("missing halo", "conv2d/3x3_stride2_odd/backward_weight/naive", "conv2d.backward_weight", "if iy < X_H && ix < X_W {", "if iy < X_H && ix < X_W && iy > 0u {"),
    mutant("halo read instead of zero", "conv2d/from_rgb/forward/naive", "conv2d.forward", "if iy < X_H && ix < X_W {", "if iy < X_H {"),
    mutant("off-by-one stride", "conv2d/3x3_stride2_odd/forward/register_tiled", "conv2d.forward/register_tiled_4", "at.x * STRIDE", "at.x * (STRIDE - 1u)"),
    mutant("padding off by one", "conv2d/3x3_stride2_odd/backward_input/naive", "conv2d.backward_input", "kx == ix + PAD", "kx == ix + PAD + 1u"),
    mutant("swapped channels", "conv2d/3x3_stride2_odd/forward/tiled", "conv2d.forward/tiled_8", "return i * Y_C4 + column;", "return (i ^ 1u) * Y_C4 + column;"),
    mutant("a row of an image too long", "conv2d/3x3_stride2_odd/forward/register_tiled", "conv2d.forward/register_tiled_4", "at.x + 1u == width", "at.x + 1u > width"),
    mutant("phases exchanged", "conv2d/3x3_stride2_odd/backward_input/tiled", "conv2d.backward_input/tiled_8", "let kx = (x + PAD) % STRIDE;", "let kx = (x + PAD + 1u) % STRIDE;"),
    mutant("half of each block loaded", "conv2d/3x3_stride2_odd/forward/tiled", "conv2d.forward/tiled_8", "min(k + group, range.y - 1u)", "min(k + (group & 1u), range.y - 1u)"),
    mutant("k beyond the last tap", "conv2d/3x3_stride2_odd/forward/tiled", "conv2d.forward/tiled_8", "tap.y = NOWHERE;", ""),
    mutant("wrong lane handed round", "conv2d/3x3_stride2_odd/forward/subgroup_tex", "conv2d.forward/subgroup_tex_2", "subgroup_lane % 4u", "subgroup_lane % 2u"),
    mutant("last split cut short", "conv2d/3x3_stride2_tails/backward_weight/tiled", "conv2d.backward_weight/tiled_16", "(p.positions + 3u) / 4u", "p.positions / 4u"),
    mutant("accumulates instead of storing", "conv2d/3x3_stride2_odd/backward_input/tiled", "conv2d.backward_input/tiled_8", "return masked", "return c[i] + masked"),
    mutant("stores instead of accumulating", "conv2d/3x3_stride2_odd/backward_bias/column_sum", "column_sum/vec4", "if ACC {", "if ACC && false {"),
    mutant("wrong reduction tail", "conv2d/1x1_odd/backward_bias/column_sum", "column_sum/vec4", "if i + 0u * stride < end {", "if i + 0u * stride > end {"),
    mutant("transposed kernel flipped", "conv_transpose2d/4x4_stride2_odd/forward/naive", "conv2d.backward_input", "((ky * KW + kx) * X_C4 + i)", "(((KH - 1u - ky) * KW + (KW - 1u - kx)) * X_C4 + i)"),
    mutant("transposed without bias", "conv_transpose2d/4x4_stride2_odd/forward/register_tiled", "conv2d.backward_input/register_tiled_4", "+ column.bias", ""),
    mutant("padding normalized", "fused_conv/norm_3x3/forward/naive", "conv2d.forward", "if iy < X_H && ix < X_W {", "if iy <= X_H && ix < X_W {"),
    mutant("norm without its ReLU", "fused_conv/norm_3x3/forward/register_tiled", "conv2d.forward/register_tiled_4", "return rectified(norm(v, n));", "return norm(v, n);"),
    mutant("residual forgotten", "fused_conv/norm_1x1_residual/forward/tiled", "conv2d.forward/tiled_8", "+ x\n", "\n"),
    mutant("gradient without its ReLU mask", "fused_conv/norm_3x3/backward_input/tiled", "conv2d.backward_input/tiled_8", "cut_off(norm(x, column.norm))", "vec4<bool>()"),
    mutant("sums of the gradient without a row", "fused_conv/all_tails/backward_input/subgroup_tex", "conv2d.backward_input/subgroup_tex_8", "select(vec4<f32>(), c3, vec4<bool>(live3))", "vec4<f32>()"),
    mutant("sums of the gradient's first rows alone", "fused_conv/all_tails/backward_input/tiled", "conv2d.backward_input/tiled_16", "d < 16u; d++", "d < 1u; d++"),
    mutant("statistics of rows that are not there", "fused_conv/all_tails/forward/tiled", "conv2d.forward/tiled_16", "if row7.exists {", "if true {"),
    mutant("statistics of rows that are not there", "fused_conv/all_tails/forward/subgroup_tex", "conv2d.forward/subgroup_tex_8", "vec4<bool>(row3.exists)", "vec4<bool>(true)"),
    mutant("statistics from another value in each group", "fused_conv/all_tails/forward/subgroup_tex", "conv2d.forward/subgroup_tex_8", "vec4<bool>(g == 0u)", "vec4<bool>(true)"),
    mutant("a column's bias for the next", "fused_conv/all_tails/forward/subgroup_tex", "conv2d.forward/subgroup_tex_8", "column_of(1u, mine)", "column_of(0u, mine)"),
    mutant("weight gradient of what was not normalized", "fused_conv/norm_up/backward_weight/naive", "conv2d.backward_weight", "return activated(ld_b(i), affine(channel, Y_C4));", "return ld_b(i);"),
    mutant("one texel off", "fused_conv/all_tails/forward/subgroup_tex", "conv2d.forward/subgroup_tex_8", "i & 511u", "i & 255u"),
    mutant("means of the gradient forgotten", "fused_conv/norm_3x3/backward_input/naive", "fused_norm.gradient/channel_reduce", "(d - mean_g)", "d"),
    as_gpu("rows of chunks left out", "fused_conv/all_tails/backward_input/naive", "fused_norm.gradient/channel_reduce_merging", "chunk0 < p.chunks", "chunk0 + 1u < p.chunks"),
    as_gpu("parameter gradients not stored", "fused_conv/norm_3x3/backward_input/naive", "fused_norm.gradient/channel_reduce_merging", "here.chunk == 0u", "here.chunk == 1000u"),
    as_gpu("half of the rows left out", "fused_conv/1x1_statistics_tails/forward/naive", "fused_norm.merge/channel_reduce_wide", "half >= GROUPS", "half > GROUPS"),
    as_gpu("chunks counted twice in the mean", "fused_conv/1x1_statistics_tails/forward/naive", "fused_norm.merge/channel_reduce_wide", "vec4<f32>(), mean1, first + 1u * rows() < p.chunks", "vec4<f32>(), mean1, true"),
    as_gpu("chunks counted twice in the variance", "fused_conv/1x1_statistics_tails/forward/naive", "fused_norm.merge/channel_reduce_wide", "vec4<f32>(), squares3, first + 3u * rows() < p.chunks", "vec4<f32>(), squares3, true"),
    as_gpu("half of the rows left out", "fused_conv/many_chunks/backward_input/naive", "fused_norm.merge_sums/channel_reduce_wide", "half >= GROUPS", "half > GROUPS"),
    as_gpu("k of the other invocations left out", "conv2d/3x3_stride2_odd/backward_weight/tiled", "conv2d.backward_weight/tiled_8x4", "slice == 0u", "slice == 9u"),
    as_gpu("one k group for all invocations", "conv2d/to_rgb/backward_weight/tiled", "conv2d.backward_weight/tiled_16x1", "group = slice", "group = 0u * slice"),
    as_gpu("split cut short", "linear/long_tail/backward_input/tiled", "conv2d.backward_input/tiled_4", "min((tile.split + 1u) * p.chunk, end)", "min(tile.split * p.chunk + 4u, end)"),
    as_gpu("partial sums in the same place", "linear/long_tail/backward_input/tiled", "conv2d.backward_input/tiled_4", "tile.split * p.rows", "0u * p.rows"),
    mutant("a row of each invocation unwritten", "linear/tails/forward/tiled", "conv2d.forward/tiled_16", "c[i] = acc0_0;", ""),
];

/// Returns the failed comparison; an error if the check passes.
fn is_noticed(gpu: &Gpu, check: &Check, mutant: &Mutant) -> Result<String> {
    let CheckKind::Gpu { pass, variant } = check.kind else { return Err(Error::bug("not a check of a kernel")) };
    let (kernel, kernel_variant) = mutant.kernel.split_once('/').unwrap_or((mutant.kernel, variant));
    let patch = Patch { kernel, variant: kernel_variant, edits: &[(mutant.find, mutant.replace)] };
    match check.case.gpu_vs_reference(gpu, pass, variant, Some(&patch))? {
        CheckOutcome::Ran(lines) => match lines.iter().find(|line| !line.passed()) {
            Some(line) => Ok(line.to_string()),
            None => {
                Err(Error::bug(format!("survived: {}", lines.iter().map(|l| format!("\n{l}")).collect::<String>())))
            }
        },
        CheckOutcome::NotApplicable(why) => Err(Error::bug(format!("not applicable: {why}"))),
    }
}

/// y = x^3 with a gradient that is off by `error`, relative.
#[derive(Debug)]
struct Cube {
    error: f64,
}

impl Op for Cube {
    fn kind(&self) -> &'static str {
        "cube"
    }
    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::nhwc(Shape::new(2, 3, 4, 5));
        vec![Operand::new("x", Role::Input, spec), Operand::new("y", Role::Output, spec)]
    }
    fn passes(&self) -> Passes {
        Passes {
            forward: Pass::forward(["x"], ["y"]),
            backward: vec![Pass::new("backward", [operand("x"), grad("y")], [grad("x")])],
            aliases: vec![],
        }
    }
    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &[]
    }
    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        Err(Error::bug(format!("cube has no kernels for {pass}")))
    }
    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 0.0)
    }
}

impl Reference for Cube {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [x], [y]) => y.iter_mut().zip(*x).for_each(|(y, &x)| *y = x * x * x),
            ("backward", [x, dy], [dx]) => {
                let slope = T::from_f64(3.0 * (1.0 + self.error));
                dx.iter_mut().zip(*x).zip(*dy).for_each(|((dx, &x), &dy)| *dx = slope * x * x * dy);
            }
            _ => return Err(Error::bug("no such pass")),
        }
        Ok(())
    }
}

/// Finite differences accept a correct gradient and detect a relative error of 4e-6.
fn finite_differences_detect_small_errors() -> Result<(), Failed> {
    for (error, right) in [(0.0, true), (4e-6, false), (-4e-6, false), (f64::NAN, false)] {
        let lines = PreparedCase::new(Case::new("cube", Cube { error })).finite_differences()?;
        if lines.iter().all(Comparison::passed) != right {
            return Err(Failed::from(format!("error {error}: {}", lines[0])));
        }
    }
    Ok(())
}

/// An edit whose text or kernel does not exist is an error, not a detected mistake.
fn patch_without_effect_is_an_error(gpu: &Gpu, check: &Check) -> Result<(), Failed> {
    let [relu, ..] = MUTANTS else { return Err("no mutants".into()) };
    for broken in [Mutant { find: "no such text", ..*relu }, Mutant { kernel: "add.forward", ..*relu }] {
        match is_noticed(gpu, check, &broken) {
            Err(Error::Bug(_)) => {}
            other => return Err(Failed::from(format!("{other:?}"))),
        }
    }
    Ok(())
}

/// Adds a test, ignored if the adapter cannot run the check.
fn register_on(
    tests: &mut Suite,
    setup: Setup,
    name: String,
    check: &Check,
    run: impl FnOnce(&Gpu, &Check) -> Result<(), Failed> + Send + 'static,
) -> Result<()> {
    let profile = tests.profile(setup)?;
    match profile.map(|profile| check.not_applicable(&profile)).transpose()?.flatten() {
        Some(_) => tests.not_applicable(name, "not applicable"),
        None => {
            let check = check.clone();
            tests.on(setup, name, move |gpu| run(gpu, &check));
        }
    }
    Ok(())
}

pub(crate) fn register(tests: &mut Suite) -> Result<()> {
    tests.add("finite_differences_detect_small_errors", finite_differences_detect_small_errors);
    let checks: BTreeMap<String, Check> = suite()?.into_iter().map(|check| (check.to_string(), check)).collect();
    if let Some(check) = checks.get(MUTANTS[0].check) {
        let name = "patch_without_effect_is_an_error".into();
        register_on(tests, Setup::Full, name, check, patch_without_effect_is_an_error)?;
    }
    for mutant in MUTANTS {
        let name = format!("{} in {}", mutant.fault, mutant.kernel);
        let Some(check) = checks.get(mutant.check) else {
            tests.add(name, || Err(format!("no check is called {}", mutant.check).into()));
            continue;
        };
        let run = move |gpu: &Gpu, check: &Check| {
            is_noticed(gpu, check, mutant)?;
            Ok(())
        };
        register_on(tests, mutant.setup, name, check, run)?;
    }
    Ok(())
}
