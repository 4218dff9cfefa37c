//! Where a software driver's threads run: one processor each.
//!
//! lavapipe wakes its worker threads for every dispatch and waits for all of them. Left to itself the scheduler often puts two of
//! them on the processor that woke them, one after the other, until it notices; on two cores that took a quarter of a training
//! step (docs/kernels.md). `VAE_WGPU_PIN=off` leaves them alone.

#[cfg(target_os = "linux")]
pub(crate) use linux::Threads;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Threads;

#[cfg(target_os = "linux")]
mod linux {
    use std::collections::BTreeSet;

    use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};

    /// The threads of this process at some time.
    pub(crate) struct Threads(BTreeSet<i32>);

    impl Threads {
        pub(crate) fn now() -> Self {
            let entries = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
            Self(entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect())
        }

        /// Gives each thread that has come since a processor of its own, round and round over those that this process may use. What the
        /// system refuses stays as it is: nothing but speed depends on it.
        pub(crate) fn pin_newer(&self) {
            if std::env::var_os("VAE_WGPU_PIN").is_some_and(|v| v == "off") {
                return;
            }
            let Ok(allowed) = sched_getaffinity(None) else { return };
            let processors = (0..CpuSet::MAX_CPU).filter(|&cpu| allowed.is_set(cpu));
            for (thread, cpu) in Self::now().0.difference(&self.0).zip(processors.cycle()) {
                let mut alone = CpuSet::new();
                alone.set(cpu);
                let _ = sched_setaffinity(Pid::from_raw(*thread), &alone);
            }
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    /// Nothing: software drivers of other systems have not been measured.
    pub(crate) struct Threads;

    impl Threads {
        pub(crate) fn now() -> Self {
            Self
        }

        pub(crate) fn pin_newer(&self) {}
    }
}
