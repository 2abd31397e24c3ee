//! The output of a log: a stored event, its type, and the acknowledgement of an append.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::model::error::{Error, Limit, Result, check_limit};
use crate::model::ids::{EventId, MessageId, Seq};
use crate::model::options::NAME_BYTES_CEILING;
use crate::model::session::SessionId;
use crate::model::text::{Name, text_conversions};

/// The type of an event, such as `user.message`: text without control characters, not empty.
///
/// The set of types is open: the log stores a type that it does not know like any other. How long a
/// type may be is decided by [`event_type_bytes_max`](crate::Options::event_type_bytes_max).
///
/// ```
/// use sessionlog::EventType;
///
/// assert_eq!(EventType::new("tool.call_requested")?, "tool.call_requested");
/// assert!(EventType::new("two\nlines").is_err());
/// # Ok::<(), sessionlog::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(Name);

impl EventType {
    /// Makes an event type of `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when it is empty or holds a control character, [`Error::TooLarge`] when
    /// no log takes so long a type.
    pub fn new(name: impl AsRef<str>) -> Result<Self> {
        let event_type = Self::unchecked(name);
        event_type.check(NAME_BYTES_CEILING)?;
        Ok(event_type)
    }

    /// Takes any name. It has to be [checked](Self::check) before it is stored.
    pub(crate) fn unchecked(name: impl AsRef<str>) -> Self {
        Self(Name::from(name.as_ref()))
    }

    pub(crate) fn check(&self, bytes_max: usize) -> Result<()> {
        let name = self.as_str();
        if name.is_empty() {
            return Err(Error::invalid("event type", "it is empty"));
        }
        check_limit(Limit::EventTypeBytes, name.len(), bytes_max)?;
        if name.chars().any(char::is_control) {
            return Err(Error::invalid("event type", "it holds a control character"));
        }
        Ok(())
    }

    /// The type's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Takes a name that is a part of `stored`, and may share its memory.
    pub(crate) fn from_stored(name: &str, stored: &Bytes) -> Self {
        Self(Name::stored(name, stored))
    }
}

impl fmt::Debug for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

impl fmt::Display for EventType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

text_conversions!(EventType);

impl PartialEq<str> for EventType {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl PartialEq<&str> for EventType {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

/// A stored event.
///
/// Its data, and a long type or session ID, share the memory of the block or batch that they came
/// from. That is about 64 KiB at most, unless the batch was larger. Copy them to keep one event for
/// long.
///
/// With serde, `data` is a sequence of bytes, so every format gives it back unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Event {
    /// Unique in the store, and greater than those of all events committed before.
    pub id: EventId,
    /// The session it belongs to.
    pub session_id: SessionId,
    /// Its number in the session, from 1 without gaps.
    pub seq: Seq,
    /// Its type.
    pub event_type: EventType,
    /// Its data, as given. It is empty if the event was redacted.
    pub data: Bytes,
    /// The turn that it opened or belongs to.
    pub message_id: Option<MessageId>,
    /// The wall clock when it was committed, in milliseconds. Order comes from `seq` and `id`,
    /// never from this.
    pub created_at: Timestamp,
    /// Whether its data was [redacted](crate::SessionLog::redact).
    #[serde(default)]
    pub redacted: bool,
}

/// An event, borrowed from a record or from an [`Event`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventView<'a> {
    pub id: EventId,
    pub session_id: &'a SessionId,
    pub seq: Seq,
    pub event_type: &'a str,
    pub data: &'a [u8],
    pub message_id: Option<MessageId>,
    pub created_at: Timestamp,
    pub redacted: bool,
}

impl Event {
    pub(crate) fn view(&self) -> EventView<'_> {
        EventView {
            id: self.id,
            session_id: &self.session_id,
            seq: self.seq,
            event_type: self.event_type.as_str(),
            data: &self.data,
            message_id: self.message_id,
            created_at: self.created_at,
            redacted: self.redacted,
        }
    }

    /// Reads the data as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when the data is not JSON of this shape, or has a part that `serde_json`
    /// refuses, such as a string with half an emoji. A [`Message`](crate::Message) can still be
    /// read from such data.
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T> {
        serde_json::from_slice(&self.data)
            .map_err(|error| Error::invalid("event data", error.to_string()))
    }
}

/// The answer to an append: its events are on stable storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Ack {
    /// The batch's events as stored, in order.
    pub events: Vec<Event>,
    /// The seq of the first of them.
    pub first: Seq,
    /// The seq of the last.
    pub last: Seq,
    /// Whether an earlier append with the same idempotency key had stored them.
    pub replayed: bool,
}
