//! The shapes of the answers, and JSON that is passed through unchanged.

use std::borrow::Cow;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use indexmap::IndexMap;
use memchr::memchr2;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::{RawValue, to_raw_value};
use utoipa::ToSchema;

use crate::http::key::Access;
use crate::model::{Ack, Event, Metadata, Seq, SessionId, SessionInfo, opens_turn, time_text};
use crate::turn::{JsonText, MessageStatus, Sent, TurnText, lenient};

/// A stored event.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Event)]
pub(super) struct EventBody {
    /// Unique, and greater than the IDs of all events stored before, also when compared as text.
    #[schema(example = "evt_01JQ3W8K5T0000000000000001")]
    id: String,
    /// The session.
    #[schema(example = "sess_123")]
    session_id: String,
    /// The position in the session, from 1 and without gaps. If-Match takes that of the newest
    /// event.
    #[schema(minimum = 1)]
    seq: Seq,
    /// The turn that the event opened or belongs to.
    #[schema(example = "msg_01JQ3W8K5T0000000000000001")]
    message_id: Option<String>,
    /// The type.
    #[schema(example = "user.message")]
    r#type: String,
    /// The data as it was appended. The data of a `user.message` has `content`, `metadata` and the
    /// `message_id`. Parts that are not JSON, such as `NaN`, are strings of their text. If none of
    /// it is JSON, this is `null`.
    #[schema(value_type = Value)]
    data: Box<RawValue>,
    /// The data in base64, if it or a part of it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_base64: Option<String>,
    /// When it was stored, in UTC.
    #[schema(format = DateTime)]
    created_at: String,
    /// `true` when the data was redacted, and is then `null`. Absent otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    redacted: Option<bool>,
}

impl From<&Event> for EventBody {
    fn from(event: &Event) -> Self {
        let message_id = event.message_id.map(|id| id.to_string());
        let opened = message_id
            .as_deref()
            .filter(|_id| opens_turn(&event.event_type));
        if let Some(data) = opened.and_then(|id| of_message(&event.data, id)) {
            return Self::new(event, message_id, data, None);
        }
        let (data, data_base64) = match serde_json::from_slice::<&RawValue>(&event.data) {
            Ok(data) => (Cow::Borrowed(data), None),
            Err(_no_data) if event.redacted => (Cow::Owned(RawValue::NULL.to_owned()), None),
            Err(_no_json) => (
                Cow::Owned(repaired(&event.data)),
                Some(BASE64_STANDARD.encode(&event.data)),
            ),
        };
        let data = match opened {
            Some(id) => with_message_id(&data, id),
            None => data.into_owned(),
        };
        Self::new(event, message_id, data, data_base64)
    }
}

impl EventBody {
    fn new(
        event: &Event,
        message_id: Option<String>,
        data: Box<RawValue>,
        data_base64: Option<String>,
    ) -> Self {
        Self {
            id: event.id.to_string(),
            session_id: event.session_id.to_string(),
            seq: event.seq,
            message_id,
            r#type: event.event_type.to_string(),
            data,
            data_base64,
            created_at: time_text(event.created_at),
            redacted: event.redacted.then_some(true),
        }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }
}

fn repaired(data: &[u8]) -> Box<RawValue> {
    let json =
        lenient::repaired(data).and_then(|repaired| RawValue::from_string(repaired.text).ok());
    json.unwrap_or_else(|| RawValue::NULL.to_owned())
}

/// What a message is stored as, when it came over HTTP or from a
/// [`UserMessage`](crate::UserMessage).
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoredMessage<'a> {
    #[serde(borrow)]
    content: &'a RawValue,
    #[serde(borrow)]
    metadata: &'a RawValue,
    #[serde(skip_deserializing)]
    message_id: &'a str,
}

/// Does what [`with_message_id`] does, for data that has these two fields and in this order.
fn of_message(data: &[u8], id: &str) -> Option<Box<RawValue>> {
    let stored: StoredMessage<'_> = serde_json::from_slice(data).ok()?;
    let is_in_order = stored.content.get().as_ptr() < stored.metadata.get().as_ptr();
    is_in_order.then(|| {
        to_raw_value(&StoredMessage {
            message_id: id,
            ..stored
        })
        .expect("JSON and a string have a JSON form")
    })
}

/// Puts the message ID after the fields of an object. Other data stays as it is.
fn with_message_id(data: &RawValue, id: &str) -> Box<RawValue> {
    let Ok(mut fields) = serde_json::from_str::<IndexMap<Cow<'_, str>, &RawValue>>(data.get())
    else {
        return with_last(data, id);
    };
    let id = to_raw_value(id).expect("a string has a JSON form");
    fields.shift_remove("message_id");
    fields.insert(Cow::Borrowed("message_id"), &id);
    to_raw_value(&fields).expect("JSON under string keys has a JSON form")
}

