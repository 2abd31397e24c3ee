//! Encodes a batch once, on the caller's thread.
//!
//! The result has its checksum and its fingerprint, and is stored as it is in the journal and in a
//! segment.

use std::sync::Arc;

use bytes::BufMut;

use crate::codec::chunk::room_for;
use crate::codec::event::put_event_of;
use crate::codec::op::Extra;
use crate::codec::record::{
    BODY_EXTENDED, BODY_KEYED, FINGERPRINT_BYTES, HEAD_BYTES_MAX, IdempotencyKey, Record,
};
use crate::codec::{Salt, SessionState, prefixed_bytes, put_prefixed, put_varint, varint_bytes};
use crate::model::{Batch, EventId, NewEvent, Op, Producer, Seq, SessionId, Stamp, Turn};

/// A batch as it will be stored, before it has a place in its session. It is a record already, so
/// that the commit section has nothing to allocate.
#[derive(Debug)]
pub(crate) struct EncodedBatch(Arc<Record>);

impl EncodedBatch {
    /// Encodes a batch that was checked against the limits.
    pub(crate) fn new(session: &SessionId, mut batch: Batch) -> Self {
        let extra = Extra {
            ops: std::mem::take(&mut batch.ops),
            producer: batch.producer.take(),
        };
        let extra = (!extra.is_empty()).then(|| Box::new(extra));
        let extensions = extra.as_ref().map(|extra| extra.encode());
        let length = body_bytes(session, &batch, extensions.as_deref());
        let mut body = room_for(length);
        let keyed = if batch.key.is_some() { BODY_KEYED } else { 0 };
        let extended = if extra.is_some() { BODY_EXTENDED } else { 0 };
        body.put_u8(keyed | extended);
        put_prefixed(&mut body, session.as_bytes());
        let session_end = body.len();
        let mut fingerprint_at = 0;
        if let Some(key) = &batch.key {
            put_prefixed(&mut body, key.as_bytes());
            fingerprint_at = body.len();
            body.extend_from_slice(&[0; FINGERPRINT_BYTES]);
        }
        let content_at = body.len();
        if let Some(extensions) = &extensions {
            put_prefixed(&mut body, extensions);
        }
        let events_at = body.len();
        let count =
            u32::try_from(batch.events.len()).expect("the cap on events in a batch fits 32 bits");
        put_varint(&mut body, count.into());
        for event in &batch.events {
            put_event(&mut body, event);
        }
        let key = batch.key.map(|key| {
            let (before, content) = body.split_at_mut(content_at);
            let fingerprint = *blake3::hash(content).as_bytes();
            let place = before
                .get_mut(fingerprint_at..)
                .expect("the fingerprint lies before the content");
            place.copy_from_slice(&fingerprint);
            Box::new(IdempotencyKey {
                text: key,
                fingerprint,
            })
        });
        debug_assert_eq!(body.len(), length, "the length was known beforehand");
        let body = body.freeze();
        let session = session.stored_at(session_end - session.as_bytes().len()..session_end, &body);
        Self(Arc::new(Record {
            session,
            generation: 0,
            first: 0,
            count,
            base: EventId::from_u128(0),
            created_ms: 0,
            key,
            extra,
            extensions: None,
            body_checksum: Salt::NONE.checksum(&body),
            body,
            events_at,
        }))
    }

    pub(crate) fn session(&self) -> &SessionId {
        &self.0.session
    }

    /// Returns the number of IDs that the record takes.
    pub(crate) fn ids(&self) -> u32 {
        self.0.ids()
    }

    pub(crate) fn ops(&self) -> &[Op] {
        self.0.ops()
    }

    /// Returns the generation and the first seq of the record in a session of this state.
    pub(crate) fn place_in(&self, state: &SessionState) -> (u32, Seq) {
        for op in self.ops() {
            match op {
                Op::Fork(lineage) => return (state.next_generation(), lineage.at + 1),
                // It begins no generation: it may be of an event that a fork alone still keeps.
                Op::Redact { .. } => return (state.generation, state.last + 1),
                _ => {}
            }
        }
        (state.next_generation(), state.tail() + 1)
    }

    pub(crate) fn producer(&self) -> Option<&Producer> {
        self.0.producer()
    }

    /// Whether the batch has events.
    pub(crate) fn has_events(&self) -> bool {
        self.0.count > 0
    }

    pub(crate) fn key(&self) -> Option<&IdempotencyKey> {
        self.0.key.as_deref()
    }

    /// Returns the record that this batch becomes at a place in its session.
    pub(crate) fn stamped(mut self, generation: u32, first: Seq, stamp: Stamp) -> Arc<Record> {
        let record = Arc::get_mut(&mut self.0).expect("nobody was given it");
        (record.generation, record.first) = (generation, first);
        (record.base, record.created_ms) = (stamp.base, stamp.created_ms);
        self.0
    }

    /// As [`stamped`](Self::stamped), for a batch that may have to be stamped again.
    #[cfg(feature = "postgres")]
    pub(crate) fn stamped_copy(&self, generation: u32, first: Seq, stamp: Stamp) -> Arc<Record> {
        Self(Arc::new(Record::clone(&self.0))).stamped(generation, first, stamp)
    }

    /// Returns an upper bound of the stored size of the record, in bytes.
    pub(crate) fn stored_bytes_max(&self) -> usize {
        HEAD_BYTES_MAX + self.0.body().len()
    }
}

/// Returns the exact length of a batch's body. A body stays in memory until it is sealed, and so
/// would any excess capacity.
fn body_bytes(session: &SessionId, batch: &Batch, extensions: Option<&[u8]>) -> usize {
    let key = batch
        .key
        .as_ref()
        .map_or(0, |key| prefixed_bytes(key.len()) + FINGERPRINT_BYTES);
    let events = batch.events.iter().map(event_bytes).sum::<usize>();
    let extensions = extensions.map_or(0, |area| prefixed_bytes(area.len()));
    let count = varint_bytes(batch.events.len());
    1 + prefixed_bytes(session.as_bytes().len()) + key + extensions + count + events
}

fn event_bytes(event: &NewEvent) -> usize {
    let turn = if matches!(event.turn, Turn::Of(_)) {
        size_of::<u128>()
    } else {
        0
    };
    1 + turn + prefixed_bytes(event.event_type.as_bytes().len()) + prefixed_bytes(event.data.len())
}

fn put_event(out: &mut impl BufMut, event: &NewEvent) {
    put_event_of(out, 0, event.turn, event.event_type.as_bytes(), &event.data);
}
