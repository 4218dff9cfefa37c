//! What the driver made of the kernels, to be kept from one start to the next; and word of how far compiling is.

use std::fmt;

use super::Gpu;
use crate::error::Result;

/// How far the pipelines of a program are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Pipelines that are there.
    pub done: usize,
    /// Pipelines that were missing when compiling began.
    pub total: usize,
}

/// Whom to tell.
type OnCompiled = Box<dyn Fn(&Gpu, Compiled) + Send + Sync>;

/// The driver's cache, if it is in use, and what goes with it.
#[derive(Default)]
pub(super) struct Cache {
    key: Option<String>,
    cache: Option<wgpu::PipelineCache>,
    on_compiled: Option<OnCompiled>,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("key", &self.key).field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Cache {
    /// Not in use yet.
    pub(super) fn of(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Self {
        let able = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let key = able.then(|| wgpu::util::pipeline_cache_key(&adapter.get_info())).flatten();
        Self { key, ..Self::default() }
    }

    /// What pipelines are compiled with.
    pub(super) fn pipelines(&self) -> Option<&wgpu::PipelineCache> {
        self.cache.as_ref()
    }
}

impl Gpu {
    /// A name (fit for a file) for what this driver compiles for this adapter; `None` where nothing can be kept.
    #[must_use]
    pub fn pipeline_cache_key(&self) -> Option<&str> {
        self.cache.key.as_deref()
    }

    /// Compiles with a pipeline cache from now on, which begins with what [`Gpu::pipeline_cache_data`] gave earlier. Data of another
    /// adapter, driver or version are passed over. Nothing happens where there is no [`Gpu::pipeline_cache_key`].
    pub fn use_pipeline_cache(&mut self, data: Option<&[u8]>) -> Result<()> {
        if self.cache.key.is_some() {
            self.cache.cache = Some(self.scoped("creating a pipeline cache", || create(&self.device, data))?);
        }
        Ok(())
    }

    /// What is to be kept for the next start, if a cache is in use.
    #[must_use]
    pub fn pipeline_cache_data(&self) -> Option<Vec<u8>> {
        self.cache.cache.as_ref().and_then(wgpu::PipelineCache::get_data)
    }

    /// Calls `f` for every pipeline that was compiled, from the threads that compile, in any order: the last one is where both
    /// numbers are the same.
    pub fn on_compiled(&mut self, f: impl Fn(&Self, Compiled) + Send + Sync + 'static) {
        self.cache.on_compiled = Some(Box::new(f));
    }

    pub(super) fn compiled(&self, done: usize, total: usize) {
        if let Some(tell) = &self.cache.on_compiled {
            tell(self, Compiled { done, total });
        }
    }
}

/// The one `unsafe` call of this crate.
#[expect(unsafe_code, reason = "wgpu has no other way to give a driver its own cache back")]
fn create(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
    // SAFETY: the data must have come from `PipelineCache::get_data`. They came from `Gpu::pipeline_cache_data`, through a file in the
    // user's own cache folder that the caller reads only if the checksum written with it holds (`cli::kernels`), so neither a damaged nor
    // a truncated file gets here. wgpu compares its header (version, backend, adapter, driver's validation key, length) and, with
    // `fallback`, begins with an empty cache where it does not fit; the driver checks its own header again.
    unsafe { device.create_pipeline_cache(&descriptor) }
}
