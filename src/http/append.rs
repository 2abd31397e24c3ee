//! Appending: the messages of a request become one atomic batch of `user.message` events.
//!
//! A message in the body is checked by its types. Then it is stored as written, except for white
//! space. So numbers, unknown fields and strings with half an emoji come back as sent.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, ETAG, IF_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use tokio::time::timeout;
use utoipa::ToSchema;

use crate::http::budget::Share;
use crate::http::config::Config;
use crate::http::error::{ApiError, ErrorBody};
use crate::http::query::SessionParam;
use crate::http::service::{InPath, Service, SessionPath};
use crate::http::wire::{Appended, EventBody, compact, etag};
use crate::log::SessionLog;
use crate::model::{Ack, Batch, Error, Expected, NewEvent, Result, SessionId, USER_MESSAGE};
use crate::turn::{CheckedBlock, CheckedMap, LEVELS_MAX, each_item, lenient};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Append events to a session
///
/// Stores all of them or none, and answers when they are on stable storage. The first events sent
/// to a session create it.
#[utoipa::path(
    post,
    path = "/v1/sessions/{session_id}/events",
    operation_id = "send_session_events",
    params(
        SessionParam,
        (
            "Idempotency-Key" = Option<String>,
            Header,
            description = "Stores what is sent with this key once. Sent again, the first answer \
                comes again, with the header Idempotent-Replayed",
            max_length = 256,
            pattern = r"^[!-~][\t -~]*$",
        ),
        (
            "If-Match" = Option<String>,
            Header,
            description = "Stores only if the session's last seq is this, in quotes, as the \
                header ETag says it, or one of several; 0 for a new session, * for one that is \
                there",
            pattern =
                r#"^(\*|(W/)?("[0-9]{1,18}"|[0-9]{1,18})(, ?(W/)?("[0-9]{1,18}"|[0-9]{1,18}))*)$"#,
        ),
    ),
    request_body = Append,
    responses(
        (status = 200, description = "The stored events", body = Appended, headers(
            (
                "ETag" = Option<String>,
                description = "The session's last seq, for If-Match; not on a replay"
            ),
            (
                "Idempotent-Replayed" = Option<String>,
                description = "`true` when an earlier call with this key had stored the events"
            ),
        )),
        (
            status = 400,
            description = "No JSON, no events, another type than `user.message`, a bad ID or \
                header",
            body = ErrorBody,
        ),
        (status = 401, description = "No token, or a wrong one", body = ErrorBody),
        (status = 408, description = "The body took too long", body = ErrorBody),
        (
            status = 409,
            description = "The idempotency key was used for something else",
            body = ErrorBody,
        ),
        (
            status = 412,
            description = "The session is elsewhere than If-Match says; `actual_seq` says where",
            body = ErrorBody,
        ),
        (
            status = 413,
            description = "Too much at once; `limit` says how much is taken",
            body = ErrorBody,
        ),
        (
            status = 415,
            description = "The content type is not JSON, or the body is compressed",
            body = ErrorBody,
        ),
        (status = 503, description = "The log takes nothing at the moment", body = ErrorBody),
        (
            status = "default",
            description = "A head that is too long, or a fault of the server",
            body = ErrorBody,
        ),
    ),
)]
pub(super) async fn append(
    State(service): State<Arc<Service>>,
    InPath(session): SessionPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let places = expected(&headers)?;
    let (batch, share) =
        batch(&headers, async || read_body(&headers, body, &service).await).await?;
    let ack = append_where(&service.log, &session, batch, places).await?;
    let (name, value) = if ack.replayed {
        (IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"))
    } else {
        (ETAG, etag(ack.last))
    };
    let events = ack.events.iter().map(EventBody::from).collect();
    Ok(([(name, value)], share.answer(&Appended { events })).into_response())
}

/// The events to append.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Append<'a> {
    /// At least one event, in order.
    #[serde(borrow)]
    #[schema(value_type = Vec<NewMessage>, min_items = 1)]
    events: &'a RawValue,
}

/// Parsed first, so that the error for another type names the type and not its fields.
#[derive(Deserialize)]
struct Typed {
    r#type: String,
}

/// A user's message, which opens a turn.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewMessage<'a> {
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

/// Reads the batch from a request. The body is read only if the headers are valid.
async fn batch(
    headers: &HeaderMap,
    body: impl AsyncFnOnce() -> Result<(Bytes, Share), ApiError>,
) -> Result<(Batch, Share), ApiError> {
    check_content_type(headers)?;
    let mut batch = Batch::new();
    if let Some(key) = idempotency_key(headers)? {
        batch = batch.idempotency_key(key);
    }
    let (body, share) = body().await?;
    // Software on Windows may put a byte order mark before UTF-8.
    let body = body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&body);
    let in_body = |error| ApiError::invalid(format!("the body: {error}"));
    let Append { events } = serde_json::from_slice(body).map_err(in_body)?;
    if !events.get().starts_with('[') {
        return Err(ApiError::invalid("the body: events is no array"));
    }
    // Read one by one: a list of all events may take many times the memory of the body.
    let (mut at, mut made) = (0, Ok::<_, ApiError>(batch));
    let each = each_item(events, |event| {
        let add = |batch: Batch| {
            let event = message(event)
                .map_err(|(field, why)| ApiError::invalid(format!("events[{at}]{field}: {why}")))?;
            Ok(batch.event(event))
        };
        made = std::mem::replace(&mut made, Ok(Batch::new())).and_then(add);
        at += 1;
    });
    each.map_err(in_body)?;
    Ok((made?, share))
}

