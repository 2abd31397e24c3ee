//! The events of a request: messages of users, and events of any other type from workers.
//!
//! A message is checked by its types. Then it is stored as written, except for white space. So
//! numbers, unknown fields and strings with half an emoji come back as sent. The data of other
//! events is any JSON.

use std::borrow::Cow;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::http::body::in_body;
use crate::http::error::ApiError;
use crate::http::key::Access;
use crate::http::query::present;
use crate::http::wire::compact;
use crate::model::{Batch, MessageId, NewEvent, USER_MESSAGE};
use crate::turn::{CheckedBlock, CheckedMap, LEVELS_MAX, each_item, lenient};

/// An event to append.
#[derive(ToSchema)]
#[schema(as = NewEvent)]
#[serde(untagged)]
#[expect(
    dead_code,
    reason = "it stands for the two kinds of events in the document"
)]
pub(super) enum SentEvent<'a> {
    Message(NewMessage<'a>),
    Other(WorkerEvent<'a>),
}

/// The fields of both kinds of events.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnyEvent<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    content: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "given")]
    metadata: Option<&'a RawValue>,
    #[serde(borrow)]
    data: Option<&'a RawValue>,
    #[serde(default, deserialize_with = "present")]
    message_id: Option<String>,
}

/// Parsed first, so that the error for another type names the type and not its fields.
#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

/// A user's message, which opens a turn.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewMessage<'a> {
    #[serde(rename = "type")]
    #[schema(value_type = MessageType)]
    _type: IgnoredAny,
    #[serde(borrow)]
    #[schema(value_type = Vec<Block>)]
    content: &'a RawValue,
    /// The sender's own keys and values.
    #[serde(borrow, default, deserialize_with = "given")]
    #[schema(value_type = Object, required = false)]
    metadata: Option<&'a RawValue>,
}

#[derive(ToSchema)]
#[expect(dead_code, reason = "it stands for the one type in the document")]
enum MessageType {
    #[schema(rename = "user.message")]
    UserMessage,
}

/// A piece of content: any object with a type. A `text` has the field `text`, and a `file` has
/// `file_id`.
#[derive(ToSchema)]
#[schema(as = ContentBlock)]
#[expect(dead_code, reason = "it stands for `ContentBlock` in the document")]
struct Block {
    #[schema(example = "text")]
    r#type: String,
}

/// Reads `null` as a value that is present and not an object, instead of as a missing one.
fn given<'de, D: Deserializer<'de>>(metadata: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(metadata).map(Some)
}

/// An event of any type other than `user.message`. Only workers append these.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = WorkerEvent)]
pub(super) struct WorkerEvent<'a> {
    #[serde(rename = "type")]
    #[schema(
        value_type = String,
        example = "assistant.message_completed",
        min_length = 1,
        pattern = r"^(?!user\.message$)[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    _type: IgnoredAny,
    /// Any JSON.
    #[serde(borrow)]
    #[schema(value_type = Value)]
    data: &'a RawValue,
    /// The turn that it belongs to.
    #[serde(default, deserialize_with = "present")]
    #[schema(
        value_type = String,
        required = false,
        pattern = "^msg_[0-7][0-9A-HJKMNP-TV-Z]{25}$"
    )]
    message_id: Option<String>,
}

