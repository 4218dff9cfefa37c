//! Checks of operations: gradients against finite differences, kernels against the reference.
//!
//! Two links, each tight. The reference's backward passes are compared with central differences of its forward pass, both in
//! `f64`. Every kernel in every variant is compared with the reference computed in [`Tracked`] numbers, which say how large the
//! rounding error of each single element may be. Numbers are random and so are upstream gradients: ramps hide swapped
//! axes, and a gradient of all ones has no effect through a batch norm.
//!
//! A comparison that should fail must not be able to pass: outputs and scratch start as NaN of a pattern that is looked for
//! afterwards, every buffer has a guarded margin behind its tensor, padding must come out as zero, and `!(error <= limit)` is
//! what fails. `tests/gpu/mutants.rs` breaks kernels on purpose ([`Patch`]) and asks for red.
//!
//! [`bisect`] is for what no single kernel shows: it finds the first tensor of a whole training step that comes out wrong.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rand_distr::{Distribution as _, StandardNormal, Uniform};
use serde::Serialize;

use crate::error::{Error, Result};
use crate::runtime::exec::cpu::Precision;
use crate::runtime::exec::entry::PassProgram;
use crate::runtime::gpu::{Gpu, wgpu};
use crate::runtime::kernel::{Bind, Kernel, Lowered, Profile};
use crate::runtime::op::{Arg, Case, Distribution, Init, OPS, Op, OpInfo, Operand, Pass, Role, Target, grad, spec_of};
use crate::runtime::tensor::real::{ROUNDING, Real, Tracked};
use crate::runtime::tensor::rng::{Stream, stream, uniforms};
use crate::runtime::tensor::shape::{Layout, Spec};

mod bisect;

pub use bisect::{Distance, bisect};

/// Outcome for one tensor.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// Operand or gradient; `+=` behind it where the pass accumulated.
    pub tensor: String,
    /// Logical index of the element that used most of its limit.
    pub index: usize,
    /// The number there.
    pub got: f64,
    /// What it should be.
    pub want: f64,
    /// Their distance.
    pub error: f64,
    /// The largest distance allowed.
    pub limit: f64,
    /// Percent of the limit used; infinite for a NaN, NaN where nothing was compared.
    pub share: f64,
    /// What else is wrong: elements never written, padding that is not zero, writes behind the tensor.
    pub fault: Option<String>,
}

impl Line {
    fn new(tensor: String) -> Self {
        Self { tensor, index: 0, got: 0.0, want: 0.0, error: 0.0, limit: 0.0, share: f64::NAN, fault: None }
    }

    /// Takes in an element; the worst one stays.
    fn compare(&mut self, index: usize, got: f64, want: f64, limit: f64) {
        let error = (got - want).abs();
        let share = match error / limit * 100.0 {
            _ if error == 0.0 && limit >= 0.0 => 0.0,
            share if share.is_nan() => f64::INFINITY,
            share => share,
        };
        if self.share.is_nan() || share > self.share {
            let tensor = std::mem::take(&mut self.tensor);
            *self = Self { tensor, index, got, want, error, limit, share, fault: self.fault.take() };
        }
    }

    fn faulty(&mut self, fault: impl Into<String>) {
        self.fault.get_or_insert(fault.into());
    }

    /// Whether every element kept its limit and nothing else was wrong.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.fault.is_none() && self.share <= 100.0
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tensor, index, got, want, error, limit, share, fault } = self;
        let verdict = if self.passed() { "ok" } else { "FAILED" };
        write!(f, "{verdict:6} {tensor}[{index}]: got {got:.9e}, want {want:.9e}, error {error:.2e}, ")?;
        write!(f, "limit {limit:.2e}, ")?;
        match share {
            0.0..1e4 => write!(f, "{share:.0} % used")?,
            _ => f.write_str("far over")?,
        }
        fault.as_ref().map_or(Ok(()), |fault| write!(f, "; {fault}"))
    }
}

/// What came of a check.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum Outcome {
    /// A line for each tensor, never none.
    Ran(Vec<Line>),
    /// The device lacks what the kernel needs.
    NotApplicable(String),
}

