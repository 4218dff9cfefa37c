//! Comparison of a kernel with the reference, on a device.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::app::check::CheckOutcome;
use crate::app::check::case::{PRIORS, PreparedCase, random_values};
use crate::app::check::comparison::Comparison;
use crate::error::{Error, Result};
use crate::runtime::exec::entry::PassProgram;
use crate::runtime::gpu::{Gpu, wgpu};
use crate::runtime::kernel::{Arg, Bind, Kernel, Lowered};
use crate::runtime::op::{Op, Pass, Target, spec_of};
use crate::runtime::sys::platform::block_on;
use crate::runtime::tensor::real::{ROUNDING, Real, Tracked};
use crate::runtime::tensor::{Layout, Spec};

/// Edits of the expanded WGSL of a kernel, to test that the checks fail.
#[derive(Clone, Copy, Debug)]
pub struct Patch<'a> {
    /// [`Kernel::name`].
    pub kernel: &'a str,
    /// [`Kernel::variant`].
    pub variant: &'a str,
    /// Replacements `(from, to)`, applied in order to all occurrences. A `from` that does not occur is an error.
    pub edits: &'a [(&'a str, &'a str)],
}

impl PreparedCase {
    /// Runs `pass` in `variant` on a device, storing its results, and compares all that it writes with the reference.
    ///
    /// # Errors
    /// As [`PreparedCase::gpu_vs_reference`].
    pub fn gpu_stores_reference(
        &self,
        gpu: &Gpu,
        pass: &str,
        variant: &str,
        patch: Option<&Patch<'_>>,
    ) -> Result<CheckOutcome> {
        let passes = self.op().passes();
        let pass = passes.get(pass)?;
        block_on(self.run_on(gpu, pass, variant, &vec![false; pass.writes.len()], patch))
    }

    /// Runs `pass` in `variant` on a device and compares all tensors that it writes with the reference. Backward passes run three times:
    /// storing, accumulating into all tensors, and accumulating into every second one.
    ///
    /// # Errors
    /// Those of the device, and of `patch` if it does not apply.
    pub fn gpu_vs_reference(
        &self,
        gpu: &Gpu,
        pass: &str,
        variant: &str,
        patch: Option<&Patch<'_>>,
    ) -> Result<CheckOutcome> {
        block_on(self.gpu_vs_reference_async(gpu, pass, variant, patch))
    }

    /// Like [`PreparedCase::gpu_vs_reference`], for a browser.
    ///
    /// # Errors
    /// As [`PreparedCase::gpu_vs_reference`].
    pub async fn gpu_vs_reference_async(
        &self,
        gpu: &Gpu,
        pass: &str,
        variant: &str,
        patch: Option<&Patch<'_>>,
    ) -> Result<CheckOutcome> {
        let passes = self.op().passes();
        let is_forward = passes.forward.name == pass;
        let pass = passes.get(pass)?;
        let writes = pass.writes.len();
        let mut patterns = vec![vec![false; writes]];
        if !is_forward {
            patterns.push(vec![true; writes]);
            if writes > 1 {
                patterns.push((0..writes).map(|i| i % 2 == 0).collect());
            }
        }
        let mut comparisons = Vec::new();
        for accumulate in patterns {
            match self.run_on(gpu, pass, variant, &accumulate, patch).await? {
                CheckOutcome::Ran(more) => comparisons.extend(more),
                other => return Ok(other),
            }
        }
        Ok(CheckOutcome::Ran(comparisons))
    }

