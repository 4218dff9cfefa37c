//! What happens while kernels are compiled: a word on stderr, and the driver's results kept in the user's cache for the next start.

use std::fs;
use std::io::{IsTerminal, stderr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use md5::{Digest, Md5};

use super::trained::say;
use crate::app::io::atomic::{read, save_atomic};
use crate::runtime::gpu::{Compiled, Gpu};

/// Fewer kernels are compiled without a word.
const WORTH_A_WORD: usize = 10;

/// Has `gpu` tell (unless not to) how far compiling is, and keeps what the driver made of the kernels. That it cannot be kept, or is no
/// good any more, costs time and nothing else, and is not told.
pub(super) fn watch(gpu: &mut Gpu, tell: bool) {
    let kept = Kept::find(gpu);
    let known = kept.as_ref().and_then(Kept::load);
    if kept.is_some() {
        // Without a cache the driver compiles from scratch.
        let _ = gpu.use_pipeline_cache(known.as_deref());
    }
    let telling = Mutex::new(Telling { tell, bar: None, told: false, kept: known });
    gpu.on_compiled(move |gpu, compiled| {
        let mut telling = telling.lock().unwrap_or_else(PoisonError::into_inner);
        telling.progress(compiled);
        if compiled.done == compiled.total
            && let Some(kept) = &kept
            && let Some(data) = gpu.pipeline_cache_data()
            && telling.kept.as_ref() != Some(&data)
        {
            kept.save(&data);
            telling.kept = Some(data);
        }
    });
}

struct Telling {
    tell: bool,
    bar: Option<ProgressBar>,
    told: bool,
    kept: Option<Vec<u8>>,
}

impl Telling {
    fn progress(&mut self, Compiled { done, total }: Compiled) {
        if !self.tell || total < WORTH_A_WORD {
            return;
        }
        if !stderr().is_terminal() {
            // One line for all programs of a command.
            if !std::mem::replace(&mut self.told, true) {
                say("compiling kernels");
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(total as u64);
            if let Ok(style) = ProgressStyle::with_template("compiling kernels {pos}/{len}") {
                bar.set_style(style);
            }
            bar
        });
        // Several threads compile: a late word of an earlier one must not turn the count back.
        bar.set_position(bar.position().max(done as u64));
        if done == total {
            bar.finish_and_clear();
            self.bar = None;
        }
    }
}

/// Where the pipelines of an adapter are kept.
struct Kept {
    path: PathBuf,
}

/// In front of the data, with their MD5 sum behind it: drivers believe what they are given.
const HEAD: &[u8] = b"vae-wgpu pipelines 1\n";

impl Kept {
    /// None where the backend has no such thing, the user has no cache, or `VAE_WGPU_PIPELINE_CACHE` is `off`.
    fn find(gpu: &Gpu) -> Option<Self> {
        if std::env::var_os("VAE_WGPU_PIPELINE_CACHE").is_some_and(|v| v == "off") {
            return None;
        }
        let folder = directories::BaseDirs::new()?.cache_dir().join("vae-wgpu").join("pipelines");
        Some(Self { path: folder.join(gpu.pipeline_cache_key()?) })
    }

    fn load(&self) -> Option<Vec<u8>> {
        unsealed(&read(&self.path).ok()?).map(<[u8]>::to_vec)
    }

    fn save(&self, data: &[u8]) {
        let made = self.path.parent().is_some_and(|folder| fs::create_dir_all(folder).is_ok());
        if made {
            // The next start will have to compile again.
            let _ = save_atomic(&self.path, &sealed(data));
        }
    }
}

fn sealed(data: &[u8]) -> Vec<u8> {
    [HEAD, Md5::digest(data).as_slice(), data].concat()
}

/// The data of a file that is whole.
fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (sum, data) = bytes.strip_prefix(HEAD)?.split_at_checked(Md5::output_size())?;
    (Md5::digest(data).as_slice() == sum).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_files_are_believed() {
        let data = [1, 2, 3, 250];
        let file = sealed(&data);
        assert_eq!(unsealed(&file), Some(data.as_slice()));
        for end in 0..file.len() {
            assert_eq!(unsealed(&file[..end]), None, "{end}");
        }
        for at in 0..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 1;
            assert_eq!(unsealed(&damaged), None, "{at}");
        }
    }

    #[test]
    fn late_words_do_not_turn_the_count_back() {
        let mut telling = Telling { tell: true, bar: None, told: false, kept: None };
        for done in [1, 3, 2, 12] {
            telling.progress(Compiled { done, total: 12 });
        }
        assert!(telling.bar.is_none());
    }
}
