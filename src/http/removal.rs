//! Single events, and the removal of a part of a session.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::http::budget::Share;
use crate::http::error::{ApiError, ErrorBody, RefusesCall, RefusesClient};
use crate::http::key::{Access, Worker};
use crate::http::query::{InQuery, SessionParam, position};
use crate::http::service::{InPath, Service, SessionPath};
use crate::http::wire::EventBody;
use crate::model::{Event, EventId, Removed, time_text};

/// The event in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "it stands for the path's parameter in the document"
)]
struct EventParam {
    /// The event.
    #[param(pattern = "^evt_[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
    event_id: String,
}

/// Get an event
#[utoipa::path(
    get,
    path = "/v1/events/{event_id}",
    operation_id = "get_event",
    params(EventParam),
    responses(
        (status = 200, description = "The event", body = EventBody),
        (status = 400, description = "A bad ID", body = ErrorBody),
        (status = 404, description = "There is no such event", body = ErrorBody),
        RefusesCall,
    ),
)]
pub(super) async fn get(
    State(service): State<Arc<Service>>,
    access: Access,
    InPath(id): InPath<EventId>,
) -> Result<Response, ApiError> {
    let (event, share) = read(&service, &access, id).await?;
    Ok(share.answer(&EventBody::from(&event)))
}

/// Reads an event that the caller may know of.
async fn read(service: &Service, access: &Access, id: EventId) -> Result<(Event, Share), ApiError> {
    let (event, share) = service.read_page(move |log| log.event(id)).await?;
    access.check_event(&event.session_id, id)?;
    Ok((event, share))
}

/// Why something is removed.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ReasonParams {
    /// Why, for the feed: at most 256 bytes.
    #[serde(default)]
    #[param(max_length = 256, pattern = r"^[^\u0000-\u001f\u007f-\u009f]*$")]
    reason: Option<String>,
}

/// Redact an event
///
/// Removes its data and keeps its place, for every reader and in every fork. An event that was
/// redacted before stays as it is.
#[utoipa::path(
    delete,
    path = "/v1/events/{event_id}",
    operation_id = "redact_event",
    params(EventParam, ReasonParams),
    responses(
        (status = 200, description = "The event without its data", body = EventBody),
        (
            status = 400,
            description = "A bad ID or reason, or too many redacted events in the session",
            body = ErrorBody,
        ),
        (status = 404, description = "There is no such event", body = ErrorBody),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn redact(
    Worker(access): Worker,
    State(service): State<Arc<Service>>,
    InPath(id): InPath<EventId>,
    InQuery(ReasonParams { reason }): InQuery<ReasonParams>,
) -> Result<Json<EventBody>, ApiError> {
    drop(read(&service, &access, id).await?);
    let event = service
        .log
        .redact_async(id, reason.unwrap_or_default())
        .await?;
    Ok(Json(EventBody::from(&event)))
}

/// What to trim.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TrimParams {
    /// The first event to keep, by its ID or its seq. One more than the last seq keeps none.
    #[param(pattern = "^((evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9]{1,19})$")]
    before: String,
}

/// What was removed.
#[derive(Serialize, ToSchema)]
#[schema(as = Removed)]
pub(super) struct RemovedBody {
    /// The number of events that no call shows any more.
    events: u64,
    /// Their bytes.
    bytes: u64,
    /// When no file of the log holds them any more, while the log is open.
    #[schema(format = DateTime)]
    erased_by: String,
}

impl From<Removed> for RemovedBody {
    fn from(removed: Removed) -> Self {
        Self {
            events: removed.events,
            bytes: removed.bytes,
            erased_by: time_text(removed.erased_by),
        }
    }
}

/// Trim a session
///
/// Removes the events before a position. The others keep their seqs.
#[utoipa::path(
    delete,
    path = "/v1/sessions/{session_id}/events",
    operation_id = "trim_session",
    params(SessionParam, TrimParams),
    responses(
        (status = 200, description = "What was removed", body = RemovedBody),
        (
            status = 400,
            description = "A bad ID, no position, or one that is not in this session",
            body = ErrorBody,
        ),
        (status = 404, description = "There is no such session", body = ErrorBody),
        RefusesClient,
        RefusesCall,
    ),
)]
pub(super) async fn trim(
    Worker(_access): Worker,
    State(service): State<Arc<Service>>,
    SessionPath(session): SessionPath,
    InQuery(TrimParams { before }): InQuery<TrimParams>,
) -> Result<Json<RemovedBody>, ApiError> {
    let removed = service.log.trim_async(&session, position(&before)?).await?;
    Ok(Json(removed.into()))
}
