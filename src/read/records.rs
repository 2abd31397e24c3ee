//! The seam under the read path: what an engine must answer so that pages, streams, folds, the feed
//! and the lists of sessions work over it.
//!
//! An engine keeps *records*, one a batch, and the *state* of each session, which is a fold over
//! its records. All that is made of these stands above, once: cursors, lineage, redactions,
//! filters, limits. What an engine must promise:
//!
//! * **Durable only.** A record or a state that it shows survives the loss that the engine is made
//!   for. So does everything that an answer rests on, such as the absence of a key.
//! * **In order.** If it shows a record, it shows every record with a lower ID that was ever
//!   committed and not erased. So a reader that goes on after the last ID that it saw misses
//!   nothing.
//! * **State and records agree.** Every record that a state counts can be read for as long as some
//!   session keeps an event of it. Within [`at_rest`](Records::at_rest) that holds even while what
//!   was removed is erased.
//! * **Removals are told.** [`removals`](Records::removals) has changed before the call that
//!   removed returns, so that nothing that was read ahead outlives it. Where another process may
//!   have removed something, it is told within a bound, or what was read ahead is outdated by
//!   [time](Records::knows_removals).
//! * **Waiters are woken.** A waiter that was registered is woken once there is more. It may be
//!   woken without a reason.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use crate::codec::{Fault, Record, SessionState};
use crate::model::{Error, EventId, Result, Seq, SessionId};
use crate::read::listing::PageBuilder;
use crate::segment::Segment;
use crate::sync::{Instant, Waiter};

/// Reads what an engine keeps.
pub(crate) trait Records: Send + Sync {
    /// The newest durable event or change, or 0. [`each_from`](Self::each_from) may come to it only
    /// after what is being committed meanwhile.
    fn last_id(&self) -> Result<EventId>;

    /// Rises with every batch that removes something.
    fn removals(&self) -> u64;

    /// Whether [`removals`](Self::removals) counts all that was removed, but for the last moment,
    /// after something was read at a time.
    fn knows_removals(&self, _read_at: Instant) -> bool {
        true
    }

    /// Returns the time by the clock that stamps events, in milliseconds since 1970. `None` for the
    /// clock of the options.
    fn now_ms(&self) -> Result<Option<u64>> {
        Ok(None)
    }

    /// Rises with every fork.
    fn forks_published(&self) -> u64;

    /// Returns the durable state of a session. It may be absent.
    ///
    /// The events in `ahead` are likely to be read next. An engine may begin with that meanwhile.
    fn state(
        &self,
        session: &SessionId,
        ahead: Option<RangeInclusive<Seq>>,
    ) -> Result<SessionState>;

    /// Returns a reader of what was appended to one generation of a session.
    fn piece<'a>(&'a self, session: &SessionId, generation: u32) -> Box<dyn Piece + 'a>;

    /// Returns the record that holds the event with this ID.
    fn record_of(&self, id: EventId) -> Result<Option<RecordSlice>>;

    /// Visits the durable records of all sessions that end at `from` or later, in commit order.
    ///
    /// Returns an ID up to which all was visited, or `None` if there may be more. It may lie after
    /// the last record: what had it was erased.
    fn each_from(&self, from: EventId, visit: &mut RecordVisitor<'_>) -> Result<Option<EventId>>;

    /// Returns the sessions that were forked from a generation of this one, or from its forks. Some
    /// of them may share no event with it any more.
    fn forks(&self, session: &SessionId, generation: u32) -> Result<Vec<SessionId>>;

    /// Whether this ID may have been given to an event or a change.
    fn was_committed(&self, id: EventId) -> Result<bool>;

    /// Visits the sessions of a query in its order, until the page is full.
    fn walk(&self, page: &mut PageBuilder) -> Result<()>;

    /// Returns what a stream of the session needs.
    fn follow(&self, session: &SessionId) -> Result<Box<dyn Follower>>;

    /// Counts a reader of all sessions, until [`unfollow_all`](Self::unfollow_all).
    fn follow_all(&self) {}

    fn unfollow_all(&self) {}

    /// Registers a waiter for what comes after `seen`. Returns `false`, and registers nothing, if
    /// there is more already.
    fn wait_for_any(&self, seen: EventId, waiter: &Arc<Waiter>) -> bool;

    fn forget_any(&self, waiter: &Arc<Waiter>);

    /// Runs `read`, which sees everything as of one moment if what was removed may be erased
    /// meanwhile.
    fn at_rest(&self, read: &mut dyn FnMut()) {
        read();
    }

    /// Whether a read may wait for a network. A task then reads [aside](Self::aside).
    fn reads_block(&self) -> bool {
        false
    }

    /// Runs a read on a thread that may block.
    fn aside(&self, read: Box<dyn FnOnce() + Send>) {
        read();
    }
}

/// Receives records in commit order. The second argument makes an error of a fault in the record.
pub(crate) type RecordVisitor<'v> =
    dyn FnMut(&Record, &dyn Fn(Fault) -> Error) -> Result<ControlFlow<()>> + 'v;

/// Reads what was appended to one generation of one session.
pub(crate) trait Piece {
    /// Returns the records around `seq` that overlap `range` and are stored together: the one that
    /// holds `seq` among them. `seq` lies in the range, and the session has reached it.
    fn slice(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> Result<RecordSlice>;
}

/// One session as its stream sees it.
pub(crate) trait Follower: Send + Sync {
    fn session(&self) -> &SessionId;

    /// Returns the durable state.
    fn state(&mut self) -> Result<SessionState>;

    /// Registers a waiter for the next record, if the state is still one at which the stream waits.
    /// Returns whether it did.
    fn wait(&self, waiter: &Arc<Waiter>, is_at_the_end: &dyn Fn(&SessionState) -> bool) -> bool;

    fn forget(&self, waiter: &Arc<Waiter>);
}

/// A part of a session's records: at least one record.
pub(crate) enum RecordSlice {
    /// They were checked when they got into memory.
    Recent(Vec<Arc<Record>>),
    Sealed(Arc<Segment>, Vec<Record>),
}

impl RecordSlice {
    pub(crate) fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        let (recent, sealed): (&[Arc<Record>], &[Record]) = match self {
            RecordSlice::Recent(records) => (records, &[]),
            RecordSlice::Sealed(_, records) => (&[], records),
        };
        recent.iter().map(|record| &**record).chain(sealed)
    }

    pub(crate) fn fault(&self, fault: Fault) -> Error {
        match self {
            RecordSlice::Recent(_) => fault_in_memory(fault),
            RecordSlice::Sealed(segment, _) => segment.fault_in_records(fault),
        }
    }
}

/// What becomes of a fault in a record that was checked before it got into memory.
pub(crate) fn fault_in_memory(_fault: Fault) -> Error {
    unreachable!("records in memory were checked when they got there")
}
