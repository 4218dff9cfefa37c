//! Translates every kernel in every variant, specialised as the cases of the suite and the default model need it, with naga: to SPIR-V
//! (for the oldest and the newest Vulkan), to MSL and to HLSL, with the options that wgpu passes.
//!
//! WGSL is validated without optional features, except those that the kernel declares. `spirv-val` validates the SPIR-V;
//! `glslangValidator -D`, which is slow, compiles the HLSL of a part of the specialisations (Debian: spirv-tools, glslang-tools). Without
//! these programs their checks are reported as ignored; `VAE_WGPU_REQUIRE_TOOLS=1` makes them fail instead.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use naga::back::{PipelineConstants, pipeline_constants::process_overrides};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{Module, ShaderStage};
use vae_wgpu::error::Error;
use vae_wgpu::runtime::gpu::probes;
use vae_wgpu::runtime::kernel::emit::{hlsl, metal, spirv};
use vae_wgpu::runtime::kernel::{DeviceKind, Kernel, Profile};
use vae_wgpu::runtime::op::{OPS, Op, Pass, Target};
use vae_wgpu::runtime::plan;
use vae_wgpu::vae::model::{Mode, Norm, VaeConfig};

/// A translation or a validation of its output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Check {
    SpirV,
    SpirVVal,
    Metal,
    Hlsl,
    Glslang,
}

impl Check {
    const ALL: [Self; 5] = [Self::SpirV, Self::SpirVVal, Self::Metal, Self::Hlsl, Self::Glslang];

    /// The program that runs the check.
    fn tool(self) -> Option<&'static str> {
        match self {
            Self::SpirVVal => Some("spirv-val"),
            Self::Glslang => Some("glslangValidator"),
            Self::SpirV | Self::Metal | Self::Hlsl => None,
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::SpirV => "to SPIR-V",
            Self::SpirVVal => "through spirv-val",
            Self::Metal => "to Metal",
            Self::Hlsl => "to HLSL",
            Self::Glslang => "through glslang",
        })
    }
}

/// Values of a kernel's flags and overrides.
#[derive(Clone, Debug, Default)]
struct Values {
    flags: Vec<(&'static str, i64)>,
    overrides: Vec<(&'static str, f64)>,
}

impl Values {
    /// The values as comparable bits.
    fn bits(&self) -> Vec<u64> {
        let flags = self.flags.iter().map(|(_, value)| value.cast_unsigned());
        flags.chain(self.overrides.iter().map(|(_, value)| value.to_bits())).collect()
    }
}

/// A kernel with all values of its flags and overrides in use.
struct Subject {
    kernel: &'static Kernel,
    values: Vec<Values>,
}

impl Subject {
    /// A sample for glslang, which is slow: each flag and override takes the values 0, 1, 2 and a larger one, where it ever does.
    fn sample(&self) -> Vec<&Values> {
        let mut seen = BTreeSet::new();
        let news = |values: &&Values| {
            let before = seen.len();
            seen.insert(("", 0));
            seen.extend(values.flags.iter().map(|(name, value)| (*name, (*value).clamp(-1, 3) as i8)));
            seen.extend(values.overrides.iter().map(|(name, value)| (*name, value.clamp(-1.0, 3.0) as i8)));
            seen.len() > before
        };
        self.values.iter().filter(news).collect()
    }
}

/// Devices for which different kernels are chosen.
fn profiles() -> [Profile; 4] {
    let software = |subgroup| Profile { kind: DeviceKind::Software, subgroup, ..Profile::WEBGPU };
    let subgroups = Profile { subgroup: Some((32, 32)), ..Profile::WEBGPU };
    [Profile::WEBGPU, subgroups, software(Some((8, 8))), software(Some((4, 4)))]
}

#[derive(Default)]
struct Subjects {
    kernels: BTreeMap<(&'static str, &'static str), &'static Kernel>,
    values: BTreeMap<(&'static str, &'static str), BTreeMap<Vec<u64>, Values>>,
}

impl Subjects {
    fn add(&mut self, op: &dyn Op, entry: &Pass, accumulate: &[bool]) {
        for variant in op.variants(entry.name).iter().copied().map(Some).chain([None]) {
            for profile in profiles() {
                let lowered = match op.lower(entry.name, &Target { profile: &profile, variant, accumulate }) {
                    Err(Error::Unsupported { .. }) if variant.is_some() => continue,
                    lowered => lowered.unwrap(),
                };
                for dispatch in lowered.dispatches {
                    let key = (dispatch.kernel.name, dispatch.kernel.variant);
                    let values = Values { flags: dispatch.flags, overrides: dispatch.overrides };
                    self.kernels.insert(key, dispatch.kernel);
                    self.values.entry(key).or_default().insert(values.bits(), values);
                }
            }
        }
    }

    fn of_suite(&mut self) {
        for case in OPS.iter().flat_map(|family| (family.cases)().unwrap()) {
            let entries = case.op.passes();
            self.add(&*case.op, &entries.forward, &[]);
            for entry in &entries.backward {
                for accumulate in [false, true] {
                    self.add(&*case.op, entry, &vec![accumulate; entry.writes.len()]);
                }
            }
        }
    }

    fn of_default_model(&mut self) {
        for norm in [Norm::Batch, Norm::Position] {
            let config = VaeConfig { norm, ..VaeConfig::default() };
            for mode in [Mode::Train, Mode::Evaluate, Mode::Encode, Mode::Decode] {
                for graph in [config.graph(128, mode), config.fused_graph(128, mode)] {
                    for node in graph.unwrap().nodes() {
                        self.add(&*node.op, &node.pass, &node.accumulate);
                    }
                }
            }
        }
    }

    fn all() -> Vec<Arc<Subject>> {
        let mut all = Self::default();
        all.of_suite();
        all.of_default_model();
        for kernel in OPS.iter().flat_map(|family| (family.kernels)()).chain(probes()).chain(plan::kernels()) {
            let key = (kernel.name, kernel.variant);
            all.kernels.insert(key, kernel);
            if kernel.overrides.is_empty() && kernel.flags.is_empty() {
                all.values.entry(key).or_default().insert(vec![], Values::default());
            }
        }
        let Self { kernels, mut values } = all;
        let subject = |(key, kernel)| {
            let values = values.remove(&key).unwrap_or_default().into_values().collect();
            Arc::new(Subject { kernel, values })
        };
        kernels.into_iter().map(subject).collect()
    }
}

/// Features that the kernel declares.
fn capabilities(kernel: &Kernel) -> Capabilities {
    if kernel.subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() }
}

fn parse(wgsl: &str, capabilities: Capabilities) -> Result<(Module, ModuleInfo), String> {
    let module = naga::front::wgsl::parse_str(wgsl).map_err(|e| e.emit_to_string(wgsl))?;
    let mut validator = Validator::new(ValidationFlags::all(), capabilities);
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(wgsl))?;
    Ok((module, info))
}

