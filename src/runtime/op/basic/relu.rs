//! Rectified linear unit: y = max(x, 0); the gradient at 0 is 0, as PyTorch has it.

use crate::error::Result;
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::{
    Case, Cost, Distribution, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// y = max(x, 0), elementwise. `x`, `y`: `[n, c, h, w]`.
#[derive(Clone, Copy, Debug)]
pub struct Relu {
    shape: Shape,
}

impl Relu {
    /// For an input of this shape.
    pub fn new(x: Shape) -> Result<Self> {
        Ok(Self { shape: x.checked("relu", "x")? })
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
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::nhwc(self.shape);
        vec![Operand::new("x", Role::Input, spec), Operand::new("y", Role::Output, spec)]
    }

    fn passes(&self) -> Passes {
        Passes {
            forward: Pass::forward(["x"], ["y"]),
            backward: vec![Pass::new("backward", [operand("x"), grad("y")], [grad("x")])],
            aliases: vec![],
        }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let len = Spec::nhwc(self.shape).device_bytes() / 16;
        let dispatch = match pass {
            "forward" => Dispatch::new(&FORWARD, [operand("x"), operand("y")]),
            "backward" => {
                Dispatch::new(&BACKWARD, [operand("x"), grad("y"), grad("x")]).accumulate("ACC", target.acc(0))
            }
            _ => return Err(no_such_pass(self, pass)),
        };
        Ok(Lowered::one(Dispatch {
            params: Params { len: len as u32 }.bytes(),
            workgroups: workgroups(len, 64),
            ..dispatch
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.shape.len() as f64)
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/relu.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "relu.forward",
    variant: "vec4",
    file: "basic/relu.wgsl",
    source: include_str!("../../../../shaders/basic/relu.wgsl"),
    entry: "forward",
    bindings: &[("x", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "relu.backward",
    entry: "backward",
    bindings: &[("x", Access::Read), ("dy", Access::Read), ("dx", Access::ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "relu",
    kernels: || vec![&FORWARD, &BACKWARD],
    cases: || {
        let mut cases = vec![];
        for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 9), ("wide", 2, 64, 8, 8)] {
            cases.push(Case::new(name, Relu::new(Shape::new(n, c, h, w))?).fill("x", Distribution::AwayFromZero(1e-3)));
        }
        // 65,540 workgroups of 64 vec4s: one more than a dimension of the grid may have.
        cases.push(Case::new("folded_grid", Relu::new(Shape::new(1, 4, 65_540, 64))?).not_differentiated());
        Ok(cases)
    },
};
