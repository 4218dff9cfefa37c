//! The convolution behind [`Conv2d`](crate::runtime::op::conv::conv2d::Conv2d), [`ConvTranspose2d`](crate::runtime::op::conv::conv_transpose2d::ConvTranspose2d) and
//! [`Linear`](crate::runtime::op::conv::linear::Linear): its geometry, its reference, its three products and the choice of their variants, whose
//! kernels are in [`conv_kernels`](crate::runtime::op::conv::kernels).
//!
//! A transposed convolution is the adjoint of a convolution, so its forward is [`Gemm::BackwardInput`] and its input
//! gradient [`Gemm::Forward`]; a linear layer is a 1x1 convolution of pictures of one pixel.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Arg, Bind, DeviceKind, Dispatch, Kernel, Lowered, Profile, grad, operand, workgroups};
use crate::runtime::op::basic::column_sum::column_sum;
use crate::runtime::op::conv::kernels::{Params, kernel_for};
use crate::runtime::op::{Cost, Op, Pass, Passes, Target, spec_of};
use crate::runtime::sys::threads;
use crate::runtime::tensor::real::Real;
use crate::runtime::tensor::shape::{Shape, Spec};

/// A convolution of `x` to `y`, both `[n, c, h, w]`: windows of `kernel` (height, width), `stride` apart, the first one
/// beginning at `-padding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) x: Shape,
    pub(crate) y: Shape,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: usize,
    pub(crate) padding: usize,
}

/// A convolution, or the transposed one that is its adjoint: then x and y are exchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layer {
    pub(crate) geometry: Geometry,
    pub(crate) transposed: bool,
}

impl Layer {
    pub(crate) fn x(&self) -> Shape {
        if self.transposed { self.geometry.y } else { self.geometry.x }
    }

    pub(crate) fn y(&self) -> Shape {
        if self.transposed { self.geometry.x } else { self.geometry.y }
    }

    /// Shape and layout of the weight, and how many of its numbers PyTorch counts as meeting in one output.
    pub(crate) fn weight(&self) -> (Spec, usize) {
        let Geometry { x, y, kernel: (kh, kw), .. } = self.geometry;
        (Spec::conv_weight(y.c, x.c, kh, kw), x.c * kh * kw)
    }

    pub(crate) fn forward_product(&self) -> Gemm {
        if self.transposed { Gemm::BackwardInput } else { Gemm::Forward }
    }

    pub(crate) fn backward_product(&self) -> Gemm {
        if self.transposed { Gemm::Forward } else { Gemm::BackwardInput }
    }

    pub(crate) fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: &[T], y: &mut [T]) {
        if self.transposed {
            self.geometry.backward_input(x, weight, Some(bias), y);
        } else {
            self.geometry.forward(x, weight, Some(bias), y);
        }
    }

    pub(crate) fn backward_input<T: Real>(&self, dy: &[T], weight: &[T], dx: &mut [T]) {
        if self.transposed {
            self.geometry.forward(dy, weight, None, dx);
        } else {
            self.geometry.backward_input(dy, weight, None, dx);
        }
    }

    pub(crate) fn backward_weight<T: Real>(&self, x: &[T], dy: &[T], dweight: &mut [T]) {
        let (a, b) = if self.transposed { (dy, x) } else { (x, dy) };
        self.geometry.backward_weight(a, b, dweight);
    }
}

/// The three sums of products of a convolution, as `A B = C`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gemm {
    /// `x weight = y`.
    Forward,
    /// `dy weight = dx`.
    BackwardInput,
    /// `x dy = dweight`.
    BackwardWeight,
}

/// Kernel, stride and padding may not exceed this, so that 32-bit signed arithmetic on the device cannot overflow.
const MAX_WINDOW: usize = 1 << 15;

/// Refuses windows that are empty or absurd.
pub(crate) fn check_window(op: &str, kernel: (usize, usize), stride: usize, padding: usize) -> Result<()> {
    for (what, value, least) in
        [("kernel height", kernel.0, 1), ("kernel width", kernel.1, 1), ("stride", stride, 1), ("padding", padding, 0)]
    {
        if value < least || value > MAX_WINDOW {
            return Err(Error::argument(format!("{what} of {op}"), format!("{least} to {MAX_WINDOW}"), value));
        }
    }
    Ok(())
}

