//! Processes that train together. Each is a *rank*, with a number from 0.
//!
//! [`Link`] moves messages between ranks and is all that a way to communicate has to provide: [`threads`] does it within a process, and the
//! command line over MPI. [`Ranks`] has the operations that training needs.
//!
//! Ranks communicate in rounds. In a round every rank sends one message to every rank, itself included, and receives one from each, so
//! that all of them learn in the same round that one has failed or ended. Then there are no further rounds.

use std::fmt;
use std::time::Duration;

use web_time::Instant;

use crate::error::{Error, Result};
use crate::runtime::op::{Carry, MicroBatch};

pub mod threads;

/// Moves messages between ranks.
pub trait Link: fmt::Debug + Send {
    /// Returns the number of this rank.
    fn rank(&self) -> usize;

    /// Returns the number of ranks.
    fn size(&self) -> usize;

    /// Sends message i to rank i and returns the message from each rank, in order. Messages may have any lengths.
    ///
    /// # Errors
    /// [`Error::Rank`] names a rank from which no message has come within `limit`.
    fn exchange(&mut self, messages: Vec<Vec<u8>>, limit: Duration) -> Result<Vec<Vec<u8>>>;
}

/// Time for which ranks wait for each other where one may have much more to do: a download, or kernels to compile.
const LONG: Duration = Duration::from_secs(3600);
/// Elsewhere they wait for this time, and ten times as long as this rank has worked since the last round.
const SHORT: Duration = Duration::from_secs(30);

/// Last byte of a message.
const DATA: u8 = 0;
/// The sender has ended without an error.
const ENDED: u8 = 1;
/// The sender has failed, and the message says why.
const FAILED: u8 = 2;
/// The same, at a value that was not finite.
const DIVERGED: u8 = 3;

/// A rank, and its link to the others.
#[derive(Debug)]
pub struct Ranks {
    link: Box<dyn Link>,
    short: Duration,
    /// Whether a rank has ended or failed.
    over: bool,
    /// Whether no message came from a rank.
    lost: bool,
    /// End of the last round.
    last: Instant,
    communicating: Duration,
}

impl Ranks {
    /// Joins the ranks of a link.
    #[must_use]
    pub fn new(link: Box<dyn Link>) -> Self {
        Self { link, short: SHORT, over: false, lost: false, last: Instant::now(), communicating: Duration::ZERO }
    }

    /// Waits for this time, instead of 30 seconds, for a rank that should be as fast as this one.
    #[must_use]
    pub fn with_patience(self, short: Duration) -> Self {
        Self { short, ..self }
    }

