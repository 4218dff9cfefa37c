//! Progress of kernel compilation on stderr, and the pipeline cache in the user's cache folder.

use std::fs;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

use super::eprintln_lossy;
use super::terminal::{draws_bars, shows};
use crate::app::io::atomic::{read, save_atomic};
use crate::runtime::gpu::{Compiled, Gpu};

/// Fewer kernels are compiled without showing progress.
const MIN_REPORTED: usize = 10;

/// Gives `gpu` a pipeline cache that outlives the process and, if `verbose`, shows the progress of compilation. Cache errors only cost
/// start-up time and are ignored.
pub(super) fn install(gpu: &mut Gpu, verbose: bool) {
    let file = PipelineCacheFile::find(gpu);
    let saved = file.as_ref().and_then(PipelineCacheFile::load);
    if file.is_some() {
        // Without a cache the driver compiles from scratch.
        let _ = gpu.use_pipeline_cache(saved.as_deref());
    }
    let progress = Mutex::new(CompileProgress { verbose, bar: None, reported: false, saved });
    gpu.on_compiled(move |gpu, compiled| {
        let mut progress = progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.update(compiled);
        if compiled.done == compiled.total
            && let Some(file) = &file
            && let Some(data) = gpu.pipeline_cache_data()
            && progress.saved.as_ref() != Some(&data)
        {
            file.save(&data);
            progress.saved = Some(data);
        }
    });
}

struct CompileProgress {
    verbose: bool,
    bar: Option<ProgressBar>,
    /// Whether the line for output without a terminal has been printed.
    reported: bool,
    /// Content of the cache file.
    saved: Option<Vec<u8>>,
}

impl CompileProgress {
    fn update(&mut self, Compiled { done, total }: Compiled) {
        if !self.verbose || total < MIN_REPORTED {
            return;
        }
        if !draws_bars() {
            // One line for all programs of a command.
            if !std::mem::replace(&mut self.reported, true) {
                eprintln_lossy("compiling kernels");
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = ProgressStyle::with_template("compiling kernels {pos}/{len}") {
                bar.set_style(style);
            }
            shows(&bar);
            bar
        });
        // Several threads compile, so calls may arrive out of order; the count must not go back.
        bar.set_position(bar.position().max(done as u64));
        if done == total {
            bar.finish_and_clear();
            self.bar = None;
        }
    }
}

/// The pipeline cache file of an adapter.
struct PipelineCacheFile {
    path: PathBuf,
}

impl PipelineCacheFile {
    /// Returns `None` if the backend has no pipeline cache, the user has no cache folder, or `VAE_WGPU_PIPELINE_CACHE` is `off`.
    fn find(gpu: &Gpu) -> Option<Self> {
        if std::env::var_os("VAE_WGPU_PIPELINE_CACHE").is_some_and(|v| v == "off") {
            return None;
        }
        let folder = directories::BaseDirs::new()?.cache_dir().join("vae-wgpu").join("pipelines");
        Some(Self { path: folder.join(gpu.pipeline_cache_key()?) })
    }

    fn load(&self) -> Option<Vec<u8>> {
        read(&self.path).ok()
    }

    fn save(&self, data: &[u8]) {
        let created = self.path.parent().is_some_and(|folder| fs::create_dir_all(folder).is_ok());
        if created {
            // On failure the next start compiles again.
            let _ = save_atomic(&self.path, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_order_progress_does_not_panic() {
        let mut progress = CompileProgress { verbose: true, bar: None, reported: false, saved: None };
        for done in [1, 3, 2, 12] {
            progress.update(Compiled { done, total: 12 });
        }
        assert!(progress.bar.is_none());
    }
}
