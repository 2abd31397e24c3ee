//! A gate made of a lock and a condition variable, where there is no futex.

use crate::sync::{Condvar, Mutex};

/// Opens again and again, each time for the threads that came since the last time.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    opened: Mutex<u32>,
    changed: Condvar,
}

/// One opening of a gate.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Opening(u32);

impl Gate {
    /// The opening that comes next.
    pub(crate) fn next(&self) -> Opening {
        Opening(*self.opened.lock())
    }

    pub(crate) fn open(&self) {
        let mut opened = self.opened.lock();
        *opened = opened.wrapping_add(1);
        drop(opened);
        self.changed.notify_all();
    }

    /// Waits for an opening.
    pub(crate) fn wait(&self, opening: Opening) {
        let mut opened = self.opened.lock();
        while *opened == opening.0 {
            self.changed.wait(&mut opened);
        }
    }
}
