//! What goes in and what comes out: a new event, a batch of them, a stored event, an
//! acknowledgement.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use jiff::Timestamp;
use serde::Serialize;

use crate::error::{Error, Limit, Result, check_limit};
use crate::ids::{EventId, MessageId};
use crate::lenient::LEVELS_MAX;
use crate::name::Name;
use crate::options::{BATCH_BYTES_CEILING, Limits};
use crate::session::SessionId;
use crate::user_message::{self, UserMessage};

/// The place of an event in its session: dense, from 1.
pub type Seq = u64;

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

/// An event to append.
///
/// `data` is opaque to the log and JSON by convention. An event of type `user.message` opens a turn
/// and gets a message ID of its own; any other may [name the turn](NewEvent::in_turn) it belongs
/// to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEvent {
    pub(crate) event_type: EventType,
    pub(crate) data: Bytes,
    pub(crate) turn: Turn,
}

/// How an event is tied to a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// To none.
    None,
    /// It opens one; the message ID is its own.
    Opens,
    /// It belongs to the one with this ID.
    Of(MessageId),
}

impl NewEvent {
    /// An event with these bytes as data.
    #[must_use]
    pub fn new(event_type: impl Into<EventType>, data: impl Into<Bytes>) -> Self {
        let event_type = event_type.into();
        let turn = if user_message::opens_turn(&event_type) {
            Turn::Opens
        } else {
            Turn::None
        };
        Self {
            event_type,
            data: data.into(),
            turn,
        }
    }

    /// An event with `value` as JSON data.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `value` cannot be written as JSON, for instance a map with keys that
    /// are not strings.
    pub fn json(event_type: impl Into<EventType>, value: &impl Serialize) -> Result<Self> {
        let data = serde_json::to_vec(value)
            .map_err(|error| Error::invalid("event data", error.to_string()))?;
        Ok(Self::new(event_type, data))
    }

    /// The same event as part of the turn that `message` opened. It is not looked up: a reader of
    /// the turn takes only events of the message's own session. On an event that opens a turn
    /// itself this changes nothing.
    #[must_use]
    pub fn in_turn(mut self, message: MessageId) -> Self {
        if self.turn != Turn::Opens {
            self.turn = Turn::Of(message);
        }
        self
    }
}

/// Events to append together: all are stored, next to each other and in this order, or none.
///
/// ```
/// use sessionlog::{Batch, Expected, NewEvent};
///
/// let batch = Batch::new()
///     .event(NewEvent::new("tool.call_requested", r#"{"call_id":"c1","name":"search"}"#))
///     .idempotency_key("req-7")
///     .expected(Expected::Exists);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "a batch does nothing until it is appended"]
pub struct Batch {
    pub(crate) events: Vec<NewEvent>,
    pub(crate) key: Option<ByteString>,
    pub(crate) expected: Expected,
    /// Whether it was given a user's message that is nested too deep, which is not among its
    /// events.
    is_too_deep: bool,
}

impl Batch {
    /// An empty batch. Appending it as it is is an error.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an event.
    pub fn event(mut self, event: NewEvent) -> Self {
        self.events.push(event);
        self
    }

    /// Adds several events in their order.
    pub fn events(mut self, events: impl IntoIterator<Item = NewEvent>) -> Self {
        self.events.extend(events);
        self
    }

    /// Adds a `user.message`, which opens a turn. Appending the batch is [`Error::Invalid`] when
    /// more than 127 arrays and objects of the message's JSON form lie in each other: it could not
    /// be read back.
    pub fn user_message(mut self, message: impl Into<UserMessage>) -> Self {
        let event = message.into().into_event();
        self.is_too_deep |= event.is_none();
        self.events(event)
    }

    /// Makes a retry safe: within its session, a key lands once. Appending the same content under
    /// it again returns the events that were stored the first time; other content is
    /// [`Error::IdempotencyConflict`]. A key lives as long as its batch.
    pub fn idempotency_key(mut self, key: impl AsRef<str>) -> Self {
        self.key = Some(ByteString::from(key.as_ref()));
        self
    }

