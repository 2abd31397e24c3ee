//! The signal between writers that fill the journal and the sealing thread that empties it.

use std::time::Duration;

use crate::recent::Timing;
use crate::sync::{Deadline, Mailbox, Stopped};

/// The sealing thread's mailbox: how soon it must seal.
#[derive(Default)]
pub(crate) struct SealSignal(Mailbox<Option<Timing>>);

impl SealSignal {
    /// Reports that a journal file is full, or that memory holds many records.
    pub(crate) fn notify(&self) {
        self.post(Timing::Needed);
    }

    /// Reports that there has been no append for a while.
    pub(crate) fn notify_idle(&self) {
        self.post(Timing::Now);
    }

    /// Reports that everything has to be sealed, to be erased from the journal.
    pub(crate) fn notify_everything(&self) {
        self.post(Timing::All);
    }

    fn post(&self, timing: Timing) {
        self.0.update(|work| *work = (*work).max(Some(timing)));
    }

    /// Waits until `may_go_on` holds, and checks it whenever sealing progresses or ends. Returns
    /// `false` if it does not hold at the deadline.
    pub(crate) fn wait_for_room(&self, deadline: Deadline, may_go_on: impl Fn() -> bool) -> bool {
        if may_go_on() {
            return true;
        }
        self.notify();
        let waited = self
            .0
            .wait_until(deadline, |_work| may_go_on().then_some(()));
        waited.unwrap_or_default().is_some()
    }

    /// Waits for work, and takes its timing.
    pub(crate) fn wait_for_work(&self) -> Result<Timing, Stopped> {
        self.0.wait_for(Option::take)
    }

    /// Waits for `time` after a failure. The work is then done again at once, and all of it that
    /// had to be done.
    pub(crate) fn pause_before_retry(&self, failed: Timing, time: Duration) -> Result<(), Stopped> {
        self.0.pause(time, |_work| false)?;
        self.post(failed.max(Timing::Now));
        Ok(())
    }

    /// Wakes waiting writers to check for room again, or for a failure of the log.
    pub(crate) fn note_progress(&self) {
        self.0.update(|_work| ());
    }

    pub(crate) fn check_stop(&self) -> Result<(), Stopped> {
        self.0.check_stop()
    }

    pub(crate) fn stop(&self) {
        self.0.stop();
    }
}

/// What the retaining thread is to do.
pub(crate) struct RetainOrders {
    /// Whether a session was ever given a retention of its own.
    pub has_own: bool,
    /// Whether to look after sessions now.
    pub look: bool,
}
