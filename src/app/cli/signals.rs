//! Signals that stop a run after its current step, and `SIGXFSZ`, which must not kill the process.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::{consts, flag};

use super::INTERRUPTED;

#[cfg(unix)]
const REQUESTS: &[i32] = &[consts::SIGINT, consts::SIGTERM, consts::SIGHUP];
#[cfg(not(unix))]
const REQUESTS: &[i32] = &[consts::SIGINT, consts::SIGTERM];

/// Makes Ctrl-C, `SIGTERM` and a closed terminal set `stop`; a second signal ends the process at once. Signals that were ignored when the
/// process started (`nohup`) stay ignored.
pub(super) fn set_on_request(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
    for &signal in REQUESTS.iter().filter(|&&signal| (ignored >> (signal - 1)) & 1 == 0) {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(stop))?;
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

/// Parses the set of ignored signals from Linux's `/proc/self/status`: bit 0 is signal 1.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// Makes a write beyond the file size limit (`ulimit -f`) fail with an error instead of killing the process.
pub(super) fn ignore_file_size_signal() {
    #[cfg(unix)]
    // On failure the signal keeps its default action.
    let _ = flag::register(consts::SIGXFSZ, Arc::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_parsed() {
        assert_eq!(ignored("Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored("SigIgn:\tnonsense\n"), 0);
        assert_eq!(ignored(""), 0);
    }
}
