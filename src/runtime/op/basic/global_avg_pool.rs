//! Global average pooling: the mean of each channel over all pixels of an image.

use crate::error::Result;
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, grad, operand, workgroups};
use crate::runtime::op::{
    Case, ChannelShift, Cost, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// y = mean of x over height and width. `x`: `[n, c, h, w]`; `y`: `[n, c, 1, 1]`.
#[derive(Clone, Copy, Debug)]
pub struct GlobalAvgPool {
    x: Shape,
}

impl GlobalAvgPool {
    /// For an input of this shape.
    pub fn new(x: Shape) -> Result<Self> {
        Ok(Self { x: x.checked(INFO.name, "x")? })
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
                Ok(())
            }
            ("backward", [dy], [dx]) => {
                for (dx, dy) in dx.chunks_exact_mut(self.area()).zip(*dy) {
                    dx.fill(*dy / area);
                }
                Ok(())
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }
}

impl Op for GlobalAvgPool {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn operands(&self) -> Vec<Operand> {
        let y = Shape::new(self.x.n, self.x.c, 1, 1);
        vec![Operand::new("x", Role::Input, Spec::nhwc(self.x)), Operand::new("y", Role::Output, Spec::nhwc(y))]
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
        let len = self.x.n * groups;
        Ok(Lowered::one(Dispatch {
            params: Params { len: len as u32, groups: groups as u32, area: self.area() as u32 }.bytes(),
            workgroups: workgroups(len, 64),
            ..dispatch
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

crate::runtime::kernel::kernel_params! {
    /// See `shaders/global_avg_pool.wgsl`.
    Params { len: u32, groups: u32, area: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "global_avg_pool.forward",
    variant: "vec4",
    file: "basic/global_avg_pool.wgsl",
    source: include_str!("../../../../shaders/basic/global_avg_pool.wgsl"),
    entry: "forward",
    bindings: &[("x", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

static BACKWARD: Kernel = Kernel {
    name: "global_avg_pool.backward",
    entry: "backward",
    bindings: &[("dy", Access::Read), ("dx", Access::ReadWrite)],
    overrides: &["ACC"],
    ..FORWARD
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "global_avg_pool",
    kernels: || vec![&FORWARD, &BACKWARD],
    cases: || {
        let mut cases = vec![];
        for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 3), ("head", 5, 256, 4, 4)] {
            cases.push(Case::new(name, GlobalAvgPool::new(Shape::new(n, c, h, w))?));
        }
        Ok(cases)
    },
};