/// Edits of a kernel's expanded WGSL, to see that the checks notice.
#[derive(Clone, Copy, Debug)]
pub struct Patch<'a> {
    /// [`Kernel::name`].
    pub kernel: &'a str,
    /// [`Kernel::variant`].
    pub variant: &'a str,
    /// Texts to be replaced one after the other, wherever they stand, and what to put there; the absence of one is an error.
    pub edits: &'a [(&'a str, &'a str)],
}

/// A case with its numbers, drawn when they are first asked for, and kept for the other checks of the case.
#[derive(Debug)]
pub struct Subject {
    /// The operation and how to fill its operands.
    pub case: Case,
    numbers: Mutex<Numbers>,
}

#[derive(Debug, Default)]
struct Numbers {
    /// Operands and gradients as the device gets them.
    values: Values<f32>,
    expected: BTreeMap<&'static str, Arc<Written<Tracked>>>,
}

/// Numbers in logical order, by operand or gradient.
type Values<T> = BTreeMap<Arg, Vec<T>>;
/// What a pass wrote and then updated.
type Written<T> = Vec<(Arg, Vec<T>)>;

/// All checks draw from this seed.
const SEED: u64 = 0x5eed;

impl Subject {
    /// For a case; draws nothing yet.
    #[must_use]
    pub fn new(case: Case) -> Self {
        Self { case, numbers: Mutex::default() }
    }

    fn op(&self) -> &dyn Op {
        &*self.case.op
    }

    /// Values of everything that is not computed: inputs, parameters, state, and the gradients of the outputs.
    fn draw(&self) -> Result<Values<f32>> {
        let mut values = Values::new();
        for (i, operand) in self.op().operands().into_iter().enumerate() {
            let computed = matches!(operand.role, Role::Output | Role::Saved);
            match self.case.fill_of(operand.name) {
                Some(Distribution::Computed) => {}
                None if computed => {}
                fill => {
                    values.insert(Arg::Operand(operand.name), numbers(&operand, fill, i as u64)?);
                }
            }
            if operand.role == Role::Output {
                values.insert(grad(operand.name), numbers(&operand, None, GRADIENTS + i as u64)?);
            }
        }
        Ok(values)
    }

    /// What `pass` must write. Computes what it reads beforehand, rounded to single precision on the way.
    fn expected(&self, numbers: &mut Numbers, pass: &Pass) -> Result<Arc<Written<Tracked>>> {
        if let Some(known) = numbers.expected.get(pass.name) {
            return Ok(Arc::clone(known));
        }
        if numbers.values.is_empty() {
            numbers.values = self.draw()?;
        }
        for arg in &pass.reads {
            if !numbers.values.contains_key(arg) {
                for (arg, written) in self.expected(numbers, &self.producer(*arg, pass)?)?.iter() {
                    let rounded = written.iter().map(|v| v.to_f64() as f32).collect();
                    numbers.values.entry(*arg).or_insert(rounded);
                }
            }
        }
        let exact = |v: &f32| Tracked::from_f64(f64::from(*v));
        let touched = pass.reads.iter().chain(&pass.updates);
        let values = touched
            .filter_map(|arg| numbers.values.get_key_value(arg))
            .map(|(arg, values)| (*arg, values.iter().map(exact).collect()))
            .collect();
        let written = Arc::new(run(self.op(), pass, &values)?);
        numbers.expected.insert(pass.name, Arc::clone(&written));
        Ok(written)
    }

    /// The pass before `reader` that computes `arg`.
    fn producer(&self, arg: Arg, reader: &Pass) -> Result<Pass> {
        let passes = self.op().passes();
        let producer = passes.iter().take_while(|pass| *pass != reader).find(|pass| pass.writes.contains(&arg));
        producer.cloned().ok_or_else(|| Error::bug(format!("{}: nothing computes `{arg}`", self.op().kind())))
    }

