//! The persistent pipeline cache, and the callback that reports progress of compilation.

use std::fmt;

use crate::error::Result;
use crate::runtime::gpu::Gpu;

/// Progress of compiling the pipelines of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compiled {
    /// Pipelines compiled so far.
    pub done: usize,
    /// Pipelines to compile.
    pub total: usize,
}

type OnCompiled = Box<dyn Fn(&Gpu, Compiled) + Send + Sync>;

/// The cache of the driver, if it is in use.
#[derive(Default)]
pub(super) struct Cache {
    /// `None` if the driver has no cache.
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
    /// Returns the cache of a device, not in use yet.
    pub(super) fn of(device: &wgpu::Device, adapter: &wgpu::Adapter) -> Self {
        let supported = device.features().contains(wgpu::Features::PIPELINE_CACHE);
        let key = supported.then(|| wgpu::util::pipeline_cache_key(&adapter.get_info())).flatten();
        Self { key, ..Self::default() }
    }

    pub(super) fn in_use(&self) -> Option<&wgpu::PipelineCache> {
        self.cache.as_ref()
    }
}

impl Gpu {
    /// Returns a file name for the pipeline cache of this driver and adapter; `None` if the driver has no cache.
    #[must_use]
    pub fn pipeline_cache_key(&self) -> Option<&str> {
        self.cache.key.as_deref()
    }

    /// Compiles with a pipeline cache from now on. `data` is what [`Gpu::pipeline_cache_data`] returned earlier. Damaged or truncated data,
    /// and those of another adapter, driver or version, are ignored. Does nothing without a [`Gpu::pipeline_cache_key`].
    ///
    /// # Errors
    /// [`Error::Device`](crate::Error::Device) if the cache cannot be created.
    pub fn use_pipeline_cache(&mut self, data: Option<&[u8]>) -> Result<()> {
        if self.cache.key.is_some() {
            let data = data.and_then(verified);
            self.cache.cache = Some(self.scoped("creating a pipeline cache", || create(&self.device, data))?);
        }
        Ok(())
    }

    /// Returns the contents of the pipeline cache with a checksum, if one is in use.
    #[must_use]
    pub fn pipeline_cache_data(&self) -> Option<Vec<u8>> {
        self.cache.cache.as_ref().and_then(wgpu::PipelineCache::get_data).map(|data| with_checksum(&data))
    }

    /// Calls `f` after each compiled pipeline. Calls come from the threads that compile and may be out of order; after the last one
    /// of a program, `done` equals `total`.
    pub fn on_compiled(&mut self, f: impl Fn(&Self, Compiled) + Send + Sync + 'static) {
        self.cache.on_compiled = Some(Box::new(f));
    }

    pub(super) fn notify_compiled(&self, done: usize, total: usize) {
        if let Some(notify) = &self.cache.on_compiled {
            notify(self, Compiled { done, total });
        }
    }
}

/// Start of the data of a cache, followed by the CRC-32 of the driver's data and these. Drivers do not validate their data.
const MAGIC: &[u8] = b"vae-wgpu pipelines 2\n";

fn with_checksum(data: &[u8]) -> Vec<u8> {
    [MAGIC, &crc32fast::hash(data).to_le_bytes(), data].concat()
}

/// Returns the driver's data, if they are complete and intact.
fn verified(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, data) = bytes.strip_prefix(MAGIC)?.split_first_chunk()?;
    (crc32fast::hash(data).to_le_bytes() == *sum).then_some(data)
}

/// Creates a cache from the data of an earlier one. The only `unsafe` call of this crate.
#[expect(unsafe_code, reason = "wgpu has no safe function that restores a pipeline cache")]
fn create(device: &wgpu::Device, data: Option<&[u8]>) -> wgpu::PipelineCache {
    let descriptor = wgpu::PipelineCacheDescriptor { label: Some("pipelines"), data, fallback: true };
    // SAFETY: `data` must come from `PipelineCache::get_data`. It comes from `Gpu::pipeline_cache_data`, whose checksum has been verified,
    // so that data which were damaged or truncated since do not get here. (A checksum does not stop a forger, who would need to write to
    // the files of the user.) wgpu compares the header (version, backend, adapter, the driver's validation key, length) and, because of
    // `fallback`, starts with an empty cache if it differs. The driver then checks its own header.
    unsafe { device.create_pipeline_cache(&descriptor) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn truncated_or_damaged_data_are_rejected() {
        let data = [1, 2, 3, 250];
        let sealed = with_checksum(&data);
        assert_eq!(verified(&sealed), Some(data.as_slice()));
        for end in 0..sealed.len() {
            assert_eq!(verified(&sealed[..end]), None, "{end}");
        }
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert_eq!(verified(&damaged), None, "{at}");
        }
    }
}
