//! The link between ranks over MPI.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use mpi::Threading;
use mpi::environment::Universe;
use mpi::point_to_point::Message;
use mpi::request;
use mpi::topology::{Process, SimpleCommunicator};
use mpi::traits::{Communicator, Destination, Equivalence, Root, Source};

use super::eprintln_lossy;
use crate::error::{Error, Result};
use crate::vae::ranks::Link;

/// The ranks of `MPI_COMM_WORLD`.
pub(super) struct Mpi {
    rank: usize,
    size: usize,
    /// Whether a rank was silent, so that the others must be ended.
    lost: bool,
    /// Ends MPI when it is dropped.
    _universe: Universe,
}

impl std::fmt::Debug for Mpi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mpi").field("rank", &self.rank).field("size", &self.size).finish_non_exhaustive()
    }
}

/// Starts MPI, and returns the link, the number of this process among those of its machine, and that of the first of them among all.
pub(super) fn start() -> anyhow::Result<(Mpi, usize, usize)> {
    // One thread communicates: that of the training loop.
    let (universe, _) = mpi::initialize_with_threading(Threading::Funneled).context("MPI has been started before")?;
    let world = universe.world();
    let (rank, size) = (world.rank() as usize, world.size() as usize);
    let machine = world.split_shared(world.rank());
    let mut node = world.rank();
    machine.process_at_rank(0).broadcast_into(&mut node);
    let local = machine.rank() as usize;
    Ok((Mpi { rank, size, lost: false, _universe: universe }, local, node as usize))
}

/// Polls soon at first, and then with pauses, in which other processes can use the processor.
struct Pause {
    begun: Instant,
    limit: Duration,
}

impl Pause {
    /// Waits a moment. Returns `false` when the limit is over.
    fn wait(&self) -> bool {
        let waited = self.begun.elapsed();
        if waited < Duration::from_micros(200) {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(100));
        }
        waited < self.limit
    }
}

impl Link for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn exchange(&mut self, mut messages: Vec<Vec<u8>>, limit: Duration) -> Result<Vec<Vec<u8>>> {
        // The ranks do not all end at the same moment, so that one message is printed.
        let pause = Pause { begun: Instant::now(), limit: limit + Duration::from_millis(300 * self.rank as u64) };
        let silent = |rank| {
            let message = format!("no message for {:.0} seconds", limit.as_secs_f64());
            Error::Rank { rank, message, diverged: false }
        };
        let world = SimpleCommunicator::world();
        let mut received = vec![Vec::new(); self.size];
        received[self.rank] = std::mem::take(&mut messages[self.rank]);
        // From the next rank on, so that not all send to the same one first.
        let others: Vec<usize> = (1..self.size).map(|step| (self.rank + step) % self.size).collect();
        let result = request::scope(|scope| {
            let mut sends: Vec<_> = others
                .iter()
                .map(|&rank| world.process_at_rank(rank as i32).immediate_send(scope, messages[rank].as_slice()))
                .collect();
            let mut result = Ok(());
            for &rank in others.iter().rev() {
                match receive(&world.process_at_rank(rank as i32), &pause) {
                    Some(message) => received[rank] = message,
                    None => {
                        result = Err(silent(rank));
                        break;
                    }
                }
            }
            while let Some(send) = sends.pop() {
                match send.test() {
                    Ok(_) => {}
                    Err(send) => {
                        sends.push(send);
                        if !pause.wait() {
                            // MPI cannot forget a message on its way.
                            let error = result
                                .as_ref()
                                .err()
                                .map_or("cannot send a message".to_owned(), |error| error.to_string());
                            end_all(&error);
                        }
                    }
                }
            }
            result
        });
        self.lost |= result.is_err();
        result.map(|()| received)
    }
}

/// Receives a message; `None` when the limit is over before it begins.
fn receive(from: &Process<'_>, pause: &Pause) -> Option<Vec<u8>> {
    let (message, status): (Message, _) = loop {
        if let Some(found) = from.immediate_matched_probe() {
            break found;
        }
        if !pause.wait() {
            return None;
        }
    };
    let mut bytes = vec![0u8; usize::try_from(status.count(u8::equivalent_datatype())).unwrap_or(0)];
    request::scope(|scope| {
        let mut receive = message.immediate_matched_receive_into(scope, bytes.as_mut_slice());
        loop {
            match receive.test() {
                Ok(_) => return,
                Err(unfinished) => receive = unfinished,
            }
            if !pause.wait() {
                end_all("a message has stopped on its way");
            }
        }
    });
    Some(bytes)
}

/// Ends all processes.
fn end_all(message: &str) -> ! {
    eprintln_lossy(format_args!("error: {message}"));
    SimpleCommunicator::world().abort(1)
}

impl Drop for Mpi {
    fn drop(&mut self) {
        // The end of MPI waits for all ranks: for ever, if one is silent, or if this one has panicked.
        if self.lost || thread::panicking() {
            SimpleCommunicator::world().abort(1);
        }
    }
}
