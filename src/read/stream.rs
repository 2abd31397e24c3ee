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

use crate::model::{Cursor, Error, Event, EventId, FIRST_SEQ, Result, SessionId};
use crate::read::ahead::{Ahead, FollowerOfAll, Phase, Reader, Source};
use crate::read::item::StreamItem;
use crate::read::scan::ReadLimit;
use crate::read::store::Store;
use crate::sync::{Deadline, Instant, Mutex, Ordering, Waiter};

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
    /// `None` while it reads aside.
    reader: Option<Reader>,
    ahead: VecDeque<StreamItem>,
    /// The removals before `ahead` was read.
    removals: u64,
    /// When that was.
    read_at: Instant,
    waiter: Arc<Waiter>,
    /// Whether `waiter` is in the source's list.
    registered: bool,
    phase: Phase,
}

/// Where a reader that reads aside comes back with what it read.
#[derive(Default)]
struct Aside {
    back: Mutex<Option<(Reader, Result<Ahead>)>>,
    waiter: Waiter,
}

/// The result of one step of the stream.
enum Next {
    Item(Result<StreamItem>),
    /// Items were taken, which come next.
    Taken,
    /// There is more to read.
    Again,
    /// What comes next has to be read.
    Read,
    Wait,
    End,
}

impl EventStream {
    pub(crate) fn of_session(
        store: Arc<Store>,
        session: &SessionId,
        from: StartAt,
    ) -> Result<Self> {
        let mut follower = store.records.follow(session)?;
        let state = follower.state()?;
        if from != StartAt::Creation && !state.is_there() {
            let session = session.clone();
            return Err(Error::UnknownSession { session });
        }
        let tail = state.tail();
        let last = match from {
            _ if !state.is_there() => FIRST_SEQ - 1,
            StartAt::Creation | StartAt::Beginning => state.first - 1,
            StartAt::Now => tail,
            StartAt::After(cursor) => store.seq_of(session, &state, cursor)?,
        };
        let generation = if state.is_there() {
            Store::check_cursor(session, last, tail, &state)?;
            state.generation
        } else {
            0
        };
        Ok(Self::new(
            store,
            Source::Session {
                follower,
                generation,
                last,
                until: tail,
            },
        ))
    }

    pub(crate) fn of_all(store: Arc<Store>, after: Option<EventId>) -> Result<Self> {
        let follower = FollowerOfAll::new(&store.records);
        let until = store.records.last_id()?;
        Ok(Self::new(
            store,
            Source::All {
                last: after.unwrap_or(EventId::from_u128(0)),
                until,
                _follower: follower,
            },
        ))
    }

    fn new(store: Arc<Store>, source: Source) -> Self {
        store.counters.streams.fetch_add(1, Ordering::Relaxed);
        let reader = Reader {
            store: Arc::clone(&store),
            source,
            bounded: false,
            read_limit: READ_LIMIT,
        };
        Self {
            store,
            reader: Some(reader),
            ahead: VecDeque::new(),
            removals: 0,
            read_at: Instant::now(),
            waiter: Arc::default(),
            registered: false,
            phase: Phase::Behind,
        }
    }

    /// Reads ahead up to the event that reaches `bytes`.
    #[cfg(feature = "http")]
    pub(crate) fn read_ahead_bytes(mut self, bytes: usize) -> Self {
        self.reader_mut().read_limit.bytes = bytes;
        self
    }

    /// Ends the stream after the events that were durable when it was opened.
    pub fn until_tail(mut self) -> Self {
        self.reader_mut().bounded = true;
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
        AsyncEventStream {
            stream: self,
            aside: None,
        }
    }

    fn next_until(&mut self, deadline: Deadline) -> Option<Result<StreamItem>> {
        let mut is_late = false;
        loop {
            match self.advance() {
                Next::Item(item) => return Some(item),
                Next::Taken | Next::Read => {}
                Next::End => return None,
                Next::Again => {
                    // Much may have been removed. Without a wait it still passes over a page.
                    if std::mem::replace(&mut is_late, deadline.has_passed()) {
                        return None;
                    }
                }
                Next::Wait => {
                    // It may be woken again and again without a reason.
                    if is_late || !self.waiter.wait(deadline) {
                        return None;
                    }
                    self.registered = false;
                    is_late = deadline.has_passed();
                }
            }
        }
    }

    /// Returns what comes next, and reads on for it on this thread.
    fn advance(&mut self) -> Next {
        loop {
            let next = match self.at_hand() {
                Next::Read => {
                    let phase = self.phase;
                    let read = self.reader_mut().read_at_rest(phase);
                    self.accept(read)
                }
                next => next,
            };
            if !matches!(next, Next::Taken) {
                return next;
            }
        }
    }

