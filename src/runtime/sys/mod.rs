//! What the operating system provides: threads, processor affinity, free memory.

pub(crate) mod affinity;
pub(crate) mod memory;
pub(crate) mod threads;
