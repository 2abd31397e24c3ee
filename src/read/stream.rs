//! Streams of events: replay, then live events, without a gap and without a duplicate.
//!
//! A stream is a cursor. A writer does nothing for a stream but wake it. A slow reader therefore
//! falls back to storage and slows down no writer. A stream reads by seq, or by event ID for all
//! sessions. It reads only durable events.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::model::{Error, Event, EventId, FIRST_SEQ, Result, Seq};
use crate::read::page::Cursor;
use crate::read::scan::ReadLimit;
use crate::read::store::Store;
use crate::recent::SessionPin;
use crate::sync::{Deadline, Ordering, Waiter};

/// The default bounds of one read ahead.
const READ_LIMIT: ReadLimit = ReadLimit {
    events: 256,
    bytes: 1024 * 1024,
};

/// Where a stream begins.
///
/// Only [`Creation`](Self::Creation) waits for a session that does not exist yet. For any other
/// start an unknown session is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartAt {
    /// At the session's first event.
    Beginning,
    /// After a position. The event there is not included.
    After(Cursor),
    /// After the session's last event.
    Now,
    /// At the session's first event, once there is one.
    Creation,
}

impl StartAt {
    /// After a seq, or after the event with an ID.
    #[must_use]
    pub fn after(cursor: impl Into<Cursor>) -> Self {
        Self::After(cursor.into())
    }
}

/// An item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamItem {
    /// The next event.
    Event(Event),
    /// The reader has caught up: every durable event has been yielded.
    ///
    /// This item comes once each time the reader catches up.
    CaughtUp,
}

impl StreamItem {
    /// Returns the event. `None` for [`CaughtUp`](Self::CaughtUp).
    #[must_use]
    pub fn into_event(self) -> Option<Event> {
        match self {
            StreamItem::Event(event) => Some(event),
            StreamItem::CaughtUp => None,
        }
    }
}

/// Why [`EventStream::next_timeout`] returned no item.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RecvTimeout {
    /// No item came in time.
    #[error("no item came in time")]
    Elapsed,
    /// The stream has ended.
    #[error("the stream has ended")]
    Ended,
    /// The next event could not be read.
    #[error("cannot read on in the stream")]
    Failed(#[from] Error),
}

/// A stream of one session or of all sessions: first the stored events, then new ones.
///
/// * As an iterator it blocks while there is no new event.
/// * It ends when the log is closed. After reopening, a new stream from the last seen position
///   yields the rest.
/// * After an error the next call reads again from the same position. After [`Error::Forked`] the
///   stream has ended.
/// * Dropping it releases everything it holds.
#[must_use = "a stream does nothing until it is read"]
pub struct EventStream {
    store: Arc<Store>,
    source: Source,
    ahead: VecDeque<Event>,
    waiter: Arc<Waiter>,
    /// Whether `waiter` is in the source's list.
    registered: bool,
    bounded: bool,
    read_limit: ReadLimit,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Behind,
    CaughtUp,
    Ended,
}

enum Source {
    Session {
        entry: SessionPin,
        last: Seq,
        until: Seq,
    },
    All {
        last: EventId,
        until: EventId,
    },
}

/// The result of one step of the stream.
enum Next {
    Item(Result<StreamItem>),
    Wait,
    End,
}

impl EventStream {
    pub(crate) fn of_session(store: Arc<Store>, entry: SessionPin, from: StartAt) -> Result<Self> {
        let head = entry.lock().head;
        let tail = head.map_or(0, |head| head.last);
        if from != StartAt::Creation && head.is_none() {
            let session = entry.id().clone();
            return Err(Error::UnknownSession { session });
        }
        let last = match from {
            StartAt::Creation | StartAt::Beginning => FIRST_SEQ - 1,
            StartAt::Now => tail,
            StartAt::After(cursor) => store.seq_of(entry.id(), cursor)?,
        };
        Store::check_cursor(entry.id(), last, tail, tail)?;
        Ok(Self::new(
            store,
            Source::Session {
                entry,
                last,
                until: tail,
            },
        ))
    }

    pub(crate) fn of_all(store: Arc<Store>, after: Option<EventId>) -> Self {
        let until = store.recent.last_id();
        Self::new(
            store,
            Source::All {
                last: after.unwrap_or(EventId::from_u128(0)),
                until,
            },
        )
    }

    fn new(store: Arc<Store>, source: Source) -> Self {
        store.counters.streams.fetch_add(1, Ordering::Relaxed);
        let waiter = Arc::default();
        Self {
            store,
            source,
            ahead: VecDeque::new(),
            waiter,
            registered: false,
            bounded: false,
            read_limit: READ_LIMIT,
            phase: Phase::Behind,
        }
    }

    /// Reads ahead up to the event that reaches `bytes`.
    #[cfg(feature = "http")]
    pub(crate) fn read_ahead_bytes(mut self, bytes: usize) -> Self {
        self.read_limit.bytes = bytes;
        self
    }

    /// Ends the stream after the events that were durable when it was opened.
    pub fn until_tail(mut self) -> Self {
        self.bounded = true;
        self
    }

    /// Yields only the events, without [`CaughtUp`](StreamItem::CaughtUp).
    pub fn events(self) -> impl Iterator<Item = Result<Event>> + Send {
        self.filter_map(|item| item.map(StreamItem::into_event).transpose())
    }

