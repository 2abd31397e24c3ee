//! Appending: the events of a request become one atomic batch.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::ETAG;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::task::block_in_place;
use utoipa::ToSchema;
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};

use crate::http::body::{BODY_COPIES, JsonBody, check_json, parsed};
use crate::http::budget::Share;
use crate::http::conditions::{IfMatchParam, at_one_of, expected, idempotency_key, producer};
use crate::http::error::{ApiError, ErrorBody, RefusesBody, RefusesCall};
use crate::http::etag::etag;
use crate::http::key::Access;
use crate::http::query::SessionParam;
use crate::http::sent::{SentEvent, add_events};
use crate::http::service::{Service, SessionPath};
use crate::http::wire::Appended;
use crate::log::SessionLog;
use crate::model::{Ack, Batch, Expected, SessionId};

const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Append events to a session
///
/// Stores all of them or none, and answers when they are on stable storage. The first events sent
/// to a session create it. Workers append events of any type, and may close the session behind
/// them.
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
        IfMatchParam,
        (
            "Producer-Id" = Option<String>,
            Header,
            description = "For workers: the ID of the worker that sends this. The server stores \
                           nothing of a worker whose epoch is stale",
            min_length = 1,
            max_length = 256,
            pattern = r"^[!-~]([\t -~]*[!-~])?$",
        ),
        (
            "Producer-Epoch" = Option<u64>,
            Header,
            description = "The epoch of the producer, 0 without this header",
        ),
        (
            "Producer-Seq" = Option<u64>,
            Header,
            description = "The number of this request in its epoch, from 0. One that was sent \
                before stores nothing again",
        ),
    ),
    request_body = AppendBody,
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
            description = "No JSON, no events, a type that is not taken, a bad ID or header",
            body = ErrorBody,
        ),
        (
            status = 403,
            description = "Only the key of a worker does this, or another producer has taken \
                over; `current_epoch` is its epoch",
            body = ErrorBody,
        ),
        (
            status = 409,
            description = "The idempotency key was used for something else, the session is \
                closed, or the producer's number is not the next",
            body = ErrorBody,
        ),
        (
            status = 412,
            description = "The session is elsewhere than If-Match says; `actual_seq` says where",
            body = ErrorBody,
        ),
        (status = 404, description = "The key is for other sessions", body = ErrorBody),
        RefusesBody,
        RefusesCall,
    ),
)]
pub(super) async fn append(
    State(service): State<Arc<Service>>,
    access: Access,
    SessionPath(session): SessionPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let places = expected(&headers)?;
    let batch = batch(&headers, &access)?;
    let body = JsonBody::of(&headers, body, &service).await?;
    let batch = body.parsed::<Append<'_>>()?.added_to(batch, &access)?;
    let ack = stored(&service.log, &session, places, batch).await?;
    Ok(([field(&ack)], body.share.answer(&Appended::of(&ack))).into_response())
}

/// Does the same for a request that is there as a whole, in the same order. Adds the text of the
/// answer to `out`, and returns the field that belongs to it, and the memory for both texts.
pub(super) async fn append_whole(
    service: &Service,
    access: &Access,
    session: &SessionId,
    headers: &HeaderMap,
    body: &[u8],
    out: &mut Vec<u8>,
) -> Result<((HeaderName, HeaderValue), Share), ApiError> {
    let places = expected(headers)?;
    let batch = batch(headers, access)?;
    check_json(headers)?;
    let share = service
        .budget
        .share(body.len().saturating_mul(BODY_COPIES))
        .await?;
    let batch = parsed::<Append<'_>>(body)?.added_to(batch, access)?;
    let (log, caller) = (&service.log, service.callers.enter());
    let ack = match &*places {
        // Two changes of threads are a tenth of the time until the answer.
        [place] if caller.may_block() => {
            block_in_place(|| log.append(session, batch.expected(place.clone())))?
        }
        _ => stored(log, session, places, batch).await?,
    };
    serde_json::to_writer(out, &Appended::of(&ack)).expect("the shape has a JSON form");
    Ok((field(&ack), share))
}

/// Appends a batch at one of `places`.
async fn stored(
    log: &SessionLog,
    session: &SessionId,
    places: Vec<Expected>,
    batch: Batch,
) -> crate::model::Result<Ack> {
    if let [place] = &*places {
        return log
            .append_async(session, batch.expected(place.clone()))
            .await;
    }
    let append = |place| log.append_async(session, batch.clone().expected(place));
    at_one_of(places, append).await
}

/// A batch with what the headers say of it.
pub(super) fn batch(headers: &HeaderMap, access: &Access) -> Result<Batch, ApiError> {
    let mut batch = Batch::new();
    if let Some(key) = idempotency_key(headers)? {
        batch = batch.idempotency_key(key);
    }
    if let Some(producer) = producer(headers)? {
        access.check_worker("a producer")?;
        batch = batch.producer(producer);
    }
    Ok(batch)
}

/// The field that belongs to the answer alone.
fn field(ack: &Ack) -> (HeaderName, HeaderValue) {
    if ack.replayed {
        (IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"))
    } else {
        (ETAG, etag(ack.last))
    }
}

/// The body of an append.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Append<'a> {
    #[serde(borrow, default)]
    events: Option<&'a RawValue>,
    #[serde(default)]
    close: bool,
}

/// Events to append, or the close of a session, or both.
#[derive(ToSchema)]
#[schema(as = Append)]
#[serde(untagged)]
#[expect(dead_code, reason = "it stands for `Append` in the document")]
enum AppendBody<'a> {
    Events(EventsBody<'a>),
    Close(CloseBody<'a>),
}

/// The events to append.
#[derive(ToSchema)]
#[schema(as = AppendEvents)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it stands for `Append` in the document")]
struct EventsBody<'a> {
    /// At least one event, in order.
    #[schema(min_items = 1)]
    events: Vec<SentEvent<'a>>,
    /// For workers: closes the session behind the events.
    #[schema(required = false)]
    close: bool,
}

/// For workers: closes the session behind its last event.
#[derive(ToSchema)]
#[schema(as = AppendClose)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "it stands for `Append` in the document")]
struct CloseBody<'a> {
    /// None.
    #[schema(required = false, max_items = 0)]
    events: Vec<SentEvent<'a>>,
    /// `true`.
    #[schema(schema_with = only_true)]
    close: bool,
}

fn only_true() -> Object {
    ObjectBuilder::new()
        .schema_type(Type::Boolean)
        .enum_values(Some([true]))
        .build()
}

impl Append<'_> {
    fn added_to(&self, mut batch: Batch, access: &Access) -> Result<Batch, ApiError> {
        match self.events {
            Some(events) => batch = add_events(batch, events, access)?,
            None if self.close => {}
            None => return Err(ApiError::invalid("the body: missing field `events`")),
        }
        if self.close {
            access.check_worker("closing a session")?;
            batch = batch.closing();
        }
        Ok(batch)
    }
}
