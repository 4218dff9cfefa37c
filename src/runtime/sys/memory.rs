//! Memory of the system and of this process, on Linux.

use std::fs;

/// Returns the bytes that can be allocated before the system kills a process; `None` on other systems than Linux.
pub(crate) fn available() -> Option<u64> {
    available_and_swap(&fs::read_to_string("/proc/meminfo").ok()?)
}

/// Returns the peak resident size of this process in bytes; `None` on other systems than Linux.
#[cfg(any(feature = "cli", test))]
pub(crate) fn peak_resident() -> Option<u64> {
    bytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM")
}

/// Returns the available memory and the free swap space in `/proc/meminfo`.
fn available_and_swap(text: &str) -> Option<u64> {
    Some(bytes(text, "MemAvailable")?.saturating_add(bytes(text, "SwapFree").unwrap_or(0)))
}

/// Returns the size in the line `name:   123 kB`, in bytes.
fn bytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_includes_swap() {
        let text = "MemTotal:       24000000 kB\nMemFree: 7 kB\nMemAvailable:   2000 kB\nSwapTotal: 900 kB\nSwapFree:  48 kB\n";
        assert_eq!(available_and_swap(text), Some(2048 << 10));
        assert_eq!(available_and_swap("MemAvailable: 2 kB\n"), Some(2 << 10));
        assert_eq!(available_and_swap("MemFree: 2 kB\n"), None);
        assert_eq!(available_and_swap("MemAvailable: many kB\n"), None);
        #[cfg(target_os = "linux")]
        assert!(
            available().is_some_and(|bytes| bytes > 1 << 20) && peak_resident().is_some_and(|bytes| bytes > 1 << 20)
        );
    }
}
