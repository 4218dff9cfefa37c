//! Kernels and their dispatches as plain data: what operations hand to the planner and to a device. Nothing here needs a device.

#[cfg(feature = "emit")]
pub mod emit;
pub mod params;
pub mod preprocess;
pub mod profile;
mod validate;

use std::fmt;

pub use self::params::Field;
pub(crate) use self::params::kernel_params;
use self::preprocess::Expanded;
pub use self::profile::{DeviceKind, Profile, fold_grid};
use crate::error::Result;

/// How a kernel accesses a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// `texture_storage_2d<rgba32float, read>`, a copy of the tensor made before the dispatch, with vec4 number i at texel
    /// (i % [`TEXTURE_WIDTH`], i / [`TEXTURE_WIDTH`]). See [`texture_cache`](crate::runtime::plan::texture_cache): on software
    /// drivers a texture load costs a sixth of a buffer load.
    Texture,
    /// `var<storage, read>`.
    Read,
    /// `var<storage, read_write>`.
    ReadWrite,
}

/// Texels in a row of a texture copy: 8 KiB, a multiple of the row alignment that WebGPU requires of copies. The same constant is in
/// `shaders/lib/texture.wgsl`.
pub const TEXTURE_WIDTH: u32 = 512;

/// What a kernel contributes to the pass that dispatches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelRole {
    /// The operation itself.
    Main,
    /// Statistics or gradients of a norm that was fused with the operation.
    FusedNorm,
}

/// One compute kernel in one variant: a WGSL file, its defines, an entry point and its interface.
///
/// `tests/shaders.rs` compares the interface with that of the shader by reflection.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// `kind.pass`, e.g. `conv2d.forward`, followed by a stage where a pass takes several dispatches.
    pub name: &'static str,
    /// Variant, e.g. `naive`.
    pub variant: &'static str,
    /// What it contributes to its pass.
    pub role: KernelRole,
    /// Path of the WGSL file below `shaders/`.
    pub file: &'static str,
    /// Contents of that file.
    pub source: &'static str,
    /// Entry point in that file.
    pub entry: &'static str,
    /// Defines for the preprocessor.
    pub defines: &'static [(&'static str, i64)],
    /// Names of further defines, whose values each dispatch gives.
    pub flags: &'static [&'static str],
    /// Tensors at bindings 0, 1, ...: variable name and access.
    pub bindings: &'static [(&'static str, Access)],
    /// Fields of the uniform `Params`, bound after the tensors; empty if there is none.
    pub params: &'static [Field],
    /// Names of the pipeline-overridable constants.
    pub overrides: &'static [&'static str],
    /// Workgroup size.
    pub workgroup: [u32; 3],
    /// Whether the kernel needs subgroup operations.
    pub subgroups: bool,
}

impl Kernel {
    /// A kernel of 64 invocations without bindings, for use with struct update syntax.
    pub const DEFAULT: Self = Self {
        name: "",
        variant: "",
        role: KernelRole::Main,
        file: "",
        source: "",
        entry: "main",
        defines: &[],
        flags: &[],
        bindings: &[],
        params: &[],
        overrides: &[],
        workgroup: [64, 1, 1],
        subgroups: false,
    };

    /// Expands the source. Flags that are not given are 0.
    ///
    /// # Errors
    /// [`Error::Shader`](crate::error::Error::Shader).
    pub fn expand(&self, flags: &[(&'static str, i64)]) -> Result<Expanded> {
        let mut defines = self.defines.to_vec();
        for name in self.flags {
            let given = flags.iter().find(|(n, _)| n == name);
            defines.push((name, given.map_or(0, |(_, value)| *value)));
        }
        preprocess::expand(self.file, self.source, &defines)
    }

    /// Returns the expanded WGSL source.
    ///
    /// # Errors
    /// As [`Kernel::expand`].
    pub fn wgsl(&self, flags: &[(&'static str, i64)]) -> Result<String> {
        Ok(self.expand(flags)?.wgsl)
    }
}

/// A tensor that a pass of an operation accesses: an operand, or the gradient of the loss with respect to one.
///
/// Displayed as in formulas: the gradient of `x` is `dx`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Arg {
    /// The operand of this name.
    Operand(&'static str),
    /// The gradient with respect to the operand of this name.
    Grad(&'static str),
}

/// The operand called `name`.
#[must_use]
pub const fn operand(name: &'static str) -> Arg {
    Arg::Operand(name)
}

/// The gradient with respect to the operand called `name`.
#[must_use]
pub const fn grad(name: &'static str) -> Arg {
    Arg::Grad(name)
}

impl Arg {
    /// Name of the operand itself, or of the operand that the gradient belongs to.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Operand(name) | Self::Grad(name) => name,
        }
    }

    /// Whether this is a gradient.
    #[must_use]
    pub const fn is_grad(self) -> bool {
        matches!(self, Self::Grad(_))
    }
}

impl fmt::Display for Arg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Operand(name) => f.write_str(name),
            Self::Grad(name) => write!(f, "d{name}"),
        }
    }
}

