//! Residual add. Its gradients are aliases of dy and need no computation.

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, grad, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{
    ChannelShift, Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "add";

/// y = a + b, elementwise. `a`, `b`, `y`: `[n, c, h, w]`.
#[derive(Clone, Copy, Debug)]
pub struct Add {
    shape: Shape,
}

impl Add {
    /// Creates the sum of two inputs of the same shape.
    pub fn new(a: Shape, b: Shape) -> Result<Self> {
        if a != b {
            return Err(Error::shape(NAME, "b", a, b));
        }
        Ok(Self { shape: a.checked(NAME, "a")? })
    }
}

impl Reference for Add {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", [a, b], [y]) = (pass, reads, writes) else { return Err(no_such_pass(self, pass)) };
        for ((y, a), b) in y.iter_mut().zip(*a).zip(*b) {
            *y = *a + *b;
        }
        Ok(())
    }
}

impl Op for Add {
    fn kind(&self) -> &'static str {
        NAME
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
        let aliases = vec![(grad("a"), grad("y")), (grad("b"), grad("y"))];
        Passes { aliases, ..Passes::only(Pass::forward(["a", "b"], ["y"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::nhwc(self.shape).device_bytes() / 16;
        let params = Params { len: len as u32 }.bytes();
        let dispatch = elementwise(&FORWARD, ["a", "b", "y"].map(operand), len, params);
        Ok(Lowered::one(dispatch.accumulate("ACC", target.acc(0))))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.shape.len() as f64)
    }

    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Forwards
    }
}

kernel_params! {
    /// See `shaders/basic/add.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "add.forward",
    variant: "vec4",
    file: "basic/add.wgsl",
    source: include_str!("../../../../shaders/basic/add.wgsl"),
    bindings: &[("a", Read), ("b", Read), ("y", ReadWrite)],
    params: Params::FIELDS,
    overrides: &["ACC"],
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];
