//! Lists a session's events.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::ETAG;
use axum::response::IntoResponse;

use crate::http::error::{ApiError, ErrorBody};
use crate::http::query::{InQuery, Order, PageParams, SessionParam, TypeParams};
use crate::http::service::{InPath, Service, SessionPath};
use crate::http::wire::{Bounds, EventBody, Events, etag};
use crate::log::SessionLog;
use crate::model::{EventId, Result, Seq, SessionId};
use crate::read::PageRequest;

/// List the events of a session
#[utoipa::path(
    get,
    path = "/v1/sessions/{session_id}/events",
    operation_id = "list_session_events",
    params(
        SessionParam,
        PageParams,
        TypeParams,
    ),
    responses(
        (
            status = 200,
            description = "A page",
            body = Events,
            headers(("ETag" = String, description = "The session's last seq, for If-Match")),
        ),
        (
            status = 400,
            description = "A bad limit or ID, both cursors, or a cursor that is not of this \
                session",
            body = ErrorBody,
        ),
        (status = 401, description = "No token, or a wrong one", body = ErrorBody),
        (status = 404, description = "The session has no events", body = ErrorBody),
        (status = 410, description = "The cursor is older than what is kept", body = ErrorBody),
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
    InPath(session): SessionPath,
    InQuery(params): InQuery<PageParams>,
    InQuery(TypeParams { types }): InQuery<TypeParams>,
) -> Result<impl IntoResponse, ApiError> {
    let order = params.order;
    let mut page = params.page()?.bytes_max(service.config.page_bytes_max);
    if !types.is_empty() {
        page = page.types(types);
    }
    let read = move |log: &SessionLog| {
        let page = log.list(&session, page)?;
        let events: Vec<EventBody> = page.items.iter().map(EventBody::from).collect();
        let shown = events
            .first()
            .zip(events.last())
            .map(|(first, last)| (first.id().to_owned(), last.id().to_owned()));
        let covered = Covered {
            seqs: (page.first, page.last),
            has_more: page.has_more,
            tail_id: page.tail_id,
        };
        Ok((
            page.tail,
            Events {
                events,
                bounds: covered.bounds(log, &session, order, shown)?,
            },
        ))
    };
    let ((tail, events), share) = service.read_page(read).await?;
    Ok(([(ETAG, etag(tail))], share.answer(&events)))
}

/// The seqs that a page covers, including those of events that it does not show.
pub(super) struct Covered {
    pub seqs: (Seq, Seq),
    pub has_more: bool,
    pub tail_id: EventId,
}

impl Covered {
    /// Returns the bounds of a page. `shown` has the first and last IDs on it, if any.
    pub(super) fn bounds(
        self,
        log: &SessionLog,
        session: &SessionId,
        order: Order,
        shown: Option<(String, String)>,
    ) -> Result<Bounds> {
        let Self {
            seqs: (low, high),
            has_more,
            tail_id,
        } = self;
        let (first_id, last_id) = match shown {
            Some((first, last)) => (Some(first), Some(last)),
            // A filtered search that found nothing yet continues after the seqs it covered.
            None if has_more => {
                let (first, last) = if order == Order::Asc {
                    (low, high)
                } else {
                    (high, low)
                };
                (id_at(log, session, first)?, id_at(log, session, last)?)
            }
            None => (None, None),
        };
        Ok(Bounds {
            has_more,
            first_id,
            last_id,
            tail_id: tail_id.to_string(),
        })
    }
}

fn id_at(log: &SessionLog, session: &SessionId, seq: Seq) -> Result<Option<String>> {
    let page = log.list(session, PageRequest::new().after(seq - 1).limit(1))?;
    Ok(page.items.first().map(|event| event.id.to_string()))
}