    /// Returns what comes next as far as it is at hand.
    fn at_hand(&mut self) -> Next {
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
        self.read_at = Instant::now();
        Next::Read
    }

    fn reader_mut(&mut self) -> &mut Reader {
        self.reader
            .as_mut()
            .expect("a stream that reads aside is not asked for what is next")
    }

    /// Takes what was read.
    fn accept(&mut self, read: Result<Ahead>) -> Next {
        match read {
            Err(error) => self.failed(error),
            Ok(Ahead::Items(items)) => {
                self.phase = Phase::Behind;
                self.ahead.extend(items);
                Next::Taken
            }
            Ok(Ahead::Over(item)) => {
                self.phase = Phase::Ended;
                Next::Item(Ok(item))
            }
            Ok(Ahead::Passed) => Next::Again,
            Ok(Ahead::Nothing) if self.phase == Phase::Behind => {
                self.phase = Phase::CaughtUp;
                Next::Item(Ok(StreamItem::CaughtUp))
            }
            Ok(Ahead::Nothing) if self.reader_mut().bounded => self.end(),
            Ok(Ahead::Short | Ahead::Nothing) => self.register(),
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
        let records = &self.store.records;
        // In this order: what is known when it is asked for is counted then.
        let knows = self.ahead.is_empty() || records.knows_removals(self.read_at);
        let removals = records.removals();
        if std::mem::replace(&mut self.removals, removals) == removals && knows {
            return;
        }
        if let (Some(next), Some(reader)) = (self.ahead.front(), &mut self.reader) {
            reader.source.go_back_before(next);
        }
        self.ahead.clear();
    }

    /// Registers to be woken by the next event. If an event came meanwhile, the waiter is woken at
    /// once. If the log was closed meanwhile, the stream ends.
    fn register(&mut self) -> Next {
        if !self.registered {
            let waiter = Arc::clone(&self.waiter);
            self.registered = self.reader_mut().wait(&waiter);
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
        if let Some(reader) = self.reader.as_ref().filter(|_| self.registered) {
            reader.forget(&self.waiter);
        }
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut debug = f.debug_struct("EventStream");
        match self.reader.as_ref().map(|reader| &reader.source) {
            Some(Source::Session { follower, last, .. }) => debug
                .field("session", follower.session())
                .field("last", last),
            Some(Source::All { last, .. }) => debug.field("last", last),
            None => &mut debug,
        };
        debug.field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// An [`EventStream`] as a [`Stream`](futures_core::Stream), for any runtime.
#[must_use = "a stream does nothing until it is polled"]
pub struct AsyncEventStream {
    stream: EventStream,
    /// Where the reader comes back, while it reads aside.
    aside: Option<Arc<Aside>>,
}

impl std::fmt::Debug for AsyncEventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AsyncEventStream")
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl AsyncEventStream {
    /// Returns what comes next. Where reading would block on a network, another thread reads.
    fn poll_advance(&mut self, context: &Context<'_>) -> Poll<Next> {
        if !self.stream.store.records.reads_block() {
            return Poll::Ready(self.stream.advance());
        }
        loop {
            if let Some(aside) = &self.aside {
                ready!(aside.waiter.poll(context));
                let Some((reader, read)) = aside.back.lock().take() else {
                    continue;
                };
                (self.aside, self.stream.reader) = (None, Some(reader));
                let next = self.stream.accept(read);
                if !matches!(next, Next::Taken) {
                    return Poll::Ready(next);
                }
            }
            if self.stream.registered {
                ready!(self.stream.waiter.poll(context));
                self.stream.registered = false;
            }
            match self.stream.at_hand() {
                Next::Read => self.read_aside(),
                next => return Poll::Ready(next),
            }
        }
    }

    fn read_aside(&mut self) {
        let Some(mut reader) = self.stream.reader.take() else {
            return;
        };
        let aside = Arc::<Aside>::default();
        let phase = self.stream.phase;
        self.aside = Some(Arc::clone(&aside));
        let store = Arc::clone(&self.stream.store);
        store.records.aside(Box::new(move || {
            let read = reader.read_at_rest(phase);
            *aside.back.lock() = Some((reader, read));
            aside.waiter.wake();
        }));
    }
}

impl futures_core::Stream for AsyncEventStream {
    type Item = Result<StreamItem>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.poll_advance(context)) {
                Next::Item(item) => return Poll::Ready(Some(item)),
                Next::Taken | Next::Read => {}
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
