//! A turn as one message: a pure fold over the turn's events, oldest first.
//!
//! The fold reads nothing, keeps no clock and never fails on an event. Types are an open set and
//! data is opaque to the log, so an event that does not fit is ignored. The event that opens the
//! turn makes the message: queued, attempt 1. Later events apply until the first final status.
//!
//! # Events
//!
//! Events of another turn or session, events that are not newer than the last applied one, and
//! events whose data is not JSON are ignored. So are events of types not listed here.
//!
//! * `message.status_changed` with `{status, attempt?, error?}` sets the status as in the next
//!   section. It is ignored without a known `status`.
//! * `assistant.message_completed` with any JSON is appended to `output`, unless it repeats the
//!   message before it with no tool event between. A queued turn becomes running.
//! * `tool.call_requested` with `{call_id?, calls?: [{id}], id?}` makes each call outstanding,
//!   unless it was answered already. A queued turn becomes running.
//! * `tool.call_completed` and `tool.call_failed` with the same data answer each call. A failed
//!   call is for the agent to handle and does not fail the turn.
//!
//! # Statuses
//!
//! A status of an older attempt than the current one is late and ignored. Otherwise:
//!
//! | status | of the current attempt | of a later attempt |
//! |---|---|---|
//! | `queued` | ignored: a turn does not go back | begins that attempt |
//! | `running` | running | begins that attempt |
//! | `waiting_for_tool` | waiting | ignored: it announces no attempt |
//! | `completed`, `failed`, `cancelled` | final | final, with that `attempt` and the output |
//!
//! To begin an attempt drops the output and the calls of the earlier one.
//!
//! # JSON
//!
//! JSON is read as other languages write it. A leaf that `serde_json` refuses, such as a string
//! with half an emoji, is read as its text by the rules of [`lenient`]. Only the fields named above
//! are decoded, so nothing else in the data hides them. Each may be absent or `null`. Of a repeated
//! field the last that fits counts. An `attempt` is a whole number from 1, also written as `2.0` or
//! `"2"`. Without one that fits, the status is of the current attempt. An `error` is any JSON.
//!
//! # Tool calls
//!
//! Until the turn is final, its status is `waiting_for_tool` as long as a call is outstanding, and
//! `running` once the last one is answered.
//!
//! A call is identified by its `call_id`, else by the IDs in `calls`, else by its `id`. A call
//! without an ID is only counted. An ID is a string or a number. `1`, `1.0` and `"1"` are the same
//! ID, and an empty string is no ID. `calls` may be an object with the keys `"1"`, `"2"`, since Lua
//! writes some lists so.
//!
//! An answer is matched with a call in this order:
//!
//! * An answer with the ID of an outstanding call answers that call.
//! * An answer with the ID of a call that has its answer is a duplicate.
//! * An answer with an unknown ID answers a call without an ID.
//! * An answer without an ID answers a call without an ID, else any call.
//!
//! An answer that matches no call is late or a duplicate, and changes no status.

use std::fmt::{self};
use std::num::NonZeroU32;

