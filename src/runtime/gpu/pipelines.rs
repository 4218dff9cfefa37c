//! Compiles kernels to shader modules and pipelines, each once per device.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::error::{Error, Result};
use crate::runtime::gpu::{Gpu, Step, lock};
use crate::runtime::kernel::{Access, Dispatch, Kernel};
use crate::runtime::sys::threads;

/// Edits the expanded WGSL of a kernel before it is compiled, for tests with deliberately broken kernels.
pub type Rewrite<'a> = &'a (dyn Fn(&Kernel, String) -> Result<String> + Sync);

#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    /// Whether it has been dispatched.
    pub(super) ran: AtomicBool,
}

type Defines = &'static [(&'static str, i64)];

/// A shader module is a file with its defines and flags. A rewritten one belongs to a single kernel (name, variant).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModuleKey {
    file: &'static str,
    defines: Defines,
    flags: Vec<(&'static str, i64)>,
    kernel: Option<(&'static str, &'static str)>,
}

/// A pipeline is an entry point of a module with its overrides, compared as bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PipelineKey {
    module: ModuleKey,
    name: &'static str,
    variant: &'static str,
    entry: &'static str,
    overrides: Vec<(&'static str, u64)>,
}

impl PipelineKey {
    fn new(dispatch: &Dispatch, rewritten: bool) -> Self {
        let Kernel { name, variant, file, entry, defines, .. } = *dispatch.kernel;
        let overrides = dispatch.overrides.iter().map(|&(name, value)| (name, value.to_bits())).collect();
        let flags = dispatch.flags.clone();
        let module = ModuleKey { file, defines, flags, kernel: rewritten.then_some((name, variant)) };
        Self { module, name, variant, entry, overrides }
    }
}

/// Returns the pipeline of each step, compiled where it is missing.
pub(super) fn compile(gpu: &Gpu, steps: &[Step<'_>], rewrite: Option<Rewrite<'_>>) -> Result<Vec<Arc<Pipeline>>> {
    let cached = rewrite.is_none();
    let keys: Vec<_> = steps.iter().map(|step| PipelineKey::new(step.dispatch, !cached)).collect();
    let (mut modules, mut pipelines) =
        if cached { (lock(&gpu.modules).clone(), lock(&gpu.pipelines).clone()) } else { Default::default() };

    let mut missing: HashMap<&ModuleKey, &Dispatch> = HashMap::new();
    for (key, step) in keys.iter().zip(steps) {
        if !pipelines.contains_key(key) && !modules.contains_key(&key.module) {
            missing.insert(&key.module, step.dispatch);
        }
    }
    let missing: Vec<_> = missing.into_iter().collect();
    modules.extend(threads::map(&missing, |(key, dispatch)| Ok(((*key).clone(), module(gpu, dispatch, rewrite)?)))?);

    let mut missing: HashMap<&PipelineKey, &Dispatch> = HashMap::new();
    for (key, step) in keys.iter().zip(steps) {
        if !pipelines.contains_key(key) {
            missing.insert(key, step.dispatch);
        }
    }
    let missing: Vec<_> = missing.into_iter().collect();
    let done = AtomicUsize::new(0);
    let made = threads::map(&missing, |(key, dispatch)| {
        let module = modules.get(&key.module).ok_or_else(|| Error::bug("a shader module was not compiled"))?;
        let made = pipeline(gpu, dispatch, module)?;
        if !gpu.compiles_late() {
            gpu.notify_compiled(done.fetch_add(1, Ordering::AcqRel) + 1, missing.len());
        }
        Ok(((*key).clone(), Arc::new(made)))
    })?;
    if cached {
        lock(&gpu.modules).extend(modules);
        lock(&gpu.pipelines).extend(made.iter().cloned());
    }
    pipelines.extend(made);
    keys.iter()
        .map(|key| pipelines.get(key).cloned().ok_or_else(|| Error::bug("a pipeline was not compiled")))
        .collect()
}

impl Gpu {
    /// Compiles the kernels of dispatches, as far as they are not compiled yet, and waits after each. Programs with these kernels are
    /// then made at once. Making a program compiles its kernels too, without waiting.
    ///
    /// # Errors
    /// [`Error::Shader`] for a kernel that does not expand, [`Error::Device`] for one that the device rejects.
    pub async fn compile_async<'a>(&self, dispatches: impl Iterator<Item = &'a Dispatch>) -> Result<()> {
        let mut missing: Vec<(PipelineKey, &Dispatch)> = Vec::new();
        let mut known: HashSet<PipelineKey> = lock(&self.pipelines).keys().cloned().collect();
        for dispatch in dispatches {
            let key = PipelineKey::new(dispatch, false);
            if known.insert(key.clone()) {
                missing.push((key, dispatch));
            }
        }
        let total = missing.len();
        for (done, (key, dispatch)) in missing.into_iter().enumerate() {
            let known = lock(&self.modules).get(&key.module).cloned();
            let module = known.map_or_else(|| module(self, dispatch, None), Ok)?;
            let made = pipeline(self, dispatch, &module)?;
            self.wait_async().await?;
            lock(&self.modules).insert(key.module.clone(), module);
            lock(&self.pipelines).insert(key, Arc::new(made));
            self.notify_compiled(done + 1, total);
        }
        Ok(())
    }
}

