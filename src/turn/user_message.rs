//! The typed `user.message`: content blocks and metadata that open a turn.
//!
//! Content is not interpreted. A block or a field without an accessor comes back as it was sent. A
//! block is therefore the JSON object itself and not an enum of known types. `serde_json` is built
//! with `preserve_order`, so the order of keys is kept too.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::{Batch, Error, Event, NewEvent, Result, USER_MESSAGE, opens_turn};
use crate::turn::lenient;
use crate::turn::lenient::LEVELS_MAX;

/// A user's message: content blocks in order, and metadata that the sender attaches.
///
/// Appending it with [`Batch::user_message`](crate::Batch::user_message) opens a turn. Its JSON
/// form is `{"content": [..], "metadata": {..}}`. Missing metadata reads as empty, missing content
/// is an error, and other fields are dropped.
///
/// ```
/// use sessionlog::{ContentBlock, UserMessage};
///
/// let message = UserMessage::text("Summarize this ticket and draft a reply.")
///     .with_block(ContentBlock::file("file_456"))
///     .with_metadata("ticket_id", "T-1042");
/// assert_eq!(message.content[1].as_file_id(), Some("file_456"));
/// assert_eq!(message.metadata["ticket_id"], "T-1042");
/// ```
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct UserMessage {
    /// The content blocks, in order.
    pub content: Vec<ContentBlock>,
    /// The sender's own keys and values, in order.
    #[serde(default)]
    pub metadata: Map<String, Value>,
}

impl Batch {
    /// Adds a `user.message`, which opens a turn.
    ///
    /// Appending the batch fails with [`Error::Invalid`] when the message's JSON form nests more
    /// than 127 arrays and objects. Such a message could not be read back.
    pub fn user_message(mut self, message: impl Into<UserMessage>) -> Self {
        if let Some(event) = message.into().into_event() {
            self.event(event)
        } else {
            self.unfit = Some(format!(
                "its JSON is nested deeper than {LEVELS_MAX} levels"
            ));
            self
        }
    }
}

impl UserMessage {
    /// Makes a message of these blocks, without metadata.
    #[must_use]
    pub fn new(content: impl IntoIterator<Item = ContentBlock>) -> Self {
        Self {
            content: content.into_iter().collect(),
            metadata: Map::new(),
        }
    }

    /// Makes a message of one text block.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::new([ContentBlock::text(text)])
    }

    /// Adds `block` after the other blocks.
    #[must_use]
    pub fn with_block(mut self, block: ContentBlock) -> Self {
        self.content.push(block);
        self
    }

    /// Sets `key` in the metadata to `value`. A value already there is replaced in its place.
    #[must_use]
    pub fn with_metadata(mut self, key: impl Into<String>, value: impl Into<Value>) -> Self {
        self.metadata.insert(key.into(), value.into());
        self
    }

    /// Reads the message that `event` stores.
    ///
    /// A part of its JSON that a [`Value`] cannot hold, such as a string with half an emoji, reads
    /// as text, as in a [`Message`](crate::Message).
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the event is not a `user.message`, or when its data is not the JSON
    /// form of one. The log accepts any bytes as data, so only data appended as a `UserMessage` is
    /// sure to read back as one.
    pub fn from_event(event: &Event) -> Result<Self> {
        if !opens_turn(&event.event_type) {
            return Err(Error::invalid(
                "event type",
                format!("it is {}, not {USER_MESSAGE}", event.event_type),
            ));
        }
        lenient::from_slice(&event.data)
            .map_err(|error| Error::invalid("event data", error.to_string()))
    }

    /// Reads as much of the message as the data holds and leaves out the rest, in the extreme all
    /// of it.
    ///
    /// A reader must be able to show a turn whatever data opened it. Content may be an object that
    /// stands for a list, like `calls` in a tool event.
    pub(crate) fn from_data_lossy(data: &[u8]) -> Self {
        let mut data: Map<String, Value> = lenient::from_slice(data).unwrap_or_default();
        let blocks = data
            .remove("content")
            .and_then(lenient::items_of)
            .unwrap_or_default();
        let content = blocks
            .into_iter()
            .filter_map(ContentBlock::from_value)
            .collect();
        let metadata = match data.remove("metadata") {
            Some(Value::Object(metadata)) => metadata,
            _ => Map::new(),
        };
        Self { content, metadata }
    }

    /// Returns the event that stores the message. `None` when it is nested too deep to be read
    /// back.
    pub(crate) fn into_event(self) -> Option<NewEvent> {
        // The message, its content and a block each take one level, and so does the metadata.
        let mut in_blocks = self.content.iter().flat_map(|block| block.0.values());
        let can_be_read = in_blocks.all(|value| is_within(value, LEVELS_MAX - 3))
            && self
                .metadata
                .values()
                .all(|value| is_within(value, LEVELS_MAX - 2));
        can_be_read.then(|| {
            let data = serde_json::to_vec(&self)
                .expect("JSON values under string keys always have a JSON form");
            NewEvent::new(USER_MESSAGE, data)
        })
    }
}

