//! A list of dispatches with everything that the device needs for it, made once and replayed every step: pipelines, one uniform
//! buffer with the parameters of all dispatches, and bind groups.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU64;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Gpu, Timer, lock};
use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Dispatch, Kernel, TEXTURE_WIDTH};
use crate::runtime::plan::texture_cache;
use crate::runtime::plan::texture_cache::stage;
use crate::runtime::sys::threads;

/// A range of a buffer, bound to a kernel.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// First byte, a multiple of [`Profile::offset_alignment`](crate::runtime::kernel::Profile::offset_alignment).
    pub offset: u64,
    /// Bytes.
    pub size: u64,
}

impl<'a> Binding<'a> {
    fn range(&self) -> texture_cache::Range<&'a wgpu::Buffer> {
        texture_cache::Range { buffer: self.buffer, offset: self.offset, bytes: self.size }
    }
}

/// One dispatch of a program with what its kernel is bound to.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// What errors and timings call it, e.g. `encoder.stem/conv2d.forward`.
    pub label: String,
    /// What runs.
    pub dispatch: &'a Dispatch,
    /// For each of the kernel's bindings in order; what it reads as a texture is staged from here.
    pub bindings: Vec<Binding<'a>>,
}

/// A change of a kernel's expanded WGSL before it is compiled, for tests with deliberately broken kernels.
pub type Rewrite<'a> = &'a (dyn Fn(&Kernel, String) -> Result<String> + Sync);

/// A compiled list of dispatches, with the copies between them that stage tensors in textures.
#[derive(Debug)]
pub struct Program {
    label: String,
    steps: Vec<Ready>,
    parts: Vec<Range<usize>>,
}

/// What a step is called in timings.
#[derive(Clone, Debug)]
pub(super) struct StepName {
    pub(super) label: String,
    pub(super) kernel: &'static str,
    pub(super) variant: &'static str,
}

#[derive(Debug)]
struct Ready {
    name: StepName,
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
    stages: Vec<Copy>,
}

/// A copy of a tensor into the texture that a dispatch reads.
#[derive(Debug)]
struct Copy {
    from: wgpu::Buffer,
    offset: u64,
    bytes: u64,
    to: wgpu::Texture,
    /// Whether it has to be made: not where an earlier dispatch of the program left it.
    due: bool,
}

/// A texture that tensors are staged in.
#[derive(Clone, Debug)]
pub(super) struct Stage {
    texture: wgpu::Texture,
    view: wgpu::TextureView,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Pipeline {
    pipeline: wgpu::ComputePipeline,
    layout: wgpu::BindGroupLayout,
}

type Defines = &'static [(&'static str, i64)];

/// A shader module is a file with its defines and flags; one that was rewritten belongs to a single kernel (name, variant).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct ModuleKey {
    file: &'static str,
    defines: Defines,
    flags: Vec<(&'static str, i64)>,
    kernel: Option<(&'static str, &'static str)>,
}

/// A pipeline is an entry point of a module with its interface and its overrides, compared as bits.
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

