//! The state of a session as a line.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codec::{Details, ProducerState, Removal, SessionState, Standing};
use crate::model::{EventId, Lineage, Retention, Seq, SessionId};
use crate::transfer::omit::is_false;
use crate::transfer::record::is_possible_lineage;

/// The members have the meaning of the fields of the state in the log's own format.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct StateLine<'a> {
    #[serde(borrow)]
    session: Cow<'a, str>,
    standing: StandingLine,
    generation: u32,
    first_seq: Seq,
    last_seq: Seq,
    last_id: EventId,
    through_id: EventId,
    active_id: EventId,
    active_ms: u64,
    created_id: EventId,
    created_ms: u64,
    bytes: u64,
    revision: u64,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    details: Option<DetailsLine<'a>>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StandingLine {
    Open,
    Closed,
    Deleted,
}

#[derive(Debug, Serialize, Deserialize)]
struct DetailsLine<'a> {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    title: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    metadata: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "is_false")]
    hold: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    retention: Option<Retention>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lineage: Option<Lineage>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    redacted: Vec<EventId>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    producers: Vec<ProducerLine>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    removal: Option<RemovalLine>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProducerLine {
    id: String,
    epoch: u64,
    seq: Option<u64>,
    first_seq: Seq,
    last_seq: Seq,
}

#[derive(Debug, Serialize, Deserialize)]
struct RemovalLine {
    reason: Option<String>,
    at_ms: u64,
}

impl<'a> StateLine<'a> {
    /// Returns `None` for a session that was never created.
    pub(super) fn of(session: &'a SessionId, state: &'a SessionState) -> Option<Self> {
        let standing = match state.standing {
            Standing::Absent => return None,
            Standing::Open => StandingLine::Open,
            Standing::Closed => StandingLine::Closed,
            Standing::Deleted => StandingLine::Deleted,
        };
        Some(Self {
            session: session.as_str().into(),
            standing,
            generation: state.generation,
            first_seq: state.first,
            last_seq: state.last,
            last_id: state.last_id,
            through_id: state.through,
            active_id: state.active_id,
            active_ms: state.active_ms,
            created_id: state.created_id,
            created_ms: state.created_ms,
            bytes: state.bytes,
            revision: state.revision,
            details: state.details.as_deref().map(DetailsLine::of),
        })
    }

    /// Makes the state again.
    pub(super) fn state(&self) -> Result<(SessionId, SessionState), String> {
        let session = SessionId::new(&*self.session).map_err(|error| error.to_string())?;
        let state = SessionState {
            standing: match self.standing {
                StandingLine::Open => Standing::Open,
                StandingLine::Closed => Standing::Closed,
                StandingLine::Deleted => Standing::Deleted,
            },
            generation: self.generation,
            first: self.first_seq,
            last: self.last_seq,
            last_id: self.last_id,
            through: self.through_id,
            active_id: self.active_id,
            created_id: self.created_id,
            created_ms: self.created_ms,
            active_ms: self.active_ms,
            bytes: self.bytes,
            revision: self.revision,
            details: self
                .details
                .as_ref()
                .map(|details| Arc::new(details.details())),
        };
        let lineage = state.lineage();
        if self.generation == u32::MAX || !lineage.is_none_or(is_possible_lineage) {
            return Err("an impossible generation or lineage".to_owned());
        }
        // A state that the log would refuse to read is not written.
        let mut encoded = Vec::new();
        state.put(&mut encoded);
        match SessionState::decode(&encoded) {
            Ok(read) if read == state => Ok((session, state)),
            Ok(_) => Err("a state that does not come back".to_owned()),
            Err(fault) => Err(format!("an impossible state: {fault:?}")),
        }
    }
}

impl<'a> DetailsLine<'a> {
    fn of(details: &'a Details) -> Self {
        let producers = details.producers.iter().map(|producer| ProducerLine {
            id: producer.id.clone(),
            epoch: producer.epoch,
            seq: producer.seq,
            first_seq: producer.first,
            last_seq: producer.last,
        });
        Self {
            title: details.title.clone(),
            // It was made by serde_json, so it is JSON on one line.
            metadata: serde_json::from_str(&details.metadata).ok(),
            hold: details.hold,
            retention: details.retention,
            lineage: details.lineage.clone(),
            redacted: details.redacted.clone(),
            producers: producers.collect(),
            removal: details.removal.as_ref().map(|removal| RemovalLine {
                reason: removal.reason.clone(),
                at_ms: removal.at_ms,
            }),
        }
    }

    fn details(&self) -> Details {
        let producers = self.producers.iter().map(|producer| ProducerState {
            id: producer.id.clone(),
            epoch: producer.epoch,
            seq: producer.seq,
            first: producer.first_seq,
            last: producer.last_seq,
        });
        Details {
            title: self.title.clone(),
            metadata: self.metadata.map_or("", RawValue::get).to_owned(),
            hold: self.hold,
            retention: self.retention,
            lineage: self.lineage.clone(),
            redacted: self.redacted.clone(),
            producers: producers.collect(),
            removal: self.removal.as_ref().map(|removal| Removal {
                reason: removal.reason.clone(),
                at_ms: removal.at_ms,
            }),
        }
    }
}
