//! Reads a session page by page, and one event by its ID.
//!
//! A reader looks at memory first and at the segments second. A record is in a segment before it
//! leaves memory, so the reader misses none.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::EventFrame;
use crate::index::Locator;
use crate::model::{
    Counters, CursorProblem, Error, Event, EventId, FIRST_SEQ, Head, Options, Result, Seq,
    SessionId,
};
use crate::read::page::{Cursor, Order, Page, PageRequest};
use crate::read::scan::{ReadLimit, RecordSlice, Scan, SessionReader, Visitor};
use crate::recent::{Recent, SessionPin};
use crate::sync::{AtomicBool, Ordering};

/// The state that reading needs, and whether the log may still be used.
pub(crate) struct Store {
    pub recent: Arc<Recent>,
    pub locator: Arc<Locator>,
    pub options: Options,
    pub counters: Arc<Counters>,
    closed: AtomicBool,
    /// The process that opened the log. After a `fork` the child has none of the log's threads, and
    /// locks that they held stay locked.
    opened_by: u32,
}

impl Store {
    pub(crate) fn new(
        recent: Arc<Recent>,
        locator: Arc<Locator>,
        counters: Arc<Counters>,
        options: Options,
    ) -> Self {
        Self {
            recent,
            locator,
            options,
            counters,
            closed: AtomicBool::new(false),
            opened_by: std::process::id(),
        }
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

    pub(crate) fn known_head(&self, session: &SessionId) -> Result<Head> {
        Ok(self.find(session)?.1)
    }

    /// Returns the session's head and its entry. Without an entry the whole session is sealed.
    fn find(&self, session: &SessionId) -> Result<(Option<SessionPin>, Head)> {
        let (entry, head) = self
            .recent
            .sessions
            .find(session, || self.locator.head(session))?;
        Ok((entry, head.ok_or_else(|| unknown(session))?))
    }

    pub(crate) fn list(&self, session: &SessionId, request: PageRequest) -> Result<Page<Event>> {
        let limit = request.checked_limit(&self.options)?;
        let (entry, head) = self.find(session)?;
        let range = self.range(session, &head, &request)?;
        let mut reader = self.reader(session, entry, &head);
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
            tail: head.last,
            tail_id: head.last_id,
            request,
        })
    }

    /// Returns the events of `range` until `read_limit` is reached. Returns at least one if there
    /// is one.
    pub(crate) fn events_from(
        &self,
        session: &SessionId,
        head: &Head,
        range: RangeInclusive<Seq>,
        read_limit: ReadLimit,
    ) -> Result<Vec<Event>> {
        let mut scan = Scan::new(None, &range, read_limit);
        match self.visit(session, head, range, &mut scan) {
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
        head: &Head,
        range: RangeInclusive<Seq>,
        visitor: &mut impl Visitor,
    ) -> Result<Seq> {
        self.reader(session, self.recent.sessions.look(session), head)
            .scan_up(range, visitor)
    }

    /// Returns the event with this ID.
    pub(crate) fn event(&self, id: EventId) -> Result<Option<Event>> {
        self.look_at(id, |frame| frame.event())
    }

    /// Returns the result of `look` on the event with this ID.
    pub(crate) fn look_at<T>(
        &self,
        id: EventId,
        look: impl FnOnce(EventFrame<'_>) -> T,
    ) -> Result<Option<T>> {
        let Some(slice) = self.slice_of(id)? else {
            return Ok(None);
        };
        let found = slice
            .records()
            .find_map(|record| Some((record, record.seq_of(id)?)));
        let (record, seq) = found.expect("the record was found by this ID");
        let frame = record
            .events_in(&(seq..=seq))
            .next()
            .transpose()
            .map_err(|fault| slice.fault(fault))?;
        Ok(frame.map(look))
    }

    /// Resolves a cursor to a seq.
    pub(crate) fn seq_of(&self, session: &SessionId, cursor: Cursor) -> Result<Seq> {
        let id = match cursor {
            Cursor::Seq(seq) => return Ok(seq),
            Cursor::Event(id) => id,
        };
        let problem = match self.event(id)? {
            Some(event) if event.session_id == *session => return Ok(event.seq),
            Some(_) => CursorProblem::OtherSession(id),
            None => CursorProblem::Unknown(id),
        };
        Err(Error::Cursor {
            session: session.clone(),
            problem,
        })
    }

    /// Refuses a position that the session has not reached.
    pub(crate) fn check_cursor(
        session: &SessionId,
        seq: Seq,
        reached: Seq,
        tail: Seq,
    ) -> Result<()> {
        if seq <= reached {
            return Ok(());
        }
        let problem = CursorProblem::BeyondTail { seq, tail };
        Err(Error::Cursor {
            session: session.clone(),
            problem,
        })
    }

    /// Returns the seqs between the page's cursors. Without any, `from` is `to` + 1.
    fn range(
        &self,
        session: &SessionId,
        head: &Head,
        page: &PageRequest,
    ) -> Result<RangeInclusive<Seq>> {
        let (mut from, mut to) = (FIRST_SEQ, head.last);
        if let Some(after) = page.after {
            let after = self.seq_of(session, after)?;
            Self::check_cursor(session, after, head.last, head.last)?;
            from = from.max(after + 1);
        }
        if let Some(before) = page.before {
            let before = self.seq_of(session, before)?;
            Self::check_cursor(session, before, head.last + 1, head.last)?;
            to = before.saturating_sub(1);
        }
        Ok(match page.order {
            Order::OldestFirst => from..=to.max(from - 1),
            Order::NewestFirst => from.min(to + 1)..=to,
        })
    }

    /// Returns the record that holds the event with this ID.
    fn slice_of(&self, id: EventId) -> Result<Option<RecordSlice>> {
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

    /// Makes a reader of the session's durable records up to `head`. Without an entry all of them
    /// must be sealed.
    fn reader<'a>(
        &'a self,
        session: &'a SessionId,
        entry: Option<SessionPin>,
        head: &Head,
    ) -> SessionReader<'a> {
        SessionReader {
            entry,
            sealed: self.locator.reader(session, head.generation),
            sealed_below: FIRST_SEQ,
        }
    }
}

fn unknown(session: &SessionId) -> Error {
    Error::UnknownSession {
        session: session.clone(),
    }
}
