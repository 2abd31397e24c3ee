//! What to read of a session, and what was read: a page request, and a page.

use crate::model::{Error, Event, EventId, EventType, Limit, Options, Result, Seq, check_limit};

/// The limit of a page that names none.
pub(crate) const PAGE_EVENTS_DEFAULT: usize = 100;

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
    pub(super) after: Option<Cursor>,
    pub(super) before: Option<Cursor>,
    pub(super) limit: Option<usize>,
    pub(super) order: Order,
    pub(super) types: Option<Vec<EventType>>,
    pub(super) bytes_max: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
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

    pub(super) fn checked_limit(&self, options: &Options) -> Result<usize> {
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
