//! Convolutions, transposed convolutions and linear layers, alone or fused with the operations around them.
//!
//! | file | contents |
//! | --- | --- |
//! | `geometry.rs` | shapes of layers and of their matrix products |
//! | `reference.rs` | CPU loops |
//! | `select.rs` | choice of variant, tile and split-K |
//! | `kernels.rs` | table of kernels |
//! | `lower.rs` | dispatches |
//! | `cases.rs` | cases for the checks |

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::kernel::{Lowered, grad, operand};
use crate::runtime::op::norm::fused::{STATISTICS_ROWS, STATS_ROWS};
use crate::runtime::op::{BatchNorm, ChannelShift, Cost, Init, Op, Operand, Pass, Passes, Role, Target};
use crate::runtime::tensor::{Shape, Spec};

mod cases;
pub(crate) mod geometry;
mod kernels;
mod lower;
mod reference;
mod select;

pub use self::cases::{CONV_TRANSPOSE2D, CONV2D, FUSED_CONV, LINEAR};
use self::geometry::{Layer, LayerKind};
use crate::runtime::op::norm::fused::CHUNK;

/// `y = layer(relu(norm(x))) + bias + residual`, where norm (with its ReLU) and residual are optional, and `layer` is a convolution, a
/// transposed convolution or a linear layer.
///
/// - `x`, `weight`, `bias`, `y`: see [`Conv::conv2d`], [`Conv::conv_transpose2d`] and [`Conv::linear`].
/// - `norm_weight`, `norm_bias`, `running_mean`, `running_var`: those of the [`BatchNorm`].
/// - `residual`: like `y`.
/// - `stats`: the norm, as five rows of `c` values, c being the channels of x: pivot, offset = mean - pivot, rstd,
///   scale = rstd * weight, addend = bias - offset * scale. Then norm(x) = (x - pivot) * scale + addend.
/// - `partials`: statistics of x that the operation before emitted; without them the operation computes them from x. For every 128
///   neighbouring positions, three rows of one value per channel: first value (pivot), mean - pivot, sum of squared deviations.
/// - `y_partials`: the same of y.
///
/// [`Graph::fused`](crate::runtime::graph::Graph::fused) builds the fused forms from single operations. The activations in between are
/// never stored.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// The layer, without what is fused with it.
    pub(crate) layer: Layer,
    prologue: Option<NormRelu>,
    epilogue: Epilogue,
}

/// A norm and a ReLU, applied to x as it is loaded.
#[derive(Clone, Copy, Debug)]
struct NormRelu {
    norm: BatchNorm,
    statistics: Statistics,
}

/// Source of the statistics that a fused norm normalizes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Statistics {
    /// In training x itself, in evaluation the running statistics.
    OfInput,
    /// The operand `partials`.
    Partials,
    /// The operand `stats`: nothing is computed or updated.
    Given,
}

/// Applied to the sums before they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Epilogue {
    /// Whether a tensor is added.
    residual: bool,
    /// Whether statistics of y are an output, too.
    emit_statistics: bool,
}

impl Conv {
    /// A convolution: `y[n, o, oy, ox] = bias[o] + sum over i, ky, kx of
    /// x[n, i, oy * stride - padding + ky, ox * stride - padding + kx] * weight[o, i, ky, kx]`, `x` being zero outside.
    ///
    /// `x`: `[n, c, h, w]`, `weight`: `[channels, c, kernel, kernel]`, `bias`: `[channels]`, `y`: `[n, channels, oh, ow]` with
    /// `oh = (h + 2 * padding - kernel) / stride + 1`, rounded down.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size is zero or too large, or if the kernel is larger than the padded input.
    pub fn conv2d(x: Shape, channels: usize, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        Layer::conv2d(x, channels, kernel, stride, padding).map(Self::plain)
    }

    /// A transposed convolution, the adjoint of a convolution:
    /// `y[n, o, iy * stride - padding + ky, ix * stride - padding + kx] += x[n, i, iy, ix] * weight[i, o, ky, kx]` over all `i`, `iy`,
    /// `ix`, `ky`, `kx` for which y has such an element, starting from `bias[o]`.
    ///
    /// `x`: `[n, c, h, w]`, `weight`: `[c, channels, kernel, kernel]`, `bias`: `[channels]`, `y`: `[n, channels, oh, ow]` with
    /// `oh = (h - 1) * stride - 2 * padding + kernel`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size is zero or too large, or if the padding leaves nothing of y.
    pub fn conv_transpose2d(x: Shape, channels: usize, kernel: usize, stride: usize, padding: usize) -> Result<Self> {
        Layer::conv_transpose2d(x, channels, kernel, stride, padding).map(Self::plain)
    }

