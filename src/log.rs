//! The handle: wiring only. What each call does is in the module it hands on to.

use std::future::{Future, poll_fn};
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Disk, RealDisk, io_error};
use crate::engine::{Engine, open};
use crate::maintain::Threads;
use crate::model::{
    Ack, Batch, Error, Event, EventId, Head, MessageId, Options, Result, SessionId, Stats,
};
#[cfg(feature = "http")]
use crate::read::NewestSessions;
use crate::read::{EventStream, Page, PageRequest, SessionQuery, StartAt, Store};
use crate::sync::Mutex;
#[cfg(feature = "http")]
use crate::turn::TurnText;
use crate::turn::{Fold, Message, TurnReader};
use crate::write::{Landed, Submitted, Ticket};

/// An open log. Clones are handles to the same log; it is closed by [`close`](Self::close), or less
/// tidily when the last is dropped.
///
/// All methods may be called from any thread. Those that read do not wait for those that append.
#[derive(Clone)]
pub struct SessionLog {
    handle: Arc<Handle>,
}

/// Ends the log when the last clone is gone.
struct Handle {
    engine: Arc<Engine>,
    threads: Mutex<Threads>,
}

impl Options {
    /// Opens the log in `folder`, which is made if it is missing. See [`SessionLog::open`].
    ///
    /// # Errors
    ///
    /// As [`SessionLog::open`], and [`Error::Invalid`] when options contradict each other, or the
    /// path is empty.
    pub fn open(self, folder: impl AsRef<Path>) -> Result<SessionLog> {
        let folder = folder.as_ref();
        if folder.as_os_str().is_empty() {
            return Err(Error::invalid("folder", "its path is empty"));
        }
        // A relative path means another folder when the process changes its working directory.
        let absolute = std::path::absolute(folder).map_err(io_error("find", folder))?;
        self.open_on(Arc::new(RealDisk::default()), &absolute)
    }

    /// Opens the log in `folder` for reading, without writing a byte. Appends are
    /// [`Error::ReadOnly`].
    ///
    /// Works on a full disk and on a read-only mount, but not on a file system that the kernel
    /// remounted read-only after an error: what it holds may not be durable.
    ///
    /// # Errors
    ///
    /// As [`SessionLog::open`]. [`Error::Locked`] while a writer has the folder open.
    pub fn open_read_only(mut self, folder: impl AsRef<Path>) -> Result<SessionLog> {
        self.read_only = true;
        self.open(folder)
    }

    /// As [`open`](Options::open), on a disk that a test may own.
    pub(crate) fn open_on(self, disk: Arc<dyn Disk>, folder: &Path) -> Result<SessionLog> {
        self.check()?;
        let engine = Arc::new(open(disk, folder, self)?);
        let threads = Mutex::new(Threads::default());
        let handle = Arc::new(Handle { engine, threads });
        handle.threads.lock().start(&handle.engine)?;
        Ok(SessionLog { handle })
    }
}