impl Program {
    /// Compiles what `gpu` has not compiled yet, on all cores, and makes the bind groups.
    ///
    /// Errors: [`Error::Shader`] for a kernel that does not expand, [`Error::Device`] for whatever the device refuses.
    pub fn new(gpu: &Gpu, label: &str, steps: &[Step<'_>]) -> Result<Self> {
        Self::build(gpu, label, steps, slice::from_ref(&(0..steps.len())), None)
    }

    /// The same for a program whose steps go to the device in several submissions, [`Program::encode_part`] each: `parts` cover them in
    /// order.
    pub fn in_parts(gpu: &Gpu, label: &str, steps: &[Step<'_>], parts: &[Range<usize>]) -> Result<Self> {
        Self::build(gpu, label, steps, parts, None)
    }

    /// The same with kernels changed by `rewrite`, past the caches.
    pub fn rewritten(gpu: &Gpu, label: &str, steps: &[Step<'_>], rewrite: Rewrite<'_>) -> Result<Self> {
        Self::build(gpu, label, steps, slice::from_ref(&(0..steps.len())), Some(rewrite))
    }

    fn build(
        gpu: &Gpu,
        label: &str,
        steps: &[Step<'_>],
        parts: &[Range<usize>],
        rewrite: Option<Rewrite<'_>>,
    ) -> Result<Self> {
        let pipelines = compile(gpu, steps, rewrite)?;
        let (params, offsets) = params_of(gpu, label, steps)?;
        let bound = steps.iter().map(|s| (s.dispatch.kernel, s.bindings.iter().map(Binding::range).collect()));
        let staging = stage(bound, parts);
        let stages = textures(gpu, &staging.textures)?;
        let mut ready = Vec::with_capacity(steps.len());
        for (((step, pipeline), offset), staged) in steps.iter().zip(pipelines).zip(offsets).zip(staging.steps) {
            let Kernel { name, variant, .. } = *step.dispatch.kernel;
            let stages: Vec<_> = staged.textures.iter().map(|slot| slot.and_then(|slot| stages.get(slot))).collect();
            let copy = |(binding, (from, to)): (usize, (&Binding<'_>, &Option<&Stage>))| {
                let due = staged.copies.contains(&binding);
                to.map(|to| Copy {
                    from: from.buffer.clone(),
                    offset: from.offset,
                    bytes: from.size,
                    to: to.texture.clone(),
                    due,
                })
            };
            ready.push(Ready {
                stages: step.bindings.iter().zip(&stages).enumerate().filter_map(copy).collect(),
                bind_group: bind_group(gpu, step, &stages, &pipeline.layout, params.as_ref().zip(offset))?,
                grid: gpu.grid(step.dispatch.workgroups)?,
                name: StepName { label: step.label.clone(), kernel: name, variant },
                pipeline,
            });
        }
        Ok(Self { label: label.to_owned(), steps: ready, parts: parts.to_vec() })
    }

    /// Number of dispatches.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Encodes all dispatches into one compute pass, which only copies interrupt; with a timer on a device that cannot take
    /// timestamps inside passes, into a pass each.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, mut timer: Option<&mut Timer>) {
        for part in 0..self.parts() {
            self.encode_part(encoder, part, timer.as_deref_mut());
        }
    }

    /// Number of submissions that the program is meant for.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.parts.len()
    }

    /// The same for the dispatches of one part. Parts are to be submitted in order; what else is submitted between them does no harm.
    pub fn encode_part(&self, encoder: &mut wgpu::CommandEncoder, part: usize, mut timer: Option<&mut Timer>) {
        let steps = self.parts.get(part).and_then(|part| self.steps.get(part.clone())).unwrap_or_default();
        if let Some(timer) = timer.as_deref_mut().filter(|timer| !timer.inside_passes()) {
            for step in steps {
                let stamps = timer.next(&step.name).map(|(query_set, at)| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(at),
                    end_of_pass_write_index: Some(at + 1),
                });
                step.due().for_each(|copy| copy.encode(encoder));
                step.encode(&mut self.pass(encoder, stamps), None);
            }
            return;
        }
        let mut pass = self.pass(encoder, None);
        let mut bound = None;
        for step in steps {
            if step.due().next().is_some() {
                drop(pass);
                step.due().for_each(|copy| copy.encode(encoder));
                pass = self.pass(encoder, None);
                bound = None;
            }
            let stamps = timer.as_deref_mut().and_then(|timer| timer.next(&step.name));
            if let Some((set, at)) = stamps {
                pass.write_timestamp(set, at);
            }
            step.encode(&mut pass, bound.replace(step));
            if let Some((set, at)) = stamps {
                pass.write_timestamp(set, at + 1);
            }
        }
    }

    fn pass<'e>(
        &self,
        encoder: &'e mut wgpu::CommandEncoder,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites<'_>>,
    ) -> wgpu::ComputePass<'e> {
        encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: Some(&self.label), timestamp_writes })
    }

    /// Encodes and submits some of the dispatches, by number.
    pub fn submit_steps(&self, gpu: &Gpu, steps: impl Iterator<Item = usize>) -> Result<()> {
        let mut encoder = gpu.encoder(&self.label);
        for step in steps {
            let ready =
                self.steps.get(step).ok_or_else(|| Error::bug(format!("{}: no dispatch {step}", self.label)))?;
            // What earlier dispatches staged may be gone.
            for stage in &ready.stages {
                stage.encode(&mut encoder);
            }
            ready.encode(&mut self.pass(&mut encoder, None), None);
        }
        gpu.submit(encoder)
    }

    /// Encodes and submits once.
    pub fn submit(&self, gpu: &Gpu) -> Result<()> {
        let mut encoder = gpu.encoder(&self.label);
        self.encode(&mut encoder, None);
        gpu.submit(encoder)
    }
}

