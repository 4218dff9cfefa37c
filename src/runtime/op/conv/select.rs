//! The choice of variants, tiles and splits.

use crate::error::{Error, Result};
use crate::runtime::kernel::{DeviceKind, Profile};
use crate::runtime::op::Target;
use crate::runtime::op::conv::geometry::{Gemm, Geometry, Variant};
use crate::runtime::op::conv::kernels;
use crate::runtime::op::norm::fused::CHUNK;
use crate::runtime::tensor::Shape;

/// Names of the variants of a matrix product.
const VARIANTS: &[&str] = &[
    Variant::Tiled.name(),
    Variant::SubgroupTex.name(),
    Variant::Subgroup.name(),
    Variant::RegisterTiled.name(),
    Variant::Naive.name(),
];

/// Name of the only variant of a bias gradient.
const BIAS_VARIANTS: &[&str] = &["column_sum"];

/// Names of the variants of a pass.
pub(crate) fn variants(pass: &str) -> &'static [&'static str] {
    if pass == "backward_bias" { BIAS_VARIANTS } else { VARIANTS }
}

/// Returns an error for a variant that `pass` does not have.
pub(crate) fn unknown_variant(name: &str, pass: &str) -> Error {
    Error::Unknown { kind: "variant", name: name.into(), known: variants(pass).join(", ") }
}

/// Invocations that exchange operands in the subgroup variants: the smallest subgroup that they work with.
const SUBGROUP: u32 = 8;

/// Up to this many multiply-adds a tile is not worth its overhead.
const TINY: f64 = 32_768.0;

/// Up to this many columns of C (vec4s), most of a workgroup's tile would be empty.
const NARROW: usize = 2;

/// The best variant of a matrix product on a device. A weight gradient never counts as narrow: its long sums need split-K.
fn choose(gemm: Gemm, geometry: &Geometry, profile: &Profile) -> Variant {
    let columns = geometry.columns(gemm);
    match profile.kind {
        _ if geometry.macs() <= TINY => Variant::Naive,
        DeviceKind::Software if has_subgroups(profile) && fits_textures(geometry, profile) => Variant::SubgroupTex,
        DeviceKind::Software if has_subgroups(profile) => Variant::Subgroup,
        DeviceKind::Software => Variant::RegisterTiled,
        DeviceKind::Gpu if columns <= NARROW && gemm != Gemm::BackwardWeight => Variant::Naive,
        DeviceKind::Gpu => Variant::Tiled,
    }
}

fn has_subgroups(profile: &Profile) -> bool {
    profile.subgroup.is_some_and(|(least, _)| least >= SUBGROUP)
}

/// Whether every operand fits in a texture.
fn fits_textures(geometry: &Geometry, profile: &Profile) -> bool {
    let bytes = |s: Shape| 16 * s.positions() * s.c.div_ceil(4);
    let (kh, kw) = geometry.kernel;
    let weight = 64 * kh * kw * geometry.x.c.div_ceil(4) * geometry.y.c.div_ceil(4);
    [bytes(geometry.x), bytes(geometry.y), weight].iter().all(|&bytes| bytes as u64 <= profile.max_texture)
}

/// The variant that the target names, or else the best one.
pub(crate) fn variant_for(gemm: Gemm, geometry: &Geometry, target: &Target<'_>) -> Result<Variant> {
    let Some(name) = target.variant else { return Ok(choose(gemm, geometry, target.profile)) };
    let found = Variant::ALL.into_iter().find(|variant| variant.name() == name);
    let variant = found.ok_or_else(|| unknown_variant(name, gemm.name()))?;
    let needs = match variant {
        Variant::SubgroupTex | Variant::Subgroup if !has_subgroups(target.profile) => {
            format!("subgroup operations on at least {SUBGROUP} invocations")
        }
        Variant::SubgroupTex if !fits_textures(geometry, target.profile) => {
            format!("tensors of at most {} bytes", target.profile.max_texture)
        }
        _ => return Ok(variant),
    };
    Err(Error::Unsupported { what: format!("variant `{name}`"), needs })
}

/// Tiles of C whose rows a kernel sums for a fused norm.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SummedTiles {
    pub(crate) count: usize,
    /// Phases among them. With more than one, the rows of a tile are not neighbouring positions.
    pub(crate) phases: usize,
}

