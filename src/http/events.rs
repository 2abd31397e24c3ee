//! Lists a session's events.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::ETAG;
use axum::response::IntoResponse;
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::http::error::{ApiError, ErrorBody, RefusesCall};
use crate::http::etag::etag;
use crate::http::key::Access;
use crate::http::query::{
    InQuery, NewsParams, Order, PageParams, SessionParam, TypeParams, checked_wait,
};
use crate::http::service::{Service, SessionPath};
use crate::http::wire::{Bounds, EventBody, Events};
use crate::log::SessionLog;
use crate::model::{EventId, Result, Seq, SessionId};
use crate::read::{PageRequest, StartAt, StreamItem};

/// List the events of a session
///
/// With `wait`, a page that would be empty is answered once there is an event for it, or when the
/// time is over.
#[utoipa::path(
    get,
    path = "/v1/sessions/{session_id}/events",
    operation_id = "list_session_events",
    params(
        SessionParam,
        PageParams,
        TypeParams,
        NewsParams,
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
        (status = 404, description = "There is no such session", body = ErrorBody),
        (status = 410, description = "The cursor is older than what is kept", body = ErrorBody),
        RefusesCall,
    ),
)]
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    access: Access,
    SessionPath(session): SessionPath,
    InQuery(params): InQuery<PageParams>,
    InQuery(TypeParams { types }): InQuery<TypeParams>,
    InQuery(NewsParams { wait }): InQuery<NewsParams>,
) -> Result<impl IntoResponse, ApiError> {
    let deadline = Instant::now() + checked_wait(wait)?;
    let news = News {
        from: (wait > 0).then(|| params.waits_after()).transpose()?,
        session: session.clone(),
        types: types.clone(),
    };
    let mut page = params.page()?.bytes_max(service.config.page_bytes_max);
    if !types.is_empty() {
        page = page.types(types);
    }
    let order = params.order;
    let read = move |log: &SessionLog| shown(log, &session, page.clone(), order);
    let ((tail, events), share) = service.read_page(read.clone()).await?;
    if events.events.is_empty() && !events.bounds.has_more && news.from.is_some() {
        // A waiting call holds no memory of the budget.
        drop(share);
        news.wait(&service, &access, deadline).await?;
        let ((tail, events), share) = service.read_page(read).await?;
        return Ok(([(ETAG, etag(tail))], share.answer(&events)));
    }
    Ok(([(ETAG, etag(tail))], share.answer(&events)))
}

/// Reads a page and the session's last seq.
fn shown(
    log: &SessionLog,
    session: &SessionId,
    page: PageRequest,
    order: Order,
) -> Result<(Seq, Events)> {
    let page = log.list(session, page)?;
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
    let bounds = covered.bounds(log, session, order, shown)?;
    Ok((page.tail, Events { events, bounds }))
}

/// What a list of events waits for.
struct News {
    /// `None` does not wait.
    from: Option<StartAt>,
    session: SessionId,
    types: Vec<String>,
}

impl News {
    /// Waits until an event comes that belongs on the page, or none will come.
    async fn wait(
        self,
        service: &Service,
        access: &Access,
        deadline: Instant,
    ) -> Result<(), ApiError> {
        let Some(from) = self.from else {
            return Ok(());
        };
        let _place = service.stream_place(access)?;
        let mut events = service.stream(self.session, from).await?.into_async();
        let types = self.types;
        let comes = async {
            while let Some(item) = events.next().await.transpose()? {
                match item {
                    StreamItem::Event(event) => {
                        let named = |named: &String| event.event_type == **named;
                        if types.is_empty() || types.iter().any(named) {
                            return Ok(());
                        }
                    }
                    StreamItem::CaughtUp | StreamItem::Change(_) => {}
                    StreamItem::Closed | StreamItem::Deleted => return Ok(()),
                }
            }
            Ok(())
        };
        let stopper = service.config.stopper();
        tokio::select! {
            comes = timeout_at(deadline, comes) => comes.unwrap_or(Ok(())),
            () = stopper.stopped() => Ok(()),
        }
    }
}

/// The seqs that a page covers, including those of events that it does not show.
pub(super) struct Covered {
    pub seqs: (Seq, Seq),
    pub has_more: bool,
    pub tail_id: Option<EventId>,
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
            tail_id: tail_id.map(|id| id.to_string()),
        })
    }
}

fn id_at(log: &SessionLog, session: &SessionId, seq: Seq) -> Result<Option<String>> {
    let page = log.list(session, PageRequest::new().after(seq - 1).limit(1))?;
    Ok(page.items.first().map(|event| event.id.to_string()))
}