impl Copy {
    /// Whole rows of the texture, then the rest.
    fn encode(&self, encoder: &mut wgpu::CommandEncoder) {
        let row = 16 * u64::from(TEXTURE_WIDTH);
        let rows = (self.bytes / row) as u32;
        let rest = (self.bytes % row / 16) as u32;
        for (y, width, height) in [(0, TEXTURE_WIDTH, rows), (rows, rest, 1)] {
            if width == 0 || height == 0 {
                continue;
            }
            let layout = wgpu::TexelCopyBufferLayout {
                offset: self.offset + u64::from(y) * row,
                bytes_per_row: Some(row as u32),
                rows_per_image: None,
            };
            let from = wgpu::TexelCopyBufferInfo { buffer: &self.from, layout };
            let to = wgpu::TexelCopyTextureInfo {
                texture: &self.to,
                mip_level: 0,
                origin: wgpu::Origin3d { x: 0, y, z: 0 },
                aspect: wgpu::TextureAspect::All,
            };
            encoder.copy_buffer_to_texture(from, to, wgpu::Extent3d { width, height, depth_or_array_layers: 1 });
        }
    }
}

impl Ready {
    fn due(&self) -> impl Iterator<Item = &Copy> {
        self.stages.iter().filter(|copy| copy.due)
    }

    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, before: Option<&Self>) {
        if before.is_none_or(|before| !Arc::ptr_eq(&before.pipeline, &self.pipeline)) {
            pass.set_pipeline(&self.pipeline.pipeline);
        }
        pass.set_bind_group(0, &self.bind_group, &[]);
        let [x, y, z] = self.grid;
        pass.dispatch_workgroups(x, y, z);
    }
}

