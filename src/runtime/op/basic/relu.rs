//! Rectified linear unit: y = max(x, 0); the gradient at 0 is 0, as PyTorch has it.

use crate::error::Result;
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, workgroups};
use crate::runtime::op::{
    Case, Cost, Distribution, Fusible, Op, OpInfo, Operand, Pass, Passes, Role, Target, no_such_entry,
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
            _ => return Err(no_such_entry(self, pass)),
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
            forward: Pass { name: "forward", reads: &["x"], writes: &["y"], updates: &[] },
            backward: &[Pass { name: "backward", reads: &["x", "dy"], writes: &["dx"], updates: &[] }],
            aliases: &[],
        }
    }

    fn variants(&self, _entry: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let len = Spec::nhwc(self.shape).device_bytes() / 16;
        let (kernel, bindings, overrides) = match pass {
            "forward" => (&FORWARD, vec![Bind::Operand("x"), Bind::Operand("y")], vec![]),
            "backward" => (
                &BACKWARD,
                vec![Bind::Operand("x"), Bind::Operand("dy"), Bind::Operand("dx")],
                vec![("ACC", target.acc(0))],
            ),
            _ => return Err(no_such_entry(self, pass)),
        };
        let params = Params { len: len as u32 }.bytes();
        Ok(Lowered::one(Dispatch {
            kernel,
            flags: vec![],
            bindings,
            overrides,
            params,
            workgroups: workgroups(len, 64),
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.shape.len() as f64)
    }

    fn fusible(&self) -> Fusible {
        Fusible::Relu
    }

    crate::reference!();
}

crate::kernel_params! {
    /// See `shaders/relu.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "relu.forward",
    variant: "vec4",
    file: "basic/relu.wgsl",
    source: include_str!("../../../../shaders/basic/relu.wgsl"),
    entry: "forward",
    defines: &[],
    flags: &[],
    bindings: &[("x", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    overrides: &[],
    workgroup: [64, 1, 1],
    subgroups: false,
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
