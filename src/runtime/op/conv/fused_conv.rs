//! A convolution with what stands around it in a pre-activation residual block: the norm and ReLU before it, the residual add and
//! the next norm's statistics behind it. [`Graph::fused`](crate::runtime::graph::Graph::fused) makes these from the single operations; the
//! activations in between are never stored.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::runtime::kernel::{Arg, Bind, Lowered, grad, operand};
use crate::runtime::op::conv::core;
use crate::runtime::op::conv::core::{CHUNK, Layer, Operands, Partials, Side, Variant};
use crate::runtime::op::conv::kernels;
use crate::runtime::op::norm::fused;
use crate::runtime::op::norm::fused::{NormParts, STATISTICS_ROWS, STATS_ROWS};
use crate::runtime::op::{
    BatchNorm, BatchNormConfig, Case, ChannelShift, Conv2d, ConvTranspose2d, Cost, Distribution, Init, Op, OpInfo,
    Operand, Pass, Passes, Reference, Role, Target, no_such_pass,
};
use crate::runtime::tensor::real::{Real, blocked_sum};
use crate::runtime::tensor::shape::{Shape, Spec};

/// `y = conv(relu(norm(x))) + bias + residual`, where norm (with its ReLU) and residual may be missing; `conv` is a convolution or
/// a transposed one.
///
/// `x`, `weight`, `bias`, `y`: as those of [`Conv2d`] or [`ConvTranspose2d`]; `norm_weight`, `norm_bias`, `running_mean`,
/// `running_var`: as [`BatchNorm`]'s. `residual`: like `y`. `stats`: five rows of one number a channel of x, which describe the norm:
/// shift, offset = mean - shift, rstd, scale = rstd * weight, addend = bias - offset * scale, so that
/// norm(x) = (x - shift) * scale + addend.
///
/// `partials` are statistics of x that the operation before it made; `y_partials` are those of y: for every 128 pixels in a row three
/// rows of one number a channel: the first value (shift), mean - shift, and the sum of squared deviations. Without `partials` the
/// operation looks at x itself. With `stats` as an input it is the same function once more: see [`Op::recompute`].
#[derive(Clone, Copy, Debug)]
pub struct FusedConv {
    layer: Layer,
    norm: Option<BatchNorm>,
    residual: bool,
    partials: bool,
    y_partials: bool,
    /// `stats` are an input: nothing is looked at or updated.
    stats_given: bool,
}

impl FusedConv {
    /// A convolution and nothing else.
    pub(crate) fn plain(layer: Layer) -> Self {
        Self { layer, norm: None, residual: false, partials: false, y_partials: false, stats_given: false }
    }

    /// With the norm and its ReLU in front of it.
    pub fn with_norm(self, norm: BatchNorm) -> Result<Self> {
        if norm.shape() != self.layer.x() || !norm.config().relu {
            return Err(Error::argument("norm of fused_conv", format!("{} and a ReLU", self.layer.x()), norm.shape()));
        }
        Ok(Self { norm: Some(norm), ..self })
    }

    /// With something to add to the result.
    #[must_use]
    pub fn with_residual(self) -> Self {
        Self { residual: true, ..self }
    }

    /// With statistics of x as an input. Refused without a norm that takes the batch's own statistics.
    pub fn with_partials(self) -> Result<Self> {
        if !self.norm.is_some_and(|norm| norm.config().training) {
            return Err(Error::bug("statistics for a convolution without a norm in training"));
        }
        Ok(Self { partials: true, ..self })
    }

    /// With statistics of y as an output.
    #[must_use]
    pub fn with_y_partials(self) -> Self {
        Self { y_partials: true, ..self }
    }

    /// With `stats` as an input: y once more, from what an earlier run found. Refused without a norm.
    fn with_stats(self) -> Result<Self> {
        if self.norm.is_none() {
            return Err(Error::bug("a norm's numbers for a convolution without one"));
        }
        Ok(Self { stats_given: true, partials: false, y_partials: false, ..self })
    }

    /// Whether something is added to the result.
    pub(crate) fn has_residual(&self) -> bool {
        self.residual
    }

    /// Whether a norm stands in front of it.
    pub(crate) fn has_norm(&self) -> bool {
        self.norm.is_some()
    }

