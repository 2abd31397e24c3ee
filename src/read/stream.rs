//! Streams of events: replay, then live events, without a gap and without a duplicate.
//!
//! A stream is a cursor. A writer does nothing for a stream but wake it. A slow reader therefore
//! falls back to storage and slows down no writer. A stream reads by seq, or by event ID for all
//! sessions. It reads only durable events.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use crate::codec::{SessionState, Standing};
use crate::model::{Cursor, Error, Event, EventId, FIRST_SEQ, Result, Seq};
use crate::read::item::StreamItem;
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
    ahead: VecDeque<StreamItem>,
    /// The removals before `ahead` was read.
    removals: u64,
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
        /// The generation that is streamed; 0 while the session does not exist.
        generation: u32,
        last: Seq,
        until: Seq,
    },
    All {
        last: EventId,
        until: EventId,
    },
}

/// What comes next in a stream.
enum Ahead {
    Items(Vec<StreamItem>),
    /// The last item of the stream.
    Over(StreamItem),
    /// Nothing of what was read is shown, because it was removed. There is more.
    Passed,
    /// Nothing yet.
    Nothing,
}

impl Ahead {
    fn of(items: impl IntoIterator<Item = StreamItem>) -> Self {
        let items: Vec<_> = items.into_iter().collect();
        if items.is_empty() {
            Ahead::Nothing
        } else {
            Ahead::Items(items)
        }
    }
}

/// Returns the events of a session in a range. A part of it that was trimmed since is an error.
fn session_items(
    store: &Store,
    entry: &SessionPin,
    state: &SessionState,
    range: RangeInclusive<Seq>,
    limit: ReadLimit,
) -> Result<Vec<Event>> {
    if range.is_empty() {
        return Ok(Vec::new());
    }
    Store::check_cursor(entry.id(), *range.start() - 1, state.last, state)?;
    store.events_from(entry.id(), state, range, limit)
}

/// Whether a stream has to wait at `last` of a generation.
fn is_at_the_end(state: &SessionState, generation: u32, last: Seq) -> bool {
    if generation == 0 {
        return !state.is_there();
    }
    state.standing == Standing::Open && state.generation == generation && state.last <= last
}

fn id_of(item: &StreamItem) -> Option<EventId> {
    match item {
        StreamItem::Event(event) => Some(event.id),
        StreamItem::Change(change) => Some(change.id),
        _ => None,
    }
}

/// The result of one step of the stream.
enum Next {
    Item(Result<StreamItem>),
    /// There is more to read.
    Again,
    Wait,
    End,
}

