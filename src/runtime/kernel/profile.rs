//! The properties of an adapter that variants and plans may depend on.

use crate::error::{Error, Result};
use crate::runtime::kernel::TEXTURE_WIDTH;

/// Kind of hardware that runs the kernels. Each kind has its own kernel variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A GPU: workgroup memory is fast, and many invocations hide latency.
    Gpu,
    /// A software driver on the CPU: the number of load instructions decides.
    Software,
}

/// The properties of an adapter that the choice of variants and the plan may depend on, and the only ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Profile {
    /// Kind of hardware.
    pub kind: DeviceKind,
    /// Smallest and largest subgroup size, if the device has subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// Largest number of workgroups in one dimension of a dispatch.
    pub max_workgroups: u32,
    /// Largest binding of a storage buffer in bytes.
    pub max_binding: u64,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Alignment of buffer offsets in bindings, in bytes.
    pub offset_alignment: u32,
    /// Largest tensor that fits in a texture, in bytes.
    pub max_texture: u64,
}

impl Profile {
    /// A GPU with WebGPU's default limits and no optional features, which every implementation provides.
    pub const WEBGPU: Self = Self {
        kind: DeviceKind::Gpu,
        subgroup: None,
        max_workgroups: 65_535,
        max_binding: 128 << 20,
        max_buffer: 256 << 20,
        offset_alignment: 256,
        max_texture: 16 * TEXTURE_WIDTH as u64 * 8192,
    };
}

/// Folds `count` workgroups into x and y, neither of which exceeds `max`. Kernels recover the number with `flat_workgroup`, and surplus
/// workgroups return at once.
///
/// # Errors
/// [`Error::DoesNotFit`] for more than `max * max` workgroups.
pub fn fold_grid(count: usize, max: u32) -> Result<[u32; 3]> {
    let max = max as usize;
    let y = count.div_ceil(max).max(1);
    if y > max {
        return Err(Error::DoesNotFit {
            what: "a dispatch".into(),
            needed: count as u64,
            limit: (max * max) as u64,
            unit: "workgroups",
            largest_batch: None,
        });
    }
    Ok([count.div_ceil(y).max(1) as u32, y as u32, 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grids_fold_without_losing_workgroups() {
        for max in [1u32, 7, 65_535] {
            for count in [0usize, 1, 2, 6, 7, 8, 48, 49, 65_535, 65_536, 1 << 20] {
                match fold_grid(count, max) {
                    Ok([x, y, 1]) => {
                        assert!(x <= max && y <= max && x >= 1 && y >= 1);
                        assert!((x as usize * y as usize) >= count);
                        assert!(count == 0 || (x as usize * y as usize) < count + y as usize);
                    }
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => assert!(count > (max as usize).pow(2)),
                }
            }
        }
    }
}