    /// Compares every gradient of the reference, computed by passes or aliased, with central differences of its forward pass.
    pub fn finite_differences(&self) -> Result<Vec<Line>> {
        let op = self.op();
        let passes = op.passes();
        let mut values: Values<f64> =
            self.draw()?.into_iter().map(|(arg, v)| (arg, v.into_iter().map(f64::from).collect())).collect();
        for (arg, written) in run(op, &passes.forward, &values)? {
            values.entry(arg).or_insert(written);
        }
        for pass in &passes.backward {
            values.extend(run(op, pass, &values)?);
        }

        let operands = op.operands();
        // An operation that saves gradients as operands is a loss: its first output counts once.
        let is_loss = passes.aliases.iter().any(|(_, source)| !source.is_grad());
        let mut weights = Values::new();
        for output in operands.iter().filter(|o| o.role == Role::Output) {
            let upstream = match (is_loss, weights.is_empty()) {
                (false, _) => values.get(&grad(output.name)).cloned().unwrap_or_default(),
                (true, first) => {
                    let mut upstream = vec![0.0; output.spec.len()];
                    if let (true, Some(weight)) = (first, upstream.first_mut()) {
                        *weight = 1.0;
                    }
                    upstream
                }
            };
            weights.insert(Arg::Operand(output.name), upstream);
        }

        let samples = (DIFFERENCES_FLOP / (2.0 * op.cost(&passes.forward)?.flop.max(1.0))) as usize;
        let samples = samples.clamp(8, DIFFERENCES);
        let mut lines = Vec::new();
        for operand in operands.iter().filter(|o| matches!(o.role, Role::Input | Role::Param(_))) {
            let gradient = grad(operand.name);
            let alias = passes.aliases.iter().find(|(aliased, _)| *aliased == gradient).map(|(_, source)| *source);
            let computed = values.get(&alias.unwrap_or(gradient)).cloned();
            let computed = computed.ok_or_else(|| Error::bug(format!("{}: no pass writes `{gradient}`", op.kind())))?;
            lines.push(differences(op, &passes.forward, &mut values, &weights, operand, &computed, samples)?);
        }
        Ok(lines)
    }

    /// Runs `pass` in `variant` on a device and compares all that it writes with the reference: storing, and for gradients
    /// accumulating too, in all writes and in every second one.
    pub fn gpu_vs_reference(&self, gpu: &Gpu, pass: &str, variant: &str, patch: Option<&Patch<'_>>) -> Result<Outcome> {
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
        let mut lines = Vec::new();
        for accumulate in patterns {
            match self.run_on(gpu, pass, variant, &accumulate, patch)? {
                Outcome::Ran(more) => lines.extend(more),
                other => return Ok(other),
            }
        }
        Ok(Outcome::Ran(lines))
    }

    fn run_on(
        &self,
        gpu: &Gpu,
        pass: &Pass,
        variant: &str,
        accumulate: &[bool],
        patch: Option<&Patch<'_>>,
    ) -> Result<Outcome> {
        let op = self.op();
        let lowered = match op.lower(pass.name, &Target { profile: gpu.profile(), variant: Some(variant), accumulate })
        {
            Err(lacking @ Error::Unsupported { .. }) => return Ok(Outcome::NotApplicable(lacking.to_string())),
            lowered => lowered?,
        };
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let expected = self.expected(&mut numbers, pass)?;
        let mut priors: BTreeMap<Arg, Vec<f32>> = BTreeMap::new();
        for (i, &arg) in pass.writes.iter().enumerate() {
            if accumulate.get(i) == Some(&true) {
                priors.insert(arg, numbers_of(spec_of(op, arg)?, None, 1.0, PRIORS + i as u64)?);
            }
        }
        let mut guards: Vec<(Bind, Guard)> = Vec::new();
        let allocate = |bind: Bind, bytes: usize| {
            let label = match bind {
                Bind::Arg(arg) => arg.to_string(),
                Bind::Scratch(i) => format!("scratch {i}"),
            };
            let contents = match bind {
                Bind::Arg(arg) if priors.contains_key(&arg) => spec_of(op, arg)?.pack(&priors[&arg])?,
                Bind::Arg(arg) if !pass.writes.contains(&arg) => {
                    let missing = || Error::bug(format!("`{arg}` has no values"));
                    spec_of(op, arg)?.pack(numbers.values.get(&arg).ok_or_else(missing)?)?
                }
                _ => POISON.to_le_bytes().repeat(bytes.div_ceil(4)),
            };
            let (guard, buffer) = Guard::new(gpu, &label, &contents)?;
            guards.push((bind, guard));
            Ok(buffer)
        };
        let pass_program = compiled(gpu, op, pass, &lowered, patch, allocate)?;
        drop(numbers);
        pass_program.program().submit(gpu)?;

        let mut lines = Vec::new();
        for (arg, expected) in expected.iter() {
            let prior = priors.get(arg);
            let mut line = Line::new(format!("{arg}{}", if prior.is_some() { " +=" } else { "" }));
            let bind = Bind::Arg(*arg);
            let guard = guards.iter().find(|(known, _)| *known == bind);
            let (_, guard) = guard.ok_or_else(|| Error::bug(format!("`{arg}` has no buffer")))?;
            let words = guard.read(gpu, pass_program.buffer(bind)?, &mut line)?;
            compare(&mut line, spec_of(op, *arg)?, expected, prior, &words)?;
            lines.push(line);
        }
        for (bind, guard) in &guards {
            let Bind::Scratch(i) = bind else { continue };
            let mut line = Line::new(format!("scratch {i}"));
            guard.read(gpu, pass_program.buffer(*bind)?, &mut line)?;
            if line.fault.is_some() {
                lines.push(line);
            }
        }
        if lines.is_empty() {
            return Err(Error::bug(format!("{}.{} writes nothing", op.kind(), pass.name)));
        }
        Ok(Outcome::Ran(lines))
    }
}

