//! Adds the gradient of a micro-batch to those before it, at one level of the [tree](super::micro_batch).

use crate::error::{Error, Result};
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::optim::micro_batch::MAX_LEVELS;
use crate::runtime::op::optim::{Carry, MicroBatch};
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "accumulate";

/// With the [`Carry`] of the level in `micro_batch`:
///
/// - add: sum = partial + sum,
/// - store: partial = sum,
/// - keep: nothing changes.
///
/// `micro_batch`: [`MicroBatch::to_array`]. `sum`, `partial`: flat buffers, padding included.
#[derive(Clone, Copy, Debug)]
pub struct Accumulate {
    len: usize,
    level: usize,
}

impl Accumulate {
    /// Creates the operation for buffers of `len` values at a level of the tree.
    ///
    /// # Errors
    ///
    /// If `len` is 0 or too large to index, or if the tree has no such level.
    pub fn new(len: usize, level: usize) -> Result<Self> {
        Shape::vector(len).checked(NAME, "sum")?;
        if level >= MAX_LEVELS {
            return Err(Error::argument("level of accumulate", format!("less than {MAX_LEVELS}"), level));
        }
        Ok(Self { len, level })
    }
}

impl Reference for Accumulate {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", &[&[_, ref carries @ ..]], [sum, partial]) = (pass, reads, writes) else {
            return Err(no_such_pass(self, pass));
        };
        let carry = *carries.get(self.level).ok_or_else(|| no_such_pass(self, pass))?;
        let is = |other: Carry| carry == T::from_f64(f64::from(other.code()));
        if is(Carry::Add) {
            for (sum, partial) in sum.iter_mut().zip(&**partial) {
                *sum = *partial + *sum;
            }
        } else if is(Carry::Store) {
            partial.copy_from_slice(sum);
        }
        Ok(())
    }
}

impl Op for Accumulate {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        let spec = Spec::flat(self.len);
        vec![
            Operand::new("micro_batch", Role::Constant, Spec::flat(MicroBatch::LEN)),
            Operand::new("sum", Role::State(0.0), spec),
            Operand::new("partial", Role::State(0.0), spec),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["micro_batch"], []).updating(["sum", "partial"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["vec4"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let len = Spec::flat(self.len).device_bytes() / 16;
        let params = Params { len: len as u32, level: self.level as u32 }.bytes();
        let bindings = ["micro_batch", "sum", "partial"].map(operand);
        Ok(Lowered::one(elementwise(&FORWARD, bindings, len, params)))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, self.len as f64)
    }
}

kernel_params! {
    /// See `shaders/optim/accumulate.wgsl`.
    Params { len: u32, level: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "accumulate.forward",
    variant: "vec4",
    file: "optim/accumulate.wgsl",
    source: include_str!("../../../../shaders/optim/accumulate.wgsl"),
    bindings: &[("micro_batch", Read), ("sum", ReadWrite), ("partial", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_follows_the_carry_of_its_level() {
        // After micro-batch 1 of 3: level 0 is added, level 1 stores.
        let values = MicroBatch { index: 1, count: 3, images: 1, of: 3 }.to_array();
        for (level, expected) in [(0, (7.0, 5.0)), (1, (2.0, 2.0)), (2, (2.0, 5.0))] {
            let (mut sum, mut partial) = ([2.0f32], [5.0f32]);
            let op = Accumulate::new(1, level).unwrap();
            op.reference("forward", &[&values], &mut [&mut sum, &mut partial]).unwrap();
            assert_eq!((sum[0], partial[0]), expected, "level {level}");
        }
        assert!(Accumulate::new(1, MAX_LEVELS).is_err() && Accumulate::new(0, 0).is_err());
    }
}