fn module(gpu: &Gpu, dispatch: &Dispatch, rewrite: Option<Rewrite<'_>>) -> Result<wgpu::ShaderModule> {
    let kernel = dispatch.kernel;
    let mut expanded = kernel.expand(&dispatch.flags)?;
    if let Some(rewrite) = rewrite {
        expanded.wgsl = rewrite(kernel, expanded.wgsl)?;
    }
    if gpu.hooks.reverse_workgroups {
        let reversed = reversed(&expanded.wgsl);
        expanded.wgsl = reversed.ok_or_else(|| Error::bug(format!("{} does not use lib/grid.wgsl", kernel.file)))?;
    }
    let source = wgpu::ShaderSource::Wgsl(expanded.wgsl.as_str().into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.file), source };
    let context = format!("compiling shaders/{} for {}/{}", kernel.file, kernel.name, kernel.variant);
    // wgpu validates before the driver compiles. Its message names lines of the expanded source, ours the line in `shaders/`.
    gpu.scoped(context, || gpu.device().create_shader_module(descriptor))
        .map_err(|error| kernel.validate(&expanded).err().unwrap_or(error))
}

/// Reverses the order of workgroups in shaders that compute it with `lib/grid.wgsl`; `None` for others.
fn reversed(wgsl: &str) -> Option<String> {
    const FORWARD: &str = "return workgroup.y * workgroups.x + workgroup.x;";
    const BACKWARD: &str = "return workgroups.y * workgroups.x - 1u - (workgroup.y * workgroups.x + workgroup.x);";
    wgsl.contains(FORWARD).then(|| wgsl.replace(FORWARD, BACKWARD))
}

fn pipeline(gpu: &Gpu, dispatch: &Dispatch, module: &wgpu::ShaderModule) -> Result<Pipeline> {
    let kernel = dispatch.kernel;
    let label = format!("{}/{}", kernel.name, kernel.variant);
    if kernel.subgroups && gpu.profile().subgroup.is_none() {
        return Err(Error::device(label, "the kernel needs subgroup operations, which this device does not have"));
    }
    let entry = |(binding, ty): (usize, wgpu::BindingType)| wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty,
        count: None,
    };
    let buffer = |ty, bytes| wgpu::BindingType::Buffer {
        ty,
        has_dynamic_offset: false,
        min_binding_size: NonZeroU64::new(bytes),
    };
    let storage = |(_, access): &(&str, Access)| match access {
        // wgpu-types 30 documents that read-only access needs TEXTURE_ADAPTER_SPECIFIC_FORMAT_FEATURES. That is out of date: WebGPU
        // allows it for rgba32float, `TextureFormat::guaranteed_format_features` lists STORAGE_READ_ONLY for this format without any
        // feature, and wgpu-core 30 validates the access against that list (`create_bind_group_layout` in device/resource.rs).
        Access::Texture => wgpu::BindingType::StorageTexture {
            access: wgpu::StorageTextureAccess::ReadOnly,
            format: wgpu::TextureFormat::Rgba32Float,
            view_dimension: wgpu::TextureViewDimension::D2,
        },
        Access::Read => buffer(wgpu::BufferBindingType::Storage { read_only: true }, 0),
        Access::ReadWrite => buffer(wgpu::BufferBindingType::Storage { read_only: false }, 0),
    };
    let uniform =
        (!dispatch.params.is_empty()).then(|| buffer(wgpu::BufferBindingType::Uniform, params_size(dispatch)));
    let entries: Vec<_> = kernel.bindings.iter().map(storage).chain(uniform).enumerate().map(entry).collect();
    gpu.scoped(format!("compiling {label}"), || {
        let device = gpu.device();
        let layout = device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
        let pipeline_layout = device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module,
            entry_point: Some(kernel.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                constants: &dispatch.overrides,
                // Kernels write workgroup memory before they read it. Zeroing it can take longer than the kernel.
                zero_initialize_workgroup_memory: false,
            },
            cache: gpu.cache.in_use(),
        });
        Pipeline { pipeline, layout, ran: AtomicBool::new(false) }
    })
}

/// Returns the size of a uniform binding in bytes: whole vec4s.
pub(super) fn params_size(dispatch: &Dispatch) -> u64 {
    dispatch.params.len().next_multiple_of(16) as u64
}