    /// Whether it hands on statistics of y.
    pub(crate) fn has_y_partials(&self) -> bool {
        self.y_partials
    }

    /// Whether it looks at x for statistics that the operation before could hand on.
    pub(crate) fn takes_statistics(&self) -> bool {
        self.training() && !self.partials
    }

    /// Shape and layout of the statistics of a tensor.
    fn partials_of(x: Shape) -> Spec {
        Spec::nhwc(Shape::new(x.pixels().div_ceil(CHUNK) * STATISTICS_ROWS, x.c, 1, 1))
    }

    fn training(&self) -> bool {
        self.norm.is_some_and(|norm| norm.config().training)
    }

    /// `stats` of x.
    fn stats<T: Real>(&self, norm: &BatchNorm, channel: usize, x: &[T], partials: Option<&[T]>) -> (T, T, T, T) {
        let Some(partials) = partials else { return norm.moments(x, channel) };
        let (c, pixels) = (self.layer.x().c, self.layer.x().pixels());
        let row = |chunk: usize, row: usize| partials[(chunk * STATISTICS_ROWS + row) * c + channel];
        let chunks = pixels.div_ceil(CHUNK);
        let count = |chunk: usize| T::from_usize(CHUNK.min(pixels - chunk * CHUNK));
        let shift = row(0, 0);
        let mean = |chunk: usize| row(chunk, 0) - shift + row(chunk, 1);
        let offset = blocked_sum((0..chunks).map(|i| mean(i) * count(i))) / T::from_usize(pixels);
        let squares = blocked_sum((0..chunks).map(|i| row(i, 2) + count(i) * (mean(i) - offset).squared()));
        (shift, offset, norm.inverse_std(squares / T::from_usize(pixels)), squares)
    }

    /// relu(norm(x)) for the rows of `stats`.
    fn activated<T: Real>(&self, x: &[T], stats: &[T]) -> Vec<T> {
        let mut h = x.to_vec();
        let c = self.layer.x().c;
        let plane = self.layer.x().h * self.layer.x().w;
        for (i, plane) in h.chunks_exact_mut(plane).enumerate() {
            let channel = Affine::new(stats, c, i % c);
            plane.iter_mut().for_each(|x| *x = channel.norm(*x).relu());
        }
        h
    }

    fn forward<T: Real>(&self, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        let missing = || no_such_pass(self, "forward");
        let mut reads = reads.iter().copied();
        let mut next = || reads.next().ok_or_else(missing);
        let (x, weight, bias) = (next()?, next()?, next()?);
        let (y, rest) = writes.split_first_mut().ok_or_else(missing)?;
        let mut rest = rest.iter_mut();
        if self.stats_given {
            let stats = next()?;
            let residual = if self.residual { Some(next()?) } else { None };
            self.layer.forward(&self.activated(x, stats), weight, bias, y);
            self.finish(residual, y, None);
        } else if let Some(norm) = &self.norm {
            let (norm_weight, norm_bias) = (next()?, next()?);
            let running = if self.training() { None } else { Some((next()?, next()?)) };
            let residual = if self.residual { Some(next()?) } else { None };
            let partials = if self.partials { Some(next()?) } else { None };
            let c = self.layer.x().c;
            let stats = rest.next().ok_or_else(missing)?;
            let y_partials = if self.y_partials { Some(rest.next().ok_or_else(missing)?) } else { None };
            let mut updates = match running {
                Some(_) => None,
                None => Some((rest.next().ok_or_else(missing)?, rest.next().ok_or_else(missing)?)),
            };
            for i in 0..c {
                let (shift, offset, rstd, squares) = match running {
                    Some((mean, var)) => (mean[i], T::zero(), norm.inverse_std(var[i]), T::zero()),
                    None => self.stats(norm, i, x, partials),
                };
                let scale = rstd * norm_weight[i];
                let rows = [shift, offset, rstd, scale, norm_bias[i] - offset * scale];
                for (row, value) in rows.into_iter().enumerate() {
                    stats[row * c + i] = value;
                }
                if let Some((running_mean, running_var)) = &mut updates {
                    let unbiased = squares / T::from_usize(self.layer.x().pixels() - 1);
                    norm.update(&mut running_mean[i], shift + offset);
                    norm.update(&mut running_var[i], unbiased);
                }
            }
            self.layer.forward(&self.activated(x, stats), weight, bias, y);
            self.finish(residual, y, y_partials.map(|p| &mut **p));
        } else {
            let residual = if self.residual { Some(next()?) } else { None };
            let y_partials = if self.y_partials { Some(rest.next().ok_or_else(missing)?) } else { None };
            self.layer.forward(x, weight, bias, y);
            self.finish(residual, y, y_partials.map(|p| &mut **p));
        }
        Ok(())
    }

