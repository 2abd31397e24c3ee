//! Changes of a session besides its events: what a caller asks for, and what the feed yields.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::model::bounded::read_list;
use crate::model::error::{Error, Limit, Result, check_limit};
use crate::model::ids::{EventId, Seq};
use crate::model::retention::Retention;
use crate::model::session::SessionId;

/// The largest metadata of a session, as JSON, in bytes.
pub(crate) const METADATA_BYTES_MAX: usize = 16 * 1024;

/// The most ancestors that a fork shares events with.
const FORK_DEPTH_MAX: usize = 256;

/// The longest title of a session, in bytes.
const TITLE_BYTES_MAX: usize = 1024;

/// The longest reason for a removal, in bytes.
const REASON_BYTES_MAX: usize = 256;

/// The metadata of a session: a JSON object.
pub type Metadata = Map<String, Value>;

/// A change of a session that takes no seq. It has an ID of its own, in commit order with events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct SessionChange {
    /// Unique in the store, and greater than those of all events and changes committed before.
    pub id: EventId,
    /// The session that changed.
    pub session_id: SessionId,
    /// How often the session had begun when it changed.
    pub generation: u32,
    /// The wall clock when it was committed.
    pub created_at: Timestamp,
    /// The change.
    pub change: Change,
}

/// A change in a session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Change {
    /// The session was created without an event.
    Created,
    /// The session was created as a fork: its first events are the parent's.
    Forked {
        /// The session that was forked.
        parent: SessionId,
        /// The generation of the parent.
        parent_generation: u32,
        /// The seq of the last event that both share; 0 if they share none.
        at: Seq,
    },
    /// The title, the metadata or the hold was set.
    Described(SessionPatch),
    /// The session was closed.
    Closed,
    /// The session was reopened.
    Reopened,
    /// The events before `first` were removed.
    Trimmed {
        /// The first seq that is kept.
        first: Seq,
    },
    /// The data of an event was removed.
    Redacted {
        /// The event.
        event_id: EventId,
        /// The reason that was given.
        reason: Option<String>,
    },
    /// The session was deleted. Its next append begins its next generation.
    Deleted {
        /// The reason that was given.
        reason: Option<String>,
    },
}

/// Changes of the title, the metadata and the hold of a session.
///
/// ```
/// use sessionlog::SessionPatch;
///
/// let patch = SessionPatch::new()
///     .title("Refund for order 7")
///     .metadata(serde_json::json!({"agent": "a1", "draft": null}));
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "a patch does nothing until it is passed to `set_metadata`"]
#[non_exhaustive]
pub struct SessionPatch {
    /// `Some(None)` removes the title.
    #[expect(clippy::option_option, reason = "set, removed, or left as it is")]
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "set_or_removed"
    )]
    pub(crate) title: Option<Option<String>>,
    /// A JSON merge patch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metadata: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) hold: Option<bool>,
    /// An empty one leaves the session to the retention for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retention: Option<Retention>,
}

/// Tells a value that is removed, which is `null`, from one that is left as it is.
#[expect(
    clippy::option_option,
    clippy::ref_option,
    reason = "serde gives these signatures"
)]
mod set_or_removed {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(
        value: &Option<Option<String>>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().and_then(Option::as_ref).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Option<String>>, D::Error> {
        Option::deserialize(from).map(Some)
    }
}

impl SessionPatch {
    /// A patch that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the title: at most 1,024 bytes, without control characters.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(Some(title.into()));
        self
    }

    /// Removes the title.
    pub fn without_title(mut self) -> Self {
        self.title = Some(None);
        self
    }

    /// Applies a JSON merge patch ([RFC 7396](https://www.rfc-editor.org/rfc/rfc7396)) to the
    /// metadata. A member that is `null` is removed.
    ///
    /// The patch must be an object. The metadata takes at most 16 KiB after it.
    pub fn metadata(mut self, patch: impl Into<Value>) -> Self {
        self.metadata = Some(patch.into());
        self
    }

    /// Holds the session: it is neither deleted nor expired by retention.
    pub fn hold(mut self) -> Self {
        self.hold = Some(true);
        self
    }

    /// Ends a hold.
    pub fn release(mut self) -> Self {
        self.hold = Some(false);
        self
    }

    /// Gives the session a retention of its own, instead of the one for all. An empty one gives it
    /// back to that.
    pub fn retention(mut self, retention: Retention) -> Self {
        self.retention = Some(retention);
        self
    }

    /// Whether the patch changes nothing.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        if let Some(retention) = &self.retention {
            retention.check()?;
        }
        if let Some(Some(title)) = &self.title {
            check_limit(Limit::TitleBytes, title.len(), TITLE_BYTES_MAX)?;
            if title.chars().any(char::is_control) {
                return Err(Error::invalid("title", "it holds a control character"));
            }
        }
        match &self.metadata {
            None => Ok(()),
            Some(patch @ Value::Object(_)) => {
                // A patch that removes much may be larger than what it leaves, but not without end.
                let bytes = patch.to_string().len();
                check_limit(Limit::MetadataBytes, bytes, 4 * METADATA_BYTES_MAX)
            }
            Some(_) => Err(Error::invalid("metadata", "it is not a JSON object")),
        }
    }
}