/// Streams of random numbers: operands from 0, gradients of outputs, and what is accumulated into.
const GRADIENTS: u64 = 1000;
const PRIORS: u64 = 2000;
const SAMPLES: u64 = 3000;

/// The most elements of a tensor that are differentiated, and the most work that goes into a tensor.
const DIFFERENCES: usize = 200;
const DIFFERENCES_FLOP: f64 = 1e9;

fn numbers(operand: &Operand, fill: Option<Distribution>, index: u64) -> Result<Vec<f32>> {
    let scale = match operand.role {
        Role::Param(Init::FanIn(fan_in)) => 1.0 / (fan_in.max(1) as f32).sqrt(),
        _ => 1.0,
    };
    numbers_of(operand.spec, fill, scale, index)
}

fn numbers_of(spec: Spec, fill: Option<Distribution>, scale: f32, index: u64) -> Result<Vec<f32>> {
    let mut rng = stream(SEED, Stream::Check, index);
    let len = spec.len();
    let mut normal = || -> f32 { StandardNormal.sample(&mut rng) };
    let fill = fill.unwrap_or(if spec.layout == Layout::Bytes {
        Distribution::Bytes
    } else {
        Distribution::Normal(0.0, scale)
    });
    Ok(match fill {
        Distribution::Normal(mean, deviation) => (0..len).map(|_| mean + deviation * normal()).collect(),
        Distribution::AwayFromZero(gap) => {
            let away = |v: f32| if v.abs() < gap { v + gap.copysign(v) } else { v };
            (0..len).map(|_| away(normal())).collect()
        }
        Distribution::Uniform(from, to) => {
            let range = Uniform::new(from, to).map_err(|e| Error::bug(format!("fill {from}..{to}: {e}")))?;
            (0..len).map(|_| range.sample(&mut rng)).collect()
        }
        Distribution::Bytes => {
            let range = Uniform::new(0u16, 256).map_err(Error::bug)?;
            (0..len).map(|_| f32::from(range.sample(&mut rng))).collect()
        }
        Distribution::Constant(value) => vec![value; len],
        Distribution::Values(values) => values.iter().copied().cycle().take(len).collect(),
        Distribution::Computed => return Err(Error::bug("a computed operand cannot be drawn")),
    })
}