/// Refuses weights of absurd size.
pub(crate) fn check_weight(op: &str, geometry: &Geometry) -> Result<()> {
    let (kh, kw) = geometry.kernel;
    Shape::new(geometry.x.c.next_multiple_of(4), geometry.y.c, kh, kw).checked(op, "weight").map(|_| ())
}

/// The passes of each operation of the family: the gradients of a linear map, one each.
pub(crate) fn passes() -> Passes {
    Passes {
        forward: Pass::forward(["x", "weight", "bias"], ["y"]),
        backward: vec![
            Pass::new("backward_input", [grad("y"), operand("weight")], [grad("x")]),
            Pass::new("backward_weight", [operand("x"), grad("y")], [grad("weight")]),
            Pass::new("backward_bias", [grad("y")], [grad("bias")]),
        ],
        aliases: vec![],
    }
}

impl Geometry {
    /// Multiply-adds of each of the three products; windows that reach into the padding count in full.
    pub(crate) fn macs(&self) -> f64 {
        (self.y.pixels() * self.y.c) as f64 * (self.x.c * self.kernel.0 * self.kernel.1) as f64
    }

    /// The cost of `pass`: two operations for each multiply-add of a product, one an element of `dy` for a bias gradient.
    pub(crate) fn cost(&self, op: &dyn Op, pass: &Pass) -> Result<Cost> {
        let flop = match pass.name {
            "backward_bias" => spec_of(op, operand("y"))?.len() as f64,
            _ => 2.0 * self.macs(),
        };
        Cost::of(op, pass, flop)
    }

    /// Calls `f(k, x row, y row)` for every pair of rows of two planes that tap `k` of the window joins, with the rows' first
    /// joined elements and their number: element `i` of the one meets element `i * stride` of the other.
    fn for_rows(&self, mut f: impl FnMut(usize, usize, usize, usize)) {
        let (kh, kw) = self.kernel;
        for ky in 0..kh {
            for kx in 0..kw {
                // Columns of y whose window has this tap inside x: ox * stride + kx - padding in 0..w.
                let first = self.padding.saturating_sub(kx).div_ceil(self.stride);
                let end = (self.x.w + self.padding).saturating_sub(kx).div_ceil(self.stride).min(self.y.w);
                if first >= end {
                    continue;
                }
                for oy in 0..self.y.h {
                    let Some(iy) = (oy * self.stride + ky).checked_sub(self.padding).filter(|&iy| iy < self.x.h) else {
                        continue;
                    };
                    let ix = first * self.stride + kx - self.padding;
                    f(ky * kw + kx, iy * self.x.w + ix, oy * self.y.w + first, end - first);
                }
            }
        }
    }

    /// Elements of a plane of `x`, a plane of `y` and a window.
    fn plane_sizes(&self) -> (usize, usize, usize) {
        (self.x.h * self.x.w, self.y.h * self.y.w, self.kernel.0 * self.kernel.1)
    }

    /// `y[n, o] = bias[o] + sum over i of x[n, i] * weight[o, i]`, `*` being the windowed product.
    pub(crate) fn forward<T: Real>(&self, x: &[T], weight: &[T], bias: Option<&[T]>, y: &mut [T]) {
        let (xs, ys, ks) = self.plane_sizes();
        threads::for_parts(y, ys, self.macs(), |plane, y| {
            let (n, o) = (plane / self.y.c, plane % self.y.c);
            y.fill(T::zero());
            for i in 0..self.x.c {
                let x = &x[(n * self.x.c + i) * xs..][..xs];
                let weight = &weight[(o * self.x.c + i) * ks..][..ks];
                self.for_rows(|k, xi, yi, len| {
                    let w = weight[k];
                    let y = &mut y[yi..][..len];
                    if self.stride == 1 {
                        y.iter_mut().zip(&x[xi..]).for_each(|(y, x)| *y += *x * w);
                    } else {
                        y.iter_mut().zip(x[xi..].iter().step_by(self.stride)).for_each(|(y, x)| *y += *x * w);
                    }
                });
            }
        });
        add_bias(y, bias, self.y.c, ys);
    }

