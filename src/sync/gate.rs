//! A gate at which many threads wait and which one call opens for all of them.
//!
//! It is a futex. With a condition variable each thread would be woken by a call of its own, or
//! take the same lock again.

use std::sync::atomic::{AtomicU32, Ordering};

use rustix::thread::futex;

/// Opens again and again, each time for the threads that came since the last time.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    opened: AtomicU32,
    waiting: AtomicU32,
}

/// One opening of a gate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening(u32);

impl Gate {
    /// The opening that comes next.
    pub(crate) fn next(&self) -> Opening {
        Opening(self.opened.load(Ordering::SeqCst))
    }

    pub(crate) fn open(&self) {
        self.opened.fetch_add(1, Ordering::SeqCst);
        // A thread that is not counted yet will find it open.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            let all = i32::MAX.unsigned_abs();
            futex::wake(&self.opened, futex::Flags::PRIVATE, all)
                .expect("a futex that is mapped wakes");
        }
    }

    /// Waits for an opening.
    pub(crate) fn wait(&self, opening: Opening) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        while self.opened.load(Ordering::SeqCst) == opening.0 {
            // It comes back for many reasons, after each of which one looks again.
            let _woken = futex::wait(&self.opened, futex::Flags::PRIVATE, opening.0, None);
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