/// Runs the reference of a pass; gives its writes, then its updates.
fn run<T: Precision>(op: &dyn Op, pass: &Pass, values: &Values<T>) -> Result<Written<T>> {
    let get = |arg: &Arg| {
        let found = values.get(arg).ok_or_else(|| Error::bug(format!("{}: `{arg}` has no value", op.kind())));
        found.map(Vec::as_slice)
    };
    let reads = pass.reads.iter().map(get).collect::<Result<Vec<_>>>()?;
    let mut written: Written<T> = Vec::new();
    for arg in &pass.writes {
        written.push((*arg, vec![T::zero(); spec_of(op, *arg)?.len()]));
    }
    for arg in &pass.updates {
        written.push((*arg, get(arg)?.to_vec()));
    }
    let mut writes: Vec<&mut [T]> = written.iter_mut().map(|(_, v)| v.as_mut_slice()).collect();
    T::reference(op, pass.name, &reads, &mut writes)?;
    Ok(written)
}

/// Compares `gradient` with central differences of the sum of weight * output over all outputs.
fn differences(
    op: &dyn Op,
    forward: &Pass,
    values: &mut Values<f64>,
    weights: &Values<f64>,
    operand: &Operand,
    gradient: &[f64],
    samples: usize,
) -> Result<Line> {
    let arg = Arg::Operand(operand.name);
    let mut line = Line::new(grad(operand.name).to_string());
    let len = gradient.len();
    let chosen: Vec<usize> = if len <= samples {
        (0..len).collect()
    } else {
        let draws = uniforms(&mut stream(SEED, Stream::Check, SAMPLES), samples, 0.5)?;
        draws.into_iter().map(|u| ((f64::from(u) + 0.5) * len as f64) as usize).map(|i| i.min(len - 1)).collect()
    };
    // The differences of single outputs are weighted and summed, rather than sums subtracted: outputs that do not move
    // contribute no rounding error.
    let largest = |v: &[f64]| v.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    let reach: f64 = weights.iter().map(|(name, w)| largest(w) * values.get(name).map_or(0.0, |y| largest(y))).sum();
    let scale = largest(gradient).max(reach);
    let missing = || Error::bug(format!("`{}` has no value", operand.name));
    for i in chosen {
        let x = *values.get(&arg).and_then(|v| v.get(i)).ok_or_else(missing)?;
        let step = 6e-6 * x.abs().max(1.0);
        let mut at = |x: f64| {
            *values.get_mut(&arg).and_then(|v| v.get_mut(i)).ok_or_else(missing)? = x;
            run(op, forward, values)
        };
        let (above, below) = (at(x + step)?, at(x - step)?);
        at_rest(values, arg, i, x);
        let mut difference = 0.0;
        for ((name, above), (_, below)) in above.iter().zip(&below) {
            if let Some(weights) = weights.get(name) {
                difference += above.iter().zip(below).zip(weights).map(|((a, b), w)| w * (a - b)).sum::<f64>();
            }
        }
        let slope = difference / ((x + step) - (x - step));
        let got = gradient.get(i).copied().unwrap_or(f64::NAN);
        line.compare(i, got, slope, 1e-6 * slope.abs() + 1e-9 * scale);
    }
    Ok(line)
}

fn at_rest(values: &mut Values<f64>, arg: Arg, i: usize, x: f64) {
    if let Some(value) = values.get_mut(&arg).and_then(|v| v.get_mut(i)) {
        *value = x;
    }
}

/// A quiet NaN that no arithmetic produces: what outputs and scratch hold beforehand.
const POISON: u32 = 0x7fc0_dead;
/// Others, behind every tensor: reading them shows in the result, writing shows in the margin. Each buffer has its own, so
/// that what is copied from margin to margin shows too.
const SENTINEL: u32 = 0x7fc5_a500;
const MARGIN: usize = 256;

/// The margin behind a tensor in its buffer. Kernels are bound to both.
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
    fn read(&self, gpu: &Gpu, buffer: &wgpu::Buffer, line: &mut Line) -> Result<Vec<u32>> {
        let mut words: Vec<u32> = bytemuck::pod_collect_to_vec(&gpu.read(buffer, 0, buffer.size())?);
        let margin = words.split_off(self.bytes / 4);
        if let Some(at) = margin.iter().position(|&word| word != self.sentinel) {
            line.faulty(format!("the memory behind the tensor was written, {} bytes behind its end", 4 * at));
        }
        Ok(words)
    }
}

