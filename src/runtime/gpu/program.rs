//! Compiled lists of dispatches: pipelines, a uniform buffer with the parameters of all dispatches, and bind groups. Made once and
//! encoded for every run.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::num::NonZeroU64;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::runtime::gpu::pipelines::{Pipeline, Rewrite, compile, params_size};
use crate::runtime::gpu::{Gpu, Timer, lock};
use crate::runtime::kernel::{Access, Dispatch, Kernel, TEXTURE_WIDTH};
use crate::runtime::plan::texture_cache::{DispatchTextures, TextureCache};

/// A range of a buffer that a kernel is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The buffer.
    pub buffer: &'a wgpu::Buffer,
    /// First byte, a multiple of [`Profile::offset_alignment`](crate::runtime::kernel::Profile::offset_alignment).
    pub offset: u64,
    /// Size in bytes.
    pub size: u64,
}

/// A dispatch of a program with its bindings.
#[derive(Clone, Debug)]
pub struct Step<'a> {
    /// Name in error messages and timings, e.g. `encoder.stem/conv2d.forward`.
    pub label: String,
    /// Kernel, parameters and grid.
    pub dispatch: &'a Dispatch,
    /// A range for each binding of the kernel. Those that the kernel reads as textures are copied from here.
    pub bindings: Vec<Binding<'a>>,
}

/// A compiled list of dispatches, with copies into textures between them.
#[derive(Debug)]
pub struct Program {
    label: String,
    steps: Vec<CompiledStep>,
    /// Ranges of `steps`, one for each submission.
    submissions: Vec<Range<usize>>,
}

/// The name of a step in timings.
#[derive(Clone, Debug)]
pub(super) struct StepName {
    pub(super) label: String,
    pub(super) kernel: &'static str,
    pub(super) variant: &'static str,
}

#[derive(Debug)]
struct CompiledStep {
    name: StepName,
    pipeline: Arc<Pipeline>,
    bind_group: wgpu::BindGroup,
    grid: [u32; 3],
    copies: Vec<TextureCopy>,
}

/// A copy of a tensor into a texture that a step reads.
#[derive(Debug)]
struct TextureCopy {
    from: wgpu::Buffer,
    offset: u64,
    bytes: u64,
    to: wgpu::Texture,
    /// Whether the texture does not hold the tensor yet when the steps run in order.
    needed: bool,
}

/// A texture for copies of tensors.
#[derive(Clone, Debug)]
pub(super) struct CacheTexture {
    texture: wgpu::Texture,
    view: wgpu::TextureView,
    bytes: u64,
}