    /// The adjoint of [`Self::forward`] in `x`, with a bias for each channel of `x` where it is a transposed convolution's.
    pub(crate) fn backward_input<T: Real>(&self, dy: &[T], weight: &[T], bias: Option<&[T]>, dx: &mut [T]) {
        let (xs, ys, ks) = self.plane_sizes();
        threads::for_parts(dx, xs, self.macs(), |plane, dx| {
            let (n, i) = (plane / self.x.c, plane % self.x.c);
            dx.fill(T::zero());
            for o in 0..self.y.c {
                let dy = &dy[(n * self.y.c + o) * ys..][..ys];
                let weight = &weight[(o * self.x.c + i) * ks..][..ks];
                self.for_rows(|k, xi, yi, len| {
                    let w = weight[k];
                    let dy = &dy[yi..][..len];
                    if self.stride == 1 {
                        dx[xi..].iter_mut().zip(dy).for_each(|(dx, dy)| *dx += *dy * w);
                    } else {
                        dx[xi..].iter_mut().step_by(self.stride).zip(dy).for_each(|(dx, dy)| *dx += *dy * w);
                    }
                });
            }
        });
        add_bias(dx, bias, self.x.c, xs);
    }

    /// `dweight[o, i]`: the windowed products of `x[n, i]` and `dy[n, o]`, summed over the images.
    pub(crate) fn backward_weight<T: Real>(&self, x: &[T], dy: &[T], dweight: &mut [T]) {
        let (xs, ys, ks) = self.plane_sizes();
        threads::for_parts(dweight, self.x.c * ks, self.macs(), |o, dweight| {
            dweight.fill(T::zero());
            for n in 0..self.y.n {
                let dy = &dy[(n * self.y.c + o) * ys..][..ys];
                for (i, dweight) in dweight.chunks_exact_mut(ks).enumerate() {
                    let x = &x[(n * self.x.c + i) * xs..][..xs];
                    self.for_rows(|k, xi, yi, len| dweight[k] += dot(&x[xi..], self.stride, &dy[yi..][..len]));
                }
            }
        });
    }
}

/// Adds `bias[c]` to all elements of channel `c`.
fn add_bias<T: Real>(y: &mut [T], bias: Option<&[T]>, channels: usize, plane: usize) {
    let Some(bias) = bias else { return };
    for (i, y) in y.chunks_exact_mut(plane).enumerate() {
        y.iter_mut().for_each(|y| *y += bias[i % channels]);
    }
}

/// `sum of x[i * stride] * y[i]`, as eight interleaved sums, which is what vector units can do.
pub(crate) fn dot<T: Real>(x: &[T], stride: usize, y: &[T]) -> T {
    let mut sums = [T::zero(); 8];
    let whole = y.len() / 8 * 8;
    if stride == 1 {
        for (x, y) in x[..whole].chunks_exact(8).zip(y.chunks_exact(8)) {
            for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
                *sum += *x * *y;
            }
        }
    } else {
        for (i, y) in y[..whole].iter().enumerate() {
            sums[i % 8] += x[i * stride] * *y;
        }
    }
    for (i, y) in y.iter().enumerate().skip(whole) {
        sums[i % 8] += x[i * stride] * *y;
    }
    sums.into_iter().sum()
}

/// `dbias[c]`: the sum of channel `c` of `dy`, over images and pixels.
pub(crate) fn backward_bias<T: Real>(dy: &[T], channels: usize, plane: usize, dbias: &mut [T]) {
    dbias.fill(T::zero());
    for (i, dy) in dy.chunks_exact(plane).enumerate() {
        dbias[i % channels] += dy.iter().copied().sum();
    }
}

/// A family of kernels for a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Variant {
    /// One vec4 an invocation, plain loops.
    Naive,
    /// Tiles in workgroup memory: graphics processors.
    Tiled,
    /// Register tiles, operands staged in textures, one of them handed round by subgroup operations: software adapters.
    Lanes,
    /// The same with operands in buffers.
    LanesBuffers,
    /// The same tiles with plain loads from buffers.
    LanesPlain,
}

