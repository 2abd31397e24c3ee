//! Records. A record is one appended batch: events, changes of the session, or both.
//!
//! Its body is encoded once, on the caller's thread. The same bytes go to the journal, to the
//! segment and into the events that readers get. Only a record that has lost events or data is
//! encoded again.

use std::ops::Range;

use bytes::Bytes;
use bytestring::ByteString;

use crate::codec::op::Extra;
use crate::codec::{ByteReader, Decoded, Fault, Salt, put_varint, put_zigzag, varint_bytes};
use crate::model::{EventId, Op, Producer, Seq, SessionChange, SessionId, timestamp};

const KIND_BATCH: u8 = 1;

pub(super) const HEAD_EXTENDED: u8 = 1;
pub(super) const HEAD_FLAGS: u8 = HEAD_EXTENDED;

pub(super) const BODY_KEYED: u8 = 1;
pub(super) const BODY_EXTENDED: u8 = 2;
pub(super) const BODY_FLAGS: u8 = BODY_KEYED | BODY_EXTENDED;

pub(super) const EVENT_OPENS: u8 = 1;
pub(super) const EVENT_IN_TURN: u8 = 2;
pub(super) const EVENT_EXTENDED: u8 = 4;
pub(super) const EVENT_REDACTED: u8 = 8;
pub(super) const EVENT_FLAGS: u8 = EVENT_OPENS | EVENT_IN_TURN | EVENT_EXTENDED | EVENT_REDACTED;

/// No encoded event is shorter: flags and two lengths.
pub(super) const EVENT_BYTES_MIN: usize = 3;
pub(super) const FINGERPRINT_BYTES: usize = 32;

/// The storage overhead that [`read_bytes`](crate::codec::event::EventFrame::read_bytes) counts for
/// each event besides its type and data, in bytes.
pub(super) const EVENT_OVERHEAD: usize = 16;

/// The offset of the length field in a head.
pub(super) const HEAD_LENGTH_AT: usize = 8;

/// The longest head that this version writes: the fixed part, a 32-bit varint and two 64-bit
/// varints.
pub(crate) const HEAD_BYTES_MAX: usize = 27 + 5 + 10 + 10;

/// An idempotency key and the fingerprint of its batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdempotencyKey {
    pub text: ByteString,
    /// BLAKE3 of the changes, the producer and the events, as encoded.
    pub fingerprint: [u8; FINGERPRINT_BYTES],
}

/// A stored batch. Its events share `body`, and so do long names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub session: SessionId,
    pub generation: u32,
    pub first: Seq,
    pub count: u32,
    pub base: EventId,
    pub created_ms: u64,
    pub key: Option<Box<IdempotencyKey>>,
    pub(super) extra: Option<Box<Extra>>,
    /// The head's extension area as it was read, kept so that it is passed on.
    pub(super) extensions: Option<Box<[u8]>>,
    pub(super) body: Bytes,
    pub(super) body_checksum: u32,
    pub(super) events_at: usize,
}

impl Record {
    /// Returns the seq of the last event. Without events it is the one before `first`.
    pub(crate) fn last(&self) -> Seq {
        self.first + u64::from(self.count) - 1
    }

    /// Returns the last ID: each event has one, and each change after them.
    pub(crate) fn last_id(&self) -> EventId {
        self.base.plus(self.ids() - 1)
    }

    /// Returns the number of IDs that the record takes.
    pub(crate) fn ids(&self) -> u32 {
        let ops = u32::try_from(self.ops().len()).expect("a batch makes few changes");
        self.count + ops
    }

    /// Returns the changes of the session besides the events.
    pub(crate) fn ops(&self) -> &[Op] {
        self.extra.as_ref().map_or(&[], |extra| &extra.ops)
    }

    /// Whether it removes anything that was stored before.
    pub(crate) fn removes(&self) -> bool {
        self.ops()
            .iter()
            .any(|op| matches!(op, Op::Trim { .. } | Op::Redact { .. } | Op::Delete { .. }))
    }

    /// Whether it is the deletion of a session, which is kept to account for it.
    pub(crate) fn deletes(&self) -> bool {
        self.ops().iter().any(|op| matches!(op, Op::Delete { .. }))
    }