    /// Returns the number of this rank.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.link.rank()
    }

    /// Returns the number of ranks.
    #[must_use]
    pub fn size(&self) -> usize {
        self.link.size()
    }

    /// Returns the time spent in communication so far. It includes that of waiting for other ranks.
    #[must_use]
    pub fn communicating(&self) -> Duration {
        self.communicating
    }

    /// Returns whether a rank was silent for too long. The others may then wait for this one.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// Returns the message of each rank.
    ///
    /// # Errors
    /// [`Error::Rank`] if a rank has failed, has ended or is silent.
    pub fn gather(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange(vec![own.to_vec(); self.size()], self.limit())
    }

    /// Returns the message of each rank, of which one may have been busy for long.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn gather_patiently(&mut self, own: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.exchange(vec![own.to_vec(); self.size()], LONG.max(self.limit()))
    }

    /// Returns whether the flag of any rank is set.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn any(&mut self, flag: bool) -> Result<bool> {
        Ok(self.gather(&[u8::from(flag)])?.iter().any(|message| message.contains(&1)))
    }

    /// Returns the flag of rank 0.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn first(&mut self, flag: bool) -> Result<bool> {
        Ok(self.gather_patiently(&[u8::from(flag)])?.first().is_some_and(|message| message.contains(&1)))
    }

    /// Returns the smallest number of all ranks.
    ///
    /// # Errors
    /// As [`Ranks::gather`].
    pub fn least(&mut self, number: usize) -> Result<usize> {
        let all = self.gather_patiently(&(number as u64).to_le_bytes())?;
        let number_of = |bytes: &Vec<u8>| Some(u64::from_le_bytes(bytes.as_slice().try_into().ok()?) as usize);
        all.iter().filter_map(number_of).min().ok_or_else(|| Error::bug("a group without ranks"))
    }

    /// Checks that the named values of all ranks are those of rank 0.
    ///
    /// # Errors
    /// [`Error::Rank`] names the first rank with another value; as [`Ranks::gather`].
    pub fn check_same(&mut self, values: &[(&str, String)]) -> Result<()> {
        let own = serde_json::to_vec(values).map_err(Error::bug)?;
        let all = self.gather_patiently(&own)?;
        let parsed = all.iter().map(|bytes| serde_json::from_slice::<Vec<(String, String)>>(bytes));
        let all: Vec<_> = parsed.collect::<Result<_, _>>().map_err(Error::bug)?;
        let Some((first, others)) = all.split_first() else { return Err(Error::bug("a group without ranks")) };
        let of = |values: &[(String, String)], what: &str| {
            values.iter().find(|(name, _)| name == what).map_or("none".to_owned(), |(_, value)| value.clone())
        };
        for (rank, other) in (1..).zip(others) {
            let differs = other.iter().chain(first).find(|(what, _)| of(other, what) != of(first, what));
            if let Some((what, _)) = differs {
                let (found, expected) = (of(other, what), of(first, what));
                let message = format!("its {what} differs from that of rank 0: {found}, expected {expected}");
                return Err(Error::Rank { rank, message, diverged: false });
            }
        }
        Ok(())
    }

    /// Adds the values of the first `count` ranks, which must be equally many, in the order of [`MicroBatch`]: the sums of consecutive
    /// blocks of micro-batches give the sum of the step. Ranks beyond have nothing to add and get the sum, too.
    ///
    /// # Errors
    /// As [`Ranks::gather`]; [`Error::Bug`] if a rank has another number of values.
    pub fn sum(&mut self, values: &mut [f32], count: usize) -> Result<()> {
        let chunk = values.len().div_ceil(self.size()).max(1);
        let adds = self.rank() < count;
        // Every rank gets a chunk from each, adds them, and sends the sum to all.
        let mut parts: Vec<Vec<u8>> = match adds {
            true => values.chunks(chunk).map(|part| bytemuck::cast_slice(part).to_vec()).collect(),
            false => Vec::new(),
        };
        parts.resize(self.size(), Vec::new());
        let received = self.exchange(parts, self.limit())?;
        let added = tree_sum(received.into_iter().take(count).map(|bytes| bytemuck::pod_collect_to_vec(&bytes)))?;
        let sums = self.gather(bytemuck::cast_slice(&added))?.concat();
        if sums.len() != size_of_val(values) {
            return Err(Error::bug(format!("a sum of {} bytes for {} values", sums.len(), values.len())));
        }
        bytemuck::cast_slice_mut::<f32, u8>(values).copy_from_slice(&sums);
        Ok(())
    }

    /// Ends the group, with the message of this rank if it has failed, and whether at a value that was not finite. Does nothing if a rank
    /// has ended before.
    ///
    /// # Errors
    /// [`Error::Rank`] if another rank has failed and this one has not, or is silent.
    pub fn end(&mut self, failure: Option<(&str, bool)>) -> Result<()> {
        if self.over {
            return Ok(());
        }
        let mut message = failure.map(|(message, _)| message.as_bytes().to_vec()).unwrap_or_default();
        message.push(match failure {
            None => ENDED,
            Some((_, false)) => FAILED,
            Some((_, true)) => DIVERGED,
        });
        // Another rank may end much later, with files to write; one that fails need not wait for that.
        let limit = if failure.is_some() { self.limit() } else { LONG.max(self.limit()) };
        let received = self.round(vec![message; self.size()], limit)?;
        self.over = true;
        match failed(&received) {
            Some(error) if failure.is_none() => Err(error),
            _ => Ok(()),
        }
    }

    /// Time for which to wait for the other ranks.
    fn limit(&self) -> Duration {
        self.short + 10 * self.last.elapsed()
    }

    fn exchange(&mut self, mut messages: Vec<Vec<u8>>, limit: Duration) -> Result<Vec<Vec<u8>>> {
        if self.over {
            return Err(Error::bug("a round after the end of the group"));
        }
        messages.iter_mut().for_each(|message| message.push(DATA));
        let mut received = self.round(messages, limit)?;
        let ended = received.iter().position(|message| message.last() != Some(&DATA));
        let Some(rank) = ended else {
            received.iter_mut().for_each(|message| message.truncate(message.len() - 1));
            return Ok(received);
        };
        self.over = true;
        let message = "it has ended before the others".to_owned();
        Err(failed(&received).unwrap_or(Error::Rank { rank, message, diverged: false }))
    }

    fn round(&mut self, messages: Vec<Vec<u8>>, limit: Duration) -> Result<Vec<Vec<u8>>> {
        let begun = Instant::now();
        let received = self.link.exchange(messages, limit);
        self.last = Instant::now();
        self.communicating += self.last - begun;
        self.lost = received.is_err();
        self.over |= self.lost;
        received
    }
}

