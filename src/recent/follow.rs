//! The records in memory of a reader that follows the log of another process. Records get here from
//! the journal, as when a log is opened, and leave when the writer has sealed them.
//!
//! No read is under way meanwhile, so the order of the steps does not matter to readers.

use std::sync::Arc;

use crate::model::EventId;
use crate::recent::{Recent, RecentForks};
use crate::sync::{Ordering, Waiter};

impl Recent {
    /// Releases the records that the segments hold now: those of the journal files that end at or
    /// before `sealed_lsn`.
    pub(crate) fn release_before(&self, sealed_lsn: u64) {
        let commits = self.commits.read();
        let next = commits.files.iter().skip(1);
        let sealed = next.take_while(|next| next.start_lsn <= sealed_lsn).count();
        let groups = commits.files.range(..sealed).flat_map(|file| &file.groups);
        let records = groups
            .flat_map(|group| group.iter().map(Arc::clone))
            .collect();
        drop(commits);
        if sealed > 0 {
            self.release_sealed(sealed, records);
        }
    }

    /// Forgets all records and states, because the segments hold records that were never here.
    /// Returns the waiters for any event. Their sessions are loaded again when they are read.
    pub(crate) fn begin_again(&self, sealed_events: u64, last_id: EventId) -> Vec<Arc<Waiter>> {
        let mut commits = self.commits.write();
        commits.files.clear();
        (commits.events, commits.last_id) = (sealed_events, last_id);
        drop(commits);
        self.bytes.store(0, Ordering::Relaxed);
        *self.forks.lock() = RecentForks::default();
        // Removals may be among what the segments hold.
        self.removals.fetch_add(1, Ordering::Release);
        let mut to_wake = self.sessions.outdate();
        to_wake.append(&mut self.feeds.lock().take());
        to_wake
    }
}

#[cfg(test)]
mod tests {
    use crate::codec::SessionState;
    use crate::model::{EventId, SessionId};
    use crate::recent::tests::{file, recent, record};

    #[test]
    fn records_leave_with_the_last_journal_file_that_was_sealed() {
        let recent = recent();
        for nth in 0..3 {
            recent.restore_file(file(nth), 4096, 4096 * u64::from(nth));
            recent
                .restore(vec![record("s", 1 + u64::from(nth))])
                .unwrap();
        }
        let first = |sealed_lsn| {
            recent.release_before(sealed_lsn);
            let records = recent.records_from(EventId::from_u128(0), 1);
            records.first().map(|record| record.first)
        };
        for (sealed_lsn, left) in [(0, 1), (4095, 1), (4096, 2), (8192, 3), (12288, 3)] {
            assert_eq!(first(sealed_lsn), Some(left), "sealed up to {sealed_lsn}");
        }
    }

    /// A writer that recovers writes its last file again, in another one.
    #[test]
    fn records_stay_when_their_journal_file_is_written_again() {
        let recent = recent();
        recent.restore_file(file(1), 4096, 0);
        recent.restore(vec![record("s", 1)]).unwrap();
        recent.restore_file(file(2), 4096, 0);
        recent.restore(vec![record("s", 2)]).unwrap();
        recent.release_before(0);
        assert_eq!(recent.records_from(EventId::from_u128(0), 9).len(), 2);
        recent.restore_file(file(3), 4096, 4096);
        recent.release_before(4096);
        assert!(recent.records_from(EventId::from_u128(0), 9).is_empty());
    }

    #[test]
    fn a_session_that_is_begun_again_is_loaded_again() {
        let recent = recent();
        let load = |last| {
            move || {
                Ok(SessionState {
                    last,
                    generation: 1,
                    ..SessionState::default()
                })
            }
        };
        let ids = ["held", "idle", "recent"].map(|id| SessionId::new(id).unwrap());
        let _held = recent.sessions.pin(&ids[0], load(1)).unwrap();
        drop(recent.sessions.pin(&ids[1], load(1)).unwrap());
        recent.restore_file(file(1), 4096, 0);
        recent.restore(vec![record("recent", 1)]).unwrap();
        recent.begin_again(0, EventId::from_u128(0));
        assert_eq!(recent.bytes(), 0);
        for id in &ids {
            assert_eq!(recent.sessions.find(id, load(7)).unwrap().1.last, 7, "{id}");
        }
    }
}
