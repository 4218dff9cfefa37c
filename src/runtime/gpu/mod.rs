//! The device: adapters, buffers, compiled dispatch lists, readback and timing. Nothing here knows what an operation computes.
//!
//! wgpu reports mistakes and exhausted memory out of line, and panics by default. Here everything that is built is built inside
//! error scopes, and what escapes them (as does the loss of the device) lands in a sink that every submission and every read
//! looks into: both come back as an [`Error`].

mod adapter;
mod pipeline_cache;
mod program;
mod readback;
mod roofline;
mod timing;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use adapter::{AdapterInfo, Select, adapters};
pub use pipeline_cache::Compiled;
pub use program::{Binding, Program, Rewrite, Step};
pub use readback::{Ring, Slot};
pub use roofline::{Roof, probes, roof};
pub use timing::{Span, Timer};

use crate::error::{Error, Result};
use crate::runtime::kernel::Profile;
use crate::runtime::kernel::{DeviceKind, fold_grid};
use crate::runtime::sys::memory;

/// How a device is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which adapter; by default the best kind.
    pub select: Select,
    /// Ask for WebGPU's default limits and no optional feature: what every implementation has. Off by default.
    pub webgpu_defaults: bool,
    /// An artificially low bound of workgroups in one dimension of a dispatch, for tests of grid folding.
    /// None by default.
    pub max_workgroups: Option<u32>,
    /// What to take for the smallest and largest size of the adapter's subgroups, whether or not it has any, for tests with kernels
    /// that emulate them. None by default.
    pub subgroup: Option<(u32, u32)>,
    /// An artificially low bound of the bytes of a buffer, for tests of what does not fit. None by default.
    pub max_buffer: Option<u64>,
    /// What to take for the memory that is left, in bytes, for tests of what does not fit. None by default.
    pub memory: Option<u64>,
    /// Let workgroups take their tiles from the last to the first, for tests that their order does not matter. Off by default.
    pub reverse_workgroups: bool,
    /// Ask for timestamp queries where the adapter has them. On by default.
    pub timestamps: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            select: Select::Auto,
            webgpu_defaults: false,
            max_workgroups: None,
            subgroup: None,
            max_buffer: None,
            memory: None,
            reverse_workgroups: false,
            timestamps: true,
        }
    }
}

/// An open device with its queue and its compiled pipelines.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    facts: AdapterInfo,
    cache: pipeline_cache::Cache,
    reverse_workgroups: bool,
    memory: Option<u64>,
    sink: Arc<Mutex<Sink>>,
    modules: Mutex<HashMap<program::ModuleKey, wgpu::ShaderModule>>,
    pipelines: Mutex<HashMap<program::PipelineKey, Arc<program::Pipeline>>>,
    stages: Mutex<Vec<program::Stage>>,
    // Dropped last.
    instance: wgpu::Instance,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("facts", &self.facts).finish_non_exhaustive()
    }
}

/// What went wrong outside error scopes.
#[derive(Default)]
struct Sink {
    errors: Vec<String>,
    lost: Option<String>,
}

