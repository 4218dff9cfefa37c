//! Signals that stop a run after its current step, and `SIGXFSZ`, which must not kill the process.

use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use signal_hook::{consts, flag};

use super::terminal::{draws_bars, eprintln_above_bar};

#[cfg(unix)]
const REQUESTS: &[i32] = &[consts::SIGINT, consts::SIGTERM, consts::SIGHUP];
#[cfg(not(unix))]
const REQUESTS: &[i32] = &[consts::SIGINT, consts::SIGTERM];

/// Makes Ctrl-C, `SIGTERM` and a closed terminal set `stop`; a second signal ends the process at once. Signals that were ignored when the
/// process started (`nohup`) stay ignored.
///
/// The first signal is acknowledged on stderr unless `quiet`: a step, or the compilation before it, may take a while.
pub(super) fn set_on_request(stop: &Arc<AtomicBool>, quiet: bool) -> io::Result<Requests> {
    let requests = Requests { stop: Arc::clone(stop), received: Arc::default(), is_over: Arc::default() };
    let received = &requests.received;
    let ignored = std::fs::read_to_string("/proc/self/status").map_or(0, |status| ignored(&status));
    for &signal in REQUESTS.iter().filter(|&&signal| (ignored >> (signal - 1)) & 1 == 0) {
        flag::register_conditional_shutdown(signal, 128 + signal, Arc::clone(stop))?;
        // In this order: who sees the run stopped also sees why.
        flag::register_usize(signal, Arc::clone(received), signal.unsigned_abs() as usize)?;
        flag::register(signal, Arc::clone(stop))?;
    }
    if !quiet {
        let requests = requests.clone();
        thread::Builder::new().name("signals".into()).spawn(move || requests.acknowledge())?;
    }
    Ok(requests)
}

/// Requests to stop, by signals or by the end of the time.
#[derive(Clone, Debug)]
pub(super) struct Requests {
    stop: Arc<AtomicBool>,
    /// Number of the last signal, 0 before the first.
    received: Arc<AtomicUsize>,
    /// Whether there is nothing left to stop.
    is_over: Arc<AtomicBool>,
}

impl Requests {
    /// The exit code of a process that a signal ended, as a shell reports it; success if there was none, for example because another
    /// process of the group received it.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self.received.load(Ordering::SeqCst) {
            0 => ExitCode::SUCCESS,
            signal => ExitCode::from(128 + signal as u8),
        }
    }

    /// Lets the next signal end the process.
    pub(super) fn quit_at_once(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
    }

    /// Waits for the first signal, or the end of the time, and says what it does. The thread ends with the process.
    fn acknowledge(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(50));
        }
        if self.is_over.load(Ordering::SeqCst) {
            return;
        }
        let text = match self.received.load(Ordering::SeqCst) {
            0 => "the time of --max-time is up: stopping after this step",
            _ => "stopping after this step; Ctrl-C now quits at once",
        };
        // Not beside the terminal's `^C`, which a bar that is drawn anew replaces.
        let new_line = if io::stderr().is_terminal() && !draws_bars() { "\n" } else { "" };
        eprintln_above_bar(format_args!("{new_line}{text}"));
    }
}

/// Sets `stop` after a time, unless it was set before. Returns a flag that says whether the time did it.
pub(super) fn set_after(time: Duration, stop: &Arc<AtomicBool>) -> io::Result<Arc<AtomicBool>> {
    let (stop, did) = (Arc::clone(stop), Arc::new(AtomicBool::new(false)));
    let flag = Arc::clone(&did);
    thread::Builder::new().name("max-time".into()).spawn(move || {
        thread::sleep(time);
        // In this order: who sees the run stopped also sees why.
        flag.store(!stop.load(Ordering::SeqCst), Ordering::SeqCst);
        stop.store(true, Ordering::SeqCst);
    })?;
    Ok(did)
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
