//! What a stream stores of a body, and what it shows of an event.
//!
//! A JSON message is one event. A message that has the form of an event of the HTTP API is stored
//! as that event, so that turns read as messages: `{"type", "data"}`, also with a `message_id`, or
//! a `user.message` with `content`. Any other message is the data of an event of the type
//! [`MESSAGE`]. Both read back as the same JSON.
//!
//! The bytes of an append to any other stream are the data of events of the type [`BYTES`], each as
//! large as the log takes.

use axum::body::Bytes;
use serde_json::value::RawValue;

use crate::durable_streams::settings::ContentType;
use crate::http::{Access, ApiError, compact, new_event};
use crate::model::{
    Event, EventType, Limit, Limits, NewEvent, Turn, USER_MESSAGE, check_limit, opens_turn,
};
use crate::turn::each_item;

/// The type of an event that is a JSON message of a stream.
const MESSAGE: &str = "stream.message";

/// The type of an event that is a part of the bytes of a stream.
const BYTES: &str = "stream.bytes";

/// The end of the data of a user message that was sent without metadata.
const NO_METADATA: &str = r#","metadata":{}}"#;

/// Returns the events of a JSON body. The elements of an array are messages of their own.
pub(super) fn events_of_json(body: &[u8], limits: &Limits) -> Result<Vec<NewEvent>, ApiError> {
    let invalid = |error| ApiError::invalid(format!("the body is no JSON: {error}"));
    let body: &RawValue = serde_json::from_slice(body).map_err(invalid)?;
    if !body.get().starts_with('[') {
        return Ok(vec![event_of(body, limits)]);
    }
    let (mut events, mut count) = (Vec::new(), 0);
    each_item(body, |message| {
        count += 1;
        // An event takes many times the memory of a short message.
        if count <= limits.batch_events_max {
            events.push(event_of(message, limits));
        }
    })
    .map_err(invalid)?;
    check_limit(Limit::BatchEvents, count, limits.batch_events_max)?;
    Ok(events)
}

/// Returns the events of a body of bytes.
pub(super) fn events_of_bytes(body: &Bytes, limits: &Limits) -> Vec<NewEvent> {
    let parts = body.chunks(limits.event_bytes_max.max(1));
    parts
        .map(|part| NewEvent::new(BYTES, body.slice_ref(part)))
        .collect()
}

fn event_of(message: &RawValue, limits: &Limits) -> NewEvent {
    typed(message, limits).unwrap_or_else(|| NewEvent::new(MESSAGE, compact(message.get())))
}

/// Returns a message as an event of the HTTP API, if it has that form and reads back the same.
fn typed(message: &RawValue, limits: &Limits) -> Option<NewEvent> {
    if !message.get().starts_with('{') {
        return None;
    }
    let worker = Access::everywhere(crate::http::Scope::Worker);
    let mut event = new_event(message, &worker).ok()?;
    let name = event.event_type.as_str();
    let is_taken = EventType::new(name).is_ok() && name.len() <= limits.event_type_bytes_max;
    if !is_taken || [MESSAGE, BYTES].contains(&name) {
        return None;
    }
    if let Turn::Of(turn) = event.turn {
        // An ID that is spelled otherwise would read back in another spelling.
        message.get().contains(&turn.to_string()).then_some(())?;
    }
    if name == USER_MESSAGE && !has_metadata(message) {
        let data = event.data.strip_suffix(NO_METADATA.as_bytes())?;
        event.data = [data, b"}"].concat().into();
    }
    Some(event)
}

fn has_metadata(message: &RawValue) -> bool {
    #[derive(serde::Deserialize)]
    struct Named<'a> {
        #[serde(borrow)]
        metadata: Option<&'a RawValue>,
    }
    serde_json::from_str::<Named<'_>>(message.get()).is_ok_and(|named| named.metadata.is_some())
}

/// Whether a client may append an event, as in the HTTP API.
pub(super) fn is_for_clients(event: &NewEvent) -> bool {
    opens_turn(&event.event_type)
}

/// Adds what a stream shows of an event.
pub(super) fn push(body: &mut Vec<u8>, event: &Event, of: &ContentType) {
    if of.is_json() {
        push_message(body, event);
    } else {
        body.extend_from_slice(&event.data);
    }
}

/// Adds an event to the text of a JSON array whose bracket is open.
fn push_message(array: &mut Vec<u8>, event: &Event) {
    if array.last() != Some(&b'[') {
        array.push(b',');
    }
    let kind = event.event_type.as_str();
    let is_json = || serde_json::from_slice::<&RawValue>(&event.data).is_ok();
    if event.redacted {
        push_field(array, b"{\"type\":", kind);
        array.extend_from_slice(b",\"redacted\":true}");
    } else if kind == MESSAGE && is_json() {
        array.extend_from_slice(&event.data);
    } else if kind == USER_MESSAGE && event.data.starts_with(b"{\"") && is_json() {
        push_field(array, b"{\"type\":", kind);
        array.push(b',');
        array.extend_from_slice(event.data.get(1..).unwrap_or_default());
    } else {
        push_field(array, b"{\"type\":", kind);
        array.extend_from_slice(b",\"data\":");
        if is_json() {
            array.extend_from_slice(&event.data);
        } else {
            array.extend_from_slice(b"null");
        }
        if let Some(turn) = event.message_id {
            push_field(array, b",\"message_id\":", &turn.to_string());
        }
        array.push(b'}');
    }
}

fn push_field(to: &mut Vec<u8>, name: &[u8], text: &str) {
    to.extend_from_slice(name);
    let text = serde_json::to_string(text).expect("a string has a JSON form");
    to.extend_from_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Error, Options};

    #[test]
    fn messages_beyond_the_limit_are_counted_and_not_kept() {
        let limits = Options::new().batch_events_max(3).limits;
        let events = |body: &str| events_of_json(body.as_bytes(), &limits);
        assert_eq!(events("[1,2,3]").unwrap().len(), 3);
        let refused = events("[1,2,3,4,5]").unwrap_err();
        let told = Error::TooLarge {
            limit: Limit::BatchEvents,
            actual: 5,
            max: 3,
        };
        assert_eq!(
            format!("{refused:?}"),
            format!("{:?}", ApiError::from(told))
        );
    }
}