/// Like [`with_message_id`], for an object with a key that no Rust string can hold. Of a repeated
/// key, readers use the last.
fn with_last(data: &RawValue, id: &str) -> Box<RawValue> {
    let fields = data
        .get()
        .strip_prefix('{')
        .and_then(|fields| fields.strip_suffix('}'));
    let json = fields.map(|fields| format!(r#"{{{fields},"message_id":"{id}"}}"#));
    json.and_then(|json| RawValue::from_string(json).ok())
        .unwrap_or_else(|| data.to_owned())
}

/// Removes the white space between the parts of JSON, so that it takes one line. The spelling of
/// numbers and strings stays.
pub(crate) fn compact(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    let mut rest = json;
    while let Some((between, string)) = rest.find('"').and_then(|at| rest.split_at_checked(at)) {
        push_without_space(&mut out, between);
        let (string, behind) = string.split_at(string_bytes(string));
        out.push_str(string);
        rest = behind;
    }
    push_without_space(&mut out, rest);
    out
}

fn push_without_space(out: &mut String, json: &str) {
    json.split_ascii_whitespace()
        .for_each(|part| out.push_str(part));
}

/// Returns the length of the string that JSON begins with.
fn string_bytes(json: &str) -> usize {
    let mut at = 1;
    loop {
        let rest = json.as_bytes().get(at..).unwrap_or_default();
        match memchr2(b'"', b'\\', rest) {
            Some(ahead) if rest.get(ahead) == Some(&b'"') => return at + ahead + 1,
            Some(ahead) => at += ahead + 2,
            None => return json.len(),
        }
    }
}

/// The events that were appended.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Appended {
    /// The stored events, in the order of the request.
    events: Vec<EventBody>,
}

impl Appended {
    pub(super) fn of(ack: &Ack) -> Self {
        Self {
            events: ack.events.iter().map(EventBody::from).collect(),
        }
    }
}

/// The range of a page, and whether there is more.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Bounds {
    /// Whether the range continues after this page, in its order.
    pub has_more: bool,
    /// The first ID on the page. `null` when the page is empty. If a filter has found nothing yet,
    /// the position of the search.
    pub first_id: Option<String>,
    /// The last ID on the page, to continue from: with `after`, or with `before` if the order is
    /// `desc`. To read the events before some event page by page, use `desc`. With `asc` such a
    /// page begins at the start of the session, and a request has only one cursor.
    pub last_id: Option<String>,
    /// The session's newest event. `null` when it has had none.
    pub tail_id: Option<String>,
}

/// A page of a session's events.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Events {
    pub events: Vec<EventBody>,
    #[serde(flatten)]
    pub bounds: Bounds,
}

/// A page of a session's turns.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Messages {
    pub messages: Vec<MessageBody>,
    #[serde(flatten)]
    pub bounds: Bounds,
}

/// A turn as one value: the user's message, the state of the work on it, and its output.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Message)]
pub(super) struct MessageBody {
    /// The ID of the event that opened the turn, with `msg_`.
    #[schema(example = "msg_01JQ3W8K5T0000000000000001")]
    id: String,
    #[schema(example = "sess_123")]
    session_id: String,
    /// The position in the session of the event that opened the turn, from 1.
    #[schema(minimum = 1)]
    sequence_number: Seq,
    #[schema(value_type = Status)]
    status: MessageStatus,
    /// `true` when the event that opened the turn was redacted. There is no content then. Absent
    /// otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = bool, required = false)]
    redacted: Option<bool>,
    #[schema(value_type = Vec<Object>)]
    content: Box<RawValue>,
    #[schema(value_type = Object)]
    metadata: Box<RawValue>,
    /// The number of the current attempt, from 1.
    #[schema(minimum = 1)]
    attempt: u32,
    /// The assistant's messages, in order. The last is the answer.
    #[schema(value_type = Vec<Value>)]
    output: Vec<JsonText>,
    /// The number of the earliest outputs that are left out, when all are too large for one answer.
    /// They are in the session's events.
    output_omitted: u64,
    /// The error that came with the status `failed`.
    #[schema(value_type = Option<Value>)]
    error: Option<JsonText>,
    #[schema(format = DateTime)]
    created_at: String,
    /// When the turn ended.
    #[schema(format = DateTime)]
    completed_at: Option<String>,
}

/// The state of the work on a turn. `completed`, `failed` and `cancelled` are final.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[expect(dead_code, reason = "it stands for `MessageStatus` in the document")]
pub(super) enum Status {
    Queued,
    Running,
    WaitingForTool,
    Completed,
    Failed,
    Cancelled,
}

impl From<TurnText> for MessageBody {
    fn from(turn: TurnText) -> Self {
        let TurnText {
            message,
            sent,
            output,
            error,
        } = turn;
        let (content, metadata) = sent
            .as_ref()
            .map_or_else(|| Sent::default().shown(), Sent::shown_of);
        Self {
            id: message.id.to_string(),
            session_id: message.session_id.to_string(),
            sequence_number: message.seq,
            status: message.status,
            redacted: message.redacted.then_some(true),
            content,
            metadata,
            attempt: message.attempt,
            output,
            output_omitted: message.output_omitted,
            error,
            created_at: time_text(message.created_at),
            completed_at: message.completed_at.map(time_text),
        }
    }
}

