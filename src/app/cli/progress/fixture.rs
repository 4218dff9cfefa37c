//! A run's start event, for tests.

use std::path::Path;
use std::sync::LazyLock;

use crate::vae::train::Settings;
use crate::vae::train::events::Start;

static SETTINGS: LazyLock<Settings> = LazyLock::new(Settings::default);

pub(super) fn start() -> Start<'static> {
    Start {
        run: Path::new("runs/2026-01-31-1"),
        device: "llvmpipe (Vulkan)",
        model: "32 channels, 4 blocks, latent 16, batch norm",
        parameters: 1_721_891,
        images: 50_000,
        validation_images: 10_000,
        batch_size: 128,
        accumulate: 1,
        ranks: 1,
        epochs: 25,
        steps: 9775,
        first_step: 1,
        software: false,
        memory: Some(86 << 20),
        settings: &SETTINGS,
    }
}
