//! Reading a session page by page, and one event by its ID.
//!
//! A reader looks at what is in memory first and at the segments second; what leaves memory is in a
//! segment before.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use crate::codec::{EventFrame, Fault, Record};
use crate::index::{Locator, SealedReader};
use crate::model::{
    Counters, CursorProblem, Error, Event, EventId, EventType, FIRST_SEQ, Head, Limit, Options,
    Result, Seq, SessionId, check_limit,
};
use crate::recent::{Pin, Recent};
use crate::segment::Segment;
use crate::sync::{AtomicBool, Ordering};

/// The limit of a page that names none.
pub(crate) const PAGE_EVENTS_DEFAULT: usize = 100;

/// A filtered page reads at least so many events at once, since few of them may match.
const FILTERED_EVENTS_MIN: usize = 1_000;

/// A place in a session: a seq, or the event at it. It means the same whatever filter a page has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cursor {
    /// The event at this seq; 0 is the place before the first event.
    Seq(Seq),
    /// The event with this ID, which must be of the session.
    Event(EventId),
}

impl From<Seq> for Cursor {
    fn from(seq: Seq) -> Self {
        Cursor::Seq(seq)
    }
}

impl From<EventId> for Cursor {
    fn from(id: EventId) -> Self {
        Cursor::Event(id)
    }
}

/// Which events of a session to read.
///
/// ```
/// use sessionlog::Page;
///
/// let first = Page::new().limit(20);
/// let next = Page::after(20).limit(20);
/// let newest = Page::new().newest_first().limit(20);
/// let some = Page::after(100).and_before(200).types(["user.message"]);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a page does nothing until it is listed"]
pub struct Page {
    after: Option<Cursor>,
    before: Option<Cursor>,
    limit: Option<usize>,
    order: Order,
    types: Option<Vec<EventType>>,
    bytes_max: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

impl Page {
    /// The first 100 events of a session.
    pub fn new() -> Self {
        Self::default()
    }

    /// The events that come after a place, the event there not included.
    pub fn after(cursor: impl Into<Cursor>) -> Self {
        Self::new().and_after(cursor)
    }

    /// The events that come before a place, the event there not included.
    pub fn before(cursor: impl Into<Cursor>) -> Self {
        Self::new().and_before(cursor)
    }

    /// As [`after`](Page::after), on a page that is bounded already.
    pub fn and_after(mut self, cursor: impl Into<Cursor>) -> Self {
        self.after = Some(cursor.into());
        self
    }

    /// As [`before`](Page::before), on a page that is bounded already.
    pub fn and_before(mut self, cursor: impl Into<Cursor>) -> Self {
        self.before = Some(cursor.into());
        self
    }

    /// At most so many events: 100 unless said otherwise, and at most
    /// [`page_events_max`](Options::page_events_max). There may be fewer, with
    /// [`has_more`](EventPage::has_more), where they are large: see
    /// [`scan_bytes_max`](Options::scan_bytes_max).
    pub fn limit(mut self, events: usize) -> Self {
        self.limit = Some(events);
        self
    }

    /// From the end of the range backwards.
    pub fn newest_first(mut self) -> Self {
        self.order = Order::NewestFirst;
        self
    }

    /// Only events of these types. Cursors mean what they mean without.
    pub fn types<T: Into<EventType>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        self.types = Some(types.into_iter().map(Into::into).collect());
        self
    }

    /// Ends behind the event that reaches so many bytes, where that is less than
    /// [`scan_bytes_max`](Options::scan_bytes_max).
    #[cfg(feature = "http")]
    pub(crate) fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = Some(bytes.max(1));
        self
    }

    /// The most bytes that it reads or keeps.
    pub(crate) fn checked_bytes(&self, options: &Options) -> usize {
        options
            .scan_bytes_max
            .min(self.bytes_max.unwrap_or(usize::MAX))
    }

    pub(crate) fn is_newest_first(&self) -> bool {
        self.order == Order::NewestFirst
    }

    fn checked_limit(&self, options: &Options) -> Result<usize> {
        let max = options.limits.page_events_max;
        let limit = self.limit.unwrap_or(PAGE_EVENTS_DEFAULT.min(max));
        check_page_limit(limit, max)
    }
}

pub(crate) fn check_page_limit(limit: usize, max: usize) -> Result<usize> {
    if limit == 0 {
        return Err(Error::invalid("page limit", "it is 0"));
    }
    check_limit(Limit::PageEvents, limit, max)?;
    Ok(limit)
}

/// A page of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct EventPage {
    /// The events, in the page's order.
    pub events: Vec<Event>,
    /// Whether the range goes on behind this page.
    pub has_more: bool,
    /// The lowest seq that the page covers. Reading newest first, go on [`before`](Page::before)
    /// it.
    pub first: Seq,
    /// The highest seq that the page covers. Go on [`after`](Page::after) it. A page that covers
    /// nothing has `first == last + 1`. With a filter a page covers more events than it holds.
    pub last: Seq,
    /// The session's last seq.
    pub tail: Seq,
    /// The ID of the event there.
    pub tail_id: EventId,
}

