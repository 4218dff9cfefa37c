//! What a kernel is, and what one dispatch of it needs: plain data, made without a device.

pub mod preprocess;

use crate::error::{Error, Result};

/// How a kernel uses a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `texture_storage_2d<rgba32float, read>`, vec4 number i at (i % [`TEXTURE_WIDTH`], i / [`TEXTURE_WIDTH`]): a copy of the
    /// tensor, made before the dispatch (see [`crate::runtime::plan::texture_cache`]). On software drivers a load from there costs a sixth of one
    /// from a buffer.
    Texture,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// Vec4s in a row of a staged tensor: 8 KiB, which WebGPU's rules for copies allow. `shaders/lib/texture.wgsl` has it too.
pub const TEXTURE_WIDTH: u32 = 512;

/// A field of a kernel's `Params` struct: name and byte offset. Every field is four bytes wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Offset in bytes.
    pub offset: u32,
}

/// One compute kernel in one variant: a WGSL file, its defines, an entry point and its interface.
///
/// The interface is compared with the shader's by reflection in `tests/shaders.rs`.
#[derive(Debug)]
pub struct Kernel {
    /// `family.entry`, e.g. `conv2d.forward`, with a stage behind it where an entry takes several dispatches.
    pub name: &'static str,
    /// Variant, e.g. `naive`.
    pub variant: &'static str,
    /// File below `shaders/`.
    pub file: &'static str,
    /// Text of that file.
    pub source: &'static str,
    /// Entry point in that file.
    pub entry: &'static str,
    /// Defines for the expander.
    pub defines: &'static [(&'static str, i64)],
    /// Names of more defines, which each dispatch gives a value.
    pub flags: &'static [&'static str],
    /// Tensors at bindings 0, 1, ...: variable name and access.
    pub bindings: &'static [(&'static str, Access)],
    /// Fields of the uniform `Params`, bound after the storage buffers; empty when there is none.
    pub params: &'static [Field],
    /// Names of the pipeline-overridable constants.
    pub overrides: &'static [&'static str],
    /// Workgroup size.
    pub workgroup: [u32; 3],
    /// Whether the kernel needs subgroup operations.
    pub subgroups: bool,
}

impl Kernel {
    /// The WGSL text, expanded. Flags that are not given are 0.
    pub fn wgsl(&self, flags: &[(&'static str, i64)]) -> Result<String> {
        let mut defines = self.defines.to_vec();
        for name in self.flags {
            let given = flags.iter().find(|(n, _)| n == name);
            defines.push((name, given.map_or(0, |(_, value)| *value)));
        }
        preprocess::expand(self.file, self.source, &defines)
    }

    /// A define's value.
    pub fn define(&self, name: &str) -> Result<i64> {
        let found = self.defines.iter().find(|(n, _)| *n == name);
        found.map(|(_, v)| *v).ok_or_else(|| Error::bug(format!("{}: no define {name}", self.name)))
    }
}

/// Declares a kernel's `Params`: a struct of `u32` and `f32` fields, its [`Field`] table and its bytes.
#[macro_export]
#[doc(hidden)]
macro_rules! kernel_params {
    ($(#[$meta:meta])* $name:ident { $($field:ident : $ty:ident),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),+ }

        impl $name {
            /// Names and offsets of the fields.
            pub(crate) const FIELDS: &'static [$crate::runtime::kernel::Field] = &[
                $($crate::runtime::kernel::Field {
                    name: stringify!($field),
                    offset: ::std::mem::offset_of!($name, $field) as u32,
                }),+
            ];

            /// The bytes of the uniform.
            pub(crate) fn bytes(&self) -> Vec<u8> {
                let mut bytes = Vec::new();
                $(bytes.extend_from_slice(&self.$field.to_le_bytes());)+
                bytes
            }
        }
    };
}

/// What a storage binding of a dispatch is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// An operand of the entry, by name (`x`, `dweight`).
    Operand(&'static str),
    /// A scratch buffer of the entry, by number.
    Scratch(usize),
}

/// One dispatch of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// What runs.
    pub kernel: &'static Kernel,
    /// One for each of the kernel's bindings.
    pub bindings: Vec<Bind>,
    /// Values of the kernel's flags.
    pub flags: Vec<(&'static str, i64)>,
    /// Values of the pipeline-overridable constants, for each of the kernel's overrides.
    pub overrides: Vec<(&'static str, f64)>,
    /// Bytes of `Params`.
    pub params: Vec<u8>,
    /// Number of workgroups, unfolded.
    pub workgroups: usize,
}

impl Dispatch {
    /// Whether it adds to a tensor that it writes.
    #[must_use]
    pub fn accumulates(&self) -> bool {
        let flags = self.flags.iter().map(|&(name, value)| (name, value != 0));
        let overrides = self.overrides.iter().map(|&(name, value)| (name, value != 0.0));
        flags.chain(overrides).any(|(name, on)| on && name.starts_with("ACC"))
    }
}

/// The dispatches of one entry and the scratch buffers between them.
#[derive(Clone, Debug, Default)]
pub struct Lowered {
    /// In order of execution.
    pub dispatches: Vec<Dispatch>,
    /// Sizes of the scratch buffers in bytes.
    pub scratch: Vec<usize>,
}

impl Lowered {
    /// A single dispatch without scratch.
    #[must_use]
    pub fn one(dispatch: Dispatch) -> Self {
        Self { dispatches: vec![dispatch], scratch: Vec::new() }
    }

    /// One more scratch buffer, of `bytes`.
    pub fn new_scratch(&mut self, bytes: usize) -> Bind {
        self.scratch.push(bytes);
        Bind::Scratch(self.scratch.len() - 1)
    }
}

/// Workgroups of `size` items each that cover `items`.
#[must_use]
pub const fn workgroups(items: usize, size: usize) -> usize {
    items.div_ceil(size)
}

/// Folds `count` workgroups into x and y, neither above `max`; the kernel's side is `flat_workgroup`, and surplus workgroups
/// return at once. More than `max * max` workgroups are an error.
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

/// What kind of hardware runs the kernels; decides between families of variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DeviceKind {
    /// A graphics processor: workgroup memory is fast, many invocations hide latency.
    Gpu,
    /// A software rasteriser on the CPU: the number of load instructions decides.
    Software,
}

/// The facts about an adapter that the choice of variants and the plan may depend on: nothing else may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct Profile {
    /// Kind of hardware.
    pub kind: DeviceKind,
    /// Smallest and largest subgroup size, where the device has subgroup operations.
    pub subgroup: Option<(u32, u32)>,
    /// Largest number of workgroups in one dimension of a dispatch.
    pub max_workgroups: u32,
    /// Largest binding of a storage buffer in bytes.
    pub max_binding: u64,
    /// Largest buffer in bytes.
    pub max_buffer: u64,
    /// Granule of buffer offsets in bindings, in bytes.
    pub offset_alignment: u32,
    /// Largest tensor that can be staged in a texture, in bytes.
    pub max_texture: u64,
}

impl Profile {
    /// WebGPU's default limits on a GPU without optional features: what every implementation has.
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
