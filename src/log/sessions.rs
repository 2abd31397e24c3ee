//! The calls on whole sessions: create, describe, close, fork, trim, redact, delete, compact.
//!
//! A change is durable when its call returns. Calls that change a session come in a blocking and in
//! an async form.

use std::future::Future;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use crate::backend::{self, Reads};
#[cfg(test)]
use crate::disk::Disk;
use crate::disk::{RealDisk, io_error};
use crate::log::SessionLog;
use crate::maintain::plan;
#[cfg(doc)]
use crate::model::Error;
use crate::model::{
    BackupReport, CompactProgress, Compacted, Cursor, Delete, Erasure, Event, EventId, Expected,
    Fork, NewSession, Op, Removed, Result, Retention, RetentionPlan, SessionId, SessionInfo,
    SessionPatch,
};

impl SessionLog {
    /// Creates a session without an event.
    ///
    /// A page of it is empty, and a stream of it waits. An append creates a session too, so this is
    /// for a session that needs a title or metadata before it has an event.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{NewSession, PageRequest, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// let new = NewSession::new().title("Refund").metadata(serde_json::json!({"agent": "a1"}));
    /// let info = log.create(&session, new)?;
    /// assert_eq!((info.last, info.title.as_deref()), (0, Some("Refund")));
    /// assert!(log.list(&session, PageRequest::new())?.items.is_empty());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::SessionExists`], with the session as it is. [`Error::Invalid`] and
    /// [`Error::TooLarge`] for the title and the metadata. Those of [`append`](Self::append). In
    /// all cases but [`Error::Io`] nothing was written.
    pub fn create(&self, session: &SessionId, new: NewSession) -> Result<SessionInfo> {
        let landed = backend::call(&*self.engine, backend::create_of(session, new))?;
        Ok(landed.state.info(session))
    }

    /// Creates a session as [`create`](Self::create) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`create`](Self::create).
    pub fn create_async(
        &self,
        session: &SessionId,
        new: NewSession,
    ) -> impl Future<Output = Result<SessionInfo>> + Send + use<> {
        let (engine, session) = (Arc::clone(&self.engine), session.clone());
        let make = backend::create_of(&session, new);
        async move {
            let landed = backend::call_async(engine, make, Reads::Nothing).await?;
            Ok(landed.state.info(&session))
        }
    }

    /// Returns a session: its extent, title, metadata and standing.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`]; [`Error::Corrupt`] and [`Error::Io`] when what is stored cannot
    /// be read; [`Error::Closed`].
    pub fn session(&self, session: &SessionId) -> Result<SessionInfo> {
        self.reading(|store| Ok(store.known_state(session)?.info(session)))
    }

    /// Returns the forks of a session that still share events with it, in the order of their IDs.
    ///
    /// # Errors
    ///
    /// Those of [`session`](Self::session).
    pub fn forks(&self, session: &SessionId) -> Result<Vec<SessionInfo>> {
        let forks = self.reading(|store| {
            let state = store.known_state(session)?;
            store.forks(session, state.generation)
        })?;
        Ok(forks
            .into_iter()
            .map(|(fork, state)| state.info(&fork))
            .collect())
    }

    /// Sets the title, the metadata or the hold of a session. A JSON value alone is a merge patch
    /// of the metadata.
    ///
    /// A patch that changes nothing writes nothing.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{NewSession, SessionId, SessionPatch};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// log.create(&session, NewSession::new().metadata(serde_json::json!({"agent": "a1"})))?;
    /// log.set_metadata(&session, serde_json::json!({"agent": null, "team": "red"}))?;
    /// let info = log.set_metadata(&session, SessionPatch::new().title("Refund"))?;
    /// assert_eq!(serde_json::json!(info.metadata), serde_json::json!({"team": "red"}));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`]. [`Error::TooLarge`] when the metadata takes more than 16 KiB
    /// after the patch, and [`Error::Invalid`] when the patch is no object. Those of
    /// [`append`](Self::append). In all cases but [`Error::Io`] nothing was written.
    pub fn set_metadata(
        &self,
        session: &SessionId,
        patch: impl Into<SessionPatch>,
    ) -> Result<SessionInfo> {
        self.change(session, Op::Describe(patch.into()), Expected::Any)
    }

    /// Sets metadata as [`set_metadata`](Self::set_metadata) does, if the session ends as expected.
    ///
    /// # Errors
    ///
    /// Those of [`set_metadata`](Self::set_metadata), and [`Error::ExpectedMismatch`].
    pub fn set_metadata_if(
        &self,
        session: &SessionId,
        patch: impl Into<SessionPatch>,
        expected: Expected,
    ) -> Result<SessionInfo> {
        self.change(session, Op::Describe(patch.into()), expected)
    }

