//! The one file that chooses lock, atomic and thread types. Tests replace them to explore the
//! schedules of all code above.

#[cfg(all(test, shuttle))]
mod explored;
#[cfg(all(
    target_os = "linux",
    not(sessionlog_not_linux),
    not(all(test, shuttle))
))]
mod gate;
#[cfg(not(all(
    target_os = "linux",
    not(sessionlog_not_linux),
    not(all(test, shuttle))
)))]
mod locked_gate;
mod mailbox;
mod priority;
mod waiter;

use std::time::Duration;

pub(crate) use mailbox::{Mailbox, Stopped};
pub(crate) use priority::give_way;
pub(crate) use waiter::{WaitList, Waiter, wake_task};

#[cfg(all(test, shuttle))]
pub(crate) use explored::{
    AtomicBool, AtomicU64, Condvar, Instant, JoinHandle, Mutex, MutexGuard, Ordering, RwLock,
    Tally, Threads, current, scope, yield_now,
};
#[cfg(all(test, not(shuttle)))]
pub(crate) use std::thread::{current, scope, yield_now};
#[cfg(not(all(test, shuttle)))]
pub(crate) use {
    parking_lot::{Condvar, Mutex, MutexGuard, RwLock},
    std::sync::atomic::{AtomicBool, AtomicU64, Ordering},
    std::thread::{Builder as Threads, JoinHandle},
    std::time::Instant,
};

#[cfg(all(
    target_os = "linux",
    not(sessionlog_not_linux),
    not(all(test, shuttle))
))]
pub(crate) use gate::{Gate, Opening};
#[cfg(not(all(
    target_os = "linux",
    not(sessionlog_not_linux),
    not(all(test, shuttle))
)))]
pub(crate) use locked_gate::{Gate, Opening};

/// When to stop waiting; never, where the wait is longer than a clock can count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline(Option<Instant>);

impl Deadline {
    pub(crate) const NEVER: Self = Self(None);

    pub(crate) fn after(wait: Duration) -> Self {
        Self(Instant::now().checked_add(wait))
    }

    /// Whether it is over.
    pub(crate) fn has_passed(self) -> bool {
        self.0.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// Waits to be notified. Returns `false` if the deadline came first.
    pub(crate) fn wait<T>(self, condition: &Condvar, guard: &mut MutexGuard<'_, T>) -> bool {
        if let Some(deadline) = self.0 {
            return !condition.wait_until(guard, deadline).timed_out();
        }
        condition.wait(guard);
        true
    }
}

/// Starts a thread that shows up under `name` in debuggers and profilers.
pub(crate) fn spawn(
    name: &str,
    run: impl FnOnce() + Send + 'static,
) -> std::io::Result<JoinHandle<()>> {
    Threads::new().name(name.to_owned()).spawn(run)
}
