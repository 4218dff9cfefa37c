//! Ranks that are threads of one process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use web_time::Instant;

use super::{Link, Ranks};
use crate::error::{Error, Result};

/// One end of the channels between threads.
#[derive(Debug)]
struct Channels {
    rank: usize,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Receiver<Vec<u8>>>,
}

impl Link for Channels {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.to.len()
    }

    fn exchange(&mut self, messages: Vec<Vec<u8>>, limit: Duration) -> Result<Vec<Vec<u8>>> {
        for (to, message) in self.to.iter().zip(messages) {
            // A thread that has ended is noticed below.
            let _ = to.send(message);
        }
        let begun = Instant::now();
        let receive = |(rank, from): (usize, &Receiver<Vec<u8>>)| {
            let received = from.recv_timeout(limit.saturating_sub(begun.elapsed()));
            received.map_err(|error| {
                let message = match error {
                    RecvTimeoutError::Timeout => format!("no message for {:.0} seconds", limit.as_secs_f64()),
                    RecvTimeoutError::Disconnected => "it has ended without a message".to_owned(),
                };
                Error::Rank { rank, message, diverged: false }
            })
        };
        self.from.iter().enumerate().map(receive).collect()
    }
}

/// Returns `count` ranks, each for a thread of its own.
///
/// ```
/// use vae_wgpu::vae::ranks::threads;
///
/// let threads: Vec<_> = threads::group(3)
///     .into_iter()
///     .map(|mut rank| std::thread::spawn(move || rank.any(rank.rank() == 1)))
///     .collect();
/// assert!(threads.into_iter().all(|thread| matches!(thread.join(), Ok(Ok(true)))));
/// ```
#[must_use]
pub fn group(count: usize) -> Vec<Ranks> {
    let mut ends: Vec<_> = (0..count)
        .map(|rank| Channels { rank, to: Vec::with_capacity(count), from: Vec::with_capacity(count) })
        .collect();
    for from in 0..count {
        for to in 0..count {
            let (sender, receiver) = channel();
            ends[from].to.push(sender);
            ends[to].from.push(receiver);
        }
    }
    ends.into_iter().map(|end| Ranks::new(Box::new(end))).collect()
}