    /// A fully connected layer from inputs of shape `x` to outputs with the channels, height and width of `out`:
    /// `y[n] = weight x[n] + bias`, an image being a vector in the order channel, row, column.
    ///
    /// `x`: `[n, c, h, w]`, `weight`: `[oc * oh * ow, c * h * w]`, `bias`: `[1, oc, oh, ow]`, `y`: `[n, oc, oh, ow]`.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if a size is zero or too large.
    pub fn linear(x: Shape, out: Shape) -> Result<Self> {
        Layer::linear(x, out).map(Self::plain)
    }

    fn plain(layer: Layer) -> Self {
        Self { layer, prologue: None, epilogue: Epilogue::default() }
    }

    /// The same with `norm` and its ReLU in front.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] if the norm is not one of x with a ReLU, or if the layer flattens images.
    pub fn with_norm(self, norm: BatchNorm) -> Result<Self> {
        if norm.shape() != self.layer.x || !norm.config().relu || self.layer.flattens() {
            let expected = format!("a norm of {} with a ReLU, before a layer that keeps channels apart", self.layer.x);
            return Err(Error::argument(format!("norm of {}", self.unfused_kind()), expected, norm.shape()));
        }
        Ok(Self { prologue: Some(NormRelu { norm, statistics: Statistics::OfInput }), ..self })
    }

    /// The same with a tensor that is added to the result.
    #[must_use]
    pub fn with_residual(self) -> Self {
        Self { epilogue: Epilogue { residual: true, ..self.epilogue }, ..self }
    }

    /// The same with statistics of y as an output.
    #[must_use]
    pub fn with_y_partials(self) -> Self {
        Self { epilogue: Epilogue { emit_statistics: true, ..self.epilogue }, ..self }
    }

    /// The same with statistics of x as an input, if it computes statistics of x.
    #[must_use]
    pub fn with_partials(self) -> Option<Self> {
        let prologue = self.prologue.filter(|p| p.statistics == Statistics::OfInput && p.norm.config().training)?;
        Some(Self { prologue: Some(NormRelu { statistics: Statistics::Partials, ..prologue }), ..self })
    }

    /// The same function a second time: with the `stats` of the first run as an input, and y as the only output.
    fn again(self) -> Self {
        let prologue = self.prologue.map(|prologue| NormRelu { statistics: Statistics::Given, ..prologue });
        Self { prologue, epilogue: Epilogue { emit_statistics: false, ..self.epilogue }, ..self }
    }

    /// Whether it is a linear layer.
    pub(crate) fn is_linear(&self) -> bool {
        self.layer.kind == LayerKind::Linear
    }

    /// Whether a tensor is added to the result.
    pub(crate) fn has_residual(&self) -> bool {
        self.epilogue.residual
    }

    /// Whether a norm is fused with it.
    pub(crate) fn has_norm(&self) -> bool {
        self.prologue.is_some()
    }

    /// Whether statistics of y are an output.
    pub(crate) fn has_y_partials(&self) -> bool {
        self.epilogue.emit_statistics
    }

    /// Whether a norm in training is fused with it.
    fn training(&self) -> bool {
        self.prologue.is_some_and(|prologue| prologue.norm.config().training)
    }

    /// Whether it computes the `stats` of a norm.
    fn measures(&self) -> bool {
        self.prologue.is_some_and(|prologue| prologue.statistics != Statistics::Given)
    }

    fn statistics(&self) -> Option<Statistics> {
        self.prologue.map(|prologue| prologue.statistics)
    }

    /// Shape and layout of the statistics of a tensor.
    fn partials_of(x: Shape) -> Spec {
        Spec::nhwc(Shape::new(x.positions().div_ceil(CHUNK) * STATISTICS_ROWS, x.c, 1, 1))
    }

    fn forward_pass(&self) -> Pass {
        let mut reads = vec!["x", "weight", "bias"];
        let mut writes = vec!["y"];
        let mut updates = vec![];
        if self.measures() {
            reads.extend(["norm_weight", "norm_bias"]);
            let running = if self.training() { &mut updates } else { &mut reads };
            running.extend(["running_mean", "running_var"]);
            writes.push("stats");
        } else if self.has_norm() {
            reads.push("stats");
        }
        if self.has_residual() {
            reads.push("residual");
        }
        if self.statistics() == Some(Statistics::Partials) {
            reads.push("partials");
        }
        if self.has_y_partials() {
            writes.push("y_partials");
        }
        Pass::forward(reads, writes).updating(updates)
    }
}

