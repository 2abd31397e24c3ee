//! The appends that are under way, to tell a lone caller from one among many.

use tokio::runtime::{Handle, RuntimeFlavor};

use crate::sync::{AtomicU64, Ordering};

/// How many appends in a row must have begun alone. With several callers, a short run of them is
/// common.
pub(crate) const ALONE_MIN: u64 = 8;

#[derive(Default)]
pub(crate) struct Callers {
    running: AtomicU64,
    /// The number of appends in a row, up to the last that began, that began alone.
    alone: AtomicU64,
}

/// An append that is under way.
pub(crate) struct Caller<'a> {
    callers: &'a Callers,
    is_lone: bool,
}

impl Callers {
    pub(crate) fn enter(&self) -> Caller<'_> {
        let alone = match self.running.fetch_add(1, Ordering::Relaxed) {
            0 => self.alone.load(Ordering::Relaxed).saturating_add(1),
            _ => 0,
        };
        self.alone.store(alone, Ordering::Relaxed);
        Caller {
            callers: self,
            is_lone: alone >= ALONE_MIN,
        }
    }
}

impl Caller<'_> {
    /// Whether the append is best written by the thread that runs it: nobody else appends, and the
    /// runtime has other threads for its tasks meanwhile.
    pub(crate) fn may_block(&self) -> bool {
        self.is_lone && Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread
    }
}

impl Drop for Caller<'_> {
    fn drop(&mut self) {
        self.callers.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_is_lone_after_a_run_of_appends_without_another() {
        let callers = Callers::default();
        let run = || (1..ALONE_MIN).for_each(|_| assert!(!callers.enter().is_lone));
        run();
        let (lone, other) = (callers.enter(), callers.enter());
        assert!(lone.is_lone && !other.is_lone);
        drop((lone, other));
        run();
        assert!(callers.enter().is_lone && callers.enter().is_lone);
    }
}