impl EventStream {
    pub(crate) fn of_session(store: Arc<Store>, entry: SessionPin, from: StartAt) -> Result<Self> {
        let state = entry.lock().durable.clone();
        if from != StartAt::Creation && !state.is_there() {
            let session = entry.id().clone();
            return Err(Error::UnknownSession { session });
        }
        let tail = state.tail();
        let last = match from {
            _ if !state.is_there() => FIRST_SEQ - 1,
            StartAt::Creation | StartAt::Beginning => state.first - 1,
            StartAt::Now => tail,
            StartAt::After(cursor) => store.seq_of(entry.id(), &state, cursor)?,
        };
        let generation = if state.is_there() {
            Store::check_cursor(entry.id(), last, tail, &state)?;
            state.generation
        } else {
            0
        };
        Ok(Self::new(
            store,
            Source::Session {
                entry,
                generation,
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
            removals: 0,
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
                Next::Again => {}
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
        loop {
            self.drop_outdated();
            if let Some(item) = self.ahead.pop_front() {
                return Next::Item(Ok(item));
            }
            if self.phase == Phase::Ended || self.store.is_closed() {
                return self.end();
            }
            if let Err(forked) = self.store.check_process() {
                self.phase = Phase::Ended;
                return Next::Item(Err(forked));
            }
            match self.read_ahead_at_rest() {
                Err(error) => return self.failed(error),
                Ok(Ahead::Items(items)) => {
                    self.phase = Phase::Behind;
                    self.ahead.extend(items);
                }
                Ok(Ahead::Over(item)) => {
                    self.phase = Phase::Ended;
                    return Next::Item(Ok(item));
                }
                Ok(Ahead::Passed) => return Next::Again,
                Ok(Ahead::Nothing) if self.phase == Phase::Behind => {
                    self.phase = Phase::CaughtUp;
                    return Next::Item(Ok(StreamItem::CaughtUp));
                }
                Ok(Ahead::Nothing) if self.bounded => return self.end(),
                Ok(Ahead::Nothing) => return self.register(),
            }
        }
    }

    /// Passes on an error. After one that stays, the stream has ended.
    fn failed(&mut self, error: Error) -> Next {
        if matches!(error, Error::Cursor { .. }) {
            self.phase = Phase::Ended;
        }
        Next::Item(Err(error))
    }

    fn end(&mut self) -> Next {
        self.phase = Phase::Ended;
        Next::End
    }

    /// Forgets what was read ahead if anything was removed since: it may be that.
    fn drop_outdated(&mut self) {
        let removals = self.store.recent.removals();
        if std::mem::replace(&mut self.removals, removals) == removals {
            return;
        }
        let Some(next) = self.ahead.front() else {
            return;
        };
        match (&mut self.source, next) {
            (Source::Session { last, .. }, StreamItem::Event(event)) => *last = event.seq - 1,
            (Source::All { last, .. }, item) => {
                let before = id_of(item).map(|id| EventId::from_u128(id.to_u128() - 1));
                *last = before.unwrap_or(*last);
            }
            _ => {}
        }
        self.ahead.clear();
    }

    fn read_ahead_at_rest(&mut self) -> Result<Ahead> {
        let store = Arc::clone(&self.store);
        store.at_rest(|| self.read_ahead())
    }

    /// Reads what comes after the last event read.
    fn read_ahead(&mut self) -> Result<Ahead> {
        let store = &self.store;
        match &mut self.source {
            Source::Session {
                entry,
                generation,
                last,
                until,
            } => {
                // A refresh may have outdated it.
                entry.load(|| store.locator.state(entry.id()))?;
                let state = entry.lock().durable.clone();
                if *generation == 0 && state.is_there() {
                    (*generation, *last) = (state.generation, state.first - 1);
                }
                if *generation == 0 {
                    return Ok(Ahead::Nothing);
                }
                if !state.is_there() || state.generation != *generation {
                    return Ok(Ahead::Over(StreamItem::Deleted));
                }
                let to = if self.bounded {
                    (*until).max(*last)
                } else {
                    state.last
                };
                let items = session_items(store, entry, &state, *last + 1..=to, self.read_limit)?;
                if items.is_empty() && state.standing == Standing::Closed && !self.bounded {
                    // It comes after the mark that the reader has caught up.
                    return Ok(match self.phase {
                        Phase::Behind => Ahead::Nothing,
                        _ => Ahead::Over(StreamItem::Closed),
                    });
                }
                *last = items.last().map_or(*last, |event| event.seq);
                Ok(Ahead::of(items.into_iter().map(StreamItem::Event)))
            }
            Source::All { last, until } => {
                let mut fed = store.committed_after(*last, self.read_limit)?;
                if self.bounded {
                    fed.items.retain(|item| id_of(item) <= Some(*until));
                }
                let has_moved = fed.through > *last && !(self.bounded && *last >= *until);
                *last = fed.through;
                if fed.items.is_empty() && has_moved {
                    return Ok(Ahead::Passed);
                }
                Ok(Ahead::of(fed.items))
            }
        }
    }

    /// Registers to be woken by the next event. If an event came meanwhile, the waiter is woken at
    /// once. If the log was closed meanwhile, the stream ends.
    fn register(&mut self) -> Next {
        if !self.registered {
            self.registered = match &self.source {
                Source::Session {
                    entry,
                    generation,
                    last,
                    ..
                } => {
                    let mut state = entry.lock();
                    let is_at_the_end =
                        entry.is_loaded() && is_at_the_end(&state.durable, *generation, *last);
                    if is_at_the_end {
                        state.waiters.add(&self.waiter);
                    }
                    is_at_the_end
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
                Next::Again => {
                    // Other tasks have their turn after each page.
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Next::End => return Poll::Ready(None),
                Next::Wait => {
                    ready!(self.stream.waiter.poll(context));
                    self.stream.registered = false;
                }
            }
        }
    }
}
