//! The handle of an open log. Each call is one line here: what it does is in the part it calls.

mod embedded;
mod sessions;
#[cfg(feature = "postgres")]
mod shards;
#[cfg(feature = "durable-streams")]
mod streams;

#[cfg(feature = "durable-streams")]
pub(crate) use streams::Unless;

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use crate::backend::{self, Backend, Reads};
use crate::disk::{Disk, RealDisk, io_error};
use crate::log::embedded::Embedded;
use crate::model::{
    Ack, Batch, Error, Event, EventId, Head, MessageId, Options, Result, SessionId, Stats,
};
use crate::read::{EventStream, Page, PageRequest, SessionPage, SessionQuery, StartAt, Store};
#[cfg(feature = "postgres")]
use crate::transfer::{Export, Exported, Imported, Progress};
#[cfg(feature = "http")]
use crate::turn::TurnText;
use crate::turn::{Fold, Message, TurnReader};

/// An open log.
///
/// Clones are handles to the same log. [`close`](Self::close) closes it for all of them. When the
/// last handle is dropped without that, the next open recovers the log as after a crash.
///
/// All methods may be called from any thread. Reads do not wait for appends.
#[derive(Clone)]
pub struct SessionLog {
    /// It ends when the last clone is gone.
    engine: Arc<dyn Backend>,
}

impl Options {
    /// Opens the log in `folder` with these options. Makes the folder if it is missing.
    ///
    /// See [`SessionLog::open`] for what is true when it returns.
    ///
    /// # Errors
    ///
    /// Those of [`SessionLog::open`]. [`Error::Invalid`] when options contradict each other, or
    /// when the path is empty.
    pub fn open(self, folder: impl AsRef<Path>) -> Result<SessionLog> {
        let folder = folder.as_ref();
        if folder.as_os_str().is_empty() {
            return Err(Error::invalid("folder", "its path is empty"));
        }
        // A relative path means another folder when the process changes its working directory.
        let absolute = std::path::absolute(folder).map_err(io_error("find", folder))?;
        self.open_on(Arc::new(RealDisk::default()), &absolute)
    }

    /// Opens the log in `folder` for reading, without writing a byte.
    ///
    /// Another process may write the log meanwhile. The reader shows what was durable when it
    /// opened, and [`refresh`](SessionLog::refresh) shows what has become durable since. Neither
    /// makes the other wait: a reader takes no lock, and a writer opens, closes and recovers as if
    /// there were none. Any number of readers may have the folder open. Appends return
    /// [`Error::ReadOnly`].
    ///
    /// A reader keeps the file of each segment open. When the writer removes a segment, its space
    /// is free once no reader has it any more: after its next refresh, or its close. A reader does
    /// not use the index, so a cold read of a session takes a few more reads from the disk.
    ///
    /// This works on a full disk and on a read-only mount. It does not work on a file system that
    /// the kernel remounted read-only after an error: what it holds may not be durable.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # sessionlog::SessionLog::open(dir.path())?.close()?;
    /// use sessionlog::{Batch, Error, Options};
    ///
    /// let log = Options::new().open_read_only(dir.path())?;
    /// let refused = log.append(&"s".parse()?, Batch::new().user_message("hello"));
    /// assert!(matches!(refused, Err(Error::ReadOnly)));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`SessionLog::open`] but [`Error::Locked`]. [`Error::Io`] where there is no log.
    pub fn open_read_only(mut self, folder: impl AsRef<Path>) -> Result<SessionLog> {
        self.read_only = true;
        self.open(folder)
    }

    /// Connects to a log on PostgreSQL with these options.
    ///
    /// The options of files, memory and segments have no effect there.
    ///
    /// # Errors
    ///
    /// Those of [`SessionLog::connect`]. [`Error::Invalid`] when options contradict each other.
    #[cfg(feature = "postgres")]
    pub fn connect(self, url: &str) -> Result<SessionLog> {
        let engine = Arc::new(crate::postgres::Postgres::connect(url, self)?);
        Ok(SessionLog { engine })
    }

