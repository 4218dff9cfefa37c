//! Every operation in every case: gradients of the reference with finite differences, and every kernel with the reference.
//!
//! Each case runs in the variants that this device or a GPU with WebGPU's defaults chooses for it. The other variants run in the cases with
//! odd sizes and with incomplete tiles only, unless `VAE_WGPU_ALL=1`: a software driver takes most of the time of all tests to compile them.
//! `vae-wgpu check` always runs all.
//!
//! These checks run with all features of the adapter. Each kernel also runs in one case on a device whose grids fold beyond seven
//! workgroups (`folded`), with WebGPU's default limits and without optional features unless the kernel needs them. One case suffices:
//! folding depends on the kernel, not on the case. On a software driver, the kernels that only GPUs dispatch run on a device that is taken
//! for a GPU (`as on a GPU`).

use std::collections::{BTreeMap, BTreeSet};

use libtest_mimic::Failed;
use vae_wgpu::Error;
use vae_wgpu::app::check::{Check, CheckKind, PreparedCase, suite};
use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::kernel::{DeviceKind, Dispatch, Profile};
use vae_wgpu::runtime::op::{BatchNorm, BatchNormConfig, Case, Conv, OPS, Op, Target};
use vae_wgpu::runtime::tensor::Shape;

use crate::harness::{Setup, Suite, everything, verdict};

/// Name and variant of a kernel.
type Key = (&'static str, &'static str);

fn register_on(tests: &mut Suite, setup: Setup, suffix: &str, check: Check) -> vae_wgpu::Result<()> {
    let name = format!("{check}{suffix}");
    if !check.needs_gpu() {
        tests.add(name, move || verdict(check.run(None)?));
        return Ok(());
    }
    let profile = tests.profile(setup)?;
    match profile.map(|profile| check.not_applicable(&profile)).transpose()?.flatten() {
        Some(_) => tests.not_applicable(name, "not applicable"),
        None => tests.on(setup, name, move |gpu| verdict(check.run(Some(gpu))?)),
    }
    Ok(())
}

/// The dispatches of a check on a device with this profile, storing and accumulating; empty if it cannot run there.
fn dispatches(check: &Check, profile: &Profile) -> vae_wgpu::Result<Vec<Dispatch>> {
    let CheckKind::Gpu { pass, variant } = check.kind else { return Ok(Vec::new()) };
    let op = &check.case.case.op;
    let mut all = Vec::new();
    for accumulate in [false, true] {
        let accumulate = vec![accumulate; op.passes().get(pass)?.writes.len()];
        match op.lower(pass, &Target { profile, variant: Some(variant), accumulate: &accumulate }) {
            Err(Error::Unsupported { .. }) => {}
            lowered => all.extend(lowered?.dispatches),
        }
    }
    Ok(all)
}

/// Whether an ordinary run leaves a check out on a device with this profile.
fn is_left_out(check: &Check, profile: &Profile) -> vae_wgpu::Result<bool> {
    let CheckKind::Gpu { pass, variant } = check.kind else { return Ok(false) };
    let case = &check.case.case;
    let kernels = |profile: &Profile, variant: Option<&str>| -> vae_wgpu::Result<Vec<Key>> {
        let accumulate = vec![false; case.op.passes().get(pass)?.writes.len()];
        let lowered = case.op.lower(pass, &Target { profile, variant, accumulate: &accumulate })?;
        Ok(lowered.dispatches.iter().map(|dispatch| (dispatch.kernel.name, dispatch.kernel.variant)).collect())
    };
    if ["odd", "tails"].iter().any(|kept| case.name.contains(kept)) || check.not_applicable(profile)?.is_some() {
        return Ok(false);
    }
    let of_check = kernels(profile, Some(variant))?;
    Ok(of_check != kernels(profile, None)? && of_check != kernels(&Profile::WEBGPU, None)?)
}

/// For each kernel, the check with the least work in which its grid folds, or else the one with the largest grid.
fn folded(checks: &[Check], profile: &Profile) -> vae_wgpu::Result<BTreeMap<Key, Check>> {
    const FOLDS: usize = 8;
    let mut best: BTreeMap<Key, (usize, f64, &Check)> = BTreeMap::new();
    for check in checks {
        let CheckKind::Gpu { pass, .. } = check.kind else { continue };
        let op = &check.case.case.op;
        let flop = op.cost(op.passes().get(pass)?)?.flop;
        for dispatch in dispatches(check, profile)? {
            let grid = dispatch.workgroups.min(FOLDS);
            let key = (dispatch.kernel.name, dispatch.kernel.variant);
            let better = |(other, least, _): &(usize, f64, &Check)| (grid, -flop) > (*other, -least);
            if best.get(&key).is_none_or(better) {
                best.insert(key, (grid, flop, check));
            }
        }
    }
    Ok(best.into_iter().map(|(key, (.., check))| (key, check.clone())).collect())
}

fn every_kernel_is_checked_folded() -> Result<(), Failed> {
    let checks = suite()?;
    let kernels = OPS.iter().flat_map(|op| (op.kernels)());
    let mut missing: BTreeSet<Key> = kernels.map(|kernel| (kernel.name, kernel.variant)).collect();
    for kind in [DeviceKind::Gpu, DeviceKind::Software] {
        let profile = Profile { kind, subgroup: Some((8, 8)), ..Profile::WEBGPU };
        let found = folded(&checks, &profile)?;
        missing.retain(|key| !found.contains_key(key));
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("not checked with a folded grid: {missing:?}").into()) }
}

