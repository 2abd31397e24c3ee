//! The state of a session besides its events: a fold over its records.
//!
//! Invariant: the fold is idempotent. A state knows the last record that it includes, and applying
//! that record again, or one before it, changes nothing. So it does not matter whether a record is
//! found in the journal, in a segment, or in both.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::Record;
use crate::model::{
    EventId, FIRST_SEQ, Head, Lineage, METADATA_BYTES_MAX, Metadata, Op, ParentInfo, Piece,
    Producer, Retention, Seq, SessionId, SessionInfo, SessionPatch, merge, read_text,
    read_text_if_any, timestamp,
};

/// The number of producers that a session remembers.
pub(crate) const PRODUCERS_MAX: usize = 64;

/// The number of redacted events that a session remembers.
pub(crate) const REDACTIONS_MAX: usize = 1_000;

/// The generation and the revision of a state. Both rise, and an append changes neither unless it
/// begins a generation.
pub(crate) type Version = (u32, u64);

/// Whether a session exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It was never created.
    #[default]
    Absent,
    Open,
    Closed,
    Deleted,
}

/// The state of a session as of one of its records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SessionState {
    pub standing: Standing,
    /// How often the session has begun.
    pub generation: u32,
    /// The first kept seq.
    pub first: Seq,
    /// The last seq; 0 before the first event.
    pub last: Seq,
    /// The ID of the event at `last`.
    pub last_id: EventId,
    /// The last ID of the last record that is included.
    pub through: EventId,
    /// The position of the session by activity: the ID of its newest event of its own, or of the
    /// record that created it.
    pub active_id: EventId,
    /// The position of the session by creation.
    pub created_id: EventId,
    pub created_ms: u64,
    pub active_ms: u64,
    /// The bytes of the kept events.
    pub bytes: u64,
    /// Rises with every record that changes more than the events.
    pub revision: u64,
    /// `None` for most sessions.
    pub details: Option<Arc<Details>>,
}

/// The parts of a state that most sessions do not have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Details {
    pub title: Option<String>,
    /// The metadata as the text of a JSON object; empty if it has no member.
    pub(crate) metadata: String,
    pub hold: bool,
    pub retention: Option<Retention>,
    pub lineage: Option<Lineage>,
    /// The redacted events, in order. Their data may still be stored.
    pub redacted: Vec<EventId>,
    /// The producers, the one used last at the end.
    pub producers: Vec<ProducerState>,
    /// Why and when a deleted session was deleted.
    pub removal: Option<Removal>,
}

/// The last batch of a producer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProducerState {
    #[serde(deserialize_with = "read_text")]
    pub id: String,
    pub epoch: u64,
    /// The number of its last numbered batch in this epoch.
    pub seq: Option<u64>,
    /// The seqs of that batch.
    pub first: Seq,
    pub last: Seq,
}

/// The deletion of a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Removal {
    #[serde(deserialize_with = "read_text_if_any")]
    pub reason: Option<String>,
    pub at_ms: u64,
}

impl Default for SessionState {
    /// The state of a session that was never created.
    fn default() -> Self {
        let none = EventId::from_u128(0);
        Self {
            standing: Standing::Absent,
            generation: 0,
            first: FIRST_SEQ,
            last: 0,
            last_id: none,
            through: none,
            active_id: none,
            created_id: none,
            created_ms: 0,
            active_ms: 0,
            bytes: 0,
            revision: 0,
            details: None,
        }
    }
}

