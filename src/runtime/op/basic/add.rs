//! Residual add: y = a + b. Its gradient is dy on both sides, which costs nothing.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Access, Bind, Dispatch, Kernel, Lowered, workgroups};
use crate::runtime::op::{
    Case, ChannelShift, Cost, Fusible, Op, OpInfo, Operand, Pass, Passes, Role, Target, no_such_entry,
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

    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [a, b], [y]) => {
                for ((y, a), b) in y.iter_mut().zip(*a).zip(*b) {
                    *y = *a + *b;
                }
                Ok(())
            }
            _ => Err(no_such_entry(self, pass)),
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
            forward: Pass { name: "forward", reads: &["a", "b"], writes: &["y"], updates: &[] },
            backward: &[],
            aliases: &[("da", "dy"), ("db", "dy")],
        }
    }

    fn variants(&self, _entry: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        if pass != "forward" {
            return Err(no_such_entry(self, pass));
        }
        let len = Spec::nhwc(self.shape).device_bytes() / 16;
        Ok(Lowered::one(Dispatch {
            flags: vec![],
            kernel: &FORWARD,
            bindings: vec![Bind::Operand("a"), Bind::Operand("b"), Bind::Operand("y")],
            overrides: vec![("ACC", target.acc(0))],
            params: Params { len: len as u32 }.bytes(),
            workgroups: workgroups(len, 64),
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.shape.len() as f64)
    }

    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Forwards
    }

    fn fusible(&self) -> Fusible {
        Fusible::Add
    }

    crate::reference!();
}

crate::kernel_params! {
    /// See `shaders/add.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "add.forward",
    variant: "vec4",
    file: "basic/add.wgsl",
    source: include_str!("../../../../shaders/basic/add.wgsl"),
    entry: "forward",
    defines: &[],
    flags: &[],
    bindings: &[("a", Access::Read), ("b", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    overrides: &["ACC"],
    workgroup: [64, 1, 1],
    subgroups: false,
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
