//! Decoding of 8-bit images, bit-identical on every device.

use crate::error::Result;
use crate::runtime::kernel::Access::{Read, ReadWrite};
use crate::runtime::kernel::{Kernel, Lowered, kernel_params, operand};
use crate::runtime::op::basic::elementwise;
use crate::runtime::op::{Cost, Op, Operand, Pass, Passes, Reference, Role, Target, expect_forward, no_such_pass};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::{Shape, Spec};

/// Kind of the operation.
pub(crate) const NAME: &str = "image_decode";

/// y = bytes / 127.5 - 1, which maps 0..=255 to -1..=1. `bytes`: `[n, c, h, w]` as bytes, plane by plane as in CIFAR-10; `y`:
/// `[n, c, h, w]`.
#[derive(Clone, Copy, Debug)]
pub struct ImageDecode {
    shape: Shape,
}

impl ImageDecode {
    /// Creates the decoding of images of this shape.
    pub fn new(bytes: Shape) -> Result<Self> {
        Ok(Self { shape: bytes.checked(NAME, "bytes")? })
    }
}

impl Reference for ImageDecode {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let ("forward", [bytes], [y]) = (pass, reads, writes) else { return Err(no_such_pass(self, pass)) };
        for (y, byte) in y.iter_mut().zip(*bytes) {
            // In single precision for every T: the rounded values are the images, not an approximation of them.
            *y = T::from_f64(f64::from(byte.to_f64() as f32 / 127.5 - 1.0));
        }
        Ok(())
    }
}

impl Op for ImageDecode {
    fn kind(&self) -> &'static str {
        NAME
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::new("bytes", Role::Constant, Spec::bytes(self.shape)),
            Operand::new("y", Role::Output, Spec::nhwc(self.shape)),
        ]
    }

    fn passes(&self) -> Passes {
        Passes::only(Pass::forward(["bytes"], ["y"]))
    }

    fn variants(&self, _pass: &str) -> &'static [&'static str] {
        &["integer"]
    }

    fn lower(&self, pass: &str, _target: &Target<'_>) -> Result<Lowered> {
        expect_forward(self, pass)?;
        let Shape { c, h, w, .. } = self.shape;
        let len = self.shape.positions() * c.div_ceil(4);
        let params = Params { len: len as u32, channels: c as u32, area: (h * w) as u32 }.bytes();
        Ok(Lowered::one(elementwise(&FORWARD, ["bytes", "y"].map(operand), len, params)))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 2.0 * self.shape.len() as f64)
    }
}

kernel_params! {
    /// See `shaders/basic/image_decode.wgsl`.
    Params { len: u32, channels: u32, area: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "image_decode.forward",
    variant: "integer",
    file: "basic/image_decode.wgsl",
    source: include_str!("../../../../shaders/basic/image_decode.wgsl"),
    bindings: &[("bytes", Read), ("y", ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// All kernels in all variants.
pub(crate) const KERNELS: &[&Kernel] = &[&FORWARD];

#[cfg(test)]
mod tests {
    /// The shader's integer formula.
    fn kernel(byte: u32) -> f32 {
        ((byte * 131_586 + (byte >> 6).min(2)) as i32 - (1 << 24)) as f32 * 2.0f32.powi(-24)
    }

    #[test]
    fn integer_formula_equals_division_for_every_byte() {
        for byte in 0..=255u8 {
            assert_eq!(kernel(byte.into()).to_bits(), (f32::from(byte) / 127.5 - 1.0).to_bits(), "{byte}");
        }
    }
}
