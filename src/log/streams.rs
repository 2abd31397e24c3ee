//! What an adapter of another protocol needs besides the public calls.

use std::future::Future;
use std::sync::Arc;

use crate::engine::Engine;
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
        mut batch: Batch,
    ) -> impl Future<Output = Result<Option<Landed>>> + Send + use<> {
        batch.based_on = Some((read.generation, read.revision));
        let engine = Arc::clone(&self.handle.engine);
        let mut make = Engine::append_of(&read.id, batch);
        async move {
            let landed = engine.call_once(make(&engine)?).await?;
            Ok((!matches!(landed.outcome, Outcome::Outdated)).then_some(landed))
        }
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
