//! Rectified linear unit.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, grad, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "relu";

/// y = max(x, 0), elementwise; as in PyTorch, the gradient at 0 is 0. `x`, `y`: `[n, c, h, w]`.
#[derive(Clone, Copy, Debug)]
pub struct Relu {
    shape: Shape,
}

impl Relu {
    /// Creates the ReLU of an input of this shape.
    pub fn new(x: Shape) -> Result<Self> {
        Ok(Self { shape: x.checked(NAME, "x")? })
    }
}

impl Reference for Relu {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [x], [y]) => {
                for (y, x) in y.iter_mut().zip(*x) {
                    *y = x.relu();
                }
            }
            ("backward", [x, dy], [dx]) => {
                for ((dx, dy), x) in dx.iter_mut().zip(*dy).zip(*x) {
                    *dx = if *x <= T::zero() { T::zero() } else { *dy };
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for Relu {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::nhwc(self.shape);
        vec![Operand::new("x", Role::Input, spec), Operand::new("y", Role::Output, spec)]
    }

    fn passes(&self) -> Passes {
        let backward = vec![Pass::new("backward", [operand("x"), grad("y")], [grad("x")])];
        Passes { backward, ..Passes::only(Pass::forward(["x"], ["y"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let len = Spec::nhwc(self.shape).device_bytes() / 16;
        let params = Params { len: len as u32 }.bytes();
        Ok(Lowered::one(match pass {
            "forward" => elementwise(&FORWARD, [operand("x"), operand("y")], len, params),
            "backward" => elementwise(&BACKWARD, [operand("x"), grad("y"), grad("x")], len, params)
                .accumulate("ACC", target.acc(0)),
            _ => return Err(no_such_pass(self, pass)),
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.shape.len() as f64)
    }
}

kernel_params! {
    /// See `shaders/basic/relu.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "relu.forward",
    variant: "vec4",
    file: "basic/relu.wgsl",
    source: include_str!("../../../../shaders/basic/relu.wgsl"),
    defines: &[("BACKWARD", 0)],
    bindings: &[("x", Read), ("y", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "relu.backward",
    defines: &[("BACKWARD", 1)],
    bindings: &[("x", Read), ("dy", Read), ("dx", ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD];
