//! Runs single passes of operations over named tensors: on the reference in both precisions, and on a GPU in every variant.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use vae_wgpu::Error;
use vae_wgpu::runtime::exec::entry::run_pass;
use vae_wgpu::runtime::gpu::Gpu;
use vae_wgpu::runtime::kernel::Arg;
use vae_wgpu::runtime::op::{Op, Pass, Target, spec_of};

/// Tensors in logical order, by operand or gradient.
pub(crate) type Values = BTreeMap<String, Vec<f64>>;

/// An implementation of the passes.
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

    /// Runs `pass` and stores the tensors that it writes and updates in `values`.
    pub(crate) fn run(&self, op: &dyn Op, pass: &Pass, variant: &str, values: &mut Values) -> Result<()> {
        let mut tensors = Vec::new();
        for &arg in pass.reads.iter().chain(&pass.updates) {
            let value = values.get(&arg.to_string());
            let value = value.with_context(|| format!("{}.{} needs `{arg}`", op.kind(), pass.name))?;
            tensors.push(Tensor { arg, value: value.clone() });
        }
        let updated = tensors.split_off(pass.reads.len());
        let reads = tensors;
        let mut writes = Vec::new();
        for &arg in &pass.writes {
            let spec = spec_of(op, arg)?;
            writes.push(Tensor { arg, value: vec![f64::NAN; spec.len()] });
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
    value: Vec<f64>,
}

impl Tensor {
    fn single(&self) -> Vec<f32> {
        self.value.iter().map(|&v| v as f32).collect()
    }
}

fn on_gpu(gpu: &Gpu, op: &dyn Op, pass: &Pass, variant: &str, reads: &[Tensor], writes: &mut [Tensor]) -> Result<()> {
    let reads: Vec<_> = reads.iter().map(Tensor::single).collect();
    let updates: Vec<_> = writes.iter().skip(pass.writes.len()).map(Tensor::single).collect();
    let written = run_pass(gpu, op, pass, Some(variant), &reads, &updates)?;
    for (tensor, written) in writes.iter_mut().zip(written) {
        tensor.value = written.into_iter().map(f64::from).collect();
    }
    Ok(())
}
