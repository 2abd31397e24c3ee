//! How a segment stores the state of a session: compact for most, which have no details.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::codec::state::{Details, ProducerState, Removal, SessionState, Standing};
use crate::codec::{ByteReader, Decoded, Fault, decode_bare, encode_bare, put_varint, put_zigzag};
use crate::model::{
    EventId, FIRST_SEQ, Lineage, Metadata, Retention, Seq, read_list, read_text, read_text_if_any,
};

impl SessionState {
    /// Appends the state as a segment stores it.
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        let active = self.active_id.to_u128();
        let since_creation = active.checked_sub(self.created_id.to_u128());
        let since_creation = since_creation.and_then(|since| u64::try_from(since).ok());
        let mut flags = match self.standing {
            Standing::Absent | Standing::Open => 0,
            Standing::Closed => CLOSED,
            Standing::Deleted => DELETED,
        };
        let mut flag = |condition, bit| flags |= if condition { bit } else { 0 };
        flag(self.details.is_some(), HAS_DETAILS);
        flag(self.last_id != self.active_id, HAS_LAST_ID);
        flag(self.through != self.active_id, HAS_THROUGH);
        flag(since_creation.is_none(), HAS_CREATED_ID);
        out.push(flags);
        put_varint(out, self.generation.into());
        put_varint(out, self.first);
        put_varint(out, self.last);
        put_varint(out, self.bytes);
        put_varint(out, self.revision);
        let mut put_id = |id: EventId| out.extend_from_slice(&id.to_u128().to_le_bytes());
        put_id(self.active_id);
        if self.last_id != self.active_id {
            put_id(self.last_id);
        }
        if self.through != self.active_id {
            put_id(self.through);
        }
        match since_creation {
            Some(since) => put_varint(out, since),
            None => put_id(self.created_id),
        }
        put_zigzag(out, time_offset(self.active_ms, self.active_id));
        put_zigzag(out, time_offset(self.created_ms, self.created_id));
        if let Some(details) = &self.details {
            out.extend_from_slice(&encode_bare(&StoredDetails::of(details)));
        }
    }

    /// Whether an encoded state is that of a deleted session.
    pub(crate) fn is_deleted(bytes: &[u8]) -> bool {
        bytes.first().is_some_and(|flags| flags & DELETED != 0)
    }

    /// Decodes a state, which takes all of `bytes`.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut reader = ByteReader::new(bytes);
        let flags = reader.u8()?;
        if flags & !FLAGS != 0 {
            return Err(Fault::Unknown {
                what: "state flags",
                found: flags.into(),
                supported: FLAGS.into(),
            });
        }
        let has = |bit| flags & bit != 0;
        let standing = match flags & (CLOSED | DELETED) {
            0 => Standing::Open,
            CLOSED => Standing::Closed,
            DELETED => Standing::Deleted,
            _ => return Err(reader.damaged("a session that is closed and deleted")),
        };
        let generation = reader.varint_u32()?;
        let (first, last) = (reader.varint()?, reader.varint()?);
        let (bytes, revision) = (reader.varint()?, reader.varint()?);
        let active_id = EventId::from_u128(reader.u128()?);
        let mut id_if = |bit| -> Decoded<EventId> {
            if has(bit) {
                reader.u128().map(EventId::from_u128)
            } else {
                Ok(active_id)
            }
        };
        let (last_id, through) = (id_if(HAS_LAST_ID)?, id_if(HAS_THROUGH)?);
        let created_id = if has(HAS_CREATED_ID) {
            reader.u128()?
        } else {
            active_id.to_u128().saturating_sub(reader.varint()?.into())
        };
        let created_id = EventId::from_u128(created_id);
        let (active_offset, created_offset) = (reader.zigzag()?, reader.zigzag()?);
        let time = |id: EventId, offset| id.timestamp_ms().saturating_add_signed(offset);
        let (active_ms, created_ms) = (
            time(active_id, active_offset),
            time(created_id, created_offset),
        );
        let details = if has(HAS_DETAILS) {
            let stored: Option<StoredDetails> = decode_bare(reader.take(reader.left())?);
            let details = stored.and_then(StoredDetails::into_details);
            Some(details.ok_or_else(|| reader.damaged("details that do not decode"))?)
        } else {
            None
        };
        if reader.left() > 0 || last == Seq::MAX || !(FIRST_SEQ..=last + 1).contains(&first) {
            return Err(reader.damaged("an impossible state"));
        }
        Ok(Self {
            standing,
            generation,
            first,
            last,
            last_id,
            through,
            active_id,
            created_id,
            created_ms,
            active_ms,
            bytes,
            revision,
            details: details.map(Arc::new),
        })
    }
}

fn time_offset(ms: u64, id: EventId) -> i64 {
    ms.cast_signed()
        .wrapping_sub(id.timestamp_ms().cast_signed())
}

const CLOSED: u8 = 1;
const DELETED: u8 = 2;
const HAS_DETAILS: u8 = 4;
const HAS_LAST_ID: u8 = 8;
const HAS_THROUGH: u8 = 16;
const HAS_CREATED_ID: u8 = 32;
const FLAGS: u8 = CLOSED | DELETED | HAS_DETAILS | HAS_LAST_ID | HAS_THROUGH | HAS_CREATED_ID;

/// [`Details`] as they are stored.
#[derive(Serialize, Deserialize)]
struct StoredDetails {
    #[serde(deserialize_with = "read_text_if_any")]
    title: Option<String>,
    #[serde(deserialize_with = "read_text")]
    metadata: String,
    hold: bool,
    retention: Option<Retention>,
    lineage: Option<Lineage>,
    #[serde(deserialize_with = "read_list")]
    redacted: Vec<u128>,
    #[serde(deserialize_with = "read_list")]
    producers: Vec<ProducerState>,
    removal: Option<Removal>,
}

impl StoredDetails {
    fn of(details: &Details) -> Self {
        let details = details.clone();
        Self {
            title: details.title,
            metadata: details.metadata,
            hold: details.hold,
            retention: details.retention,
            lineage: details.lineage,
            redacted: details.redacted.iter().map(|id| id.to_u128()).collect(),
            producers: details.producers,
            removal: details.removal,
        }
    }

    fn into_details(self) -> Option<Details> {
        let metadata = &self.metadata;
        let is_object = metadata.is_empty() || serde_json::from_str::<Metadata>(metadata).is_ok();
        is_object.then(|| Details {
            title: self.title,
            metadata: self.metadata,
            hold: self.hold,
            retention: self.retention,
            lineage: self.lineage,
            redacted: self.redacted.into_iter().map(EventId::from_u128).collect(),
            producers: self.producers,
            removal: self.removal,
        })
    }
}
