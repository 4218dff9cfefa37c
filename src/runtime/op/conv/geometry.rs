//! Shapes of convolutions, and of the matrix products that compute them. Imports no other module of this folder.

use crate::error::{Error, Result};
use crate::runtime::tensor::{Shape, Spec, pad4};

/// A convolution of `x` to `y`, both `[n, c, h, w]`: windows of `kernel` (height, width) that are `stride` apart, of which the first
/// begins at `-padding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) x: Shape,
    pub(crate) y: Shape,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

/// The matrix products of a convolution, as `A B = C`. `shaders/lib/implicit_gemm.wgsl` describes rows, columns and summation index of
/// each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gemm {
    /// `x weight = y`.
    Forward,
    /// `dy weight = dx`.
    BackwardInput,
    /// `x dy = dweight`.
    BackwardWeight,
}

/// A kernel design for a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// One vec4 per invocation, plain loops.
    Naive,
    /// Tiles in workgroup memory, for GPUs.
    Tiled,
    /// Tiles in registers, operands in textures, of which one is shared by subgroup shuffles: for software drivers.
    SubgroupTex,
    /// The same with operands in buffers.
    Subgroup,
    /// Tiles in registers, with plain loads from buffers.
    RegisterTiled,
}

impl Gemm {
    pub(crate) const ALL: [Self; 3] = [Self::Forward, Self::BackwardInput, Self::BackwardWeight];

    /// Name of the pass of a convolution that computes it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::BackwardInput => "backward_input",
            Self::BackwardWeight => "backward_weight",
        }
    }
}

impl Variant {
    pub(crate) const ALL: [Self; 5] =
        [Self::Tiled, Self::SubgroupTex, Self::Subgroup, Self::RegisterTiled, Self::Naive];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Naive => "naive",
            Self::Tiled => "tiled",
            Self::SubgroupTex => "subgroup_tex",
            Self::Subgroup => "subgroup",
            Self::RegisterTiled => "register_tiled",
        }
    }
}

/// Largest kernel, stride and padding, so that 32-bit signed arithmetic on the device cannot overflow.
const MAX_WINDOW: usize = 1 << 15;

impl Geometry {
    /// Multiply-adds of each of the three products. Windows that reach into the padding count in full.
    pub(crate) fn macs(&self) -> f64 {
        (self.y.positions() * self.y.c) as f64 * (self.x.c * self.kernel.0 * self.kernel.1) as f64
    }

    /// K groups (four k each) of each phase of a product: see `shaders/lib/implicit_gemm.wgsl`.
    pub(crate) fn k_groups(&self, gemm: Gemm) -> Vec<usize> {
        let (kh, kw) = self.kernel;
        match gemm {
            Gemm::Forward => vec![kh * kw * self.x.c.div_ceil(4)],
            Gemm::BackwardWeight => vec![self.y.positions().div_ceil(4)],
            Gemm::BackwardInput => {
                // Number of taps that the positions of a phase see in one direction.
                let taps = |phase: usize, size: usize| {
                    (size + self.stride - 1 - (phase + self.padding) % self.stride) / self.stride
                };
                let (down, across) = (self.stride.min(self.x.h), self.stride.min(self.x.w));
                let phases = (0..down).flat_map(|y| (0..across).map(move |x| (y, x)));
                phases.map(|(y, x)| taps(y, kh) * taps(x, kw) * self.y.c.div_ceil(4)).collect()
            }
        }
    }

    /// Columns of C in vec4s: channel groups of the result.
    pub(crate) fn columns(&self, gemm: Gemm) -> usize {
        match gemm {
            Gemm::BackwardInput => self.x.c.div_ceil(4),
            Gemm::Forward | Gemm::BackwardWeight => self.y.c.div_ceil(4),
        }
    }

    /// Rows of C in one phase, and the number of phases: see `shaders/lib/implicit_gemm.wgsl`. The naive kernels have a single phase.
    pub(crate) fn rows(&self, gemm: Gemm, variant: Variant) -> (usize, usize) {
        match (gemm, variant) {
            (Gemm::Forward, _) => (self.y.positions(), 1),
            (Gemm::BackwardInput, Variant::Naive) => (self.x.positions(), 1),
            (Gemm::BackwardInput, _) => (
                self.x.n * self.x.h.div_ceil(self.stride) * self.x.w.div_ceil(self.stride),
                self.stride.min(self.x.h) * self.stride.min(self.x.w),
            ),
            (Gemm::BackwardWeight, _) => (self.kernel.0 * self.kernel.1 * self.x.c.div_ceil(4) * 4, 1),
        }
    }
}