    /// Adds the residual and takes the statistics of y.
    fn finish<T: Real>(&self, residual: Option<&[T]>, y: &mut [T], partials: Option<&mut [T]>) {
        if let Some(residual) = residual {
            y.iter_mut().zip(residual).for_each(|(y, r)| *y += *r);
        }
        let Some(partials) = partials else { return };
        let Shape { n, c, h, w } = self.layer.y();
        let at = |pixel: usize, channel: usize| y[(pixel / (h * w) * c + channel) * h * w + pixel % (h * w)];
        for (chunk, first) in (0..n * h * w).step_by(CHUNK).enumerate() {
            let pixels = first..(first + CHUNK).min(n * h * w);
            let count = T::from_usize(pixels.len());
            for channel in 0..c {
                let shift = at(first, channel);
                let differences = || pixels.clone().map(|pixel| at(pixel, channel) - shift);
                let mean = blocked_sum(differences()) / count;
                let squares = blocked_sum(differences().map(|d| (d - mean).squared()));
                for (row, value) in [shift, mean, squares].into_iter().enumerate() {
                    partials[(chunk * STATISTICS_ROWS + row) * c + channel] = value;
                }
            }
        }
    }

    /// Gradients of x and the norm's parameters from that of relu(norm(x)), which is `g` on pass.
    fn norm_gradient<T: Real>(&self, x: &[T], stats: &[T], g: &mut [T], dx: &mut [T], dw: &mut [T], db: &mut [T]) {
        let Shape { c, h, w, .. } = self.layer.x();
        let plane = h * w;
        dw.fill(T::zero());
        db.fill(T::zero());
        for (i, (g, x)) in g.chunks_exact_mut(plane).zip(x.chunks_exact(plane)).enumerate() {
            let channel = Affine::new(stats, c, i % c);
            let (mut sum_gx, mut sum_g) = (T::zero(), T::zero());
            for (g, x) in g.iter_mut().zip(x) {
                if channel.norm(*x) <= T::zero() {
                    *g = T::zero();
                }
                sum_g += *g;
                sum_gx += *g * channel.normalized(*x);
            }
            dw[i % c] += sum_gx;
            db[i % c] += sum_g;
        }
        let count = T::from_usize(self.layer.x().pixels());
        let planes = dx.chunks_exact_mut(plane).zip(g.chunks_exact(plane)).zip(x.chunks_exact(plane));
        for (i, ((dx, g), x)) in planes.enumerate() {
            let channel = Affine::new(stats, c, i % c);
            let (mean_g, mean_gx) = (db[i % c] / count, dw[i % c] / count);
            for ((dx, g), x) in dx.iter_mut().zip(g).zip(x) {
                let g = if self.training() { *g - mean_g - channel.normalized(*x) * mean_gx } else { *g };
                *dx = g * channel.scale;
            }
        }
    }
}