/// A mutex is poisoned by a panic elsewhere; the maps and lists behind ours stay whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gpu {
    /// Opens the adapter that `options` ask for.
    ///
    /// Errors: [`Error::NoAdapter`] lists what there is; [`Error::Device`] if it cannot be opened.
    pub fn open(options: &Options) -> Result<Self> {
        let before = crate::runtime::sys::affinity::Threads::now();
        let instance = adapter::instance();
        let (adapter, facts) = adapter::choose(&instance, options)?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("vae-wgpu"),
            required_features: adapter::features_wanted(adapter.features(), options),
            required_limits: adapter::limits_wanted(&adapter.limits(), options),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let (device, queue) = pollster::block_on(adapter.request_device(&descriptor))
            .map_err(|e| Error::device(format!("opening {facts}"), e))?;
        if facts.profile.kind == DeviceKind::Software {
            before.pin_newer();
        }
        let sink = Arc::new(Mutex::new(Sink::default()));
        let errors = Arc::clone(&sink);
        device.on_uncaptured_error(Arc::new(move |error| lock(&errors).errors.push(error.to_string())));
        let lost = Arc::clone(&sink);
        device.set_device_lost_callback(move |reason, message| {
            lock(&lost).lost = Some(format!("{reason:?}: {message}"));
        });
        let (modules, pipelines, stages) = Default::default();
        let cache = pipeline_cache::Cache::of(&device, &adapter);
        let (reverse_workgroups, memory) = (options.reverse_workgroups, options.memory);
        Ok(Self { device, queue, facts, sink, modules, pipelines, stages, cache, reverse_workgroups, memory, instance })
    }

    /// What is known of the adapter.
    pub fn adapter_info(&self) -> &AdapterInfo {
        &self.facts
    }

    /// What kernels and plans may depend on.
    pub fn profile(&self) -> &Profile {
        &self.facts.profile
    }

    /// Bytes that buffers may take, where that is known: a software driver has them from the system, which ends who takes too much.
    #[must_use]
    pub fn memory_left(&self) -> Option<u64> {
        match self.profile().kind {
            DeviceKind::Software => self.memory.or_else(memory::available),
            DeviceKind::Gpu => self.memory,
        }
    }

    /// The device.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// The queue.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// A storage buffer of `bytes` (rounded up to four) zero bytes that can be copied from and to.
    ///
    /// Errors: [`Error::DoesNotFit`] over the device's limit, [`Error::Device`] when memory runs out.
    pub fn buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        self.buffer_for(label, bytes, usage)
    }

    fn buffer_for(&self, label: &str, bytes: u64, usage: wgpu::BufferUsages) -> Result<wgpu::Buffer> {
        let limit = self.profile().max_buffer;
        if bytes > limit {
            return Err(Error::does_not_fit(format_args!("buffer `{label}`"), bytes, limit));
        }
        let size = bytes.next_multiple_of(4).max(4);
        let descriptor = wgpu::BufferDescriptor { label: Some(label), size, usage, mapped_at_creation: false };
        match self.captured(|| self.device.create_buffer(&descriptor)) {
            (buffer, None) => Ok(buffer),
            (_, Some(wgpu::Error::OutOfMemory { .. })) => Err(Error::device(
                format!("allocating {bytes} bytes for `{label}`"),
                "memory ran out: use a smaller batch or fewer channels",
            )),
            (_, Some(error)) => Err(Error::device(format!("creating buffer `{label}`"), error)),
        }
    }

    /// Writes `bytes` (a multiple of four) at `offset`, before everything that is submitted later.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.scoped("writing a buffer", || self.queue.write_buffer(buffer, offset, bytes))
    }

    /// Reads `len` bytes (a multiple of four) at `offset`, after everything that was submitted before. Waits.
    pub fn read(&self, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut ring = Ring::new(self, len, 1)?;
        let mut encoder = self.encoder("read");
        let slot = ring.encode_copy(&mut encoder, &[(buffer, offset, len)])?;
        self.submit(encoder)?;
        ring.map(slot)?;
        match ring.drain(self)?.pop() {
            Some((_, bytes)) => Ok(bytes),
            None => Err(Error::bug("a read that came back empty")),
        }
    }

    /// An encoder to be given to [`Gpu::submit`].
    #[must_use]
    pub fn encoder(&self, label: &str) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) })
    }

    /// Hands what was encoded to the device; it runs while this returns.
    ///
    /// Errors: what the encoding got wrong, and whatever [`Gpu::health`] finds.
    pub fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<()> {
        self.scoped("submitting", || {
            self.queue.submit([encoder.finish()]);
        })?;
        self.health()
    }

    /// Waits until everything that was submitted has run.
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    fn poll(&self, how: wgpu::PollType) -> Result<()> {
        let polled = self.device.poll(how);
        self.health()?;
        polled.map(drop).map_err(|e| Error::device("waiting for the device", e))
    }

    /// The first error that was reported out of line since the last call. The loss of the device is reported for ever.
    pub fn health(&self) -> Result<()> {
        let mut sink = lock(&self.sink);
        let errors = std::mem::take(&mut sink.errors);
        if let Some(lost) = &sink.lost {
            let why = errors.first().unwrap_or(lost);
            return Err(Error::device(format!("{} was lost", self.facts), why));
        }
        match errors.into_iter().next() {
            Some(error) => Err(Error::device("reported by the device", error)),
            None => Ok(()),
        }
    }

    /// How many objects are alive on this device; for tests of leaks. Objects are freed after [`Gpu::wait`].
    pub fn live_objects(&self) -> LiveObjects {
        let Some(report) = self.instance.generate_report() else { return LiveObjects::default() };
        let hub = report.hub_report();
        LiveObjects {
            buffers: hub.buffers.num_allocated,
            bind_groups: hub.bind_groups.num_allocated,
            bind_group_layouts: hub.bind_group_layouts.num_allocated,
            pipeline_layouts: hub.pipeline_layouts.num_allocated,
            textures: hub.textures.num_allocated,
            texture_views: hub.texture_views.num_allocated,
            shader_modules: hub.shader_modules.num_allocated,
            compute_pipelines: hub.compute_pipelines.num_allocated,
            query_sets: hub.query_sets.num_allocated,
            command_encoders: hub.command_encoders.num_allocated,
            command_buffers: hub.command_buffers.num_allocated,
        }
    }

    /// Folds `count` workgroups. An artificially low bound gives way where a dispatch would not fit under it.
    fn grid(&self, count: usize) -> Result<[u32; 3]> {
        let root = u32::try_from(count.isqrt() + 1).unwrap_or(u32::MAX);
        let max = self.device.limits().max_compute_workgroups_per_dimension;
        fold_grid(count, self.profile().max_workgroups.max(root.min(max)))
    }

    /// Runs `f` inside error scopes; `context` says in the error what was being done.
    fn scoped<T>(&self, context: impl fmt::Display, f: impl FnOnce() -> T) -> Result<T> {
        match self.captured(f) {
            (value, None) => Ok(value),
            (_, Some(error)) => Err(Error::device(context, error)),
        }
    }

    fn captured<T>(&self, f: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
        let filters = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
        let [memory, internal, validation] = filters.map(|filter| self.device.push_error_scope(filter));
        let value = f();
        let errors = [validation, internal, memory].map(|scope| pollster::block_on(scope.pop()));
        (value, errors.into_iter().flatten().next())
    }
}

/// Numbers of live objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct LiveObjects {
    pub buffers: usize,
    pub bind_groups: usize,
    pub bind_group_layouts: usize,
    pub pipeline_layouts: usize,
    pub textures: usize,
    pub texture_views: usize,
    pub shader_modules: usize,
    pub compute_pipelines: usize,
    pub query_sets: usize,
    pub command_encoders: usize,
    pub command_buffers: usize,
}
