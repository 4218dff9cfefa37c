//! Runs single passes of operations over named tensors: on the reference in both precisions, and on a GPU in every variant.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use vae_wgpu::Error;
use vae_wgpu::runtime::gpu::{Binding, Gpu, Program, Step};
use vae_wgpu::runtime::kernel::{Arg, Bind};
use vae_wgpu::runtime::op::{Op, Pass, Target, spec_of};
use vae_wgpu::runtime::tensor::shape::Spec;

/// Tensors in logical order, by operand or gradient.
pub(crate) type Values = BTreeMap<String, Vec<f64>>;

/// What runs passes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Engine<'a> {
    /// The reference in double precision.
    F64,
    /// The reference in single precision: `--device cpu`.
    F32,
    /// The kernels.
    Gpu(&'a Gpu),
}

impl Engine<'_> {
    /// The variants of a pass that the engine can run.
    pub(crate) fn variants(&self, op: &dyn Op, pass: &str) -> Vec<&'static str> {
        let Self::Gpu(gpu) = self else { return vec!["reference"] };
        let can = |variant: &&str| {
            let target = Target { profile: gpu.profile(), variant: Some(variant), accumulate: &[] };
            !matches!(op.lower(pass, &target), Err(Error::Unsupported { .. }))
        };
        op.variants(pass).iter().copied().filter(can).collect()
    }

    /// Runs `pass` and puts what it writes and updates into `values`.
    pub(crate) fn run(&self, op: &dyn Op, pass: &Pass, variant: &str, values: &mut Values) -> Result<()> {
        let mut tensors = Vec::new();
        for &arg in pass.reads.iter().chain(&pass.updates) {
            let value = values.get(&arg.to_string());
            let value = value.with_context(|| format!("{}.{} needs `{arg}`", op.kind(), pass.name))?;
            tensors.push(Tensor { arg, spec: spec_of(op, arg)?, value: value.clone() });
        }
        let updated = tensors.split_off(pass.reads.len());
        let reads = tensors;
        let mut writes = Vec::new();
        for &arg in &pass.writes {
            let spec = spec_of(op, arg)?;
            writes.push(Tensor { arg, spec, value: vec![f64::NAN; spec.len()] });
        }
        writes.extend(updated);
        match self {
            Self::F64 => {
                let reads: Vec<&[f64]> = reads.iter().map(|t| &t.value[..]).collect();
                let mut refs: Vec<&mut [f64]> = writes.iter_mut().map(|t| &mut t.value[..]).collect();
                op.reference_f64(pass.name, &reads, &mut refs)?;
            }
            Self::F32 => {
                let reads: Vec<_> = reads.iter().map(Tensor::single).collect();
                let reads: Vec<&[f32]> = reads.iter().map(|t| &t[..]).collect();
                let mut results: Vec<_> = writes.iter().map(Tensor::single).collect();
                let mut refs: Vec<&mut [f32]> = results.iter_mut().map(|t| &mut t[..]).collect();
                op.reference_f32(pass.name, &reads, &mut refs)?;
                for (tensor, result) in writes.iter_mut().zip(results) {
                    tensor.value = result.into_iter().map(f64::from).collect();
                }
            }
            Self::Gpu(gpu) => on_gpu(gpu, op, pass, variant, &reads, &mut writes)?,
        }
        values.extend(writes.into_iter().map(|t| (t.arg.to_string(), t.value)));
        Ok(())
    }
}

struct Tensor {
    arg: Arg,
    spec: Spec,
    value: Vec<f64>,
}

impl Tensor {
    fn single(&self) -> Vec<f32> {
        self.value.iter().map(|&v| v as f32).collect()
    }
}

fn on_gpu(gpu: &Gpu, op: &dyn Op, pass: &Pass, variant: &str, reads: &[Tensor], writes: &mut [Tensor]) -> Result<()> {
    let accumulate = vec![false; pass.writes.len()];
    let target = Target { profile: gpu.profile(), variant: Some(variant), accumulate: &accumulate };
    let lowered = op.lower(pass.name, &target)?;
    let mut buffers = Vec::new();
    for tensor in reads.iter().chain(&*writes) {
        let buffer = gpu.buffer(&tensor.arg.to_string(), tensor.spec.device_bytes() as u64)?;
        gpu.write(&buffer, 0, &tensor.spec.pack(&tensor.single())?)?;
        buffers.push((tensor.arg, buffer));
    }
    let mut scratch = Vec::new();
    for &bytes in &lowered.scratch {
        let buffer = gpu.buffer("scratch", bytes as u64)?;
        gpu.write(&buffer, 0, &vec![0xff; bytes])?;
        scratch.push(buffer);
    }
    let find = |arg: Arg| buffers.iter().find(|(a, _)| *a == arg).map(|(_, buffer)| buffer);
    let mut steps = Vec::new();
    for dispatch in &lowered.dispatches {
        let mut bindings = Vec::new();
        for bind in &dispatch.bindings {
            let buffer = match bind {
                Bind::Arg(arg) => find(*arg).with_context(|| format!("{arg} is not of {}", pass.name))?,
                Bind::Scratch(number) => scratch.get(*number).context("no such scratch buffer")?,
            };
            bindings.push(Binding { buffer, offset: 0, size: buffer.size() });
        }
        steps.push(Step { label: format!("{}.{}", op.kind(), pass.name), dispatch, bindings });
    }
    Program::new(gpu, pass.name, &steps)?.submit(gpu)?;
    for tensor in writes {
        let buffer = find(tensor.arg).with_context(|| format!("no buffer {}", tensor.arg))?;
        let bytes = gpu.read(buffer, 0, tensor.spec.device_bytes() as u64)?;
        tensor.value = tensor.spec.unpack(&bytes)?.into_iter().map(f64::from).collect();
    }
    Ok(())
}