    /// Lands only when the session is where the caller thinks it is. The idempotency key is looked
    /// at first, so that a retry of what landed is a replay and no mismatch.
    pub fn expected(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        if self.is_too_deep {
            return Err(Error::invalid(
                "user message",
                format!("its JSON is nested deeper than {LEVELS_MAX} levels"),
            ));
        }
        if self.events.is_empty() {
            return Err(Error::invalid("batch", "it has no events"));
        }
        check_limit(
            Limit::BatchEvents,
            self.events.len(),
            limits.batch_events_max,
        )?;
        let (mut data_bytes, mut type_bytes) = (0_usize, 0_usize);
        for event in &self.events {
            event.check(limits)?;
            data_bytes = data_bytes.saturating_add(event.data.len());
            type_bytes = type_bytes.saturating_add(event.event_type.as_str().len());
        }
        check_limit(Limit::BatchBytes, data_bytes, limits.batch_bytes_max)?;
        check_limit(Limit::BatchBytes, type_bytes, BATCH_BYTES_CEILING)?;
        let Some(key) = &self.key else { return Ok(()) };
        if key.is_empty() {
            return Err(Error::invalid("idempotency key", "it is empty"));
        }
        check_limit(
            Limit::IdempotencyKeyBytes,
            key.len(),
            limits.idempotency_key_bytes_max,
        )
    }
}

impl NewEvent {
    fn check(&self, limits: &Limits) -> Result<()> {
        let name = self.event_type.as_str();
        if name.is_empty() {
            return Err(Error::invalid("event type", "it is empty"));
        }
        check_limit(
            Limit::EventTypeBytes,
            name.len(),
            limits.event_type_bytes_max,
        )?;
        if name.chars().any(char::is_control) {
            return Err(Error::invalid("event type", "it holds a control character"));
        }
        check_limit(Limit::EventBytes, self.data.len(), limits.event_bytes_max)
    }
}

/// Where a session must stand for a batch to land.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expected {
    /// Anywhere.
    #[default]
    Any,
    /// It has no event yet.
    NoSession,
    /// It has an event.
    Exists,
    /// Its last seq is this. `Seq(0)` is [`NoSession`](Expected::NoSession).
    Seq(Seq),
}

impl Expected {
    /// Whether a session whose last seq is `last` (0 when it has no event) is as expected.
    pub(crate) fn holds(self, last: Seq) -> bool {
        match self {
            Expected::Any => true,
            Expected::NoSession => last == 0,
            Expected::Exists => last > 0,
            Expected::Seq(seq) => last == seq,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Any => f.write_str("any seq"),
            Expected::NoSession => f.write_str("seq 0 (no events)"),
            Expected::Exists => f.write_str("seq 1 or later"),
            Expected::Seq(seq) => write!(f, "seq {seq}"),
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    #[serde(tag = "type", rename_all = "snake_case")]
    enum Tagged {
        Scored { score: f64 },
    }

    #[test]
    fn data_reads_as_a_tagged_enum_with_numbers() {
        let event = NewEvent::json("scored", &Tagged::Scored { score: 0.5 }).unwrap();
        let read: Tagged = serde_json::from_slice(&event.data).unwrap();
        assert_eq!(read, Tagged::Scored { score: 0.5 });
    }

    #[test]
    fn the_types_of_a_batch_are_bounded_together() {
        let limits = crate::Options::new()
            .batch_events_max(10_000)
            .event_type_bytes_max(1 << 16)
            .limits;
        let event = NewEvent::new("x".repeat(1 << 16), "");
        let batch = |events| Batch::new().events(std::iter::repeat_n(event.clone(), events));
        batch(1 << 12).check(&limits).unwrap();
        let refused = batch((1 << 12) + 1).check(&limits);
        assert!(
            matches!(
                refused,
                Err(Error::TooLarge {
                    limit: Limit::BatchBytes,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
}