/// One buffer with the parameters of all steps, equal ones once, and each step's offset in it.
fn params_of(gpu: &Gpu, label: &str, steps: &[Step<'_>]) -> Result<(Option<wgpu::Buffer>, Vec<Option<u64>>)> {
    let align = gpu.device().limits().min_uniform_buffer_offset_alignment as usize;
    let mut bytes: Vec<u8> = Vec::new();
    let mut known = HashMap::new();
    let mut offsets = Vec::with_capacity(steps.len());
    for step in steps {
        let params = &step.dispatch.params;
        offsets.push((!params.is_empty()).then(|| match known.entry(params) {
            Entry::Occupied(offset) => *offset.get(),
            Entry::Vacant(vacant) => {
                bytes.resize(bytes.len().next_multiple_of(align), 0);
                let offset = *vacant.insert(bytes.len() as u64);
                bytes.extend_from_slice(params);
                offset
            }
        }));
    }
    if bytes.is_empty() {
        return Ok((None, offsets));
    }
    bytes.resize(bytes.len().next_multiple_of(16), 0);
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.buffer_for(&format!("{label}: params"), bytes.len() as u64, usage)?;
    gpu.write(&buffer, 0, &bytes)?;
    Ok((Some(buffer), offsets))
}

/// Bytes of a uniform binding: whole vec4s.
fn params_size(dispatch: &Dispatch) -> u64 {
    dispatch.params.len().next_multiple_of(16) as u64
}

/// Textures of at least these sizes in bytes, from the device's stock: the programs of a device run one after the other, and none
/// counts on what another one staged.
fn textures(gpu: &Gpu, sizes: &[u64]) -> Result<Vec<Stage>> {
    let mut stock = lock(&gpu.stages);
    for (i, &bytes) in sizes.iter().enumerate() {
        if stock.get(i).is_some_and(|stage| stage.bytes >= bytes) {
            continue;
        }
        let size = wgpu::Extent3d {
            width: TEXTURE_WIDTH,
            height: (bytes.div_ceil(16 * u64::from(TEXTURE_WIDTH)) as u32).max(1),
            depth_or_array_layers: 1,
        };
        let descriptor = wgpu::TextureDescriptor {
            label: Some("stage"),
            size,
            mip_level_count: 1,
            sample_count: 1,
            dimension: wgpu::TextureDimension::D2,
            format: wgpu::TextureFormat::Rgba32Float,
            usage: wgpu::TextureUsages::STORAGE_BINDING | wgpu::TextureUsages::COPY_DST,
            view_formats: &[],
        };
        let texture = gpu.scoped("creating a texture", || gpu.device().create_texture(&descriptor))?;
        let view = texture.create_view(&wgpu::TextureViewDescriptor::default());
        let stage = Stage { texture, view, bytes };
        match stock.get_mut(i) {
            Some(old) => *old = stage,
            None => stock.push(stage),
        }
    }
    Ok(stock.iter().take(sizes.len()).cloned().collect())
}

fn bind_group(
    gpu: &Gpu,
    step: &Step<'_>,
    stages: &[Option<&Stage>],
    layout: &wgpu::BindGroupLayout,
    params: Option<(&wgpu::Buffer, u64)>,
) -> Result<wgpu::BindGroup> {
    let Step { label, dispatch, bindings } = step;
    if bindings.len() != dispatch.kernel.bindings.len() {
        let kernel = dispatch.kernel;
        return Err(Error::bug(format!(
            "{label}: {} has {} bindings, {} were given",
            kernel.name,
            kernel.bindings.len(),
            bindings.len()
        )));
    }
    let params = params.map(|(buffer, offset)| Binding { buffer, offset, size: params_size(dispatch) });
    let entries: Vec<_> = (0..)
        .zip(bindings.iter().chain(&params))
        .map(|(binding, &Binding { buffer, offset, size })| wgpu::BindGroupEntry {
            binding,
            resource: match stages.get(binding as usize).copied().flatten() {
                Some(stage) => wgpu::BindingResource::TextureView(&stage.view),
                None => {
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: NonZeroU64::new(size) })
                }
            },
        })
        .collect();
    let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
    gpu.scoped(format!("binding the buffers of {label}"), || gpu.device().create_bind_group(&descriptor))
}

/// The pipeline of each step.
fn compile(gpu: &Gpu, steps: &[Step<'_>], rewrite: Option<Rewrite<'_>>) -> Result<Vec<Arc<Pipeline>>> {
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
        let module = modules.get(&key.module).ok_or_else(|| Error::bug("a shader module went missing"))?;
        let made = pipeline(gpu, dispatch, module)?;
        gpu.compiled(done.fetch_add(1, Ordering::AcqRel) + 1, missing.len());
        Ok(((*key).clone(), Arc::new(made)))
    })?;
    if cached {
        lock(&gpu.modules).extend(modules);
        lock(&gpu.pipelines).extend(made.iter().cloned());
    }
    pipelines.extend(made);
    keys.iter().map(|key| pipelines.get(key).cloned().ok_or_else(|| Error::bug("a pipeline went missing"))).collect()
}

fn module(gpu: &Gpu, dispatch: &Dispatch, rewrite: Option<Rewrite<'_>>) -> Result<wgpu::ShaderModule> {
    let kernel = dispatch.kernel;
    let mut wgsl = kernel.wgsl(&dispatch.flags)?;
    if let Some(rewrite) = rewrite {
        wgsl = rewrite(kernel, wgsl)?;
    }
    if gpu.reverse_workgroups {
        wgsl = reversed(&wgsl).ok_or_else(|| Error::bug(format!("{} does not use lib/grid.wgsl", kernel.file)))?;
    }
    let source = wgpu::ShaderSource::Wgsl(wgsl.into());
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.file), source };
    let context = format!("compiling shaders/{} for {}/{}", kernel.file, kernel.name, kernel.variant);
    gpu.scoped(context, || gpu.device().create_shader_module(descriptor))
}

/// The text with the workgroups in the opposite order, where it has an order.
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
                // Kernels write workgroup memory before they read it; the zero fill can cost more than the kernel.
                zero_initialize_workgroup_memory: false,
            },
            cache: gpu.cache.pipelines(),
        });
        Pipeline { pipeline, layout }
    })
}