impl SessionLog {
    /// Opens the log in `folder` with the default [`Options`], making both if they are not there.
    ///
    /// When this returns, everything that was ever acknowledged can be read, and whatever else can
    /// be read is durable too. Whatever the size of the store, it takes as long as reading what is
    /// in the journal alone: after a clean stop milliseconds to a tenth of a second, after a crash,
    /// when all of the journal is looked at and some of it written again, up to half a second.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another handle, here or in another process, has the folder open.
    /// [`Error::Corrupt`] when acknowledged bytes are damaged, [`Error::Unsupported`] when a later
    /// version wrote them: nothing is changed then. [`Error::Io`]: opening again is safe.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Options::new().open(folder)
    }

    /// Appends `batch` to `session` and returns the stored events.
    ///
    /// When this returns `Ok`, the batch is on stable storage, every reader sees it, and its IDs
    /// are greater than all returned before. It blocks until its group is durable; callers that
    /// append together share one write and one barrier. It waits for room up to
    /// [`stall_wait`](Options::stall_wait).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`], [`Error::TooLarge`], [`Error::ExpectedMismatch`],
    /// [`Error::IdempotencyConflict`], [`Error::ReadOnly`], [`Error::Closed`], [`Error::Poisoned`],
    /// [`Error::Forked`]: nothing was written. [`Error::NoSpace`], [`Error::Stalled`]: nothing was
    /// written, and the call may be repeated; so it is with [`Error::Refused`] once its cause is
    /// mended. [`Error::Displaced`]: nothing was written, and the log is poisoned.
    /// [`Error::Unread`], [`Error::Corrupt`]: what the session holds could not be read; nothing was
    /// written. [`Error::Io`]: the batch may or may not be found after reopening, and the log is
    /// poisoned until then.
    pub fn append(&self, session: &SessionId, batch: impl Into<Batch>) -> Result<Ack> {
        let engine = &self.handle.engine;
        let ticket: Arc<Ticket> = Arc::default();
        let request = engine.request(session, batch.into(), &ticket)?;
        let joined = engine.writer()?.commit.append(request)?;
        ticket.wait(&joined).map(|landed| to_ack(&landed))
    }

    /// As [`append`](Self::append), for async callers on any runtime. The batch joins a group at
    /// the first poll, with those of blocking callers; no thread is held. A session that is not in
    /// memory is looked up in that poll, and so is an idempotency key, which may read from the
    /// disk.
    ///
    /// Its waker is called by a thread of the log, so it must not run the task in place, as no
    /// runtime in use does: a task that then closes the log, or appends and blocks, would wait for
    /// itself.
    ///
    /// A future that is dropped before it was polled appends nothing; one that is dropped later may
    /// still land. Where the group is full it waits without a limit.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Self::append).
    pub fn append_async(
        &self,
        session: &SessionId,
        batch: Batch,
    ) -> impl Future<Output = Result<Ack>> + Send + use<> {
        let (engine, session) = (Arc::clone(&self.handle.engine), session.clone());
        async move {
            let commit = &engine.writer()?.commit;
            let ticket = Arc::default();
            let mut request = engine.request(&session, batch, &ticket)?;
            while let Submitted::NoRoom(full, room) = commit.submit(request)? {
                poll_fn(|context| room.poll(context)).await;
                request = full;
            }
            poll_fn(|context| ticket.poll(context))
                .await
                .map(|landed| to_ack(&landed))
        }
    }

    /// Reads a page of a session, as far as it is durable.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`], [`Error::Cursor`], [`Error::Invalid`] and [`Error::TooLarge`] for
    /// the page's limit; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot be read.
    pub fn list(&self, session: &SessionId, page: PageRequest) -> Result<Page<Event>> {
        self.store()?.list(session, page)
    }

    /// Streams a session from a place on: what is there, then what comes, without a gap or a
    /// duplicate.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`], unless it is to be [waited for](StartAt::Creation);
    /// [`Error::Cursor`].
    pub fn stream(&self, session: &SessionId, from: StartAt) -> Result<EventStream> {
        let store = self.store()?;
        let entry = store
            .recent
            .sessions
            .pin(session, || store.locator.head(session))?;
        EventStream::of_session(Arc::clone(store), entry, from)
    }

    /// Streams all sessions in commit order: the events that are stored, then new ones.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::Batch;
    ///
    /// let ack = log.append(&"a".parse()?, Batch::new().user_message("hello"))?;
    /// log.append(&"b".parse()?, Batch::new().user_message("hello"))?;
    /// assert_eq!(log.feed()?.until_tail().events().count(), 2);
    /// assert_eq!(log.feed_after(ack.events[0].id)?.until_tail().events().count(), 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]. The stream yields [`Error::Corrupt`] and [`Error::Io`] when what is stored
    /// cannot be read.
    pub fn feed(&self) -> Result<EventStream> {
        Ok(EventStream::of_all(Arc::clone(self.store()?), None))
    }

    /// As [`feed`](Self::feed), from the event after this one on.
    ///
    /// # Errors
    ///
    /// Those of [`feed`](Self::feed). [`Error::UnknownEvent`] when the store has no event with this
    /// ID, as after a restore from an older copy: it cannot tell what came after.
    pub fn feed_after(&self, id: EventId) -> Result<EventStream> {
        let store = self.store()?;
        store
            .look_at(id, |_event| ())?
            .ok_or(Error::UnknownEvent { id })?;
        Ok(EventStream::of_all(Arc::clone(store), Some(id)))
    }

    /// Reads the event with this ID.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownEvent`]; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot be
    /// read.
    pub fn event(&self, id: EventId) -> Result<Event> {
        self.store()?.event(id)?.ok_or(Error::UnknownEvent { id })
    }

    /// Reads a turn as one message: a fold over the events from the one that opened it to its first
    /// final status.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMessage`]; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot
    /// be read.
    pub fn message(&self, id: MessageId) -> Result<Message> {
        let bytes_max = self.store()?.options.scan_bytes_max;
        self.turn_reader()?
            .turn(id, bytes_max)
            .map(Fold::into_message)
    }

    /// As [`message`](Self::message), as text, with less of the outputs where they take more than
    /// so many bytes of memory.
    #[cfg(feature = "http")]
    pub(crate) fn turn_within(&self, id: MessageId, bytes_max: usize) -> Result<TurnText> {
        self.turn_reader()?.turn(id, bytes_max).map(Fold::into_text)
    }

    /// As [`messages`](Self::messages), as text.
    #[cfg(feature = "http")]
    pub(crate) fn turns(&self, session: &SessionId, page: PageRequest) -> Result<Page<Fold>> {
        self.turn_reader()?.page(session, page)
    }

    /// Reads a page of a session's messages. The page counts messages; its cursors are places in
    /// the session, as for [`list`](Self::list).
    ///
    /// # Errors
    ///
    /// Those of [`list`](Self::list).
    pub fn messages(&self, session: &SessionId, page: PageRequest) -> Result<Page<Message>> {
        self.turn_reader()?
            .page(session, page)
            .map(|page| page.map(Fold::into_message))
    }

    /// Where a session stands.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`] when it has no event.
    pub fn head(&self, session: &SessionId) -> Result<Head> {
        self.store()?.known_head(session)
    }

    /// Lists sessions in the byte order of their IDs.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] and [`Error::TooLarge`] for the query's limit; [`Error::Corrupt`] and
    /// [`Error::Io`] when what is stored cannot be read; [`Error::Closed`].
    pub fn sessions(&self, query: SessionQuery) -> Result<Vec<SessionId>> {
        self.store()?.sessions(&query)
    }

    /// At most `limit` sessions, those with the newest events first. It walks back from the newest
    /// event over what is in memory and 10,000 batches behind that, so it may find fewer sessions
    /// than there are.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] and [`Error::TooLarge`] for the limit, which is bounded like a page's.
    pub fn recent_sessions(&self, limit: usize) -> Result<Vec<SessionId>> {
        self.store()?
            .newest_sessions(limit)
            .map(|newest| newest.ids)
    }

    /// As [`recent_sessions`](Self::recent_sessions), with whether there may be more.
    #[cfg(feature = "http")]
    pub(crate) fn newest_sessions(&self, limit: usize) -> Result<NewestSessions> {
        self.store()?.newest_sessions(limit)
    }

    #[cfg(feature = "http")]
    pub(crate) fn page_events_max(&self) -> usize {
        self.handle.engine.store.options.limits.page_events_max
    }

    /// The log's figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.handle.engine.stats()
    }

    /// Whether the log is in service: open, no write has failed, and the system does not refuse
    /// what appends will need. Costs a lock that commits take.
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]; [`Error::Poisoned`], while reads go on. [`Error::NoSpace`],
    /// [`Error::Stalled`] and [`Error::Refused`] when background work has been refused something
    /// for as long as [`stall_wait`](Options::stall_wait): appends fail, or will when the room that
    /// is left is used up.
    pub fn health(&self) -> Result<()> {
        let engine = &self.handle.engine;
        let options = &self.store()?.options;
        let Some(writer) = &engine.writer else {
            return Ok(());
        };
        writer.shared.state.check_poison()?;
        engine.refusals.check(options.stall_wait)
    }

    /// Closes the log, for all handles. Appends that have joined a group are answered first;
    /// streams end; the clean stop is recorded, so that the next open has nothing to recover.
    /// Nothing is sealed for it, so it takes milliseconds, and some more for each journal file that
    /// is removed after a burst; but an append that is waiting for room is waited for too. Closing
    /// again does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Poisoned`] when a write had failed before, [`Error::Displaced`] when the folder is
    /// no longer where it was, [`Error::Io`] when the clean stop could not be recorded, or a
    /// journal file that is no longer needed not removed. The log is closed all the same, and
    /// everything acknowledged is there on the next open.
    pub fn close(&self) -> Result<()> {
        self.handle.stop(Stop::Clean)
    }

    /// What reads from the log, while it is open.
    fn store(&self) -> Result<&Arc<Store>> {
        let store = &self.handle.engine.store;
        store.check_open().map(|()| store)
    }

    fn turn_reader(&self) -> Result<&TurnReader> {
        let engine = &self.handle.engine;
        engine.store.check_open().map(|()| &engine.turns)
    }
}

