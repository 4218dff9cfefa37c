//! Pins the threads of a software driver to processors.
//!
//! lavapipe wakes its worker threads for every dispatch and waits for all of them. The scheduler often places two of them on the
//! processor that woke them, where they run one after the other. On two cores that took a quarter of a training step
//! (`docs/kernels.md`).

#[cfg(target_os = "linux")]
pub(crate) use linux::Threads;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Threads;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeSet;

    use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

    /// The threads of this process at some point in time.
    pub(crate) struct Threads(BTreeSet<i32>);

    impl Threads {
        pub(crate) fn now() -> Self {
            let entries = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
            Self(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        }

        /// Pins each thread that was started since then to one processor, in turn over those that this process may use. Ignores
        /// failures, which only cost speed.
        pub(crate) fn pin_newer(&self) {
            let Ok(allowed) = sched_getaffinity(None) else { return };
            let processors = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
            for (thread, cpu) in Self::now().0.difference(&self.0).zip(processors.cycle()) {
                let mut one = CpuSet::new();
                one.set(cpu);
                let _ = sched_setaffinity(Pid::from_raw(*thread), &one);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    /// Does nothing: software drivers of other systems have not been measured.
    pub(crate) struct Threads;

    impl Threads {
        pub(crate) fn now() -> Self {
            Self
        }

        pub(crate) fn pin_newer(&self) {}
    }
}
