//! The input of a log: new events, a batch of them, and what the batch expects of its session.

use std::fmt;

use bytes::Bytes;
use bytestring::ByteString;
use serde::Serialize;

use crate::model::change::{Op, SessionPatch};
use crate::model::error::{Error, Limit, Result, check_limit};
use crate::model::event::EventType;
use crate::model::ids::{MessageId, Seq};
use crate::model::lifecycle::Producer;
use crate::model::options::{BATCH_BYTES_CEILING, Limits};

/// The most changes of a session, besides events, in a batch.
const OPS_MAX: usize = 16;

/// The type of the event that opens a turn.
pub(crate) const USER_MESSAGE: &str = "user.message";

/// Whether an event of this type opens a turn and has a message ID of its own.
pub(crate) fn opens_turn(event_type: &(impl PartialEq<str> + ?Sized)) -> bool {
    *event_type == *USER_MESSAGE
}

/// An event to append.
///
/// `data` is opaque to the log, and JSON by convention. An event of type `user.message` opens a
/// turn and gets a message ID. Any other event may [name the turn](NewEvent::in_turn) it belongs
/// to.
///
/// ```
/// use sessionlog::NewEvent;
///
/// let note = NewEvent::new("note", r#"{"text":"call back"}"#);
/// let scored = NewEvent::json("score", &[1, 2, 3])?;
/// # Ok::<(), sessionlog::Error>(())
/// ```
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
    /// Makes an event with these bytes as data.
    ///
    /// The type is checked when the event is appended. [`EventType`] has the rules.
    #[must_use]
    pub fn new(event_type: impl AsRef<str>, data: impl Into<Bytes>) -> Self {
        let event_type = EventType::unchecked(event_type);
        let turn = if opens_turn(&event_type) {
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

    /// Makes an event with `value` as JSON data.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] when `value` has no JSON form, for example a map with keys that are not
    /// strings.
    pub fn json(event_type: impl AsRef<str>, value: &impl Serialize) -> Result<Self> {
        let data = serde_json::to_vec(value)
            .map_err(|error| Error::invalid("event data", error.to_string()))?;
        Ok(Self::new(event_type, data))
    }

    /// Makes the event a part of the turn that `message` opened.
    ///
    /// The ID is not looked up. A reader of the turn skips events of other sessions. An event that
    /// opens a turn itself stays as it is.
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
    /// The other changes of the session, in order. The state applies them before the events, and
    /// the feed yields them after the events.
    pub(crate) ops: Vec<Op>,
    pub(crate) producer: Option<Producer>,
    /// The generation and the revision of the session that the changes were made for.
    pub(crate) based_on: Option<(u32, u64)>,
    /// The last seq of the session that they were made for.
    pub(crate) based_on_tail: Option<Seq>,
    /// Why a user message could not be made an event.
    pub(crate) unfit: Option<String>,
}

impl Batch {
    /// Makes an empty batch. Appending a batch without events is [`Error::Invalid`], unless it
    /// changes the session otherwise.
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

    /// Makes a retry safe: within its session, a key lands once.
    ///
    /// An append with the same key and content returns the events that were stored the first time.
    /// With other content it is [`Error::IdempotencyConflict`]. Changes of the session and the
    /// producer are content too, and a change that is in force already is stored under its key. A
    /// key lives as long as its batch: keys of trimmed or deleted batches are forgotten.
    pub fn idempotency_key(mut self, key: impl AsRef<str>) -> Self {
        self.key = Some(ByteString::from(key.as_ref()));
        self
    }

    /// Appends only if the session's last seq is as expected.
    ///
    /// The idempotency key is checked first, so a retry of a batch that landed is a replay and not
    /// a mismatch.
    pub fn expected(mut self, expected: Expected) -> Self {
        self.expected = expected;
        self
    }

    /// Sets the title, the metadata or the hold of the session together with the events.
    ///
    /// This is [`set_metadata`](crate::SessionLog::set_metadata) and an append in one. A session
    /// without events is created with them.
    pub fn patch(mut self, patch: SessionPatch) -> Self {
        self.ops.push(Op::Describe(patch));
        self
    }

    /// Sets the title of the session together with the events.
    pub fn title(self, title: impl Into<String>) -> Self {
        self.patch(SessionPatch::new().title(title))
    }

    /// Applies a JSON merge patch to the metadata of the session together with the events.
    pub fn metadata(self, patch: impl Into<serde_json::Value>) -> Self {
        self.patch(SessionPatch::new().metadata(patch))
    }

    /// Closes the session behind the events, of which there may be none.
    ///
    /// A later append is [`Error::SessionClosed`]. A retry of an earlier one, by its idempotency
    /// key or its producer's number, still returns the stored events.
    pub fn closing(mut self) -> Self {
        self.ops.push(Op::Close);
        self
    }

    /// Names the writer of the batch. See [`Producer`].
    ///
    /// The session decides in this order:
    ///
    /// 1. A stale epoch is [`Error::Fenced`].
    /// 2. A number that is not above the last is a replay. So is a used idempotency key.
    /// 3. A closed session is [`Error::SessionClosed`].
    /// 4. A number that is not the next, or not 0 in a new epoch, is [`Error::ProducerGap`].
    /// 5. [`expected`](Self::expected) must hold.
    ///
    /// A session remembers 64 producers. The one that was unused for longest is forgotten first.
    pub fn producer(mut self, producer: Producer) -> Self {
        self.producer = Some(producer);
        self
    }

    /// A batch that changes a session without an event.
    pub(crate) fn of_op(op: Op) -> Self {
        Self {
            ops: vec![op],
            ..Self::default()
        }
    }

    pub(crate) fn check(&self, limits: &Limits) -> Result<()> {
        if let Some(why) = &self.unfit {
            return Err(Error::invalid("user message", why));
        }
        if self.events.is_empty() && self.ops.is_empty() {
            return Err(Error::invalid("batch", "it has no events"));
        }
        if self.ops.len() > OPS_MAX {
            let why = format!("it changes the session more than {OPS_MAX} times");
            return Err(Error::invalid("batch", why));
        }
        self.ops.iter().try_for_each(Op::check)?;
        if let Some(producer) = &self.producer {
            producer.check()?;
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
        self.event_type.check(limits.event_type_bytes_max)?;
        check_limit(Limit::EventBytes, self.data.len(), limits.event_bytes_max)
    }
}

impl From<NewEvent> for Batch {
    fn from(event: NewEvent) -> Self {
        Self::new().event(event)
    }
}

impl FromIterator<NewEvent> for Batch {
    fn from_iter<I: IntoIterator<Item = NewEvent>>(events: I) -> Self {
        Self::new().events(events)
    }
}

impl Extend<NewEvent> for Batch {
    fn extend<I: IntoIterator<Item = NewEvent>>(&mut self, events: I) {
        self.events.extend(events);
    }
}

/// The condition on its session for a batch to be appended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Any end, also no session.
    #[default]
    Any,
    /// The session has had no event. It may have been created.
    NoSession,
    /// The session has had at least one event.
    Exists,
    /// The session ends with this seq. `Seq(0)` is [`NoSession`](Expected::NoSession).
    Seq(Seq),
    /// The session was never created, or was deleted since. A session that was
    /// [created](crate::SessionLog::create) without an event is not absent.
    Absent,
    /// No event of these types came after `seq`. If one did, the error is
    /// [`Error::ConditionFailed`].
    NothingSince {
        /// The last seq that the caller has seen.
        seq: Seq,
        /// The types that must not have come after it.
        types: Vec<EventType>,
    },
}

impl Expected {
    /// Expects that no event of these types came after `seq`.
    ///
    /// So a worker cannot append a tool call behind an interrupt that it has not seen.
    pub fn nothing_since<T: AsRef<str>>(seq: Seq, types: impl IntoIterator<Item = T>) -> Self {
        let types = types.into_iter().map(EventType::unchecked).collect();
        Expected::NothingSince { seq, types }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Any => f.write_str("any seq"),
            Expected::NoSession => f.write_str("seq 0 (no events)"),
            Expected::Exists => f.write_str("seq 1 or later"),
            Expected::Seq(seq) => write!(f, "seq {seq}"),
            Expected::Absent => f.write_str("no session"),
            Expected::NothingSince { seq, .. } => write!(f, "no such event after seq {seq}"),
        }
    }
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
