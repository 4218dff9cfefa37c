//! Compares the declaration of every kernel in Rust with its shader by reflection, and every dispatch with its kernel.

use std::collections::{BTreeMap, BTreeSet};

use libtest_mimic::Trial;
use naga::valid::{Capabilities, GlobalUse, ValidationFlags, Validator};
use naga::{
    AddressSpace, Block, Expression, Function, ImageClass, ImageDimension, Module, Statement, StorageAccess,
    StorageFormat, TypeInner,
};
use vae_wgpu::error::Error;
use vae_wgpu::runtime::gpu::probes;
use vae_wgpu::runtime::kernel::{Access, Bind, DeviceKind, Dispatch, Kernel, Profile};
use vae_wgpu::runtime::op::{OPS, Op, Pass, Target};
use vae_wgpu::runtime::plan;

/// WebGPU's default limits.
const MAX_STORAGE_BUFFERS: usize = 8;
const MAX_STORAGE_TEXTURES: usize = 4;
const MAX_INVOCATIONS: u32 = 256;
const MAX_WORKGROUP_SIZE: [u32; 3] = [256, 256, 64];
const MAX_WORKGROUP_BYTES: u32 = 16 << 10;

fn kernels() -> Vec<&'static Kernel> {
    let mut kernels: Vec<&Kernel> =
        OPS.iter().flat_map(|family| (family.kernels)()).chain(probes()).chain(plan::kernels()).collect();
    // Operations may share kernels, but not names.
    let mut seen = BTreeSet::new();
    kernels.retain(|kernel| seen.insert(std::ptr::from_ref(*kernel)));
    kernels
}

/// A description of the difference, if any.
type Check = Result<(), String>;

fn same<T: PartialEq + std::fmt::Debug>(what: &str, declared: T, found: T) -> Check {
    if declared == found { Ok(()) } else { Err(format!("{what}: declared {declared:?}, found {found:?}")) }
}

fn at_most(what: &str, found: impl Into<u64>, limit: impl Into<u64>) -> Check {
    let (found, limit) = (found.into(), limit.into());
    if found <= limit { Ok(()) } else { Err(format!("{what}: {found}, of at most {limit}")) }
}

/// Names of the overrides without a default that a function and the functions that it calls use.
fn overrides_used(module: &Module, function: &Function, used: &mut BTreeSet<String>) {
    for (_, expression) in function.expressions.iter() {
        if let Expression::Override(handle) = expression {
            let constant = &module.overrides[*handle];
            if constant.init.is_none() {
                used.extend(constant.name.clone());
            }
        }
    }
    overrides_called(module, &function.body, used);
}

/// Overrides used by the functions that a block calls.
fn overrides_called(module: &Module, block: &Block, used: &mut BTreeSet<String>) {
    for statement in block {
        let blocks = match statement {
            Statement::Call { function, .. } => {
                overrides_used(module, &module.functions[*function], used);
                vec![]
            }
            Statement::Block(block) => vec![block],
            Statement::If { accept, reject, .. } => vec![accept, reject],
            Statement::Loop { body, continuing, .. } => vec![body, continuing],
            Statement::Switch { cases, .. } => cases.iter().map(|case| &case.body).collect(),
            _ => vec![],
        };
        blocks.into_iter().for_each(|block| overrides_called(module, block, used));
    }
}

/// Settings of a kernel's flags: none, each alone, all. `PARTIALS` is 1 or 2.
fn settings(kernel: &Kernel) -> Vec<Vec<(&'static str, i64)>> {
    let alone = kernel.flags.iter().map(|flag| vec![(*flag, 1)]);
    let all = |value| kernel.flags.iter().map(|flag| (*flag, if *flag == "PARTIALS" { value } else { 1 })).collect();
    let mut settings: Vec<Vec<_>> = alone.chain([vec![]]).collect();
    if !kernel.flags.is_empty() {
        settings.extend([all(1), all(2)]);
    }
    settings
}

/// Everything that a shader uses, over all settings of its flags.
#[derive(Default)]
struct Used {
    bindings: BTreeMap<u32, (String, Access)>,
    params: Vec<(String, u32, u32)>,
    overrides: BTreeSet<String>,
}

fn reflect(kernel: &Kernel) -> Check {
    let mut used = Used::default();
    for flags in settings(kernel) {
        reflect_with(kernel, &flags, &mut used).map_err(|e| format!("{flags:?}: {e}"))?;
    }
    let declared = kernel.bindings.iter().map(|(name, access)| ((*name).to_owned(), *access));
    same("bindings", (0..).zip(declared).collect(), used.bindings)?;
    same("Params", kernel.params.iter().map(|f| (f.name.to_owned(), f.offset, f.bytes)).collect(), used.params)?;
    same("overrides", kernel.overrides.iter().map(|name| (*name).to_owned()).collect(), used.overrides)
}

