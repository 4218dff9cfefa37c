//! Nearest-neighbour upsampling by two. Its gradient sums each square of four positions.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, grad, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{ChannelShift, Cost, Op, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "upsample";

/// y\[i, j\] = x\[i / 2, j / 2\] in each channel. `x`: `[n, c, h, w]`; `y`: `[n, c, 2h, 2w]`.
#[derive(Clone, Copy, Debug)]
pub struct Upsample {
    x: Shape,
    y: Shape,
}

impl Upsample {
    /// Creates the upsampling of an input of this shape.
    pub fn new(x: Shape) -> Result<Self> {
        let x = x.checked(NAME, "x")?;
        let y = Shape::new(x.n, x.c, 2 * x.h, 2 * x.w).checked(NAME, "y")?;
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
            }
            ("backward", [dy], [dx]) => {
                for (pair, dx) in dy.chunks_exact(2 * wide).zip(dx.chunks_exact_mut(w)) {
                    let (top, bottom) = pair.split_at(wide);
                    for ((dx, t), b) in dx.iter_mut().zip(top.chunks_exact(2)).zip(bottom.chunks_exact(2)) {
                        *dx = (t[0] + t[1]) + (b[0] + b[1]);
                    }
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for Upsample {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::new("x", Role::Input, Spec::nhwc(self.x)), Operand::new("y", Role::Output, Spec::nhwc(self.y))]
    }

    fn passes(&self) -> Passes {
        let backward = vec![Pass::new("backward", [grad("y")], [grad("x")])];
        Passes { backward, ..Passes::only(Pass::forward(["x"], ["y"])) }
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let groups = self.x.c.div_ceil(4);
        let len = self.x.positions() * groups;
        let params = Params { len: len as u32, groups: groups as u32, width: self.x.w as u32 }.bytes();
        Ok(Lowered::one(match pass {
            "forward" => elementwise(&FORWARD, [operand("x"), operand("y")], len, params),
            "backward" => elementwise(&BACKWARD, [grad("y"), grad("x")], len, params).accumulate("ACC", target.acc(0)),
            _ => return Err(no_such_pass(self, pass)),
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

kernel_params! {
    /// See `shaders/basic/upsample.wgsl`.
    Params { len: u32, groups: u32, width: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "upsample.forward",
    variant: "vec4",
    file: "basic/upsample.wgsl",
    source: include_str!("../../../../shaders/basic/upsample.wgsl"),
    defines: &[("BACKWARD", 0)],
    bindings: &[("x", Read), ("y", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "upsample.backward",
    defines: &[("BACKWARD", 1)],
    bindings: &[("dy", Read), ("dx", ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD];
