//! What a browser does differently: its thread must not wait, and errors of the device arrive when it is free again.
//!
//! Everything that waits for the device is an `async` function. Outside of a browser such a function waits inside, when it is polled,
//! and [`block_on`] makes a blocking function of it.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use crate::error::{Error, Result};

/// Whether this thread may wait for the device.
pub(crate) const MAY_WAIT: bool = cfg!(not(target_arch = "wasm32"));

/// Whether kernels may use subgroup operations. Browsers want them in uniform control flow, and cannot prove that ours are.
pub(crate) const SUBGROUPS: bool = cfg!(not(target_arch = "wasm32"));

/// Whether buffers that are dropped stay allocated until the garbage is collected.
pub(crate) const COLLECTS_GARBAGE: bool = cfg!(target_arch = "wasm32");

/// Waits for the result of a future.
///
/// # Errors
/// Those of the future; [`Error::Device`] in a browser, if the result is not there yet.
pub(crate) fn block_on<T>(future: impl Future<Output = Result<T>>) -> Result<T> {
    if MAY_WAIT {
        return pollster::block_on(future);
    }
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => Err(Error::device("waiting", "a thread of a browser must not wait; call the async function")),
    }
}
