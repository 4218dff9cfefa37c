//! Restores the running statistics after a rejected step.
//!
//! Batch norm updates its running statistics in the forward pass, before it is known whether loss and gradients are finite. At the end
//! of the step the finite flag decides whether the update stays, as it does for Adam.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "restore_states";

/// accepted = states where the finite flag, the second value of `norm`, is 1; states = accepted where it is not.
///
/// `states`, `accepted`: flat buffers of all running statistics, padding included. `norm`: from
/// [`GradNorm`](crate::runtime::op::GradNorm).
#[derive(Clone, Copy, Debug)]
pub struct RestoreStates {
    len: usize,
}

impl RestoreStates {
    /// Creates the operation for buffers of `len` values.
    pub fn new(len: usize) -> Result<Self> {
        Shape::vector(len).checked(NAME, "states")?;
        Ok(Self { len })
    }
}

impl Reference for RestoreStates {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[norm], [states, accepted]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        if norm[1] == T::from_f64(1.0) {
            accepted.copy_from_slice(states);
        } else {
            states.copy_from_slice(accepted);
        }
        Ok(())
    }
}

impl Op for RestoreStates {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::flat(self.len);
        vec![
            Operand::new("norm", Role::Constant, Spec::flat(4)),
            Operand::new("states", Role::State(0.0), spec),
            Operand::new("accepted", Role::State(0.0), spec),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["norm"], []).updating(["states", "accepted"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::flat(self.len).device_bytes() / 16;
        let params = Params { len: len as u32 }.bytes();
        Ok(Lowered::one(elementwise(&FORWARD, ["norm", "states", "accepted"].map(operand), len, params)))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 0.0)
    }
}

kernel_params! {
    /// See `shaders/optim/restore_states.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "restore_states.forward",
    variant: "vec4",
    file: "optim/restore_states.wgsl",
    source: include_str!("../../../../shaders/optim/restore_states.wgsl"),
    bindings: &[("norm", Read), ("states", ReadWrite), ("accepted", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];
