//! Signals that ask a run to end, and one that must not end a process without a word.

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::{consts, flag};

use super::INTERRUPTED;

#[cfg(unix)]
const REQUESTS: &[i32] = &[consts::SIGINT, consts::SIGTERM, consts::SIGHUP];
#[cfg(not(unix))]
const REQUESTS: &[i32] = &[consts::SIGINT, consts::SIGTERM];

/// Ctrl-C, SIGTERM and a terminal that closes set `stop`; the second of them ends the process at once. What was ignored when the process
/// was started (`nohup`) stays ignored.
pub(super) fn set_on_request(stop: &Arc<AtomicBool>) -> io::Result<()> {
    let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
    for &signal in REQUESTS.iter().filter(|&&signal| (ignored >> (signal - 1)) & 1 == 0) {
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), Arc::clone(stop))?;
        flag::register(signal, Arc::clone(stop))?;
    }
    Ok(())
}

/// The set of ignored signals in the text of Linux's `/proc/self/status`: bit 0 is signal 1.
fn ignored(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    line.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}

/// A file that may not grow any further (`ulimit -f`) is an error of the write instead of a signal that kills.
pub(super) fn survive_file_limits() {
    #[cfg(unix)]
    // Without it the signal does what it always did.
    let _ = flag::register(consts::SIGXFSZ, Arc::default());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ignored_signals_are_read() {
        assert_eq!(ignored("Name:\tx\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001001\n"), 0x1001);
        assert_eq!(ignored("SigIgn:\tnonsense\n"), 0);
        assert_eq!(ignored(""), 0);
    }
}
