//! Global average pooling.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, grad, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{ChannelShift, Cost, Op, Operand, Pass, Passes, Reference, Role, Target, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "global_avg_pool";

/// y = mean of x over height and width. `x`: `[n, c, h, w]`; `y`: `[n, c, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalAvgPool {
    x: Shape,
}

impl GlobalAvgPool {
    /// Creates the pooling of an input of this shape.
    pub fn new(x: Shape) -> Result<Self> {
        Ok(Self { x: x.checked(NAME, "x")? })
    }

    fn area(&self) -> usize {
        self.x.h * self.x.w
    }
}

impl Reference for GlobalAvgPool {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let area = T::from_usize(self.area());
        match (pass, reads, writes) {
            ("forward", [x], [y]) => {
                for (y, x) in y.iter_mut().zip(x.chunks_exact(self.area())) {
                    *y = x.iter().copied().sum::<T>() / area;
                }
            }
            ("backward", [dy], [dx]) => {
                for (dx, dy) in dx.chunks_exact_mut(self.area()).zip(*dy) {
                    dx.fill(*dy / area);
                }
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

impl Op for GlobalAvgPool {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let y = Shape::new(self.x.n, self.x.c, 1, 1);
        vec![Operand::new("x", Role::Input, Spec::nhwc(self.x)), Operand::new("y", Role::Output, Spec::nhwc(y))]
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
        let len = self.x.n * groups;
        let params = Params { len: len as u32, groups: groups as u32, area: self.area() as u32 }.bytes();
        Ok(Lowered::one(match pass {
            "forward" => elementwise(&FORWARD, [operand("x"), operand("y")], len, params).iterations(self.area()),
            "backward" => elementwise(&BACKWARD, [grad("y"), grad("x")], len, params).accumulate("ACC", target.acc(0)),
            _ => return Err(no_such_pass(self, pass)),
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let per_image = if pass.name == "forward" { self.area() } else { 1 };
        Cost::of(self, pass, (self.x.n * self.x.c * per_image) as f64)
    }

    fn channel_shift(&self, _input: &str) -> ChannelShift {
        ChannelShift::Forwards
    }
}

kernel_params! {
    /// See `shaders/basic/global_avg_pool.wgsl`.
    Params { len: u32, groups: u32, area: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "global_avg_pool.forward",
    variant: "vec4",
    file: "basic/global_avg_pool.wgsl",
    source: include_str!("../../../../shaders/basic/global_avg_pool.wgsl"),
    defines: &[("BACKWARD", 0)],
    bindings: &[("x", Read), ("y", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "global_avg_pool.backward",
    defines: &[("BACKWARD", 1)],
    bindings: &[("dy", Read), ("dx", ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD, &BACKWARD];
