//! The arguments and the answers of calls on a whole session.

use jiff::Timestamp;
use serde::Serialize;
use serde_json::Value;

use crate::model::batch::{Batch, Expected};
use crate::model::change::{Metadata, SessionPatch};
use crate::model::error::{Error, Limit, Result, check_limit};
use crate::model::ids::{EventId, Seq};
use crate::model::session::{Cursor, SessionId};

/// The longest ID of a producer, in bytes.
const PRODUCER_BYTES_MAX: usize = 256;

/// A session to [create](crate::SessionLog::create).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "nothing is created until it is passed to `create`"]
pub struct NewSession {
    pub(crate) patch: SessionPatch,
}

impl NewSession {
    /// A session without title and metadata.
    pub fn new() -> Self {
        Self::default()
    }

    /// Gives it a title: at most 1,024 bytes, without control characters.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.patch = self.patch.title(title);
        self
    }

    /// Gives it metadata: a JSON object of at most 16 KiB.
    pub fn metadata(mut self, metadata: impl Into<Value>) -> Self {
        self.patch = self.patch.metadata(metadata);
        self
    }
}

/// How to [delete](crate::SessionLog::delete) a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "nothing is deleted until it is passed to `delete`"]
pub struct Delete {
    pub(crate) expected: Expected,
    pub(crate) reason: Option<String>,
    pub(crate) unless_open: bool,
}

impl Delete {
    /// Deletes without a condition.
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes only if the session's last seq is as expected.
    pub fn expected(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// Keeps a reason with the record of the removal: at most 256 bytes, without control
    /// characters. The feed yields it.
    pub fn reason(mut self, reason: impl Into<String>) -> Self {
        self.reason = Some(reason.into());
        self
    }

    /// Refuses with [`Error::TurnOpen`] while the newest turn has no final status.
    pub fn unless_open(mut self) -> Self {
        self.unless_open = true;
        self
    }
}

/// The extent of a removal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Removed {
    /// The events that no reader sees any more.
    pub events: u64,
    /// The bytes of these events, as [`SessionInfo::bytes`] counts them.
    pub bytes: u64,
    /// When the last file of the log will be free of them, as long as the log is open.
    pub erased_by: Timestamp,
}

/// How far [`compact`](crate::SessionLog::compact) has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct CompactProgress {
    /// Segments written so far.
    pub segments: u64,
    /// Estimate of the segments that the store has yet to write.
    pub segments_left: u64,
}

/// The result of [`compact`](crate::SessionLog::compact).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Compacted {
    /// Segments written.
    pub segments: u64,
    /// Bytes of segments before.
    pub bytes_before: u64,
    /// Bytes of segments after.
    pub bytes_after: u64,
}

/// What a [`backup`](crate::SessionLog::backup) did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct BackupReport {
    /// The segments of the copy.
    pub segments: u64,
    /// Bytes of segments that were linked: they share the disk's blocks with the log.
    pub linked_bytes: u64,
    /// Bytes of segments that were copied.
    pub copied_bytes: u64,
}

/// The removed bytes that are not erased yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Erasure {
    /// When the next bytes have to be gone. `None` if nothing removed is stored.
    pub due: Option<Timestamp>,
    /// Whether that time has passed.
    pub overdue: bool,
    /// The events that were removed and are still stored in segments, by estimate.
    pub events: u64,
}

/// A fork of a session: where it branches off, and what is different in it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "nothing is forked until it is passed to `fork`"]
pub struct Fork {
    pub(crate) parent: SessionId,
    pub(crate) at: Option<ForkPoint>,
    pub(crate) patch: SessionPatch,
    /// What the fork gets behind the shared events, in the same step.
    pub(crate) first: Batch,
}

/// The last event that a fork shares with its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ForkPoint {
    At(Cursor),
    Before(Cursor),
}

impl Fork {
    /// Forks `parent` at its end.
    pub fn new(parent: &SessionId) -> Self {
        Self {
            parent: parent.clone(),
            at: None,
            patch: SessionPatch::new(),
            first: Batch::new(),
        }
    }

    /// Forks behind the event at a position. The event there is the last that both share.
    pub fn at(mut self, cursor: impl Into<Cursor>) -> Self {
        self.at = Some(ForkPoint::At(cursor.into()));
        self
    }

    /// Forks in front of the event at a position. The event there is not shared.
    pub fn before(mut self, cursor: impl Into<Cursor>) -> Self {
        self.at = Some(ForkPoint::Before(cursor.into()));
        self
    }

    /// Appends the events and changes of a batch to the fork, in one step with its creation.
    #[cfg(feature = "durable-streams")]
    pub(crate) fn then(mut self, first: Batch) -> Self {
        self.first = first;
        self
    }

    /// Gives the fork a title instead of the parent's.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.patch = self.patch.title(title);
        self
    }

    /// Applies a JSON merge patch to the metadata that the fork takes over from the parent.
    pub fn metadata(mut self, patch: impl Into<Value>) -> Self {
        self.patch = self.patch.metadata(patch);
        self
    }
}

/// The writer of a batch, for retries that are told by position and for fencing.
///
/// ```
/// use sessionlog::{Batch, NewEvent, Producer};
///
/// let step = Batch::from(NewEvent::new("step", "{}"))
///     .producer(Producer::new("worker-1").epoch(3).seq(41));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Producer {
    pub(crate) id: String,
    pub(crate) epoch: u64,
    pub(crate) seq: Option<u64>,
}

impl Producer {
    /// A producer of epoch 0: its ID has 1 to 256 bytes.
    #[must_use]
    pub fn new(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            epoch: 0,
            seq: None,
        }
    }

    /// The epoch. A batch of a lower epoch than the session has seen from this producer is
    /// refused with [`Error::Fenced`].
    #[must_use]
    pub fn epoch(mut self, epoch: u64) -> Self {
        self.epoch = epoch;
        self
    }

    /// The number of the batch in its epoch, from 0. A number that is not above the last one is a
    /// replay. Without a number the producer is a fence alone.
    #[must_use]
    pub fn seq(mut self, seq: u64) -> Self {
        self.seq = Some(seq);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.id.is_empty() {
            return Err(Error::invalid("producer ID", "it is empty"));
        }
        check_limit(Limit::ProducerBytes, self.id.len(), PRODUCER_BYTES_MAX)
    }
}

/// A session at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SessionInfo {
    /// Its ID.
    pub id: SessionId,
    /// How often it has begun: 1, and one more for each time that it was deleted before.
    pub generation: u32,
    /// The first seq that is kept. It is `last + 1` when no event is.
    pub first: Seq,
    /// The last seq; 0 when it has had no event.
    pub last: Seq,
    /// The ID of the event at `last`.
    pub last_id: Option<EventId>,
    /// The events that are kept.
    pub events: u64,
    /// The bytes of these events: data, types and a few bytes each.
    pub bytes: u64,
    /// When it was created, or got its first event.
    pub created_at: Timestamp,
    /// When it got its newest event. Before the first event, when it was created.
    pub active_at: Timestamp,
    /// Whether it is closed.
    pub closed: bool,
    /// Whether it is exempt from deletion and retention.
    pub hold: bool,
    /// Its title.
    pub title: Option<String>,
    /// Its metadata.
    pub metadata: Metadata,
    /// The session that it was forked from.
    pub parent: Option<ParentInfo>,
    /// Changes with every change that is no event.
    pub revision: u64,
}

/// The origin of a fork.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ParentInfo {
    /// The parent. It may have been deleted since.
    pub id: SessionId,
    /// The generation of the parent.
    pub generation: u32,
    /// The seq of the last event that both share.
    pub at: Seq,
}
