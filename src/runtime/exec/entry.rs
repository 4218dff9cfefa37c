//! Runs one pass of one operation on a device, outside of a graph: for checks, benchmarks and tests.

use std::slice;

use crate::error::{Error, Result};
use crate::runtime::gpu::{Binding, Gpu, Program, Rewrite, Step, free, wgpu};
use crate::runtime::kernel::{Arg, Bind, Lowered};
use crate::runtime::op::{Op, Pass, Target, spec_of};
use crate::runtime::plan::{BufferRange, texture_cache};

/// A compiled pass with a buffer for each of its tensors and scratch buffers.
#[derive(Debug)]
pub struct PassProgram {
    program: Program,
    buffers: Vec<(Bind, wgpu::Buffer)>,
}

impl Drop for PassProgram {
    fn drop(&mut self) {
        free(self.buffers.iter().map(|(_, buffer)| buffer));
    }
}

impl PassProgram {
    /// Allocates the buffers of `pass` and compiles the dispatches of `lowered`.
    ///
    /// `allocate` creates the buffer of each tensor or scratch buffer from its size in bytes. The buffer may be larger; kernels are
    /// bound to all of it. `rewrite` edits the shaders, for tests.
    ///
    /// # Errors
    /// Those of `allocate` and [`Program::planned`].
    pub fn new(
        gpu: &Gpu,
        op: &dyn Op,
        pass: &Pass,
        lowered: &Lowered,
        rewrite: Option<Rewrite<'_>>,
        mut allocate: impl FnMut(Bind, usize) -> Result<wgpu::Buffer>,
    ) -> Result<Self> {
        let mut buffers: Vec<(Bind, wgpu::Buffer)> = Vec::new();
        for &arg in pass.reads.iter().chain(&pass.updates).chain(&pass.writes) {
            let bind = Bind::Arg(arg);
            if buffers.iter().all(|(known, _)| *known != bind) {
                buffers.push((bind, allocate(bind, spec_of(op, arg)?.device_bytes())?));
            }
        }
        for (i, &bytes) in lowered.scratch.iter().enumerate() {
            buffers.push((Bind::Scratch(i), allocate(Bind::Scratch(i), bytes)?));
        }
        let label = format!("{}.{}", op.kind(), pass.name);
        let steps = lowered.dispatches.iter().map(|dispatch| {
            let binding = |bind: &Bind| {
                let buffer = find(&buffers, *bind)?;
                Ok(Binding { buffer, offset: 0, size: buffer.size() })
            };
            let bindings = dispatch.bindings.iter().map(binding).collect::<Result<Vec<_>>>()?;
            Ok(Step { label: label.clone(), dispatch, bindings })
        });
        let steps = steps.collect::<Result<Vec<_>>>()?;
        let bound = steps.iter().map(|step| (step.dispatch.kernel, step.bindings.iter().map(range).collect()));
        let submission = 0..steps.len();
        let cache = texture_cache::plan(bound, slice::from_ref(&submission));
        let program = match rewrite {
            Some(rewrite) => Program::rewritten(gpu, &label, &steps, &cache, rewrite)?,
            None => Program::planned(gpu, &label, &steps, slice::from_ref(&submission), &cache)?,
        };
        drop(steps);
        Ok(Self { program, buffers })
    }

    /// Returns the compiled dispatches.
    #[must_use]
    pub fn program(&self) -> &Program {
        &self.program
    }

    /// Returns the buffer of a tensor or scratch buffer.
    ///
    /// # Errors
    /// [`Error::Bug`] if the pass does not have it.
    pub fn buffer(&self, bind: Bind) -> Result<&wgpu::Buffer> {
        find(&self.buffers, bind)
    }
}

fn range<'a>(binding: &Binding<'a>) -> BufferRange<&'a wgpu::Buffer> {
    BufferRange { buffer: binding.buffer, offset: binding.offset, bytes: binding.size }
}

fn find(buffers: &[(Bind, wgpu::Buffer)], bind: Bind) -> Result<&wgpu::Buffer> {
    let found = buffers.iter().find(|(known, _)| *known == bind);
    found.map(|(_, buffer)| buffer).ok_or_else(|| Error::bug(format!("{bind:?} is not a tensor of the pass")))
}

/// Runs `pass` on a device and waits for it.
///
/// Takes the values of its reads and of its updates, and returns the values that it wrote and then those that it updated, all in
/// logical order. Without `variant`, the operation chooses one. Memory that the pass does not write holds NaN.
///
/// # Errors
/// [`Error::Unsupported`] if the device cannot run the variant, [`Error::InvalidArgument`] for values of another length,
/// [`Error::Device`] if the device fails.
pub fn run_pass(
    gpu: &Gpu,
    op: &dyn Op,
    pass: &Pass,
    variant: Option<&str>,
    reads: &[Vec<f32>],
    updates: &[Vec<f32>],
) -> Result<Vec<Vec<f32>>> {
    let accumulate = vec![false; pass.writes.len()];
    let lowered = op.lower(pass.name, &Target { profile: gpu.profile(), variant, accumulate: &accumulate })?;
    let values: Vec<_> = pass.reads.iter().zip(reads).chain(pass.updates.iter().zip(updates)).collect();
    let allocate = |bind: Bind, bytes: usize| {
        let contents = match values.iter().find(|(arg, _)| Bind::Arg(**arg) == bind) {
            Some((arg, values)) => spec_of(op, **arg)?.pack(values)?,
            None => vec![0xff; bytes.next_multiple_of(4)],
        };
        let buffer = gpu.buffer(&format!("{bind:?}"), contents.len() as u64)?;
        gpu.write(&buffer, 0, &contents)?;
        Ok(buffer)
    };
    let run = PassProgram::new(gpu, op, pass, &lowered, None, allocate)?;
    run.program().submit(gpu)?;
    let read = |&arg: &Arg| {
        let spec = spec_of(op, arg)?;
        spec.unpack(&gpu.read(run.buffer(Bind::Arg(arg))?, 0, spec.device_bytes() as u64)?)
    };
    pass.writes.iter().chain(&pass.updates).map(read).collect()
}
