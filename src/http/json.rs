//! The JSON of the HTTP API, for a program that has the log itself: the command `sessionlog`, or a
//! service with calls of its own.
//!
//! Each function answers what the call of that name answers to a worker, on one line.
//!
//! ```
//! # let dir = tempfile::tempdir()?;
//! # let log = sessionlog::SessionLog::open(dir.path())?;
//! use sessionlog::http::json;
//!
//! let sent = r#"{"type": "note", "data": {"text": "seen"}}"#;
//! let ack = log.append(&"sess_123".parse()?, json::new_event(sent)?)?;
//! let shown: serde_json::Value = serde_json::from_str(&json::event(&ack.events[0]))?;
//! assert_eq!((&shown["seq"], &shown["data"]["text"]), (&1.into(), &"seen".into()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use serde_json::value::RawValue;

use crate::http::feed::ChangeBody;
use crate::http::key::{Access, Scope};
use crate::http::operate::StatsBody;
use crate::http::sent;
use crate::http::stream::one_line as text;
use crate::http::wire::{EventBody, MessageBody, SessionBody, compact};
use crate::log::SessionLog;
use crate::model::{Error, Event, MessageId, NewEvent, Result, SessionChange, SessionInfo};

/// An event, as `GET /v1/events/{event_id}` answers it.
#[must_use]
pub fn event(event: &Event) -> String {
    text(&EventBody::from(event))
}

/// A change of a session, as the feed shows it.
#[must_use]
pub fn change(change: &SessionChange) -> String {
    text(&ChangeBody::new(change, &everywhere()))
}

/// A session, as `GET /v1/sessions/{session_id}` answers it.
#[must_use]
pub fn session(session: &SessionInfo) -> String {
    text(&SessionBody::new(session.clone(), &everywhere()))
}

/// A turn, as `GET /v1/messages/{message_id}` answers it.
///
/// # Errors
///
/// Those of [`SessionLog::message`].
pub fn message(log: &SessionLog, id: MessageId) -> Result<String> {
    let turn = log.turn_within(id, usize::MAX)?;
    Ok(text(&MessageBody::from(turn)))
}

/// The figures of a log, as `GET /v1/stats` answers them.
///
/// # Errors
///
/// [`Error::Closed`].
pub fn stats(log: &SessionLog) -> Result<String> {
    Ok(text(&StatsBody::new(log.stats(), log.erasure()?)))
}

/// The same JSON on one line. The spelling of numbers and strings stays.
#[must_use]
pub fn one_line(json: &str) -> String {
    compact(json)
}

/// Reads an event to append: what stands in `events` of `POST /v1/sessions/{session_id}/events`.
///
/// # Errors
///
/// [`Error::Invalid`] when it is no JSON, or no event.
pub fn new_event(json: &str) -> Result<NewEvent> {
    let sent: &RawValue =
        serde_json::from_str(json).map_err(|error| Error::invalid("JSON", error.to_string()))?;
    sent::new_event(sent, &everywhere()).map_err(|(field, why)| {
        let field = field.trim_start_matches('.');
        let why = if field.is_empty() {
            why
        } else {
            format!("{field}: {why}")
        };
        Error::invalid("event", why)
    })
}

fn everywhere() -> Access {
    Access::everywhere(Scope::Worker)
}