/// Names of the variants of a product.
const VARIANTS: &[&str] = &["tiled", "lanes", "lanes_buffers", "lanes_plain", "naive"];

/// Name of the one variant of a bias gradient.
const BIAS_VARIANTS: &[&str] = &["column_sum"];

/// The names of the variants of a pass.
pub(crate) fn variants(pass: &str) -> &'static [&'static str] {
    if pass == "backward_bias" { BIAS_VARIANTS } else { VARIANTS }
}

/// The dispatches of a bias gradient: the sums of the columns of `dy`, `rows` times `columns` quadruples.
pub(crate) fn lower_bias(rows: usize, columns: usize, target: &Target<'_>) -> Result<Lowered> {
    if let Some(name) = target.variant.filter(|name| !BIAS_VARIANTS.contains(name)) {
        return Err(unknown_variant(name, BIAS_VARIANTS));
    }
    let mut lowered = Lowered::default();
    column_sum(&mut lowered, grad("y").into(), grad("bias").into(), rows, columns, target.acc(0));
    Ok(lowered)
}

fn unknown_variant(name: &str, known: &[&str]) -> Error {
    Error::Unknown { kind: "variant", name: name.into(), known: known.join(", ") }
}

/// The smallest subgroup that `lanes` is right for.
const LANES: u32 = 8;

/// Up to this many multiply-adds a product is not worth a tile.
const TINY: f64 = 32_768.0;

/// Up to this many columns (quadruples) of C, a workgroup's tile would be mostly empty.
const NARROW: usize = 2;

/// The best variant for a product on a device. The weight gradient is never taken for narrow: its long sums need splitting.
pub(crate) fn choose(product: Gemm, geometry: &Geometry, profile: &Profile) -> Variant {
    let columns = geometry.columns(product);
    match profile.kind {
        _ if geometry.macs() <= TINY => Variant::Naive,
        DeviceKind::Software if has_lanes(profile) && geometry.can_stage(profile) => Variant::Lanes,
        DeviceKind::Software if has_lanes(profile) => Variant::LanesBuffers,
        DeviceKind::Software => Variant::LanesPlain,
        DeviceKind::Gpu if columns <= NARROW && product != Gemm::BackwardWeight => Variant::Naive,
        DeviceKind::Gpu => Variant::Tiled,
    }
}

fn has_lanes(profile: &Profile) -> bool {
    profile.subgroup.is_some_and(|(least, _)| least >= LANES)
}

/// The variant that was asked for, or the best one.
pub(crate) fn variant_for(product: Gemm, geometry: &Geometry, target: &Target<'_>) -> Result<Variant> {
    match target.variant {
        None => Ok(choose(product, geometry, target.profile)),
        Some("naive") => Ok(Variant::Naive),
        Some("tiled") => Ok(Variant::Tiled),
        Some("lanes_plain") => Ok(Variant::LanesPlain),
        Some(name @ ("lanes" | "lanes_buffers")) if !has_lanes(target.profile) => Err(Error::Unsupported {
            what: format!("variant `{name}`"),
            needs: format!("subgroup operations on at least {LANES} invocations"),
        }),
        Some("lanes") if !geometry.can_stage(target.profile) => Err(Error::Unsupported {
            what: "variant `lanes`".into(),
            needs: format!("tensors of at most {} bytes", target.profile.max_texture),
        }),
        Some("lanes") => Ok(Variant::Lanes),
        Some("lanes_buffers") => Ok(Variant::LanesBuffers),
        Some(name) => Err(unknown_variant(name, VARIANTS)),
    }
}

/// The operands of a product, and what happens to them on the way in and out: see `shaders/lib/conv_fused.wgsl`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operands {
    pub(crate) a: Bind,
    pub(crate) b: Bind,
    pub(crate) c: Bind,
    pub(crate) bias: Option<Bind>,
    /// Statistics of the norm in front of an operand, or of the one whose gradient C is.
    pub(crate) stats: Option<Bind>,
    /// Which operand the norm stands before.
    pub(crate) norm: Option<Side>,
    /// What is added to C.
    pub(crate) residual: Option<Bind>,
    /// What the norm whose gradient C is was applied to.
    pub(crate) gate: Option<Bind>,
    /// Sums over the rows of each tile, where [`Geometry::tiles`] says that the kernel makes them.
    pub(crate) partials: Option<(Partials, Bind)>,
}