impl SessionState {
    /// Whether the session can be read.
    pub(crate) fn is_there(&self) -> bool {
        matches!(self.standing, Standing::Open | Standing::Closed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.standing == Standing::Closed
    }

    /// Returns the head for readers, if the session can be read.
    pub(crate) fn head(&self) -> Option<Head> {
        self.is_there().then(|| Head {
            generation: self.generation,
            first: self.first,
            last: self.last,
            last_id: self.shown_last_id(),
        })
    }

    /// Returns the ID of the event at `last` for readers. A fork that shares no event may begin
    /// behind seq 0 without one.
    pub(crate) fn shown_last_id(&self) -> Option<EventId> {
        let none = EventId::from_u128(0);
        (self.last > 0 && self.last_id != none).then_some(self.last_id)
    }

    /// Returns the generation of the next record.
    pub(crate) fn next_generation(&self) -> u32 {
        self.generation + u32::from(!self.is_there())
    }

    /// Returns the last seq for a condition: 0 if there is no session.
    pub(crate) fn tail(&self) -> Seq {
        if self.is_there() { self.last } else { 0 }
    }

    /// Returns what identifies the state but for its events.
    pub(crate) fn version(&self) -> Version {
        (self.generation, self.revision)
    }

    /// Returns the session for a caller.
    pub(crate) fn info(&self, id: &SessionId) -> SessionInfo {
        SessionInfo {
            id: id.clone(),
            generation: self.generation,
            first: self.first,
            last: self.last,
            last_id: self.shown_last_id(),
            events: self.events(),
            bytes: self.bytes,
            created_at: timestamp(self.created_ms),
            active_at: timestamp(self.active_ms),
            closed: self.is_closed(),
            hold: self.is_held(),
            title: self
                .details
                .as_ref()
                .and_then(|details| details.title.clone()),
            metadata: self.metadata(),
            parent: self.lineage().map(|lineage| ParentInfo {
                id: lineage.parent.clone(),
                generation: lineage.parent_generation,
                at: lineage.at,
            }),
            revision: self.revision,
        }
    }

    /// Returns a patch that gives another session the title and the metadata of this one.
    pub(crate) fn as_patch(&self) -> SessionPatch {
        let mut patch = SessionPatch::new();
        let metadata = self.metadata();
        if let Some(details) = &self.details {
            patch.title = details.title.clone().map(Some);
        }
        if !metadata.is_empty() {
            patch = patch.metadata(metadata);
        }
        patch
    }

    pub(crate) fn events(&self) -> u64 {
        (self.last + 1).saturating_sub(self.first)
    }

    /// Returns the number of kept events and their bytes; none if the session is not there.
    pub(crate) fn extent(&self) -> (u64, u64) {
        if self.is_there() {
            (self.events(), self.bytes)
        } else {
            (0, 0)
        }
    }

    pub(crate) fn metadata(&self) -> Metadata {
        let details = self.details.as_ref();
        let text = details.map_or("", |details| &details.metadata);
        if text.is_empty() {
            return Metadata::new();
        }
        serde_json::from_str(text).expect("metadata is stored as the text of an object")
    }

    pub(crate) fn lineage(&self) -> Option<&Lineage> {
        self.details.as_ref()?.lineage.as_ref()
    }

    /// Returns the stretches that the session shares with others, in the order of their seqs.
    pub(crate) fn pieces(&self) -> &[Piece] {
        self.lineage().map_or(&[], |lineage| &lineage.pieces)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.details.as_ref().is_some_and(|details| details.hold)
    }

    /// Returns the session's own retention.
    pub(crate) fn retention(&self) -> Option<Retention> {
        self.details.as_ref()?.retention
    }

    pub(crate) fn redacted(&self) -> &[EventId] {
        self.details
            .as_ref()
            .map_or(&[], |details| &details.redacted)
    }

    /// Returns an estimate of the memory that the details take, in bytes.
    pub(crate) fn details_bytes(&self) -> usize {
        self.details.as_ref().map_or(0, |details| {
            let title = details.title.as_ref().map_or(0, String::len);
            let lineage = details.lineage.as_ref().map_or(0, |from| from.pieces.len());
            size_of::<Details>()
                + title
                + details.metadata.len()
                + details.redacted.len() * size_of::<EventId>()
                + (details.producers.len() + lineage) * 2 * size_of::<ProducerState>()
        })
    }

    /// Returns what is known of a producer.
    pub(crate) fn producer(&self, id: &str) -> Option<&ProducerState> {
        let producers = &self.details.as_ref()?.producers;
        producers.iter().find(|producer| producer.id == id)
    }

    /// Includes a record of the session, unless it is included already.
    pub(crate) fn apply(&mut self, record: &Record) {
        if record.last_id() <= self.through {
            return;
        }
        if record.generation > self.generation {
            self.begin(record);
        }
        self.through = record.last_id();
        for op in record.ops() {
            self.apply_op(op, record);
        }
        if record.count > 0 {
            self.last = record.last();
            self.last_id = record.base.plus(record.count - 1);
            self.active_id = self.last_id;
            self.active_ms = record.created_ms;
            self.bytes += record.event_bytes();
        }
        if !record.ops().is_empty() {
            self.revision += 1;
        }
        if let Some(producer) = record.producer() {
            self.note_producer(producer, record);
        }
    }

    /// Begins the generation of a record. Redactions outlive a generation: a fork may share the
    /// redacted events.
    fn begin(&mut self, record: &Record) {
        let redacted = self.redacted().to_vec();
        let details = (!redacted.is_empty()).then(|| {
            Arc::new(Details {
                redacted,
                ..Details::default()
            })
        });
        *self = Self {
            standing: Standing::Open,
            generation: record.generation,
            first: FIRST_SEQ,
            active_id: record.base,
            active_ms: record.created_ms,
            created_id: record.base,
            created_ms: record.created_ms,
            details,
            ..Self::default()
        };
    }

    fn apply_op(&mut self, op: &Op, record: &Record) {
        match op {
            Op::Create => {}
            Op::Describe(patch) => self.describe(patch),
            Op::Close => self.standing = Standing::Closed,
            Op::Reopen => self.standing = Standing::Open,
            Op::Trim { first, bytes } => {
                self.first = *first;
                self.bytes = self.bytes.saturating_sub(*bytes);
            }
            Op::Redact { event, bytes, .. } => {
                self.bytes = self.bytes.saturating_sub(*bytes);
                let redacted = &mut self.details().redacted;
                if let Err(place) = redacted.binary_search(event) {
                    redacted.insert(place, *event);
                }
            }
            Op::Delete { reason, .. } => {
                let removal = Removal {
                    reason: reason.clone(),
                    at_ms: record.created_ms,
                };
                let redacted = std::mem::take(&mut self.details().redacted);
                (self.standing, self.bytes) = (Standing::Deleted, 0);
                self.details = Some(Arc::new(Details {
                    redacted,
                    removal: Some(removal),
                    ..Details::default()
                }));
            }
            Op::Fork(lineage) => {
                self.first = lineage.first;
                (self.last, self.last_id) = (lineage.at, lineage.last_id);
                self.bytes = lineage.bytes;
                self.details().lineage = Some(Lineage::clone(lineage));
            }
        }
    }

    /// Returns the state after a patch.
    pub(crate) fn described(&self, patch: &SessionPatch) -> Self {
        let mut after = self.clone();
        after.describe(patch);
        after
    }

    fn describe(&mut self, patch: &SessionPatch) {
        let mut metadata = self.metadata();
        let details = self.details();
        if let Some(title) = &patch.title {
            details.title.clone_from(title);
        }
        if let Some(hold) = patch.hold {
            details.hold = hold;
        }
        if let Some(retention) = patch.retention {
            details.retention = (!retention.is_empty()).then_some(retention);
        }
        if let Some(serde_json::Value::Object(patch)) = &patch.metadata {
            merge(&mut metadata, patch);
            details.metadata = if metadata.is_empty() {
                String::new()
            } else {
                serde_json::Value::Object(metadata).to_string()
            };
        }
    }

    /// Returns the size of the metadata as JSON and its limit.
    pub(crate) fn metadata_bytes(&self) -> (usize, usize) {
        let bytes = self
            .details
            .as_ref()
            .map_or(0, |details| details.metadata.len());
        (bytes, METADATA_BYTES_MAX)
    }

    fn note_producer(&mut self, producer: &Producer, record: &Record) {
        let producers = &mut self.details().producers;
        let place = producers.iter().position(|known| known.id == producer.id);
        let known = place.map(|place| producers.remove(place));
        let known = known.filter(|known| known.epoch == producer.epoch);
        if producers.len() == PRODUCERS_MAX {
            producers.remove(0);
        }
        producers.push(match (known, producer.seq) {
            (Some(known), None) => known,
            (_, seq) => ProducerState {
                id: producer.id.clone(),
                epoch: producer.epoch,
                seq,
                first: record.first,
                last: record.last(),
            },
        });
    }

    fn details(&mut self) -> &mut Details {
        Arc::make_mut(self.details.get_or_insert_default())
    }
}
