//! From passes to dispatches: matrix products with prologue and epilogue, split-K, and the passes of a fused norm around them.

use crate::error::{Error, Result};
use crate::runtime::kernel::{Arg, Bind, DeviceKind, Dispatch, Kernel, Lowered, grad, operand};
use crate::runtime::op::basic::column_sum::{Matrix, column_sum};
use crate::runtime::op::conv::geometry::{Gemm, Geometry, Layer, Variant};
use crate::runtime::op::conv::kernels::{FILLS_GPU, Params, kernel};
use crate::runtime::op::conv::{Conv, Statistics, select};
use crate::runtime::op::norm::fused::FusedNorm;
use crate::runtime::op::{BatchNormConfig, Target, no_such_pass};
use crate::runtime::tensor::Spec;

/// The tensors of a matrix product, and what its kernel does to them in the prologue and epilogue: see
/// `shaders/lib/conv_fused.wgsl`.
#[derive(Clone, Copy, Debug)]
struct Product {
    gemm: Gemm,
    /// Multiply-adds, padding channels not counted.
    macs: f64,
    a: Bind,
    b: Bind,
    c: Bind,
    /// Added to C.
    bias: Option<Bind>,
    /// `stats` of the norm of the prologue or of the ReLU mask.
    stats: Option<Bind>,
    /// The operand that is normalized and rectified as it is loaded.
    norm: Option<Side>,
    /// Added to C.
    residual: Option<Bind>,
    /// Input of the norm and ReLU whose gradient C is.
    relu_mask: Option<Bind>,
    /// Sums over the rows of each tile, and where they go. Only for kernels that can: [`select::summed_tiles`].
    partials: Option<(Partials, Bind)>,
}

/// An operand of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    A,
    B,
}

/// Sums over the rows of a tile of C: see `shaders/lib/conv_partials.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Partials {
    /// Statistics of C: three rows per tile.
    Statistics = 1,
    /// C, and C times the normalized input of the ReLU mask: two rows per tile.
    Gradient = 2,
}

impl Product {
    /// A product of a layer, without prologue and epilogue.
    fn new(gemm: Gemm, layer: &Layer, a: Arg, b: Arg, c: impl Into<Bind>) -> Self {
        let (bias, stats, norm, residual, relu_mask, partials) = Default::default();
        let (a, b, c) = (a.into(), b.into(), c.into());
        Self { gemm, macs: layer.macs(), a, b, c, bias, stats, norm, residual, relu_mask, partials }
    }

    /// Appends the dispatches. `acc`: whether to add to C.
    fn lower(&self, geometry: &Geometry, target: &Target<'_>, acc: bool, lowered: &mut Lowered) -> Result<()> {
        let variant = select::variant_for(self.gemm, geometry, target)?;
        let columns = geometry.columns(self.gemm);
        let kernel = kernel(self.gemm, variant, geometry, target.profile.kind);
        let (rows, phases) = geometry.rows(self.gemm, variant);
        let tiles = kernel.tiles(rows, columns);
        let mut parts = geometry.k_groups(self.gemm);
        let can_split = match (self.gemm, variant) {
            (_, Variant::Naive) => false,
            (Gemm::BackwardWeight, _) => true,
            // Few tiles with long sums would leave most of a GPU idle. What belongs to the epilogue cannot be added to partial sums.
            _ => {
                let few = tiles * parts.len() < FILLS_GPU && parts.len() == 1;
                variant == Variant::Tiled && target.profile.kind == DeviceKind::Gpu && few && self.has_no_epilogue()
            }
        };
        let (mut splits, mut chunk) = (1, geometry.y.positions().div_ceil(4));
        // A phase may see no tap at all.
        if let (&[k_groups], true) = (parts.as_slice(), can_split)
            && k_groups > 0
        {
            (splits, chunk) = select::split_k(k_groups, tiles, 16 * rows * columns, target.profile);
            parts = (0..splits).map(|split| chunk.min(k_groups - split * chunk)).collect();
        }
        let params = Params {
            rows: rows as u32,
            phases: phases as u32,
            splits: splits as u32,
            positions: geometry.y.positions() as u32,
            chunk: chunk as u32,
            x_h: geometry.x.h as u32,
            x_w: geometry.x.w as u32,
            x_c4: geometry.x.c.div_ceil(4) as u32,
            y_h: geometry.y.h as u32,
            y_w: geometry.y.w as u32,
            y_c4: geometry.y.c.div_ceil(4) as u32,
        };

        let split = splits > 1;
        let result = if split { lowered.new_scratch(16 * splits * rows * columns) } else { self.c };
        // Every binding must be filled: unused ones get operand `b` as a placeholder.
        let mut bindings = vec![self.a, self.b, self.stats.unwrap_or(self.b)];
        if self.gemm != Gemm::BackwardWeight {
            bindings.push(self.residual.or(self.relu_mask).unwrap_or(self.b));
            bindings.push(self.bias.unwrap_or(self.b));
        }
        bindings.push(result);
        if kernel.sums_rows {
            bindings.push(self.partials.map_or_else(|| lowered.new_scratch(16), |(_, bind)| bind));
        }
        lowered.dispatches.push(Dispatch {
            flags: self.flags(&kernel.kernel, acc && !split, split)?,
            overrides: overrides(geometry, &kernel.kernel),
            params: params.bytes(),
            workgroups: tiles * phases * splits,
            accumulate: acc && !split,
            work: kernel.work(rows, columns, &parts, self.macs),
            ..Dispatch::new(&kernel.kernel, bindings)
        });
        if split {
            let matrix = Matrix { from: result, rows: splits, columns: rows * columns };
            column_sum(lowered, matrix, self.c, acc, target.profile.kind);
        }
        Ok(())
    }

