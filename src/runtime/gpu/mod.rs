//! The device: adapters, buffers, compiled dispatch lists, readback and timing.
//!
//! This module runs [kernels](crate::runtime::kernel). It does not depend on operations or graphs, and of plans it knows only the
//! [texture cache](crate::runtime::plan::texture_cache).
//!
//! wgpu reports validation errors and exhausted memory asynchronously, and panics by default. This module creates every object inside
//! error scopes. Errors outside of them, and the loss of the device, are recorded and returned as an [`Error`] by the next submission
//! or read.
//!
//! Functions that wait for the device come in pairs: an `async` one, which also works in a browser, and one that blocks on it.

mod adapter;
mod pipeline_cache;
mod pipelines;
mod program;
mod readback;
mod roofline;
#[doc(hidden)]
pub mod testing;
mod timing;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use adapter::{AdapterInfo, Select, adapters, adapters_async};
pub use pipeline_cache::Compiled;
pub use pipelines::Rewrite;
pub use program::{Binding, Program, Step};
pub use readback::{Ring, StagedCopy};
pub use roofline::{Roofline, probes, roofline};
pub use timing::{Span, Timer};
// Types of wgpu are part of this interface.
pub use wgpu;

use crate::error::{Error, Result};
use crate::runtime::gpu::testing::{LiveObjects, TestHooks};
use crate::runtime::kernel::{DeviceKind, Profile, fold_grid};
use crate::runtime::sys::affinity::Threads;
use crate::runtime::sys::memory;
use crate::runtime::sys::platform::{COLLECTS_GARBAGE, MAY_WAIT, block_on};
use crate::runtime::sys::signal::Signal;

/// Options for opening a device.
#[derive(Clone, Debug)]
pub struct Options {
    /// The adapter to open.
    pub select: Select,
    /// Requests WebGPU's default limits and no optional features, which every implementation supports.
    pub webgpu_defaults: bool,
    /// Requests timestamp queries if the adapter has them.
    pub timestamps: bool,
    /// Pins each thread that a software driver starts to a processor of its own, on Linux.
    ///
    /// Faster for training on an otherwise idle machine (`docs/kernels.md`). Threads that other parts of the process start while the
    /// device is opened would be pinned, too, so this is off by default.
    pub pin_driver_threads: bool,
    #[doc(hidden)]
    pub hooks: TestHooks,
}

impl Default for Options {
    /// The best adapter, with its own limits and all features in use.
    fn default() -> Self {
        Self {
            select: Select::Auto,
            webgpu_defaults: false,
            timestamps: true,
            pin_driver_threads: false,
            hooks: TestHooks::default(),
        }
    }
}

/// An open device with its queue and its compiled pipelines.
///
/// ```no_run
/// use vae_wgpu::runtime::gpu::{Gpu, Options, Select};
///
/// let gpu = Gpu::open(&Options { select: Select::Name("llvmpipe".into()), ..Options::default() })?;
/// println!("{}", gpu.adapter_info());
/// let buffer = gpu.buffer("numbers", 16)?;
/// gpu.write(&buffer, 0, &[1, 2, 3, 4])?;
/// assert_eq!(gpu.read(&buffer, 0, 4)?, [1, 2, 3, 4]);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    adapter: AdapterInfo,
    cache: pipeline_cache::Cache,
    hooks: TestHooks,
    faults: Arc<Mutex<Faults>>,
    modules: Mutex<HashMap<pipelines::ModuleKey, wgpu::ShaderModule>>,
    pipelines: Mutex<HashMap<pipelines::PipelineKey, Arc<pipelines::Pipeline>>>,
    textures: Mutex<Vec<program::CacheTexture>>,
    // Dropped last.
    instance: wgpu::Instance,
}

impl fmt::Debug for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gpu").field("adapter", &self.adapter).finish_non_exhaustive()
    }
}

/// Errors outside of error scopes.
#[derive(Default)]
struct Faults {
    errors: Vec<String>,
    lost: Option<String>,
}

/// Locks a mutex even if another thread panicked while it held the lock: the maps and lists here are valid at all times.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees buffers that are about to be dropped. A browser would do it when it collects garbage, without regard to their size.
pub(crate) fn free<'a>(buffers: impl Iterator<Item = &'a wgpu::Buffer>) {
    if COLLECTS_GARBAGE {
        buffers.for_each(wgpu::Buffer::destroy);
    }
}

