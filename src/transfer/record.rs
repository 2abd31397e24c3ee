//! A batch as a line.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::codec::{BodyParts, Decoded, EventContent, EventFrame, EventParts, Record, Seat};
use crate::model::{EventId, Lineage, MessageId, Op, Producer, Seq, SessionId, Turn};
use crate::transfer::omit::is_false;

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RecordLine<'a> {
    #[serde(borrow)]
    session: Cow<'a, str>,
    generation: u32,
    first_seq: Seq,
    /// The ID of the first event, or of the first change if there is no event. The others follow.
    first_id: EventId,
    /// Milliseconds of the wall clock at the commit.
    time_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    key: Option<Cow<'a, str>>,
    /// The fingerprint of a keyed batch, in hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    fingerprint: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    producer: Option<ProducerLine<'a>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    changes: Vec<Op>,
    #[serde(default, skip_serializing_if = "Vec::is_empty", borrow)]
    events: Vec<EventLine<'a>>,
    checksum: u32,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    body_base64: Option<Cow<'a, str>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct ProducerLine<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    epoch: u64,
    seq: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct EventLine<'a> {
    #[serde(rename = "type", borrow)]
    event_type: Cow<'a, str>,
    #[serde(default, skip_serializing_if = "is_false")]
    opens_turn: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    turn: Option<MessageId>,
    #[serde(default, skip_serializing_if = "is_false")]
    redacted: bool,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    data: Option<&'a RawValue>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    data_text: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none", borrow)]
    data_base64: Option<Cow<'a, str>>,
}

impl<'a> RecordLine<'a> {
    pub(super) fn of(record: &'a Record) -> Decoded<Self> {
        let key = record.key.as_deref();
        let events = record.events().map(|frame| Ok(EventLine::of(&frame?)));
        let mut line = Self {
            session: record.session.as_str().into(),
            generation: record.generation,
            first_seq: record.first,
            first_id: record.base,
            time_ms: record.created_ms,
            key: key.map(|key| Cow::Borrowed(&*key.text)),
            fingerprint: key.map(|key| hexadecimal(&key.fingerprint).into()),
            producer: record.producer().map(|producer| ProducerLine {
                id: producer.id.as_str().into(),
                epoch: producer.epoch,
                seq: producer.seq,
            }),
            changes: record.ops().to_vec(),
            events: events.collect::<Decoded<_>>()?,
            checksum: record.body_checksum(),
            body_base64: None,
        };
        let comes_back = line.record().is_ok_and(|read| read == *record);
        if !comes_back || !come_back(&line.changes) {
            line.body_base64 = Some(STANDARD.encode(record.body()).into());
        }
        Ok(line)
    }

    /// Makes the record again.
    pub(super) fn record(&self) -> Result<Record, String> {
        let is_possible_seat =
            self.time_ms <= TIME_MS_MAX && self.first_seq < SEQ_MAX && self.generation < u32::MAX;
        if !is_possible_seat || !self.changes.iter().all(is_possible) {
            return Err("an impossible time, seq, generation or lineage".to_owned());
        }
        let seat = Seat {
            generation: self.generation,
            first: self.first_seq,
            base: self.first_id,
            created_ms: self.time_ms,
        };
        let body = match &self.body_base64 {
            Some(body) => decoded(body)?.into(),
            None => self.body()?,
        };
        let record = Record::with_body(seat, &body);
        let record = record.map_err(|fault| format!("it is no batch: {fault:?}"))?;
        if record.body_checksum() == self.checksum && record.session.as_str() == self.session {
            Ok(record)
        } else {
            Err("its checksum is that of another batch".to_owned())
        }
    }

    fn body(&self) -> Result<bytes::Bytes, String> {
        let session = SessionId::new(&*self.session).map_err(|error| error.to_string())?;
        let key = match (&self.key, &self.fingerprint) {
            (Some(key), Some(fingerprint)) => Some((&**key, from_hexadecimal(fingerprint)?)),
            (None, None) => None,
            _ => return Err("a key goes with its fingerprint".to_owned()),
        };
        let producer = self.producer.as_ref().map(|producer| Producer {
            id: producer.id.clone().into_owned(),
            epoch: producer.epoch,
            seq: producer.seq,
        });
        let binary = self.events.iter().map(EventLine::binary);
        let binary = binary.collect::<Result<Vec<_>, _>>()?;
        let events = self.events.iter().zip(&binary);
        let events = events.map(|(event, binary)| EventParts {
            turn: event.turn(),
            event_type: &event.event_type,
            content: event.content(binary.as_deref()),
        });
        let parts = BodyParts {
            session: &session,
            key,
            ops: self.changes.clone(),
            producer,
            events: events.collect(),
        };
        Ok(parts.encode())
    }
}

