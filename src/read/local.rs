//! The records of the embedded engine: those in memory first, and those in segments second. A
//! record is in a segment before it leaves memory, so a reader misses none.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::SessionState;
use crate::index::{Locator, SealedReader};
use crate::model::{EventId, FIRST_SEQ, Result, Seq, SessionId};
use crate::read::listing::PageBuilder;
use crate::read::records::{Follower, Piece, RecordSlice, RecordVisitor, Records, fault_in_memory};
use crate::recent::{Recent, SessionPin};
use crate::sync::Waiter;

/// Records looked for in memory at once.
const RECORDS_AT_ONCE: usize = 256;

/// The records in memory and in the segments of a folder.
pub(crate) struct Local {
    pub(super) recent: Arc<Recent>,
    pub(super) locator: Arc<Locator>,
}

impl Local {
    pub(crate) fn new(recent: Arc<Recent>, locator: Arc<Locator>) -> Self {
        Self { recent, locator }
    }
}

impl Records for Local {
    fn last_id(&self) -> Result<EventId> {
        Ok(self.recent.last_id())
    }

    fn removals(&self) -> u64 {
        self.recent.removals()
    }

    fn forks_published(&self) -> u64 {
        self.recent.forks_published()
    }

    fn state(
        &self,
        session: &SessionId,
        ahead: Option<RangeInclusive<Seq>>,
    ) -> Result<SessionState> {
        // If the state has to be read, what is ahead is read by the disk meanwhile.
        let found = self.recent.sessions.find(session, || {
            if let Some(seqs) = ahead {
                self.locator.prefetch(session, &seqs);
            }
            self.locator.state(session)
        })?;
        Ok(found.1)
    }

    fn piece<'a>(&'a self, session: &SessionId, generation: u32) -> Box<dyn Piece + 'a> {
        // Without an entry all that the session's state counts is sealed.
        let entry = self.recent.sessions.look(session);
        Box::new(LocalPiece {
            entry,
            sealed: self.locator.reader(session, generation),
            generation,
            sealed_below: FIRST_SEQ,
        })
    }

    fn record_of(&self, id: EventId) -> Result<Option<RecordSlice>> {
        if let Some(record) = self.recent.record_of(id) {
            return Ok(Some(RecordSlice::Recent(vec![record])));
        }
        let segments = self.locator.segments();
        let Some(segment) = segments.ending_at_or_after(id).first() else {
            return Ok(None);
        };
        let Some(record) = segment.record_of(id)? else {
            return Ok(None);
        };
        Ok(Some(RecordSlice::Sealed(Arc::clone(segment), vec![record])))
    }

    fn each_from(&self, from: EventId, visit: &mut RecordVisitor<'_>) -> Result<Option<EventId>> {
        let last_id = self.recent.last_id();
        // Memory first: a record that leaves memory after this is in the segments listed next.
        let recent = self.recent.records_from(from, RECORDS_AT_ONCE);
        let segments = self.locator.segments();
        for segment in segments.ending_at_or_after(from) {
            for record in segment.records_from(from)? {
                let fault = |fault| segment.fault_in_records(fault);
                if visit(&record?, &fault)?.is_break() {
                    return Ok(None);
                }
            }
        }
        let is_all = recent.len() < RECORDS_AT_ONCE;
        for record in recent {
            if visit(&record, &fault_in_memory)?.is_break() {
                return Ok(None);
            }
        }
        Ok(is_all.then_some(last_id))
    }

    fn forks(&self, session: &SessionId, generation: u32) -> Result<Vec<SessionId>> {
        // Memory first: a fork that leaves memory after this is in the segments listed next.
        let mut names = self.recent.forks_of(session, generation);
        names.append(&mut self.locator.segments().forks(session, generation)?);
        Ok(names)
    }

    /// The store no longer knows the IDs of erased records, so near those the answer is `true` for
    /// an ID it never gave.
    fn was_committed(&self, id: EventId) -> Result<bool> {
        if let Some(record) = self.recent.records_from(id, 1).first()
            && (record.base..=record.last_id()).contains(&id)
        {
            return Ok(true);
        }
        let segments = self.locator.segments();
        let Some(segment) = segments.ending_at_or_after(id).first() else {
            return Ok(false);
        };
        if segment.info.first_id() > id {
            return Ok(false);
        }
        let found = segment.records_from(id)?.next().transpose()?;
        let is_stored = found.is_some_and(|record| (record.base..=record.last_id()).contains(&id));
        Ok(is_stored || segment.info.dropped > 0)
    }

    fn walk(&self, page: &mut PageBuilder) -> Result<()> {
        self.walk_sessions(page)
    }

    fn follow(&self, session: &SessionId) -> Result<Box<dyn Follower>> {
        let entry = self
            .recent
            .sessions
            .pin(session, || self.locator.state(session))?;
        let locator = Arc::clone(&self.locator);
        Ok(Box::new(LocalFollower { entry, locator }))
    }

    fn wait_for_any(&self, seen: EventId, waiter: &Arc<Waiter>) -> bool {
        self.recent.wait_for_any(seen, waiter)
    }

    fn forget_any(&self, waiter: &Arc<Waiter>) {
        self.recent.forget_feed(waiter);
    }
}

struct LocalPiece<'a> {
    /// `None` when the piece is sealed as a whole.
    entry: Option<SessionPin>,
    sealed: SealedReader<'a>,
    generation: u32,
    /// Records before this seq have left memory. They never come back.
    sealed_below: Seq,
}

impl Piece for LocalPiece<'_> {
    /// They are all in memory, or all in one run of a segment.
    fn slice(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> Result<RecordSlice> {
        if let Some(entry) = self.entry.as_ref().filter(|_| seq >= self.sealed_below) {
            let state = entry.lock();
            let oldest = state.oldest(self.generation).unwrap_or(Seq::MAX);
            if oldest <= seq {
                return Ok(RecordSlice::Recent(state.overlapping(
                    self.generation,
                    *range.start(),
                    *range.end(),
                )));
            }
            if self.sealed_below != oldest {
                self.sealed_below = oldest;
                // They are in a segment by now, which the reader may not have seen.
                self.sealed.look_again();
            }
        }
        let (segment, records) = self.sealed.records(seq, range)?;
        Ok(RecordSlice::Sealed(segment, records))
    }
}

struct LocalFollower {
    entry: SessionPin,
    locator: Arc<Locator>,
}

impl Follower for LocalFollower {
    fn session(&self) -> &SessionId {
        self.entry.id()
    }

    fn state(&mut self) -> Result<SessionState> {
        // A refresh may have outdated it.
        self.entry.load(|| self.locator.state(self.entry.id()))?;
        Ok(self.entry.lock().durable.clone())
    }

    fn wait(&self, waiter: &Arc<Waiter>, is_at_the_end: &dyn Fn(&SessionState) -> bool) -> bool {
        let mut state = self.entry.lock();
        let waits = self.entry.is_loaded() && is_at_the_end(&state.durable);
        if waits {
            state.waiters.add(waiter);
        }
        waits
    }

    fn forget(&self, waiter: &Arc<Waiter>) {
        self.entry.lock().waiters.remove(waiter);
    }
}