/// Returns the event that stores a message. An error names the field and the reason.
fn message(event: &RawValue) -> Result<NewEvent, (&'static str, String)> {
    let Typed { r#type } = parsed(event, "")?;
    if r#type != USER_MESSAGE {
        return Err((
            ".type",
            format!("it is {type:?}, and only {USER_MESSAGE:?} is taken here"),
        ));
    }
    let NewMessage {
        content, metadata, ..
    } = parsed(event, "")?;
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
) -> Result<(), (&'static str, String)> {
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

fn read<T: DeserializeOwned>(
    json: &RawValue,
    field: &'static str,
) -> Result<T, (&'static str, String)> {
    lenient::from_slice(json.get().as_bytes()).map_err(|error| (field, error.to_string()))
}

fn parsed<'a, T: Deserialize<'a>>(
    json: &'a RawValue,
    field: &'static str,
) -> Result<T, (&'static str, String)> {
    serde_json::from_str(json.get()).map_err(|error| (field, error.to_string()))
}

fn check_content_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_plain = |coding: &HeaderValue| {
        coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    };
    if let Some(coding) = headers
        .get_all(CONTENT_ENCODING)
        .iter()
        .find(|coding| !is_plain(coding))
    {
        let message =
            format!("the content encoding is {coding:?}, and bodies are taken as they are alone");
        return Err(ApiError::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "unsupported_encoding",
            message,
        ));
    }
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|given| given.to_str().ok())
        .unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let message = format!("the content type is {given:?}, and only application/json is taken");
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        message,
    ))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let mut keys = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    if keys.next().is_some() {
        return Err(ApiError::invalid(
            "the header Idempotency-Key is given more than once",
        ));
    }
    key.to_str().map(Some).map_err(|_error| {
        ApiError::invalid("the header Idempotency-Key holds other than visible ASCII characters")
    })
}

/// Returns the seqs of which any one may be the session's last. Without the header any is accepted.
fn expected(headers: &HeaderMap) -> Result<Vec<Expected>, ApiError> {
    let mut expected = Vec::new();
    for tags in headers.get_all(IF_MATCH) {
        for tag in tags.to_str().unwrap_or_default().split(',') {
            expected.push(expected_by(tag.trim())?);
        }
    }
    if expected.is_empty() {
        expected.push(Expected::Any);
    }
    if expected.len() > 1 && expected.contains(&Expected::Exists) {
        return Err(ApiError::invalid(
            "the header If-Match has * beside something else",
        ));
    }
    Ok(expected)
}

fn expected_by(tag: &str) -> Result<Expected, ApiError> {
    if tag == "*" {
        return Ok(Expected::Exists);
    }
    // A proxy that compresses an answer makes its tag weak. The seq in it is still the session's.
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    // Many clients forget the quotes, and the meaning is clear without them.
    let seq = tag
        .strip_prefix('"')
        .and_then(|tag| tag.strip_suffix('"'))
        .unwrap_or(tag);
    let seq = Some(seq)
        .filter(|seq| seq.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|seq| seq.parse().ok());
    seq.map(Expected::Seq)
        .ok_or_else(|| ApiError::invalid("the header If-Match is neither seqs in quotes nor *"))
}

/// Appends if the session is at one of `places`. A session only grows, so each place is tried at
/// most once.
async fn append_where(
    log: &SessionLog,
    session: &SessionId,
    batch: Batch,
    mut places: Vec<Expected>,
) -> crate::model::Result<Ack> {
    let mut next = places.pop().unwrap_or_default();
    loop {
        match log
            .append_async(session, batch.clone().expected(next))
            .await
        {
            Err(Error::ExpectedMismatch { actual, .. })
                if places.contains(&Expected::Seq(actual)) =>
            {
                next = Expected::Seq(actual);
                places.retain(|place| *place != next);
            }
            answer => return answer,
        }
    }
}

/// The memory that an append takes for each byte of its body: the body, its events, their batch,
/// and the answer.
const BODY_COPIES: usize = 4;

/// Reads a body within the limits of size and time. The returned share covers the memory of
/// everything made from it.
async fn read_body(
    headers: &HeaderMap,
    mut body: Body,
    service: &Service,
) -> Result<(Bytes, Share), ApiError> {
    let Config {
        body_bytes_max: max,
        body_wait,
        ..
    } = service.config;
    let too_large = |actual| {
        let message = format!("the body is longer than the {max} bytes that are taken");
        ApiError::limited(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            message,
            actual,
            max as u64,
        )
    };
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|bytes| bytes.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > max as u64) {
        return Err(too_large(announced));
    }
    let received = async {
        let (mut received, mut share) = (Vec::new(), service.budget.share(0).await?);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::invalid(format!("the body could not be read: {error}"))
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if received.len() + data.len() > max {
                return Err(too_large(None));
            }
            received.extend_from_slice(&data);
            service.budget.grow(&mut share, received.capacity()).await?;
        }
        service
            .budget
            .grow(&mut share, received.len().saturating_mul(BODY_COPIES))
            .await?;
        Ok((received.into(), share))
    };
    timeout(body_wait, received)
        .await
        .unwrap_or_else(|_elapsed| {
            let message = format!("the body took longer than {body_wait:?}");
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                message,
            ))
        })
}
