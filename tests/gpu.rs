//! Tests on the adapter: kernels, training steps, PyTorch fixtures, faults. A module each; `cargo test --test gpu -- training::` runs one.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test stops where it fails")]
#![expect(clippy::neg_cmp_op_on_partial_ord, reason = "a comparison with NaN must fail")]

#[path = "common/accumulation.rs"]
mod accumulated;
#[path = "common/geometry.rs"]
mod cases;
#[path = "common/random.rs"]
mod random;

#[path = "gpu/device.rs"]
mod device;
#[path = "gpu/faults.rs"]
mod faults;
#[path = "gpu/finite.rs"]
mod finite;
#[path = "gpu/fixtures.rs"]
mod fixtures;
#[path = "gpu/geometry.rs"]
mod geometry;
#[path = "gpu/harness.rs"]
mod harness;
#[path = "gpu/kernels.rs"]
mod kernels;
#[path = "gpu/mutants.rs"]
mod mutants;
#[path = "gpu/parity.rs"]
mod parity;
#[path = "gpu/parity_graphs.rs"]
mod parity_graphs;
#[path = "gpu/pass.rs"]
mod pass;
#[path = "gpu/soak.rs"]
mod soak;
#[path = "gpu/subgroups.rs"]
mod subgroups;
#[path = "gpu/training.rs"]
mod training;

use std::process::ExitCode;

use harness::Suite;

fn main() -> anyhow::Result<ExitCode> {
    let mut suite = Suite::new();
    if soak::is_child() {
        // The test measures memory: nothing else is loaded.
        soak::register(suite.module("soak"));
        return Ok(suite.run());
    }
    // The longest tests come first, so that all threads end at about the same time.
    training::register(suite.module("training"));
    soak::register(suite.module("soak"));
    geometry::register(suite.module("geometry"));
    faults::register(suite.module("faults"));
    subgroups::register(suite.module("subgroups"))?;
    kernels::register(suite.module("kernels"))?;
    mutants::register(suite.module("mutants"))?;
    parity::register(suite.module("parity"))?;
    finite::register(suite.module("finite"));
    device::register(suite.module("device"));
    Ok(suite.run())
}
