//! Dispatches of kernels whose invocations are independent of each other. The device side is `shaders/lib/elementwise.wgsl`.

use crate::runtime::kernel::{Bind, Dispatch, Kernel, workgroups};

/// A dispatch of `len` invocations; `params` are the bytes of the kernel's `Params`, whose field `len` has the same value.
pub(crate) fn elementwise<B: Into<Bind>>(
    kernel: &'static Kernel,
    bindings: impl IntoIterator<Item = B>,
    len: usize,
    params: Vec<u8>,
) -> Dispatch {
    Dispatch { params, workgroups: workgroups(len, 64), ..Dispatch::new(kernel, bindings) }
}