use jiff::Timestamp;
use serde::de::value::{Error as NoStatus, StrDeserializer};
use serde::de::{DeserializeOwned, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Map;
use serde_json::value::RawValue;

use crate::model::{Error, EventView, MessageId, Result, Seq, SessionId, opens_turn};
use crate::turn::json_text::JsonText;
use crate::turn::lenient;
use crate::turn::message::{Message, MessageStatus};
use crate::turn::tool_calls::{Calls, ToolEvent};
use crate::turn::user_message::UserMessage;

const STATUS_CHANGED: &str = "message.status_changed";
const ASSISTANT_COMPLETED: &str = "assistant.message_completed";
const TOOL_REQUESTED: &str = "tool.call_requested";
const TOOL_COMPLETED: &str = "tool.call_completed";
const TOOL_FAILED: &str = "tool.call_failed";

/// Whether the event may end its turn.
#[cfg(feature = "http")]
pub(crate) fn may_end_turn(event: EventView<'_>) -> bool {
    event.event_type == STATUS_CHANGED
        && StatusChanged::of(event).is_some_and(|changed| changed.status.is_final())
}

/// The message after the events applied so far. The module's doc has the rules.
#[derive(Debug, Clone)]
pub(crate) struct Fold {
    /// The message without `content`, `metadata`, `output` and `error`, and without the wait for
    /// outstanding calls. They are added when the message is taken out.
    message: Message,
    /// The data of the event that opened the turn, if it is JSON.
    sent: Option<JsonText>,
    said: Vec<JsonText>,
    error: Option<JsonText>,
    calls: Calls,
    /// The seq of the last applied event, so that reads may overlap.
    last_seq: Seq,
    /// Whether a tool event came after the last assistant message. If so, the same message again is
    /// not a repeat.
    tools_since_output: bool,
    /// The memory that the outputs and the error take as [`Value`](serde_json::Value)s.
    said_bytes: usize,
}

/// A turn as one message, with its content, outputs and error as text.
///
/// Callers choose these, and as values they could take a hundred times the memory.
#[derive(Debug)]
pub(crate) struct TurnText {
    /// The message without content, metadata, output and error.
    pub message: Message,
    /// The data of the event that opened the turn, if it is JSON.
    pub sent: Option<JsonText>,
    pub output: Vec<JsonText>,
    pub error: Option<JsonText>,
}

impl Fold {
    /// Begins with the event that opened the turn.
    ///
    /// Its data may be anything, since the log accepts any bytes under any type. A reader is better
    /// served by a message without content than by none.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownMessage`] when `opening` does not open a turn.
    pub(crate) fn open(opening: EventView<'_>) -> Result<Self> {
        let id = MessageId::from(opening.id);
        if opening.message_id != Some(id) || !opens_turn(opening.event_type) {
            return Err(Error::UnknownMessage { id });
        }
        let message = Message {
            id,
            // A message may be kept for long and must not keep alive the block that the event was
            // read from.
            session_id: opening.session_id.detached(),
            seq: opening.seq,
            status: MessageStatus::Queued,
            redacted: opening.redacted,
            content: Vec::new(),
            metadata: Map::new(),
            attempt: 1,
            output: Vec::new(),
            output_omitted: 0,
            error: None,
            created_at: opening.created_at,
            completed_at: None,
        };
        Ok(Self {
            message,
            sent: JsonText::of(opening.data),
            said: Vec::new(),
            error: None,
            calls: Calls::default(),
            last_seq: opening.seq,
            tools_since_output: false,
            said_bytes: 0,
        })
    }

    /// The approximate memory of the message. Before it is taken out, the fold takes less.
    pub(crate) fn kept_bytes(&self) -> usize {
        self.sent.as_ref().map_or(0, JsonText::value_bytes) + self.said_bytes + self.calls.bytes()
    }

    /// Leaves out the earliest outputs, but not the last, until the fold keeps at most `bytes_max`.
    pub(crate) fn omit_outputs(&mut self, bytes_max: usize) {
        let (excess, mut omitted, mut bytes) = (self.kept_bytes().saturating_sub(bytes_max), 0, 0);
        for output in self.said.iter().rev().skip(1).rev() {
            if bytes >= excess {
                break;
            }
            (omitted, bytes) = (omitted + 1, bytes + output.value_bytes());
        }
        self.said.drain(..omitted);
        self.message.output_omitted += omitted as u64;
        self.said_bytes -= bytes;
    }

    /// Gives up the message's memory. Its status and its position stay.
    pub(crate) fn drop_content(&mut self) {
        self.sent = None;
        self.said.clear();
        self.said_bytes = 0;
        self.error = None;
        self.calls = Calls::default();
    }

    /// Applies the session's next event, if it is part of this turn.
    pub(crate) fn apply(&mut self, event: EventView<'_>) {
        if self.is_final() || !self.is_next(event) {
            return;
        }
        self.last_seq = event.seq;
        match event.event_type {
            STATUS_CHANGED => self.status_changed(event),
            ASSISTANT_COMPLETED => self.assistant_completed(event),
            TOOL_REQUESTED => self.tool_requested(event),
            TOOL_COMPLETED | TOOL_FAILED => self.tool_answered(event),
            _ => {}
        }
    }

    /// The ID of the message.
    pub(crate) fn id(&self) -> MessageId {
        self.message.id
    }

    /// The session and the seq of the event that opened the turn.
    pub(crate) fn opened_at(&self) -> (&SessionId, Seq) {
        (&self.message.session_id, self.message.seq)
    }

    /// Whether no later event can change the message.
    pub(crate) fn is_final(&self) -> bool {
        self.message.status.is_final()
    }

    /// Returns the message after the events applied so far.
    pub(crate) fn into_message(self) -> Message {
        let TurnText {
            message,
            sent,
            output,
            error,
        } = self.into_text();
        let UserMessage { content, metadata } = sent.map_or_else(UserMessage::default, |sent| {
            UserMessage::from_data_lossy(sent.written().as_bytes())
        });
        let output = output.iter().map(JsonText::value).collect();
        Message {
            content,
            metadata,
            output,
            error: error.as_ref().map(JsonText::value),
            ..message
        }
    }

    /// Like [`into_message`](Self::into_message), but with content, outputs and error as text.
    pub(crate) fn into_text(self) -> TurnText {
        let waits = self.calls.are_outstanding() && !self.is_final();
        let status = if waits {
            MessageStatus::WaitingForTool
        } else {
            self.message.status
        };
        TurnText {
            message: Message {
                status,
                ..self.message
            },
            sent: self.sent,
            output: self.said,
            error: self.error,
        }
    }

    fn is_next(&self, event: EventView<'_>) -> bool {
        event.message_id == Some(self.message.id)
            && *event.session_id == self.message.session_id
            && event.seq > self.last_seq
    }

    fn status_changed(&mut self, event: EventView<'_>) {
        let Some(StatusChanged {
            status,
            attempt,
            error,
        }) = StatusChanged::of(event)
        else {
            return;
        };
        let attempt = attempt.map_or(self.message.attempt, NonZeroU32::get);
        if attempt < self.message.attempt {
            return;
        }
        let is_later = attempt > self.message.attempt;
        match (status, is_later) {
            (MessageStatus::Completed | MessageStatus::Cancelled, _) => {
                self.finish(status, attempt, None, event.created_at);
            }
            (MessageStatus::Failed, _) => self.finish(status, attempt, error, event.created_at),
            (MessageStatus::Queued | MessageStatus::Running, true) => self.begin(status, attempt),
            (MessageStatus::Running | MessageStatus::WaitingForTool, false) => {
                self.message.status = status;
            }
            (MessageStatus::Queued, false) | (MessageStatus::WaitingForTool, true) => {}
        }
    }

    fn begin(&mut self, status: MessageStatus, attempt: u32) {
        self.message.status = status;
        self.message.attempt = attempt;
        self.said.clear();
        self.message.output_omitted = 0;
        self.said_bytes = 0;
        self.calls = Calls::default();
        self.tools_since_output = false;
    }

    fn finish(
        &mut self,
        status: MessageStatus,
        attempt: u32,
        error: Option<JsonText>,
        at: Timestamp,
    ) {
        self.message.status = status;
        self.message.attempt = attempt;
        self.said_bytes += error.as_ref().map_or(0, JsonText::value_bytes);
        self.error = error;
        self.message.completed_at = Some(at);
    }

    fn assistant_completed(&mut self, event: EventView<'_>) {
        let Some(said) = JsonText::of(event.data) else {
            return;
        };
        self.work_shows();
        if self.tools_since_output || !self.said.last().is_some_and(|last| last.says_as(&said)) {
            self.said_bytes += said.value_bytes();
            self.said.push(said);
            self.tools_since_output = false;
        }
    }

    fn tool_requested(&mut self, event: EventView<'_>) {
        let Some(tool) = decode::<ToolEvent>(event) else {
            return;
        };
        self.work_shows();
        self.tools_since_output = true;
        tool.each_call(|id| self.calls.request(id));
    }

    fn tool_answered(&mut self, event: EventView<'_>) {
        let Some(tool) = decode::<ToolEvent>(event) else {
            return;
        };
        self.tools_since_output = true;
        let were_outstanding = self.calls.are_outstanding();
        tool.each_call(|id| self.calls.answer(id));
        if were_outstanding && !self.calls.are_outstanding() {
            self.message.status = MessageStatus::Running;
        }
    }

    /// Work on a turn shows that it is running, even if no status event does.
    fn work_shows(&mut self) {
        if self.message.status == MessageStatus::Queued {
            self.message.status = MessageStatus::Running;
        }
    }
}

/// The content of a status event. The rest of its data is skipped unread.
struct StatusChanged {
    status: MessageStatus,
    attempt: Option<NonZeroU32>,
    error: Option<JsonText>,
}

impl StatusChanged {
    fn of(event: EventView<'_>) -> Option<Self> {
        let StatusFields {
            status,
            attempt,
            error,
        } = decode(event)?;
        let error = error.and_then(|error| JsonText::of(error.get().as_bytes()));
        Some(Self {
            status: status?,
            attempt,
            error,
        })
    }
}

/// The fields of a status event. Each may be missing.
#[derive(Default)]
struct StatusFields {
    status: Option<MessageStatus>,
    attempt: Option<NonZeroU32>,
    error: Option<Box<RawValue>>,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum StatusField {
    Status,
    Attempt,
    Error,
    #[serde(other)]
    Other,
}

impl<'de> Deserialize<'de> for StatusFields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = StatusFields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<StatusFields, A::Error> {
                let mut said = StatusFields::default();
                while let Some(field) = fields.next_key()? {
                    match field {
                        StatusField::Status => {
                            said.status =
                                status_of(&fields.next_value::<Box<RawValue>>()?).or(said.status);
                        }
                        StatusField::Attempt => {
                            said.attempt =
                                attempt_of(&fields.next_value::<Box<RawValue>>()?).or(said.attempt);
                        }
                        StatusField::Error => said.error = fields.next_value()?,
                        StatusField::Other => drop(fields.next_value::<IgnoredAny>()?),
                    }
                }
                Ok(said)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

fn status_of(value: &RawValue) -> Option<MessageStatus> {
    let name = lenient::text_of(value)?;
    MessageStatus::deserialize(StrDeserializer::<NoStatus>::new(&name)).ok()
}

/// Attempts count from 1.
fn attempt_of(value: &RawValue) -> Option<NonZeroU32> {
    lenient::text_of(value)?.parse().ok()
}

/// Decodes the event's data. `None` for data of another shape: the fold ignores such an event.
fn decode<T: DeserializeOwned>(event: EventView<'_>) -> Option<T> {
    lenient::from_slice(event.data).ok()
}

#[cfg(test)]
mod written;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use serde_json::json;

    use serde_json::Value;

    use super::*;
    use crate::model::{Event, EventId, EventType, USER_MESSAGE};
    use crate::turn::ContentBlock;

    pub(super) const OPENING_SEQ: Seq = 4;

    /// Makes an event of the turn under test, except for its seq and time.
    pub(super) fn event(event_type: &str, data: impl AsRef<[u8]>) -> Event {
        Event {
            id: EventId::from_u128(1_000),
            session_id: "sess_123".parse().unwrap(),
            seq: OPENING_SEQ,
            event_type: EventType::unchecked(event_type),
            data: bytes::Bytes::copy_from_slice(data.as_ref()),
            message_id: Some(EventId::from_u128(1_000).into()),
            created_at: Timestamp::from_second(1_774_982_400).unwrap(),
            redacted: false,
        }
    }

    pub(super) fn opening() -> Event {
        event(
            USER_MESSAGE,
            concat!(
                r#"{"content":[{"type":"text","text":"Summarize."}],"#,
                r#""metadata":{"ticket_id":"T-1042"}}"#
            ),
        )
    }

    fn json_event(event_type: &str, data: &Value) -> Event {
        event(event_type, data.to_string())
    }

    fn status(data: &Value) -> Event {
        json_event(STATUS_CHANGED, data)
    }

    fn said(text: &str) -> Event {
        json_event(ASSISTANT_COMPLETED, &json!({ "text": text }))
    }

    fn requested(data: &Value) -> Event {
        json_event(TOOL_REQUESTED, data)
    }

    fn answered(data: &Value) -> Event {
        json_event(TOOL_COMPLETED, data)
    }

    /// Numbers the events as the session would, one second apart, and folds them.
    fn fold(events: &[Event]) -> Fold {
        let mut fold = Fold::open(opening().view()).unwrap();
        for (seq, event) in (OPENING_SEQ + 1..).zip(events) {
            let created_at =
                Timestamp::from_second(1_774_982_400 + i64::try_from(seq).unwrap()).unwrap();
            fold.apply(
                Event {
                    seq,
                    id: EventId::from_u128(u128::from(seq) + 1_000),
                    created_at,
                    ..event.clone()
                }
                .view(),
            );
        }
        fold
    }

    fn message(events: &[Event]) -> Message {
        fold(events).into_message()
    }

    #[track_caller]
    fn check(events: &[Event], status: MessageStatus, attempt: u32, output: &[&str]) {
        let message = message(events);
        let texts: Vec<&str> = message
            .output
            .iter()
            .map(|data| data["text"].as_str().unwrap())
            .collect();
        assert_eq!(
            (message.status, message.attempt, texts.as_slice()),
            (status, attempt, output)
        );
        assert_eq!(message.completed_at.is_some(), status.is_final());
    }

    #[track_caller]
    fn check_status(events: &[Event], status: MessageStatus) {
        assert_eq!(message(events).status, status);
    }

    use MessageStatus::{Cancelled, Completed, Failed, Queued, Running, WaitingForTool};

    #[test]
    fn of_a_repeated_field_the_last_counts() {
        check_status(
            &[event(
                STATUS_CHANGED,
                r#"{"status":"running","status":"completed"}"#,
            )],
            Completed,
        );
        check_status(
            &[event(
                STATUS_CHANGED,
                r#"{"status":"running","attempt":0,"attempt":1}"#,
            )],
            Running,
        );
        let misfits =
            r#"{"status":"running","attempt":2,"status":7,"attempt":null,"status":"paused"}"#;
        check(&[event(STATUS_CHANGED, misfits)], Running, 2, &[]);
        let failed = message(&[event(
            STATUS_CHANGED,
            r#"{"status":"failed","error":1,"error":{"code":2}}"#,
        )]);
        assert_eq!(failed.error, Some(json!({"code": 2})));
        let called = event(
            TOOL_REQUESTED,
            r#"{"call_id":"a","call_id":null,"calls":[{"id":"b"}],"calls":{"x":1}}"#,
        );
        check_status(&[called, answered(&json!({"call_id": "a"}))], Running);
    }

    #[test]
    fn a_turn_begins_queued_with_what_the_user_sent() {
        let message = message(&[]);
        assert_eq!(message.id, EventId::from_u128(1_000).into());
        assert_eq!(message.content, [ContentBlock::text("Summarize.")]);
        assert_eq!(message.metadata["ticket_id"], "T-1042");
        assert_eq!(
            (message.seq, message.status, message.attempt),
            (OPENING_SEQ, Queued, 1)
        );
    }

    #[test]
    fn only_an_event_that_opens_a_turn_is_a_message() {
        let other_turn = Event {
            message_id: Some(EventId::from_u128(999).into()),
            ..opening()
        };
        let no_turn = Event {
            message_id: None,
            ..opening()
        };
        let other_type = Event {
            event_type: EventType::unchecked("assistant.message_completed"),
            ..opening()
        };
        for not_opening in [other_turn, no_turn, other_type] {
            let error = Fold::open(not_opening.view()).unwrap_err();
            assert!(matches!(
                error,
                Error::UnknownMessage { id } if id == EventId::from_u128(1_000).into()
            ));
        }
    }

    #[test]
    fn a_turn_opened_with_any_bytes_is_a_message_without_content() {
        for data in ["", "hello", "[1]", r#"{"content":"hello"}"#, "\u{0}"] {
            let mut fold = Fold::open(event(USER_MESSAGE, data).view()).unwrap();
            fold.apply(
                Event {
                    seq: OPENING_SEQ + 1,
                    ..status(&json!({"status": "completed"}))
                }
                .view(),
            );
            let message = fold.into_message();
            assert!(message.content.is_empty() && message.metadata.is_empty());
            assert_eq!(message.status, Completed);
        }
    }

    #[test]
    fn it_serializes_as_the_contract_says() {
        let events = [
            status(&json!({"status": "running"})),
            said("Done."),
            status(&json!({"status": "failed", "error": {"code": 7}})),
        ];
        let expected = json!({
            "id": MessageId::from(EventId::from_u128(1_000)).to_string(),
            "session_id": "sess_123",
            "sequence_number": 4,
            "status": "failed",
            "content": [{"type": "text", "text": "Summarize."}],
            "metadata": {"ticket_id": "T-1042"},
            "attempt": 1,
            "output": [{"text": "Done."}],
            "output_omitted": 0,
            "error": {"code": 7},
            "created_at": "2026-03-31T18:40:00.000Z",
            "completed_at": "2026-03-31T18:40:07.000Z",
        });
        assert_eq!(serde_json::to_value(message(&events)).unwrap(), expected);
        assert_eq!(
            serde_json::to_value(message(&[])).unwrap()["completed_at"],
            Value::Null
        );
    }

    #[test]
    fn a_status_has_one_name() {
        for status in [
            Queued,
            Running,
            WaitingForTool,
            Completed,
            Failed,
            Cancelled,
        ] {
            assert_eq!(serde_json::to_value(status).unwrap(), status.to_string());
        }
    }

    #[test]
    fn an_assistant_message_alone_finishes_nothing() {
        check(&[said("a")], Running, 1, &["a"]);
        check(
            &[
                said("a"),
                status(&json!({"status": "completed", "attempt": 1})),
            ],
            Completed,
            1,
            &["a"],
        );
    }

    #[test]
    fn output_is_every_assistant_message_in_order() {
        let call = [
            requested(&json!({"tool": "shell", "calls": null})),
            answered(&json!({"output": "ok"})),
        ];
        let [request, answer] = call;
        let events = [
            said("a"),
            request.clone(),
            answer.clone(),
            said("b"),
            request.clone(),
            answer.clone(),
            said("b"),
            said("a"),
        ];
        check(&events, Running, 1, &["a", "b", "b", "a"]);
        check(
            &[said("a"), status(&json!({"status": "running"})), said("a")],
            Running,
            1,
            &["a"],
        );
    }

    #[test]
    fn the_fold_ends_at_the_first_final_status() {
        let done = status(&json!({"status": "completed"}));
        let failed = status(&json!({"status": "failed", "error": "no"}));
        let again = status(&json!({"status": "running", "attempt": 2}));
        let whole = message(&[said("a"), done.clone()]);
        assert_eq!(
            message(&[
                said("a"),
                done.clone(),
                failed.clone(),
                again.clone(),
                said("b"),
                requested(&json!({}))
            ]),
            whole
        );
        assert_eq!(whole.error, None);
        let cancelled = status(&json!({"status": "cancelled", "error": "no"}));
        let gave_up = message(&[said("a"), cancelled.clone(), done.clone(), again.clone()]);
        assert_eq!(gave_up, message(&[said("a"), cancelled]));
        assert_eq!(
            (gave_up.status, gave_up.error, gave_up.attempt),
            (Cancelled, None, 1)
        );
        let message = message(&[failed, done, again]);
        assert_eq!(
            (message.status, message.error, message.attempt),
            (Failed, Some("no".into()), 1)
        );
    }

    #[test]
    fn a_new_attempt_is_announced_by_queued_or_running() {
        let before = [
            status(&json!({"status": "running", "attempt": 1})),
            said("a"),
            requested(&json!({"call_id": "c1"})),
        ];
        for (name, shown) in [("queued", Queued), ("running", Running)] {
            let announced = [
                before.as_slice(),
                &[status(&json!({"status": name, "attempt": 2}))],
            ]
            .concat();
            check(&announced, shown, 2, &[]);
            let same_words = [announced.as_slice(), &[said("a")]].concat();
            check(&same_words, Running, 2, &["a"]);
            let same_call = [
                announced.as_slice(),
                &[requested(&json!({"call_id": "c1"}))],
            ]
            .concat();
            check(&same_call, WaitingForTool, 2, &[]);
        }
        let waiting = [
            said("a"),
            status(&json!({"status": "waiting_for_tool", "attempt": 2})),
        ];
        check(&waiting, Running, 1, &["a"]);
        let failed = [
            said("a"),
            status(&json!({"status": "failed", "attempt": 2})),
        ];
        check(&failed, Failed, 2, &["a"]);
    }

    #[test]
    fn a_status_of_an_older_attempt_is_late() {
        let retried = [
            status(&json!({"status": "running", "attempt": 2})),
            said("b"),
        ];
        for name in [
            "queued",
            "running",
            "waiting_for_tool",
            "completed",
            "failed",
            "cancelled",
        ] {
            let late = [
                retried.as_slice(),
                &[status(
                    &json!({"status": name, "attempt": 1, "error": "late"}),
                )],
            ]
            .concat();
            check(&late, Running, 2, &["b"]);
            assert_eq!(message(&late).error, None);
        }
    }

    #[test]
    fn a_turn_does_not_go_back_to_queued() {
        for again in [
            json!({"status": "queued"}),
            json!({"status": "queued", "attempt": 1}),
        ] {
            check(&[said("a"), status(&again)], Running, 1, &["a"]);
        }
    }

    #[test]
    fn waiting_may_be_said_without_a_call() {
        let waiting = status(&json!({"status": "waiting_for_tool"}));
        check_status(std::slice::from_ref(&waiting), WaitingForTool);
        check_status(
            &[waiting.clone(), status(&json!({"status": "running"}))],
            Running,
        );
        check_status(
            &[requested(&json!({})), waiting, answered(&json!({}))],
            Running,
        );
    }

    #[test]
    fn a_turn_waits_while_a_call_is_outstanding() {
        let one = |id: &str| json!({ "call_id": id });
        let two = json!({"calls": [{"id": "c1"}, {"id": "c2"}], "id": "of the event"});
        check_status(&[requested(&one("c1"))], WaitingForTool);
        check_status(
            &[requested(&one("c1")), status(&json!({"status": "running"}))],
            WaitingForTool,
        );
        check_status(
            &[requested(&one("c1")), answered(&json!({"id": "c1"}))],
            Running,
        );
        check_status(&[requested(&two), answered(&one("c2"))], WaitingForTool);
        check_status(
            &[requested(&two), answered(&one("c2")), answered(&one("c1"))],
            Running,
        );
        check_status(
            &[requested(&two), answered(&json!({})), answered(&json!({}))],
            Running,
        );
        check_status(&[requested(&two), answered(&two)], Running);
        for id in [
            json!(7),
            json!(-7),
            json!(0.5),
            json!("7"),
            json!("a \"b\"\n"),
        ] {
            let (first, other) = (
                requested(&json!({ "id": id })),
                requested(&json!({"call_id": "c1"})),
            );
            for answer in [
                json!({"id": id, "calls": []}),
                json!({"calls": [{"call_id": [], "id": id}]}),
                json!({"call_id": id}),
            ] {
                check_status(&[first.clone(), answered(&answer)], Running);
                check_status(
                    &[first.clone(), other.clone(), answered(&answer)],
                    WaitingForTool,
                );
            }
        }
        for none in [json!(null), json!(true), json!(["c1"]), json!({"id": "c1"})] {
            check_status(
                &[
                    requested(&json!({"call_id": none, "id": "c1"})),
                    answered(&one("c1")),
                ],
                Running,
            );
        }
    }

    #[test]
    fn a_failed_call_is_an_answer_and_fails_no_turn() {
        let failed = json_event(TOOL_FAILED, &json!({"call_id": "c1", "error": "exit 1"}));
        let message = message(&[requested(&json!({"call_id": "c1"})), failed]);
        assert_eq!((message.status, message.error), (Running, None));
    }

    #[test]
    fn a_late_or_second_answer_answers_nothing_else() {
        let one = |id: &str| json!({ "call_id": id });
        let late = [
            status(&json!({"status": "queued", "attempt": 2})),
            answered(&one("c1")),
        ];
        check_status(
            &[&[requested(&one("c1"))], late.as_slice()].concat(),
            Queued,
        );
        check_status(&[answered(&json!({}))], Queued);
        check_status(
            &[
                requested(&one("c1")),
                requested(&one("c2")),
                answered(&one("c1")),
                answered(&one("c1")),
            ],
            WaitingForTool,
        );
        check_status(
            &[
                requested(&one("c1")),
                requested(&json!({})),
                answered(&one("c1")),
                answered(&one("c1")),
            ],
            WaitingForTool,
        );
        check_status(
            &[
                requested(&one("c1")),
                requested(&one("c1")),
                answered(&one("c1")),
            ],
            Running,
        );
        check_status(
            &[
                requested(&one("c1")),
                answered(&one("c1")),
                requested(&one("c1")),
            ],
            Running,
        );
    }

    #[test]
    fn calls_without_an_id_are_counted() {
        let (request, answer) = (
            requested(&json!({"tool": "shell"})),
            answered(&json!({"output": "ok"})),
        );
        check_status(
            &[request.clone(), request.clone(), answer.clone()],
            WaitingForTool,
        );
        check_status(
            &[
                request.clone(),
                request.clone(),
                answer.clone(),
                answer.clone(),
            ],
            Running,
        );
        check_status(
            &[
                answer.clone(),
                request.clone(),
                answer.clone(),
                answer.clone(),
                request.clone(),
            ],
            WaitingForTool,
        );
        check_status(
            &[request.clone(), answered(&json!({"id": "of the result"}))],
            Running,
        );
        check_status(&[requested(&json!({"call_id": "c1"})), answer], Running);
    }

    #[test]
    fn what_does_not_fit_is_ignored() {
        let before = [said("a"), requested(&json!({"call_id": "c1"}))];
        let expected = message(&before);
        let statuses = [
            json!({"status": "paused"}),
            json!({"status": "canceled"}),
            json!({"status": 1}),
            json!({}),
            json!("completed"),
            json!(["completed", 1, null]),
            json!({"status": ["completed"]}),
            json!({"status": {"completed": null}}),
            json!({"data": {"status": "completed"}}),
        ];
        let misfits = statuses.iter().map(status).chain([
            event(STATUS_CHANGED, "completed"),
            event(STATUS_CHANGED, r#"{"status":"completed""#),
            event(STATUS_CHANGED, r#"{"status":"completed"} x"#),
            event(ASSISTANT_COMPLETED, "Done."),
            event(ASSISTANT_COMPLETED, [0xff]),
            event(TOOL_REQUESTED, "[]"),
            event(TOOL_COMPLETED, ""),
            event("turn.rated", "5"),
            opening(),
        ]);
        for misfit in misfits {
            let events = [before.as_slice(), std::slice::from_ref(&misfit)].concat();
            assert_eq!(message(&events), expected, "{misfit:?}");
        }
    }

    #[test]
    fn an_attempt_is_read_however_its_language_writes_it() {
        let before = [
            status(&json!({"status": "running", "attempt": 2})),
            said("a"),
        ];
        let completed = |attempt: &str| {
            event(
                STATUS_CHANGED,
                format!(r#"{{"status":"completed","attempt":{attempt}}}"#),
            )
        };
        for (attempt, read) in [
            ("3", 3),
            ("3.0", 3),
            ("3e0", 3),
            ("\"3\"", 3),
            ("4294967295", u32::MAX),
            ("4.294967295e+9", u32::MAX),
        ] {
            check(
                &[before.as_slice(), &[completed(attempt)]].concat(),
                Completed,
                read,
                &["a"],
            );
        }
        let unknown = [
            "null",
            "0",
            "-0.0",
            "-1",
            "2.5",
            "4294967296",
            "1e400",
            "NaN",
            "-inf",
            "true",
            "[3]",
            "{\"n\":3}",
            "\"\"",
            "\"third\"",
            "\"NaN\"",
            "\"\\ud83d\"",
        ];
        for attempt in unknown {
            check(
                &[before.as_slice(), &[completed(attempt)]].concat(),
                Completed,
                2,
                &["a"],
            );
        }
        for late in ["1", "1.0", "\"1\""] {
            check(
                &[before.as_slice(), &[completed(late)]].concat(),
                Running,
                2,
                &["a"],
            );
        }
    }

    #[test]
    fn a_call_is_known_however_its_language_writes_its_id() {
        let told = |event_type, data: &str| event(event_type, data);
        let same = [
            (r#"{"call_id":1}"#, r#"{"call_id":1.0}"#),
            (r#"{"call_id":"1","x":"\ud83d"}"#, r#"{"id":1,"y":NaN}"#),
            (r#"{"call_id":1e+15}"#, r#"{"call_id":1000000000000000}"#),
            (
                r#"{"call_id":18446744073709551615}"#,
                r#"{"call_id":"18446744073709551615"}"#,
            ),
            (r#"{"call_id":-0.0}"#, r#"{"call_id":0}"#),
            (r#"{"call_id":"a\ud83d"}"#, r#"{"call_id":"\u0061\ud83d"}"#),
            (
                r#"{"call_id":"","calls":[],"id":"a"}"#,
                r#"{"call_id":null,"calls":{},"id":"a"}"#,
            ),
            (
                r#"{"calls":{"2":{"id":"a"}}}"#,
                r#"{"calls":[{"call_id":"","id":"a","arguments":1e400}]}"#,
            ),
        ];
        for (request, answer) in same {
            let request = told(TOOL_REQUESTED, request);
            check_status(
                &[
                    request.clone(),
                    requested(&json!({"id": "other"})),
                    told(TOOL_COMPLETED, answer),
                ],
                WaitingForTool,
            );
            check_status(&[request, told(TOOL_COMPLETED, answer)], Running);
        }
        let two = told(
            TOOL_REQUESTED,
            r#"{"calls":{"1":{"id":"a"},"2":{"id":"b"}}}"#,
        );
        check_status(
            &[two.clone(), answered(&json!({"id": "a"}))],
            WaitingForTool,
        );
        check_status(
            &[
                two,
                answered(&json!({"id": "b"})),
                answered(&json!({"id": "a"})),
            ],
            Running,
        );
    }

    #[test]
    fn an_event_that_was_taken_is_not_taken_again() {
        let mut fold = Fold::open(opening().view()).unwrap();
        let request = Event {
            seq: 6,
            ..requested(&json!({}))
        };
        let answer = Event {
            seq: 7,
            ..answered(&json!({}))
        };
        for event in [&opening(), &request, &request, &answer, &request] {
            fold.apply(event.view());
        }
        assert_eq!(fold.into_message().status, Running);
    }

    /// Data that the fold understands, data that it nearly understands, and noise.
    fn any_data() -> impl Strategy<Value = Vec<u8>> {
        let statuses = vec![
            "queued",
            "running",
            "waiting_for_tool",
            "completed",
            "failed",
            "cancelled",
            "paused",
        ];
        let status = (
            proptest::sample::select(statuses),
            proptest::option::of(0_u32..5),
        )
            .prop_map(
                |(status, attempt)| json!({"status": status, "attempt": attempt, "error": "e"}),
            );
        let call = (
            proptest::sample::select(vec!["call_id", "id", "calls"]),
            0..4,
        )
            .prop_map(|(key, id)| match key {
                "calls" => json!({"calls": [{"id": id}, {"id": id + 1}, {}]}),
                key => json!({ key: id }),
            });
        let text = (0..3_u8).prop_map(|text| json!({ "text": text.to_string() }));
        prop_oneof![
            4 => status.prop_map(|data| data.to_string().into_bytes()),
            4 => call.prop_map(|data| data.to_string().into_bytes()),
            2 => text.prop_map(|data| data.to_string().into_bytes()),
            1 => proptest::collection::vec(any::<u8>(), 0..8),
        ]
    }

    fn any_event() -> impl Strategy<Value = Event> {
        let types = vec![
            STATUS_CHANGED,
            ASSISTANT_COMPLETED,
            TOOL_REQUESTED,
            TOOL_COMPLETED,
            TOOL_FAILED,
            USER_MESSAGE,
            "x",
        ];
        (proptest::sample::select(types), any_data())
            .prop_map(|(event_type, data)| event(event_type, data))
    }

    fn any_events() -> impl Strategy<Value = Vec<Event>> {
        proptest::collection::vec(any_event(), 0..24)
    }

    proptest! {
        #[test]
        fn any_events_fold_and_always_to_the_same_message(events in any_events()) {
            let whole = message(&events);
            prop_assert_eq!(whole.status.is_final(), whole.completed_at.is_some());
            prop_assert!(whole.error.is_none() || whole.status == Failed);
            prop_assert_eq!(message(&events), whole);
        }

        #[test]
        fn events_of_other_turns_and_sessions_change_nothing(
            events in any_events(),
            others in any_events(),
            elsewhere in any::<[bool; 24]>(),
        ) {
            let mut plain = Fold::open(opening().view()).unwrap();
            let mut mixed = plain.clone();
            let mut others = others.into_iter().cycle();
            for (n, event) in events.into_iter().enumerate() {
                let seq = OPENING_SEQ + 1 + 2 * n as u64;
                if let Some(other) = others.next() {
                    let other = if elsewhere[n] {
                        // The seqs of another session say nothing about those of this one.
                        Event { seq: seq + 1_000, session_id: "other".parse().unwrap(), ..other }
                    } else {
                        Event { seq, message_id: Some(EventId::from_u128(5).into()), ..other }
                    };
                    mixed.apply(other.view());
                }
                let event = Event { seq: seq + 1, ..event };
                plain.apply(event.view());
                mixed.apply(event.view());
            }
            prop_assert_eq!(plain.into_message(), mixed.into_message());
        }

        #[test]
        fn what_is_not_a_tool_event_may_come_twice(
            events in any_events(),
            twice in any::<[bool; 24]>(),
        ) {
            // The time is left out, since a repeated event moves the later ones.
            let core = |events: &[Event]| Message { completed_at: None, ..message(events) };
            let repeated: Vec<Event> = events
                .iter()
                .zip(twice)
                .flat_map(|(event, twice)| {
                    let again = twice && !event.event_type.as_str().starts_with("tool.");
                    std::iter::repeat_n(event.clone(), if again { 2 } else { 1 })
                })
                .collect();
            prop_assert_eq!(core(&repeated), core(&events));
        }

        #[test]
        fn a_final_message_stays_as_it_is(
            events in any_events(),
            end in proptest::sample::select(vec!["completed", "failed", "cancelled"]),
            later in any_events(),
        ) {
            let end = status(&json!({"status": end, "attempt": u32::MAX}));
            let done = [events, vec![end]].concat();
            prop_assert!(fold(&done).is_final());
            prop_assert_eq!(message(&[done.clone(), later].concat()), message(&done));
        }

        #[test]
        fn a_turn_waits_exactly_while_a_named_call_has_no_answer(
            ids in proptest::collection::vec((any::<bool>(), 0..5_u8), 0..24),
        ) {
            let mut open = BTreeSet::new();
            let mut closed = BTreeSet::new();
            let mut events = vec![status(&json!({"status": "running"}))];
            for (request, id) in ids {
                let data = json!({"call_id": id.to_string()});
                events.push(if request { requested(&data) } else { answered(&data) });
                if request && !closed.contains(&id) {
                    open.insert(id);
                } else if open.remove(&id) {
                    closed.insert(id);
                }
            }
            let expected = if open.is_empty() { Running } else { WaitingForTool };
            prop_assert_eq!(message(&events).status, expected);
        }
    }

    /// Other fields may be large and need not be read. Of a repeated field the last counts.
    #[test]
    fn a_tool_event_is_read_for_its_calls_alone() {
        let asked = event(
            TOOL_REQUESTED,
            r#"{"call_id":"a","call_id":"b","output":{"size":1e999,"\ud83d":NaN}}"#,
        );
        check_status(std::slice::from_ref(&asked), WaitingForTool);
        check_status(
            &[asked.clone(), answered(&json!({"call_id": "b"}))],
            Running,
        );
        check_status(
            &[asked, answered(&json!({"call_id": "a", "id": "b"}))],
            WaitingForTool,
        );
        check_status(
            &[
                event(TOOL_REQUESTED, r#"["call_id"]"#),
                event(TOOL_REQUESTED, r#"{"call_id":"a""#),
            ],
            Queued,
        );
    }
}