pub(crate) type Refusal = (&'static str, String);

/// Adds the events of a JSON array to a batch.
///
/// They are read one by one: a list of all may take many times the memory of the body.
pub(super) fn add_events(
    batch: Batch,
    events: &RawValue,
    access: &Access,
) -> Result<Batch, ApiError> {
    if !events.get().starts_with('[') {
        return Err(ApiError::invalid("the body: events is no array"));
    }
    let (mut at, mut made) = (0, Ok::<_, ApiError>(batch));
    let each = each_item(events, |event| {
        let add = |batch: Batch| {
            let event = new_event(event, access)
                .map_err(|(field, why)| ApiError::invalid(format!("events[{at}]{field}: {why}")))?;
            Ok(batch.event(event))
        };
        made = std::mem::replace(&mut made, Ok(Batch::new())).and_then(add);
        at += 1;
    });
    each.map_err(|error| in_body(&error))?;
    made
}

/// Returns the event that stores what was sent. An error names the field and the reason.
pub(crate) fn new_event(event: &RawValue, access: &Access) -> Result<NewEvent, Refusal> {
    // Most events are as they should be, and are read once. For any other one, the parts are read
    // in the order in which an error is the most useful.
    match serde_json::from_str(event.get()) {
        Ok(AnyEvent {
            r#type,
            content: Some(content),
            metadata,
            data: None,
            message_id: None,
        }) if r#type == USER_MESSAGE => message(content, metadata),
        Ok(AnyEvent {
            r#type,
            content: None,
            metadata: None,
            data: Some(data),
            message_id,
        }) if r#type != USER_MESSAGE && access.is_worker() => {
            worker_event(r#type.into_owned(), data, message_id)
        }
        _ => by_type(event, access),
    }
}

fn by_type(event: &RawValue, access: &Access) -> Result<NewEvent, Refusal> {
    let Typed { r#type } = parsed(event, "")?;
    if r#type == USER_MESSAGE {
        let NewMessage {
            content, metadata, ..
        } = parsed(event, "")?;
        return message(content, metadata);
    }
    if !access.is_worker() {
        return Err((
            ".type",
            format!("it is {type:?}, and only {USER_MESSAGE:?} is taken here"),
        ));
    }
    let WorkerEvent {
        data, message_id, ..
    } = parsed(event, "")?;
    worker_event(r#type, data, message_id)
}

fn worker_event(
    r#type: String,
    data: &RawValue,
    message_id: Option<String>,
) -> Result<NewEvent, Refusal> {
    let new = NewEvent::new(r#type, compact(data.get()));
    let Some(id) = message_id else {
        return Ok(new);
    };
    match id.parse::<MessageId>() {
        Ok(id) => Ok(new.in_turn(id)),
        Err(error) => Err((".message_id", error.to_string())),
    }
}

fn message(content: &RawValue, metadata: Option<&RawValue>) -> Result<NewEvent, Refusal> {
    let metadata_json =
        metadata.map_or_else(|| "{}".to_owned(), |metadata| compact(metadata.get()));
    let data = format!(
        r#"{{"content":{},"metadata":{metadata_json}}}"#,
        compact(content.get())
    );
    if serde_json::from_str::<CheckedMessage>(&data).is_err() {
        check_repaired(content, metadata, &data)?;
    }
    Ok(NewEvent::new(USER_MESSAGE, data))
}

/// Accepts JSON that a turn can only show in part, such as a string with half an emoji.
///
/// Parts that are valid by themselves may still be nested too deep in `data`.
fn check_repaired(
    content: &RawValue,
    metadata: Option<&RawValue>,
    data: &str,
) -> Result<(), Refusal> {
    if lenient::repaired(data.as_bytes()).is_none_or(|repaired| repaired.levels > LEVELS_MAX) {
        return Err((
            "",
            format!("its JSON is nested deeper than {LEVELS_MAX} levels"),
        ));
    }
    let _blocks: Vec<CheckedBlock> = read(content, ".content")?;
    let _fields: Option<CheckedMap> = metadata
        .map(|metadata| read(metadata, ".metadata"))
        .transpose()?;
    Ok(())
}

/// A check that JSON reads as a [`UserMessage`](crate::UserMessage). Nothing of it is kept.
#[derive(Deserialize)]
struct CheckedMessage {
    #[serde(rename = "content")]
    _content: Vec<CheckedBlock>,
    #[serde(rename = "metadata")]
    _metadata: CheckedMap,
}

fn read<T: DeserializeOwned>(json: &RawValue, field: &'static str) -> Result<T, Refusal> {
    lenient::from_slice(json.get().as_bytes()).map_err(|error| (field, error.to_string()))
}

fn parsed<'a, T: Deserialize<'a>>(json: &'a RawValue, field: &'static str) -> Result<T, Refusal> {
    serde_json::from_str(json.get()).map_err(|error| (field, error.to_string()))
}
