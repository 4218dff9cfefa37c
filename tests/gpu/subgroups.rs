//! Kernels with subgroup operations are correct at any size of the subgroups, and are chosen only where they are.
//!
//! Emulated: in workgroup memory subgroups have 8 to 64 lanes, full and partly filled, except those of the adapter's own size. In one
//! dispatch the workgroups take turns with sizes of 16, 32 and 64, for which the same kernels are chosen; a kernel for 8 may sum
//! differently. Real: on lavapipe, `LP_NATIVE_VECTOR_WIDTH` gives subgroups of 4, 8 and 16 lanes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use libtest_mimic::Failed;
use serde_json::Value;
use vae_wgpu::app::check::{Check, CheckKind, Patch, suite};
use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::kernel::{Dispatch, Kernel, Profile};
use vae_wgpu::runtime::op::{OPS, Target};

use crate::harness::{Setup, Suite, verdict};

/// Sizes at which kernels with subgroup operations may be chosen, those together that one pipeline serves.
const SIZES: [&[u32]; 2] = [&[8], &[16, 32, 64]];

/// The pass that is checked, and what it dispatches with subgroup operations on a device with subgroups of `size`.
fn dispatch_of(check: &Check, size: u32) -> vae_wgpu::Result<Option<(&'static str, Dispatch)>> {
    let CheckKind::Gpu { pass, variant } = check.kind else { return Ok(None) };
    let profile = Profile { subgroup: Some((size, size)), ..Profile::WEBGPU };
    let target = Target { profile: &profile, variant: Some(variant), accumulate: &[] };
    match check.case.case.op.lower(pass, &target) {
        Err(vae_wgpu::Error::Unsupported { .. }) => Ok(None),
        lowered => {
            let dispatch = lowered?.dispatches.into_iter().find(|dispatch| dispatch.kernel.subgroups);
            Ok(dispatch.map(|dispatch| (pass, dispatch)))
        }
    }
}

/// A check for each kernel with subgroup operations, of a fused convolution, which uses all that they can do. Of the cases, if possible
/// those with a workgroup for each of `sizes`, the one nearest to a million operations, neither trivial nor slow.
fn checks(sizes: &[u32]) -> vae_wgpu::Result<Vec<(Check, Dispatch)>> {
    type Key = (&'static str, &'static str);
    let mut found: BTreeMap<Key, ((bool, f64), Check, Dispatch)> = BTreeMap::new();
    for check in suite()?.into_iter().filter(|check| check.op == "fused_conv") {
        let Some((pass, dispatch)) = dispatch_of(&check, sizes[0])? else { continue };
        for &size in sizes {
            // One pipeline and one dispatch serve all of them.
            let other = dispatch_of(&check, size)?.map(|(_, other)| format!("{other:?}"));
            assert_eq!(other, Some(format!("{dispatch:?}")), "{check} with subgroups of {size}");
        }
        let op = &check.case.case.op;
        let distance = (op.cost(op.passes().get(pass)?)?.flop / 1e6).log2().abs();
        let (key, rank) =
            ((dispatch.kernel.name, dispatch.kernel.variant), (dispatch.workgroups < sizes.len(), distance));
        if found.get(&key).is_none_or(|(least, ..)| rank < *least) {
            found.insert(key, (rank, check, dispatch));
        }
    }
    Ok(found.into_values().map(|(_, check, dispatch)| (check, dispatch)).collect())
}

/// Every kernel that has subgroup operations is checked at every size, and none where subgroups are too small for it.
fn none_is_left_out() -> Result<(), Failed> {
    let all = OPS.iter().flat_map(|family| (family.kernels)()).filter(|kernel| kernel.subgroups);
    let all: BTreeSet<_> = all.map(|kernel| (kernel.name, kernel.variant)).collect();
    for (sizes, expected) in SIZES.map(|sizes| (sizes, &all)).into_iter().chain([([4].as_slice(), &BTreeSet::new())]) {
        let found: BTreeSet<_> =
            checks(sizes)?.iter().map(|(_, found)| (found.kernel.name, found.kernel.variant)).collect();
        if found != *expected {
            return Err(format!("subgroups of {sizes:?}: {found:?} instead of {expected:?}").into());
        }
    }
    if all.is_empty() { Err("there is no kernel with subgroup operations".into()) } else { Ok(()) }
}

/// Runs the check with the kernel's subgroup operations emulated.
fn emulated(gpu: &Gpu, check: &Check, kernel: &Kernel, sizes: &[u32]) -> Result<(), Failed> {
    let CheckKind::Gpu { pass, variant } = check.kind else { return Err("not a check of a kernel".into()) };
    // Two arrays in turn need one barrier instead of two.
    let functions = format!(
        "var<workgroup> lanes: array<vec4<f32>, {}>;
         var<private> own_lane: u32;
         var<private> own_size: u32;
         var<private> turn: u32;
         fn shuffled(v: vec4<f32>, source: u32) -> vec4<f32> {{
             turn = {1}u - turn;
             lanes[turn + own_lane] = v;
             workgroupBarrier();
             return lanes[turn + own_lane / own_size * own_size + source];
         }}
         @compute",
        2 * kernel.workgroup[0],
        kernel.workgroup[0]
    );
    let turns = sizes.len();
    let start = format!(
        ") {{
            own_lane = lane;
            own_size = {}u << ((wid.y * wgs.x + wid.x) % {turns}u);
            let subgroup_lane = lane % own_size;
            read_sizes();",
        sizes[0]
    );
    let edits = [
        ("subgroupShuffle(", "shuffled("),
        ("@builtin(subgroup_invocation_id) subgroup_lane: u32,", ""),
        (") {\n    read_sizes();", &start),
        ("@compute", &functions),
    ];
    let patch = Patch { kernel: kernel.name, variant: kernel.variant, edits: &edits };
    verdict(check.case.gpu_stores_reference(gpu, pass, variant, Some(&patch))?)
}