/// Whether at most `levels` arrays and objects of `value` are nested. It looks no deeper, so that
/// no value exhausts the stack.
fn is_within(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Array(items), Some(levels)) => items.iter().all(|item| is_within(item, levels)),
        (Value::Object(fields), Some(levels)) => {
            fields.values().all(|field| is_within(field, levels))
        }
        (Value::Array(_) | Value::Object(_), None) => false,
        _ => true,
    }
}

impl From<&str> for UserMessage {
    fn from(text: &str) -> Self {
        Self::text(text)
    }
}

impl From<String> for UserMessage {
    fn from(text: String) -> Self {
        Self::text(text)
    }
}

/// One piece of a message's content: a JSON object whose `type` is a string.
///
/// There are accessors for text and file blocks. Blocks of other types, and other fields of these
/// two, are kept as they were sent and in the same order.
///
/// * Numbers are kept by value: as a 64-bit integer if possible, otherwise as a double.
/// * White space, the spelling of escapes and of numbers (`1.10` becomes `1.1`), and all but the
///   last of repeated keys are not kept. JSON gives them no meaning.
/// * This type's `Deserialize` refuses JSON that a [`Value`] cannot hold, such as half an emoji or
///   `1e400`. In a stored event such a part reads as a string of its text.
///
/// To keep the exact bytes, append them as the data of a [`NewEvent`]. The log never interprets
/// data.
///
/// ```
/// use sessionlog::ContentBlock;
///
/// let json = r#"{"type":"text","text":"Hi","cache_control":{"ttl":300}}"#;
/// let block: ContentBlock = serde_json::from_str(json)?;
/// assert_eq!(block.as_text(), Some("Hi"));
/// assert_eq!(block.as_object()["cache_control"]["ttl"], 300);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct ContentBlock(Map<String, Value>);

impl ContentBlock {
    const TYPE: &str = "type";
    const TEXT: &str = "text";
    const FILE: &str = "file";
    const FILE_ID: &str = "file_id";

    /// Makes a text block: `{"type": "text", "text": ..}`.
    #[must_use]
    pub fn text(text: impl Into<String>) -> Self {
        Self::of_type(Self::TEXT).with(Self::TEXT, text.into())
    }

    /// Makes a reference to a file stored elsewhere: `{"type": "file", "file_id": ..}`.
    #[must_use]
    pub fn file(file_id: impl Into<String>) -> Self {
        Self::of_type(Self::FILE).with(Self::FILE_ID, file_id.into())
    }

    /// Makes a block of any type, without other fields.
    #[must_use]
    pub fn of_type(block_type: impl Into<String>) -> Self {
        Self(Map::from_iter([(
            Self::TYPE.to_owned(),
            Value::String(block_type.into()),
        )]))
    }

    /// Sets `field` to `value`. A value already there is replaced in its place.
    ///
    /// The type of a block does not change: a `value` for the field `type` is ignored.
    #[must_use]
    pub fn with(mut self, field: impl Into<String>, value: impl Into<Value>) -> Self {
        let field = field.into();
        if field != Self::TYPE {
            self.0.insert(field, value.into());
        }
        self
    }

    /// The block's type, such as `text`.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "it cannot panic, since the type is checked when a block is made"
    )]
    pub fn block_type(&self) -> &str {
        self.string(Self::TYPE)
            .expect("a block is made only with a string as its type")
    }

    /// The text of a text block. `None` for other types, and for a text block without a text.
    #[must_use]
    pub fn as_text(&self) -> Option<&str> {
        self.field_of(Self::TEXT, Self::TEXT)
    }

    /// The file ID of a file block. `None` for other types, and for a file block without a file ID.
    #[must_use]
    pub fn as_file_id(&self) -> Option<&str> {
        self.field_of(Self::FILE, Self::FILE_ID)
    }

    /// The whole block, including its type.
    #[must_use]
    pub fn as_object(&self) -> &Map<String, Value> {
        &self.0
    }

    /// Returns the whole block, including its type.
    #[must_use]
    pub fn into_object(self) -> Map<String, Value> {
        self.0
    }

    fn from_value(value: Value) -> Option<Self> {
        match value {
            Value::Object(object) => Self::try_from(object).ok(),
            _ => None,
        }
    }

    fn field_of(&self, block_type: &str, field: &str) -> Option<&str> {
        if self.block_type() == block_type {
            self.string(field)
        } else {
            None
        }
    }

    fn string(&self, field: &str) -> Option<&str> {
        self.0.get(field).and_then(Value::as_str)
    }
}