    /// Writes the log on PostgreSQL at `url` to `out` as lines, as of one moment. Servers may
    /// append to it meanwhile.
    ///
    /// It is [`transfer::export()`](crate::transfer::export()) of such a log, in one part. So an
    /// export that was cut short begins anew. Nothing is written to the tables. It blocks until all
    /// is written.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Options::connect), and [`Error::Io`] if there is no log in the schema
    /// or `out` fails.
    #[cfg(feature = "postgres")]
    pub fn export_from(
        self,
        url: &str,
        out: impl std::io::Write,
        what: &Export,
        progress: impl FnMut(Progress),
    ) -> Result<Exported> {
        crate::postgres::export(url, self, out, what, progress)
    }

    /// Makes a log on PostgreSQL at `url` from the lines of an export, which `name` names in
    /// errors.
    ///
    /// It is [`transfer::import()`](crate::transfer::import()) into a schema in which no log is, or
    /// one to which nothing was ever appended. It is one transaction: after an error nothing has
    /// changed. Servers that connect meanwhile wait for it. It blocks until the log is durable.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Options::connect). [`Error::Invalid`] if the schema holds a log. For
    /// the lines those of [`transfer::import()`](crate::transfer::import()). If the connection is
    /// lost at the end, the log may be there: the same call then tells.
    #[cfg(feature = "postgres")]
    pub fn import_to(
        self,
        url: &str,
        input: impl std::io::BufRead,
        name: impl AsRef<Path>,
        progress: impl FnMut(Progress),
    ) -> Result<Imported> {
        crate::postgres::import(input, name.as_ref(), url, &self, progress)
    }

    /// As [`open`](Options::open), on a disk that a test may own.
    pub(crate) fn open_on(self, disk: Arc<dyn Disk>, folder: &Path) -> Result<SessionLog> {
        self.check()?;
        let engine = Arc::new(Embedded::open(disk, folder, self)?);
        Ok(SessionLog { engine })
    }
}