    fn has_no_epilogue(&self) -> bool {
        let added = [self.bias, self.residual, self.relu_mask];
        added.iter().all(Option::is_none) && self.partials.is_none()
    }

    /// Values of the kernel's flags.
    fn flags(&self, kernel: &Kernel, acc: bool, split: bool) -> Result<Vec<(&'static str, i64)>> {
        let value = |flag: &&'static str| {
            let value = match *flag {
                "NORM" => i64::from(self.norm == Some(Side::A)),
                "NORM_B" => i64::from(self.norm == Some(Side::B)),
                "HAS_BIAS" => i64::from(self.bias.is_some()),
                "RESIDUAL" => i64::from(self.residual.is_some()),
                "RELU_MASK" => i64::from(self.relu_mask.is_some()),
                "ACC" => i64::from(acc),
                "SPLIT" => i64::from(split),
                "PARTIALS" => self.partials.map_or(0, |(what, _)| what as i64),
                other => return Err(Error::bug(format!("{}: unknown flag {other}", kernel.name))),
            };
            Ok((*flag, value))
        };
        kernel.flags.iter().map(value).collect()
    }
}

/// Values of the kernel's pipeline-overridable constants.
fn overrides(geometry: &Geometry, kernel: &Kernel) -> Vec<(&'static str, f64)> {
    let Geometry { x, y, kernel: (kh, kw), stride, padding } = *geometry;
    let all = [
        ("KH", kh),
        ("KW", kw),
        ("STRIDE", stride),
        ("PAD", padding),
        ("X_H", x.h),
        ("X_W", x.w),
        ("X_C4", x.c.div_ceil(4)),
        ("Y_H", y.h),
        ("Y_W", y.w),
        ("Y_C4", y.c.div_ceil(4)),
    ];
    let used = all.into_iter().filter(|(name, _)| kernel.overrides.contains(name));
    used.map(|(name, value)| (name, value as f64)).collect()
}

impl Conv {
    /// The dispatches of `pass`.
    pub(super) fn lower_pass(&self, pass: &str, target: &Target<'_>) -> Result<Lowered> {
        let mut lowered = Lowered::default();
        match pass {
            "forward" => self.lower_forward(target, &mut lowered)?,
            "backward_input" => self.lower_backward_input(target, &mut lowered)?,
            "backward_weight" => {
                let (x, dy) = (operand("x"), grad("y"));
                let (a, b, side) = if self.layer.is_transposed() { (dy, x, Side::B) } else { (x, dy, Side::A) };
                let plain = Product::new(Gemm::BackwardWeight, &self.layer, a, b, grad("weight"));
                let product = Product { stats: self.stats(), norm: self.prologue.map(|_| side), ..plain };
                product.lower(&self.layer.geometry, target, target.acc(0), &mut lowered)?;
            }
            "backward_bias" => {
                if let Some(name) = target.variant.filter(|name| !select::variants(pass).contains(name)) {
                    return Err(select::unknown_variant(name, pass));
                }
                let geometry = &self.layer.geometry;
                let y = if self.layer.is_transposed() { geometry.x } else { geometry.y };
                let (dy, dbias) = (grad("y").into(), grad("bias").into());
                let matrix = Matrix { from: dy, rows: y.positions(), columns: y.c.div_ceil(4) };
                column_sum(&mut lowered, matrix, dbias, target.acc(0), target.profile.kind);
            }
            _ => return Err(no_such_pass(self, pass)),
        }
        Ok(lowered)
    }