    /// Whether it gives the session a retention of its own.
    pub(crate) fn retains(&self) -> bool {
        self.ops()
            .iter()
            .any(|op| matches!(op, Op::Describe(patch) if patch.retention.is_some()))
    }

    pub(crate) fn producer(&self) -> Option<&Producer> {
        self.extra.as_ref()?.producer.as_ref()
    }

    /// Returns the changes as the feed yields them, in order. They come after the events.
    pub(crate) fn changes(&self) -> impl Iterator<Item = SessionChange> {
        (self.count..)
            .zip(self.ops())
            .map(|(nth, op)| SessionChange {
                id: self.base.plus(nth),
                session_id: self.session.clone(),
                generation: self.generation,
                created_at: timestamp(self.created_ms),
                change: op.change(),
            })
    }

    /// Returns the size of the events as encoded.
    pub(crate) fn event_bytes(&self) -> u64 {
        (self.body.len() - self.events_at - varint_bytes(self.count as usize)) as u64
    }

    /// Returns the seq of the event with this ID if the batch has that event.
    pub(crate) fn seq_of(&self, id: EventId) -> Option<Seq> {
        let offset = id.offset_from(self.base)?;
        (offset < u128::from(self.count))
            .then(|| self.first + u64::try_from(offset).expect("less than a 32-bit count"))
    }

    /// Returns an upper bound of the stored size, in bytes.
    pub(crate) fn stored_bytes_max(&self) -> usize {
        let extensions = self.extensions.as_ref().map_or(0, |area| area.len());
        HEAD_BYTES_MAX + extensions + self.body.len()
    }

    pub(crate) fn body(&self) -> &Bytes {
        &self.body
    }

    /// Replaces the content of `out` with the head's bytes. The body follows them on the disk.
    pub(crate) fn put_head(&self, out: &mut Vec<u8>) {
        out.clear();
        let body_bytes = u32::try_from(self.body.len()).expect("the caps on a batch fit 32 bits");
        out.extend_from_slice(&body_bytes.to_le_bytes());
        out.extend_from_slice(&self.body_checksum.to_le_bytes());
        let flags = if self.extensions.is_some() {
            HEAD_EXTENDED
        } else {
            0
        };
        out.extend_from_slice(&[0, KIND_BATCH, flags]);
        out.extend_from_slice(&self.base.to_u128().to_le_bytes());
        put_varint(out, self.generation.into());
        put_varint(out, self.first);
        put_zigzag(
            out,
            self.created_ms.cast_signed() - self.base.timestamp_ms().cast_signed(),
        );
        if let Some(extensions) = &self.extensions {
            out.extend_from_slice(extensions);
        }
        let length = u8::try_from(out.len())
            .expect("a head is as long as it was found, or of this version's own form");
        *out.get_mut(HEAD_LENGTH_AT)
            .expect("the length lies within the head") = length;
    }

    /// Decodes the record at `at`. The body's checksum is not checked.
    pub(crate) fn decode(bytes: &Bytes, at: usize) -> Decoded<Self> {
        Self::decode_with_end(bytes, at).map(|(record, _end)| record)
    }

    /// Decodes a record as [`decode`](Self::decode), and returns the offset of the next one.
    pub(crate) fn decode_with_end(bytes: &Bytes, at: usize) -> Decoded<(Self, usize)> {
        let frame = RecordFrame::decode(bytes, at)?;
        let end = frame.end();
        let session =
            SessionId::from_stored(frame.session, bytes).map_err(|_error| Fault::Damaged {
                at: frame.body.start,
                what: "a session ID that breaks the rules",
            })?;
        Ok((frame.record(session, bytes)?, end))
    }
}

impl Fault {
    /// Returns the same fault with its position counted from `base` bytes earlier.
    pub(crate) fn moved(self, base: usize) -> Self {
        match self {
            Fault::Damaged { at, what } => Fault::Damaged {
                at: at + base,
                what,
            },
            unknown @ Fault::Unknown { .. } => unknown,
        }
    }
}

/// The bytes of a record of any kind, so that its checksums can be checked before it is decoded.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RawRecord<'a> {
    pub head: &'a [u8],
    pub body: &'a [u8],
    /// The offset of the next record.
    pub end: usize,
    body_checksum: u32,
}