    /// Waits at most `wait` for the next item.
    ///
    /// # Errors
    ///
    /// [`RecvTimeout::Elapsed`] when no item came in time, [`RecvTimeout::Ended`] when the stream
    /// has ended, [`RecvTimeout::Failed`] when reading failed. After
    /// [`Elapsed`](RecvTimeout::Elapsed) and [`Failed`](RecvTimeout::Failed) the next call
    /// continues from the same position.
    pub fn next_timeout(&mut self, wait: Duration) -> Result<StreamItem, RecvTimeout> {
        match self.next_until(Deadline::after(wait)) {
            Some(item) => Ok(item?),
            None if self.is_ended() => Err(RecvTimeout::Ended),
            None => Err(RecvTimeout::Elapsed),
        }
    }

    /// Whether the stream has ended: it yields no further item.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.phase == Phase::Ended
    }

    /// Converts the stream for async callers. It needs no thread of its own.
    ///
    /// Events that are not in memory are read from the disk within `poll_next`, at most one page in
    /// each call.
    pub fn into_async(self) -> AsyncEventStream {
        AsyncEventStream { stream: self }
    }

    fn next_until(&mut self, deadline: Deadline) -> Option<Result<StreamItem>> {
        loop {
            match self.advance() {
                Next::Item(item) => return Some(item),
                Next::End => return None,
                Next::Wait => {
                    if !self.waiter.wait(deadline) {
                        return None;
                    }
                    self.registered = false;
                }
            }
        }
    }

    fn advance(&mut self) -> Next {
        if let Some(event) = self.ahead.pop_front() {
            return Next::Item(Ok(StreamItem::Event(event)));
        }
        if self.phase == Phase::Ended || self.store.is_closed() {
            return self.end();
        }
        if let Err(forked) = self.store.check_process() {
            self.phase = Phase::Ended;
            return Next::Item(Err(forked));
        }
        match self.read_ahead() {
            Err(error) => return Next::Item(Err(error)),
            Ok(events) => self.ahead.extend(events),
        }
        if let Some(event) = self.ahead.pop_front() {
            self.phase = Phase::Behind;
            return Next::Item(Ok(StreamItem::Event(event)));
        }
        if self.phase == Phase::Behind {
            self.phase = Phase::CaughtUp;
            return Next::Item(Ok(StreamItem::CaughtUp));
        }
        if self.bounded {
            self.end()
        } else {
            self.register()
        }
    }

    fn end(&mut self) -> Next {
        self.phase = Phase::Ended;
        Next::End
    }

    /// Reads the events after the last event read. Returns an empty list at the end.
    fn read_ahead(&mut self) -> Result<Vec<Event>> {
        let store = &self.store;
        match &mut self.source {
            Source::Session { entry, last, until } => {
                let Some(head) = entry.lock().head else {
                    return Ok(Vec::new());
                };
                let to = if self.bounded {
                    (*until).max(*last)
                } else {
                    head.last
                };
                let events =
                    store.events_from(entry.id(), &head, *last + 1..=to, self.read_limit)?;
                *last = events.last().map_or(*last, |event| event.seq);
                Ok(events)
            }
            Source::All { last, until } => {
                let mut events = store.committed_after(*last, self.read_limit)?;
                if self.bounded {
                    events.retain(|event| event.id <= *until);
                }
                *last = events.last().map_or(*last, |event| event.id);
                Ok(events)
            }
        }
    }

    /// Registers to be woken by the next event. If an event came meanwhile, the waiter is woken at
    /// once. If the log was closed meanwhile, the stream ends.
    fn register(&mut self) -> Next {
        if !self.registered {
            self.registered = match &self.source {
                Source::Session { entry, last, .. } => {
                    let mut state = entry.lock();
                    let at_the_end = state.head.is_none_or(|head| head.last <= *last);
                    if at_the_end {
                        state.waiters.add(&self.waiter);
                    }
                    at_the_end
                }
                Source::All { last, .. } => self.store.recent.wait_for_any(*last, &self.waiter),
            };
            if !self.registered {
                self.waiter.wake();
            }
        }
        // Closing first marks the log as closed and then wakes registered waiters, so this check
        // must come after registering.
        if self.store.is_closed() {
            self.end()
        } else {
            Next::Wait
        }
    }
}

impl Iterator for EventStream {
    type Item = Result<StreamItem>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_until(Deadline::NEVER)
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        self.store.counters.streams.fetch_sub(1, Ordering::Relaxed);
        if self.registered {
            match &self.source {
                Source::Session { entry, .. } => entry.lock().waiters.remove(&self.waiter),
                Source::All { .. } => self.store.recent.forget_feed(&self.waiter),
            }
        }
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("EventStream");
        match &self.source {
            Source::Session { entry, last, .. } => {
                debug.field("session", entry.id()).field("last", last)
            }
            Source::All { last, .. } => debug.field("last", last),
        };
        debug.field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// An [`EventStream`] as a [`Stream`](futures_core::Stream), for any runtime.
#[derive(Debug)]
#[must_use = "a stream does nothing until it is polled"]
pub struct AsyncEventStream {
    stream: EventStream,
}

impl futures_core::Stream for AsyncEventStream {
    type Item = Result<StreamItem>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match self.stream.advance() {
                Next::Item(item) => return Poll::Ready(Some(item)),
                Next::End => return Poll::Ready(None),
                Next::Wait => {
                    ready!(self.stream.waiter.poll(context));
                    self.stream.registered = false;
                }
            }
        }
    }
}
