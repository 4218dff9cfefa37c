//! Tests on the adapter, without silent skips: without one they are reported as ignored, and `VAE_WGPU_REQUIRE_GPU=1` turns that
//! into a failure.

use std::sync::Arc;

use libtest_mimic::{Failed, Trial};
use vae_wgpu::runtime::gpu::Gpu;

/// Names the devices on stderr. Without one: a failing trial where one is required.
pub(crate) fn announce<T>(devices: &vae_wgpu::Result<T>, name: impl Fn(&T) -> String) -> Vec<Trial> {
    match devices {
        Ok(devices) => {
            eprintln!("adapter: {}", name(devices));
            Vec::new()
        }
        Err(error) => {
            eprintln!("{error}");
            if !required() {
                return Vec::new();
            }
            let message = error.to_string();
            vec![Trial::test("an_adapter_is_there", || Err(Failed::from(message)))]
        }
    }
}

/// Whether tests that need an adapter fail where there is none.
pub(crate) fn required() -> bool {
    std::env::var_os("VAE_WGPU_REQUIRE_GPU").is_some_and(|v| v != "0")
}

/// What becomes of a test that needs an adapter where there is none: ignored with the reason, or failed.
pub(crate) fn without_adapter(name: impl Into<String>) -> Trial {
    Trial::test(name, || Err(Failed::from("no adapter"))).with_kind("no adapter").with_ignored_flag(!required())
}

/// A trial for a function that panics on failure.
pub(crate) fn trial(name: &str, gpu: Option<Arc<Gpu>>, test: fn(&Arc<Gpu>)) -> Trial {
    match gpu {
        Some(gpu) => Trial::test(name, move || {
            test(&gpu);
            Ok(())
        }),
        None => without_adapter(name),
    }
}