/// Kinds of layers that are computed as convolutions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LayerKind {
    Conv2d,
    /// The adjoint of a convolution, whose x and y are its y and x.
    ConvTranspose2d,
    /// A 1x1 convolution of images of one pixel, whose channels are the elements of the layer's images in device layout.
    Linear,
}

/// A layer with its shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) kind: LayerKind,
    pub(crate) x: Shape,
    pub(crate) y: Shape,
    /// The convolution that computes it.
    pub(crate) geometry: Geometry,
}

impl Layer {
    pub(crate) fn conv2d(x: Shape, channels: usize, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        let op = LayerKind::Conv2d.name();
        let x = x.checked(op, "x")?;
        check_window(op, kernel, stride, padding)?;
        let out = |size: usize| {
            let room = (size + 2 * padding).checked_sub(kernel);
            let fits = format!("at most {}, the padded input", size + 2 * padding);
            Ok(room.ok_or_else(|| Error::argument(format!("kernel size of {op}"), fits, kernel))? / stride + 1)
        };
        let y = Shape::new(x.n, channels, out(x.h)?, out(x.w)?).checked(op, "y")?;
        let geometry = Geometry { x, y, kernel: (kernel, kernel), stride, padding };
        Self { kind: LayerKind::Conv2d, x, y, geometry }.checked()
    }

    pub(crate) fn conv_transpose2d(
        x: Shape,
        channels: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
    ) -> Result<Self> {
        let op = LayerKind::ConvTranspose2d.name();
        let x = x.checked(op, "x")?;
        check_window(op, kernel, stride, padding)?;
        let out = |size: usize| {
            let whole = (size - 1).saturating_mul(stride).saturating_add(kernel);
            let left = whole.checked_sub(2 * padding).filter(|&left| left > 0);
            let fits = || format!("less than {}", whole.div_ceil(2));
            left.ok_or_else(|| Error::argument(format!("padding of {op}"), fits(), padding))
        };
        let y = Shape::new(x.n, channels, out(x.h)?, out(x.w)?).checked(op, "y")?;
        let geometry = Geometry { x: y, y: x, kernel: (kernel, kernel), stride, padding };
        Self { kind: LayerKind::ConvTranspose2d, x, y, geometry }.checked()
    }

    pub(crate) fn linear(x: Shape, out: Shape) -> Result<Self> {
        let op = LayerKind::Linear.name();
        let x = x.checked(op, "x")?;
        let y = out.with_n(x.n).checked(op, "y")?;
        let vectors = |s: Shape| Shape::new(s.n, pad4(s.c) * s.h * s.w, 1, 1);
        let geometry = Geometry { x: vectors(x), y: vectors(y), kernel: (1, 1), stride: 1, padding: 0 };
        Self { kind: LayerKind::Linear, x, y, geometry }.checked()
    }

    /// Rejects weights that are too large.
    fn checked(self) -> Result<Self> {
        let Geometry { x, y, kernel: (kh, kw), .. } = self.geometry;
        Shape::new(pad4(x.c), y.c, kh, kw).checked(self.kind.name(), "weight")?;
        Ok(self)
    }

    pub(crate) fn is_transposed(&self) -> bool {
        self.kind == LayerKind::ConvTranspose2d
    }

    /// Whether it flattens images into vectors, so that rows and columns of the matrix product are not positions and channels.
    pub(crate) fn flattens(&self) -> bool {
        self.kind == LayerKind::Linear && [self.x, self.y].iter().any(|s| s.h * s.w > 1)
    }

    pub(crate) fn forward_gemm(&self) -> Gemm {
        if self.is_transposed() { Gemm::BackwardInput } else { Gemm::Forward }
    }

    pub(crate) fn backward_gemm(&self) -> Gemm {
        if self.is_transposed() { Gemm::Forward } else { Gemm::BackwardInput }
    }

