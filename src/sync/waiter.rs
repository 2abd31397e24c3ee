//! What is durable, and who waits for more of it.
//!
//! Readers never look at a number to know where to stop: a record reaches [`recent`](crate::recent)
//! only once its group is on stable storage. What is kept here is who to wake then.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use crate::sync::{Condvar, Deadline, Mutex};

/// Somebody who waits for one thing to happen: a thread or a task. Kept by the one who waits and
/// lent to the one who wakes.
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
    /// Lets the waiter go on. It counts also when nobody waits yet.
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

    /// Waits to be woken and clears that. `false` when the deadline came first.
    pub(crate) fn wait(&self, deadline: Deadline) -> bool {
        let mut state = self.state.lock();
        while !state.woken && deadline.wait(&self.changed, &mut state) {}
        std::mem::take(&mut state.woken)
    }

    /// As [`wait`](Waiter::wait), for a task.
    pub(crate) fn poll(&self, context: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.woken) {
            return Poll::Ready(());
        }
        let before = state.waker.replace(context.waker().clone());
        // What it keeps alive may want the lock when it goes.
        drop(state);
        drop(before);
        Poll::Pending
    }
}

/// Wakes a task. Should its executor panic over that, which has been reported by then, it is the
/// executor's affair: others still get their answers, and the log goes on.
pub(crate) fn wake_task(waker: Waker) {
    let _reported = catch_unwind(AssertUnwindSafe(|| waker.wake()));
}

/// Waiters for the next event of one session, or of any. Each registration is good for one wake-up.
#[derive(Default)]
pub(crate) struct WaitList {
    waiters: Vec<Arc<Waiter>>,
}

impl WaitList {
    /// The caller sees to it that it is not in the list already.
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
