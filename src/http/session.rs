//! One session: create, describe, change, fork and delete it.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{MatchedPath, State};
use axum::http::header::{ETAG, LOCATION};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use crate::http::append;
use crate::http::body::JsonBody;
use crate::http::conditions::{IDEMPOTENCY_KEY, IfMatchParam, at_one_of, expected_of_existing};
use crate::http::error::{ApiError, ErrorBody, RefusesBody, RefusesCall, RefusesClient};
use crate::http::etag::etag;
use crate::http::key::{Access, Worker};
use crate::http::query::{InQuery, SessionParam, position, present};
use crate::http::sent::{SentEvent, add_events};
use crate::http::service::{Service, SessionPath, check_names_a_path};
use crate::http::wire::SessionBody;
use crate::model::{
    Batch, Delete, EventId, Fork, NewSession, Op, SessionId, SessionInfo, SessionPatch,
    fresh_store_number,
};

/// A session to create.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSessionBody<'a> {
    /// Its ID: 1 to 256 bytes without control characters. Left out, the server makes one.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 256)]
    id: Option<String>,
    /// At most 1,024 bytes.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false)]
    title: Option<String>,
    /// At most 16 KiB.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Object, required = false)]
    metadata: Option<Map<String, Value>>,
    /// Its first events, stored together with it.
    #[serde(borrow, default)]
    #[schema(value_type = Vec<SentEvent>, required = false)]
    events: Option<&'a RawValue>,
}

/// Create a session
///
/// A session without events is there, and empty. With events it is created together with them, or
/// not at all.
#[utoipa::path(
    post,
    path = "/v1/sessions",
    operation_id = "create_session",
    params((
        "Idempotency-Key" = Option<String>,
        Header,
        description = "Goes with an ID and events. Sent again with this key, the session is \
            answered again",
        max_length = 256,
        pattern = r"^[!-~][\t -~]*$",
    )),
    request_body = NewSessionBody,
    responses(
        (
            status = 201,
            description = "The session",
            body = SessionBody,
            headers(
                ("Location" = String, description = "The path of the session"),
                ("ETag" = String, description = "The session's last seq, for If-Match"),
            ),
        ),
        (status = 400, description = "No JSON, or a bad ID, title or event", body = ErrorBody),
        (status = 404, description = "The key is for other sessions", body = ErrorBody),
        (status = 409, description = "There is a session of this ID", body = ErrorBody),
        RefusesBody,
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn create(
    Worker(access): Worker,
    State(service): State<Arc<Service>>,
    route: MatchedPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let mut batch = append::batch(&headers, &access)?;
    let body = JsonBody::of(&headers, body, &service).await?;
    let NewSessionBody {
        id,
        title,
        metadata,
        events,
    } = body.parsed()?;
    if headers.contains_key(IDEMPOTENCY_KEY) && (id.is_none() || events.is_none()) {
        // A key belongs to a batch of events in its session.
        return Err(ApiError::invalid(
            "the header Idempotency-Key goes with an id and events",
        ));
    }
    let session = new_id(id, &access)?;
    let patch = patch_of(title, metadata);
    let log = &service.log;
    let info = if let Some(events) = events {
        batch = add_events(batch, events, &access)?;
        batch.ops = vec![Op::Create, Op::Describe(patch)];
        log.append_async(&session, batch).await?;
        let named = session.clone();
        service.read(move |log| log.session(&named)).await?
    } else {
        log.create_async(&session, NewSession { patch }).await?
    };
    Ok(created(&route, info, &access))
}

fn patch_of(title: Option<String>, metadata: Option<Map<String, Value>>) -> SessionPatch {
    let mut patch = SessionPatch::new();
    if let Some(title) = title {
        patch = patch.title(title);
    }
    if let Some(metadata) = metadata {
        patch = patch.metadata(metadata);
    }
    patch
}

/// The ID of a new session: the one that was asked for, or a fresh one that the caller's key is
/// for.
fn new_id(asked: Option<String>, access: &Access) -> Result<SessionId, ApiError> {
    let Some(asked) = asked else {
        let number = EventId::from_u128(fresh_store_number()).to_string();
        let ulid = number.trim_start_matches("evt_");
        return Ok(SessionId::new(format!("{}sess_{ulid}", access.prefix()))?);
    };
    check_names_a_path(&asked)?;
    let session = SessionId::new(asked)?;
    access.check(&session)?;
    Ok(session)
}

/// Answers with a session that was created, and where it is.
fn created(route: &MatchedPath, info: SessionInfo, access: &Access) -> Response {
    let place = place(route.as_str(), &info.id);
    let headers = [(LOCATION, place), (ETAG, etag(info.last))];
    let body = axum::Json(SessionBody::new(info, access));
    (StatusCode::CREATED, headers, body).into_response()
}

/// The path of a session, beside a route that may be nested below others.
fn place(route: &str, session: &SessionId) -> HeaderValue {
    const SESSIONS: &str = "/v1/sessions";
    let before = route.split_once(SESSIONS).map_or("", |(before, _)| before);
    let mut path = format!("{before}{SESSIONS}/");
    for byte in session.as_bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(byte) {
            path.push(char::from(*byte));
        } else {
            path.extend(format!("%{byte:02X}").chars());
        }
    }
    HeaderValue::try_from(path).expect("a percent-encoded path is a header value")
}