impl TryFrom<Map<String, Value>> for ContentBlock {
    type Error = Error;

    /// Accepts an object whose `type` is a string. Any other object is [`Error::Invalid`].
    fn try_from(object: Map<String, Value>) -> Result<Self> {
        match object.get(Self::TYPE) {
            Some(Value::String(_)) => Ok(Self(object)),
            Some(_) => Err(Error::invalid("content block", "its type is not a string")),
            None => Err(Error::invalid("content block", "it has no type")),
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::{EventId, EventType, Turn};

    fn stored(event_type: &str, data: impl AsRef<[u8]>) -> Event {
        let id = EventId::from_u128(7);
        Event {
            id,
            session_id: "s".parse().unwrap(),
            seq: 1,
            event_type: EventType::unchecked(event_type),
            data: bytes::Bytes::copy_from_slice(data.as_ref()),
            message_id: Some(id.into()),
            created_at: Timestamp::UNIX_EPOCH,
            redacted: false,
        }
    }

    #[test]
    fn a_message_is_stored_in_the_form_of_the_contract() {
        let message = UserMessage::text("Summarize.")
            .with_block(ContentBlock::file("file_456"))
            .with_metadata("ticket_id", "T-1042");
        let event = message.clone().into_event().unwrap();
        assert_eq!(event.turn, Turn::Opens);
        let content =
            r#"[{"type":"text","text":"Summarize."},{"type":"file","file_id":"file_456"}]"#;
        assert_eq!(
            event.data,
            format!(r#"{{"content":{content},"metadata":{{"ticket_id":"T-1042"}}}}"#)
        );
        assert_eq!(
            UserMessage::from_event(&stored(USER_MESSAGE, event.data)).unwrap(),
            message
        );
    }

    #[test]
    fn what_is_not_known_comes_back_exactly_as_sent() {
        let blocks = [
            r#"{"type":"text","text":"a","cache_control":{"z":1,"a":2}}"#,
            concat!(
                r#"{"zeta":null,"type":"image","source":{"b":[1,"x",{}],"a":true},"#,
                r#""alpha":"\u0000\"ä"}"#
            ),
            r#"{"type":"file","file_id":7,"path":"x"}"#,
            r#"{"type":""}"#,
            r#"{"type":"n","n":[1.0,1.5,-0.0,-7,9223372036854775807,18446744073709551615,0.1]}"#,
        ];
        let metadata = r#"{"z":1,"y":{"b":2.5,"a":[]},"a":18446744073709551615,"":null}"#;
        let sent = format!(
            r#"{{"content":[{}],"metadata":{metadata}}}"#,
            blocks.join(",")
        );
        let message: UserMessage = serde_json::from_str(&sent).unwrap();
        assert_eq!(message.clone().into_event().unwrap().data, sent);
        let lossy = UserMessage::from_data_lossy(sent.as_bytes());
        assert_eq!(lossy.into_event().unwrap().data, sent);
        for (block, text) in message.content.iter().zip(blocks) {
            assert_eq!(serde_json::to_string(block).unwrap(), text);
        }
        let block: ContentBlock =
            serde_json::from_str(r#"{ "type": "n", "n": 1E4, "\u006e": 12e-3 }"#).unwrap();
        assert_eq!(
            serde_json::to_string(&block).unwrap(),
            r#"{"type":"n","n":0.012}"#
        );
    }

    #[test]
    fn a_message_is_nested_as_deep_as_it_can_be_read_back() {
        let nested = |levels: usize| {
            let wrap = |value, level| {
                if level % 2 == 0 {
                    Value::Array(vec![value])
                } else {
                    serde_json::json!({ "in": value })
                }
            };
            (0..levels).fold(Value::Null, wrap)
        };
        let in_block =
            |levels| UserMessage::new([ContentBlock::of_type("a").with("value", nested(levels))]);
        let in_metadata = |levels| UserMessage::text("hi").with_metadata("value", nested(levels));
        for deepest in [in_block(LEVELS_MAX - 3), in_metadata(LEVELS_MAX - 2)] {
            let event = deepest.clone().into_event().unwrap();
            assert_eq!(UserMessage::from_data_lossy(&event.data), deepest);
            assert_eq!(
                UserMessage::from_event(&stored(USER_MESSAGE, event.data)).unwrap(),
                deepest
            );
        }
        for too_deep in [in_block(LEVELS_MAX - 2), in_metadata(LEVELS_MAX - 1)] {
            let unread = serde_json::to_string(&too_deep).unwrap();
            serde_json::from_str::<UserMessage>(&unread).unwrap_err();
            assert_eq!(too_deep.into_event(), None);
        }
    }

    #[test]
    fn accessors_answer_only_for_their_own_type() {
        let text = ContentBlock::text("t").with("file_id", "f");
        assert_eq!(
            (text.block_type(), text.as_text(), text.as_file_id()),
            ("text", Some("t"), None)
        );
        let file = ContentBlock::file("f").with("text", "t");
        assert_eq!(
            (file.block_type(), file.as_text(), file.as_file_id()),
            ("file", None, Some("f"))
        );
        let other = ContentBlock::of_type("image")
            .with("text", "t")
            .with("file_id", "f");
        assert_eq!(
            (other.block_type(), other.as_text(), other.as_file_id()),
            ("image", None, None)
        );
        let odd = ContentBlock::of_type("text").with("text", 7);
        assert_eq!((odd.as_text(), odd.as_object().len()), (None, 2));
    }

    #[test]
    fn a_block_keeps_its_type() {
        assert_eq!(
            ContentBlock::text("t").with("type", 7),
            ContentBlock::text("t")
        );
    }

    #[test]
    fn missing_metadata_is_empty_and_a_string_is_a_text_block() {
        let message: UserMessage = serde_json::from_str(
            r#"{"content":[{"type":"text","text":"hi"}],"message_id":"msg_1"}"#,
        )
        .unwrap();
        assert_eq!(message, "hi".into());
        assert_eq!(message, String::from("hi").into());
        assert_eq!(
            UserMessage::default().into_event().unwrap().data,
            r#"{"content":[],"metadata":{}}"#
        );
    }

    #[test]
    fn what_is_not_a_user_message_is_invalid() {
        let bad = [
            "",
            "hi",
            "[]",
            "{}",
            r#"{"content":"hi"}"#,
            r#"{"content":["hi"]}"#,
            r#"{"content":[{}]}"#,
            r#"{"content":[{"type":7}]}"#,
            r#"{"content":[],"metadata":null}"#,
            r#"{"content":[],"metadata":[]}"#,
        ];
        for data in bad {
            let error = UserMessage::from_event(&stored(USER_MESSAGE, data)).unwrap_err();
            assert_eq!(error.code(), "invalid", "{data:?}");
            assert!(
                UserMessage::from_data_lossy(data.as_bytes())
                    .content
                    .is_empty(),
                "{data:?}"
            );
        }
        let error =
            UserMessage::from_event(&stored("assistant.message_completed", r#"{"content":[]}"#))
                .unwrap_err();
        assert_eq!(error.code(), "invalid");
    }

    #[test]
    fn a_leaf_that_no_value_holds_reads_as_its_text() {
        let content = r#"[{"type":"text","text":"\ud83d"},{"type":"\udc00","\ud83d":1e400}]"#;
        let data = [
            br#"{"content":"#,
            content.as_bytes(),
            br#","metadata":{"a":nan,"b":""#,
            b"\xFF",
            br#""}}"#,
        ]
        .concat();
        let expected = UserMessage::text(r"\ud83d")
            .with_block(ContentBlock::of_type(r"\udc00").with(r"\ud83d", "1e400"))
            .with_metadata("a", "nan")
            .with_metadata("b", "\u{fffd}");
        assert_eq!(UserMessage::from_data_lossy(&data), expected);
        assert_eq!(
            UserMessage::from_event(&stored(USER_MESSAGE, data)).unwrap(),
            expected
        );
    }

    #[test]
    fn a_lossy_read_keeps_what_can_be_read() {
        let read = |data: &str| UserMessage::from_data_lossy(data.as_bytes());
        assert_eq!(
            read(r#"{"content":[{"type":"text","text":"hi"}],"metadata":null}"#),
            "hi".into()
        );
        assert_eq!(
            read(r#"{"content":["lost",{"type":"text","text":"hi"},{}]}"#),
            "hi".into()
        );
        assert_eq!(
            read(r#"{"content":"hi","metadata":{"k":1}}"#),
            UserMessage::default().with_metadata("k", 1)
        );
        assert_eq!(read("\u{fffd}"), UserMessage::default());
        assert_eq!(
            read(r#"{"content":{"2":{"type":"b"},"1":{"type":"a"}},"metadata":[]}"#)
                .content
                .len(),
            2
        );
    }
}