impl Reference for FusedConv {
    fn reference<T: Real>(&self, pass: &str, reads: &[&[T]], writes: &mut [&mut [T]]) -> Result<()> {
        match (pass, reads, writes) {
            ("forward", reads, writes) => self.forward(reads, writes)?,
            ("backward_input", [dy, weight], [dx]) => self.layer.backward_input(dy, weight, dx),
            ("backward_input", [dy, weight, x, stats], [dx, dw, db]) => {
                let mut g = vec![T::zero(); x.len()];
                self.layer.backward_input(dy, weight, &mut g);
                self.norm_gradient(x, stats, &mut g, dx, dw, db);
            }
            ("backward_weight", [x, dy], [dweight]) => self.layer.backward_weight(x, dy, dweight),
            ("backward_weight", [x, dy, stats], [dweight]) => {
                self.layer.backward_weight(&self.activated(x, stats), dy, dweight);
            }
            ("backward_bias", [dy], [dbias]) => {
                let y = self.layer.y();
                core::backward_bias(dy, y.c, y.h * y.w, dbias);
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(())
    }
}

/// A row of each of `stats`.
struct Affine<T> {
    shift: T,
    offset: T,
    rstd: T,
    scale: T,
    addend: T,
}

impl<T: Real> Affine<T> {
    fn new(stats: &[T], channels: usize, channel: usize) -> Self {
        let row = |row: usize| stats[row * channels + channel];
        Self { shift: row(0), offset: row(1), rstd: row(2), scale: row(3), addend: row(4) }
    }

    fn norm(&self, x: T) -> T {
        (x - self.shift) * self.scale + self.addend
    }

    fn normalized(&self, x: T) -> T {
        (x - self.shift - self.offset) * self.rstd
    }
}

impl Op for FusedConv {
    fn kind(&self) -> &'static str {
        INFO.name
    }

    fn unfused_kind(&self) -> &'static str {
        if self.layer.transposed { "conv_transpose2d" } else { "conv2d" }
    }

    fn operands(&self) -> Vec<Operand> {
        let (x, y) = (self.layer.x(), self.layer.y());
        let (weight, fan_in) = self.layer.weight();
        let fan_in = Role::Param(Init::FanIn(fan_in));
        let vector = Spec::vector(x.c);
        let mut operands = vec![Operand::new("x", Role::Input, Spec::nhwc(x))];
        if self.residual {
            operands.push(Operand::new("residual", Role::Input, Spec::nhwc(y)));
        }
        if self.partials {
            operands.push(Operand::new("partials", Role::Constant, Self::partials_of(x)));
        }
        let stats = Spec::nhwc(Shape::new(STATS_ROWS, x.c, 1, 1));
        if self.stats_given {
            operands.push(Operand::new("stats", Role::Constant, stats));
        }
        let measures = self.norm.is_some() && !self.stats_given;
        if measures {
            operands.push(Operand::new("norm_weight", Role::Param(Init::Constant(1.0)), vector));
            operands.push(Operand::new("norm_bias", Role::Param(Init::Constant(0.0)), vector));
        }
        operands.push(Operand::new("weight", fan_in, weight));
        operands.push(Operand::new("bias", fan_in, Spec::vector(y.c)));
        if measures {
            operands.push(Operand::new("running_mean", Role::State(0.0), vector));
            operands.push(Operand::new("running_var", Role::State(1.0), vector));
        }
        operands.push(Operand::new("y", Role::Output, Spec::nhwc(y)));
        if self.y_partials {
            operands.push(Operand::new("y_partials", Role::Saved, Self::partials_of(y)));
        }
        if measures {
            operands.push(Operand::new("stats", Role::Saved, stats));
        }
        operands
    }

    fn passes(&self) -> Passes {
        let mut reads = vec!["x", "weight", "bias"];
        let mut writes = vec!["y"];
        if self.stats_given {
            reads.push("stats");
        } else if self.norm.is_some() {
            reads.extend(["norm_weight", "norm_bias"]);
            if !self.training() {
                reads.extend(["running_mean", "running_var"]);
            }
            writes.push("stats");
        }
        if self.residual {
            reads.push("residual");
        }
        if self.partials {
            reads.push("partials");
        }
        if self.y_partials {
            writes.push("y_partials");
        }
        let mut forward = Pass::forward(reads, writes);
        if self.stats_given {
            return Passes::only(forward);
        }
        if self.training() {
            forward = forward.updating(["running_mean", "running_var"]);
        }
        let mut backward = core::passes().backward;
        if let (true, [input, weight, _]) = (self.norm.is_some(), backward.as_mut_slice()) {
            input.reads.extend([operand("x"), operand("stats")]);
            input.writes.extend([grad("norm_weight"), grad("norm_bias")]);
            weight.reads.push(operand("stats"));
        }
        let aliases = if self.residual { vec![(grad("residual"), grad("y"))] } else { vec![] };
        Passes { forward, backward, aliases }
    }