impl<'a> RawRecord<'a> {
    /// Splits off the record at `at`.
    pub(crate) fn split(bytes: &'a [u8], at: usize) -> Decoded<Self> {
        let mut reader = ByteReader::from(bytes, at)?;
        let (body_bytes, body_checksum, head_bytes) = (reader.u32()?, reader.u32()?, reader.u8()?);
        let mut reader = ByteReader::from(bytes, at)?;
        let (head, body) = (
            reader.take(head_bytes.into())?,
            reader.take(body_bytes as usize)?,
        );
        if head.len() <= HEAD_LENGTH_AT {
            return Err(Fault::Damaged {
                at,
                what: "an impossible length of a head",
            });
        }
        Ok(Self {
            head,
            body,
            end: reader.position(),
            body_checksum,
        })
    }

    /// Returns whether the body matches the checksum made on its caller's thread.
    pub(crate) fn body_matches(&self) -> bool {
        Salt::NONE.checksum(self.body) == self.body_checksum
    }
}

pub(super) struct RecordHead<'a> {
    pub(super) body_checksum: u32,
    pub(super) base: EventId,
    pub(super) generation: u32,
    pub(super) first: Seq,
    pub(super) created_ms: u64,
    pub(super) extensions: Option<&'a [u8]>,
}

impl<'a> RecordHead<'a> {
    fn decode(mut reader: ByteReader<'a>) -> Decoded<Self> {
        let (_body_bytes, body_checksum, _head_bytes) =
            (reader.u32()?, reader.u32()?, reader.u8()?);
        let kind = reader.u8()?;
        if kind != KIND_BATCH {
            return Err(Fault::Unknown {
                what: "record kind",
                found: kind.into(),
                supported: KIND_BATCH.into(),
            });
        }
        let flags = known_flags(reader.u8()?, HEAD_FLAGS, "head flags")?;
        let base = EventId::from_u128(reader.u128()?);
        let (generation, first, delta) = (reader.varint_u32()?, reader.varint()?, reader.zigzag()?);
        let mut extensions = None;
        if flags & HEAD_EXTENDED != 0 {
            extensions = Some(reader.clone().take(reader.left())?);
            reader.extensions()?;
        }
        if reader.left() > 0 {
            return Err(reader.damaged("bytes behind the last field of a head"));
        }
        let created_ms = base
            .timestamp_ms()
            .checked_add_signed(delta)
            .ok_or_else(|| reader.damaged("an impossible time"))?;
        Ok(Self {
            body_checksum,
            base,
            generation,
            first,
            created_ms,
            extensions,
        })
    }
}

/// A record within stored bytes. Skipping one in this form costs less than making it a [`Record`].
pub(crate) struct RecordFrame<'a> {
    head: RecordHead<'a>,
    /// The session ID, not checked yet.
    pub session: &'a [u8],
    key: Option<(&'a [u8], [u8; FINGERPRINT_BYTES])>,
    /// The entries of the extension area, not decoded yet.
    extensions: Option<&'a [u8]>,
    count: u32,
    body: Range<usize>,
    /// The offset of the events within the body.
    events_at: usize,
}

impl<'a> RecordFrame<'a> {
    /// Decodes the record at `at`. The body's checksum is not checked.
    pub(crate) fn decode(bytes: &'a [u8], at: usize) -> Decoded<Self> {
        let raw = RawRecord::split(bytes, at)?;
        let head =
            RecordHead::decode(ByteReader::new(raw.head)).map_err(|fault| fault.moved(at))?;
        let body = raw.end - raw.body.len()..raw.end;
        Self::with_body(head, raw.body, body.clone()).map_err(|fault| fault.moved(body.start))
    }

    pub(super) fn with_body(
        head: RecordHead<'a>,
        bytes: &'a [u8],
        body: Range<usize>,
    ) -> Decoded<Self> {
        let mut reader = ByteReader::new(bytes);
        let flags = known_flags(reader.u8()?, BODY_FLAGS, "body flags")?;
        let session = reader.prefixed()?;
        let key = if flags & BODY_KEYED == 0 {
            None
        } else {
            Some((reader.prefixed()?, reader.array()?))
        };
        let extensions = if flags & BODY_EXTENDED == 0 {
            None
        } else {
            Some(reader.prefixed()?)
        };
        let events_at = reader.position();
        let count = reader.varint_u32()?;
        let is_empty = count == 0 && extensions.is_none();
        if is_empty || reader.left() / EVENT_BYTES_MIN < count as usize {
            return Err(reader.damaged("an impossible number of events"));
        }
        if head.first == 0 || head.first.checked_add(count.into()).is_none() {
            return Err(reader.damaged("an impossible seq"));
        }
        Ok(Self {
            head,
            session,
            key,
            extensions,
            count,
            body,
            events_at,
        })
    }

