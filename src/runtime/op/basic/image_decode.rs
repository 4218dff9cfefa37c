//! ImageDecode from bytes: y = byte / 127.5 - 1, the same bits on every device.

use crate::error::Result;
use crate::runtime::kernel::{Access, Dispatch, Kernel, Lowered, operand, workgroups};
use crate::runtime::op::{
    Case, Cost, Distribution, Op, OpInfo, Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// y = bytes / 127.5 - 1, from -1 to 1. `bytes`: `[n, c, h, w]`, planes of bytes as CIFAR-10 stores them; `y`: `[n, c, h, w]`.
#[derive(Clone, Copy, Debug)]
pub struct ImageDecode {
    shape: Shape,
}

impl ImageDecode {
    /// For pictures of this shape.
    pub fn new(bytes: Shape) -> Result<Self> {
        Ok(Self { shape: bytes.checked(INFO.name, "bytes")? })
    }
}

impl Reference for ImageDecode {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", [bytes], [y]) => {
                for (y, byte) in y.iter_mut().zip(*bytes) {
                    // Single precision in every precision: the picture is made of these numbers.
                    *y = T::from_f64(f64::from(byte.to_f64() as f32 / 127.5 - 1.0));
                }
                Ok(())
            }
            _ => Err(no_such_pass(self, pass)),
        }
    }
}

impl Op for ImageDecode {
    fn kind(&self) -> &'static str {
        INFO.name
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
        if pass != "forward" {
            return Err(no_such_pass(self, pass));
        }
        let Shape { c, h, w, .. } = self.shape;
        let len = self.shape.pixels() * c.div_ceil(4);
        Ok(Lowered::one(Dispatch {
            params: Params { len: len as u32, channels: c as u32, area: (h * w) as u32 }.bytes(),
            workgroups: workgroups(len, 64),
            ..Dispatch::new(&FORWARD, [operand("bytes"), operand("y")])
        }))
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        Cost::of(self, pass, 2.0 * self.shape.len() as f64)
    }
}

crate::runtime::kernel::kernel_params! {
    /// See `shaders/pixels.wgsl`.
    Params { len: u32, channels: u32, area: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "image_decode.forward",
    variant: "integer",
    file: "basic/image_decode.wgsl",
    source: include_str!("../../../../shaders/basic/image_decode.wgsl"),
    entry: "forward",
    bindings: &[("bytes", Access::Read), ("y", Access::ReadWrite)],
    params: Params::FIELDS,
    ..Kernel::DEFAULT
};

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "image_decode",
    kernels: || vec![&FORWARD],
    cases: || {
        let mut cases = vec![];
        for (name, n, c, h, w) in [("one", 1, 1, 1, 1), ("odd", 3, 5, 7, 3), ("cifar", 4, 3, 32, 32)] {
            let op = ImageDecode::new(Shape::new(n, c, h, w))?;
            cases.push(Case::new(name, op).fill("bytes", Distribution::Bytes).not_differentiated());
        }
        Ok(cases)
    },
};

#[cfg(test)]
mod tests {
    /// What the shader computes, with whole numbers alone.
    fn kernel(byte: u32) -> f32 {
        ((byte * 131_586 + (byte >> 6).min(2)) as i32 - (1 << 24)) as f32 * 2.0f32.powi(-24)
    }

    #[test]
    fn the_whole_number_formula_is_the_division_for_every_byte() {
        for byte in 0..=255u8 {
            assert_eq!(kernel(byte.into()).to_bits(), (f32::from(byte) / 127.5 - 1.0).to_bits(), "{byte}");
        }
    }
}
