//! The optimizer: appends AdamW to a graph with gradients.

use std::sync::Arc;

use crate::error::Result;
use crate::runtime::graph::{Arena, Graph, Storage, ValueId, by_name};
use crate::runtime::kernel::operand;
use crate::runtime::op::{Adam, AdamConfig, GradNorm, RestoreStates, StepScalars, spec_of};
use crate::runtime::tensor::Spec;

impl Graph {
    /// Returns the settings of the optimizer, if the graph has one.
    #[must_use]
    pub fn optimizer(&self) -> Option<AdamConfig> {
        self.nodes.iter().find_map(|node| node.op.downcast_ref::<Adam>()).map(Adam::config)
    }

    /// Appends the global gradient norm and an AdamW step over all parameters.
    ///
    /// `losses` are the loss terms, a flat tensor of four values. A step in which a loss term or a gradient is NaN or infinite
    /// changes nothing: parameters and moments keep their values, and running statistics return to those of the last applied step
    /// ([`Arena::SavedStates`]).
    ///
    /// The graph gets the input `hyperparams`, the [`StepScalars`] of the step, and the output `norm`: the gradient norm before
    /// clipping, then 1 if the step was applied and 0 if not.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`](crate::Error::InvalidArgument) for a graph without parameters or an invalid `config`.
    pub fn with_adam(mut self, config: AdamConfig, losses: ValueId) -> Result<Self> {
        let len = (self.arena_bytes(Arena::Params) / 4) as usize;
        let arenas = [Arena::Params, Arena::Grads, Arena::OptimizerState(0), Arena::OptimizerState(1)];
        let [params, grads, m, v] = arenas.map(|arena| self.whole(arena));
        let hyperparams = self.add_value("hyperparams".into(), Spec::flat(StepScalars::LEN), Storage::Input);
        self.inputs.insert("hyperparams".into(), hyperparams);
        let grad_norm = GradNorm::new(len)?;
        let norm = self.add_value("grad_norm.norm".into(), spec_of(&grad_norm, operand("norm"))?, Storage::Local);
        let operands = by_name([("grads", grads), ("terms", losses), ("norm", norm)]);
        self.push_forward("grad_norm", Arc::new(grad_norm), operands)?;
        let operands = by_name([
            ("grads", grads),
            ("norm", norm),
            ("hyperparams", hyperparams),
            ("params", params),
            ("m", m),
            ("v", v),
        ]);
        self.push_forward("adam", Arc::new(Adam::new(len, config)?), operands)?;
        if !self.states.is_empty() {
            let len = (self.arena_bytes(Arena::States) / 4) as usize;
            let (states, accepted) = (self.whole(Arena::States), self.whole(Arena::SavedStates));
            let operands = by_name([("norm", norm), ("states", states), ("accepted", accepted)]);
            self.push_forward("restore_states", Arc::new(RestoreStates::new(len)?), operands)?;
        }
        Ok(self.with_output("norm", norm))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::exec::{CpuExecutor, Data, Executor};
    use crate::runtime::graph::{Builder, Root, initial};
    use crate::runtime::op::Conv;
    use crate::runtime::tensor::Shape;

    #[test]
    fn any_graph_can_be_trained_and_skips_steps_that_are_not_finite() {
        let config = AdamConfig { beta1: 0.5, ..AdamConfig::default() };
        let mut b = Builder::new();
        let x = b.input("x", Spec::nhwc(Shape::new(1, 2, 1, 1))).unwrap();
        let y = b.apply("linear", &[x], |s| Conv::linear(s[0], Shape::vector(1))).unwrap();
        let dy = b.input("dy", Spec::nhwc(b.shape(y))).unwrap();
        let losses = b.input("losses", Spec::flat(4)).unwrap();
        let graph = b.build().with_gradients(&[Root::Seeded(y, dy)], &[]).unwrap();
        let graph = graph.with_adam(config, losses).unwrap();
        assert_eq!(graph.optimizer(), Some(config));

        let mut exec = CpuExecutor::<f64>::new();
        let params = initial(&graph, Arena::Params, 1).unwrap();
        let program = exec.add(graph).unwrap();
        exec.upload(Arena::Params, &params).unwrap();
        let (bias_correction1, bias_correction2) = config.bias_corrections(0);
        let step = StepScalars { lr: 0.1, bias_correction1, bias_correction2, ..StepScalars::default() };
        for (name, values) in [("x", &[1.0, 2.0][..]), ("dy", &[1.0]), ("hyperparams", &step.to_array())] {
            exec.write(exec.input(program, name).unwrap(), Data::F32(values)).unwrap();
        }
        for (loss, applied) in [(f32::NAN, false), (1.0, true)] {
            exec.write(exec.input(program, "losses").unwrap(), Data::F32(&[loss; 4])).unwrap();
            exec.run(program, &[]).unwrap();
            assert_eq!(exec.download(Arena::Params).unwrap() != params, applied, "loss {loss}");
            let flag = exec.read(exec.output(program, "norm").unwrap()).unwrap()[1];
            assert_eq!(flag == 1.0, applied, "loss {loss}");
        }
    }
}