    pub(crate) fn generation(&self) -> u32 {
        self.head.generation
    }

    /// Returns the seq of the first event.
    pub(crate) fn first(&self) -> Seq {
        self.head.first
    }

    /// Returns the seq of the last event.
    pub(crate) fn last(&self) -> Seq {
        self.head.first + u64::from(self.count) - 1
    }

    /// Returns the offset of the next record.
    pub(crate) fn end(&self) -> usize {
        self.body.end
    }

    /// Returns the record, for this session. It shares the memory of `stored`.
    pub(crate) fn record(self, session: SessionId, stored: &Bytes) -> Decoded<Record> {
        let Self {
            head,
            key,
            extensions,
            count,
            body,
            events_at,
            ..
        } = self;
        let extra = extensions.map(Extra::decode).transpose();
        let extra = extra.map_err(|fault| fault.moved(body.start))?;
        if count == 0 && extra.as_ref().is_none_or(|extra| extra.ops.is_empty()) {
            return Err(Fault::Damaged {
                at: body.start,
                what: "a record that changes nothing",
            });
        }
        let key = key.map(|(text, fingerprint)| {
            let text =
                ByteString::try_from(stored.slice_ref(text)).map_err(|_error| Fault::Damaged {
                    at: body.start,
                    what: "a key that is no text",
                })?;
            Ok(Box::new(IdempotencyKey { text, fingerprint }))
        });
        Ok(Record {
            session,
            generation: head.generation,
            first: head.first,
            count,
            base: head.base,
            created_ms: head.created_ms,
            key: key.transpose()?,
            extra: extra.filter(|extra| !extra.is_empty()).map(Box::new),
            extensions: head.extensions.map(Box::from),
            body_checksum: head.body_checksum,
            events_at,
            body: stored.slice(body),
        })
    }
}