impl SessionLog {
    /// Opens the log in `folder` with the default [`Options`]. Makes the folder if it is missing.
    ///
    /// When this returns, every acknowledged batch is readable, and everything readable is durable.
    /// The time depends on the journal and not on the size of the store. It is up to 0.1 s after a
    /// clean close, and up to 0.5 s after a crash.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// use sessionlog::SessionLog;
    ///
    /// let log = SessionLog::open(dir.path().join("log"))?;
    /// assert_eq!(log.stats().events, 0);
    /// log.close()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] while another handle has the folder open for writing, in this process or
    /// in another. [`Error::Corrupt`] when acknowledged bytes are damaged, and
    /// [`Error::Unsupported`] when a later version wrote them: nothing was changed. [`Error::Io`]:
    /// opening again is safe.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self> {
        Options::new().open(folder)
    }

    /// Connects to a log on PostgreSQL, with the default [`Options`]. Makes its tables if they are
    /// missing.
    ///
    /// The URL is that of `libpq`, such as `postgres://user@one,two,three/database`. Of several
    /// hosts the primary is used, and after a failover the new one. What makes a commit durable is
    /// checked when a connection is made: see [`Durability`](crate::Durability).
    ///
    /// Everything that is said of a log that is opened holds, with these differences. An append
    /// waits through a failover, up to [`stall_wait`](Options::stall_wait). If it is not known then
    /// whether the batch landed, it is [`Error::Unconfirmed`].
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for the URL, and for a setting of the server that does not give what is
    /// promised. [`Error::Unsupported`] for a server before version 15, and for tables of a later
    /// version. [`Error::Io`] when no primary is found: connecting again is safe.
    #[cfg(feature = "postgres")]
    pub fn connect(url: &str) -> Result<Self> {
        Options::new().connect(url)
    }

    /// What keeps the log, for tests of what is below it.
    #[cfg(all(test, not(shuttle)))]
    pub(crate) fn engine(&self) -> &Arc<dyn Backend> {
        &self.engine
    }

    /// Appends `batch` to `session` and returns the stored events.
    ///
    /// When this returns `Ok`, the batch is on stable storage, every reader sees it, and its IDs
    /// are greater than all IDs returned before. It blocks until its commit group is durable.
    /// Callers that append together share one write and one barrier. An append waits for room until
    /// [`stall_wait`](Options::stall_wait) has passed since the call.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Batch, NewEvent, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// let batch = Batch::new()
    ///     .user_message("Summarize this ticket.")
    ///     .event(NewEvent::new("note", r#"{"source":"mail"}"#));
    /// let ack = log.append(&session, batch)?;
    /// assert_eq!((ack.first, ack.last), (1, 2));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Nothing was written: [`Error::Invalid`], [`Error::TooLarge`], [`Error::ExpectedMismatch`],
    /// [`Error::IdempotencyConflict`], [`Error::ReadOnly`], [`Error::Closed`], [`Error::Poisoned`],
    /// [`Error::Forked`], and [`Error::LookupFailed`] and [`Error::Corrupt`], where what the
    /// session holds could not be read.
    ///
    /// Nothing was written, and the call may be repeated: [`Error::NoSpace`], [`Error::Stalled`],
    /// and [`Error::Refused`] once its cause is mended.
    ///
    /// The log is poisoned until it is opened again: [`Error::Displaced`], where nothing was
    /// written, and [`Error::Io`]. After the latter the batch may or may not be found after
    /// reopening.
    pub fn append(&self, session: &SessionId, batch: impl Into<Batch>) -> Result<Ack> {
        let landed = backend::call(&*self.engine, backend::append_of(session, batch.into()))?;
        backend::ack(self.reader(), session, &landed)
    }

    /// Appends `batch` to `session` without blocking a thread, on any runtime.
    ///
    /// The batch joins a commit group at the first poll, together with those of blocking callers.
    /// That poll may read from the disk: it looks up a session, or an idempotency key, that is not
    /// in memory.
    ///
    /// A future that is dropped before its first poll appends nothing. One that is dropped later
    /// may still land. While its group is full, it waits for room without a limit.
    ///
    /// The waker is called on a thread of the log. An executor that runs the task inside `wake`
    /// would deadlock if the task closes the log or blocks on an append. None in common use does
    /// so.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().build()?.block_on(async {
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{NewEvent, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// let ack = log.append_async(&session, NewEvent::new("note", "{}")).await?;
    /// assert_eq!(ack.events[0].seq, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// # })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`append`](Self::append).
    pub fn append_async<B: Into<Batch>>(
        &self,
        session: &SessionId,
        batch: B,
    ) -> impl Future<Output = Result<Ack>> + Send + use<B> {
        let (engine, session, batch) = (Arc::clone(&self.engine), session.clone(), batch.into());
        let reads = Reads::of_append(&batch);
        let make = backend::append_of(&session, batch);
        async move {
            let landed = backend::call_async(Arc::clone(&engine), make, reads).await?;
            backend::ack_async(engine, session, landed).await
        }
    }

    /// Whether nothing is to be written until the next append.
    #[cfg(all(test, feature = "http"))]
    pub(crate) fn is_at_rest(&self) -> bool {
        self.engine.is_at_rest()
    }

    /// Reads a page of a session's durable events.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Batch, NewEvent, PageRequest, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// log.append(&session, Batch::new().user_message("hello"))?;
    /// log.append(&session, NewEvent::new("note", "{}"))?;
    ///
    /// let newest = log.list(&session, PageRequest::new().newest_first().limit(1))?;
    /// assert_eq!(newest.items[0].event_type, "note");
    /// assert!(newest.has_more);
    /// let rest = log.list(&session, newest.next_page().expect("there is more"))?;
    /// assert_eq!(rest.items[0].event_type, "user.message");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`]; [`Error::Closed`]. [`Error::Cursor`] for a cursor that is not in
    /// the session. [`Error::Invalid`] and [`Error::TooLarge`] for the limit. [`Error::Corrupt`]
    /// and [`Error::Io`] when what is stored cannot be read.
    pub fn list(&self, session: &SessionId, page: PageRequest) -> Result<Page<Event>> {
        self.reading(|store| store.list(session, page))
    }

    /// Streams a session: the events that are stored, then new ones, without a gap or a duplicate.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{NewEvent, SessionId, StartAt};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// for step in ["1", "2", "3"] {
    ///     log.append(&session, NewEvent::new("step", step))?;
    /// }
    /// // After a restart: continue after the last event that was processed.
    /// let missed = log.stream(&session, StartAt::after(1))?.until_tail();
    /// let missed = missed.events().collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!((missed[0].seq, missed[1].seq), (2, 3));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`], except with [`StartAt::Creation`]; [`Error::Cursor`] for a cursor
    /// that is not in the session; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot
    /// be read; [`Error::Closed`].
    pub fn stream(&self, session: &SessionId, from: StartAt) -> Result<EventStream> {
        self.reading(|store| EventStream::of_session(Arc::clone(store), session, from))
    }

    /// Streams all sessions in commit order: the events and changes that are stored, then new ones.
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
    /// [`Error::Closed`]. The stream yields [`Error::Corrupt`] and [`Error::Io`] when what is
    /// stored cannot be read.
    pub fn feed(&self) -> Result<EventStream> {
        self.reading(|store| EventStream::of_all(Arc::clone(store), None))
    }

    /// Streams all sessions in commit order, from the first event or change after this one. It may
    /// have been removed since.
    ///
    /// # Errors
    ///
    /// Those of [`feed`](Self::feed). [`Error::UnknownEvent`] when the store has no event with this
    /// ID. That is so after a restore from an older copy, after the event was removed, and for the
    /// ID of a change.
    pub fn feed_after(&self, id: EventId) -> Result<EventStream> {
        self.reading(|store| {
            if !store.records.was_committed(id)? {
                return Err(Error::UnknownEvent { id });
            }
            EventStream::of_all(Arc::clone(store), Some(id))
        })
    }

    /// Streams all sessions from a position in the commit order, at which there need not be an
    /// event any more.
    #[cfg(feature = "http")]
    pub(crate) fn feed_from(&self, after: Option<EventId>) -> Result<EventStream> {
        self.reading(|store| {
            // The store cannot tell what comes after a position that it has not reached.
            if let Some(id) = after
                && id > store.records.last_id()?
            {
                return Err(Error::UnknownEvent { id });
            }
            EventStream::of_all(Arc::clone(store), after)
        })
    }

    /// Reads the event with this ID.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::NewEvent;
    ///
    /// let ack = log.append(&"sess_123".parse()?, NewEvent::new("note", "{}"))?;
    /// assert_eq!(log.event(ack.events[0].id)?, ack.events[0]);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownEvent`]; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot be
    /// read; [`Error::Closed`].
    pub fn event(&self, id: EventId) -> Result<Event> {
        self.reading(|store| store.event(id)?.ok_or(Error::UnknownEvent { id }))
    }

    /// Reads a turn as one message.
    ///
    /// The message is a fold over the turn's events, from the one that opened it to the first final
    /// status. It is computed at each call.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Batch, MessageStatus, NewEvent, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// let opened = log.append(&session, Batch::new().user_message("What is 6 x 7?"))?;
    /// let turn = opened.events[0].message_id.expect("a user message opens a turn");
    /// let answer = NewEvent::new("assistant.message_completed", r#"{"text":"42"}"#);
    /// let done = NewEvent::new("message.status_changed", r#"{"status":"completed"}"#);
    /// log.append(&session, Batch::new().events([answer.in_turn(turn), done.in_turn(turn)]))?;
    ///
    /// let message = log.message(turn)?;
    /// assert_eq!(message.status, MessageStatus::Completed);
    /// assert_eq!(message.output[0]["text"], "42");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMessage`]; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot
    /// be read; [`Error::Closed`].
    pub fn message(&self, id: MessageId) -> Result<Message> {
        let bytes_max = self.store()?.options.scan_bytes_max;
        self.reading_turns(|turns| turns.turn(id, bytes_max))
            .map(Fold::into_message)
    }

    /// As [`message`](Self::message), as text, with less of the outputs where they take more than
    /// so many bytes of memory.
    #[cfg(feature = "http")]
    pub(crate) fn turn_within(&self, id: MessageId, bytes_max: usize) -> Result<TurnText> {
        self.reading_turns(|turns| turns.turn(id, bytes_max))
            .map(Fold::into_text)
    }

    /// As [`messages`](Self::messages), as text.
    #[cfg(feature = "http")]
    pub(crate) fn turns(&self, session: &SessionId, page: PageRequest) -> Result<Page<Fold>> {
        self.reading_turns(|turns| turns.page(session, page))
    }

    /// Reads a page of a session's messages.
    ///
    /// The request's limit counts messages. Its cursors are positions in the session, as for
    /// [`list`](Self::list). To find the turns that wait for an answer, ask for
    /// [open turns](PageRequest::open_turns).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Batch, PageRequest, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// log.append(&session, Batch::new().user_message("first"))?;
    /// log.append(&session, Batch::new().user_message("second"))?;
    /// let page = log.messages(&session, PageRequest::new().newest_first().limit(1))?;
    /// assert_eq!(page.items[0].content[0].as_text(), Some("second"));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Those of [`list`](Self::list).
    pub fn messages(&self, session: &SessionId, page: PageRequest) -> Result<Page<Message>> {
        self.reading_turns(|turns| turns.page(session, page))
            .map(|page| page.map(Fold::into_message))
    }

    /// Returns the head of a session: its generation and its first and last event.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Error, NewEvent, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// assert!(matches!(log.head(&session), Err(Error::UnknownSession { .. })));
    /// log.append(&session, NewEvent::new("note", "{}"))?;
    /// assert_eq!(log.head(&session)?.last, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`] when it has no event; [`Error::Corrupt`] and [`Error::Io`] when
    /// what is stored cannot be read; [`Error::Closed`].
    pub fn head(&self, session: &SessionId) -> Result<Head> {
        let state = self.reading(|store| store.known_state(session))?;
        state.head().ok_or_else(|| Error::UnknownSession {
            session: session.clone(),
        })
    }

    /// Lists sessions: by ID, by newest activity or by creation, in either direction.
    ///
    /// The list is exact and complete, and a page takes time in proportion to its length. A query
    /// with a filter looks at up to 10,000 sessions more for a page.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{NewEvent, SessionQuery};
    ///
    /// for session in ["a", "b", "c"] {
    ///     log.append(&session.parse()?, NewEvent::new("note", "{}"))?;
    /// }
    /// let first = log.sessions(SessionQuery::by_id().limit(2))?;
    /// let rest = log.sessions(first.next_page().expect("there is one more"))?;
    /// assert_eq!(rest.items[0].id.as_str(), "c");
    /// let newest = log.sessions(SessionQuery::by_activity().limit(1))?;
    /// assert_eq!(newest.items[0].id.as_str(), "c");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] and [`Error::TooLarge`] for what the query asks; [`Error::Corrupt`] and
    /// [`Error::Io`] when what is stored cannot be read; [`Error::Closed`].
    pub fn sessions(&self, query: SessionQuery) -> Result<SessionPage> {
        self.reading(|store| store.sessions(query))
    }

    /// Shows what another process has made durable since a log was [opened read-only], or refreshed
    /// last. Returns the ID of the newest event or change that is shown, or `None` without one.
    ///
    /// When this returns `Ok`, every append that had returned before the call is shown, and streams
    /// and feeds go on. An event with an ID up to the returned one is shown, unless it was removed.
    /// What was shown stays, but for what was removed.
    ///
    /// It reads the manifest, and the journal from where it ended the last time. It never waits for
    /// the writer, and waits for reads that are under way on this handle and its clones.
    ///
    /// A log that is opened for writing shows everything at once. There this only returns the ID.
    ///
    /// [opened read-only]: Options::open_read_only
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// use sessionlog::{NewEvent, Options, SessionId, SessionLog};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// let writer = SessionLog::open(dir.path())?; // In another process, say.
    /// let reader = Options::new().open_read_only(dir.path())?;
    /// let ack = writer.append(&session, NewEvent::new("note", "{}"))?;
    /// assert!(reader.head(&session).is_err());
    /// assert_eq!(reader.refresh()?, Some(ack.events[0].id));
    /// assert_eq!(reader.head(&session)?.last, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`], [`Error::Unsupported`] and [`Error::Io`]: what is shown stays, and the
    /// call may be repeated. [`Error::Displaced`] when another log has taken the place of this one.
    /// [`Error::Closed`].
    pub fn refresh(&self) -> Result<Option<EventId>> {
        self.store()?;
        self.engine.refresh()
    }

    /// Returns the log's metrics.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Checks that the log is in service.
    ///
    /// It is when it is open, no write has failed, and the system does not refuse what appends
    /// need.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// log.health()?;
    /// log.close()?;
    /// assert!(log.health().is_err());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Closed`]. [`Error::Poisoned`], while reads still work. [`Error::NoSpace`],
    /// [`Error::Stalled`] and [`Error::Refused`] when background work has been refused for longer
    /// than [`stall_wait`](Options::stall_wait): appends fail, or will when the remaining room is
    /// used up. Over PostgreSQL it makes a commit, and blocks for it: [`Error::Stalled`] if that is
    /// not on a quorum after two seconds.
    pub fn health(&self) -> Result<()> {
        self.store()?;
        self.engine.health()
    }

    /// Checks for what only opening the log again mends, and waits for nothing.
    #[cfg(feature = "http")]
    pub(crate) fn check_usable(&self) -> Result<()> {
        self.store()?;
        self.engine.check_usable()
    }

    /// Closes the log, for all handles. Closing again does nothing.
    ///
    /// Appends that have joined a group are answered first, and streams end. The clean stop is
    /// recorded, so the next open has nothing to recover.
    ///
    /// Takes milliseconds, plus the removal of surplus journal files after a burst. It waits for
    /// appends that are blocked on space, at most [`stall_wait`](Options::stall_wait).
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// use sessionlog::{NewEvent, SessionLog};
    ///
    /// let log = SessionLog::open(dir.path())?;
    /// log.append(&"sess_123".parse()?, NewEvent::new("note", "{}"))?;
    /// log.close()?;
    /// assert!(SessionLog::open(dir.path())?.stats().recovery.clean);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// The log is closed in any case, and every acknowledged batch is found by the next open.
    /// [`Error::Poisoned`] when a write had failed before. [`Error::Displaced`] when the folder is
    /// no longer where it was. [`Error::Io`] when the clean stop could not be recorded, or when a
    /// surplus journal file could not be removed.
    pub fn close(&self) -> Result<()> {
        self.engine.close()
    }

    /// Returns the store to read from, also of a log that is closed.
    fn reader(&self) -> &Arc<Store> {
        self.engine.turns().store()
    }

    /// Returns the store to read from, while the log is open.
    fn store(&self) -> Result<&Arc<Store>> {
        let store = self.reader();
        store.check_open().map(|()| store)
    }

    /// Reads from the store as of one refresh.
    fn reading<T>(&self, read: impl FnOnce(&Arc<Store>) -> Result<T>) -> Result<T> {
        let store = self.store()?;
        store.at_rest(|| read(store))
    }

    /// Reads turns as of one refresh.
    fn reading_turns<T>(&self, read: impl FnOnce(&TurnReader) -> Result<T>) -> Result<T> {
        self.reading(|_store| read(self.engine.turns()))
    }
}

impl std::fmt::Debug for SessionLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionLog")
            .field("closed", &self.reader().is_closed())
            .finish_non_exhaustive()
    }
}
