//! What an adapter of another protocol needs besides the public calls.
//!
//! Above all, changes of a session as it was read: they are decided by what was read, and do
//! nothing once that is no longer so. The session is then to be read again.

use crate::backend::{self, Made, Reads};
use crate::log::SessionLog;
use crate::model::{Batch, Delete, Error, Fork, Limits, Result, SessionId, SessionInfo, now_ms};
use crate::turn::TurnReader;
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
        let make = backend::append_of(&read.id, batch);
        self.change_as_read(read, Unless::Changed, make)
    }

    /// Does the same without blocking a thread, as [`append_async`](Self::append_async) does.
    pub(crate) async fn append_as_read_async(
        &self,
        read: &SessionInfo,
        batch: Batch,
    ) -> Result<Option<Landed>> {
        let reads = Reads::of_append(&batch);
        let make = as_read(read, Unless::Changed, backend::append_of(&read.id, batch));
        let (_, landed) = backend::call_once_async(&self.engine, make, reads).await;
        if matches!(&landed, Err(error) if may_be_outdated(error)) {
            let (log, read) = (self.clone(), read.clone());
            return backend::aside(self.reader(), move || log.unless_outdated(&read, landed)).await;
        }
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
        let make = backend::append_of(&read.id, batch.closing());
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
        let make = backend::delete_of(&read.id, delete);
        Ok(self.change_as_read(read, unless, make)?.is_some())
    }

    /// Trims the events that a session had when it was read. `false`: it has changed since.
    ///
    /// # Errors
    ///
    /// Those of [`trim`](Self::trim), but for a session that is not there.
    pub(crate) fn trim_as_read(&self, read: &SessionInfo) -> Result<bool> {
        let make = backend::trim_of(&read.id, (read.last + 1).into());
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
        let mut make = backend::fork_of(fork, child);
        let mut make = |turns: &TurnReader| Ok(make(turns)?.for_parent_as_read(read));
        let landed = backend::call_once(&*self.engine, &mut make);
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
        self.reader().options.limits
    }

    /// The wall clock of the log, in milliseconds.
    pub(crate) fn now_ms(&self) -> u64 {
        now_ms(&self.reader().options.clock)
    }

    fn change_as_read(
        &self,
        read: &SessionInfo,
        unless: Unless,
        make: impl FnMut(&TurnReader) -> Result<Made>,
    ) -> Result<Option<Landed>> {
        let landed = backend::call_once(&*self.engine, &mut as_read(read, unless, make));
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
            Err(error) if may_be_outdated(&error) && !self.is_as_read(read)? => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn is_as_read(&self, read: &SessionInfo) -> Result<bool> {
        let state = self.reading(|store| store.state(&read.id))?;
        Ok(state.is_there() && state.version() == (read.generation, read.revision))
    }
}

/// Makes a change for a session as it was read.
fn as_read<M: FnMut(&TurnReader) -> Result<Made>>(
    read: &SessionInfo,
    unless: Unless,
    mut make: M,
) -> impl FnMut(&TurnReader) -> Result<Made> + use<M> {
    let read = read.clone();
    move |turns| {
        let change = make(turns)?.for_session_as_read(&read);
        Ok(match unless {
            Unless::Changed => change,
            Unless::ChangedOrLonger => change.at(read.last),
        })
    }
}

/// Whether a change may be refused only because the session is not the one that was read.
fn may_be_outdated(error: &Error) -> bool {
    matches!(error, Error::UnknownSession { .. } | Error::Cursor { .. })
}
