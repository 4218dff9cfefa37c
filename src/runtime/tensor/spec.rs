//! Shapes and memory layouts.
//!
//! A tensor has a logical order and a physical layout. The logical order is row-major, as in PyTorch (NCHW, OIHW, `[out, in]`). The
//! reference, files and the public interface use it. The physical layout is the one on the device: NHWC with channels padded to a
//! multiple of four, so that kernels move `vec4<f32>`. Padding is always zero. Only [`Spec::pack`] and [`Spec::unpack`] convert
//! between the two.

use std::fmt;

use crate::error::{Error, Result};
use crate::runtime::tensor::shape::{MAX_ELEMENTS, Shape, pad4};

/// The order of elements on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[n][h][w][pad4(c)]`: activations, and vectors as `[pad4(c)]`.
    Nhwc4,
    /// `[kh][kw][pad4(ic)][pad4(oc)]` for a logical `[oc, ic, kh, kw]`: convolution weights. The PyTorch weight of a transposed
    /// convolution, `[in, out, kh, kw]`, is the weight of the convolution that it is the adjoint of, and has the same layout.
    ConvWeight,
    /// `[h_in][w_in][pad4(c_in)][h_out][w_out][pad4(c_out)]` for a logical `[c_out*h_out*w_out, c_in*h_in*w_in]`: the weight of a
    /// linear layer whose input and output have the layout of activations.
    LinearWeight {
        /// `(c, h, w)` of the input.
        input: (usize, usize, usize),
        /// `(c, h, w)` of the output.
        output: (usize, usize, usize),
    },
    /// Elements in logical order: flat parameter buffers, loss terms, scalars of a step. The length is rounded up to four.
    Flat,
    /// Bytes in logical order, four to a `u32`: images for upload.
    Bytes,
}

/// Shape and layout of a tensor.
///
/// ```
/// use vae_wgpu::runtime::tensor::{Shape, Spec};
///
/// // Two channels of one pixel: padded to four floats.
/// let spec = Spec::nhwc(Shape::new(1, 2, 1, 1));
/// let bytes = spec.pack(&[1.0, 2.0])?;
/// assert_eq!(bytes.len(), 16);
/// assert_eq!(spec.unpack(&bytes)?, [1.0, 2.0]);
/// # Ok::<(), vae_wgpu::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Logical sizes.
    pub shape: Shape,
    /// Physical layout.
    pub layout: Layout,
}

impl Spec {
    /// Returns the spec of an activation `[n, c, h, w]`.
    #[must_use]
    pub const fn nhwc(shape: Shape) -> Self {
        Self { shape, layout: Layout::Nhwc4 }
    }

    /// Returns the spec of a vector.
    #[must_use]
    pub const fn vector(channels: usize) -> Self {
        Self::nhwc(Shape::vector(channels))
    }

    /// Returns the spec of a convolution weight, logically `[oc, ic, kh, kw]`.
    #[must_use]
    pub const fn conv_weight(oc: usize, ic: usize, kh: usize, kw: usize) -> Self {
        Self { shape: Shape::new(oc, ic, kh, kw), layout: Layout::ConvWeight }
    }

    /// Returns the spec of the weight of a linear layer, logically `[out, in]`, between activations of two shapes. Their batch sizes
    /// are ignored.
    #[must_use]
    pub const fn linear_weight(input: Shape, output: Shape) -> Self {
        Self {
            shape: Shape::new(output.c * output.h * output.w, input.c * input.h * input.w, 1, 1),
            layout: Layout::LinearWeight { input: (input.c, input.h, input.w), output: (output.c, output.h, output.w) },
        }
    }

    /// Returns the spec of `len` elements in logical order.
    #[must_use]
    pub const fn flat(len: usize) -> Self {
        Self { shape: Shape::vector(len), layout: Layout::Flat }
    }

    /// Returns the spec of bytes, logically `[n, c, h, w]`.
    #[must_use]
    pub const fn bytes(shape: Shape) -> Self {
        Self { shape, layout: Layout::Bytes }
    }

    /// Returns the number of elements, without padding.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.shape.len()
    }

    /// Returns whether there are no elements.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Returns the sizes of the tensor in a PyTorch state dict: `[oc, ic, kh, kw]`, `[out, in]` or `[len]`.
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

    /// Returns the size on the device in bytes with padding, a multiple of 16; of 4 for [`Layout::Bytes`].
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

    /// Calls `f(logical, physical)` with the two indices of every element, in logical order.
    pub fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        let Shape { n, c, h, w } = self.shape;
        match self.layout {
            Layout::Flat | Layout::Bytes => (0..self.len()).for_each(|i| f(i, i)),
            Layout::LinearWeight { input: (ic, ih, iw), output: (oc, oh, ow) } => {
                let columns = oh * ow * pad4(oc);
                let index = |channel: usize, position: usize, channels: usize| position * pad4(channels) + channel;
                let mut logical = 0;
                for o in 0..oc * oh * ow {
                    let column = index(o / (oh * ow), o % (oh * ow), oc);
                    for i in 0..ic * ih * iw {
                        f(logical, index(i / (ih * iw), i % (ih * iw), ic) * columns + column);
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

    /// Converts elements in logical order to the bytes of the device layout. Padding is zero.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of elements; for [`Layout::Bytes`], also for values that are not integers from 0 to 255.
    pub fn pack(&self, logical: &[f32]) -> Result<Vec<u8>> {
        self.check_len(logical.len(), self.len())?;
        if self.layout == Layout::Bytes {
            let mut bytes = vec![0; self.device_bytes()];
            for (byte, &value) in bytes.iter_mut().zip(logical) {
                if !(0.0..=255.0).contains(&value) || value.fract() != 0.0 {
                    return Err(Error::argument("byte", "an integer from 0 to 255", value));
                }
                *byte = value as u8;
            }
            return Ok(bytes);
        }
        let mut physical = vec![0.0f32; self.device_bytes() / 4];
        self.for_each(|l, p| physical[p] = logical[l]);
        Ok(bytemuck::cast_slice(&physical).to_vec())
    }

    /// Converts the bytes of the device layout to elements in logical order, without padding.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for another number of bytes.
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

impl Shape {
    /// Rejects empty shapes and shapes of more than [`MAX_ELEMENTS`] elements with padding.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] names `op` and `what`.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpack_inverts_pack_and_padding_is_zero() {
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
    fn linear_weights_of_vectors_equal_those_of_1x1_convolutions() {
        let linear = Spec::linear_weight(Shape::vector(6), Shape::vector(9));
        let conv = Spec::conv_weight(9, 6, 1, 1);
        let logical: Vec<f32> = (0..54).map(|i| i as f32).collect();
        assert_eq!(linear.pack(&logical).unwrap(), conv.pack(&logical).unwrap());
    }

    #[test]
    fn empty_and_huge_shapes_are_rejected() {
        assert!(Shape::new(0, 3, 4, 4).checked("t", "x").is_err());
        assert!(Shape::new(usize::MAX, 3, 4, 4).checked("t", "x").is_err());
        assert!(Shape::new(1, usize::MAX, 1, 1).checked("t", "x").is_err());
        assert!(Shape::new(128, 3, 32, 32).checked("t", "x").is_ok());
    }
}