    /// Shape and layout of the weight, and the fan-in that PyTorch counts for it.
    pub(crate) fn weight(&self) -> (Spec, usize) {
        let Geometry { x, y, kernel: (kh, kw), .. } = self.geometry;
        match self.kind {
            LayerKind::Linear => (Spec::linear_weight(self.x, self.y), self.x.c * self.x.h * self.x.w),
            // For a transposed convolution PyTorch counts the elements of `weight[0]`, which are those of an output.
            _ => (Spec::conv_weight(y.c, x.c, kh, kw), x.c * kh * kw),
        }
    }

    /// Shape and layout of the bias.
    pub(crate) fn bias(&self) -> Spec {
        match self.kind {
            LayerKind::Linear => Spec::nhwc(self.y.with_n(1)),
            _ => Spec::vector(self.y.c),
        }
    }

    /// Multiply-adds of each of its products, padding channels not counted.
    pub(crate) fn macs(&self) -> f64 {
        match self.kind {
            LayerKind::Linear => (self.y.len() * self.x.c * self.x.h * self.x.w) as f64,
            _ => self.geometry.macs(),
        }
    }
}

impl LayerKind {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Conv2d => "conv2d",
            Self::ConvTranspose2d => "conv_transpose2d",
            Self::Linear => "linear",
        }
    }
}

/// Rejects windows that are empty or too large.
fn check_window(op: &str, kernel: usize, stride: usize, padding: usize) -> Result<()> {
    for (what, value, least) in [("kernel size", kernel, 1), ("stride", stride, 1), ("padding", padding, 0)] {
        if value < least || value > MAX_WINDOW {
            return Err(Error::argument(format!("{what} of {op}"), format!("{least} to {MAX_WINDOW}"), value));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_share_all_taps() {
        for (kernel, stride, padding) in [(1, 1, 0), (3, 1, 1), (3, 2, 1), (1, 2, 0), (5, 3, 2), (2, 5, 1), (4, 2, 1)] {
            let layer = Layer::conv2d(Shape::new(2, 3, 12, 12), 9, kernel, stride, padding).unwrap();
            let groups = layer.geometry.k_groups(Gemm::BackwardInput);
            assert_eq!(groups.len(), stride * stride);
            assert_eq!(groups.iter().sum::<usize>(), kernel * kernel * 3, "{kernel} {stride} {padding}");
        }
    }

    #[test]
    fn convolution_shapes_follow_the_formula() {
        let x = Shape::new(2, 3, 9, 8);
        let y = |out, kernel, stride, padding| Layer::conv2d(x, out, kernel, stride, padding).map(|l| l.y);
        assert_eq!(y(5, 3, 2, 1).unwrap(), Shape::new(2, 5, 5, 4));
        assert_eq!(y(5, 1, 1, 0).unwrap(), Shape::new(2, 5, 9, 8));
        assert!(y(5, 9, 1, 0).is_err());
        for (out, kernel, stride, padding) in [
            (0, 3, 1, 1),
            (5, 0, 1, 1),
            (5, 3, 0, 1),
            (usize::MAX, 3, 1, 1),
            (5, usize::MAX, 1, 1),
            (5, 3, 1, usize::MAX),
        ] {
            assert!(y(out, kernel, stride, padding).is_err());
        }
        // 2^18 * 2^6 * 2^14 elements of weight.
        assert!(Layer::conv2d(Shape::new(1, 1 << 18, 1, 1), 64, 128, 1, 64).is_err());
    }

    #[test]
    fn transposed_convolution_shapes_follow_the_formula() {
        let x = Shape::new(2, 3, 4, 5);
        let y = |kernel, stride, padding| Layer::conv_transpose2d(x, 7, kernel, stride, padding).map(|l| l.y);
        assert_eq!(y(4, 2, 1).unwrap(), Shape::new(2, 7, 8, 10));
        assert_eq!(y(5, 3, 2).unwrap(), Shape::new(2, 7, 10, 13));
        assert!(y(1, 1, 2).is_err(), "nothing is left of 4 rows");
        assert!(y(4, usize::MAX, 1).is_err());
        assert!(y(4, 1 << 15, 1).is_err(), "more than 2^30 elements");
    }
}
