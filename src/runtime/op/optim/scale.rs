//! Weights the gradient of a micro-batch with its share of the images of the step.
//!
//! A kernel of its own: in one that also adds, a driver may contract product and sum into one operation that rounds once. The sum would
//! then depend on where the product comes from.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::optim::MicroBatch;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "scale";

/// sum = share * sum, where `share` is the first value of `micro_batch`.
///
/// `micro_batch`: [`MicroBatch::to_array`]. `sum`: a flat buffer, padding included.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    len: usize,
}

impl Scale {
    /// Creates the operation for a buffer of `len` values.
    ///
    /// # Errors
    ///
    /// If `len` is 0 or too large to index.
    pub fn new(len: usize) -> Result<Self> {
        Shape::vector(len).checked(NAME, "sum")?;
        Ok(Self { len })
    }
}

impl Reference for Scale {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[&[share, ..]], [sum]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        for value in &mut **sum {
            *value = share * *value;
        }
        Ok(())
    }
}

impl Op for Scale {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("micro_batch", Role::Constant, Spec::flat(MicroBatch::LEN)),
            Operand::new("sum", Role::State(0.0), Spec::flat(self.len)),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["micro_batch"], []).updating(["sum"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::flat(self.len).device_bytes() / 16;
        let params = Params { len: len as u32 }.bytes();
        Ok(Lowered::one(elementwise(&FORWARD, ["micro_batch", "sum"].map(operand), len, params)))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.len as f64)
    }
}

kernel_params! {
    /// See `shaders/optim/scale.wgsl`.
    Params { len: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "scale.forward",
    variant: "vec4",
    file: "optim/scale.wgsl",
    source: include_str!("../../../../shaders/optim/scale.wgsl"),
    bindings: &[("micro_batch", Read), ("sum", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];
