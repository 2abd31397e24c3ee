//! What comes out of a log: a stored event, its type, and the acknowledgement of an append.

use std::fmt;

use bytes::Bytes;
use jiff::Timestamp;

use crate::model::error::{Error, Result};
use crate::model::ids::{EventId, MessageId, Seq};
use crate::model::session::SessionId;
use crate::model::text::Name;

/// The type of an event, such as `user.message`: 1 to 128 bytes of UTF-8 without control
/// characters.
///
/// The set is open: a type that this crate knows nothing of is stored and read back like any other.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventType(Name);

impl EventType {
    /// The type's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Takes a name that lies in `stored`, which it may share.
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

impl<T: AsRef<str> + ?Sized> From<&T> for EventType {
    fn from(name: &T) -> Self {
        Self(Name::from(name.as_ref()))
    }
}

impl From<String> for EventType {
    fn from(name: String) -> Self {
        Self(Name::from(name.as_str()))
    }
}

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

/// A stored event. Its data, and a long type or session ID, share the memory that they were read
/// into or appended with, about 64 KiB at most unless the batch was larger; copy them out to keep
/// one event for long.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// Unique in the store, and greater than those of all events committed before.
    pub id: EventId,
    /// The session it belongs to.
    pub session_id: SessionId,
    /// Its place in the session, from 1 without holes.
    pub seq: Seq,
    /// Its type.
    pub event_type: EventType,
    /// Its data, as given.
    pub data: Bytes,
    /// The turn it opened or was said to belong to.
    pub message_id: Option<MessageId>,
    /// The wall clock when it was committed, in milliseconds. Order comes from `seq` and `id`,
    /// never from this.
    pub created_at: Timestamp,
}

/// An event where it lies, be it in a record or handed out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EventView<'a> {
    pub id: EventId,
    pub session_id: &'a SessionId,
    pub seq: Seq,
    pub event_type: &'a str,
    pub data: &'a [u8],
    pub message_id: Option<MessageId>,
    pub created_at: Timestamp,
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
        }
    }

    /// The data as JSON.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when it is not JSON of this shape, or `serde_json` refuses a part of it,
    /// such as a string with half an emoji. A [`Message`](crate::Message) reads such data all the
    /// same.
    pub fn json<'a, T: serde::Deserialize<'a>>(&'a self) -> Result<T> {
        serde_json::from_slice(&self.data)
            .map_err(|error| Error::invalid("event data", error.to_string()))
    }
}

/// The answer to an append: its events are on stable storage.
#[derive(Debug, Clone, PartialEq, Eq)]
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
