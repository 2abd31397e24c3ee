//! Waiters for durable records.
//!
//! Readers need no position to know where to stop: a record reaches [`recent`](crate::recent) only
//! once its group is on stable storage. This module only keeps the waiters to wake then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::sync::{Condvar, Deadline, Mutex};

/// A thread or a task that waits for one thing to happen. The waiting side keeps it and lends it to
/// the side that wakes it.
#[derive(Default)]
pub(crate) struct Waiter {
    state: Mutex<WaitState>,
    changed: Condvar,
}

#[derive(Default)]
struct WaitState {
    woken: bool,
    waker: Option<Waker>,
}

impl Waiter {
    /// Wakes the waiter. If it does not wait yet, its next wait ends at once.
    pub(crate) fn wake(&self) {
        let mut state = self.state.lock();
        state.woken = true;
        let waker = state.waker.take();
        drop(state);
        match waker {
            Some(waker) => wake_task(waker),
            None => {
                self.changed.notify_one();
            }
        }
    }

    /// Waits to be woken and resets that. Returns `false` if the deadline came first.
    pub(crate) fn wait(&self, deadline: Deadline) -> bool {
        let mut state = self.state.lock();
        while !state.woken && deadline.wait(&self.changed, &mut state) {}
        std::mem::take(&mut state.woken)
    }

    /// Like [`wait`](Waiter::wait), for a task.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.woken) {
            return Poll::Ready(());
        }
        let before = state.waker.replace(context.waker().clone());
        // Dropping the old waker may run code that takes the lock.
        drop(state);
        drop(before);
        Poll::Pending
    }
}

/// Wakes a task. A panic of its executor is caught, and has been reported by then. Other callers
/// still get their answers, and the log continues.
pub(crate) fn wake_task(waker: Waker) {
    let _reported = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

/// Waiters for the next event of one session, or of any. A registration wakes its waiter once.
#[derive(Default)]
pub(crate) struct WaitList {
    waiters: Vec<Arc<Waiter>>,
}

impl WaitList {
    /// The caller must make sure that the waiter is not in the list already.
    pub(crate) fn add(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.push(Arc::clone(waiter));
    }

    pub(crate) fn remove(&mut self, waiter: &Arc<Waiter>) {
        self.waiters.retain(|other| !Arc::ptr_eq(other, waiter));
    }

    pub(crate) fn take(&mut self) -> Vec<Arc<Waiter>> {
        std::mem::take(&mut self.waiters)
    }
}
