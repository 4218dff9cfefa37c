//! Comparison of the reference's gradients with finite differences.

use crate::app::check::case::{PreparedCase, SEED, Values, run};
use crate::app::check::comparison::Comparison;
use crate::error::{Error, Result};
use crate::runtime::op::{Arg, Op, Operand, Pass, Role, grad};
use crate::runtime::tensor::rng::{Stream, stream, uniforms};

/// Largest number of elements per tensor to differentiate, and largest work per tensor in floating-point operations.
const DIFFERENCES: usize = 200;
const DIFFERENCES_FLOP: f64 = 1e9;
/// Stream of random numbers that chooses the elements.
const SAMPLES: u64 = 3000;

impl PreparedCase {
    /// Compares every gradient of the reference, computed or aliased, with central differences of its forward pass.
    ///
    /// # Errors
    /// [`Error::Bug`] for an operation with contradictory passes, and those of its reference.
    pub fn finite_differences(&self) -> Result<Vec<Comparison>> {
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
        // An operation that saves gradients as operands is a loss: only the first element of its first output counts.
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
        let mut comparisons = Vec::new();
        for operand in operands.iter().filter(|o| matches!(o.role, Role::Input | Role::Param(_))) {
            let gradient = grad(operand.name);
            let alias = passes.aliases.iter().find(|(aliased, _)| *aliased == gradient).map(|(_, source)| *source);
            let computed = values.get(&alias.unwrap_or(gradient)).cloned();
            let computed = computed.ok_or_else(|| Error::bug(format!("{}: no pass writes `{gradient}`", op.kind())))?;
            comparisons.push(differences(op, &passes.forward, &mut values, &weights, operand, &computed, samples)?);
        }
        Ok(comparisons)
    }
}

/// Compares `gradient` with central differences of the weighted sum of all outputs.
fn differences(
    op: &dyn Op,
    forward: &Pass,
    values: &mut Values<f64>,
    weights: &Values<f64>,
    operand: &Operand,
    gradient: &[f64],
    samples: usize,
) -> Result<Comparison> {
    let arg = Arg::Operand(operand.name);
    let mut comparison = Comparison::new(grad(operand.name).to_string());
    let len = gradient.len();
    let chosen: Vec<usize> = if len <= samples {
        (0..len).collect()
    } else {
        let draws = uniforms(&mut stream(SEED, Stream::Check, SAMPLES), samples, 0.5)?;
        draws.into_iter().map(|u| ((f64::from(u) + 0.5) * len as f64) as usize).map(|i| i.min(len - 1)).collect()
    };
    // Sum the weighted differences of single outputs instead of subtracting sums, so that unchanged outputs add no rounding error.
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
        restore(values, arg, i, x);
        let mut difference = 0.0;
        for ((name, above), (_, below)) in above.iter().zip(&below) {
            if let Some(weights) = weights.get(name) {
                difference += above.iter().zip(below).zip(weights).map(|((a, b), w)| w * (a - b)).sum::<f64>();
            }
        }
        let slope = difference / ((x + step) - (x - step));
        let got = gradient.get(i).copied().unwrap_or(f64::NAN);
        comparison.compare(i, got, slope, 1e-6 * slope.abs() + 1e-9 * scale);
    }
    Ok(comparison)
}

fn restore(values: &mut Values<f64>, arg: Arg, i: usize, x: f64) {
    if let Some(value) = values.get_mut(&arg).and_then(|v| v.get_mut(i)) {
        *value = x;
    }
}