/// SPIR-V versions of the oldest and the newest Vulkan that can run the kernel, with their names in `spirv-val`.
fn versions(kernel: &Kernel) -> [((u8, u8), &'static str); 2] {
    [if kernel.subgroups { ((1, 3), "vulkan1.1") } else { ((1, 0), "vulkan1.0") }, ((1, 6), "vulkan1.3")]
}

/// Runs a program on a file; its output is the error if it rejects the file.
fn run(tool: &str, file: &Path, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(tool).args(arguments).arg(file).output().map_err(|e| format!("{tool}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{tool}: {}", String::from_utf8_lossy(&said).lines().take(8).collect::<Vec<_>>().join("\n")))
}

fn spirv_val(words: &[u32], environment: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = folder.path().join("kernel.spv");
    std::fs::write(&file, words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>())
        .map_err(|e| e.to_string())?;
    run("spirv-val", &file, &["--target-env", environment])
}

fn glslang(text: &str, entry: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let (file, out) = (folder.path().join("kernel.hlsl"), folder.path().join("kernel.spv"));
    std::fs::write(&file, text).map_err(|e| e.to_string())?;
    let out = out.to_string_lossy();
    run("glslangValidator", &file, &["-D", "-V", "--target-env", "vulkan1.1", "-S", "comp", "-e", entry, "-o", &out])
}

/// Checks all specialisations of a kernel; describes the first that fails.
fn check(subject: &Subject, check: Check) -> Result<(), String> {
    let kernel = subject.kernel;
    if subject.values.is_empty() {
        return Err("neither the suite nor the default model runs it".into());
    }
    let chosen = if check == Check::Glslang { subject.sample() } else { subject.values.iter().collect() };
    let mut texts = BTreeMap::new();
    for values in chosen {
        let flags = &values.flags;
        if !texts.contains_key(flags) {
            let wgsl = kernel.wgsl(flags).map_err(|e| e.to_string())?;
            texts.insert(flags, parse(&wgsl, capabilities(kernel)).map_err(|e| format!("with {flags:?}: {e}"))?);
        }
        let (module, info) = &texts[flags];
        let overrides = values.overrides.iter();
        let constants: PipelineConstants = overrides.map(|(name, value)| ((*name).to_owned(), *value)).collect();
        let entry = Some((ShaderStage::Compute, kernel.entry));
        let (module, info) = process_overrides(module, info, entry, &constants).map_err(|e| e.to_string())?;
        let spirv = |version| spirv(kernel, &module, &info, version);
        let passed = match check {
            Check::SpirV => versions(kernel).iter().try_for_each(|(version, _)| spirv(*version).map(drop)),
            Check::SpirVVal => {
                versions(kernel).iter().try_for_each(|(version, environment)| spirv_val(&spirv(*version)?, environment))
            }
            Check::Metal => metal(kernel, &module, &info).map(drop),
            Check::Hlsl => hlsl(kernel, &module, &info).map(drop),
            Check::Glslang => hlsl(kernel, &module, &info).and_then(|(text, entry)| glslang(&text, &entry)),
        };
        passed.map_err(|e| format!("with {values:?}: {e}"))?;
    }
    Ok(())
}

fn installed(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok()
}

fn required() -> bool {
    std::env::var_os("VAE_WGPU_REQUIRE_TOOLS").is_some_and(|v| v != "0")
}

/// A trial that is ignored, or fails if tools are required, without the program that it needs.
fn trial(
    name: String,
    missing: &[&'static str],
    tool: Option<&'static str>,
    run: impl FnOnce() -> Result<(), Failed> + Send + 'static,
) -> Trial {
    let name = format!("translate::{name}");
    match tool.filter(|tool| missing.contains(tool)) {
        Some(tool) => Trial::test(name, move || Err(Failed::from(format!("{tool} is not installed"))))
            .with_kind("no tool")
            .with_ignored_flag(!required()),
        None => Trial::test(name, run),
    }
}

/// Every check fails for invalid input.
fn refusals(missing: &[&'static str]) -> Vec<Trial> {
    let error = |result: Result<(), String>, part: &str| match result {
        Err(error) if error.contains(part) => Ok(()),
        Err(error) => Err(Failed::from(format!("rejected for another reason than `{part}`: {error}"))),
        Ok(()) => Err(Failed::from("not rejected")),
    };
    // Valid with the feature, invalid without it.
    let feature = |wgsl: &'static str, feature| {
        move || match (parse(wgsl, feature), parse(wgsl, Capabilities::empty())) {
            (Ok(_), Err(_)) => Ok(()),
            (Err(error), _) => Err(Failed::from(error)),
            (Ok(_), Ok(_)) => Err(Failed::from("not rejected")),
        }
    };
    let half = "enable f16; @compute @workgroup_size(1) fn main() { var x = 1.0h; x += x; }";
    let lanes = "@compute @workgroup_size(8) fn main(@builtin(subgroup_invocation_id) i: u32) { _ = i; }";
    let spirv = Some("spirv-val");
    let glsl = Some("glslangValidator");
    let missing_return = "[numthreads(1, 1, 1)] void main() { float x = nothing; }";
    vec![
        trial("rejects undeclared f16".into(), missing, None, feature(half, Capabilities::SHADER_FLOAT16)),
        trial("rejects undeclared subgroups".into(), missing, None, feature(lanes, Capabilities::SUBGROUP)),
        trial("rejects invalid SPIR-V".into(), missing, spirv, move || {
            error(spirv_val(&[1, 2, 3], "vulkan1.0"), "spirv-val:")
        }),
        trial("rejects invalid HLSL".into(), missing, glsl, move || error(glslang(missing_return, "main"), "nothing")),
    ]
}

pub(crate) fn trials() -> Vec<Trial> {
    let missing: Vec<_> = Check::ALL.iter().filter_map(|check| check.tool()).filter(|tool| !installed(tool)).collect();
    for tool in &missing {
        eprintln!(
            "*** {tool} IS NOT INSTALLED: what it would check is {} ***",
            if required() { "FAILED" } else { "SKIPPED" }
        );
    }
    let subjects = Subjects::all();
    let count: usize = subjects.iter().map(|subject| subject.values.len()).sum();
    let sampled: usize = subjects.iter().map(|subject| subject.sample().len()).sum();
    eprintln!("{} kernels, {count} specialisations, {sampled} of them through glslang", subjects.len());
    let mut trials = refusals(&missing);
    for subject in subjects {
        let Kernel { name, variant, .. } = *subject.kernel;
        for what in Check::ALL {
            let subject = Arc::clone(&subject);
            let run = move || Ok(check(&subject, what)?);
            trials.push(trial(format!("{name}/{variant} {what}"), &missing, what.tool(), run));
        }
    }
    trials
}
