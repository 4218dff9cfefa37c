//! Memory of the computer that we run on, where its system is Linux.

use std::fs;

/// Bytes that can be had without any process being ended for want of memory; `None` where the system does not tell.
pub(crate) fn available() -> Option<u64> {
    sum_of_free(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// The most bytes that this process has had in memory so far; `None` where the system does not tell.
pub(crate) fn peak_resident() -> Option<u64> {
    bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// What is free or can be freed, and what can be swapped out.
fn sum_of_free(text: &str) -> Option<u64> {
    Some(bytes(text, "MemAvailable")?.saturating_add(bytes(text, "SwapFree").unwrap_or(0)))
}

/// The number in the line `name:   123 kB`.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_swap_are_added() {
        let text = "MemTotal:       24000000 kB\nMemFree: 7 kB\nMemAvailable:   2000 kB\nSwapTotal: 900 kB\nSwapFree:  48 kB\n";
        assert_eq!(sum_of_free(text), Some(2048 << 10));
        assert_eq!(sum_of_free("MemAvailable: 2 kB\n"), Some(2 << 10));
        assert_eq!(sum_of_free("MemFree: 2 kB\n"), None);
        assert_eq!(sum_of_free("MemAvailable: many kB\n"), None);
        #[cfg(target_os = "linux")]
        assert!(
            available().is_some_and(|bytes| bytes > 1 << 20) && peak_resident().is_some_and(|bytes| bytes > 1 << 20)
        );
    }
}