/// Get a session
#[utoipa::path(
    get,
    path = "/v1/sessions/{session_id}",
    operation_id = "get_session",
    params(SessionParam),
    responses(
        (
            status = 200,
            description = "The session",
            body = SessionBody,
            headers(("ETag" = String, description = "The session's last seq, for If-Match")),
        ),
        (status = 400, description = "A bad ID", body = ErrorBody),
        (status = 404, description = "There is no such session", body = ErrorBody),
        RefusesCall,
    ),
)]
pub(super) async fn get(
    State(service): State<Arc<Service>>,
    access: Access,
    SessionPath(session): SessionPath,
) -> Result<Response, ApiError> {
    let info = service.read(move |log| log.session(&session)).await?;
    Ok(shown(info, &access))
}

fn shown(info: SessionInfo, access: &Access) -> Response {
    let tag = etag(info.last);
    ([(ETAG, tag)], axum::Json(SessionBody::new(info, access))).into_response()
}

/// What changes in a session. What is left out stays as it is.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PatchBody {
    /// `null` removes it.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<String>, required = false)]
    #[expect(clippy::option_option, reason = "null is told from what is left out")]
    title: Option<Option<String>>,
    /// A merge patch: a member that is `null` is removed.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Object, required = false)]
    metadata: Option<Map<String, Value>>,
    /// Whether the session is closed.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool, required = false)]
    closed: Option<bool>,
    /// Whether the session is exempt from deletion.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = bool, required = false)]
    hold: Option<bool>,
}

/// Change a session
///
/// A JSON merge patch (RFC 7396) of the title, the metadata, and whether it is closed or on hold.
/// All of it changes or none.
#[utoipa::path(
    patch,
    path = "/v1/sessions/{session_id}",
    operation_id = "change_session",
    params(
        SessionParam,
        IfMatchParam,
    ),
    request_body(
        content(
            (PatchBody = "application/merge-patch+json"),
            (PatchBody = "application/json"),
        ),
    ),
    responses(
        (
            status = 200,
            description = "The session as it is then",
            body = SessionBody,
            headers(("ETag" = String, description = "The session's last seq, for If-Match")),
        ),
        (status = 400, description = "No patch, or a value of it is too large", body = ErrorBody),
        (status = 404, description = "There is no such session", body = ErrorBody),
        (
            status = 412,
            description = "The session is elsewhere than If-Match says",
            body = ErrorBody,
        ),
        RefusesBody,
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn patch(
    Worker(access): Worker,
    State(service): State<Arc<Service>>,
    SessionPath(session): SessionPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let places = expected_of_existing(&headers)?;
    let body = JsonBody::of_patch(&headers, body, &service).await?;
    let PatchBody {
        title,
        metadata,
        closed,
        hold,
    } = body.parsed()?;
    let mut patch = patch_of(None, metadata);
    if let Some(title) = title {
        patch = match title {
            Some(title) => patch.title(title),
            None => patch.without_title(),
        };
    }
    if let Some(hold) = hold {
        patch = if hold { patch.hold() } else { patch.release() };
    }
    let mut batch = Batch::new();
    batch.ops.push(Op::Describe(patch));
    batch
        .ops
        .extend(closed.map(|closed| if closed { Op::Close } else { Op::Reopen }));
    let log = &service.log;
    at_one_of(places, |place| {
        log.append_async(&session, batch.clone().expected(place))
    })
    .await?;
    let info = service.read(move |log| log.session(&session)).await?;
    Ok(shown(info, &access))
}

/// How to delete a session.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct DeleteParams {
    /// Why, for the feed: at most 256 bytes.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    reason: Option<String>,
    /// Refuses while the newest turn is not over.
    #[serde(default)]
    #[param(default = false)]
    unless_open: bool,
}