/// The tiles whose rows the kernel of a matrix product sums; `None` if it cannot.
pub(crate) fn summed_tiles(gemm: Gemm, geometry: &Geometry, target: &Target<'_>) -> Result<Option<SummedTiles>> {
    let variant = variant_for(gemm, geometry, target)?;
    // The kernels with subgroup operations sum over subgroups of exactly this size.
    let exact = variant == Variant::Tiled || target.profile.subgroup == Some((SUBGROUP, SUBGROUP));
    let able = exact && kernels::kernel(gemm, variant, geometry, target.profile.kind).sums_rows;
    let (rows, phases) = geometry.rows(gemm, variant);
    Ok(able.then(|| SummedTiles { count: rows.div_ceil(CHUNK) * phases, phases }))
}

/// Cuts the `steps` k groups of a product with `tiles` tiles and `bytes` of result into splits that occupy the whole device.
/// Returns the number of splits and the number of k groups in each, a multiple of four.
pub(crate) fn split_k(steps: usize, tiles: usize, bytes: usize, profile: &Profile) -> (usize, usize) {
    let (wanted, most, shortest) = match profile.kind {
        // The parts of one tile alone fill the device, also after rounding. More of them would be a long sum.
        DeviceKind::Gpu => (512, 104, 32),
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
    fn variants_follow_device_and_shape() {
        use Gemm::{BackwardInput, BackwardWeight, Forward};
        let gpu = Profile::WEBGPU;
        let software = |subgroup| Profile { kind: DeviceKind::Software, subgroup, ..gpu };
        let (usual, tiny, to_rgb) = (conv(32, 64, 8, 64, 3), conv(1, 4, 4, 4, 3), conv(32, 32, 32, 3, 3));
        for gemm in Gemm::ALL {
            assert_eq!(choose(gemm, &usual, &gpu), Variant::Tiled);
            assert_eq!(choose(gemm, &usual, &software(Some((8, 8)))), Variant::SubgroupTex);
            assert_eq!(choose(gemm, &usual, &software(Some((4, 4)))), Variant::RegisterTiled);
            assert_eq!(choose(gemm, &usual, &software(None)), Variant::RegisterTiled);
            assert_eq!(choose(gemm, &tiny, &gpu), Variant::Naive);
            assert_eq!(choose(gemm, &tiny, &software(Some((8, 8)))), Variant::Naive);
        }
        assert_eq!(choose(Forward, &to_rgb, &gpu), Variant::Naive);
        assert_eq!(choose(BackwardInput, &to_rgb, &gpu), Variant::Tiled);
        assert_eq!(choose(BackwardWeight, &to_rgb, &gpu), Variant::Tiled);
        assert_eq!(choose(Forward, &to_rgb, &software(Some((8, 8)))), Variant::SubgroupTex);
    }

    #[test]
    fn named_variants_are_found_or_rejected() {
        let variant = |name, subgroup| {
            let profile = Profile { subgroup, ..Profile::WEBGPU };
            let target = Target { profile: &profile, variant: Some(name), accumulate: &[] };
            variant_for(Gemm::Forward, &conv(2, 8, 8, 8, 3), &target)
        };
        for &name in VARIANTS {
            let needs_subgroups = ["subgroup_tex", "subgroup"].contains(&name);
            assert_eq!(variant(name, Some((8, 32))).unwrap().name(), name);
            assert_eq!(variant(name, Some((4, 4))).is_err(), needs_subgroups);
            assert_eq!(variant(name, None).is_err(), needs_subgroups);
        }
        assert!(matches!(variant("best", None), Err(Error::Unknown { .. })));
    }

    #[test]
    fn splits_cover_all_steps_and_fit_the_device() {
        for kind in [DeviceKind::Gpu, DeviceKind::Software] {
            let profile = Profile { kind, ..Profile::WEBGPU };
            for steps in [1, 3, 16, 100, 8192, 32_768] {
                for tiles in [1, 5, 144, 4096] {
                    for bytes in [64, 1 << 20, 128 << 20] {
                        let (splits, chunk) = split_k(steps, tiles, bytes, &profile);
                        assert!(splits >= 1 && chunk % 4 == 0);
                        assert!(splits * chunk >= steps && (splits - 1) * chunk < steps, "no split is empty");
                        assert!(splits == 1 || (splits * bytes) as u64 <= profile.max_binding);
                    }
                }
            }
        }
    }
}
