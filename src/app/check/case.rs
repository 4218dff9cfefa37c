//! A check case with its values and the results that the reference expects.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_distr::{Distribution as _, StandardNormal, Uniform};

use crate::error::{Error, Result};
use crate::runtime::exec::cpu::Precision;
use crate::runtime::op::{Arg, Case, Distribution, Init, Op, Operand, Pass, Role, grad, spec_of};
use crate::runtime::tensor::real::{Real, Tracked};
use crate::runtime::tensor::rng::{Stream, stream};
use crate::runtime::tensor::{Layout, Spec};

/// A check case with its random values, which are drawn on first use and shared by the checks of the case.
#[derive(Debug)]
pub struct PreparedCase {
    /// The operation and the distributions of its operands.
    pub case: Case,
    data: Mutex<CaseData>,
}

#[derive(Debug, Default)]
pub(super) struct CaseData {
    /// Operands and gradients, as uploaded to the device.
    pub(super) values: Values<f32>,
    /// Results of the reference by pass.
    expected: BTreeMap<&'static str, Arc<Written<Tracked>>>,
}

/// Values in logical order by operand or gradient.
pub(super) type Values<T> = BTreeMap<Arg, Vec<T>>;
/// The tensors that a pass wrote, then those that it updated.
pub(super) type Written<T> = Vec<(Arg, Vec<T>)>;

/// Seed of all random values.
pub(super) const SEED: u64 = 0x5eed;

impl PreparedCase {
    /// Creates the case without drawing values.
    #[must_use]
    pub fn new(case: Case) -> Self {
        Self { case, data: Mutex::default() }
    }

    /// Locks the values; a panic elsewhere leaves them valid.
    pub(super) fn data(&self) -> MutexGuard<'_, CaseData> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn op(&self) -> &dyn Op {
        &*self.case.op
    }

    /// Draws all values that are not computed: inputs, parameters, states, and the gradients of the outputs.
    pub(super) fn draw(&self) -> Result<Values<f32>> {
        let mut values = Values::new();
        for (i, operand) in self.op().operands().into_iter().enumerate() {
            let computed = matches!(operand.role, Role::Output | Role::Saved);
            match self.case.fill_of(operand.name) {
                Some(Distribution::Computed) => {}
                None if computed => {}
                fill => {
                    values.insert(Arg::Operand(operand.name), operand_values(&operand, fill, i as u64)?);
                }
            }
            if operand.role == Role::Output {
                values.insert(grad(operand.name), operand_values(&operand, None, GRADIENTS + i as u64)?);
            }
        }
        Ok(values)
    }

    /// Returns what `pass` must write. Computes its inputs first, rounded to single precision.
    pub(super) fn expected(&self, data: &mut CaseData, pass: &Pass) -> Result<Arc<Written<Tracked>>> {
        if let Some(known) = data.expected.get(pass.name) {
            return Ok(Arc::clone(known));
        }
        if data.values.is_empty() {
            data.values = self.draw()?;
        }
        for arg in &pass.reads {
            if !data.values.contains_key(arg) {
                for (arg, written) in self.expected(data, &self.producer(*arg, pass)?)?.iter() {
                    let rounded = written.iter().map(|v| v.to_f64() as f32).collect();
                    data.values.entry(*arg).or_insert(rounded);
                }
            }
        }
        let exact = |v: &f32| Tracked::from_f64(f64::from(*v));
        let touched = pass.reads.iter().chain(&pass.updates);
        let values = touched
            .filter_map(|arg| data.values.get_key_value(arg))
            .map(|(arg, values)| (*arg, values.iter().map(exact).collect()))
            .collect();
        let written = Arc::new(run(self.op(), pass, &values)?);
        data.expected.insert(pass.name, Arc::clone(&written));
        Ok(written)
    }

    /// Returns the pass before `reader` that computes `arg`.
    fn producer(&self, arg: Arg, reader: &Pass) -> Result<Pass> {
        let passes = self.op().passes();
        let producer = passes.iter().take_while(|pass| *pass != reader).find(|pass| pass.writes.contains(&arg));
        producer.cloned().ok_or_else(|| Error::bug(format!("{}: nothing computes `{arg}`", self.op().kind())))
    }
}

/// Streams of random numbers: operands from 0, gradients of outputs from 1000, previous values of accumulated tensors from 2000.
const GRADIENTS: u64 = 1000;
pub(super) const PRIORS: u64 = 2000;

fn operand_values(operand: &Operand, fill: Option<Distribution>, index: u64) -> Result<Vec<f32>> {
    let scale = match operand.role {
        Role::Param(Init::FanIn(fan_in)) => 1.0 / (fan_in.max(1) as f32).sqrt(),
        _ => 1.0,
    };
    random_values(operand.spec, fill, scale, index)
}

/// Draws the values of a tensor.
pub(super) fn random_values(spec: Spec, fill: Option<Distribution>, scale: f32, index: u64) -> Result<Vec<f32>> {
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

/// Runs the reference of a pass and returns its writes, then its updates.
pub(super) fn run<T: Precision>(op: &dyn Op, pass: &Pass, values: &Values<T>) -> Result<Written<T>> {
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
