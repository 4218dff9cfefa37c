//! Shapes of tensors.

use std::fmt;

/// Rounds a number of channels up to a multiple of four, as the device layout does: whole `vec4<f32>`.
#[must_use]
pub const fn pad4(channels: usize) -> usize {
    channels.div_ceil(4) * 4
}

/// Sizes of a tensor in four dimensions: batch (or output channels), channels, height, width.
///
/// ```
/// use vae_wgpu::runtime::tensor::Shape;
///
/// let shape = Shape::new(8, 3, 32, 32);
/// assert_eq!(shape.len(), 24_576);
/// assert_eq!(shape.positions(), 8 * 32 * 32);
/// assert_eq!(shape.with_c(16).to_string(), "[8, 16, 32, 32]");
/// ```
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

/// The most elements that a tensor may have: kernels count its bytes in 32 bits.
pub const MAX_ELEMENTS: usize = 1 << 30;

impl Shape {
    /// Returns a shape.
    #[must_use]
    pub const fn new(n: usize, c: usize, h: usize, w: usize) -> Self {
        Self { n, c, h, w }
    }

    /// Returns the shape of a vector: a bias, the weight of a norm, a running statistic.
    #[must_use]
    pub const fn vector(channels: usize) -> Self {
        Self::new(1, channels, 1, 1)
    }

    /// Returns the number of elements.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.n * self.c * self.h * self.w
    }

    /// Returns whether a size is zero.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of positions, `n * h * w`.
    #[must_use]
    pub const fn positions(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Returns the shape with another batch size.
    #[must_use]
    pub const fn with_n(self, n: usize) -> Self {
        Self { n, ..self }
    }

    /// Returns the shape with another number of channels.
    #[must_use]
    pub const fn with_c(self, c: usize) -> Self {
        Self { c, ..self }
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