    /// `stats` of the norm in front, if there is one.
    fn stats(&self) -> Option<Bind> {
        self.prologue.map(|_| operand("stats").into())
    }

    fn norm_parts(&self, target: &Target<'_>) -> Option<FusedNorm> {
        self.prologue.map(|prologue| FusedNorm::new(self.layer.x, prologue.norm.config(), target.profile))
    }

    fn lower_forward(&self, target: &Target<'_>, lowered: &mut Lowered) -> Result<()> {
        let (layer, epilogue) = (&self.layer, self.epilogue);
        if let (Some(prologue), Some(norm)) = (self.prologue, self.norm_parts(target)) {
            let partials = match prologue.statistics {
                Statistics::Partials => Some(operand("partials").into()),
                Statistics::OfInput if self.training() => {
                    let partials = norm.statistics_scratch(lowered);
                    norm.statistics(lowered, operand("x").into(), partials);
                    Some(partials)
                }
                Statistics::OfInput | Statistics::Given => None,
            };
            if self.measures() {
                norm.stats(lowered, partials);
            }
        }
        let gemm = layer.forward_gemm();
        let tiles = select::summed_tiles(gemm, &layer.geometry, target)?;
        // Statistics are of neighbouring positions, and a tile of one phase among several has none.
        let in_epilogue = epilogue.emit_statistics && !layer.flattens() && tiles.is_some_and(|tiles| tiles.phases == 1);
        let y_partials = operand("y_partials").into();
        let product = Product {
            bias: Some(operand("bias").into()),
            stats: self.stats(),
            norm: self.prologue.map(|_| Side::A),
            residual: epilogue.residual.then_some(operand("residual").into()),
            partials: in_epilogue.then_some((Partials::Statistics, y_partials)),
            ..Product::new(gemm, layer, operand("x"), operand("weight"), operand("y"))
        };
        product.lower(&layer.geometry, target, target.acc(0), lowered)?;
        if epilogue.emit_statistics && !in_epilogue {
            let of_y = FusedNorm::new(layer.y, BatchNormConfig::default(), target.profile);
            of_y.statistics(lowered, operand("y").into(), y_partials);
        }
        Ok(())
    }

    /// Without a norm a product. With one, a product whose epilogue masks with the ReLU and sums for the norm's gradient, then the norm's
    /// gradient.
    fn lower_backward_input(&self, target: &Target<'_>, lowered: &mut Lowered) -> Result<()> {
        let layer = &self.layer;
        let (gemm, geometry) = (layer.backward_gemm(), &layer.geometry);
        let plain = Product::new(gemm, layer, grad("y"), operand("weight"), grad("x"));
        let Some(norm) = self.norm_parts(target) else {
            return plain.lower(geometry, target, target.acc(0), lowered);
        };
        let g = lowered.new_scratch(Spec::nhwc(layer.x).device_bytes());
        let row = 16 * layer.x.c.div_ceil(4);
        let tiles = select::summed_tiles(gemm, geometry, target)?;
        let sums = tiles.map(|tiles| (lowered.new_scratch(2 * tiles.count * row), tiles.count));
        let product = Product {
            c: g,
            stats: self.stats(),
            relu_mask: Some(operand("x").into()),
            partials: sums.map(|(sums, _)| (Partials::Gradient, sums)),
            ..plain
        };
        product.lower(geometry, target, false, lowered)?;
        let texture = select::variant_for(gemm, geometry, target)? == Variant::SubgroupTex;
        norm.gradient(lowered, g, sums, [0, 1, 2].map(|i| target.acc(i)), texture);
        Ok(())
    }
}
