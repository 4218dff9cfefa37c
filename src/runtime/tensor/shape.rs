//! Shapes and memory layouts.
//!
//! A tensor has one logical order, PyTorch's row-major one (NCHW, OIHW, `[out, in]`), which the reference, files and the
//! public interface use, and one physical layout on the device, which kernels use: NHWC with channels padded to a
//! multiple of four, so that every kernel moves `vec4<f32>`. [`Spec::pack`] and [`Spec::unpack`] are the only two functions
//! that know both. Padding lanes are always zero.

use std::fmt;

use crate::error::{Error, Result};

/// Rounds up to the channel granule of the device layout: four floats, one `vec4<f32>`.
#[must_use]
pub const fn pad4(channels: usize) -> usize {
    channels.div_ceil(4) * 4
}

/// Sizes of a 4-d tensor: batch (or output channels), channels, height, width.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Batch size, or output channels of a weight.
    pub n: usize,
    /// Channels, or input channels of a weight.
    pub c: usize,
    /// Height.
    pub h: usize,
    /// Width.
    pub w: usize,
}

/// The most elements that a tensor may have: its bytes are counted in 32-bit words on the device.
pub const MAX_ELEMENTS: usize = 1 << 30;

impl Shape {
    /// A shape of four sizes.
    #[must_use]
    pub const fn new(n: usize, c: usize, h: usize, w: usize) -> Self {
        Self { n, c, h, w }
    }

    /// `channels` numbers: a bias, a norm's weight, a running statistic.
    #[must_use]
    pub const fn vector(channels: usize) -> Self {
        Self::new(1, channels, 1, 1)
    }

    /// Number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.n * self.c * self.h * self.w
    }

    /// Whether a size is zero. A checked shape never is.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// ImageDecode of the whole batch: `n * h * w`.
    #[must_use]
    pub const fn pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// The same sizes for another batch.
    #[must_use]
    pub const fn with_n(self, n: usize) -> Self {
        Self { n, ..self }
    }

    /// The same sizes with other channels.
    #[must_use]
    pub const fn with_c(self, c: usize) -> Self {
        Self { c, ..self }
    }

    /// Refuses zero sizes and shapes of more than [`MAX_ELEMENTS`] padded elements.
    pub fn checked(self, op: &str, what: &str) -> Result<Self> {
        let too_big =
            || Error::argument(format!("shape of {what} of {op}"), format!("1 to {MAX_ELEMENTS} elements"), self);
        let mut product = 1usize;
        for size in [self.n, self.c.div_ceil(4).saturating_mul(4), self.h, self.w] {
            product = product.checked_mul(size).filter(|&p| p > 0 && p <= MAX_ELEMENTS).ok_or_else(too_big)?;
        }
        Ok(self)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {}, {}, {}]", self.n, self.c, self.h, self.w)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where the elements of a tensor lie on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[n][h][w][pad4(c)]`: activations, and vectors as `[pad4(c)]`.
    Nhwc4,
    /// `[kh][kw][pad4(ic)][pad4(oc)]` for a logical `[oc, ic, kh, kw]`: convolution weights. A transposed convolution stores its
    /// PyTorch weight `[in, out, kh, kw]` the same way, as the weight of the convolution that it is the adjoint of.
    ConvWeight,
    /// `[h_in][w_in][pad4(c_in)][h_out][w_out][pad4(c_out)]` for a logical `[c_out*h_out*w_out, c_in*h_in*w_in]`: a linear layer
    /// whose input and output lie as pictures.
    LinearWeight {
        /// `(c, h, w)` of the input.
        input: (usize, usize, usize),
        /// `(c, h, w)` of the output.
        output: (usize, usize, usize),
    },
    /// Unpadded numbers: flat parameter buffers, loss terms, step scalars. The length is rounded up to four.
    Flat,
    /// One byte an element in logical order, four to a `u32`: pixels on their way to the device.
    Bytes,
}

/// Shape and layout of a tensor: all that is needed to allocate, fill and read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Logical sizes.
    pub shape: Shape,
    /// Physical layout.
    pub layout: Layout,
}