/// What another process prints at a vector width of lavapipe.
fn at_width(bits: u32, program: &Path, arguments: &[&str]) -> Result<String, Failed> {
    let output = Command::new(program)
        .args(arguments)
        .env("LP_NATIVE_VECTOR_WIDTH", bits.to_string())
        // The cache would hand out what was compiled for another width.
        .env("MESA_SHADER_CACHE_DISABLE", "true")
        .env("VAE_WGPU_PIPELINE_CACHE", "off")
        .output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if output.status.success() { Ok(text) } else { Err(Failed::from(format!("{arguments:?}: {text}"))) }
}

/// Cases that run on lavapipe's real subgroups: tails and partial sums.
const REAL: [&str; 2] = ["kernels::conv2d/3x3_stride2_odd/", "kernels::fused_conv/all_tails/"];
/// Variants with subgroup operations.
const VARIANTS: [&str; 2] = ["/subgroup_tex", "/subgroup"];

/// Runs the checks of this program at a vector width: those of kernels with subgroup operations pass, or are not applicable where
/// subgroups are too small.
fn real(adapter: &str, bits: u32) -> Result<(), Failed> {
    let size = bits / 32;
    let devices = at_width(bits, Path::new(env!("CARGO_BIN_EXE_vae-wgpu")), &["devices", "--json"])?;
    let devices: Vec<Value> = serde_json::from_str(devices.get(..=devices.rfind(']').unwrap_or(0)).unwrap_or(""))?;
    let lavapipe = devices.iter().find(|device| device["name"].as_str().is_some_and(|name| name.contains("llvmpipe")));
    let found = &lavapipe.ok_or_else(|| format!("no longer there: {adapter}"))?["profile"]["subgroup"];
    if *found != serde_json::json!([size, size]) {
        return Err(Failed::from(format!("subgroups of {found} at {bits} bits")));
    }
    for case in REAL {
        // Kernels without subgroup operations do not depend on the width.
        let others = ["/naive", "/tiled", "/register_tiled", "/column_sum", "/finite_differences", " folded"];
        let skipped = others.iter().flat_map(|other| ["--skip", other]);
        let arguments: Vec<&str> = [case].into_iter().chain(skipped).collect();
        let text = at_width(bits, &std::env::current_exe()?, &arguments)?;
        let tests = text.lines().filter(|line| line.starts_with("test ") && line.contains(" kernels::"));
        let ended = |verdict: &str| tests.clone().filter(|line| line.ends_with(verdict)).count();
        let verdict = if size < 8 { "... ignored" } else { "... ok" };
        if ended(verdict) != 3 * VARIANTS.len() || tests.clone().count() != 3 * VARIANTS.len() {
            return Err(Failed::from(format!(
                "{case}: not all of three passes in {VARIANTS:?} end `{verdict}`:\n{text}"
            )));
        }
    }
    Ok(())
}

pub(crate) fn register(tests: &mut Suite) -> vae_wgpu::Result<()> {
    let adapter = tests.adapter().cloned();
    for bits in [128, 256, 512] {
        let name = format!("on lavapipe with vectors of {bits} bits");
        match &adapter {
            Some(info) if !info.name.contains("llvmpipe") => tests.not_applicable(name, "not lavapipe"),
            info => {
                let adapter = info.as_ref().map(ToString::to_string).unwrap_or_default();
                tests.on(Setup::Full, name, move |_| real(&adapter, bits));
            }
        }
    }
    tests.add("every_kernel_with_subgroup_operations_is_checked", none_is_left_out);
    // The adapter's own size needs no emulation: `kernels` checks every case with it.
    let size = adapter.and_then(|info| info.profile.subgroup);
    let own = size.filter(|(least, most)| least == most).map(|(size, _)| size);
    for sizes in SIZES.into_iter().filter(|sizes| own.is_none_or(|own| **sizes != [own])) {
        for (check, dispatch) in checks(sizes)? {
            let kernel @ Kernel { name, variant, .. } = dispatch.kernel;
            // Small grids have no workgroup for each size.
            let together = if dispatch.workgroups < sizes.len() { 1 } else { sizes.len() };
            for sizes in sizes.chunks(together) {
                let (check, name) = (check.clone(), format!("{name}/{variant} with subgroups of {sizes:?}: {check}"));
                tests.on(Setup::Subgroups(sizes[0]), name, move |gpu| emulated(gpu, &check, kernel, sizes));
            }
        }
    }
    Ok(())
}
