//! The request for a page of a session, and the page itself.

use std::ops::RangeInclusive;

use serde::Serialize;

use crate::model::{
    Cursor, Error, EventId, EventType, FIRST_SEQ, Limit, Options, Result, Seq, check_limit,
};

/// The limit of a request that sets none.
const PAGE_EVENTS_DEFAULT: usize = 100;

/// Which events or messages of a session to read. Default: the first 100.
///
/// ```
/// use sessionlog::PageRequest;
///
/// let first = PageRequest::new().limit(20);
/// let next = PageRequest::new().after(20).limit(20);
/// let newest = PageRequest::new().newest_first().limit(20);
/// let some = PageRequest::new().after(100).before(200).types(["user.message"]);
/// let unanswered = PageRequest::new().open_turns();
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a request does nothing until it is listed"]
pub struct PageRequest {
    pub(super) after: Option<Cursor>,
    pub(super) before: Option<Cursor>,
    pub(super) limit: Option<usize>,
    pub(super) order: Order,
    pub(super) types: Option<Vec<EventType>>,
    open_turns: bool,
    pub(super) bytes_max: Option<usize>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Order {
    #[default]
    OldestFirst,
    NewestFirst,
}

impl PageRequest {
    /// The first 100 events of a session.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads only events after a position. The event there is not included.
    pub fn after(mut self, cursor: impl Into<Cursor>) -> Self {
        self.after = Some(cursor.into());
        self
    }

    /// Reads only events before a position. The event there is not included.
    pub fn before(mut self, cursor: impl Into<Cursor>) -> Self {
        self.before = Some(cursor.into());
        self
    }

    /// The largest number of items on the page. Default: 100. Maximum:
    /// [`page_events_max`](Options::page_events_max).
    ///
    /// A page of large events may hold fewer items and set [`has_more`](Page::has_more): see
    /// [`scan_bytes_max`](Options::scan_bytes_max).
    pub fn limit(mut self, items: usize) -> Self {
        self.limit = Some(items);
        self
    }

    /// Reads backwards from the end of the range.
    pub fn newest_first(mut self) -> Self {
        self.order = Order::NewestFirst;
        self
    }

    /// Reads only events of these types. A page of messages ignores this filter.
    ///
    /// A filter changes neither seqs nor cursors.
    pub fn types<T: AsRef<str>>(mut self, types: impl IntoIterator<Item = T>) -> Self {
        let types = types.into_iter().map(EventType::unchecked);
        self.types = Some(types.collect());
        self
    }

    /// Reads only messages whose status is not [final](crate::MessageStatus::is_final): turns that
    /// still wait for an answer. A page of events ignores this filter.
    ///
    /// A page looks at up to 16 turns for each message of its limit, at most
    /// [`page_events_max`](Options::page_events_max), in up to
    /// [`scan_bytes_max`](Options::scan_bytes_max) of the session. Then it ends, even if it found
    /// fewer messages than its limit, and sets [`has_more`](Page::has_more). As for every message,
    /// the events after an open turn are read up to the session's end.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Batch, NewEvent, PageRequest, SessionId};
    ///
    /// let session: SessionId = "s".parse()?;
    /// let both = Batch::new().user_message("first").user_message("second");
    /// let first = log.append(&session, both)?.events[0].id;
    /// let end = NewEvent::new("message.status_changed", r#"{"status":"cancelled"}"#);
    /// log.append(&session, end.in_turn(first.into()))?;
    ///
    /// let open = log.messages(&session, PageRequest::new().open_turns())?;
    /// assert_eq!(open.items.len(), 1);
    /// assert_eq!(open.items[0].content[0].as_text(), Some("second"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn open_turns(mut self) -> Self {
        self.open_turns = true;
        self
    }

    /// Ends the page after the event that reaches `bytes`, if that is less than
    /// [`scan_bytes_max`](Options::scan_bytes_max).
    #[cfg(feature = "http")]
    pub(crate) fn bytes_max(mut self, bytes: usize) -> Self {
        self.bytes_max = Some(bytes.max(1));
        self
    }