pub(super) fn known_flags(flags: u8, known: u8, what: &'static str) -> Decoded<u8> {
    if flags & !known == 0 {
        return Ok(flags);
    }
    Err(Fault::Unknown {
        what,
        found: flags.into(),
        supported: known.into(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use std::sync::Arc;

    use crate::codec::EncodedBatch;
    use crate::model::{Batch, NewEvent, Stamp, Turn};

    fn stored(record: &Record) -> Bytes {
        let mut bytes = Vec::new();
        record.put_head(&mut bytes);
        assert!(bytes.len() <= HEAD_BYTES_MAX);
        bytes.extend_from_slice(record.body());
        Bytes::from(bytes)
    }

    fn sample(batch: &Batch, created_ms: u64) -> Record {
        let session = SessionId::new("sess_ä").unwrap();
        let stamp = Stamp {
            base: EventId::from_u128((5 << 80) + 17),
            created_ms,
        };
        Arc::unwrap_or_clone(EncodedBatch::new(&session, batch.clone()).stamped(3, 40, stamp))
    }

    fn any_event() -> impl Strategy<Value = NewEvent> {
        let turn = prop_oneof![Just(None), any::<u128>().prop_map(Some)];
        (
            "[a-z.]{1,20}|user\\.message",
            proptest::collection::vec(any::<u8>(), 0..300),
            turn,
        )
            .prop_map(|(name, data, turn)| {
                let event = NewEvent::new(name, data);
                turn.map_or(event.clone(), |id| {
                    event.in_turn(EventId::from_u128(id).into())
                })
            })
    }

    proptest! {
        #[test]
        fn a_record_reads_back_as_stored(
            events in proptest::collection::vec(any_event(), 1..20),
            key in proptest::option::of("[a-z0-9]{1,40}"),
            created_ms in 0_u64..1 << 48,
        ) {
            let mut batch = Batch::new().events(events.clone());
            if let Some(key) = &key {
                batch = batch.idempotency_key(key);
            }
            let record = sample(&batch, created_ms);
            let bytes = stored(&record);
            let raw = RawRecord::split(&bytes, 0).unwrap();
            prop_assert_eq!(
                (raw.head.len(), raw.end),
                (bytes.len() - record.body().len(), bytes.len())
            );
            prop_assert!(raw.body_matches());
            let read = Record::decode(&bytes, 0).unwrap();
            prop_assert_eq!(&read, &record);
            prop_assert_eq!(read.check_events(), Ok(()));
            prop_assert_eq!(read.key.as_ref().map(|key| key.text.to_string()), key);
            for (i, (frame, given)) in read.events().zip(&events).enumerate() {
                let event = frame.unwrap().event();
                prop_assert_eq!(event.seq, 40 + i as u64);
                prop_assert_eq!(Some(event.seq), read.seq_of(event.id));
                prop_assert_eq!(&event.event_type, &given.event_type);
                prop_assert_eq!(&event.data, &given.data);
                let turn = match given.turn {
                    Turn::None => None,
                    Turn::Opens => Some(event.id.into()),
                    Turn::Of(message) => Some(message),
                };
                prop_assert_eq!(event.message_id, turn);
            }
        }

        #[test]
        fn a_range_has_the_events_with_seqs_in_it(
            events in proptest::collection::vec(any_event(), 1..8),
            from in 37_u64..52,
            length in 0_u64..12,
        ) {
            let record = sample(&Batch::new().events(events), 0);
            let in_range: Vec<_> = record
                .events_in(&(from..=from + length))
                .map(|frame| frame.unwrap().event())
                .collect();
            let all = record.events().map(|frame| frame.unwrap().event());
            prop_assert_eq!(
                in_range,
                all.filter(|event| (from..=from + length).contains(&event.seq))
                    .collect::<Vec<_>>()
            );
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            if let Ok(record) = Record::decode(&Bytes::from(bytes), 0) {
                let _refused_or_not = record.check_events();
            }
        }

        #[test]
        fn a_flipped_bit_never_goes_unnoticed_together_with_the_heads_checksum(
            bit in 0_usize..8 * 60,
        ) {
            let record = sample(
                &Batch::new().event(NewEvent::new("a", "some data to flip a bit of")),
                9,
            );
            let bytes = stored(&record);
            let mut flipped = bytes.to_vec();
            prop_assume!(bit / 8 < flipped.len());
            flipped[bit / 8] ^= 1 << (bit % 8);
            let flipped = Bytes::from(flipped);
            let raw = RawRecord::split(&bytes, 0).unwrap();
            if let Ok(read) = RawRecord::split(&flipped, 0) {
                prop_assert!(read.head != raw.head || !read.body_matches());
            }
        }
    }

    #[test]
    fn the_fingerprint_tells_content_apart_and_nothing_else() {
        let print = |batch: Batch, session: &str| {
            let batch = batch.idempotency_key("k");
            EncodedBatch::new(&SessionId::new(session).unwrap(), batch)
                .key()
                .unwrap()
                .fingerprint
        };
        let one = || Batch::new().event(NewEvent::new("a", "1"));
        assert_eq!(print(one(), "s"), print(one(), "t"));
        assert_ne!(
            print(one(), "s"),
            print(Batch::new().event(NewEvent::new("a", "2")), "s")
        );
        assert_ne!(
            print(one(), "s"),
            print(Batch::new().event(NewEvent::new("b", "1")), "s")
        );
        assert_ne!(
            print(one(), "s"),
            print(one().event(NewEvent::new("a", "1")), "s")
        );
        let in_turn = NewEvent::new("a", "1").in_turn(EventId::from_u128(1).into());
        assert_ne!(print(one(), "s"), print(Batch::new().event(in_turn), "s"));
    }

    #[test]
    fn an_unknown_kind_is_unsupported() {
        let mut bytes = stored(&sample(&Batch::new().event(NewEvent::new("a", "1")), 9)).to_vec();
        bytes[9] = 2;
        let read = Record::decode(&Bytes::from(bytes), 0);
        assert_eq!(
            read.unwrap_err(),
            Fault::Unknown {
                what: "record kind",
                found: 2,
                supported: 1
            }
        );
    }
}
