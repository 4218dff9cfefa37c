//! Finds the first wrong tensor of a training step.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::app::check::case::{SEED, Values, random_values, run};
use crate::error::{Error, Result};
use crate::runtime::exec::{Data, Executor, GpuExecutor};
use crate::runtime::gpu::Gpu;
use crate::runtime::graph::{Arena, Storage, ValueId, initial};
use crate::runtime::op::{Pass, StepScalars, grad, operand};
use crate::runtime::plan;
use crate::runtime::tensor::Spec;
use crate::runtime::tensor::real::{ROUNDING, Real, Tracked};
use crate::vae::model::{Mode, VaeConfig};

/// Distance between device and reference at one tensor of a training step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distance {
    /// The node that reads or writes the tensor.
    pub node: String,
    /// Name of the tensor.
    pub tensor: String,
    /// Euclidean distance from the expected values.
    pub distance: f64,
    /// Largest allowed distance.
    pub limit: f64,
    /// Another fault: an input was overwritten after its node wrote it.
    pub fault: Option<String>,
}

impl Distance {
    /// Returns whether device and reference agree.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.fault.is_none() && self.distance <= self.limit
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, tensor, distance, limit, fault } = self;
        write!(f, "{tensor} of {node}: distance {distance:.2e}, limit {limit:.2e}")?;
        fault.as_ref().map_or(Ok(()), |fault| write!(f, "; {fault}"))
    }
}

/// Runs a training step of `config` on the device, node by node, and returns the distance of every written tensor, in order.
///
/// Each node is compared with the reference on the device's own inputs, so the first tensor that has not [`passed`](Distance::passed) is
/// the source of the error. The inputs must be bit-identical to what earlier nodes wrote. Tensors are compared as a whole: if an activation
/// is within rounding of a ReLU's kink, an element of a gradient may be zero on one side only. The limit allows for two such elements.
///
/// # Errors
/// Those of building the graph and of the device.
pub fn bisect(gpu: &Arc<Gpu>, config: &VaeConfig, batch: usize, options: &plan::Options) -> Result<Vec<Distance>> {
    let graph = config.graph(batch, Mode::Train)?;
    // A node alone computes all that it writes.
    let options = plan::Options { join_sums: false, ..options.clone() };
    let mut exec = GpuExecutor::new(Arc::clone(gpu), &options)?;
    let program = exec.add(graph.clone())?;
    for arena in [Arena::Params, Arena::States] {
        exec.upload(arena, &initial(&graph, arena, SEED)?)?;
    }
    let images = random_values(Spec::bytes(config.images(batch)), None, 1.0, 0)?;
    let eps = random_values(Spec::flat(batch * config.latent_dim), None, 1.0, 1)?;
    let adam = graph.optimizer().ok_or_else(|| Error::bug("a training graph has no optimizer"))?;
    let (bias_correction1, bias_correction2) = adam.bias_corrections(0);
    let scalars = StepScalars { lr: 1e-3, bias_correction1, bias_correction2, weight_decay: 1e-2, clip: 1.0 };
    exec.write(exec.input(program, "images")?, Data::F32(&images))?;
    exec.write(exec.input(program, "eps")?, Data::F32(&eps))?;
    exec.write(exec.input(program, "objective")?, Data::F32(&[1.0, 0.0]))?;
    exec.write(exec.input(program, "hyperparams")?, Data::F32(&scalars.to_array()))?;

    let same = |a: &[f32], b: &[f32]| a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits()));
    let mut written: BTreeMap<ValueId, Vec<f32>> = BTreeMap::new();
    let mut distances = Vec::new();
    for (number, node) in graph.nodes().iter().enumerate() {
        let Pass { reads, writes, updates, .. } = &node.pass;
        // A gradient that depends on x, as that of a ReLU does, may have a kink.
        let has_kink = reads.contains(&operand("x")) && writes.contains(&grad("x"));
        let mut values = Values::new();
        let mut largest_gradient = 0.0f64;
        let (mut faults, mut priors) = (Vec::new(), Vec::new());
        for (arg, id) in reads.iter().chain(updates).zip(node.reads.iter().chain(&node.updates)) {
            let value = exec.value(program, *id)?;
            if written.get(id).is_some_and(|before| !same(before, &value)) {
                faults.push(graph.value(*id).name.clone());
            }
            if arg.is_grad() {
                largest_gradient = value.iter().fold(largest_gradient, |max, v| max.max(f64::from(v.abs())));
            }
            values.insert(*arg, value.iter().map(|v| Tracked::from_f64(f64::from(*v))).collect());
        }
        for (id, accumulate) in node.writes.iter().zip(&node.accumulate) {
            priors.push(if *accumulate { exec.value(program, *id)? } else { Vec::new() });
        }
        let expected = run(node.op.as_ref(), &node.pass, &values)?;
        exec.run_node(program, number)?;
        let ids = node.writes.iter().chain(&node.updates);
        let priors = priors.into_iter().chain(updates.iter().map(|_| Vec::new()));
        for (((arg, expected), id), prior) in expected.iter().zip(ids).zip(priors) {
            let got = exec.value(program, *id)?;
            let (mut distance, mut limit) = (0.0, 0.0);
            for (i, (got, want)) in got.iter().zip(expected).enumerate() {
                let prior = prior.get(i).map_or(Tracked::default(), |v| Tracked::from_f64(f64::from(*v)));
                let want = *want + prior;
                distance += (f64::from(*got) - want.to_f64()).powi(2);
                limit += (8.0 * want.rms() + ROUNDING * want.to_f64().abs()).powi(2);
            }
            let kinks = if has_kink && arg.is_grad() { 2.0 * largest_gradient } else { 0.0 };
            let fault = (!faults.is_empty()).then(|| format!("{} was overwritten before this node", faults.join(", ")));
            let complete = got.len() == expected.len();
            distances.push(Distance {
                node: node.label(),
                tensor: graph.value(*id).name.clone(),
                distance: if complete { f64::sqrt(distance) } else { f64::NAN },
                limit: f64::sqrt(limit) + kinks + 1e-37,
                fault,
            });
            if matches!(graph.value(*id).storage, Storage::Local) {
                written.insert(*id, got);
            }
        }
    }
    Ok(distances)
}