/// A side of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    A,
    B,
}

/// What is summed over the rows of a tile of C.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Partials {
    /// ChannelShift, mean - shift and squared deviations: three rows a tile.
    Statistics = 1,
    /// C, and C times the normalized gate: two rows a tile.
    Gradient = 2,
}

/// Rows of C whose sums the statistics of one chunk are: those of a tile of the `lanes` and `tiled` kernels.
pub(crate) const CHUNK: usize = 128;

impl Operands {
    /// A product and nothing else.
    pub(crate) fn plain(a: Arg, b: Arg, bias: Option<Arg>, c: Arg) -> Self {
        Self {
            a: a.into(),
            b: b.into(),
            c: c.into(),
            bias: bias.map(Bind::Arg),
            stats: None,
            norm: None,
            residual: None,
            gate: None,
            partials: None,
        }
    }
}

impl Geometry {
    /// Channels of C, in quadruples.
    fn columns(&self, product: Gemm) -> usize {
        match product {
            Gemm::BackwardInput => self.x.c.div_ceil(4),
            Gemm::Forward | Gemm::BackwardWeight => self.y.c.div_ceil(4),
        }
    }

    /// Whether every operand can be read from a texture.
    fn can_stage(&self, profile: &Profile) -> bool {
        let bytes = |s: Shape| 16 * s.pixels() * s.c.div_ceil(4);
        let weight = 64 * self.kernel.0 * self.kernel.1 * self.x.c.div_ceil(4) * self.y.c.div_ceil(4);
        [bytes(self.x), bytes(self.y), weight].iter().all(|&bytes| bytes as u64 <= profile.max_texture)
    }

    /// Rows of C, for the tiled variants in one phase, and the number of phases.
    fn rows(&self, product: Gemm, variant: Variant) -> (usize, usize) {
        match (product, variant) {
            (Gemm::Forward, _) => (self.y.pixels(), 1),
            (Gemm::BackwardInput, Variant::Naive) => (self.x.pixels(), 1),
            (Gemm::BackwardInput, _) => (
                self.x.n * self.x.h.div_ceil(self.stride) * self.x.w.div_ceil(self.stride),
                self.stride.min(self.x.h) * self.stride.min(self.x.w),
            ),
            (Gemm::BackwardWeight, _) => (self.kernel.0 * self.kernel.1 * self.x.c.div_ceil(4) * 4, 1),
        }
    }

    /// For a kernel that sums over the rows of its tiles: the number of tiles, and of phases among them.
    pub(crate) fn tiles(&self, product: Gemm, target: &Target<'_>) -> Result<Option<(usize, usize)>> {
        let variant = variant_for(product, self, target)?;
        let able = match variant {
            Variant::Tiled => true,
            Variant::Lanes | Variant::LanesBuffers => target.profile.subgroup == Some((LANES, LANES)),
            Variant::Naive | Variant::LanesPlain => false,
        };
        let (rows, phases) = self.rows(product, variant);
        Ok((able && product != Gemm::BackwardWeight).then(|| (rows.div_ceil(CHUNK) * phases, phases)))
    }

    /// The dispatches of a product.
    pub(crate) fn lower(&self, product: Gemm, operands: &Operands, target: &Target<'_>) -> Result<Lowered> {
        let mut lowered = Lowered::default();
        self.lower_into(&mut lowered, product, operands, target, target.acc(0))?;
        Ok(lowered)
    }

