//! Measured peak rates of a device: the roofline that benchmarks compare with.

use std::time::Duration;

use serde::Serialize;
use web_time::Instant;

use crate::error::Result;
use crate::runtime::gpu::{Binding, Gpu, Program, Step};
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, workgroups};

/// Measured peak rates of a device.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Roofline {
    /// 10^9 floating-point operations per second, in multiply-adds on registers, which count as two.
    pub gflops: f64,
    /// 10^9 bytes per second, read and written, in a copy between buffers that are larger than any cache.
    pub copy_gb_s: f64,
}

crate::runtime::kernel::kernel_params! {
    /// Parameters of `shaders/lib/roofline.wgsl`.
    Params { len: u32, rounds: u32, factor: f32, addend: f32 }
}

static MULTIPLY_ADD: Kernel = Kernel {
    name: "roofline.multiply_add",
    variant: "vec4",
    file: "lib/roofline.wgsl",
    source: include_str!("../../../shaders/lib/roofline.wgsl"),
    entry: "multiply_add",
    bindings: &[("sums", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static COPY: Kernel = Kernel {
    name: "roofline.copy",
    entry: "copy",
    bindings: &[("source", Access::Read), ("copied", Access::ReadWrite)],
    ..MULTIPLY_ADD
};

/// Returns the kernels that [`roofline`] runs.
#[must_use]
pub fn probes() -> Vec<&'static Kernel> {
    vec![&MULTIPLY_ADD, &COPY]
}

/// Invocations of the multiply-add kernel: enough to occupy any device.
const INVOCATIONS: usize = 1 << 16;
/// Floating-point operations of an invocation per round: 8 accumulators of 4 components, unrolled 4 times, 2 per multiply-add.
const FLOP_PER_ROUND: f64 = (8 * 4 * 4 * 2) as f64;
/// Size of source and destination of the copy in bytes.
const COPY_BYTES: usize = 64 << 20;
/// Minimum duration of a sample, which makes the overhead of a submission negligible.
const SAMPLE: Duration = Duration::from_millis(25);

/// Measures the peak rates of a device. Takes about a second.
///
/// # Errors
/// As [`Program::planned`] and [`Gpu::submit`].
pub fn roofline(gpu: &Gpu) -> Result<Roofline> {
    let sums = gpu.buffer("roofline: sums", 16 * INVOCATIONS as u64)?;
    let flops = best_rate(
        |amount| {
            let params = Params { len: INVOCATIONS as u32, rounds: amount, factor: 0.999, addend: 0.001 };
            let program = program(gpu, &MULTIPLY_ADD, params, INVOCATIONS, &[&sums], 1)?;
            Ok((program, f64::from(amount) * FLOP_PER_ROUND * INVOCATIONS as f64))
        },
        gpu,
    )?;

    let (source, copied) =
        (gpu.buffer("roofline: source", COPY_BYTES as u64)?, gpu.buffer("roofline: copied", COPY_BYTES as u64)?);
    let bytes = best_rate(
        |amount| {
            let len = COPY_BYTES / 16;
            let params = Params { len: len as u32, rounds: 0, factor: 0.0, addend: 0.0 };
            let program = program(gpu, &COPY, params, len, &[&source, &copied], amount)?;
            Ok((program, f64::from(amount) * 2.0 * COPY_BYTES as f64))
        },
        gpu,
    )?;
    Ok(Roofline { gflops: flops / 1e9, copy_gb_s: bytes / 1e9 })
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

/// Returns the best rate, in work per second.
///
/// Doubles the amount of work until a sample is long enough, then takes samples until none of five improves the best by 1 %.
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
