//! Nearest-neighbour upsampling by two; its gradient sums each square of four pixels.

use crate::error::Result;
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::{
    Case, ChannelShift, Cost, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// y\[i, j\] = x\[i / 2, j / 2\] in each channel. `x`: `[n, c, h, w]`; `y`: `[n, c, 2h, 2w]`.
#[derive(Clone, Copy, Debug)]
pub struct Upsample {
    x: Shape,
    y: Shape,
}

impl Upsample {
    /// For an input of this shape.
    pub fn new(x: Shape) -> Result<Self> {
        let x = x.checked(INFO.name, "x")?;
        let y = Shape::new(x.n, x.c, 2 * x.h, 2 * x.w).checked(INFO.name, "y")?;
        Ok(Self { x, y })
    }
}

impl Reference for Upsample {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let (w, wide) = (self.x.w, self.y.w);
        match (pass, reads, writes) {
            ("forward", [x], [y]) => {
                for (pair, x) in y.chunks_exact_mut(2 * wide).zip(x.chunks_exact(w)) {
                    for y in pair.chunks_exact_mut(wide) {
                        for (y, x) in y.chunks_exact_mut(2).zip(x) {
                            y.fill(*x);
                        }
                    }
                }
                Ok(())
            }
            ("backward", [dy], [dx]) => {
                for (pair, dx) in dy.chunks_exact(2 * wide).zip(dx.chunks_exact_mut(w)) {
                    let (top, bottom) = pair.split_at(wide);
                    for ((dx, t), b) in dx.iter_mut().zip(top.chunks_exact(2)).zip(bottom.chunks_exact(2)) {
                        *dx = (t[0] + t[1]) + (b[0] + b[1]);
                    }
                }
                Ok(())
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }
}

impl Op for Upsample {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::new("x", Role::Input, Spec::nhwc(self.x)), Operand::new("y", Role::Output, Spec::nhwc(self.y))]
    }

    fn passes(&self) -> Passes {
        Passes {
            forward: Pass::forward(["x"], ["y"]),
            backward: vec![Pass::new("backward", [grad("y")], [grad("x")])],
            aliases: vec![],
        }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let dispatch = match pass {
            "forward" => Dispatch::new(&FORWARD, [operand("x"), operand("y")]),
            "backward" => Dispatch::new(&BACKWARD, [grad("y"), grad("x")]).accumulate("ACC", target.acc(0)),
            _ => return Err(no_such_pass(self, pass)),
        };
        let groups = self.x.c.div_ceil(4);
        let len = self.x.pixels() * groups;
        Ok(Lowered::one(Dispatch {
            params: Params { len: len as u32, groups: groups as u32, width: self.x.w as u32 }.bytes(),
            workgroups: workgroups(len, 64),
            ..dispatch
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let sums = if pass.name == "backward" { 3 * self.x.len() } else { 0 };
        Cost::of(self, pass, sums as f64)
    }

    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Forwards
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/upsample.wgsl`.
    Params { len: u32, groups: u32, width: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "upsample.forward",
    variant: "vec4",
    file: "basic/upsample.wgsl",
    source: include_str!("../../../../shaders/basic/upsample.wgsl"),
    entry: "forward",
    bindings: &[("x", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "upsample.backward",
    entry: "backward",
    bindings: &[("dy", Access::Read), ("dx", Access::ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "upsample",
    kernels: || vec![&FORWARD, &BACKWARD],
    cases: || {
        let mut cases = vec![];
        for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 3, 5), ("wide", 2, 64, 4, 4)] {
            cases.push(Case::new(name, Upsample::new(Shape::new(n, c, h, w))?));
        }
        Ok(cases)
    },
};
