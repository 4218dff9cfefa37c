//! What the device can do at most, measured: the roof under which benches report.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::{Binding, Gpu, Program, Step};
use crate::error::Result;
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, workgroups};

/// Measured peak rates of a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roof {
    /// Billions of floating-point operations a second, multiply-adds in registers; each counts as two.
    pub gflops: f64,
    /// Billions of bytes a second, read and written, in a copy between buffers far larger than any cache.
    pub copy_gb_s: f64,
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/roof.wgsl`.
    Params { len: u32, rounds: u32, factor: f32, addend: f32 }
}

static MULTIPLY_ADD: Kernel = Kernel {
    name: "roof.multiply_add",
    variant: "vec4",
    file: "lib/roofline.wgsl",
    source: include_str!("../../../shaders/lib/roofline.wgsl"),
    entry: "multiply_add",
    bindings: &[("sums", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static COPY: Kernel = Kernel {
    name: "roof.copy",
    entry: "copy",
    bindings: &[("source", Access::Read), ("copied", Access::ReadWrite)],
    ..MULTIPLY_ADD
};

/// The probe kernels, for the reflection test.
#[must_use]
pub fn probes() -> Vec<&'static Kernel> {
    vec![&MULTIPLY_ADD, &COPY]
}

/// Invocations of the multiply-add probe: enough to fill any device.
const INVOCATIONS: usize = 1 << 16;
/// Floating-point operations of an invocation in a round: 8 accumulators, unrolled 4 times, of 4 lanes.
const FLOP_PER_ROUND: f64 = (8 * 4 * 4 * 2) as f64;
/// Bytes of each side of the copy.
const COPY_BYTES: usize = 64 << 20;
/// A sample long enough that the time of a submission does not matter.
const SAMPLE: Duration = Duration::from_millis(25);

/// Measures the roof: about a second.
pub fn roof(gpu: &Gpu) -> Result<Roof> {
    let sums = gpu.buffer("roof: sums", 16 * INVOCATIONS as u64)?;
    let flops = best_rate(
        |amount| {
            let params = Params { len: INVOCATIONS as u32, rounds: amount, factor: 0.999, addend: 0.001 };
            let program = program(gpu, &MULTIPLY_ADD, params, INVOCATIONS, &[&sums], 1)?;
            Ok((program, f64::from(amount) * FLOP_PER_ROUND * INVOCATIONS as f64))
        },
        gpu,
    )?;

    let (source, copied) =
        (gpu.buffer("roof: source", COPY_BYTES as u64)?, gpu.buffer("roof: copied", COPY_BYTES as u64)?);
    let bytes = best_rate(
        |amount| {
            let len = COPY_BYTES / 16;
            let params = Params { len: len as u32, rounds: 0, factor: 0.0, addend: 0.0 };
            let program = program(gpu, &COPY, params, len, &[&source, &copied], amount)?;
            Ok((program, f64::from(amount) * 2.0 * COPY_BYTES as f64))
        },
        gpu,
    )?;
    Ok(Roof { gflops: flops / 1e9, copy_gb_s: bytes / 1e9 })
}

fn program(
    gpu: &Gpu,
    kernel: &'static Kernel,
    params: Params,
    invocations: usize,
    buffers: &[&wgpu::Buffer],
    times: u32,
) -> Result<Program> {
    let dispatch = Dispatch {
        params: params.bytes(),
        workgroups: workgroups(invocations, 64),
        ..Dispatch::new(kernel, (0..buffers.len()).map(Bind::Scratch))
    };
    let bindings = buffers.iter().map(|&buffer| Binding { buffer, offset: 0, size: buffer.size() }).collect();
    let step = Step { label: kernel.name.into(), dispatch: &dispatch, bindings };
    Program::new(gpu, kernel.name, &vec![step; times as usize])
}

/// Doubles the amount of work until a sample is long enough, then samples until the best has not risen by a hundredth for
/// five samples, and gives the best rate: work per second.
fn best_rate(make: impl Fn(u32) -> Result<(Program, f64)>, gpu: &Gpu) -> Result<f64> {
    let sample = |program: &Program| -> Result<Duration> {
        let start = Instant::now();
        program.submit(gpu)?;
        gpu.wait()?;
        Ok(start.elapsed())
    };
    let mut amount = 1;
    let (program, work) = loop {
        let (program, work) = make(amount)?;
        sample(&program)?;
        if sample(&program)? >= SAMPLE || amount >= 1 << 20 {
            break (program, work);
        }
        amount *= 2;
    };
    let (mut best, mut flat) = (0.0f64, 0);
    let start = Instant::now();
    while flat < 5 && start.elapsed() < 40 * SAMPLE {
        let rate = work / sample(&program)?.as_secs_f64();
        flat = if rate > best * 1.01 { 0 } else { flat + 1 };
        best = best.max(rate);
    }
    Ok(best)
}