/// All that reading needs, and whether the log may still be used.
pub(crate) struct Store {
    pub recent: Arc<Recent>,
    pub locator: Arc<Locator>,
    pub options: Options,
    pub counters: Arc<Counters>,
    closed: AtomicBool,
    /// The process that opened it. In a copy of it, made with `fork`, the log's threads are
    /// missing, and what they held stays locked.
    opened_by: u32,
}

/// How much to read at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Appetite {
    pub events: usize,
    /// Reading stops behind the event that reaches this.
    pub bytes: usize,
}

/// A part of a session's records, at least one.
enum Stretch {
    Recent(Vec<Arc<Record>>),
    Sealed(Arc<Segment>, Vec<Record>),
}

impl Stretch {
    fn records(&self) -> impl DoubleEndedIterator<Item = &Record> {
        let (recent, sealed): (&[Arc<Record>], &[Record]) = match self {
            Stretch::Recent(records) => (records, &[]),
            Stretch::Sealed(_, records) => (&[], records),
        };
        recent.iter().map(|record| &**record).chain(sealed)
    }

    fn fault(&self, fault: Fault) -> Error {
        match self {
            Stretch::Recent(_) => {
                unreachable!("records in memory were checked when they got there")
            }
            Stretch::Sealed(segment, _) => segment.fault_in_records(fault),
        }
    }
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

    /// Marks it as closed; says whether it was open.
    pub(crate) fn close(&self) -> bool {
        !self.closed.swap(true, Ordering::SeqCst)
    }

    /// Refuses to work in a copy of the process that opened the log.
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

    /// Where a session stands, and its entry: without one, all of it is sealed.
    fn find(&self, session: &SessionId) -> Result<(Option<Pin>, Head)> {
        let (entry, head) = self.recent.find(session, || self.locator.head(session))?;
        Ok((entry, head.ok_or_else(|| unknown(session))?))
    }

    pub(crate) fn list(&self, session: &SessionId, page: Page) -> Result<EventPage> {
        let limit = page.checked_limit(&self.options)?;
        let (entry, head) = self.find(session)?;
        let range = self.range(session, &head, &page)?;
        let mut reader = self.reader(session, entry, &head);
        let order = page.order;
        let appetite = Appetite {
            events: limit,
            bytes: page.checked_bytes(&self.options),
        };
        let mut scan = Scan::new(page.types, &range, appetite);
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
        Ok(EventPage {
            events: scan.events,
            has_more,
            first,
            last,
            tail: head.last,
            tail_id: head.last_id,
        })
    }

    /// The events with seqs in the range, as far as the appetite goes; at least one where there is
    /// one.
    pub(crate) fn events_from(
        &self,
        session: &SessionId,
        head: &Head,
        range: RangeInclusive<Seq>,
        appetite: Appetite,
    ) -> Result<Vec<Event>> {
        let mut scan = Scan::new(None, &range, appetite);
        match self.visit(session, head, range, &mut scan) {
            // What was read before the damage is as good as ever; whoever reads on from there is
            // told.
            Err(error) if scan.events.is_empty() => Err(error),
            _ => Ok(scan.events),
        }
    }

    /// Shows the events with seqs in the range, until it was enough.
    pub(crate) fn visit(
        &self,
        session: &SessionId,
        head: &Head,
        range: RangeInclusive<Seq>,
        visitor: &mut impl Visitor,
    ) -> Result<Seq> {
        self.reader(session, self.recent.look(session), head)
            .scan_up(range, visitor)
    }

    /// The event with this ID.
    pub(crate) fn event(&self, id: EventId) -> Result<Option<Event>> {
        self.look_at(id, |frame| frame.event())
    }

