//! Reads a session page by page, and one event by its ID.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::{EventFrame, Record, SessionState};
use crate::model::{Counters, Error, Event, EventId, Options, Result, Seq, SessionId, now_ms};
use crate::read::page::{Order, Page, PageRequest};
use crate::read::records::Records;
use crate::read::scan::{PieceReader, ReadLimit, Scan, SessionReader, Visitor};
use crate::sync::{AtomicBool, Ordering, RwLock};

/// The state that reading needs, and whether the log may still be used.
pub(crate) struct Store {
    pub records: Arc<dyn Records>,
    pub options: Options,
    pub counters: Arc<Counters>,
    closed: AtomicBool,
    /// Held by each read, and by a refresh while it changes what reads see. `None` for a log that
    /// is written here: its parts change one by one, and no read minds.
    rest: Option<RwLock<()>>,
    /// The process that opened the log. After a `fork` the child has none of the log's threads, and
    /// locks that they held stay locked.
    opened_by: u32,
}

/// An event that a session keeps.
struct KeptEvent<'a> {
    /// As it is stored.
    frame: EventFrame<'a>,
    record: &'a Record,
    /// The state of the session that it was appended to.
    owner: &'a SessionState,
    /// The session that keeps it.
    keeper: SessionId,
}

impl Store {
    pub(crate) fn new(
        records: Arc<dyn Records>,
        counters: Arc<Counters>,
        options: Options,
    ) -> Self {
        let rest = options.read_only.then(|| RwLock::new(()));
        Self {
            records,
            options,
            counters,
            closed: AtomicBool::new(false),
            rest,
            opened_by: std::process::id(),
        }
    }

    /// Reads while no refresh changes anything. `read` must not call this again: a refresh that
    /// waits in between would wait for ever.
    pub(crate) fn at_rest<T>(&self, read: impl FnOnce() -> T) -> T {
        let _reading = self.rest.as_ref().map(|rest| rest.read());
        let (mut read, mut result) = (Some(read), None);
        self.records
            .at_rest(&mut || result = read.take().map(|read| read()));
        result.expect("an engine runs what it is given, once")
    }

    /// Changes what reads see, once those under way have ended.
    pub(crate) fn change<T>(&self, change: impl FnOnce() -> T) -> T {
        let _alone = self.rest.as_ref().map(|rest| rest.write());
        change()
    }