impl<'a> EventLine<'a> {
    fn of(frame: &EventFrame<'a>) -> Self {
        let mut line = Self {
            event_type: frame.view.event_type.into(),
            opens_turn: false,
            turn: None,
            redacted: frame.view.redacted,
            data: None,
            data_text: None,
            data_base64: None,
        };
        match frame.turn() {
            Turn::None => {}
            Turn::Opens => line.opens_turn = true,
            Turn::Of(message) => line.turn = Some(message),
        }
        match std::str::from_utf8(frame.view.data) {
            Ok("") => {}
            Ok(text) => match as_json(text) {
                Some(json) => line.data = Some(json),
                None => line.data_text = Some(text.into()),
            },
            Err(_binary) => line.data_base64 = Some(STANDARD.encode(frame.view.data).into()),
        }
        line
    }

    fn turn(&self) -> Turn {
        match self.turn {
            Some(message) => Turn::Of(message),
            None if self.opens_turn => Turn::Opens,
            None => Turn::None,
        }
    }

    /// Returns the data if it is in base64.
    fn binary(&self) -> Result<Option<Vec<u8>>, String> {
        self.data_base64.as_deref().map(decoded).transpose()
    }

    fn content<'b>(&'b self, binary: Option<&'b [u8]>) -> EventContent<'b> {
        if self.redacted {
            return EventContent::Redacted;
        }
        EventContent::Data(match (self.data, &self.data_text, binary) {
            (Some(json), _, _) => json.get().as_bytes(),
            (_, Some(text), _) => text.as_bytes(),
            (_, _, Some(bytes)) => bytes,
            _ => &[],
        })
    }
}

/// Far beyond any clock, and small enough to be the distance between two times.
const TIME_MS_MAX: u64 = 1 << 60;

/// Far beyond any session, and small enough to be added to.
const SEQ_MAX: Seq = 1 << 60;

/// Whether a change can be applied.
fn is_possible(op: &Op) -> bool {
    match op {
        Op::Fork(lineage) => is_possible_lineage(lineage),
        Op::Trim { first, .. } => *first < SEQ_MAX,
        _ => true,
    }
}

/// Whether a lineage can be read.
pub(super) fn is_possible_lineage(lineage: &Lineage) -> bool {
    let pieces = lineage.pieces.iter().map(|piece| piece.through);
    pieces
        .chain([lineage.first, lineage.at])
        .all(|seq| seq < SEQ_MAX)
}

/// Whether changes are the same after they were text. A number in a patch may not be.
fn come_back(changes: &[Op]) -> bool {
    changes.is_empty() || {
        let text = serde_json::to_string(changes);
        let read = text.and_then(|text| serde_json::from_str::<Vec<Op>>(&text));
        read.is_ok_and(|read| read == changes)
    }
}

/// Returns a text as JSON that is embedded as it is, if it can be on one line.
fn as_json(text: &str) -> Option<&RawValue> {
    let is_one_line = !text.contains(['\n', '\r']);
    let json: &RawValue = is_one_line
        .then(|| serde_json::from_str(text).ok())
        .flatten()?;
    (json.get().len() == text.len()).then_some(json)
}

fn decoded(text: &str) -> Result<Vec<u8>, String> {
    STANDARD
        .decode(text)
        .map_err(|error| format!("base64 that does not decode: {error}"))
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // Writing to a string does not fail.
        let _written = write!(text, "{byte:02x}");
    }
    text
}

fn from_hexadecimal<const BYTES: usize>(text: &str) -> Result<[u8; BYTES], String> {
    let mut bytes = [0; BYTES];
    let digits = text.as_bytes().chunks(2);
    let is_hexadecimal =
        text.len() == 2 * BYTES && text.bytes().all(|digit| digit.is_ascii_hexdigit());
    if !is_hexadecimal {
        return Err("a fingerprint that is no hexadecimal number of 64 digits".to_owned());
    }
    for (byte, digits) in bytes.iter_mut().zip(digits) {
        let digits = std::str::from_utf8(digits).unwrap_or_default();
        *byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
    }
    Ok(bytes)
}