    /// Sets metadata as [`set_metadata_if`](Self::set_metadata_if) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`set_metadata_if`](Self::set_metadata_if).
    pub fn set_metadata_async<P: Into<SessionPatch>>(
        &self,
        session: &SessionId,
        patch: P,
        expected: Expected,
    ) -> impl Future<Output = Result<SessionInfo>> + Send + use<P> {
        self.change_async(session, Op::Describe(patch.into()), expected)
    }

    /// Closes a session. Closing it again changes nothing.
    ///
    /// A later append is [`Error::SessionClosed`]. A retry of an earlier append, by its idempotency
    /// key or its producer's number, still returns the stored events. Streams yield what is left,
    /// then [`StreamItem::Closed`](crate::StreamItem::Closed), and end.
    /// [`Batch::closing`](crate::Batch::closing) closes together with the last events.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`]. Those of [`append`](Self::append). In all cases but
    /// [`Error::Io`] nothing was written.
    pub fn close_session(&self, session: &SessionId) -> Result<SessionInfo> {
        self.change(session, Op::Close, Expected::Any)
    }

    /// Closes a session as [`close_session`](Self::close_session) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`close_session`](Self::close_session).
    pub fn close_session_async(
        &self,
        session: &SessionId,
    ) -> impl Future<Output = Result<SessionInfo>> + Send + use<> {
        self.change_async(session, Op::Close, Expected::Any)
    }

    /// Opens a closed session for appends again. On an open session it changes nothing.
    ///
    /// # Errors
    ///
    /// Those of [`close_session`](Self::close_session).
    pub fn reopen(&self, session: &SessionId) -> Result<SessionInfo> {
        self.change(session, Op::Reopen, Expected::Any)
    }

    /// Opens a closed session as [`reopen`](Self::reopen) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`reopen`](Self::reopen).
    pub fn reopen_async(
        &self,
        session: &SessionId,
    ) -> impl Future<Output = Result<SessionInfo>> + Send + use<> {
        self.change_async(session, Op::Reopen, Expected::Any)
    }

    /// Deletes a session: no reader, stream, feed or lookup shows anything of it again.
    ///
    /// Its IDs are unknown from then on, and its idempotency keys and producers are forgotten. Its
    /// streams yield [`StreamItem::Deleted`](crate::StreamItem::Deleted) and end. Forks keep what
    /// they share with it. The next append begins the next generation, at seq 1. The bytes leave
    /// the files of the log within [`erase_within`](crate::Options::erase_within).
    ///
    /// The feed yields [`Change::Deleted`](crate::Change::Deleted) with the reason.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Batch, Delete, Error, SessionId};
    ///
    /// let session: SessionId = "sess_123".parse()?;
    /// log.append(&session, Batch::new().user_message("hello"))?;
    /// let removed = log.delete(&session, Delete::new().reason("asked for by the user"))?;
    /// assert_eq!(removed.events, 1);
    /// assert!(matches!(log.head(&session), Err(Error::UnknownSession { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`], after a deletion too. [`Error::Held`],
    /// [`Error::ExpectedMismatch`], and [`Error::TurnOpen`] where
    /// [`unless_open`](Delete::unless_open) was said. Those of [`append`](Self::append). In all
    /// cases but [`Error::Io`] nothing was written.
    pub fn delete(&self, session: &SessionId, delete: Delete) -> Result<Removed> {
        let landed = backend::call(&*self.engine, backend::delete_of(session, delete))?;
        Ok(backend::removed(self.reader(), &landed))
    }

    /// Deletes a session as [`delete`](Self::delete) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`delete`](Self::delete).
    pub fn delete_async(
        &self,
        session: &SessionId,
        delete: Delete,
    ) -> impl Future<Output = Result<Removed>> + Send + use<> {
        let engine = Arc::clone(&self.engine);
        let make = backend::delete_of(session, delete);
        async move {
            let landed = backend::call_async(Arc::clone(&engine), make, Reads::Sessions).await?;
            Ok(backend::removed(engine.turns().store(), &landed))
        }
    }

