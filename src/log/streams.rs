//! What an adapter of another protocol needs besides the public calls.
//!
//! Above all, changes of a session as it was read: they are decided by what was read, and do
//! nothing once that is no longer so. The session is then to be read again.

use crate::engine::{Engine, Made};
use crate::log::SessionLog;
use crate::model::{Batch, Delete, Error, Fork, Limits, Result, SessionId, SessionInfo, now_ms};
use crate::write::{Landed, Outcome};

/// How much of a session has to be as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unless {
    /// All but its events.
    Changed,
    /// Its events too.
    ChangedOrLonger,
}

impl SessionLog {
    /// Appends a batch that was made for a session as it was read.
    ///
    /// `None`: nothing was written, because the session has changed otherwise than by events since.
    /// Replays come first, as [`Batch::producer`] says.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Self::append).
    pub(crate) fn append_as_read(
        &self,
        read: &SessionInfo,
        batch: Batch,
    ) -> Result<Option<Landed>> {
        self.change_as_read(read, Unless::Changed, Engine::append_of(&read.id, batch))
    }

    /// Does the same without blocking a thread, as [`append_async`](Self::append_async) does.
    pub(crate) async fn append_as_read_async(
        &self,
        read: &SessionInfo,
        batch: Batch,
    ) -> Result<Option<Landed>> {
        let engine = &self.handle.engine;
        let made = Engine::append_of(&read.id, batch)(engine)?;
        let landed = engine.call_once_async(made.for_session_as_read(read)).await;
        self.unless_outdated(read, landed)
    }

    /// Closes a session that was read, and changes its details as the batch says. Returns it as it
    /// is then.
    ///
    /// `None`: nothing was written, because the session has changed since, or was deleted.
    ///
    /// # Errors
    ///
    /// Those of [`append`](Self::append).
    pub(crate) fn close_as_read(
        &self,
        read: &SessionInfo,
        unless: Unless,
        batch: Batch,
    ) -> Result<Option<SessionInfo>> {
        let make = Engine::append_of(&read.id, batch.closing());
        let landed = self.change_as_read(read, unless, make)?;
        Ok(landed.map(|landed| landed.state.info(&read.id)))
    }

    /// Deletes a session that was read. `false`: it has changed since, or was deleted.
    ///
    /// # Errors
    ///
    /// Those of [`delete`](Self::delete), but for a session that is not there.
    pub(crate) fn delete_as_read(
        &self,
        read: &SessionInfo,
        unless: Unless,
        delete: Delete,
    ) -> Result<bool> {
        let make = Engine::delete_of(&read.id, delete);
        Ok(self.change_as_read(read, unless, make)?.is_some())
    }

    /// Trims the events that a session had when it was read. `false`: it has changed since.
    ///
    /// # Errors
    ///
    /// Those of [`trim`](Self::trim), but for a session that is not there.
    pub(crate) fn trim_as_read(&self, read: &SessionInfo) -> Result<bool> {
        let make = Engine::trim_of(&read.id, (read.last + 1).into());
        Ok(self.change_as_read(read, Unless::Changed, make)?.is_some())
    }

    /// Forks a session that was read. `None`: it has changed since otherwise than by events, or was
    /// deleted.
    ///
    /// # Errors
    ///
    /// Those of [`fork`](Self::fork), but for a parent that is not there.
    pub(crate) fn fork_as_read(
        &self,
        read: &SessionInfo,
        fork: Fork,
        child: &SessionId,
    ) -> Result<Option<SessionInfo>> {
        let engine = &self.handle.engine;
        let made = Engine::fork_of(fork, child)(engine);
        let landed = made.and_then(|made| engine.call_once(made.for_parent_as_read(read)));
        let landed = self.unless_outdated(read, landed)?;
        Ok(landed.map(|landed| landed.state.info(child)))
    }

    /// Returns the epoch and the last number of a producer that the session remembers.
    ///
    /// # Errors
    ///
    /// Those of [`session`](Self::session).
    pub(crate) fn producer_of(
        &self,
        session: &SessionId,
        producer: &str,
    ) -> Result<Option<(u64, Option<u64>)>> {
        let state = self.reading(|store| store.known_state(session))?;
        Ok(state
            .producer(producer)
            .map(|known| (known.epoch, known.seq)))
    }

    pub(crate) fn limits(&self) -> Limits {
        self.handle.engine.store.options.limits
    }

    /// The wall clock of the log, in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        now_ms(&self.handle.engine.store.options.clock)
    }

    fn change_as_read(
        &self,
        read: &SessionInfo,
        unless: Unless,
        mut change: impl FnMut(&Engine) -> Result<Made>,
    ) -> Result<Option<Landed>> {
        let engine = &self.handle.engine;
        let landed = change(engine).and_then(|made| {
            let made = made.for_session_as_read(read);
            engine.call_once(match unless {
                Unless::Changed => made,
                Unless::ChangedOrLonger => made.at(read.last),
            })
        });
        self.unless_outdated(read, landed)
    }

    /// Tells a change that came too late from one that is refused. What is refused may be so
    /// because the session is not the one that was read.
    fn unless_outdated(
        &self,
        read: &SessionInfo,
        landed: Result<Landed>,
    ) -> Result<Option<Landed>> {
        match landed {
            Ok(landed) => {
                let is_outdated = matches!(landed.outcome, Outcome::Outdated);
                Ok((!is_outdated).then_some(landed))
            }
            Err(Error::UnknownSession { .. } | Error::Cursor { .. })
                if !self.is_as_read(read)? =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn is_as_read(&self, read: &SessionInfo) -> Result<bool> {
        let state = self.reading(|store| store.state(&read.id))?;
        Ok(state.is_there() && state.version() == (read.generation, read.revision))
    }
}