    async fn run_on(
        &self,
        gpu: &Gpu,
        pass: &Pass,
        variant: &str,
        accumulate: &[bool],
        patch: Option<&Patch<'_>>,
    ) -> Result<CheckOutcome> {
        let op = self.op();
        let lowered = match op.lower(pass.name, &Target { profile: gpu.profile(), variant: Some(variant), accumulate })
        {
            Err(error @ Error::Unsupported { .. }) => return Ok(CheckOutcome::NotApplicable(error.to_string())),
            lowered => lowered?,
        };
        let mut priors: BTreeMap<Arg, Vec<f32>> = BTreeMap::new();
        for (i, &arg) in pass.writes.iter().enumerate() {
            if accumulate.get(i) == Some(&true) {
                priors.insert(arg, random_values(spec_of(op, arg)?, None, 1.0, PRIORS + i as u64)?);
            }
        }
        let mut guards: Vec<(Bind, Guard)> = Vec::new();
        let (expected, pass_program) = {
            let mut data = self.data();
            let expected = self.expected(&mut data, pass)?;
            let allocate = |bind: Bind, bytes: usize| {
                let label = match bind {
                    Bind::Arg(arg) => arg.to_string(),
                    Bind::Scratch(i) => format!("scratch {i}"),
                };
                let contents = match bind {
                    Bind::Arg(arg) if priors.contains_key(&arg) => spec_of(op, arg)?.pack(&priors[&arg])?,
                    Bind::Arg(arg) if !pass.writes.contains(&arg) => {
                        let missing = || Error::bug(format!("`{arg}` has no values"));
                        spec_of(op, arg)?.pack(data.values.get(&arg).ok_or_else(missing)?)?
                    }
                    _ => POISON.to_le_bytes().repeat(bytes.div_ceil(4)),
                };
                let (guard, buffer) = Guard::new(gpu, &label, &contents)?;
                guards.push((bind, guard));
                Ok(buffer)
            };
            (expected, compiled(gpu, op, pass, &lowered, patch, allocate)?)
        };
        pass_program.program().submit(gpu)?;

        let mut comparisons = Vec::new();
        for (arg, expected) in expected.iter() {
            let prior = priors.get(arg);
            let mut comparison = Comparison::new(format!("{arg}{}", if prior.is_some() { " +=" } else { "" }));
            let bind = Bind::Arg(*arg);
            let guard = guards.iter().find(|(known, _)| *known == bind);
            let (_, guard) = guard.ok_or_else(|| Error::bug(format!("`{arg}` has no buffer")))?;
            let words = guard.read(gpu, pass_program.buffer(bind)?, &mut comparison).await?;
            compare(&mut comparison, spec_of(op, *arg)?, expected, prior, &words)?;
            comparisons.push(comparison);
        }
        for (bind, guard) in &guards {
            let Bind::Scratch(i) = bind else { continue };
            let mut comparison = Comparison::new(format!("scratch {i}"));
            guard.read(gpu, pass_program.buffer(*bind)?, &mut comparison).await?;
            if comparison.fault.is_some() {
                comparisons.push(comparison);
            }
        }
        if comparisons.is_empty() {
            return Err(Error::bug(format!("{}.{} writes nothing", op.kind(), pass.name)));
        }
        Ok(CheckOutcome::Ran(comparisons))
    }
}

/// A quiet NaN that no arithmetic produces, the initial content of outputs and scratch buffers.
const POISON: u32 = 0x7fc0_dead;
/// The content of the margin after each tensor, also NaN: reading it shows in the result, and overwriting it shows in the margin. The value
/// differs per buffer, so that copies between margins show too.
const SENTINEL: u32 = 0x7fc5_a500;
/// Size of the margin in bytes.
const MARGIN: usize = 256;

/// The margin after a tensor in its buffer. Kernels are bound to both.
struct Guard {
    /// Size of the tensor.
    bytes: usize,
    sentinel: u32,
}

impl Guard {
    /// Creates a buffer with `contents` and a margin.
    fn new(gpu: &Gpu, label: &str, contents: &[u8]) -> Result<(Self, wgpu::Buffer)> {
        let sentinel = SENTINEL + label.bytes().fold(0u32, |sum, b| (31 * sum + u32::from(b)) % 251);
        let mut guarded = contents.to_vec();
        guarded.extend(sentinel.to_le_bytes().repeat(MARGIN / 4));
        let buffer = gpu.buffer(&format!("check: {label}"), guarded.len() as u64)?;
        gpu.write(&buffer, 0, &guarded)?;
        Ok((Self { bytes: contents.len(), sentinel }, buffer))
    }