    /// The most bytes that the page reads or keeps.
    pub(crate) fn checked_bytes(&self, options: &Options) -> usize {
        options
            .scan_bytes_max
            .min(self.bytes_max.unwrap_or(usize::MAX))
    }

    /// The seqs of the page, if they can be told without the session's state: an untrimmed session
    /// is read from a seq on, and without a filter.
    pub(super) fn ahead(&self, limit: usize) -> Option<RangeInclusive<Seq>> {
        let first = match (self.order, self.after) {
            (Order::OldestFirst, None) => FIRST_SEQ,
            (Order::OldestFirst, Some(Cursor::Seq(after))) => after.saturating_add(1),
            _of_an_unknown_place => return None,
        };
        let is_all = self.types.is_none() && self.before.is_none();
        is_all.then(|| first..=first.saturating_add(limit as Seq - 1))
    }

    pub(crate) fn is_newest_first(&self) -> bool {
        self.order == Order::NewestFirst
    }

    pub(crate) fn wants_open_turns(&self) -> bool {
        self.open_turns
    }

    pub(crate) fn checked_limit(&self, options: &Options) -> Result<usize> {
        checked_limit(self.limit, options.limits.page_events_max)
    }
}

/// Returns the limit of a page or a list for a request of `limit` items.
pub(super) fn checked_limit(limit: Option<usize>, max: usize) -> Result<usize> {
    let limit = limit.unwrap_or(PAGE_EVENTS_DEFAULT.min(max));
    if limit == 0 {
        return Err(Error::invalid("page limit", "it is 0"));
    }
    check_limit(Limit::PageEvents, limit, max)?;
    Ok(limit)
}

/// A page of a session: events or messages.
///
/// It covers the seqs `first..=last`. With a filter, and for messages, a page covers more seqs than
/// it has items. A page that covers no seq has `first == last + 1`.
///
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let log = sessionlog::SessionLog::open(dir.path())?;
/// use sessionlog::{Batch, NewEvent, PageRequest, SessionId};
///
/// let session: SessionId = "s".parse()?;
/// let batch: Batch = (0..5).map(|n| NewEvent::new("note", n.to_string())).collect();
/// log.append(&session, batch)?;
///
/// let mut seqs = Vec::new();
/// let mut next = Some(PageRequest::new().limit(2));
/// while let Some(request) = next {
///     let page = log.list(&session, request)?;
///     seqs.extend(page.items.iter().map(|event| event.seq));
///     next = page.next_page();
/// }
/// assert_eq!(seqs, [1, 2, 3, 4, 5]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Page<T> {
    /// The events or messages, in the requested order.
    pub items: Vec<T>,
    /// Whether the requested range may hold more items.
    pub has_more: bool,
    /// The lowest seq that the page covers.
    pub first: Seq,
    /// The highest seq that the page covers.
    pub last: Seq,
    /// The last seq of the session when the page was read.
    pub tail: Seq,
    /// The ID of the event at `tail`. `None` when the session has had no event.
    pub tail_id: Option<EventId>,
    #[serde(skip)]
    pub(crate) request: PageRequest,
}

impl<T> Page<T> {
    /// The request for the page after this one, in the same order and with the same limit and
    /// filter. `None` when there is no more.
    #[must_use]
    pub fn next_page(&self) -> Option<PageRequest> {
        let request = self.has_more.then(|| self.request.clone())?;
        Some(match request.order {
            Order::OldestFirst => request.after(self.last),
            Order::NewestFirst => request.before(self.first),
        })
    }

    /// Returns the same page with other items.
    pub(crate) fn with_items<U>(self, items: Vec<U>) -> Page<U> {
        Page {
            items,
            has_more: self.has_more,
            first: self.first,
            last: self.last,
            tail: self.tail,
            tail_id: self.tail_id,
            request: self.request,
        }
    }

    pub(crate) fn map<U>(mut self, each: impl FnMut(T) -> U) -> Page<U> {
        let items = std::mem::take(&mut self.items);
        self.with_items(items.into_iter().map(each).collect())
    }
}