    fn variants(&self, pass: &str) -> &'static [&'static str] {
        core::variants(pass)
    }

    fn lower(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let operand = |name| Bind::Arg(operand(name));
        let layer = &self.layer;
        let geometry = &layer.geometry;
        let norm = self.norm.map(|norm| NormParts::new(layer.x(), norm.config(), target.profile));
        let stats = norm.map(|_| operand("stats"));
        let plain = Operands {
            bias: Some(operand("bias")),
            ..Operands::plain(Arg::Operand("x"), Arg::Operand("weight"), None, Arg::Operand("y"))
        };
        let mut lowered = Lowered::default();
        match pass {
            "forward" => {
                if let Some(norm) = norm.filter(|_| !self.stats_given) {
                    let partials = match (self.training(), self.partials) {
                        (false, _) => None,
                        (true, true) => Some(operand("partials")),
                        (true, false) => {
                            let partials = norm.statistics_scratch(&mut lowered);
                            norm.statistics(&mut lowered, operand("x"), partials);
                            Some(partials)
                        }
                    };
                    norm.stats(&mut lowered, partials);
                }
                // Statistics are of 128 pixels in a row: tiles of phases are not.
                let product = layer.forward_product();
                let tiles = geometry.tiles(product, target)?;
                let with_product = self.y_partials && tiles.is_some_and(|(_, phases)| phases == 1);
                let operands = Operands {
                    stats,
                    norm: norm.map(|_| Side::A),
                    residual: self.residual.then_some(operand("residual")),
                    partials: with_product.then_some((Partials::Statistics, operand("y_partials"))),
                    ..plain
                };
                geometry.lower_into(&mut lowered, product, &operands, target, target.acc(0))?;
                if self.y_partials && !with_product {
                    let of_y = NormParts::new(layer.y(), BatchNormConfig::default(), target.profile);
                    of_y.statistics(&mut lowered, operand("y"), operand("y_partials"));
                }
            }
            "backward_input" => {
                let product = layer.backward_product();
                let Some(norm) = norm else {
                    let operands = Operands::plain(grad("y"), Arg::Operand("weight"), None, grad("x"));
                    return geometry.lower(product, &operands, target);
                };
                let g = lowered.new_scratch(Spec::nhwc(layer.x()).device_bytes());
                let row = 16 * layer.x().c.div_ceil(4);
                let sums =
                    geometry.tiles(product, target)?.map(|(tiles, _)| (lowered.new_scratch(2 * tiles * row), tiles));
                let operands = Operands {
                    c: g,
                    stats,
                    gate: Some(operand("x")),
                    partials: sums.map(|(sums, _)| (Partials::Gradient, sums)),
                    ..Operands::plain(grad("y"), Arg::Operand("weight"), None, grad("x"))
                };
                geometry.lower_into(&mut lowered, product, &operands, target, false)?;
                let acc = [0, 1, 2].map(|i| target.acc(i));
                let texture = core::variant_for(product, geometry, target)? == Variant::Lanes;
                norm.gradient(&mut lowered, g, sums, acc, texture);
            }
            "backward_weight" => {
                let side = if layer.transposed { Side::B } else { Side::A };
                let x = Arg::Operand("x");
                let (a, b) = if layer.transposed { (grad("y"), x) } else { (x, grad("y")) };
                let operands =
                    Operands { stats, norm: norm.map(|_| side), ..Operands::plain(a, b, None, grad("weight")) };
                return geometry.lower(core::Gemm::BackwardWeight, &operands, target);
            }
            "backward_bias" => {
                return core::lower_bias(layer.y().pixels(), layer.y().c.div_ceil(4), target);
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(lowered)
    }

    fn cost(&self, pass: &Pass) -> Result<Cost> {
        let (x, y) = (self.layer.x().len() as f64, self.layer.y().len() as f64);
        let normed = if self.norm.is_some() { x } else { 0.0 };
        let macs = 2.0 * self.layer.geometry.macs();
        let flop = match pass.name {
            "forward" => {
                let behind = f64::from(self.residual) + if self.y_partials { 5.0 } else { 0.0 };
                macs + 4.0 * normed + y * behind
            }
            "backward_input" => macs + 13.0 * normed,
            "backward_weight" => macs + 4.0 * normed,
            _ => y,
        };
        Cost::of(self, pass, flop)
    }

    fn product_flop(&self, pass: &Pass) -> Option<f64> {
        (pass.name != "backward_bias").then(|| 2.0 * self.layer.geometry.macs())
    }

    fn channel_shift(&self, input: &str) -> ChannelShift {
        match input {
            "x" if self.training() => ChannelShift::Absorbs,
            // Statistics of x: they are only used where x is normalized, and move with it.
            "partials" => ChannelShift::Absorbs,
            "residual" => ChannelShift::Forwards,
            _ => ChannelShift::Depends,
        }
    }

    fn bias_param(&self) -> Option<&'static str> {
        Some("bias")
    }

    fn recompute(&self) -> Result<Option<Arc<dyn Op>>> {
        let op = if self.norm.is_some() { self.with_stats()? } else { Self { y_partials: false, ..*self } };
        Ok(Some(Arc::new(op)))
    }
}