    /// Returns the words of the tensor, and checks the margin.
    async fn read(&self, gpu: &Gpu, buffer: &wgpu::Buffer, comparison: &mut Comparison) -> Result<Vec<u32>> {
        let mut words: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read_async(buffer, 0, buffer.size()).await?);
        let margin = words.split_off(self.bytes / 4);
        if let Some(at) = margin.iter().position(|&word| word != self.sentinel) {
            comparison.add_fault(format!("memory after the tensor was overwritten, {} bytes past its end", 4 * at));
        }
        Ok(words)
    }
}

/// Compares the words of a tensor on the device with the reference.
fn compare(
    comparison: &mut Comparison,
    spec: Spec,
    expected: &[Tracked],
    prior: Option<&Vec<f32>>,
    words: &[u32],
) -> Result<()> {
    if spec.layout == Layout::Bytes || expected.len() != spec.len() || words.len() * 4 != spec.device_bytes() {
        return Err(Error::bug(format!("{}: cannot be compared", comparison.tensor)));
    }
    let mut is_pad = vec![true; words.len()];
    let mut unwritten = 0;
    spec.for_each(|logical, physical| {
        is_pad[physical] = false;
        unwritten += usize::from(words[physical] == POISON);
        let mut want = expected[logical];
        if let Some(prior) = prior {
            want += Tracked::from_f64(f64::from(prior[logical]));
        }
        let limit = 8.0 * want.rms() + ROUNDING * want.to_f64().abs() + 1e-37;
        comparison.compare(logical, f64::from(f32::from_bits(words[physical])), want.to_f64(), limit);
    });
    if unwritten > 0 {
        comparison.add_fault(format!("{unwritten} of {} elements were never written", spec.len()));
    }
    // Of either sign, because a driver may omit an addition to zero.
    let is_zero = |word: u32| f32::from_bits(word) == 0.0;
    let mut pads = words.iter().zip(&is_pad).enumerate().filter(|(_, (word, is_pad))| **is_pad && !is_zero(**word));
    if let Some((at, (word, _))) = pads.next() {
        let value = f32::from_bits(*word);
        comparison.add_fault(format!("padding is not zero: {value:e} at float {at}, {} more", pads.count()));
    }
    Ok(())
}

/// Compiles a pass with the edits of `patch`, which must apply.
fn compiled(
    gpu: &Gpu,
    op: &dyn Op,
    pass: &Pass,
    lowered: &Lowered,
    patch: Option<&Patch<'_>>,
    allocate: impl FnMut(Bind, usize) -> Result<wgpu::Buffer>,
) -> Result<PassProgram> {
    let Some(patch) = patch else { return PassProgram::new(gpu, op, pass, lowered, None, allocate) };
    let found = AtomicBool::new(false);
    let rewrite = |kernel: &Kernel, wgsl: String| {
        if (kernel.name, kernel.variant) != (patch.kernel, patch.variant) {
            return Ok(wgsl);
        }
        found.store(true, Ordering::Relaxed);
        patch.edits.iter().try_fold(wgsl, |wgsl, (find, replace)| {
            if !wgsl.contains(find) {
                return Err(Error::bug(format!("{}/{} does not contain `{find}`", kernel.name, kernel.variant)));
            }
            Ok(wgsl.replace(find, replace))
        })
    };
    let program = PassProgram::new(gpu, op, pass, lowered, Some(&rewrite), allocate)?;
    if found.into_inner() {
        Ok(program)
    } else {
        Err(Error::bug(format!("no dispatch runs {}/{}", patch.kernel, patch.variant)))
    }
}
