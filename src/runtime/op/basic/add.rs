//! Residual add: y = a + b. Its gradient is dy on both sides, which costs nothing.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::{
    Case, ChannelShift, Cost, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// y = a + b, elementwise. `a`, `b`, `y`: `[n, c, h, w]`.
#[derive(Clone, Copy, Debug)]
pub struct Add {
    shape: Shape,
}

impl Add {
    /// For two inputs of the same shape.
    pub fn new(a: Shape, b: Shape) -> Result<Self> {
        if a != b {
            return Err(Error::shape("add", "b", a, b));
        }
        Ok(Self { shape: a.checked("add", "a")? })
    }
}

impl Reference for Add {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [a, b], [y]) => {
                for ((y, a), b) in y.iter_mut().zip(*a).zip(*b) {
                    *y = *a + *b;
                }
                Ok(())
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }
}

impl Op for Add {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::nhwc(self.shape);
        vec![
            Operand::new("a", Role::Input, spec),
            Operand::new("b", Role::Input, spec),
            Operand::new("y", Role::Output, spec),
        ]
    }

    fn passes(&self) -> Passes {
        Passes {
            forward: Pass::forward(["a", "b"], ["y"]),
            backward: vec![],
            aliases: vec![(grad("a"), grad("y")), (grad("b"), grad("y"))],
        }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        if pass != "forward" {
            return Err(no_such_pass(self, pass));
        }
        let len = Spec::nhwc(self.shape).device_bytes() / 16;
        Ok(Lowered::one(Dispatch {
            params: Params { len: len as u32 }.bytes(),
            workgroups: workgroups(len, 64),
            ..Dispatch::new(&FORWARD, [operand("a"), operand("b"), operand("y")]).accumulate("ACC", target.acc(0))
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.shape.len() as f64)
    }

    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Forwards
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/add.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "add.forward",
    variant: "vec4",
    file: "basic/add.wgsl",
    source: include_str!("../../../../shaders/basic/add.wgsl"),
    entry: "forward",
    bindings: &[("a", Access::Read), ("b", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    overrides: &["ACC"],
    ..Kernel::DEFAULT
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "add",
    kernels: || vec![&FORWARD],
    cases: || {
        let mut cases = vec![];
        for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 9), ("wide", 2, 64, 8, 8)] {
            let shape = Shape::new(n, c, h, w);
            cases.push(Case::new(name, Add::new(shape, shape)?));
        }
        Ok(cases)
    },
};
