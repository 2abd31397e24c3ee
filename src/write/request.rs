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

use crate::codec::{EncodedBatch, Record, Version};
use crate::index::Locator;
use crate::model::{Batch, Error, EventId, Expected, Options, Result, Seq, SessionId, now_ms};
use crate::recent::{EntryState, SessionPin};
use crate::sync::Deadline;
use crate::write::shared::Shared;
use crate::write::ticket::{Answer, Landed, Outcome, Ticket};

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
    /// The version of the session that its changes were made for.
    pub based_on: Option<Version>,
    /// The last seq of the session then.
    pub based_on_tail: Option<Seq>,
    /// The result of a scan for excluded events.
    pub scanned: Option<Scanned>,
    parent: Option<Parent>,
    sealed: SealedKey,
}

/// The session to be forked, with the version that its fork was made for.
pub(crate) struct Parent {
    pub session: SessionPin,
    pub version: Version,
}

/// The result of a scan for events that a batch excludes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scanned {
    Found {
        event: EventId,
        seq: Seq,
    },
    /// There is none up to this seq.
    Nothing {
        generation: u32,
        through: Seq,
    },
}

/// The lookups that were made for a batch.
#[derive(Default)]
pub(crate) struct Prepared {
    pub scanned: Option<Scanned>,
    pub parent: Option<Parent>,
}

/// The result of looking up an idempotency key in the segments.
#[derive(Default)]
pub(crate) struct SealedKey {
    /// The record that was committed under the key.
    record: Option<Arc<Record>>,
    /// The entry's [`keys_released`](EntryState::keys_released) before the lookup.
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
        prepared: Prepared,
        ticket: &Arc<Ticket>,
    ) -> Result<Self> {
        let deadline = Deadline::after(options.stall_wait);
        batch.check(&options.limits)?;
        let expected = batch.expected.clone();
        let (based_on, based_on_tail) = (batch.based_on, batch.based_on_tail);
        let batch = EncodedBatch::new(session, batch);
        let entry = shared
            .recent
            .sessions
            .pin(session, || shared.locator.state(session))
            .map_err(Error::before_append)?;
        let request = Self {
            batch,
            expected,
            created_ms: now_ms(&options.clock),
            session: entry,
            deadline,
            answer: Answer::owed_to(ticket),
            based_on,
            based_on_tail,
            scanned: prepared.scanned,
            parent: prepared.parent,
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
        let (generation, is_there, as_of) = (
            state.durable.generation,
            state.durable.is_there(),
            state.keys_released,
        );
        let is_recent = self.recent_record(&state, generation).is_some();
        drop(state);
        let session = self.session.id();
        let record = if is_there && !is_recent {
            locator
                .record_of_key(session, generation, &key.text)
                .map_err(Error::before_append)?
        } else {
            None
        };
        self.sealed = SealedKey {
            record: record.map(Arc::new),
            as_of,
        };
        Ok(self)
    }

    /// Whether the key's record may have left memory for a segment since the lookup.
    pub(crate) fn is_stale(&self) -> bool {
        if self.batch.key().is_none() {
            return false;
        }
        let state = self.session.lock();
        let generation = state.assigned().generation;
        self.recent_record(&state, generation).is_none() && state.keys_released != self.sealed.as_of
    }

    /// Whether the session to be forked is no longer as it was.
    pub(crate) fn parent_has_changed(&self) -> bool {
        self.parent.as_ref().is_some_and(|parent| {
            let state = parent.session.lock();
            !state.assigned().is_there() || state.assigned().version() != parent.version
        })
    }

    /// Returns the answer for a key that was used before in this generation and whose batch is
    /// kept.
    pub(crate) fn replay(&self, entry: &EntryState) -> Option<Result<Landed>> {
        let key = self.batch.key()?;
        let state = entry.assigned();
        let sealed = self.sealed.record.as_ref();
        let record = self
            .recent_record(entry, state.generation)
            .or(sealed.filter(|record| record.generation == state.generation))
            .filter(|record| state.is_there() && record.first >= state.first)?;
        let stored = record.key.as_ref().map(|stored| stored.fingerprint);
        if stored == Some(key.fingerprint) {
            let outcome = Outcome::Replay(Arc::clone(record));
            return Some(Ok(Landed::without_record(outcome, state)));
        }
        Some(Err(Error::IdempotencyConflict {
            session: self.session.id().clone(),
            key: key.text.to_string(),
            first_seq: record.first,
        }))
    }

    /// Returns the recent record that this generation appended under the request's key.
    fn recent_record<'a>(&self, entry: &'a EntryState, generation: u32) -> Option<&'a Arc<Record>> {
        entry
            .record_of_key(&self.batch.key()?.text)
            .filter(|record| record.generation == generation)
    }
}