    /// What `look` sees in the event with this ID.
    pub(crate) fn look_at<T>(
        &self,
        id: EventId,
        look: impl FnOnce(EventFrame<'_>) -> T,
    ) -> Result<Option<T>> {
        let Some(stretch) = self.stretch_of(id)? else {
            return Ok(None);
        };
        let found = stretch
            .records()
            .find_map(|record| Some((record, record.seq_of(id)?)));
        let (record, seq) = found.expect("the record was found by this ID");
        let frame = record
            .events_in(&(seq..=seq))
            .next()
            .transpose()
            .map_err(|fault| stretch.fault(fault))?;
        Ok(frame.map(look))
    }

    /// The seq that a cursor stands for.
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

    /// Refuses a place that the session has not come to.
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

    /// The seqs between the page's cursors; `from` is `to` + 1 where there are none.
    fn range(&self, session: &SessionId, head: &Head, page: &Page) -> Result<RangeInclusive<Seq>> {
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

    /// The record that holds the event with this ID.
    fn stretch_of(&self, id: EventId) -> Result<Option<Stretch>> {
        if let Some(record) = self.recent.record_of(id) {
            return Ok(Some(Stretch::Recent(vec![record])));
        }
        let segments = self.locator.segments();
        let Some(segment) = segments.ending_at_or_after(id).first() else {
            return Ok(None);
        };
        let Some(record) = segment.record_of(id)? else {
            return Ok(None);
        };
        Ok(Some(Stretch::Sealed(Arc::clone(segment), vec![record])))
    }

    /// Reads what is durable of a session up to `head`. Where there is no entry, all of that must
    /// be sealed.
    fn reader<'a>(&'a self, session: &'a SessionId, entry: Option<Pin>, head: &Head) -> Reader<'a> {
        Reader {
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

/// Reads a session's records, from memory and from the segments, in either direction.
struct Reader<'a> {
    /// Where there is none, all is sealed.
    entry: Option<Pin>,
    sealed: SealedReader<'a>,
    /// What comes before was seen to have left memory, where it never comes back to.
    sealed_below: Seq,
}

impl Reader<'_> {
    /// Shows the events upwards; returns the last seq that was shown.
    fn scan_up(&mut self, range: RangeInclusive<Seq>, visitor: &mut impl Visitor) -> Result<Seq> {
        let (mut next, to) = range.into_inner();
        while next <= to {
            let wanted = next..=to.min(next.saturating_add(visitor.lookahead()));
            let stretch = self.stretch(next, &wanted)?;
            for record in stretch.records() {
                for frame in record.events_in(&wanted) {
                    let frame = frame.map_err(|fault| stretch.fault(fault))?;
                    next = frame.view.seq + 1;
                    if visitor.visit(&frame).is_break() {
                        return Ok(next - 1);
                    }
                }
            }
        }
        Ok(next - 1)
    }

    /// Shows the events downwards; returns the last seq that was shown.
    fn scan_down(&mut self, range: RangeInclusive<Seq>, visitor: &mut impl Visitor) -> Result<Seq> {
        let (from, mut to) = range.into_inner();
        let mut seen = to + 1;
        while to >= from && seen > from {
            let wanted = from.max(to.saturating_sub(visitor.lookahead()))..=to;
            let stretch = self.stretch(to, &wanted)?;
            let mut frames = Vec::new();
            for record in stretch.records().rev() {
                let events = record.events_in(&wanted);
                frames.reserve(events.count_max());
                for frame in events {
                    frames.push(frame.map_err(|fault| stretch.fault(fault))?);
                }
                for frame in frames.drain(..).rev() {
                    seen = frame.view.seq;
                    if visitor.visit(&frame).is_break() {
                        return Ok(seen);
                    }
                }
            }
            to = seen.saturating_sub(1);
        }
        Ok(seen)
    }

    /// The records around `seq`, which is not behind the head, that overlap the range and lie
    /// together, in memory or in one run of a segment.
    fn stretch(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> Result<Stretch> {
        if let Some(entry) = self.entry.as_ref().filter(|_| seq >= self.sealed_below) {
            let state = entry.lock();
            let oldest = state
                .records
                .front()
                .map_or(Seq::MAX, |record| record.first);
            if oldest <= seq {
                return Ok(Stretch::Recent(
                    state.overlapping(*range.start(), *range.end()),
                ));
            }
            self.sealed_below = oldest;
        }
        let (segment, records) = self.sealed.records(seq, range)?;
        Ok(Stretch::Sealed(segment, records))
    }
}

/// Is shown events one by one, until it has enough.
pub(crate) trait Visitor {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()>;

    /// How many events behind the next one are worth reading with it.
    fn lookahead(&self) -> Seq;
}

/// Takes the events of a page.
struct Scan {
    types: Option<Vec<EventType>>,
    limit: usize,
    bytes_left: usize,
    events: Vec<Event>,
}

impl Scan {
    fn new(types: Option<Vec<EventType>>, range: &RangeInclusive<Seq>, appetite: Appetite) -> Self {
        let Appetite {
            events: limit,
            bytes: bytes_left,
        } = appetite;
        let in_range = usize::try_from(range.end() + 1 - range.start()).unwrap_or(usize::MAX);
        // Of a type there may be few.
        let likely = if types.is_some() {
            0
        } else {
            limit.min(in_range)
        };
        Self {
            types,
            limit,
            bytes_left,
            events: Vec::with_capacity(likely),
        }
    }
}

impl Visitor for Scan {
    fn visit(&mut self, frame: &EventFrame<'_>) -> ControlFlow<()> {
        self.bytes_left = self.bytes_left.saturating_sub(frame.read_bytes());
        if self
            .types
            .as_ref()
            .is_none_or(|types| types.iter().any(|wanted| wanted == frame.view.event_type))
        {
            self.events.push(frame.event());
        }
        if self.events.len() == self.limit || self.bytes_left == 0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }

    fn lookahead(&self) -> Seq {
        let wanted = self.limit - self.events.len();
        let read = if self.types.is_some() {
            wanted.max(FILTERED_EVENTS_MIN)
        } else {
            wanted
        };
        read.saturating_sub(1) as Seq
    }
}
