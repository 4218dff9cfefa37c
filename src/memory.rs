//! Memory of the computer that we run on.

/// Bytes that can be had without any process being ended for want of memory; `None` where the system does not tell.
pub(crate) fn available() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

/// From the text of Linux's `/proc/meminfo`: what is free or can be freed, and what can be swapped out.
fn parse(text: &str) -> Option<u64> {
    let kib = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let kib = kib("MemAvailable")?.saturating_add(kib("SwapFree").unwrap_or(0));
    Some(kib.saturating_mul(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_swap_are_added() {
        let text = "MemTotal:       24000000 kB\nMemFree: 7 kB\nMemAvailable:   2000 kB\nSwapTotal: 900 kB\nSwapFree:  48 kB\n";
        assert_eq!(parse(text), Some(2048 << 10));
        assert_eq!(parse("MemAvailable: 2 kB\n"), Some(2 << 10));
        assert_eq!(parse("MemFree: 2 kB\n"), None);
        assert_eq!(parse("MemAvailable: many kB\n"), None);
        #[cfg(target_os = "linux")]
        assert!(available().is_some_and(|bytes| bytes > 1 << 20));
    }
}