impl Gpu {
    /// Opens an adapter.
    ///
    /// # Errors
    /// [`Error::NoAdapter`] lists the adapters if none matches; [`Error::Device`] if the adapter cannot be opened.
    pub fn open(options: &Options) -> Result<Self> {
        block_on(Self::open_async(options))
    }

    /// Like [`Gpu::open`], for a browser.
    ///
    /// # Errors
    /// As [`Gpu::open`].
    pub async fn open_async(options: &Options) -> Result<Self> {
        let threads = options.pin_driver_threads.then(Threads::now);
        let instance = adapter::instance();
        let (adapter, info) = adapter::choose(&instance, options).await?;
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("vae-wgpu"),
            required_features: adapter::features_wanted(adapter.features(), options),
            required_limits: adapter::limits_wanted(&adapter.limits(), options),
            memory_hints: wgpu::MemoryHints::Performance,
            ..Default::default()
        };
        let opened = adapter.request_device(&descriptor).await;
        let (device, queue) = opened.map_err(|e| Error::device(format!("opening {info}"), e))?;
        if let (Some(threads), DeviceKind::Software) = (threads, info.profile.kind) {
            threads.pin_newer();
        }
        let faults = Arc::new(Mutex::new(Faults::default()));
        let errors = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |error| lock(&errors).errors.push(error.to_string())));
        let lost = Arc::clone(&faults);
        device.set_device_lost_callback(move |reason, message| {
            lock(&lost).lost = Some(format!("{reason:?}: {message}"));
        });
        let (modules, pipelines, textures) = Default::default();
        let cache = pipeline_cache::Cache::of(&device, &adapter);
        let (adapter, hooks) = (info, options.hooks.clone());
        Ok(Self { device, queue, adapter, cache, hooks, faults, modules, pipelines, textures, instance })
    }

    /// Returns name, driver, limits and profile of the adapter.
    pub fn adapter_info(&self) -> &AdapterInfo {
        &self.adapter
    }

    /// Returns the properties of the device that kernels and plans may depend on.
    pub fn profile(&self) -> &Profile {
        &self.adapter.profile
    }

    /// Returns the memory available for buffers in bytes, if it is known. Software drivers use system memory, so exceeding it gets
    /// the process killed.
    #[must_use]
    pub fn available_memory(&self) -> Option<u64> {
        match self.profile().kind {
            DeviceKind::Software => self.hooks.memory.or_else(memory::available),
            DeviceKind::Gpu => self.hooks.memory,
        }
    }

    /// Returns the device of wgpu.
    pub fn device(&self) -> &wgpu::Device {
        &self.device
    }

    /// Returns the queue of wgpu.
    pub fn queue(&self) -> &wgpu::Queue {
        &self.queue
    }

    /// Creates a storage buffer of zeros that can be copied from and to. Its size is `bytes`, rounded up to a multiple of four.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`] above the limit of the device, [`Error::OutOfMemory`] if memory is exhausted.
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
            (_, Some(wgpu::Error::OutOfMemory { .. })) => Err(Error::OutOfMemory { what: format!("`{label}`"), bytes }),
            (_, Some(error)) => Err(Error::device(format!("creating buffer `{label}`"), error)),
        }
    }

    /// Writes `bytes` at `offset`, before all later submissions. Length and offset must be multiples of four.
    ///
    /// # Errors
    /// [`Error::Device`] for a range outside the buffer or one that is not aligned.
    pub fn write(&self, buffer: &wgpu::Buffer, offset: u64, bytes: &[u8]) -> Result<()> {
        self.scoped("writing a buffer", || self.queue.write_buffer(buffer, offset, bytes))
    }

    /// Reads `len` bytes at `offset`, after all earlier submissions, and waits for them. Length and offset must be multiples of
    /// four.
    ///
    /// # Errors
    /// [`Error::Device`] for a range outside the buffer or one that is not aligned, or if the device failed.
    pub fn read(&self, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<Vec<u8>> {
        block_on(self.read_async(buffer, offset, len))
    }

    /// Like [`Gpu::read`], for a browser.
    ///
    /// # Errors
    /// As [`Gpu::read`].
    pub async fn read_async(&self, buffer: &wgpu::Buffer, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut ring = Ring::new(self, len, 1)?;
        let mut encoder = self.encoder("read");
        let copy = ring.encode_copy(&mut encoder, &[(buffer, offset, len)])?;
        let submission = self.submit(encoder)?;
        ring.map(copy, submission);
        match ring.drain(self).await?.pop() {
            Some((_, bytes)) => Ok(bytes),
            None => Err(Error::bug("a read returned no bytes")),
        }
    }

    /// Returns an encoder for [`Gpu::submit`].
    #[must_use]
    pub fn encoder(&self, label: &str) -> wgpu::CommandEncoder {
        self.device.create_command_encoder(&wgpu::CommandEncoderDescriptor { label: Some(label) })
    }

    /// Submits the commands of `encoder` and returns the index of the submission. Does not wait for it.
    ///
    /// # Errors
    /// [`Error::Device`] for an invalid command, and as [`Gpu::health`].
    pub fn submit(&self, encoder: wgpu::CommandEncoder) -> Result<wgpu::SubmissionIndex> {
        let index = self.scoped("submitting", || self.queue.submit([encoder.finish()]))?;
        self.health()?;
        Ok(index)
    }

    /// Whether the driver compiles a kernel when it is first dispatched, as Mesa's software driver does.
    fn compiles_late(&self) -> bool {
        self.adapter_info().driver == "llvmpipe"
    }

    /// Waits for all submissions.
    ///
    /// # Errors
    /// As [`Gpu::health`].
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    /// Like [`Gpu::wait`], for a browser.
    ///
    /// # Errors
    /// As [`Gpu::health`].
    pub async fn wait_async(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())?;
        if !MAY_WAIT {
            let (done, notify) = Signal::new();
            self.queue.on_submitted_work_done(move || notify(()));
            done.wait().await;
        }
        self.health()
    }

    fn poll(&self, how: wgpu::PollType) -> Result<()> {
        let polled = self.device.poll(how);
        self.health()?;
        polled.map(drop).map_err(|e| Error::device("waiting for the device", e))
    }

    /// Checks for errors that the device reported asynchronously since the last check.
    ///
    /// # Errors
    /// [`Error::Device`] with the first of them. Once the device is lost, every call returns an error.
    pub fn health(&self) -> Result<()> {
        let mut faults = lock(&self.faults);
        let errors = std::mem::take(&mut faults.errors);
        if let Some(lost) = &faults.lost {
            let why = errors.first().unwrap_or(lost);
            return Err(Error::device(format!("{} was lost", self.adapter), why));
        }
        match errors.into_iter().next() {
            Some(error) => Err(Error::device("reported by the device", error)),
            None => Ok(()),
        }
    }

    /// Returns why the device was lost, if it was.
    #[must_use]
    pub fn lost(&self) -> Option<String> {
        lock(&self.faults).lost.clone()
    }

    /// Counts the live objects of this device. Objects are freed by [`Gpu::wait`].
    #[doc(hidden)]
    pub fn live_objects(&self) -> LiveObjects {
        LiveObjects::of(&self.instance)
    }

    /// Folds `count` workgroups into a grid. A limit of [`TestHooks`] does not apply to dispatches that would not fit it.
    fn grid(&self, count: usize) -> Result<[u32; 3]> {
        let root = u32::try_from(count.isqrt() + 1).unwrap_or(u32::MAX);
        let max = self.device.limits().max_compute_workgroups_per_dimension;
        fold_grid(count, self.profile().max_workgroups.max(root.min(max)))
    }

    /// Runs `f` inside error scopes. `context` describes it in the error.
    fn scoped<T>(&self, context: impl fmt::Display, f: impl FnOnce() -> T) -> Result<T> {
        match self.captured(f) {
            (value, None) => Ok(value),
            (_, Some(error)) => Err(Error::device(context, error)),
        }
    }

    /// In a browser, where scopes must be awaited, errors are recorded like those outside of scopes, and [`Gpu::health`] returns them.
    fn captured<T>(&self, f: impl FnOnce() -> T) -> (T, Option<wgpu::Error>) {
        if !MAY_WAIT {
            return (f(), None);
        }
        let filters = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Internal, wgpu::ErrorFilter::Validation];
        let [memory, internal, validation] = filters.map(|filter| self.device.push_error_scope(filter));
        let value = f();
        let errors = [validation, internal, memory].map(|scope| pollster::block_on(scope.pop()));
        (value, errors.into_iter().flatten().next())
    }
}