/// Cases that are checked with the plan of a GPU besides: sums that are split, incomplete tiles.
const AS_GPU: [&str; 3] = [
    "linear/long_tail/backward_input/tiled",
    "fused_conv/all_tails/forward/tiled",
    "fused_conv/all_tails/backward_input/tiled",
];

/// The checks of the kernels that the adapter does not dispatch but would if it were a GPU: with `VAE_WGPU_ALL=1` all, else one for
/// each kernel, and [`AS_GPU`].
fn of_gpus(checks: &[Check], adapter: &Profile) -> vae_wgpu::Result<Vec<Check>> {
    let gpu = Profile { kind: DeviceKind::Gpu, ..*adapter };
    if gpu == *adapter {
        return Ok(Vec::new());
    }
    let known: BTreeSet<Key> = folded(checks, adapter)?.into_keys().collect();
    let mut chosen: BTreeSet<String> = AS_GPU.map(str::to_owned).into();
    if everything() {
        for check in checks {
            let new = |dispatch: &Dispatch| !known.contains(&(dispatch.kernel.name, dispatch.kernel.variant));
            chosen.extend(dispatches(check, &gpu)?.iter().any(new).then(|| check.to_string()));
        }
    } else {
        let new = folded(checks, &gpu)?.into_iter().filter(|(key, _)| !known.contains(key));
        chosen.extend(new.map(|(_, check)| check.to_string()));
    }
    Ok(checks.iter().filter(|check| chosen.contains(&check.to_string())).cloned().collect())
}

/// A fused norm of more chunks than the invocations that merge them on a GPU load at once, the last one incomplete.
fn norm_of_more_chunks_than_a_gpu_merges_at_once(gpu: &Gpu) -> Result<(), Failed> {
    let x = Shape::new(9, 3, 121, 121);
    let norm = BatchNorm::new(x, BatchNormConfig { relu: true, ..BatchNormConfig::default() })?;
    let conv = Conv::conv2d(x, 1, 1, 1, 0)?.with_norm(norm)?;
    let case = PreparedCase::new(Case::new("many chunks", conv));
    for (pass, merge) in [("forward", "fused_norm.merge"), ("backward_input", "fused_norm.merge_sums")] {
        let target = Target { profile: gpu.profile(), variant: Some("naive"), accumulate: &[] };
        let lowered = conv.lower(pass, &target)?;
        let merge = lowered.dispatches.iter().find(|dispatch| dispatch.kernel.name == merge);
        // 1,030 chunks, of which each of 256 rows loads four in an iteration; then a tree.
        let passes = if pass == "forward" { 2 } else { 1 };
        if merge.map(|merge| merge.work.iterations) != Some(passes * (2 + 8)) {
            return Err(format!("{merge:?}").into());
        }
        verdict(case.gpu_stores_reference(gpu, pass, "naive", None)?)?;
    }
    Ok(())
}

/// The gradient of a fused norm, with more chunks than a dispatch has whose chunks are merged.
fn norm_gradient_in_the_chunks_of_a_gpu(gpu: &Gpu) -> Result<(), Failed> {
    let x = Shape::new(5, 32, 32, 32);
    let norm = BatchNorm::new(x, BatchNormConfig { relu: true, ..BatchNormConfig::default() })?;
    let conv = Conv::conv2d(x, 3, 1, 1, 0)?.with_norm(norm)?;
    let target = Target { profile: gpu.profile(), variant: Some("naive"), accumulate: &[] };
    let workgroups = conv.lower("backward_input", &target)?.dispatches.last().map(|gradient| gradient.workgroups);
    if workgroups != Some(160) {
        return Err(format!("{workgroups:?} workgroups").into());
    }
    verdict(PreparedCase::new(Case::new("chunks", conv)).gpu_stores_reference(gpu, "backward_input", "naive", None)?)
}

pub(crate) fn register(tests: &mut Suite) -> vae_wgpu::Result<()> {
    let checks = suite()?;
    tests.add("every_kernel_is_checked_folded", every_kernel_is_checked_folded);
    tests.on(Setup::AsGpu, "norm_gradient_in_the_chunks_of_a_gpu", |gpu| norm_gradient_in_the_chunks_of_a_gpu(gpu));
    tests.on(Setup::AsGpu, "norm_of_more_chunks_than_a_gpu_merges_at_once", |gpu| {
        norm_of_more_chunks_than_a_gpu_merges_at_once(gpu)
    });
    let mut covered = BTreeSet::new();
    for setup in [Setup::FoldedDefaults, Setup::Folded] {
        let profile = tests.profile(setup)?.unwrap_or(Profile::WEBGPU);
        let found = folded(&checks, &profile)?;
        let new: Vec<Key> = found.keys().filter(|key| !covered.contains(*key)).copied().collect();
        let chosen: BTreeMap<String, &Check> = new.iter().map(|key| (found[key].to_string(), &found[key])).collect();
        for check in chosen.into_values() {
            register_on(tests, setup, " folded", check.clone())?;
        }
        covered.extend(new);
    }
    let profile = tests.profile(Setup::Full)?.unwrap_or(Profile::WEBGPU);
    for check in of_gpus(&checks, &profile)? {
        register_on(tests, Setup::AsGpu, " as on a GPU", check)?;
    }
    for check in checks {
        if everything() || !is_left_out(&check, &profile)? {
            register_on(tests, Setup::Full, "", check)?;
        }
    }
    Ok(())
}