/// The buffer behind a binding of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// A tensor of the pass.
    Arg(Arg),
    /// A scratch buffer of the pass, by number.
    Scratch(usize),
}

impl From<Arg> for Bind {
    fn from(arg: Arg) -> Self {
        Self::Arg(arg)
    }
}

/// How much a dispatch does, counted from the values that its kernel is specialized with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Iterations, one after the other, of the invocation that has the most of them: of a sum over memory, over workgroup memory, or
    /// of steps along k in a matrix product. 1 for a kernel without a loop. What one iteration loads does not wait for each other.
    pub iterations: usize,
    /// Multiply-adds that the invocations compute for a matrix product, beyond its edges, too.
    pub issued: u64,
    /// Multiply-adds that the product consists of. Windows that reach into the padding count in full, padded channels do not.
    pub useful: u64,
}

impl Work {
    /// The work of a kernel that is no matrix product.
    #[must_use]
    pub const fn iterations(iterations: usize) -> Self {
        Self { iterations, issued: 0, useful: 0 }
    }
}

/// One dispatch of a kernel.
#[derive(Clone, Debug)]
pub struct Dispatch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// One buffer for each of the kernel's bindings.
    pub bindings: Vec<Bind>,
    /// Values of the kernel's flags.
    pub flags: Vec<(&'static str, i64)>,
    /// Values of the kernel's pipeline-overridable constants.
    pub overrides: Vec<(&'static str, f64)>,
    /// Bytes of `Params`.
    pub params: Vec<u8>,
    /// Number of workgroups, before [`fold_grid`].
    pub workgroups: usize,
    /// Whether it adds to a tensor that it writes.
    pub accumulate: bool,
    /// How much it does.
    pub work: Work,
}

impl Dispatch {
    /// A dispatch of one workgroup without flags, constants, params and loops, for use with struct update syntax.
    #[must_use]
    pub fn new<B: Into<Bind>>(kernel: &'static Kernel, bindings: impl IntoIterator<Item = B>) -> Self {
        let bindings = bindings.into_iter().map(Into::into).collect();
        let (flags, overrides, params) = Default::default();
        let work = Work::iterations(1);
        Self { kernel, bindings, flags, overrides, params, workgroups: 1, accumulate: false, work }
    }

    /// Sets the number of iterations of a kernel that is no matrix product.
    #[must_use]
    pub fn iterations(self, iterations: usize) -> Self {
        Self { work: Work::iterations(iterations), ..self }
    }

    /// Returns the number of invocations.
    #[must_use]
    pub fn invocations(&self) -> usize {
        self.workgroups * self.kernel.workgroup.iter().map(|&size| size as usize).product::<usize>()
    }

    /// Sets the constant that makes the kernel add to one of the tensors that it writes.
    #[must_use]
    pub fn accumulate(mut self, constant: &'static str, on: bool) -> Self {
        self.overrides.push((constant, f64::from(on)));
        self.accumulate |= on;
        self
    }
}

/// The dispatches of a pass and the scratch buffers between them.
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

    /// Adds a scratch buffer of `bytes` bytes.
    pub fn new_scratch(&mut self, bytes: usize) -> Bind {
        self.scratch.push(bytes);
        Bind::Scratch(self.scratch.len() - 1)
    }
}

/// Iterations of a sum over `width` invocations, a power of two, that folds the second half onto the first:
/// `shaders/lib/tree_sum.wgsl`.
#[must_use]
pub const fn tree_levels(width: usize) -> usize {
    width.trailing_zeros() as usize
}

/// Number of workgroups of `size` items each that cover `items`.
#[must_use]
pub const fn workgroups(items: usize, size: usize) -> usize {
    items.div_ceil(size)
}