/// Returns the error of the first rank that has failed.
fn failed(received: &[Vec<u8>]) -> Option<Error> {
    received.iter().enumerate().find_map(|(rank, message)| {
        let (kind, text) = message.split_last()?;
        let message = String::from_utf8_lossy(text).into_owned();
        [FAILED, DIVERGED].contains(kind).then_some(Error::Rank { rank, message, diverged: *kind == DIVERGED })
    })
}

/// Adds parts of equal length as [`MicroBatch`] adds blocks of micro-batches.
fn tree_sum(parts: impl ExactSizeIterator<Item = Vec<f32>>) -> Result<Vec<f32>> {
    let count = parts.len();
    let (mut sum, mut held) = (Vec::new(), vec![Vec::new(); MicroBatch::levels(count)]);
    for (index, part) in parts.enumerate() {
        sum = part;
        let block = MicroBatch { index, count, images: 1, of: count };
        for (level, held) in held.iter_mut().enumerate() {
            match block.carry(level) {
                Carry::Keep => {}
                Carry::Store => held.clone_from(&sum),
                Carry::Add if held.len() == sum.len() => {
                    sum.iter_mut().zip(held.iter()).for_each(|(sum, held): (&mut f32, &f32)| *sum += held);
                }
                Carry::Add => return Err(Error::bug(format!("sums of {} and {} values", held.len(), sum.len()))),
            }
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs `body` on each of `count` ranks.
    fn on_ranks<T: Send>(count: usize, body: impl Fn(&mut Ranks) -> T + Sync) -> Vec<T> {
        let body = &body;
        thread::scope(|scope| {
            let spawn = |mut ranks: Ranks| scope.spawn(move || body(&mut ranks));
            let threads: Vec<_> = threads::group(count).into_iter().map(spawn).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn sums_are_those_of_the_tree() {
        // Values whose sum depends on the order.
        let value =
            |rank: usize, i: usize| (1.0 + rank as f32 * 0.37).powi(i as i32 % 9) * 1e3f32.powi(rank as i32 % 3 - 1);
        for (size, adding, len) in [(1, 1, 5), (2, 2, 7), (4, 4, 3), (4, 3, 8), (5, 5, 1), (3, 1, 4)] {
            let sums = on_ranks(size, |ranks| {
                let mut values: Vec<f32> = (0..len).map(|i| value(ranks.rank(), i)).collect();
                ranks.sum(&mut values, adding).unwrap();
                values
            });
            let expected = |i| match adding {
                1 => value(0, i),
                2 => value(0, i) + value(1, i),
                3 => (value(0, i) + value(1, i)) + value(2, i),
                4 => (value(0, i) + value(1, i)) + (value(2, i) + value(3, i)),
                _ => ((value(0, i) + value(1, i)) + (value(2, i) + value(3, i))) + value(4, i),
            };
            let expected: Vec<f32> = (0..len).map(expected).collect();
            assert!(
                sums.iter().all(|sum| *sum == expected),
                "{adding} of {size} ranks: {sums:?}, expected {expected:?}"
            );
        }
    }

    #[test]
    fn flags_and_numbers_are_agreed_upon() {
        let agreed = on_ranks(3, |ranks| {
            let own = ranks.rank();
            (
                ranks.any(own == 2).unwrap(),
                ranks.any(false).unwrap(),
                ranks.first(own == 0).unwrap(),
                ranks.first(own == 1).unwrap(),
                ranks.least(7 - own).unwrap(),
                ranks.gather(&[own as u8; 2][..own.min(2)]).unwrap(),
            )
        });
        assert!(
            agreed.iter().all(|all| *all == (true, false, true, false, 5, vec![vec![], vec![1], vec![2, 2]])),
            "{agreed:?}"
        );
    }

    #[test]
    fn the_rank_that_differs_is_named() {
        let errors = on_ranks(3, |ranks| {
            let seed = if ranks.rank() == 2 { 8 } else { 7 };
            ranks.check_same(&[("version", "1".to_owned()), ("seed", seed.to_string())]).unwrap_err().to_string()
        });
        assert!(
            errors.iter().all(|error| error == "rank 2: its seed differs from that of rank 0: 8, expected 7"),
            "{errors:?}"
        );
        assert!(on_ranks(2, |ranks| ranks.check_same(&[("seed", "7".to_owned())])).iter().all(Result::is_ok));
        let errors = on_ranks(2, |ranks| {
            let values = [("clip", "1".to_owned()), ("seed", "7".to_owned())];
            ranks.check_same(&values[ranks.rank()..]).unwrap_err().to_string()
        });
        assert_eq!(errors[1], "rank 1: its clip differs from that of rank 0: none, expected 1");
    }

    #[test]
    fn a_failure_reaches_all_ranks_wherever_they_are() {
        let results = on_ranks(3, |ranks| match ranks.rank() {
            1 => ranks.end(Some(("no more memory", true))).map(|()| vec![0.0]),
            rank => {
                let mut values = vec![1.0];
                let result = if rank == 0 { ranks.sum(&mut values, 3) } else { ranks.end(None) };
                // A second end has nobody to talk to.
                ranks.end(None).unwrap();
                result.map(|()| values)
            }
        });
        for (rank, result) in results.into_iter().enumerate() {
            match result {
                Ok(_) => assert_eq!(rank, 1),
                Err(Error::Rank { rank: 1, message, diverged: true }) => assert_eq!(message, "no more memory"),
                Err(error) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn silent_and_vanished_ranks_are_named_in_time() {
        let waits = |present: fn()| {
            let mut group = threads::group(2);
            let other = group.pop().unwrap();
            let thread = thread::spawn(move || {
                let _other = other;
                present();
            });
            let mut ranks = group.pop().unwrap().with_patience(Duration::from_millis(50));
            let error = ranks.any(false).unwrap_err().to_string();
            assert!(ranks.is_lost() && ranks.end(None).is_ok());
            let _ = thread.join();
            error
        };
        let silent = waits(|| thread::sleep(Duration::from_millis(500)));
        assert!(silent.starts_with("rank 1: no message for"), "{silent}");
        assert_eq!(waits(|| {}), "rank 1: it has ended without a message");
        let early = on_ranks(2, |ranks| if ranks.rank() == 0 { ranks.end(None) } else { ranks.any(true).map(drop) });
        assert_eq!(early[1].as_ref().unwrap_err().to_string(), "rank 0: it has ended before the others");
    }
}