    /// Appends the dispatches of a product; `acc`: whether to add to C, as an override's value.
    pub(crate) fn lower_into(
        &self,
        lowered: &mut Lowered,
        product: Gemm,
        operands: &Operands,
        target: &Target<'_>,
        acc: bool,
    ) -> Result<()> {
        let variant = variant_for(product, self, target)?;
        let columns = self.columns(product);
        let kernel = kernel_for(product, variant, columns);
        let (rows, phases) = self.rows(product, variant);
        let tiles = match variant {
            Variant::Naive => workgroups(rows * columns, 64),
            _ => {
                let (height, width) = (define(kernel, "TILE_ROWS")?, define(kernel, "COLUMNS")?);
                rows.div_ceil(height) * columns.div_ceil(width)
            }
        };
        let steps = self.y.pixels().div_ceil(4);
        let (splits, chunk) = match (product, variant) {
            (Gemm::BackwardWeight, Variant::Naive) | (Gemm::Forward | Gemm::BackwardInput, _) => (1, steps),
            (Gemm::BackwardWeight, _) => split(steps, tiles, 16 * rows * columns, target.profile),
        };
        let params = Params {
            rows: rows as u32,
            parts: (phases * splits) as u32,
            pixels: self.y.pixels() as u32,
            chunk: chunk as u32,
            x_h: self.x.h as u32,
            x_w: self.x.w as u32,
            x_c4: self.x.c.div_ceil(4) as u32,
            y_h: self.y.h as u32,
            y_w: self.y.w as u32,
            y_c4: self.y.c.div_ceil(4) as u32,
        };

        let partial = splits > 1;
        let result = if partial { lowered.new_scratch(16 * splits * rows * columns) } else { operands.c };
        let makes_partials = kernel.bindings.iter().any(|(name, _)| *name == "partials");
        // Kernels bind everything that they might use; where there is nothing, something that is read anyway.
        let mut bindings = vec![operands.a, operands.b, operands.stats.unwrap_or(operands.b)];
        if product != Gemm::BackwardWeight {
            bindings.push(operands.residual.or(operands.gate).unwrap_or(operands.b));
            bindings.push(operands.bias.unwrap_or(operands.b));
        }
        bindings.push(result);
        if makes_partials {
            bindings.push(operands.partials.map_or_else(|| lowered.new_scratch(16), |(_, bind)| bind));
        } else if operands.partials.is_some() {
            return Err(Error::bug(format!("{}/{} makes no partial sums", kernel.name, kernel.variant)));
        }
        let flag = |on: bool| i64::from(on);
        let mut flags = vec![
            ("NORM", flag(operands.norm == Some(Side::A))),
            ("NORM_B", flag(operands.norm == Some(Side::B))),
            ("HAS_BIAS", flag(operands.bias.is_some())),
            ("RESIDUAL", flag(operands.residual.is_some())),
            ("GATE", flag(operands.gate.is_some())),
            ("ACC", flag(acc && !partial)),
            ("PARTIALS", operands.partials.map_or(0, |(what, _)| what as i64)),
        ];
        flags.retain(|(name, _)| kernel.flags.contains(name));
        lowered.dispatches.push(Dispatch {
            kernel,
            bindings,
            flags,
            overrides: self.overrides(kernel),
            params: params.bytes(),
            workgroups: tiles * phases * splits,
            accumulate: acc && !partial,
        });
        if partial {
            column_sum(lowered, result, operands.c, splits, rows * columns, acc);
        }
        Ok(())
    }

    /// The values of those of the pipeline's constants that the kernel has.
    fn overrides(&self, kernel: &Kernel) -> Vec<(&'static str, f64)> {
        let mut overrides = vec![
            ("KH", self.kernel.0 as f64),
            ("KW", self.kernel.1 as f64),
            ("STRIDE", self.stride as f64),
            ("PAD", self.padding as f64),
            ("X_H", self.x.h as f64),
            ("X_W", self.x.w as f64),
            ("X_C4", self.x.c.div_ceil(4) as f64),
            ("Y_H", self.y.h as f64),
            ("Y_W", self.y.w as f64),
            ("Y_C4", self.y.c.div_ceil(4) as f64),
        ];
        overrides.retain(|(name, _)| kernel.overrides.contains(name));
        overrides
    }
}

fn define(kernel: &Kernel, name: &str) -> Result<usize> {
    let found = kernel.defines.iter().find(|(n, _)| *n == name);
    found.map(|(_, v)| *v as usize).ok_or_else(|| Error::bug(format!("{}: no define {name}", kernel.name)))
}

