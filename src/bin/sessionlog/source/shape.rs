//! The JSON of the HTTP API, as far as the command shows it to people.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use sessionlog::http::json;

use crate::failure::{Failure, Result};

/// JSON, and what was read from it.
#[derive(Debug, Clone)]
pub(crate) struct Shaped<T> {
    pub(crate) json: String,
    pub(crate) value: T,
}

impl<T: DeserializeOwned> Shaped<T> {
    pub(crate) fn new(json: impl Into<String>) -> Result<Self> {
        let json = one_line(json.into());
        match serde_json::from_str(&json) {
            Ok(value) => Ok(Self { json, value }),
            Err(error) => Err(unknown_shape(&error)),
        }
    }
}

/// Data that was appended may be JSON on several lines, of which a page of a server is made.
fn one_line(json: String) -> String {
    if json.contains(['\n', '\r']) {
        json::one_line(&json)
    } else {
        json
    }
}

/// The failure of an answer that is not of the HTTP API.
pub(crate) fn unknown_shape(error: &serde_json::Error) -> Failure {
    let message = format!("the answer has another shape than expected: {error}");
    Failure::new("unknown_answer", message)
        .hint("check that the address is that of a sessionlog server of this version")
}

/// A stored event.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Event {
    pub(crate) id: String,
    pub(crate) session_id: String,
    pub(crate) seq: u64,
    pub(crate) message_id: Option<String>,
    pub(crate) r#type: String,
    pub(crate) data: Box<RawValue>,
    pub(crate) data_base64: Option<String>,
    pub(crate) created_at: String,
    #[serde(default)]
    pub(crate) redacted: bool,
}

/// A change of a session that is no event.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Change {
    pub(crate) session_id: String,
    pub(crate) created_at: String,
    #[serde(rename = "change")]
    pub(crate) what: Map<String, Value>,
}

/// A session.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Session {
    pub(crate) id: String,
    pub(crate) generation: u32,
    pub(crate) first_seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) events: u64,
    pub(crate) bytes: u64,
    pub(crate) last_event_id: Option<String>,
    pub(crate) last_event_at: String,
    pub(crate) created_at: String,
    pub(crate) closed: bool,
    pub(crate) hold: bool,
    pub(crate) title: Option<String>,
    pub(crate) metadata: Map<String, Value>,
    pub(crate) parent: Option<Parent>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Parent {
    pub(crate) id: String,
    pub(crate) at: u64,
}

/// A turn.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) session_id: String,
    pub(crate) sequence_number: u64,
    pub(crate) status: String,
    #[serde(default)]
    pub(crate) redacted: bool,
    pub(crate) content: Box<RawValue>,
    pub(crate) metadata: Box<RawValue>,
    pub(crate) attempt: u32,
    pub(crate) output: Vec<Box<RawValue>>,
    pub(crate) output_omitted: u64,
    pub(crate) error: Option<Box<RawValue>>,
    pub(crate) created_at: String,
    pub(crate) completed_at: Option<String>,
}

/// The figures of a store.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Stats {
    pub(crate) store_id: String,
    pub(crate) format: u32,
    pub(crate) last_id: Option<String>,
    pub(crate) events: u64,
    pub(crate) segments: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) tiers: Vec<Tier>,
    pub(crate) recent_bytes: u64,
    pub(crate) index_lag: u64,
    pub(crate) streams: u64,
    pub(crate) refused: Vec<Refusal>,
    pub(crate) erasure: Erasure,
    pub(crate) space: Space,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Tier {
    #[serde(rename = "tier")]
    pub(crate) number: u8,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Refusal {
    pub(crate) work: String,
    pub(crate) error: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Erasure {
    pub(crate) due: Option<String>,
    pub(crate) overdue: bool,
    pub(crate) events: u64,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Space {
    pub(crate) live_bytes: u64,
    pub(crate) dead_bytes: u64,
    pub(crate) journal_bytes: u64,
    pub(crate) journal_files: u64,
    pub(crate) growth_bytes_a_day: u64,
    pub(crate) oldest: Option<String>,
}
