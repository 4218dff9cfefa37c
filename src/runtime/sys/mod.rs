//! What the operating system or the browser provides: waiting, threads, processor affinity, free memory.

pub(crate) mod affinity;
pub(crate) mod memory;
pub(crate) mod platform;
pub(crate) mod signal;
pub(crate) mod threads;