impl Spec {
    /// An activation `[n, c, h, w]`.
    #[must_use]
    pub const fn nhwc(shape: Shape) -> Self {
        Self { shape, layout: Layout::Nhwc4 }
    }

    /// A vector of `channels` numbers.
    #[must_use]
    pub const fn vector(channels: usize) -> Self {
        Self::nhwc(Shape::vector(channels))
    }

    /// A convolution weight, logically `[oc, ic, kh, kw]`.
    #[must_use]
    pub const fn conv_weight(oc: usize, ic: usize, kh: usize, kw: usize) -> Self {
        Self { shape: Shape::new(oc, ic, kh, kw), layout: Layout::ConvWeight }
    }

    /// A linear weight, logically `[out, in]`, between two pictures given as shapes (their batch is ignored).
    #[must_use]
    pub const fn linear_weight(input: Shape, output: Shape) -> Self {
        Self {
            shape: Shape::new(output.c * output.h * output.w, input.c * input.h * input.w, 1, 1),
            layout: Layout::LinearWeight { input: (input.c, input.h, input.w), output: (output.c, output.h, output.w) },
        }
    }

    /// `len` unpadded numbers.
    #[must_use]
    pub const fn flat(len: usize) -> Self {
        Self { shape: Shape::vector(len), layout: Layout::Flat }
    }

    /// ImageDecode as bytes, logically `[n, c, h, w]`.
    #[must_use]
    pub const fn bytes(shape: Shape) -> Self {
        Self { shape, layout: Layout::Bytes }
    }

