//! A value that a callback sends to a task.

use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

/// Receives one value from a callback, which may run on any thread or, in a browser, between two tasks.
#[derive(Debug)]
pub(crate) struct Signal<T>(Arc<Mutex<State<T>>>);

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    /// The task that waits for the value.
    waker: Option<Waker>,
}

impl<T: Clone + Send + 'static> Signal<T> {
    /// Returns a signal, and the callback that sends its value.
    pub(crate) fn new() -> (Self, impl FnOnce(T) + Send + 'static) {
        let signal = Self(Arc::new(Mutex::new(State { value: None, waker: None })));
        let sender = Self(Arc::clone(&signal.0));
        let send = move |value| {
            let waker = {
                let mut state = sender.lock();
                state.value = Some(value);
                state.waker.take()
            };
            waker.into_iter().for_each(Waker::wake);
        };
        (signal, send)
    }

    /// Returns the value if it was sent.
    pub(crate) fn get(&self) -> Option<T> {
        self.lock().value.clone()
    }

    /// Waits for the value.
    pub(crate) async fn wait(&self) -> T {
        poll_fn(|context| {
            let mut state = self.lock();
            state.waker = Some(context.waker().clone());
            state.value.clone().map_or(Poll::Pending, Poll::Ready)
        })
        .await
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn value_is_there_before_and_after_it_is_waited_for() {
        let (signal, send) = Signal::new();
        assert_eq!(signal.get(), None);
        let sender = std::thread::spawn(move || send(7));
        assert_eq!(pollster::block_on(signal.wait()), 7);
        sender.join().unwrap();
        assert_eq!(signal.get(), Some(7));
        assert_eq!(pollster::block_on(signal.wait()), 7);
    }
}
