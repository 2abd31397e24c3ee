//! A batch on its way to the commit section, and the protocol of idempotency keys.
//!
//! A key that is not in memory is looked up in the segments before the section decides, since the
//! section does no I/O. Meanwhile records with keys may leave memory for a segment. The entry
//! counts these, and a request keeps the count from before its lookup. If the count has changed,
//! the request is stale and the key is looked up again.
//!
//! Invariant: the section decides on a keyed request only if the segments as looked up and the
//! entry together cover every batch of the session.

use std::sync::Arc;

use crate::codec::{EncodedBatch, Record};
use crate::index::Locator;
use crate::model::{Batch, Error, Expected, Options, Result, SessionId, now_ms};
use crate::recent::{SessionPin, SessionState};
use crate::sync::Deadline;
use crate::write::shared::Shared;
use crate::write::ticket::{Answer, Landed, Ticket};

/// A batch to append, with everything that the commit section needs to decide on it.
pub(crate) struct Request {
    pub batch: EncodedBatch,
    pub expected: Expected,
    /// When the request was made, by the wall clock.
    pub created_ms: u64,
    pub session: SessionPin,
    /// How long the request may wait for room.
    pub deadline: Deadline,
    pub answer: Answer,
    sealed: SealedKey,
}

/// The result of looking up an idempotency key in the segments.
#[derive(Default)]
pub(crate) struct SealedKey {
    /// The record that was committed under the key.
    record: Option<Arc<Record>>,
    /// The entry's [`keys_released`](SessionState::keys_released) before the lookup.
    as_of: u64,
}

impl Request {
    /// Checks and encodes a batch, and loads the state that the commit section decides by. May read
    /// from the disk.
    pub(crate) fn new(
        shared: &Shared,
        options: &Options,
        session: &SessionId,
        batch: Batch,
        ticket: &Arc<Ticket>,
    ) -> Result<Self> {
        let deadline = Deadline::after(options.stall_wait);
        batch.check(&options.limits)?;
        let expected = batch.expected;
        let batch = EncodedBatch::new(session, batch);
        let entry = shared
            .recent
            .sessions
            .pin(session, || shared.locator.head(session))
            .map_err(Error::before_append)?;
        let request = Self {
            batch,
            expected,
            created_ms: now_ms(&options.clock),
            session: entry,
            deadline,
            answer: Answer::owed_to(ticket),
            sealed: SealedKey::default(),
        };
        request.with_key_looked_up(&shared.locator)
    }

    /// Looks up the request's key in the segments, if it has one that is not in memory.
    pub(crate) fn with_key_looked_up(mut self, locator: &Locator) -> Result<Self> {
        let Some(key) = self.batch.key() else {
            return Ok(self);
        };
        let state = self.session.lock();
        let (head, is_recent, as_of) = (
            state.head,
            state.record_of_key(&key.text).is_some(),
            state.keys_released,
        );
        drop(state);
        let session = self.session.id();
        let record = match head {
            Some(head) if !is_recent => locator
                .record_of_key(session, head.generation, &key.text)
                .map_err(Error::before_append)?,
            _ => None,
        };
        self.sealed = SealedKey {
            record: record.map(Arc::new),
            as_of,
        };
        Ok(self)
    }

    /// Whether the key's record may have left memory for a segment since the lookup.
    pub(crate) fn is_stale(&self) -> bool {
        let Some(key) = self.batch.key() else {
            return false;
        };
        let state = self.session.lock();
        state.record_of_key(&key.text).is_none() && state.keys_released != self.sealed.as_of
    }

    /// Returns the answer for a key that was used before.
    pub(crate) fn replay(&self, state: &SessionState) -> Option<Result<Landed>> {
        let key = self.batch.key()?;
        let record = state
            .record_of_key(&key.text)
            .or(self.sealed.record.as_ref())?;
        let stored = record.key.as_ref().map(|stored| stored.fingerprint);
        if stored == Some(key.fingerprint) {
            return Some(Ok(Landed {
                record: Arc::clone(record),
                replayed: true,
            }));
        }
        Some(Err(Error::IdempotencyConflict {
            session: self.session.id().clone(),
            key: key.text.to_string(),
            first_seq: record.first,
        }))
    }
}