    /// Returns the time by the clock that stamps events, in milliseconds since 1970.
    pub(crate) fn now_ms(&self) -> Result<u64> {
        let of_engine = self.records.now_ms()?;
        Ok(of_engine.unwrap_or_else(|| now_ms(&self.options.clock)))
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Marks the log as closed. Returns whether it was open.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// Refuses to work in a fork of the process that opened the log.
    pub(crate) fn check_process(&self) -> Result<()> {
        if std::process::id() == self.opened_by {
            Ok(())
        } else {
            Err(Error::Forked {
                opened_by: self.opened_by,
            })
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        self.check_process()?;
        if self.is_closed() {
            Err(Error::Closed)
        } else {
            Ok(())
        }
    }

    /// Returns the durable state of a session that exists.
    pub(crate) fn known_state(&self, session: &SessionId) -> Result<SessionState> {
        self.known_state_ahead(session, None)
    }

    /// Returns the durable state of a session. It may be absent.
    pub(crate) fn state(&self, session: &SessionId) -> Result<SessionState> {
        self.records.state(session, None)
    }

    /// Returns the state of a session that exists, and begins to read what is ahead.
    fn known_state_ahead(
        &self,
        session: &SessionId,
        ahead: Option<RangeInclusive<Seq>>,
    ) -> Result<SessionState> {
        let state = self.records.state(session, ahead)?;
        if state.is_there() {
            Ok(state)
        } else {
            Err(unknown(session))
        }
    }

    pub(crate) fn list(&self, session: &SessionId, request: PageRequest) -> Result<Page<Event>> {
        let limit = request.checked_limit(&self.options)?;
        let state = self.known_state_ahead(session, request.ahead(limit))?;
        let range = self.range(session, &state, &request)?;
        let mut reader = self.reader(session, &state)?;
        let order = request.order;
        let read_limit = ReadLimit {
            events: limit,
            bytes: request.checked_bytes(&self.options),
        };
        let mut scan = Scan::new(request.types.clone(), &range, read_limit);
        let (from, to) = (*range.start(), *range.end());
        let (first, last) = match order {
            Order::OldestFirst => (from, reader.scan_up(range, &mut scan)?),
            Order::NewestFirst => (reader.scan_down(range, &mut scan)?, to),
        };
        let has_more = if order == Order::OldestFirst {
            last < to
        } else {
            first > from
        };
        Ok(Page {
            items: scan.events,
            has_more,
            first,
            last,
            tail: state.last,
            tail_id: state.shown_last_id(),
            request,
        })
    }

    /// Returns the events of `range` until `read_limit` is reached. Returns at least one if there
    /// is one.
    pub(crate) fn events_from(
        &self,
        session: &SessionId,
        state: &SessionState,
        range: RangeInclusive<Seq>,
        read_limit: ReadLimit,
    ) -> Result<Vec<Event>> {
        let mut scan = Scan::new(None, &range, read_limit);
        match self.visit(session, state, range, &mut scan) {
            // The events before the damage are intact. A read that starts at the damage returns the
            // error.
            Err(error) if scan.events.is_empty() => Err(error),
            _ => Ok(scan.events),
        }
    }

    /// Visits the events of `range` in ascending order, until the visitor has enough.
    pub(crate) fn visit(
        &self,
        session: &SessionId,
        state: &SessionState,
        range: RangeInclusive<Seq>,
        visitor: &mut impl Visitor,
    ) -> Result<Seq> {
        self.reader(session, state)?.scan_up(range, visitor)
    }

    /// Returns the event with this ID.
    pub(crate) fn event(&self, id: EventId) -> Result<Option<Event>> {
        self.look_at(id, |frame| frame.event())
    }

    /// Returns the result of `look` on the event with this ID, as one of the session that it was
    /// appended to. If that session does not keep it, it is one of a fork that does.
    pub(crate) fn look_at<T>(
        &self,
        id: EventId,
        look: impl FnOnce(EventFrame<'_>) -> T,
    ) -> Result<Option<T>> {
        self.find_kept(id, |kept| {
            let frame = kept.frame.shown_in(&kept.keeper);
            if kept.owner.redacted().binary_search(&id).is_ok() {
                look(frame.redacted())
            } else {
                look(frame)
            }
        })
    }

    /// Returns the session that an event was appended to, and the bytes of its data there. They
    /// are 0 if that session does not keep the event and a fork does.
    pub(crate) fn owner_of(&self, id: EventId) -> Result<Option<(SessionId, u64)>> {
        self.find_kept(id, |kept| {
            let is_kept = Self::is_kept(kept.owner, kept.record, kept.frame.view.seq);
            let bytes = if is_kept {
                kept.frame.view.data.len()
            } else {
                0
            };
            (kept.record.session.detached(), bytes as u64)
        })
    }

    /// Returns the result of `then` on the event with this ID, if a session keeps it.
    fn find_kept<T>(
        &self,
        id: EventId,
        then: impl FnOnce(KeptEvent<'_>) -> T,
    ) -> Result<Option<T>> {
        let Some(slice) = self.records.record_of(id)? else {
            return Ok(None);
        };
        let found = slice
            .records()
            .find_map(|record| Some((record, record.seq_of(id)?)));
        let Some((record, seq)) = found else {
            return Ok(None);
        };
        let owner = self.state(&record.session)?;
        let Some(keeper) = self.keeper(&owner, record, seq)? else {
            return Ok(None);
        };
        let frame = record
            .events_in(&(seq..=seq))
            .next()
            .transpose()
            .map_err(|fault| slice.fault(fault))?;
        Ok(frame.map(|frame| {
            then(KeptEvent {
                record,
                frame,
                owner: &owner,
                keeper,
            })
        }))
    }

    /// Whether the session of a record keeps the event at `seq`.
    pub(super) fn is_kept(owner: &SessionState, record: &Record, seq: Seq) -> bool {
        owner.is_there() && record.generation == owner.generation && seq >= owner.first
    }

    /// Returns the session that shows the event at `seq` of a record: the one that it was appended
    /// to, or a fork.
    pub(super) fn keeper(
        &self,
        owner: &SessionState,
        record: &Record,
        seq: Seq,
    ) -> Result<Option<SessionId>> {
        if Self::is_kept(owner, record, seq) {
            return Ok(Some(record.session.clone()));
        }
        for (fork, state) in self.forks(&record.session, record.generation)? {
            let shares = shared_with(&state, &record.session, record.generation);
            if shares.is_some_and(|shared| shared.contains(&seq)) {
                return Ok(Some(fork));
            }
        }
        Ok(None)
    }

    /// Returns the sessions that share events with a generation of this one, with their states.
    pub(crate) fn forks(
        &self,
        session: &SessionId,
        generation: u32,
    ) -> Result<Vec<(SessionId, SessionState)>> {
        let mut names = self.records.forks(session, generation)?;
        names.sort_unstable();
        names.dedup();
        let mut forks = Vec::new();
        for name in names {
            let state = self.state(&name)?;
            if shared_with(&state, session, generation).is_some() {
                forks.push((name, state));
            }
        }
        Ok(forks)
    }

    /// Makes a reader of the session's durable records up to `state`.
    pub(super) fn reader<'a>(
        &'a self,
        session: &'a SessionId,
        state: &SessionState,
    ) -> Result<SessionReader<'a>> {
        let mut redacted = state.redacted().to_vec();
        let mut pieces = Vec::with_capacity(1);
        for piece in state.pieces() {
            let ancestor = &piece.session;
            let ancestor_state = self.records.state(ancestor, None)?;
            redacted.extend_from_slice(ancestor_state.redacted());
            pieces.push(PieceReader {
                piece: self.records.piece(ancestor, piece.generation),
                through: piece.through,
            });
        }
        pieces.push(PieceReader {
            piece: self.records.piece(session, state.generation),
            through: Seq::MAX,
        });
        Ok(SessionReader::new(session, pieces, redacted))
    }
}

/// Returns the seqs that a session shares with a generation of an ancestor and still keeps.
pub(crate) fn shared_with(
    state: &SessionState,
    ancestor: &SessionId,
    generation: u32,
) -> Option<RangeInclusive<Seq>> {
    let lineage = state.lineage().filter(|_| state.is_there())?;
    let mut first = state.first;
    for piece in &lineage.pieces {
        if piece.session == *ancestor && piece.generation == generation {
            return (first <= piece.through).then_some(first..=piece.through);
        }
        first = first.max(piece.through + 1);
    }
    None
}

fn unknown(session: &SessionId) -> Error {
    Error::UnknownSession {
        session: session.clone(),
    }
}
