//! Memory of the system and of this process, on Linux.

use std::fs;
use std::path::Path;

/// Returns the bytes that can be allocated before the system kills a process, also one in a container; `None` on other systems than Linux.
pub(crate) fn available() -> Option<u64> {
    let system = available_and_swap(&fs::read_to_string("/proc/meminfo").ok()?)?;
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    Some(left_in_group(&group, Path::new("/sys/fs/cgroup")).map_or(system, |left| left.min(system)))
}

/// Returns the memory that the control group of this process and the groups above it leave (version 2 of control groups). `groups` is the
/// content of `/proc/self/cgroup`. Pages of files that were not used lately count as free.
fn left_in_group(groups: &str, root: &Path) -> Option<u64> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folder = root.join(path);
    let number = |folder: &Path, file| fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok();
    let cached = |folder: &Path| {
        let statistics = fs::read_to_string(folder.join("memory.stat")).ok()?;
        statistics.lines().find_map(|line| line.strip_prefix("inactive_file ")?.parse::<u64>().ok())
    };
    let left = |folder: &Path| {
        let used = number(folder, "memory.current")?.saturating_sub(cached(folder).unwrap_or(0));
        Some(number(folder, "memory.max")?.saturating_sub(used))
    };
    folder.ancestors().take_while(|folder| folder.starts_with(root)).filter_map(left).min()
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
    fn smallest_group_limits_the_memory() {
        let root = tempfile::tempdir().unwrap();
        let inner = root.path().join("user/job");
        fs::create_dir_all(&inner).unwrap();
        let set = |folder: &Path, most: &str, used: &str| {
            fs::write(folder.join("memory.max"), most).unwrap();
            fs::write(folder.join("memory.current"), used).unwrap();
        };
        let left = || left_in_group("1:name=x:/y\n0::/user/job\n", root.path());
        assert_eq!(left(), None);
        set(&inner, "max\n", "7\n");
        assert_eq!(left(), None);
        set(&root.path().join("user"), "1000\n", "400\n");
        assert_eq!(left(), Some(600));
        fs::write(root.path().join("user/memory.stat"), "anon 250\ninactive_file 150\n").unwrap();
        assert_eq!(left(), Some(750));
        set(&inner, "500\n", "501\n");
        assert_eq!(left(), Some(0));
        assert_eq!(left_in_group("4:memory:/user\n", root.path()), None);
    }

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