impl Op for Conv {
    fn kind(&self) -> &'static str {
        let fused = self.has_norm() || self.epilogue != Epilogue::default();
        if fused { "fused_conv" } else { self.unfused_kind() }
    }

    fn unfused_kind(&self) -> &'static str {
        self.layer.kind.name()
    }

    fn operands(&self) -> Vec<Operand> {
        let Layer { x, y, .. } = self.layer;
        let (weight, fan_in) = self.layer.weight();
        let fan_in = Role::Param(Init::FanIn(fan_in));
        let channels = Spec::vector(x.c);
        let stats = Spec::nhwc(Shape::new(STATS_ROWS, x.c, 1, 1));
        let mut operands = vec![Operand::new("x", Role::Input, Spec::nhwc(x))];
        if self.has_residual() {
            operands.push(Operand::new("residual", Role::Input, Spec::nhwc(y)));
        }
        match self.statistics() {
            Some(Statistics::Partials) => operands.push(Operand::new("partials", Role::Constant, Self::partials_of(x))),
            Some(Statistics::Given) => operands.push(Operand::new("stats", Role::Constant, stats)),
            Some(Statistics::OfInput) | None => {}
        }
        if self.measures() {
            operands.push(Operand::new("norm_weight", Role::Param(Init::Constant(1.0)), channels));
            operands.push(Operand::new("norm_bias", Role::Param(Init::Constant(0.0)), channels));
        }
        operands.push(Operand::new("weight", fan_in, weight));
        operands.push(Operand::new("bias", fan_in, self.layer.bias()));
        if self.measures() {
            operands.push(Operand::new("running_mean", Role::State(0.0), channels));
            operands.push(Operand::new("running_var", Role::State(1.0), channels));
        }
        operands.push(Operand::new("y", Role::Output, Spec::nhwc(y)));
        if self.has_y_partials() {
            operands.push(Operand::new("y_partials", Role::Saved, Self::partials_of(y)));
        }
        if self.measures() {
            operands.push(Operand::new("stats", Role::Saved, stats));
        }
        operands
    }

    fn passes(&self) -> Passes {
        let forward = self.forward_pass();
        if self.statistics() == Some(Statistics::Given) {
            return Passes::only(forward);
        }
        let mut input = Pass::new("backward_input", [grad("y"), operand("weight")], [grad("x")]);
        let mut weight = Pass::new("backward_weight", [operand("x"), grad("y")], [grad("weight")]);
        if self.has_norm() {
            input.reads.extend([operand("x"), operand("stats")]);
            input.writes.extend([grad("norm_weight"), grad("norm_bias")]);
            weight.reads.push(operand("stats"));
        }
        let bias = Pass::new("backward_bias", [grad("y")], [grad("bias")]);
        let aliases = if self.has_residual() { vec![(grad("residual"), grad("y"))] } else { vec![] };
        Passes { forward, backward: vec![input, weight, bias], aliases }
    }

    fn variants(&self, pass: &str) -> &'static [&'static str] {
        select::variants(pass)
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        self.lower_pass(pass, target)
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let (x, y) = (self.layer.x.len() as f64, self.layer.y.len() as f64);
        let normed = if self.has_norm() { x } else { 0.0 };
        let beside = match pass.name {
            "forward" => {
                let per_output = f64::from(self.has_residual()) + if self.has_y_partials() { 5.0 } else { 0.0 };
                4.0 * normed + y * per_output
            }
            "backward_input" => 13.0 * normed,
            "backward_weight" => 4.0 * normed,
            _ => y,
        };
        Cost::of(self, pass, self.product_flop(pass).unwrap_or(0.0) + beside)
    }

    fn product_flop(&self, pass: &Pass) -> Option<f64> {
        (pass.name != "backward_bias").then(|| 2.0 * self.layer.macs())
    }

    fn channel_shift(&self, input: &str) -> ChannelShift {
        match input {
            "x" if self.training() => ChannelShift::Absorbs,
            // Statistics of x move with x, and are only used to normalize it.
            "partials" => ChannelShift::Absorbs,
            "residual" => ChannelShift::Forwards,
            _ => ChannelShift::Depends,
        }
    }

    fn bias_param(&self) -> Option<&'static str> {
        // A linear layer to images has a bias for each element.
        (!self.is_linear() || self.layer.y.h * self.layer.y.w == 1).then_some("bias")
    }

    fn recompute(&self) -> Result<Option<Arc<dyn Op>>> {
        Ok(Some(Arc::new(self.again())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bias_is_a_channel_shift_only_for_single_positions() {
        let x = Shape::new(2, 8, 1, 1);
        assert_eq!(Conv::linear(x, Shape::vector(4)).unwrap().bias_param(), Some("bias"));
        assert_eq!(Conv::linear(x, Shape::new(1, 4, 2, 2)).unwrap().bias_param(), None);
        assert!(Conv::linear(x, Shape::new(1, 0, 2, 2)).is_err());
        assert!(Conv::linear(Shape::new(1, 1 << 16, 1, 1), Shape::vector(1 << 16)).is_err());
    }

    #[test]
    fn kinds_name_the_fused_form_and_the_layer() {
        let conv = Conv::conv2d(Shape::new(2, 8, 4, 4), 8, 3, 1, 1).unwrap();
        assert_eq!((conv.kind(), conv.unfused_kind()), ("conv2d", "conv2d"));
        assert_eq!((conv.with_residual().kind(), conv.with_residual().unfused_kind()), ("fused_conv", "conv2d"));
        assert!(conv.with_partials().is_none(), "no norm computes statistics");
    }
}