/// Delete a session
///
/// No call shows anything of it from then on. Its streams end with `event: deleted`.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{session_id}",
    operation_id = "delete_session",
    params(
        SessionParam,
        DeleteParams,
        IfMatchParam,
    ),
    responses(
        (status = 204, description = "It is deleted"),
        (status = 400, description = "A bad ID, reason or header", body = ErrorBody),
        (status = 404, description = "There is no such session", body = ErrorBody),
        (
            status = 409,
            description = "It is on hold, or its newest turn is not over",
            body = ErrorBody,
        ),
        (
            status = 412,
            description = "The session is elsewhere than If-Match says",
            body = ErrorBody,
        ),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn delete(
    Worker(_access): Worker,
    State(service): State<Arc<Service>>,
    SessionPath(session): SessionPath,
    InQuery(DeleteParams {
        reason,
        unless_open,
    }): InQuery<DeleteParams>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let mut delete = Delete::new();
    if let Some(reason) = reason {
        delete = delete.reason(reason);
    }
    if unless_open {
        delete = delete.unless_open();
    }
    let log = &service.log;
    at_one_of(expected_of_existing(&headers)?, |place| {
        log.delete_async(&session, delete.clone().expected(place))
    })
    .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// A fork to make.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ForkBody {
    /// The ID of the fork. Left out, the server makes one.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false, min_length = 1, max_length = 256)]
    id: Option<String>,
    /// The last event that both share, by its ID or its seq. Left out, the newest.
    #[serde(default, deserialize_with = "present")]
    #[schema(
        value_type = String,
        required = false,
        pattern = "^((evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9]{1,19})$"
    )]
    at: Option<String>,
    /// The title, instead of the parent's.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = String, required = false)]
    title: Option<String>,
    /// A merge patch of the parent's metadata.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Object, required = false)]
    metadata: Option<Map<String, Value>>,
}

/// Fork a session
///
/// The first events of the new session are those of this one, up to an event. Nothing is copied.
#[utoipa::path(
    post,
    path = "/v1/sessions/{session_id}/fork",
    operation_id = "fork_session",
    params(SessionParam),
    request_body = Option<ForkBody>,
    responses(
        (
            status = 201,
            description = "The fork",
            body = SessionBody,
            headers(
                ("Location" = String, description = "The path of the fork"),
                ("ETag" = String, description = "The last seq of the fork, for If-Match"),
            ),
        ),
        (
            status = 400,
            description = "No JSON, a bad ID, or an event that is not of this session",
            body = ErrorBody,
        ),
        (status = 404, description = "There is no such session", body = ErrorBody),
        (status = 409, description = "There is a session of the fork's ID", body = ErrorBody),
        (status = 410, description = "The event was trimmed", body = ErrorBody),
        RefusesBody,
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn fork(
    Worker(access): Worker,
    State(service): State<Arc<Service>>,
    SessionPath(parent): SessionPath,
    route: MatchedPath,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let body = JsonBody::of_any(&headers, body, &service).await?;
    let ForkBody {
        id,
        at,
        title,
        metadata,
    } = body.parsed()?;
    let child = new_id(id, &access)?;
    let mut fork = Fork::new(&parent);
    if let Some(at) = at {
        fork = fork.at(position(&at)?);
    }
    if let Some(title) = title {
        fork = fork.title(title);
    }
    if let Some(metadata) = metadata {
        fork = fork.metadata(metadata);
    }
    let info = service.log.fork_async(fork, &child).await?;
    Ok(created(&route, info, &access))
}
