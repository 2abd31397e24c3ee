//! The mailbox between threads that have work and the one background thread that does it.

use std::time::Duration;

use crate::sync::{Condvar, Deadline, Mutex};

/// State that a background thread waits on, and the order to stop.
///
/// Any thread may change the state or wait for a change. [`stop`](Mailbox::stop) ends every current
/// and later wait with [`Stopped`].
#[derive(Debug, Default)]
pub(crate) struct Mailbox<T> {
    contents: Mutex<Contents<T>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Contents<T> {
    state: T,
    stopped: bool,
}

/// The background thread has been ordered to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopped;

impl<T> Mailbox<T> {
    pub(crate) fn new(state: T) -> Self {
        let contents = Contents {
            state,
            stopped: false,
        };
        Self {
            contents: Mutex::new(contents),
            changed: Condvar::new(),
        }
    }

    /// Changes the state and wakes every waiting thread to check it again.
    pub(crate) fn update<R>(&self, change: impl FnOnce(&mut T) -> R) -> R {
        let result = self.with(change);
        self.changed.notify_all();
        result
    }

    /// Accesses the state without waking any thread.
    pub(crate) fn with<R>(&self, access: impl FnOnce(&mut T) -> R) -> R {
        access(&mut self.contents.lock().state)
    }

    /// Waits until `find` finds something in the state.
    pub(crate) fn wait_for<R>(&self, find: impl FnMut(&mut T) -> Option<R>) -> Result<R, Stopped> {
        self.wait_until(Deadline::NEVER, find)
            .map(|found| found.expect("a wait without a deadline ends with a find"))
    }

    /// Waits until `find` finds something in the state. `None` if the deadline comes first.
    pub(crate) fn wait_until<R>(
        &self,
        deadline: Deadline,
        mut find: impl FnMut(&mut T) -> Option<R>,
    ) -> Result<Option<R>, Stopped> {
        let mut contents = self.contents.lock();
        let mut in_time = true;
        loop {
            if contents.stopped {
                return Err(Stopped);
            }
            let found = find(&mut contents.state);
            if found.is_some() || !in_time {
                return Ok(found);
            }
            in_time = deadline.wait(&self.changed, &mut contents);
        }
    }

    /// Waits for `time`, or until `ends` holds of the state.
    pub(crate) fn pause(&self, time: Duration, ends: impl Fn(&T) -> bool) -> Result<(), Stopped> {
        self.wait_until(Deadline::after(time), |state| ends(state).then_some(()))
            .map(drop)
    }

    pub(crate) fn stop(&self) {
        self.contents.lock().stopped = true;
        self.changed.notify_all();
    }

    pub(crate) fn check_stop(&self) -> Result<(), Stopped> {
        if self.contents.lock().stopped {
            Err(Stopped)
        } else {
            Ok(())
        }
    }
}
