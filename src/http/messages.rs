//! Turns as messages: one message by its ID, with an optional wait, and the messages of a session.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};
use utoipa::IntoParams;

use crate::http::error::{ApiError, ErrorBody, RefusesCall};
use crate::http::events::Covered;
use crate::http::key::Access;
use crate::http::query::{
    InQuery, PageParams, SessionParam, StatusFilter, StatusParams, checked_wait,
};
use crate::http::service::{InPath, Service, SessionPath};
use crate::http::wire::{MessageBody, Messages};
use crate::log::SessionLog;
use crate::model::{MessageId, Result};
use crate::read::{AsyncEventStream, StartAt, StreamItem};
use crate::turn::{Fold, may_end_turn};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct WaitParams {
    /// The most seconds to wait for the turn to end.
    #[serde(default)]
    #[param(minimum = 0, maximum = 60, default = 0)]
    wait: u64,
}

/// Get a message
///
/// A turn as one value: the user's message, the state of the work on it, and its output. With
/// `wait` it answers as soon as the turn has completed, failed or been cancelled, or with the
/// current state when the time is over.
#[utoipa::path(
    get,
    path = "/v1/messages/{message_id}",
    operation_id = "get_message",
    params(
        (
            "message_id" = String,
            Path,
            description = "The message",
            pattern = "^msg_[0-7][0-9A-HJKMNP-TV-Z]{25}$",
        ),
        WaitParams,
    ),
    responses(
        (status = 200, description = "The message", body = MessageBody),
        (status = 400, description = "A bad ID or time", body = ErrorBody),
        (status = 404, description = "There is no such message", body = ErrorBody),
        RefusesCall,
    ),
)]
pub(super) async fn get(
    State(service): State<Arc<Service>>,
    access: Access,
    InPath(id): InPath<MessageId>,
    InQuery(WaitParams { wait }): InQuery<WaitParams>,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + checked_wait(wait)?;
    let bytes_max = service.config.page_bytes_max;
    let read = move |log: &SessionLog| log.turn_within(id, bytes_max);
    let (mut turn, mut share) = service.read_page(read).await?;
    access.check_message(&turn.message.session_id, id)?;
    if wait > 0 && !turn.message.status.is_final() {
        // A waiting call holds no memory of the budget.
        drop(share);
        let _place = service.stream_place(&access)?;
        let session = turn.message.session_id.clone();
        let mut news = service.stream(session, StartAt::Now).await?.into_async();
        // Read again, for events that came before the stream was open.
        (turn, share) = service.read_page(read).await?;
        let (mut may_change, stopper) = (true, service.config.stopper());
        while may_change && !turn.message.status.is_final() {
            drop((turn, share));
            may_change = tokio::select! {
                comes = timeout_at(deadline, next_status(&mut news, id)) => {
                    comes.unwrap_or(Ok(false))?
                }
                () = stopper.stopped() => false,
            };
            (turn, share) = service.read_page(read).await?;
        }
    }
    let message = service
        .read(move |_log| Ok(MessageBody::from(turn)))
        .await?;
    Ok(share.answer(&message))
}

/// Waits for an event that may end the turn. Returns `false` when none will come.
async fn next_status(news: &mut AsyncEventStream, id: MessageId) -> Result<bool> {
    while let Some(item) = news.next().await {
        if let StreamItem::Event(event) = item?
            && event.message_id == Some(id)
            && may_end_turn(event.view())
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// List the messages of a session
#[utoipa::path(
    get,
    path = "/v1/sessions/{session_id}/messages",
    operation_id = "list_session_messages",
    params(
        SessionParam,
        PageParams,
        StatusParams,
    ),
    responses(
        (status = 200, description = "A page", body = Messages),
        (
            status = 400,
            description = "A bad limit, ID or status, both cursors, or a cursor that is not of \
                this session",
            body = ErrorBody,
        ),
        (status = 404, description = "There is no such session", body = ErrorBody),
        (status = 410, description = "The cursor is older than what is kept", body = ErrorBody),
        RefusesCall,
    ),
)]
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    SessionPath(session): SessionPath,
    InQuery(params): InQuery<PageParams>,
    InQuery(StatusParams { status }): InQuery<StatusParams>,
) -> Result<Response, ApiError> {
    let order = params.order;
    let mut page = params.page()?.bytes_max(service.config.page_bytes_max);
    if let Some(StatusFilter::Open) = status {
        page = page.open_turns();
    }
    let read = move |log: &SessionLog| {
        let page = log.turns(&session, page)?;
        let id = |fold: Option<&Fold>| fold.map(|fold| fold.id().to_string());
        let shown = id(page.items.first()).zip(id(page.items.last()));
        let covered = Covered {
            seqs: (page.first, page.last),
            has_more: page.has_more,
            tail_id: page.tail_id,
        };
        let bounds = covered.bounds(log, &session, order, shown)?;
        let messages = page
            .items
            .into_iter()
            .map(|fold| MessageBody::from(fold.into_text()))
            .collect();
        Ok(Messages { messages, bounds })
    };
    let (messages, share) = service.read_page(read).await?;
    Ok(share.answer(&messages))
}