/// A change of a session as it is stored, with what is needed to apply it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Op {
    Create,
    Describe(SessionPatch),
    Close,
    Reopen,
    Trim {
        first: Seq,
        /// The bytes of the events before `first`.
        bytes: u64,
    },
    Redact {
        event: EventId,
        /// The bytes of the event's data.
        bytes: u64,
        reason: Option<String>,
    },
    Delete {
        reason: Option<String>,
        /// The sessions that it shared events with as a fork.
        ancestors: Vec<SessionId>,
    },
    Fork(Box<Lineage>),
}

/// The events that a fork shares with its ancestors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lineage {
    pub parent: SessionId,
    pub parent_generation: u32,
    /// The first shared seq.
    pub first: Seq,
    /// The sessions that the shared events were appended to, in the order of their seqs. Each
    /// piece begins where the one before it ends.
    #[serde(deserialize_with = "read_list")]
    pub pieces: Vec<Piece>,
    /// The seq at which the fork branches off: the last shared one, if any is shared.
    pub at: Seq,
    /// The ID of the last shared event; nil if none is shared.
    pub last_id: EventId,
    /// The bytes of the shared events.
    pub bytes: u64,
}

/// A stretch of shared events, which were appended to one ancestor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Piece {
    pub session: SessionId,
    pub generation: u32,
    /// The last seq of the stretch.
    pub through: Seq,
}

impl Lineage {
    pub(crate) fn check(&self) -> Result<()> {
        check_limit(Limit::ForkDepth, self.pieces.len(), FORK_DEPTH_MAX)
    }
}

impl Op {
    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Op::Describe(patch) => patch.check(),
            Op::Redact { reason, .. } | Op::Delete { reason, .. } => {
                check_reason(reason.as_deref())
            }
            Op::Create | Op::Close | Op::Reopen | Op::Trim { .. } | Op::Fork(_) => Ok(()),
        }
    }

    /// Returns the change as the feed yields it.
    pub(crate) fn change(&self) -> Change {
        match self {
            Op::Create => Change::Created,
            Op::Describe(patch) => Change::Described(patch.clone()),
            Op::Close => Change::Closed,
            Op::Reopen => Change::Reopened,
            Op::Trim { first, .. } => Change::Trimmed { first: *first },
            Op::Redact { event, reason, .. } => Change::Redacted {
                event_id: *event,
                reason: reason.clone(),
            },
            Op::Delete { reason, .. } => Change::Deleted {
                reason: reason.clone(),
            },
            Op::Fork(lineage) => Change::Forked {
                parent: lineage.parent.clone(),
                parent_generation: lineage.parent_generation,
                at: lineage.at,
            },
        }
    }
}

impl From<Value> for SessionPatch {
    fn from(metadata: Value) -> Self {
        Self::new().metadata(metadata)
    }
}

/// Applies a JSON merge patch to an object.
pub(crate) fn merge(target: &mut Metadata, patch: &Map<String, Value>) {
    for (name, value) in patch {
        match value {
            Value::Null => {
                target.remove(name);
            }
            Value::Object(patch) => {
                let member = target.entry(name).or_insert(Value::Null);
                if !member.is_object() {
                    *member = Value::Object(Map::new());
                }
                if let Value::Object(member) = member {
                    merge(member, patch);
                }
            }
            other => {
                target.insert(name.clone(), other.clone());
            }
        }
    }
}

/// Checks the reason for a removal.
pub(crate) fn check_reason(reason: Option<&str>) -> Result<()> {
    let Some(reason) = reason else { return Ok(()) };
    check_limit(Limit::ReasonBytes, reason.len(), REASON_BYTES_MAX)?;
    if reason.chars().any(char::is_control) {
        return Err(Error::invalid("reason", "it holds a control character"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn merged(target: Value, patch: &Value) -> Value {
        let (Value::Object(mut target), Value::Object(patch)) = (target, patch) else {
            panic!("objects alone are merged");
        };
        merge(&mut target, patch);
        Value::Object(target)
    }

    /// The examples of RFC 7396, appendix A, whose target and patch are objects.
    #[test]
    fn a_merge_patch_does_what_the_rfc_says() {
        let cases = [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"c"}), json!({"a":["b"]}), json!({"a":["b"]})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"a":[{"b":"c"}]}), json!({"a":[1]}), json!({"a":[1]})),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
            (
                json!({"a":"foo"}),
                json!({"a":{"b":1}}),
                json!({"a":{"b":1}}),
            ),
        ];
        for (target, patch, expected) in cases {
            assert_eq!(merged(target, &patch), expected, "{patch}");
        }
    }
}
