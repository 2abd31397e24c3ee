//! A batch on its way to the commit section, and the protocol of idempotency keys.
//!
//! A key that is not in memory is looked up in the segments before the section decides, since the
//! section does no I/O. Meanwhile records with keys may leave memory: for a segment, or because
//! they could not be written. The entry counts these, and a request keeps the count from before its
//! lookup. If the count has changed, the request is stale and the key is looked up again.
//!
//! Invariant: the section decides on a keyed request only if the segments as looked up and the
//! entry together cover every batch of the session.

use std::sync::Arc;

use crate::codec::{Record, SessionState};
use crate::index::Locator;
use crate::model::{Error, Options, Result, Seq, now_ms};
use crate::recent::{EntryState, SessionPin};
use crate::sync::Deadline;
use crate::write::decide::Known;
use crate::write::proposal::Proposal;
use crate::write::shared::Shared;
use crate::write::ticket::{Answer, Ticket};

/// A proposal on its way to the commit section of the embedded engine.
pub(crate) struct Request {
    pub proposal: Proposal,
    /// When the request was made, by the wall clock.
    pub created_ms: u64,
    pub session: SessionPin,
    /// How long the request may wait for room.
    pub deadline: Deadline,
    pub answer: Answer,
    /// The entry of the session to be forked.
    parent: Option<SessionPin>,
    sealed: SealedKey,
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
    /// Loads the state that the commit section decides by. May read from the disk.
    pub(crate) fn new(
        shared: &Shared,
        options: &Options,
        proposal: Proposal,
        ticket: &Arc<Ticket>,
    ) -> Result<Self> {
        let deadline = Deadline::after(options.stall_wait);
        let pin = |session| {
            shared
                .recent
                .sessions
                .pin(session, || shared.locator.state(session))
                .map_err(Error::before_append)
        };
        let session = pin(proposal.session())?;
        let parent = proposal.parent.as_ref();
        let parent = parent.map(|parent| pin(&parent.session)).transpose()?;
        let request = Self {
            proposal,
            created_ms: now_ms(&options.clock),
            session,
            deadline,
            answer: Answer::owed_to(ticket),
            parent,
            sealed: SealedKey::default(),
        };
        request.with_key_looked_up(&shared.locator)
    }

    /// Returns a request that found its key in memory, and so was not looked up.
    #[cfg(all(test, shuttle))]
    pub(super) fn found_in_memory(session: SessionPin, batch: crate::model::Batch) -> Self {
        let proposal = Proposal::new(&Options::new().limits, session.id(), batch);
        Self {
            proposal: proposal.expect("a batch within the limits"),
            created_ms: 0,
            session,
            deadline: Deadline::NEVER,
            answer: Answer::owed_to(&Arc::default()),
            parent: None,
            sealed: SealedKey::default(),
        }
    }

    /// Looks up the request's key in the segments, if it has one that is not in memory.
    pub(crate) fn with_key_looked_up(mut self, locator: &Locator) -> Result<Self> {
        let Some(key) = self.proposal.batch.key() else {
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

    /// Whether the key's record may have left memory for a segment since the lookup, given the
    /// entry that is decided by. Sealing may change that as soon as it is unlocked.
    pub(crate) fn is_stale(&self, entry: &EntryState) -> bool {
        let generation = entry.assigned().generation;
        self.proposal.batch.key().is_some()
            && self.recent_record(entry, generation).is_none()
            && entry.keys_released != self.sealed.as_of
    }

    /// Whether the session to be forked is no longer as it was.
    pub(crate) fn parent_has_changed(&self) -> bool {
        self.parent
            .as_ref()
            .is_some_and(|parent| self.proposal.parent_has_changed(parent.lock().assigned()))
    }

    /// Returns the recent record that this generation appended under the request's key.
    fn recent_record<'a>(&self, entry: &'a EntryState, generation: u32) -> Option<&'a Arc<Record>> {
        entry
            .record_of_key(&self.proposal.batch.key()?.text)
            .filter(|record| record.generation == generation)
    }
}

/// What is known of a request's session: its entry, and what was looked up before.
pub(crate) struct InMemory<'a> {
    pub request: &'a Request,
    pub entry: &'a EntryState,
}

impl Known for InMemory<'_> {
    fn state(&self) -> &SessionState {
        self.entry.assigned()
    }

    fn record_of_key(&self) -> Option<&Arc<Record>> {
        let generation = self.entry.assigned().generation;
        let sealed = self.request.sealed.record.as_ref();
        self.request
            .recent_record(self.entry, generation)
            .or(sealed.filter(|record| record.generation == generation))
    }

    fn records_after(&self, seq: Seq) -> Option<impl Iterator<Item = &Arc<Record>>> {
        self.entry.assigned_after(seq)
    }
}