    /// Removes the events of a session before a position. The event at the position is kept.
    ///
    /// Seqs stay as they are, and [`Head::first`](crate::Head::first) says where the session now
    /// begins. An older cursor is [`CursorProblem::Trimmed`](crate::CursorProblem::Trimmed). A turn
    /// whose opening was removed is unknown, and the idempotency keys of removed batches are
    /// forgotten. Forks keep what they share. A position before the first kept event removes
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`]. [`Error::Cursor`] for a position that the session does not have.
    /// Those of [`append`](Self::append). In all cases but [`Error::Io`] nothing was written.
    pub fn trim(&self, session: &SessionId, before: impl Into<Cursor>) -> Result<Removed> {
        let landed = backend::call(&*self.engine, backend::trim_of(session, before.into()))?;
        Ok(backend::removed(self.reader(), &landed))
    }

    /// Removes events as [`trim`](Self::trim) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`trim`](Self::trim).
    pub fn trim_async<C: Into<Cursor>>(
        &self,
        session: &SessionId,
        before: C,
    ) -> impl Future<Output = Result<Removed>> + Send + use<C> {
        let engine = Arc::clone(&self.engine);
        let make = backend::trim_of(session, before.into());
        async move {
            let landed = backend::call_async(Arc::clone(&engine), make, Reads::Sessions).await?;
            Ok(backend::removed(engine.turns().store(), &landed))
        }
    }

    /// Removes the data of an event and keeps its place.
    ///
    /// Seq, ID, type, turn and time stay. [`Event::redacted`] is then true and the data empty, for
    /// every reader and in every fork. A redacted event that is redacted again stays as it is.
    ///
    /// Returns the event without its data.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownEvent`]. [`Error::TooLarge`] when the reason is too long, or when the
    /// session has 1,000 redacted events. Those of
    /// [`append`](Self::append). In all cases but [`Error::Io`] nothing was written.
    pub fn redact(&self, event: EventId, reason: impl Into<String>) -> Result<Event> {
        let make = backend::redact_of(event, Some(reason.into()));
        backend::call(&*self.engine, make)?;
        self.event(event)
    }

    /// Removes the data of an event as [`redact`](Self::redact) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`redact`](Self::redact).
    pub fn redact_async<R: Into<String>>(
        &self,
        event: EventId,
        reason: R,
    ) -> impl Future<Output = Result<Event>> + Send + use<R> {
        let log = self.clone();
        let make = backend::redact_of(event, Some(reason.into()));
        async move {
            let engine = Arc::clone(&log.engine);
            backend::call_async(engine, make, Reads::Sessions).await?;
            if log.reader().records.reads_block() {
                let reader = Arc::clone(log.reader());
                return backend::aside(&reader, move || log.event(event)).await;
            }
            log.event(event)
        }
    }

    /// Creates a session whose first events are those of another one. Nothing is copied.
    ///
    /// The shared events have the same seqs, IDs and data in both. Later events, keys, producers
    /// and the closing are not shared. The title and the metadata are taken over unless the fork
    /// says otherwise. Trimming or deleting the parent does not change the fork.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// use sessionlog::{Fork, NewEvent, PageRequest, SessionId};
    ///
    /// let (parent, child): (SessionId, SessionId) = ("a".parse()?, "b".parse()?);
    /// for step in ["1", "2", "3"] {
    ///     log.append(&parent, NewEvent::new("step", step))?;
    /// }
    /// log.fork(Fork::new(&parent).at(2), &child)?;
    /// let ack = log.append(&child, NewEvent::new("step", "other"))?;
    /// assert_eq!(ack.first, 3);
    /// assert_eq!(log.list(&child, PageRequest::new())?.items.len(), 3);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::UnknownSession`] for the parent, and [`Error::SessionExists`] for the child.
    /// [`Error::Cursor`] for a fork point that the parent has not reached or has trimmed.
    /// [`Error::TooLarge`] when the fork would share events with more than 256 sessions. Those of
    /// [`append`](Self::append). In all cases but [`Error::Io`] nothing was written.
    pub fn fork(&self, fork: Fork, child: &SessionId) -> Result<SessionInfo> {
        let landed = backend::call(&*self.engine, backend::fork_of(fork, child))?;
        Ok(landed.state.info(child))
    }

    /// Creates a fork as [`fork`](Self::fork) does, without blocking a thread.
    ///
    /// # Errors
    ///
    /// Those of [`fork`](Self::fork).
    pub fn fork_async(
        &self,
        fork: Fork,
        child: &SessionId,
    ) -> impl Future<Output = Result<SessionInfo>> + Send + use<> {
        let (engine, child) = (Arc::clone(&self.engine), child.clone());
        let make = backend::fork_of(fork, &child);
        async move {
            let landed = backend::call_async(engine, make, Reads::Sessions).await?;
            Ok(landed.state.info(&child))
        }
    }

    /// Erases everything that was removed, and waits until it is done.
    ///
    /// It seals the journal, removes its used files, and writes each segment again that holds
    /// something removed. Appends and reads go on meanwhile. `progress` is called now and then, and
    /// may end the wait: then what is left is erased in the background, in time.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path())?;
    /// # use std::ops::ControlFlow;
    /// use sessionlog::{Delete, NewEvent};
    ///
    /// log.append(&"a".parse()?, NewEvent::new("note", "a word"))?;
    /// log.delete(&"a".parse()?, Delete::new())?;
    /// log.compact(|_progress| ControlFlow::Continue(()))?;
    /// assert_eq!(log.erasure()?.due, None);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::ReadOnly`], [`Error::Closed`], [`Error::Poisoned`]. [`Error::Io`],
    /// [`Error::NoSpace`] and [`Error::Refused`] when the disk refuses a call: nothing is lost, and
    /// it is tried again in the background.
    pub fn compact(
        &self,
        mut progress: impl FnMut(CompactProgress) -> ControlFlow<()>,
    ) -> Result<Compacted> {
        self.store()?;
        self.engine.compact(&mut progress)
    }

    /// Returns what a retention for all sessions would remove at this moment. Sessions with a
    /// retention of their own count by that.
    ///
    /// It reads every session, and takes seconds for a million of them.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] for a limit of 0; [`Error::Corrupt`] and [`Error::Io`] when what is
    /// stored cannot be read; [`Error::Closed`].
    pub fn plan(&self, retention: Retention) -> Result<RetentionPlan> {
        plan(self.store()?, retention)
    }

    /// Makes `folder` a copy of the log as of now, while appends go on.
    ///
    /// The journal is sealed first. Segments are linked where the file system can, and copied
    /// otherwise. Into the folder of an earlier backup only what is new comes. The copy opens as a
    /// log. A crash meanwhile leaves this log as it is, and in the folder the earlier backup, one
    /// that does not open, or none.
    ///
    /// What was removed here after a backup is in the backup until it is made again.
    ///
    /// ```
    /// # let dir = tempfile::tempdir()?;
    /// # let log = sessionlog::SessionLog::open(dir.path().join("log"))?;
    /// # let copy = dir.path().join("backup");
    /// use sessionlog::{NewEvent, SessionLog};
    ///
    /// log.append(&"a".parse()?, NewEvent::new("note", "{}"))?;
    /// log.backup(&copy)?;
    /// assert_eq!(SessionLog::open(&copy)?.stats().events, 1);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the folder holds another log, [`Error::Locked`] when it is open.
    /// [`Error::ReadOnly`], [`Error::Closed`], [`Error::Poisoned`]. [`Error::Io`] when the system
    /// refuses a call: the backup may be made again.
    pub fn backup(&self, folder: impl AsRef<Path>) -> Result<BackupReport> {
        self.store()?;
        let folder = folder.as_ref();
        let absolute = std::path::absolute(folder).map_err(io_error("find", folder))?;
        self.engine.backup(Arc::new(RealDisk::default()), &absolute)
    }

    /// Backs the log up as [`backup`](Self::backup) does, on a disk that a test owns.
    #[cfg(test)]
    pub(crate) fn backup_on(&self, disk: Arc<dyn Disk>, folder: &Path) -> Result<BackupReport> {
        self.store()?;
        self.engine.backup(disk, folder)
    }

    /// Returns when the removed bytes that are still stored have to be erased.
    ///
    /// A log that is open read-only answers by what its writer has recorded, and by its own
    /// [`erase_within`](crate::Options::erase_within).
    ///
    /// # Errors
    ///
    /// [`Error::Closed`].
    pub fn erasure(&self) -> Result<Erasure> {
        self.store()?;
        self.engine.erasure()
    }

    fn change(&self, session: &SessionId, op: Op, expected: Expected) -> Result<SessionInfo> {
        let make = backend::change_of(session, op, expected);
        let landed = backend::call(&*self.engine, make)?;
        Ok(landed.state.info(session))
    }

    fn change_async(
        &self,
        session: &SessionId,
        op: Op,
        expected: Expected,
    ) -> impl Future<Output = Result<SessionInfo>> + Send + use<> {
        let (engine, session) = (Arc::clone(&self.engine), session.clone());
        let make = backend::change_of(&session, op, expected);
        async move {
            let landed = backend::call_async(engine, make, Reads::Nothing).await?;
            Ok(landed.state.info(&session))
        }
    }
}
