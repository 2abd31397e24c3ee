//! The changes of a session that a record carries beside its events, and its producer. They are
//! entries of the body's extension area.

use bytes::BufMut;

use crate::codec::value::{decode_bare, encode_bare};
use crate::codec::{ByteReader, Decoded, Fault, put_prefixed, put_varint};
use crate::model::{EventId, Op, Producer, SessionId};

const TAG_CREATE: u64 = 1;
const TAG_DESCRIBE: u64 = 3;
const TAG_CLOSE: u64 = 5;
const TAG_REOPEN: u64 = 7;
const TAG_TRIM: u64 = 9;
const TAG_REDACT: u64 = 11;
const TAG_DELETE: u64 = 13;
const TAG_FORK: u64 = 15;
const TAG_PRODUCER: u64 = 17;

/// The highest required tag that this version knows.
const TAG_MAX: u64 = TAG_PRODUCER;

/// The changes and the producer that a record carries beside its events.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Extra {
    pub ops: Vec<Op>,
    pub producer: Option<Producer>,
}

impl Extra {
    pub(super) fn is_empty(&self) -> bool {
        self.ops.is_empty() && self.producer.is_none()
    }

    /// Returns the entries of the extension area, without its length.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut area = Vec::new();
        for op in &self.ops {
            put_op(&mut area, op);
        }
        if let Some(producer) = &self.producer {
            let mut value = Vec::new();
            put_prefixed(&mut value, producer.id.as_bytes());
            put_varint(&mut value, producer.epoch);
            value.put_u8(u8::from(producer.seq.is_some()));
            put_varint(&mut value, producer.seq.unwrap_or(0));
            put_entry(&mut area, TAG_PRODUCER, &value);
        }
        area
    }

    pub(super) fn decode(area: &[u8]) -> Decoded<Self> {
        let mut reader = ByteReader::new(area);
        let mut extra = Self::default();
        while reader.left() > 0 {
            let (tag, value) = (reader.varint()?, reader.prefixed()?);
            let mut value = ByteReader::new(value);
            match tag {
                TAG_PRODUCER => extra.producer = Some(producer(&mut value)?),
                tag if tag % 2 == 0 => continue,
                tag => extra.ops.push(op(tag, &mut value)?),
            }
            if value.left() > 0 {
                return Err(reader.damaged("bytes behind the last field of a change"));
            }
        }
        Ok(extra)
    }
}

fn put_op(area: &mut Vec<u8>, op: &Op) {
    let mut value = Vec::new();
    let tag = match op {
        Op::Create => TAG_CREATE,
        Op::Close => TAG_CLOSE,
        Op::Reopen => TAG_REOPEN,
        Op::Describe(patch) => {
            value = serde_json::to_vec(patch).expect("a patch holds JSON values alone");
            TAG_DESCRIBE
        }
        Op::Trim { first, bytes } => {
            put_varint(&mut value, *first);
            put_varint(&mut value, *bytes);
            TAG_TRIM
        }
        Op::Redact {
            event,
            bytes,
            reason,
        } => {
            value.put_u128_le(event.to_u128());
            put_varint(&mut value, *bytes);
            put_reason(&mut value, reason.as_deref());
            TAG_REDACT
        }
        Op::Delete { reason, ancestors } => {
            put_reason(&mut value, reason.as_deref());
            put_varint(&mut value, ancestors.len() as u64);
            for ancestor in ancestors {
                put_prefixed(&mut value, ancestor.as_bytes());
            }
            TAG_DELETE
        }
        Op::Fork(lineage) => {
            value = encode_bare(lineage);
            TAG_FORK
        }
    };
    put_entry(area, tag, &value);
}

fn op(tag: u64, value: &mut ByteReader<'_>) -> Decoded<Op> {
    Ok(match tag {
        TAG_CREATE => Op::Create,
        TAG_CLOSE => Op::Close,
        TAG_REOPEN => Op::Reopen,
        TAG_DESCRIBE => {
            let patch = serde_json::from_slice(value.take(value.left())?);
            Op::Describe(patch.map_err(|_error| value.damaged("a patch that is no JSON"))?)
        }
        TAG_TRIM => Op::Trim {
            first: value.varint()?,
            bytes: value.varint()?,
        },
        TAG_REDACT => Op::Redact {
            event: EventId::from_u128(value.u128()?),
            bytes: value.varint()?,
            reason: reason(value)?,
        },
        TAG_DELETE => Op::Delete {
            reason: reason(value)?,
            ancestors: sessions(value)?,
        },
        TAG_FORK => {
            let lineage = decode_bare(value.take(value.left())?);
            Op::Fork(lineage.ok_or_else(|| value.damaged("a lineage that does not decode"))?)
        }
        unknown => {
            return Err(Fault::Unknown {
                what: "required extension",
                found: unknown,
                supported: TAG_MAX,
            });
        }
    })
}

fn producer(value: &mut ByteReader<'_>) -> Decoded<Producer> {
    let id = text(value)?;
    let epoch = value.varint()?;
    let (has_seq, seq) = (value.u8()?, value.varint()?);
    Ok(Producer {
        id,
        epoch,
        seq: (has_seq == 1).then_some(seq),
    })
}

fn reason(value: &mut ByteReader<'_>) -> Decoded<Option<String>> {
    match value.u8()? {
        0 => Ok(None),
        _ => text(value).map(Some),
    }
}

fn sessions(value: &mut ByteReader<'_>) -> Decoded<Vec<SessionId>> {
    let count = value.varint()?;
    let mut sessions = Vec::new();
    for _ in 0..count {
        let name = text(value)?;
        let session = SessionId::new(name);
        sessions.push(session.map_err(|_error| value.damaged("an impossible session ID"))?);
    }
    Ok(sessions)
}

fn text(value: &mut ByteReader<'_>) -> Decoded<String> {
    let text = std::str::from_utf8(value.prefixed()?);
    text.map(str::to_owned)
        .map_err(|_error| value.damaged("a text that is no UTF-8"))
}

fn put_reason(value: &mut Vec<u8>, reason: Option<&str>) {
    value.put_u8(u8::from(reason.is_some()));
    if let Some(reason) = reason {
        put_prefixed(value, reason.as_bytes());
    }
}

fn put_entry(area: &mut Vec<u8>, tag: u64, value: &[u8]) {
    put_varint(area, tag);
    put_prefixed(area, value);
}
