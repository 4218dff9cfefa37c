//! Parallel work whose results do not depend on the number of threads: the caller fixes the parts, and only their assignment to
//! threads varies. If no thread can be started, the calling thread does all the work.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{Builder, ScopedJoinHandle};

use crate::error::Result;

/// Operations for which starting a thread pays.
const OPERATIONS_PER_THREAD: f64 = 1e6;

/// Calls `f(i, part)` for each part of `data` of `size` elements. `work` is the total number of operations.
pub(crate) fn for_parts<T: Send>(data: &mut [T], size: usize, work: f64, f: impl Fn(usize, &mut [T]) + Sync) {
    let threads = cores().min((work / OPERATIONS_PER_THREAD) as usize);
    on_threads(threads, data, size, f);
}

fn on_threads<T: Send>(threads: usize, data: &mut [T], size: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let size = size.max(1);
    let threads = threads.min(data.len().div_ceil(size));
    let parts = data.chunks_mut(size).enumerate();
    if threads < 2 {
        return parts.for_each(|(i, part)| f(i, part));
    }
    let parts = Mutex::new(parts);
    let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
    let work = || {
        while let Some((i, part)) = next() {
            f(i, part);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            // The threads that could be started do all the work.
            if Builder::new().spawn_scoped(scope, work).is_err() {
                break;
            }
        }
        work();
    });
}

/// Returns `f` of every item, in order.
///
/// # Errors
/// The first error in the order of items.
pub(crate) fn map<T: Sync, R: Send>(items: &[T], f: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let threads = cores().min(items.len());
    if threads < 2 {
        return items.iter().map(f).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || -> Vec<(usize, Result<R>)> {
        std::iter::from_fn(|| {
            let i = next.fetch_add(1, Ordering::Relaxed);
            items.get(i).map(|item| (i, f(item)))
        })
        .collect()
    };
    let mut done: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (1..threads).map_while(|_| Builder::new().spawn_scoped(scope, work).ok()).collect();
        let own = work();
        // Propagates panics.
        let join = |worker: ScopedJoinHandle<'_, _>| worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        workers.into_iter().flat_map(join).chain(own).collect()
    });
    done.sort_by_key(|(i, _)| *i);
    done.into_iter().map(|(_, result)| result).collect()
}

/// Returns the number of threads that can run at a time.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_processed_once_on_any_number_of_threads() {
        for threads in [0, 1, 2, 7, 100] {
            let mut data = vec![0; 37];
            on_threads(threads, &mut data, 5, |i, part| part.iter_mut().for_each(|v| *v += 100 + i));
            assert!(data.iter().enumerate().all(|(i, v)| *v == 100 + i / 5), "{threads}: {data:?}");
        }
    }

    #[test]
    fn results_keep_order_and_the_first_error_is_returned() {
        let items: Vec<usize> = (0..100).collect();
        assert_eq!(map(&items, |i| Ok(i * i)).unwrap(), (0..100).map(|i| i * i).collect::<Vec<_>>());
        let failed = map(&items, |i| if *i < 7 { Ok(*i) } else { Err(crate::Error::bug(i)) });
        assert_eq!(failed.unwrap_err().to_string(), crate::Error::bug(7).to_string());
    }
}