    /// Number of logical elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.shape.len()
    }

    /// Whether there is no element.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Sizes of the tensor in a PyTorch state dict: `[oc, ic, kh, kw]`, `[out, in]`, or `[numbers]`.
    #[must_use]
    pub fn torch_dims(&self) -> Vec<usize> {
        let Shape { n, c, h, w } = self.shape;
        match self.layout {
            Layout::ConvWeight => vec![n, c, h, w],
            Layout::LinearWeight { .. } => vec![n, c],
            _ if n == 1 => vec![c * h * w],
            _ => vec![n, c, h, w],
        }
    }

    /// Size on the device in bytes, padding included; a multiple of 16 (of 4 for bytes).
    #[must_use]
    pub const fn device_bytes(&self) -> usize {
        let s = self.shape;
        match self.layout {
            Layout::Nhwc4 => 4 * s.n * s.h * s.w * pad4(s.c),
            Layout::ConvWeight => 4 * s.h * s.w * pad4(s.c) * pad4(s.n),
            Layout::LinearWeight { input: (ic, ih, iw), output: (oc, oh, ow) } => {
                4 * ih * iw * pad4(ic) * oh * ow * pad4(oc)
            }
            Layout::Flat => 4 * pad4(s.len()),
            Layout::Bytes => pad4(s.len()),
        }
    }

    /// Calls `f(logical, physical)` for every element, in logical order.
    pub fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        let Shape { n, c, h, w } = self.shape;
        match self.layout {
            Layout::Flat | Layout::Bytes => (0..self.len()).for_each(|i| f(i, i)),
            Layout::LinearWeight { input: (ic, ih, iw), output: (oc, oh, ow) } => {
                let columns = oh * ow * pad4(oc);
                let place = |chan: usize, pixel: usize, chans: usize| pixel * pad4(chans) + chan;
                let mut logical = 0;
                for o in 0..oc * oh * ow {
                    let column = place(o / (oh * ow), o % (oh * ow), oc);
                    for i in 0..ic * ih * iw {
                        f(logical, place(i / (ih * iw), i % (ih * iw), ic) * columns + column);
                        logical += 1;
                    }
                }
            }
            Layout::Nhwc4 | Layout::ConvWeight => {
                let mut logical = 0;
                for ni in 0..n {
                    for ci in 0..c {
                        for hi in 0..h {
                            for wi in 0..w {
                                let physical = if self.layout == Layout::Nhwc4 {
                                    ((ni * h + hi) * w + wi) * pad4(c) + ci
                                } else {
                                    ((hi * w + wi) * pad4(c) + ci) * pad4(n) + ni
                                };
                                f(logical, physical);
                                logical += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    /// Device bytes of `logical` numbers (`len()` of them, PyTorch's order); padding is zero. [`Layout::Bytes`] takes numbers
    /// from 0 to 255.
    pub fn pack(&self, logical: &[f32]) -> Result<Vec<u8>> {
        self.check_len(logical.len(), self.len())?;
        if self.layout == Layout::Bytes {
            let mut bytes = vec![0; self.device_bytes()];
            for (byte, &value) in bytes.iter_mut().zip(logical) {
                if !(0.0..=255.0).contains(&value) || value.fract() != 0.0 {
                    return Err(Error::argument("pixel value", "a whole number from 0 to 255", value));
                }
                *byte = value as u8;
            }
            return Ok(bytes);
        }
        let mut physical = vec![0.0f32; self.device_bytes() / 4];
        self.for_each(|l, p| physical[p] = logical[l]);
        Ok(bytemuck::cast_slice(&physical).to_vec())
    }

    /// The logical numbers of device bytes; padding is dropped.
    pub fn unpack(&self, device: &[u8]) -> Result<Vec<f32>> {
        self.check_len(device.len(), self.device_bytes())?;
        if self.layout == Layout::Bytes {
            return Ok(device.iter().take(self.len()).map(|&b| f32::from(b)).collect());
        }
        let physical: Vec<f32> = bytemuck::pod_collect_to_vec(device);
        let mut logical = vec![0.0; self.len()];
        self.for_each(|l, p| logical[l] = physical[p]);
        Ok(logical)
    }

    fn check_len(&self, found: usize, expected: usize) -> Result<()> {
        if found == expected {
            Ok(())
        } else {
            Err(Error::argument(format!("length of a tensor {self}"), expected, found))
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.layout {
            Layout::Bytes => write!(f, "{} bytes", self.shape),
            _ => write!(f, "{}", self.shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pack_and_unpack_are_inverse_and_pad_with_zero() {
        let specs = [
            Spec::nhwc(Shape::new(2, 5, 3, 2)),
            Spec::vector(7),
            Spec::conv_weight(6, 3, 3, 2),
            Spec::linear_weight(Shape::new(1, 3, 2, 1), Shape::new(1, 5, 1, 2)),
            Spec::flat(9),
            Spec::bytes(Shape::new(1, 3, 3, 3)),
        ];
        for spec in specs {
            let logical: Vec<f32> = (1..=spec.len()).map(|i| i as f32).collect();
            let device = spec.pack(&logical).unwrap();
            assert_eq!(device.len(), spec.device_bytes());
            assert_eq!(spec.unpack(&device).unwrap(), logical, "{spec}");
            if spec.layout != Layout::Bytes {
                let floats: Vec<f32> = bytemuck::pod_collect_to_vec(&device);
                assert_eq!(floats.iter().filter(|&&v| v != 0.0).count(), spec.len(), "{spec}");
            }
        }
    }

    #[test]
    fn a_linear_layer_of_vectors_lies_like_a_1x1_convolution() {
        let linear = Spec::linear_weight(Shape::vector(6), Shape::vector(9));
        let conv = Spec::conv_weight(9, 6, 1, 1);
        let logical: Vec<f32> = (0..54).map(|i| i as f32).collect();
        assert_eq!(linear.pack(&logical).unwrap(), conv.pack(&logical).unwrap());
    }

    #[test]
    fn absurd_shapes_are_refused() {
        assert!(Shape::new(0, 3, 4, 4).checked("t", "x").is_err());
        assert!(Shape::new(usize::MAX, 3, 4, 4).checked("t", "x").is_err());
        assert!(Shape::new(1, usize::MAX, 1, 1).checked("t", "x").is_err());
        assert!(Shape::new(128, 3, 32, 32).checked("t", "x").is_ok());
    }
}