/// The line of the table of operations.
pub static INFO: OpInfo = OpInfo {
    name: "fused_conv",
    kernels: || kernels::all_kernels().into_iter().chain(fused::kernels()).collect(),
    cases: || {
        let conv = |x: Shape, out: usize, kernel: usize, stride: usize| -> Result<FusedConv> {
            Ok(Conv2d::new(x, out, kernel, stride, kernel / 2)?.fusible())
        };
        let up = |x: Shape, out: usize| -> Result<FusedConv> { Ok(ConvTranspose2d::new(x, out, 4, 2, 1)?.fusible()) };
        let norm = |x: Shape, training: bool| {
            BatchNorm::new(x, BatchNormConfig { training, relu: true, ..BatchNormConfig::default() })
        };
        let (small, tails, wide) = (Shape::new(2, 5, 5, 7), Shape::new(3, 36, 9, 9), Shape::new(5, 64, 8, 8));
        let to_rgb = Shape::new(2, 8, 12, 12);
        let kept_out = |case: Case| case.not_differentiated();
        Ok(vec![
            Case::new("norm_3x3", conv(small, 6, 3, 1)?.with_norm(norm(small, true)?)?),
            Case::new("norm_1x1_residual", conv(small, 7, 1, 1)?.with_norm(norm(small, true)?)?.with_residual()),
            Case::new("norm_3x3_stride2", conv(small, 6, 3, 2)?.with_norm(norm(small, true)?)?),
            Case::new("norm_up", up(small, 6)?.with_norm(norm(small, true)?)?),
            Case::new("norm_evaluation", conv(small, 6, 3, 1)?.with_norm(norm(small, false)?)?.with_residual())
                .fill("running_var", Distribution::Uniform(0.5, 2.0)),
            kept_out(
                Case::new(
                    "norm_3x3_again",
                    conv(tails, 6, 3, 1)?.with_norm(norm(tails, true)?)?.with_residual().with_stats()?,
                )
                .fill("stats", Distribution::Uniform(-1.0, 1.0)),
            ),
            Case::new("residual", conv(small, 5, 3, 1)?.with_residual()),
            Case::new("norm_to_rgb", conv(to_rgb, 3, 3, 1)?.with_norm(norm(to_rgb, true)?)?),
            kept_out(Case::new("stem_statistics", conv(Shape::new(3, 3, 8, 8), 33, 3, 1)?.with_y_partials())),
            // Statistics come as numbers of their own here: nothing that a difference in x could move.
            kept_out(
                Case::new(
                    "all_tails",
                    conv(tails, 68, 3, 1)?
                        .with_norm(norm(tails, true)?)?
                        .with_residual()
                        .with_partials()?
                        .with_y_partials(),
                )
                .fill("partials", Distribution::Uniform(0.5, 1.5)),
            ),
            kept_out(Case::new(
                "1x1_statistics_tails",
                conv(wide, 36, 1, 1)?.with_norm(norm(wide, true)?)?.with_y_partials(),
            )),
            kept_out(Case::new("up_statistics", up(wide, 36)?.with_norm(norm(wide, true)?)?.with_y_partials())),
            kept_out(
                Case::new("far_mean", conv(wide, 16, 1, 1)?.with_norm(norm(wide, true)?)?)
                    .fill("x", Distribution::Normal(1e3, 1e-2)),
            ),
        ])
    },
};
