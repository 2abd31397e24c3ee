//! A turn as a caller sees it: one message and its status.

use std::fmt::{self, Display};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::model::{MessageId, Seq, SessionId, time_text};
use crate::turn::user_message::ContentBlock;

/// A turn as one value: the user's message, the state of the work on it, and its output.
///
/// It is computed from the turn's events on each read and never stored. It serializes to its fields
/// under their names, except that `seq` is `sequence_number`. `redacted` is left out when it is
/// `false`. Times are RFC 3339 in UTC.
///
/// The events may be written by any language. A part of their JSON that no [`Value`] holds is a
/// string of its text here. That is a number beyond a double, `NaN`, or what lies deeper than 127
/// levels. So is, within a string, an escape for half a character such as `\ud83d`; bytes that are
/// no UTF-8 are U+FFFD. The events themselves stay as they were given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// The ID of the message: the ID of the event that opened the turn.
    pub id: MessageId,
    /// The session that the turn belongs to.
    pub session_id: SessionId,
    /// The seq of the event that opened the turn. The seqs of a session's messages rise with gaps.
    #[serde(rename = "sequence_number")]
    pub seq: Seq,
    /// The state of the work on the turn.
    pub status: MessageStatus,
    /// Whether the event that opened the turn was redacted. Content and metadata are then empty.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub redacted: bool,
    /// The content that the user sent. Items that are not a [`ContentBlock`] are left out.
    pub content: Vec<ContentBlock>,
    /// The metadata that the sender attached. Empty when the event's data has no such object.
    pub metadata: Map<String, Value>,
    /// The number of the current attempt, from 1.
    pub attempt: u32,
    /// The data of this attempt's assistant messages, in order.
    ///
    /// The last one is the latest. In a completed turn it is the answer. Earlier ones are kept
    /// because an agent says something before most of its tool calls. The calls and their results
    /// are in the session's events.
    pub output: Vec<Value>,
    /// The number of the earliest outputs that are left out.
    ///
    /// Outputs are left out when all of them take more memory than
    /// [`scan_bytes_max`](crate::Options::scan_bytes_max). The last one is always kept. The others
    /// are in the session's events.
    pub output_omitted: u64,
    /// The error that came with the status `failed`, if any.
    pub error: Option<Value>,
    /// When the event that opened the turn was committed.
    #[serde(serialize_with = "as_time")]
    pub created_at: Timestamp,
    /// When the event with the final status was committed, by the wall clock. `None` until then.
    #[serde(serialize_with = "as_time_if_any")]
    pub completed_at: Option<Timestamp>,
}

/// The state of the work on a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageStatus {
    /// No agent works on it yet, or a new attempt is due.
    Queued,
    /// An agent works on it.
    Running,
    /// The agent waits for a tool.
    WaitingForTool,
    /// The turn succeeded. Final.
    Completed,
    /// The turn failed. Final.
    Failed,
    /// Somebody gave the turn up before it came to an end. Final.
    ///
    /// Only a status event says so. No silence and no interrupt cancels a turn.
    Cancelled,
}

impl MessageStatus {
    /// Whether the turn is over. Later events do not change the message.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            MessageStatus::Completed | MessageStatus::Failed | MessageStatus::Cancelled
        )
    }

    /// The name of the status, as in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            MessageStatus::Queued => "queued",
            MessageStatus::Running => "running",
            MessageStatus::WaitingForTool => "waiting_for_tool",
            MessageStatus::Completed => "completed",
            MessageStatus::Failed => "failed",
            MessageStatus::Cancelled => "cancelled",
        }
    }
}

impl Display for MessageStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

fn as_time<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&time_text(*at))
}

#[expect(clippy::ref_option, reason = "serde passes a reference to the field")]
fn as_time_if_any<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
    at.map(time_text).serialize(serializer)
}
