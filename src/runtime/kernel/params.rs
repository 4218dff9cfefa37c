//! The uniform `Params` of a kernel.

/// A field of a kernel's `Params` struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Name, the same in Rust and WGSL.
    pub name: &'static str,
    /// Offset in bytes.
    pub offset: u32,
    /// Size in bytes: four, or more for an array.
    pub bytes: u32,
}

/// Declares a kernel's `Params`: a struct of `u32` and `f32` fields with its [`Field`] table and its bytes.
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
                    bytes: ::std::mem::size_of::<$ty>() as u32,
                }),+
            ];

            /// The bytes of the uniform.
            pub(crate) fn bytes(&self) -> Vec<u8> {
                [$(self.$field.to_le_bytes()),+].concat()
            }
        }
    };
}

pub(crate) use kernel_params;