/// Cuts `steps` k groups of a weight gradient with `tiles` tiles and `bytes` of result into splits, so that there is work for the
/// whole device: the number of splits, and the k groups in each, a multiple of four.
fn split(steps: usize, tiles: usize, bytes: usize, profile: &Profile) -> (usize, usize) {
    let (wanted, most, shortest) = match profile.kind {
        DeviceKind::Gpu => (512, 128, 32),
        DeviceKind::Software => (16, 16, 16),
    };
    let fits = usize::try_from(profile.max_binding).unwrap_or(usize::MAX) / bytes.max(1);
    let splits = (wanted / tiles.max(1)).clamp(1, most).min(fits).min(steps / shortest).max(1);
    let chunk = steps.div_ceil(splits).next_multiple_of(4);
    (steps.div_ceil(chunk), chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conv(n: usize, ic: usize, size: usize, oc: usize, kernel: usize) -> Geometry {
        let (x, y) = (Shape::new(n, ic, size, size), Shape::new(n, oc, size, size));
        Geometry { x, y, kernel: (kernel, kernel), stride: 1, padding: kernel / 2 }
    }

    #[test]
    fn the_choice_follows_device_and_shape() {
        use Gemm::{BackwardInput, BackwardWeight, Forward};
        let gpu = Profile::WEBGPU;
        let software = |subgroup| Profile { kind: DeviceKind::Software, subgroup, ..gpu };
        let (usual, tiny, to_rgb) = (conv(32, 64, 8, 64, 3), conv(1, 4, 4, 4, 3), conv(32, 32, 32, 3, 3));
        for product in [Forward, BackwardInput, BackwardWeight] {
            assert_eq!(choose(product, &usual, &gpu), Variant::Tiled);
            assert_eq!(choose(product, &usual, &software(Some((8, 8)))), Variant::Lanes);
            assert_eq!(choose(product, &usual, &software(Some((4, 4)))), Variant::LanesPlain);
            assert_eq!(choose(product, &usual, &software(None)), Variant::LanesPlain);
            assert_eq!(choose(product, &tiny, &gpu), Variant::Naive);
            assert_eq!(choose(product, &tiny, &software(Some((8, 8)))), Variant::Naive);
        }
        assert_eq!(choose(Forward, &to_rgb, &gpu), Variant::Naive);
        assert_eq!(choose(BackwardInput, &to_rgb, &gpu), Variant::Tiled);
        assert_eq!(choose(BackwardWeight, &to_rgb, &gpu), Variant::Tiled);
        assert_eq!(choose(Forward, &to_rgb, &software(Some((8, 8)))), Variant::Lanes);
    }

    #[test]
    fn variants_are_found_by_name_or_refused() {
        let operands = Operands::plain(operand("x"), operand("weight"), None, operand("y"));
        let lower = |variant, subgroup| {
            let profile = Profile { subgroup, ..Profile::WEBGPU };
            let target = Target { profile: &profile, variant: Some(variant), accumulate: &[] };
            conv(2, 8, 8, 8, 3).lower(Gemm::Forward, &operands, &target)
        };
        for variant in VARIANTS {
            let lowered = lower(variant, Some((8, 32))).unwrap();
            assert!(lowered.dispatches[0].kernel.variant.starts_with(variant));
            assert_eq!(lower(variant, Some((4, 4))).is_err(), ["lanes", "lanes_buffers"].contains(variant));
            assert_eq!(lower(variant, None).is_err(), ["lanes", "lanes_buffers"].contains(variant));
        }
        assert!(matches!(lower("best", None), Err(Error::Unknown { .. })));
    }

    #[test]
    fn splits_cover_the_pixels_and_fit_the_device() {
        for kind in [DeviceKind::Gpu, DeviceKind::Software] {
            let profile = Profile { kind, ..Profile::WEBGPU };
            for steps in [1, 3, 16, 100, 8192, 32_768] {
                for tiles in [1, 5, 144, 4096] {
                    for bytes in [64, 1 << 20, 128 << 20] {
                        let (splits, chunk) = split(steps, tiles, bytes, &profile);
                        assert!(splits >= 1 && chunk % 4 == 0);
                        assert!(splits * chunk >= steps && (splits - 1) * chunk < steps, "no split is empty");
                        assert!(splits == 1 || (splits * bytes) as u64 <= profile.max_binding);
                    }
                }
            }
        }
    }
}
