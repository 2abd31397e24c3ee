//! What an adapter of another protocol needs besides the public calls.

use crate::engine::{Engine, Made};
use crate::log::SessionLog;
use crate::model::{Batch, Limits, Result, SessionId, SessionInfo, now_ms};
use crate::write::{Landed, Outcome};

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
        let engine = &self.handle.engine;
        let landed = engine.call_once(as_read(engine, read, batch)?)?;
        Ok(unless_outdated(landed))
    }

    /// Does the same without blocking a thread, as [`append_async`](Self::append_async) does.
    pub(crate) async fn append_as_read_async(
        &self,
        read: &SessionInfo,
        batch: Batch,
    ) -> Result<Option<Landed>> {
        let engine = &self.handle.engine;
        let landed = engine
            .call_once_async(as_read(engine, read, batch)?)
            .await?;
        Ok(unless_outdated(landed))
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
}

fn as_read(engine: &Engine, read: &SessionInfo, mut batch: Batch) -> Result<Made> {
    batch.based_on = Some((read.generation, read.revision));
    Engine::append_of(&read.id, batch)(engine)
}

fn unless_outdated(landed: Landed) -> Option<Landed> {
    (!matches!(landed.outcome, Outcome::Outdated)).then_some(landed)
}
