//! Lists the sessions of a store.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::error::{ApiError, ErrorBody};
use crate::http::query::{InQuery, present};
use crate::http::service::Service;
use crate::http::wire::{SessionBody, Sessions};
use crate::log::SessionLog;
use crate::model::{Error, Result, SessionId, time_text, timestamp};
use crate::read::{NewestSessions, PAGE_EVENTS_DEFAULT, SessionQuery};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SessionParams {
    /// The most sessions on the page.
    #[serde(default, deserialize_with = "present")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// `recent` for newest activity first, or `id` for the order of IDs.
    #[serde(default)]
    #[param(inline)]
    order: SessionOrder,
    /// Only sessions after this ID. A session with this ID need not exist. Only with `order=id`.
    #[serde(default, deserialize_with = "present")]
    #[param(
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    after: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SessionOrder {
    #[default]
    Recent,
    Id,
}

/// List sessions
///
/// By newest event, as far back as a bounded walk goes, or all sessions in the order of their IDs,
/// page by page.
#[utoipa::path(
    get,
    path = "/v1/sessions",
    operation_id = "list_sessions",
    params(SessionParams),
    responses(
        (status = 200, description = "A page", body = Sessions),
        (
            status = 400,
            description = "A bad limit or ID, or a cursor where the order is not by ID",
            body = ErrorBody,
        ),
        (status = 401, description = "No token, or a wrong one", body = ErrorBody),
        (status = 503, description = "The server is about to stop", body = ErrorBody),
        (
            status = "default",
            description = "A head that is too long, or a fault of the server",
            body = ErrorBody,
        ),
    ),
)]
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    InQuery(SessionParams {
        limit,
        order,
        after,
    }): InQuery<SessionParams>,
) -> Result<Json<Sessions>, ApiError> {
    let after = after.map(SessionId::new).transpose()?;
    if order == SessionOrder::Recent && after.is_some() {
        return Err(ApiError::invalid("after goes with order=id alone"));
    }
    let read = move |log: &SessionLog| {
        let limit = limit.unwrap_or(PAGE_EVENTS_DEFAULT.min(log.page_events_max()));
        let (ids, has_more) = match order {
            SessionOrder::Recent => {
                let NewestSessions { ids, truncated } = log.newest_sessions(limit)?;
                (ids, truncated)
            }
            SessionOrder::Id => {
                let mut query = SessionQuery::new().limit(limit);
                if let Some(after) = &after {
                    query = query.after(after);
                }
                let ids = log.sessions(query)?;
                let last = ids.last().filter(|_| ids.len() == limit);
                let has_more = last.map_or(Ok(false), |last| {
                    log.sessions(SessionQuery::new().after(last).limit(1))
                        .map(|next| !next.is_empty())
                })?;
                (ids, has_more)
            }
        };
        let sessions = ids.iter().map(|id| body(log, id)).collect::<Result<_>>()?;
        Ok(Sessions { sessions, has_more })
    };
    Ok(Json(service.read(read).await?))
}

fn body(log: &SessionLog, id: &SessionId) -> Result<SessionBody, Error> {
    let head = log.head(id)?;
    let at: Timestamp = timestamp(head.last_id.timestamp_ms());
    Ok(SessionBody {
        id: id.to_string(),
        events: head.last,
        last_event_id: head.last_id.to_string(),
        last_event_at: time_text(at),
    })
}
