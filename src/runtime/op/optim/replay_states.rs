//! Repeats the updates of the running statistics in a step whose micro-batches ran in several processes.
//!
//! One process moves its running statistics in each micro-batch, after those before it. Several processes run theirs at the same time:
//! each only takes the statistics of its batches. Then all processes repeat the updates, in the order of the micro-batches.

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Dispatch, Kernel, Lowered, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "replay_states";

/// states = accepted, then states = (1 - momentum) * states + momentum * `statistics[m]` for each micro-batch m below `count`, in order.
///
/// `statistics`: flat, those of the batch of each micro-batch, of `most` at most. `count`: one value. `accepted`, `states`: flat buffers of
/// all running statistics, padding included.
#[derive(Clone, Copy, Debug)]
pub struct ReplayStates {
    len: usize,
    most: usize,
    momentum: f64,
}

impl ReplayStates {
    /// Creates the operation for buffers of `len` values and up to `most` micro-batches.
    ///
    /// # Errors
    ///
    /// If a size is 0 or too large to index, or if `momentum` is not from 0 to 1.
    pub fn new(len: usize, most: usize, momentum: f64) -> Result<Self> {
        Shape::vector(len.saturating_mul(most)).checked(NAME, "statistics")?;
        if !(0.0..=1.0).contains(&momentum) {
            return Err(Error::argument("momentum of replay_states", "0 to 1", momentum));
        }
        Ok(Self { len, most, momentum })
    }
}

impl Reference for ReplayStates {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[statistics, &[count], accepted], [states]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        let momentum = T::from_f64(self.momentum);
        states.copy_from_slice(accepted);
        for batch in statistics.chunks_exact(self.len).take(count.to_f64() as usize) {
            for (state, value) in states.iter_mut().zip(batch) {
                *state = (T::from_f64(1.0) - momentum) * *state + momentum * *value;
            }
        }
        Ok(())
    }
}

impl Op for ReplayStates {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::flat(self.len);
        vec![
            Operand::new("statistics", Role::Constant, Spec::flat(self.most * self.len)),
            Operand::new("count", Role::Constant, Spec::flat(1)),
            Operand::new("accepted", Role::Constant, spec),
            Operand::new("states", Role::State(0.0), spec),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["statistics", "count", "accepted"], []).updating(["states"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::flat(self.len).device_bytes() / 16;
        let params = Params { len: len as u32 }.bytes();
        let bindings = ["statistics", "count", "accepted", "states"].map(operand);
        let overrides = vec![("MOMENTUM", self.momentum)];
        let dispatch = elementwise(&FORWARD, bindings, len, params).iterations(self.most);
        Ok(Lowered::one(Dispatch { overrides, ..dispatch }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, (3 * self.most * self.len) as f64)
    }
}

kernel_params! {
    /// See `shaders/optim/replay_states.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "replay_states.forward",
    variant: "vec4",
    file: "optim/replay_states.wgsl",
    source: include_str!("../../../../shaders/optim/replay_states.wgsl"),
    bindings: &[("statistics", Read), ("count", Read), ("accepted", Read), ("states", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["MOMENTUM"],
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_come_in_order_from_the_accepted_statistics() {
        let op = ReplayStates::new(1, 3, 0.5).unwrap();
        let mut states = [7.0f32];
        // Half of 2, then of 4; the third is not counted.
        op.reference("forward", &[&[2.0, 4.0, 9.0], &[2.0], &[8.0]], &mut [&mut states]).unwrap();
        assert_eq!(states, [4.5]);
        assert!(ReplayStates::new(0, 1, 0.1).is_err() && ReplayStates::new(1, 1, 1.5).is_err());
        assert!(ReplayStates::new(usize::MAX, 2, 0.1).is_err());
    }
}