impl std::fmt::Debug for SessionLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionLog")
            .field("closed", &self.handle.engine.store.is_closed())
            .finish_non_exhaustive()
    }
}

fn to_ack(landed: &Landed) -> Ack {
    let record = &landed.record;
    let whole = "the record was encoded here, or checked when it was read";
    let events = record.events().map(|frame| frame.expect(whole).event());
    Ack {
        events: events.collect(),
        first: record.first,
        last: record.last(),
        replayed: landed.replayed,
    }
}

/// How a log ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stop {
    /// With a record of it.
    Clean,
    /// As fast as it can be: the next open replays the journal.
    Dropped,
}

impl Handle {
    /// Stops everything; a second call waits for the first and does nothing.
    fn stop(&self, how: Stop) -> Result<()> {
        let engine = &self.engine;
        engine.store.check_process()?;
        let mut threads = self.threads.lock();
        let mut result = Ok(());
        if engine.store.close() {
            threads.stop(engine);
            if let (Some(writer), Stop::Clean) = (&engine.writer, how) {
                result = writer
                    .record_clean_stop()
                    .and_then(|()| writer.shared.spares.trim());
            }
        }
        engine.store.recent.wake_all();
        engine.unlock();
        result
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Errors come out of `close`; a log that is only dropped is recovered when it is opened.
        drop(self.stop(Stop::Dropped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NewEvent;
    use crate::sync::yield_now;

    /// The race of a retry with the sealing of what it retries.
    #[test]
    fn a_key_that_is_sealed_while_it_is_looked_up_still_lands_once() {
        let folder = tempfile::tempdir().unwrap();
        let log = Options::new()
            .recent_bytes_max(0)
            .open(folder.path())
            .unwrap();
        let session = SessionId::new("s").unwrap();
        let keyed = || {
            Batch::new()
                .event(NewEvent::new("note", "once"))
                .idempotency_key("key")
        };
        let engine = &log.handle.engine;
        let _held = engine
            .store
            .recent
            .sessions
            .pin(&session, || Ok(None))
            .unwrap();
        log.append(&session, Batch::new().event(NewEvent::new("note", "first")))
            .unwrap();
        let ticket = Arc::default();
        let late = engine.request(&session, keyed(), &ticket).unwrap();
        let first = log.append(&session, keyed()).unwrap();
        while log.stats().segments < 2 {
            log.append(&session, Batch::new().event(NewEvent::new("note", "more")))
                .unwrap();
            yield_now();
        }
        assert!(late.is_stale(), "the key has to be looked up again");
        let joined = engine.writer().unwrap().commit.append(late).unwrap();
        let found = ticket.wait(&joined).unwrap();
        assert!(found.replayed);
        let found = found.record;
        assert_eq!((found.first, found.last()), (first.first, first.last));
        assert!(log.append(&session, keyed()).unwrap().replayed);
    }

    #[test]
    fn a_list_of_the_newest_sessions_that_was_ended_early_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let log = Options::new()
            .recent_bytes_max(0)
            .open(folder.path())
            .unwrap();
        let append = |session: &str| {
            let batch = Batch::new().event(NewEvent::new("note", "x"));
            log.append(&SessionId::new(session).unwrap(), batch)
                .unwrap();
        };
        let newest = || log.handle.engine.store.newest_sessions(10).unwrap();
        let until_sealed = |segments: u64| {
            while log.stats().segments < segments {
                append("hot");
                yield_now();
            }
        };
        append("cold");
        append("hot");
        let both = newest();
        assert_eq!((both.ids.len(), both.truncated), (2, false));
        until_sealed(30);
        let one = newest();
        assert_eq!((one.ids.len(), one.truncated), (1, true));
    }
}
