//! Makes a record from its parts, as an import reads them.

use bytes::{BufMut, Bytes};

use crate::codec::event::put_event_of;
use crate::codec::op::Extra;
use crate::codec::record::{
    BODY_EXTENDED, BODY_KEYED, EVENT_REDACTED, FINGERPRINT_BYTES, Record, RecordFrame, RecordHead,
};
use crate::codec::{Decoded, Fault, Salt, put_prefixed, put_varint};
use crate::model::{EventId, Op, Producer, Seq, SessionId, Turn};

/// The place and the time of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seat {
    pub generation: u32,
    pub first: Seq,
    pub base: EventId,
    pub created_ms: u64,
}

/// The content of a record's body.
pub(crate) struct BodyParts<'a> {
    pub session: &'a SessionId,
    pub key: Option<(&'a str, [u8; FINGERPRINT_BYTES])>,
    pub ops: Vec<Op>,
    pub producer: Option<Producer>,
    pub events: Vec<EventParts<'a>>,
}

/// One event of a body.
pub(crate) struct EventParts<'a> {
    pub turn: Turn,
    pub event_type: &'a str,
    pub content: EventContent<'a>,
}

/// The data of an event.
pub(crate) enum EventContent<'a> {
    Data(&'a [u8]),
    Redacted,
}

impl BodyParts<'_> {
    /// Encodes a body as this version of the format does.
    pub(crate) fn encode(self) -> Bytes {
        let extra = Extra {
            ops: self.ops,
            producer: self.producer,
        };
        let mut body = Vec::new();
        let keyed = if self.key.is_some() { BODY_KEYED } else { 0 };
        let extended = if extra.is_empty() { 0 } else { BODY_EXTENDED };
        body.put_u8(keyed | extended);
        put_prefixed(&mut body, self.session.as_bytes());
        if let Some((key, fingerprint)) = self.key {
            put_prefixed(&mut body, key.as_bytes());
            body.extend_from_slice(&fingerprint);
        }
        if !extra.is_empty() {
            put_prefixed(&mut body, &extra.encode());
        }
        put_varint(&mut body, self.events.len() as u64);
        for event in self.events {
            let (flags, data) = match event.content {
                EventContent::Data(data) => (0, data),
                EventContent::Redacted => (EVENT_REDACTED, &[] as &[u8]),
            };
            let event_type = event.event_type.as_bytes();
            put_event_of(&mut body, flags, event.turn, event_type, data);
        }
        body.into()
    }
}

impl Record {
    /// Returns the record with this body.
    pub(crate) fn with_body(seat: Seat, body: &Bytes) -> Decoded<Self> {
        let head = RecordHead {
            body_checksum: Salt::NONE.checksum(body),
            base: seat.base,
            generation: seat.generation,
            first: seat.first,
            created_ms: seat.created_ms,
            extensions: None,
        };
        let frame = RecordFrame::with_body(head, body, 0..body.len())?;
        let session = SessionId::from_stored(frame.session, body);
        let session = session.map_err(|_error| Fault::Damaged {
            at: 0,
            what: "a session ID that breaks the rules",
        })?;
        let record = frame.record(session, body)?;
        record.check_events()?;
        Ok(record)
    }

    /// Returns the checksum of the body.
    pub(crate) fn body_checksum(&self) -> u32 {
        self.body_checksum
    }
}