/// Compares device words with the reference.
fn compare(line: &mut Line, spec: Spec, expected: &[Tracked], prior: Option<&Vec<f32>>, words: &[u32]) -> Result<()> {
    if spec.layout == Layout::Bytes || expected.len() != spec.len() || words.len() * 4 != spec.device_bytes() {
        return Err(Error::bug(format!("{}: cannot be compared", line.tensor)));
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
        line.compare(logical, f64::from(f32::from_bits(words[physical])), want.to_f64(), limit);
    });
    if unwritten > 0 {
        line.faulty(format!("{unwritten} of {} elements were never written", spec.len()));
    }
    // Of either sign: a driver may leave out adding to zero.
    let is_zero = |word: u32| f32::from_bits(word) == 0.0;
    let mut pads = words.iter().zip(&is_pad).enumerate().filter(|(_, (word, is_pad))| **is_pad && !is_zero(**word));
    if let Some((at, (word, _))) = pads.next() {
        let value = f32::from_bits(*word);
        line.faulty(format!("padding is not zero: {value:e} at float {at}, {} more", pads.count()));
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
                return Err(Error::bug(format!("{}/{} has no text `{find}`", kernel.name, kernel.variant)));
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

/// One check of the table of operations.
#[derive(Clone, Debug)]
pub struct Check {
    /// Operation.
    pub family: &'static str,
    /// The case, shared by its checks.
    pub subject: Arc<Subject>,
    /// What is compared.
    pub kind: Kind,
}

/// What a check compares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The reference's gradients with finite differences.
    FiniteDifferences,
    /// A kernel with the reference.
    Gpu {
        /// Pass of the operation.
        pass: &'static str,
        /// Variant of the pass.
        variant: &'static str,
    },
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/", self.family, self.subject.case.name)?;
        match &self.kind {
            Kind::FiniteDifferences => f.write_str("finite_differences"),
            Kind::Gpu { pass, variant } => write!(f, "{pass}/{variant}"),
        }
    }
}

impl Check {
    /// Whether a device is needed.
    #[must_use]
    pub fn needs_gpu(&self) -> bool {
        self.kind != Kind::FiniteDifferences
    }

    /// Why the check cannot run on a device of this profile, if so.
    pub fn not_applicable(&self, profile: &Profile) -> Result<Option<String>> {
        let Kind::Gpu { pass, variant } = self.kind else { return Ok(None) };
        let target = Target { profile, variant: Some(variant), accumulate: &[] };
        match self.subject.op().lower(pass, &target) {
            Err(lacking @ Error::Unsupported { .. }) => Ok(Some(lacking.to_string())),
            lowered => lowered.map(|_| None),
        }
    }

    /// Runs the check; one that needs a device is not applicable without.
    pub fn run(&self, gpu: Option<&Gpu>) -> Result<Outcome> {
        match (&self.kind, gpu) {
            (Kind::FiniteDifferences, _) => self.subject.finite_differences().map(Outcome::Ran),
            (Kind::Gpu { .. }, None) => Ok(Outcome::NotApplicable("there is no device".into())),
            (Kind::Gpu { pass, variant }, Some(gpu)) => self.subject.gpu_vs_reference(gpu, pass, variant, None),
        }
    }
}

/// All checks of all operations: for each case, finite differences where they apply, and every pass in every variant.
pub fn suite() -> Result<Vec<Check>> {
    let mut checks = Vec::new();
    for family in OPS {
        for case in (family.cases)()? {
            checks.extend(checks_of(family, case));
        }
    }
    Ok(checks)
}

fn checks_of(family: &OpInfo, case: Case) -> Vec<Check> {
    let passes = case.op.passes();
    let mut kinds = Vec::new();
    if case.differentiable && !(passes.backward.is_empty() && passes.aliases.is_empty()) {
        kinds.push(Kind::FiniteDifferences);
    }
    for pass in passes.iter() {
        let variants = case.op.variants(pass.name).iter();
        kinds.extend(variants.map(|&variant| Kind::Gpu { pass: pass.name, variant }));
    }
    let subject = Arc::new(Subject::new(case));
    kinds.into_iter().map(|kind| Check { family: family.name, subject: Arc::clone(&subject), kind }).collect()
}