/// The sessions of a store.
#[derive(Debug, Default, Serialize, ToSchema)]
#[expect(
    clippy::struct_field_names,
    reason = "clients know the field by this name"
)]
pub(super) struct Sessions {
    pub sessions: Vec<SessionBody>,
    /// Whether there may be more sessions, in the direction of the page. A filtered page looks at a
    /// bounded number of sessions, and may hold few or none.
    pub has_more: bool,
    /// The position of the first session, to continue from with `before`.
    pub first_cursor: Option<String>,
    /// The position of the last session, to continue from with `after`.
    pub last_cursor: Option<String>,
}

/// A session.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Session)]
pub(super) struct SessionBody {
    #[schema(example = "sess_123")]
    id: String,
    /// How often it has begun: 1, and one more for each time that it was deleted before.
    #[schema(minimum = 1)]
    generation: u32,
    /// The first seq that is kept, which is `last_seq + 1` when none is.
    #[schema(minimum = 1)]
    first_seq: Seq,
    /// The last seq, for If-Match; 0 when it has had no event.
    last_seq: Seq,
    /// The number of its events that are kept.
    events: Seq,
    /// The bytes of these events.
    bytes: u64,
    /// The newest event.
    last_event_id: Option<String>,
    /// The time of its newest event, in UTC. Before the first event, when it was created.
    #[schema(format = DateTime)]
    last_event_at: String,
    /// When it was created, in UTC.
    #[schema(format = DateTime)]
    created_at: String,
    /// Whether it takes no more events.
    closed: bool,
    /// Whether it is exempt from deletion.
    hold: bool,
    title: Option<String>,
    #[schema(value_type = Object)]
    metadata: Metadata,
    /// The session that it was forked from.
    parent: Option<ParentBody>,
    /// Changes with every change that is no event.
    revision: u64,
}

/// The origin of a fork.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Parent)]
struct ParentBody {
    id: String,
    generation: u32,
    /// The seq of the last event that both share.
    at: Seq,
}

/// The member of the metadata that names the session which a stream was forked from.
pub(crate) const STREAM_SOURCE: &str = "durable_stream_source";

/// Leaves out the source of a stream that the caller may not know of.
pub(super) fn hide_source(metadata: &mut Metadata, access: &Access) {
    let source = metadata.get(STREAM_SOURCE).and_then(Value::as_str);
    let source = source.and_then(|source| SessionId::new(source).ok());
    if source.is_some_and(|source| !access.has(&source)) {
        metadata.remove(STREAM_SOURCE);
    }
}

impl SessionBody {
    /// Shows a session to a caller. A parent or a source that the caller may not know of is left
    /// out.
    pub(super) fn new(mut session: SessionInfo, access: &Access) -> Self {
        hide_source(&mut session.metadata, access);
        let parent = session.parent.filter(|parent| access.has(&parent.id));
        Self {
            id: session.id.to_string(),
            generation: session.generation,
            first_seq: session.first,
            last_seq: session.last,
            events: session.events,
            bytes: session.bytes,
            last_event_id: session.last_id.map(|id| id.to_string()),
            last_event_at: time_text(session.active_at),
            created_at: time_text(session.created_at),
            closed: session.closed,
            hold: session.hold,
            title: session.title,
            metadata: session.metadata,
            parent: parent.map(|parent| ParentBody {
                id: parent.id.to_string(),
                generation: parent.generation,
                at: parent.at,
            }),
            revision: session.revision,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_json_says_the_same_on_one_line() {
        let json = "{\r\n \"a b\" : [ 1.10 , \"\\\" x \\\\\" ,\t\"\\u000a\" ] }";
        let line = compact(json);
        assert_eq!(line, r#"{"a b":[1.10,"\" x \\","\u000a"]}"#);
        assert_eq!(
            serde_json::from_str::<Value>(&line).unwrap(),
            serde_json::from_str::<Value>(json).unwrap()
        );
    }

    #[test]
    fn a_message_id_takes_the_place_of_what_was_called_so() {
        let data: &RawValue =
            serde_json::from_str(r#"{"message_id":1,"z":1e400,"a":12345678901234567890123}"#)
                .unwrap();
        assert_eq!(
            with_message_id(data, "msg_1").get(),
            r#"{"z":1e400,"a":12345678901234567890123,"message_id":"msg_1"}"#
        );
        let data: &RawValue = serde_json::from_str(r#"{"\ud83d":{"a":1e400}}"#).unwrap();
        assert_eq!(
            with_message_id(data, "msg_1").get(),
            r#"{"\ud83d":{"a":1e400},"message_id":"msg_1"}"#
        );
        let text: &RawValue = serde_json::from_str("\"no object\"").unwrap();
        assert_eq!(with_message_id(text, "msg_1").get(), "\"no object\"");
    }
}