fn reflect_with(kernel: &Kernel, flags: &[(&'static str, i64)], used: &mut Used) -> Check {
    let wgsl = kernel.wgsl(flags).map_err(|e| e.to_string())?;
    let module = naga::front::wgsl::parse_str(&wgsl).map_err(|e| e.emit_to_string(&wgsl))?;
    let capabilities = if kernel.subgroups { Capabilities::SUBGROUP } else { Capabilities::empty() };
    let info =
        Validator::new(ValidationFlags::all(), capabilities).validate(&module).map_err(|e| e.emit_to_string(&wgsl))?;
    let position = module.entry_points.iter().position(|entry| entry.name == kernel.entry);
    let index = position.ok_or_else(|| format!("no entry point `{}`", kernel.entry))?;
    let (entry, uses) = (&module.entry_points[index], info.get_entry_point(index));

    same("workgroup size", kernel.workgroup, entry.workgroup_size)?;
    for (size, limit) in entry.workgroup_size.into_iter().zip(MAX_WORKGROUP_SIZE) {
        at_most("workgroup size in a dimension", size, limit)?;
    }
    at_most("invocations", entry.workgroup_size.iter().product::<u32>(), MAX_INVOCATIONS)?;
    let textures = kernel.bindings.iter().filter(|(_, access)| *access == Access::Texture).count();
    at_most("storage textures", textures as u64, MAX_STORAGE_TEXTURES as u64)?;
    at_most("storage buffers", (kernel.bindings.len() - textures) as u64, MAX_STORAGE_BUFFERS as u64)?;

    let mut params = Vec::new();
    let mut workgroup_bytes = 0;
    let mut bind = |binding: u32, name: String, access: Access| {
        let known = used.bindings.entry(binding).or_insert_with(|| (name.clone(), access));
        same("a binding under other flags", &(name, access), known)
    };
    for (handle, global) in module.global_variables.iter().filter(|(handle, _)| !uses[*handle].is_empty()) {
        let ty = &module.types[global.ty].inner;
        let name = global.name.clone().unwrap_or_default();
        match global.space {
            AddressSpace::WorkGroup => workgroup_bytes += ty.try_size(module.to_ctx()).unwrap_or(u32::MAX),
            AddressSpace::Storage { access } => {
                let binding = global.binding.ok_or("a storage buffer without binding")?;
                same("group", 0, binding.group)?;
                let declared = match access {
                    StorageAccess::LOAD => Access::Read,
                    _ => Access::ReadWrite,
                };
                if declared == Access::ReadWrite && !uses[handle].contains(GlobalUse::WRITE) {
                    return Err(format!("`{name}` is declared read_write and never written"));
                }
                bind(binding.binding, name, declared)?;
            }
            AddressSpace::Uniform => {
                let binding = global.binding.ok_or("a uniform without binding")?;
                same("binding of Params", kernel.bindings.len() as u32, binding.binding)?;
                let TypeInner::Struct { members, .. } = ty else { return Err("Params is no struct".into()) };
                for member in members {
                    let bytes = module.types[member.ty].inner.size(module.to_ctx());
                    params.push((member.name.clone().unwrap_or_default(), member.offset, bytes));
                }
            }
            AddressSpace::Handle => {
                let binding = global.binding.ok_or("a texture without binding")?;
                same("group", 0, binding.group)?;
                let TypeInner::Image { dim: ImageDimension::D2, arrayed: false, class } = *ty else {
                    return Err(format!("`{name}` is no two-dimensional texture"));
                };
                let expected = ImageClass::Storage { format: StorageFormat::Rgba32Float, access: StorageAccess::LOAD };
                same("class of a texture", expected, class)?;
                bind(binding.binding, name, Access::Texture)?;
            }
            AddressSpace::Private => {}
            other => return Err(format!("`{name}` lies in {other:?}")),
        }
    }
    at_most("bytes of workgroup memory", workgroup_bytes, MAX_WORKGROUP_BYTES)?;
    used.params = params;
    overrides_used(&module, &entry.function, &mut used.overrides);
    Ok(())
}

fn kernel_declarations_match_their_shaders() {
    let failures: Vec<String> = kernels()
        .into_iter()
        .filter_map(|kernel| {
            let failure = reflect(kernel).err()?;
            Some(format!("{}/{} ({}): {failure}", kernel.name, kernel.variant, kernel.file))
        })
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn kernels_have_a_header_comment_and_unique_names() {
    let mut names = BTreeSet::new();
    for kernel in kernels() {
        assert!(kernel.source.starts_with("// "), "{} has no header", kernel.file);
        assert!(names.insert((kernel.name, kernel.variant)), "{}/{} twice", kernel.name, kernel.variant);
    }
}

/// Compares a dispatch with its kernel and its pass.
fn lowered(op: &dyn Op, entry: &Pass, dispatch: &Dispatch, scratch: usize, known: &[&Kernel]) -> Check {
    let kernel = dispatch.kernel;
    if !known.iter().any(|k| std::ptr::eq(*k, kernel)) {
        return Err(format!("{} is not in the family's table of kernels", kernel.name));
    }
    same("bindings", kernel.bindings.len(), dispatch.bindings.len())?;
    same("bytes of Params", 4 * kernel.params.len(), dispatch.params.len())?;
    let flags: BTreeSet<_> = dispatch.flags.iter().map(|(name, _)| *name).collect();
    same("flags", kernel.flags.iter().copied().collect(), flags)?;
    let values: BTreeMap<_, _> = dispatch.overrides.iter().copied().collect();
    same("overrides", kernel.overrides.iter().copied().collect(), values.keys().copied().collect::<BTreeSet<_>>())?;
    at_most("workgroups", dispatch.workgroups as u64, 65_535u64.pow(2))?;
    for (i, (bind, (_, access))) in dispatch.bindings.iter().zip(kernel.bindings).enumerate() {
        let writes = *access == Access::ReadWrite;
        let allowed = match bind {
            Bind::Scratch(i) => *i < scratch,
            Bind::Arg(arg) if writes => entry.writes.contains(arg) || entry.updates.contains(arg),
            Bind::Arg(arg) => entry.args().any(|a| a == *arg),
        };
        if !allowed {
            return Err(format!("{bind:?} is not {}'s to {}", entry.name, if writes { "write" } else { "read" }));
        }
        let mut others =
            dispatch.bindings.iter().zip(kernel.bindings).enumerate().filter(|(j, (b, _))| *j != i && *b == bind);
        if others.any(|(_, (_, (_, other)))| writes || *other == Access::ReadWrite) {
            return Err(format!("{bind:?} is bound twice, once to be written"));
        }
    }
    // Every argument has a shape.
    for arg in entry.args() {
        vae_wgpu::runtime::op::spec_of(op, arg).map_err(|e| e.to_string())?;
    }
    Ok(())
}

fn dispatches_match_their_kernels() {
    let software = Profile { kind: DeviceKind::Software, subgroup: Some((8, 8)), ..Profile::WEBGPU };
    let subgroups = Profile { subgroup: Some((32, 32)), ..Profile::WEBGPU };
    let mut failures = Vec::new();
    for family in OPS {
        let kernels = (family.kernels)();
        let mut unused: BTreeSet<_> = kernels.iter().map(|k| (k.name, k.variant)).collect();
        for case in (family.cases)().unwrap() {
            let entries = case.op.passes();
            for entry in entries.iter() {
                let choices = case.op.variants(entry.name).iter().copied().map(Some).chain([None]);
                for (variant, profile) in choices.flat_map(|v| [(v, Profile::WEBGPU), (v, software), (v, subgroups)]) {
                    let accumulate = vec![false; entry.writes.len()];
                    let target = Target { profile: &profile, variant, accumulate: &accumulate };
                    let low = match case.op.lower(entry.name, &target) {
                        Err(Error::Unsupported { .. }) if variant.is_some() => continue,
                        low => low.map_err(|e| e.to_string()),
                    };
                    let check = low.and_then(|low| {
                        if variant.is_none() && profile.subgroup.is_none() {
                            same("subgroups by choice", false, low.dispatches.iter().any(|d| d.kernel.subgroups))?;
                        }
                        low.dispatches.iter().try_for_each(|d| {
                            unused.remove(&(d.kernel.name, d.kernel.variant));
                            lowered(&*case.op, entry, d, low.scratch.len(), &kernels)
                        })
                    });
                    if let Err(failure) = check {
                        failures.push(format!("{}/{}/{} {variant:?}: {failure}", family.name, case.name, entry.name));
                    }
                }
            }
        }
        if !unused.is_empty() {
            failures.push(format!("{}: no case runs {unused:?}", family.name));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// Trials for functions that panic on failure, under their own names.
macro_rules! trials {
    ($($name:ident),+ $(,)?) => {
        vec![$(Trial::test(concat!("interfaces::", stringify!($name)), || {
            $name();
            Ok(())
        })),+]
    };
}

pub(crate) fn trials() -> Vec<Trial> {
    trials![
        kernel_declarations_match_their_shaders,
        kernels_have_a_header_comment_and_unique_names,
        dispatches_match_their_kernels,
    ]
}
