//! Running statistics of a step that was refused: back to what they were.
//!
//! Batch norm moves the running statistics in the forward pass, before anybody knows whether loss and gradients are finite. At the
//! end of the step the finite flag decides, as it does for Adam.

use crate::error::Result;
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, operand, workgroups};
use crate::runtime::op::{
    Case, Cost, Distribution, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// accepted = states where the finite flag, the second number of `norm`, is 1; states = accepted where it is not.
///
/// `states`, `accepted`: flat buffers of all running statistics, padding included. `norm`: from
/// [`GradNorm`](crate::runtime::op::optim::grad_norm::GradNorm).
#[derive(Clone, Copy, Debug)]
pub struct RestoreStates {
    len: usize,
}

impl RestoreStates {
    /// For `len` numbers.
    pub fn new(len: usize) -> Result<Self> {
        Shape::vector(len).checked("restore_states", "states")?;
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
        INFO.name
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
        let forward = Pass::forward(["norm"], []).updating(["states", "accepted"]);
        Passes::only(forward)
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        if pass != "forward" {
            return Err(no_such_pass(self, pass));
        }
        let len = Spec::flat(self.len).device_bytes() / 16;
        Ok(Lowered::one(Dispatch {
            params: Params { len: len as u32 }.bytes(),
            workgroups: workgroups(len, 64),
            ..Dispatch::new(&FORWARD, ["norm", "states", "accepted"].map(operand))
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 0.0)
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/rollback.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "restore_states.forward",
    variant: "vec4",
    file: "optim/restore_states.wgsl",
    source: include_str!("../../../../shaders/optim/restore_states.wgsl"),
    entry: "forward",
    bindings: &[("norm", Access::Read), ("states", Access::ReadWrite), ("accepted", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "restore_states",
    kernels: || vec![&FORWARD],
    cases: || {
        let case = |name: &str, len, norm: &'static [f32]| {
            Ok(Case::new(name, RestoreStates::new(len)?).fill("norm", Distribution::Values(norm)).not_differentiated())
        };
        Ok(vec![
            case("one", 1, &[9.0, 1.0, 0.0, 0.0])?,
            case("accepted", 259, &[9.0, 1.0, 0.0, 0.0])?,
            case("refused", 259, &[9.0, 0.0, 0.0, 0.0])?,
        ])
    },
};
