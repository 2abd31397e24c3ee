//! A turn as a caller sees it: one message, its status, and pages of them.

use std::fmt::{self, Display};

use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::model::{MessageId, Seq, SessionId, time_text};
use crate::turn::user_message::ContentBlock;

/// A turn as one value: what the user sent, how far the work on it is, and what came of it.
///
/// It is computed from the turn's events each time it is read and stored nowhere. Serialized it has
/// these fields under these names, with times in RFC 3339 in UTC.
///
/// The events may be written by any language. A part of their JSON that no [`Value`] holds is a
/// string of its text here: a number beyond a double, `NaN`, what lies deeper than 127 levels. So
/// is, within a string, an escape for half a character such as `\ud83d`; bytes that are no UTF-8
/// are U+FFFD. The events themselves stay as they were given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Message {
    /// The ID of the message: that of the event that opened the turn.
    pub id: MessageId,
    /// The session it belongs to.
    pub session_id: SessionId,
    /// The seq of the event that opened the turn, so messages of a session are in order but not
    /// dense.
    #[serde(rename = "sequence_number")]
    pub seq: Seq,
    /// How far the work on the turn is.
    pub status: MessageStatus,
    /// What the user sent. Blocks that are no [`ContentBlock`] are left out.
    pub content: Vec<ContentBlock>,
    /// What the sender attached. Empty when the event's data has no object of that name.
    pub metadata: Map<String, Value>,
    /// Which try at the turn this is, from 1.
    pub attempt: u32,
    /// The data of this attempt's assistant messages, in order; the last is the latest, and of a
    /// completed turn the answer.
    ///
    /// All of them, because an agent says something before most of its tool calls, and who shows
    /// the turn wants that too. The calls and their results are in the session's events.
    pub output: Vec<Value>,
    /// How many of the earliest outputs are left out, since all of them take more memory than
    /// [`scan_bytes_max`](crate::Options::scan_bytes_max). The last is always there. They are in
    /// the session's events.
    pub output_omitted: u64,
    /// What was given with the status `failed`, if anything.
    pub error: Option<Value>,
    /// When the event that opened the turn was committed.
    #[serde(serialize_with = "as_time")]
    pub created_at: Timestamp,
    /// When the final status was committed, by the wall clock of that moment. `None` until then.
    #[serde(serialize_with = "as_time_if_any")]
    pub completed_at: Option<Timestamp>,
}

/// How far the work on a turn is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MessageStatus {
    /// Nobody works on it yet, or a new attempt is due.
    Queued,
    /// An agent works on it.
    Running,
    /// The agent waits for a tool.
    WaitingForTool,
    /// It is done. Final.
    Completed,
    /// It was given up. Final.
    Failed,
}

impl MessageStatus {
    /// Whether the turn is over: nothing that is appended later changes the message.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, MessageStatus::Completed | MessageStatus::Failed)
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
