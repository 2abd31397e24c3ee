//! A batch that was checked and encoded, with everything that its decision rests on beside the
//! state of its session.

use crate::codec::{EncodedBatch, SessionState, Version};
use crate::model::{Batch, EventId, Expected, Limits, Result, Seq, SessionId};

/// A batch to append.
pub(crate) struct Proposal {
    pub batch: EncodedBatch,
    pub expected: Expected,
    /// The version of the session that its changes were made for.
    pub based_on: Option<Version>,
    /// The last seq of the session then.
    pub based_on_tail: Option<Seq>,
    /// The result of a scan for excluded events.
    pub scanned: Option<Scanned>,
    /// The session to be forked.
    pub parent: Option<Parent>,
}

/// The session to be forked, with the version that its fork was made for.
#[derive(Debug, Clone)]
pub(crate) struct Parent {
    pub session: SessionId,
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

impl Proposal {
    /// Checks and encodes a batch.
    pub(crate) fn new(limits: &Limits, session: &SessionId, batch: Batch) -> Result<Self> {
        batch.check(limits)?;
        let expected = batch.expected.clone();
        let (based_on, based_on_tail) = (batch.based_on, batch.based_on_tail);
        Ok(Self {
            batch: EncodedBatch::new(session, batch),
            expected,
            based_on,
            based_on_tail,
            scanned: None,
            parent: None,
        })
    }

    pub(crate) fn session(&self) -> &SessionId {
        self.batch.session()
    }

    /// Returns the generation that was scanned for excluded events, and the seq up to which there
    /// is none.
    #[cfg(feature = "postgres")]
    pub(crate) fn scanned_through(&self) -> Option<(u32, Seq)> {
        match self.scanned? {
            Scanned::Nothing {
                generation,
                through,
            } => Some((generation, through)),
            Scanned::Found { .. } => None,
        }
    }

    /// Whether the session to be forked is no longer as it was, given its state.
    pub(crate) fn parent_has_changed(&self, state: &SessionState) -> bool {
        self.parent
            .as_ref()
            .is_some_and(|parent| !state.is_there() || state.version() != parent.version)
    }
}