impl Program {
    /// Compiles steps whose kernels read no textures, for one submission.
    ///
    /// # Errors
    /// As [`Program::planned`].
    pub fn new(gpu: &Gpu, label: &str, steps: &[Step<'_>]) -> Result<Self> {
        Self::planned(gpu, label, steps, slice::from_ref(&(0..steps.len())), &TextureCache::default())
    }

    /// Compiles kernels that `gpu` has not compiled yet, on all cores, and makes the bind groups.
    ///
    /// `submissions` are consecutive ranges of steps, one for each call of [`Program::encode_part`]. `cache` are the textures of the
    /// steps; it may be empty if no kernel reads textures.
    ///
    /// # Errors
    /// [`Error::Shader`] for a kernel that does not expand, [`Error::Device`] for one that the device rejects.
    pub fn planned(
        gpu: &Gpu,
        label: &str,
        steps: &[Step<'_>],
        submissions: &[Range<usize>],
        cache: &TextureCache,
    ) -> Result<Self> {
        Self::build(gpu, label, steps, submissions, cache, None)
    }

    /// Compiles kernels that `rewrite` edits, for one submission. Does not use cached pipelines.
    ///
    /// # Errors
    /// As [`Program::planned`], and those of `rewrite`.
    #[doc(hidden)]
    pub fn rewritten(
        gpu: &Gpu,
        label: &str,
        steps: &[Step<'_>],
        cache: &TextureCache,
        rewrite: Rewrite<'_>,
    ) -> Result<Self> {
        Self::build(gpu, label, steps, slice::from_ref(&(0..steps.len())), cache, Some(rewrite))
    }

    fn build(
        gpu: &Gpu,
        label: &str,
        steps: &[Step<'_>],
        submissions: &[Range<usize>],
        cache: &TextureCache,
        rewrite: Option<Rewrite<'_>>,
    ) -> Result<Self> {
        let pipelines = compile(gpu, steps, rewrite)?;
        let (params, offsets) = params_of(gpu, label, steps)?;
        let textures = textures(gpu, &cache.textures)?;
        let none = DispatchTextures::default();
        let mut compiled = Vec::with_capacity(steps.len());
        for (i, ((step, pipeline), offset)) in steps.iter().zip(pipelines).zip(offsets).enumerate() {
            let Kernel { name, variant, .. } = *step.dispatch.kernel;
            let planned = cache.dispatches.get(i).unwrap_or(&none);
            let bound = bound_textures(step, planned, &textures)?;
            let params = params.as_ref().zip(offset);
            compiled.push(CompiledStep {
                bind_group: bind_group(gpu, step, &bound, &pipeline.layout, params)?,
                name: StepName { label: step.label.clone(), kernel: name, variant },
                pipeline,
                grid: gpu.grid(step.dispatch.workgroups)?,
                copies: copies(step, planned, &bound),
            });
        }
        let program = Self { label: label.to_owned(), steps: compiled, submissions: submissions.to_vec() };
        if gpu.compiles_late() {
            program.dispatch_nothing(gpu)?;
        }
        Ok(program)
    }

    /// Runs each pipeline that has not run yet with no workgroups, which makes a driver that compiles at the first dispatch compile.
    fn dispatch_nothing(&self, gpu: &Gpu) -> Result<()> {
        let new = |step: &&CompiledStep| !step.pipeline.ran.swap(true, Ordering::Relaxed);
        let steps: Vec<_> = self.steps.iter().filter(new).collect();
        for (done, step) in steps.iter().enumerate() {
            let mut encoder = gpu.encoder(&self.label);
            let mut pass = self.pass(&mut encoder, None);
            pass.set_pipeline(&step.pipeline.pipeline);
            step.dispatch(&mut pass, [0; 3]);
            drop(pass);
            gpu.submit(encoder)?;
            gpu.wait()?;
            gpu.notify_compiled(done + 1, steps.len());
        }
        Ok(())
    }

    /// Returns the number of dispatches.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps.len()
    }

    /// Returns whether there are no dispatches.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Encodes all dispatches, those of each submission into one compute pass that only copies interrupt. With a timer, on a device that cannot write
    /// timestamps inside a pass, each dispatch gets a pass of its own.
    pub fn encode(&self, encoder: &mut wgpu::CommandEncoder, mut timer: Option<&mut Timer>) {
        for part in 0..self.parts() {
            self.encode_part(encoder, part, timer.as_deref_mut());
        }
    }

    /// Returns the number of submissions of a run.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.submissions.len()
    }

    /// Encodes the dispatches of one submission, like [`Program::encode`]. Parts must be submitted in order; other work may be
    /// submitted between them.
    pub fn encode_part(&self, encoder: &mut wgpu::CommandEncoder, part: usize, mut timer: Option<&mut Timer>) {
        let steps = self.submissions.get(part).and_then(|range| self.steps.get(range.clone())).unwrap_or_default();
        if let Some(timer) = timer.as_deref_mut().filter(|timer| !timer.inside_passes()) {
            for step in steps {
                let stamps = timer.next(&step.name).map(|(query_set, at)| wgpu::ComputePassTimestampWrites {
                    query_set,
                    beginning_of_pass_write_index: Some(at),
                    end_of_pass_write_index: Some(at + 1),
                });
                step.needed_copies().for_each(|copy| copy.encode(encoder));
                step.encode(&mut self.pass(encoder, stamps), None);
            }
            return;
        }
        let mut pass = self.pass(encoder, None);
        let mut previous = None;
        for step in steps {
            if step.needed_copies().next().is_some() {
                drop(pass);
                step.needed_copies().for_each(|copy| copy.encode(encoder));
                pass = self.pass(encoder, None);
                previous = None;
            }
            let stamps = timer.as_deref_mut().and_then(|timer| timer.next(&step.name));
            if let Some((set, at)) = stamps {
                pass.write_timestamp(set, at);
            }
            step.encode(&mut pass, previous.replace(step));
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
    ///
    /// # Errors
    /// As [`Gpu::submit`].
    pub fn submit_steps(&self, gpu: &Gpu, steps: impl Iterator<Item = usize>) -> Result<()> {
        let mut encoder = gpu.encoder(&self.label);
        for number in steps {
            let missing = || Error::bug(format!("{}: no dispatch {number}", self.label));
            let step = self.steps.get(number).ok_or_else(missing)?;
            // The steps do not run in order, so the textures may hold anything.
            for copy in &step.copies {
                copy.encode(&mut encoder);
            }
            step.encode(&mut self.pass(&mut encoder, None), None);
        }
        gpu.submit(encoder).map(drop)
    }

    /// Encodes all dispatches and submits them.
    ///
    /// # Errors
    /// As [`Gpu::submit`].
    pub fn submit(&self, gpu: &Gpu) -> Result<()> {
        let mut encoder = gpu.encoder(&self.label);
        self.encode(&mut encoder, None);
        gpu.submit(encoder).map(drop)
    }
}

impl TextureCopy {
    /// Encodes the copy of all whole rows of the texture, then of the rest.
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

impl CompiledStep {
    fn needed_copies(&self) -> impl Iterator<Item = &TextureCopy> {
        self.copies.iter().filter(|copy| copy.needed)
    }

    fn encode(&self, pass: &mut wgpu::ComputePass<'_>, previous: Option<&Self>) {
        if previous.is_none_or(|previous| !Arc::ptr_eq(&previous.pipeline, &self.pipeline)) {
            pass.set_pipeline(&self.pipeline.pipeline);
        }
        self.dispatch(pass, self.grid);
    }

    /// Binds and dispatches, with the pipeline set.
    fn dispatch(&self, pass: &mut wgpu::ComputePass<'_>, [x, y, z]: [u32; 3]) {
        pass.set_bind_group(0, &self.bind_group, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Returns the texture of each binding of a step. A kernel that reads a texture must have one planned.
fn bound_textures<'a>(
    step: &Step<'_>,
    planned: &DispatchTextures,
    textures: &'a [CacheTexture],
) -> Result<Vec<Option<&'a CacheTexture>>> {
    let kernel = step.dispatch.kernel;
    let bound = kernel.bindings.iter().enumerate().map(|(i, (name, access))| {
        if *access != Access::Texture {
            return Ok(None);
        }
        let texture = planned.bindings.get(i).copied().flatten().and_then(|number| textures.get(number));
        texture.map(Some).ok_or_else(|| Error::bug(format!("{}: no texture for `{name}`", step.label)))
    });
    bound.collect()
}

fn copies(step: &Step<'_>, planned: &DispatchTextures, bound: &[Option<&CacheTexture>]) -> Vec<TextureCopy> {
    let copy = |(i, (from, to)): (usize, (&Binding<'_>, &Option<&CacheTexture>))| {
        to.map(|to| TextureCopy {
            from: from.buffer.clone(),
            offset: from.offset,
            bytes: from.size,
            to: to.texture.clone(),
            needed: planned.copies.contains(&i),
        })
    };
    step.bindings.iter().zip(bound).enumerate().filter_map(copy).collect()
}

/// Returns a buffer with the parameters of all steps, without duplicates, and the offset of each step's parameters in it.
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

/// Returns textures of at least these sizes in bytes. All programs of a device share them: they run one after the other, and none
/// relies on the copies of another.
fn textures(gpu: &Gpu, sizes: &[u64]) -> Result<Vec<CacheTexture>> {
    let mut shared = lock(&gpu.textures);
    for (i, &bytes) in sizes.iter().enumerate() {
        if shared.get(i).is_some_and(|texture| texture.bytes >= bytes) {
            continue;
        }
        // Mesa's software driver compiles a kernel again for textures whose height is a power of two where it was not before, or the
        // other way round. Odd heights from 3 are never powers of two.
        let rows = bytes.div_ceil(16 * u64::from(TEXTURE_WIDTH)) as u32;
        let odd = rows.max(3) | 1;
        let height = if odd <= gpu.device().limits().max_texture_dimension_2d { odd } else { rows };
        let size = wgpu::Extent3d { width: TEXTURE_WIDTH, height, depth_or_array_layers: 1 };
        let descriptor = wgpu::TextureDescriptor {
            label: Some("texture cache"),
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
        let texture = CacheTexture { texture, view, bytes };
        match shared.get_mut(i) {
            Some(old) => *old = texture,
            None => shared.push(texture),
        }
    }
    Ok(shared.iter().take(sizes.len()).cloned().collect())
}

fn bind_group(
    gpu: &Gpu,
    step: &Step<'_>,
    textures: &[Option<&CacheTexture>],
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
            resource: match textures.get(binding as usize).copied().flatten() {
                Some(texture) => wgpu::BindingResource::TextureView(&texture.view),
                None => {
                    wgpu::BindingResource::Buffer(wgpu::BufferBinding { buffer, offset, size: NonZeroU64::new(size) })
                }
            },
        })
        .collect();
    let descriptor = wgpu::BindGroupDescriptor { label: Some(label), layout, entries: &entries };
    gpu.scoped(format!("binding the buffers of {label}"), || gpu.device().create_bind_group(&descriptor))
}
