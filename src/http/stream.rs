//! Streams a session as server-sent events: first stored events, then new ones.
//!
//! A client that reconnects with the last ID it has seen misses nothing and gets nothing twice. A
//! request that cannot be served gets an error status, before the first byte of the stream.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;

use axum::extract::State;
use axum::http::header::CACHE_CONTROL;
use axum::http::{HeaderMap, HeaderName};
use axum::response::sse::{Event as Frame, KeepAlive};
use axum::response::{IntoResponse, Response, Sse};
use futures_util::stream::{once, unfold};
use futures_util::{Stream, StreamExt};
use serde::Deserialize;
use tracing::{Instrument, Span};
use utoipa::{IntoParams, ToSchema};

use crate::http::budget::Share;
use crate::http::error::{ApiError, ErrorBody, RefusesCall};
use crate::http::key::Access;
use crate::http::query::{FilterParams, InQuery, SessionParam, cursor, present};
use crate::http::service::{Service, SessionPath, StreamPlace};
use crate::http::wire::{EventBody, compact};
use crate::model::{Cursor, Event, Result, SessionChange};
use crate::read::{AsyncEventStream, EventStream, StartAt, StreamItem};

const LAST_EVENT_ID: &str = "last-event-id";

/// The size from which an event takes a share of the budget. Smaller ones are covered by the
/// connection's memory.
const LARGE_EVENT_BYTES: usize = 16 * 1024;

/// The memory that an event takes for each byte of its data: the event, and the frame made from it.
const EVENT_COPIES: usize = 3;

/// After this many events that are not shown, other tasks have their turn.
const YIELD_EVERY: u32 = 256;

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StreamParams {
    /// Only events after this one. The header Last-Event-ID, which a reconnecting client sends,
    /// takes precedence.
    #[serde(default, deserialize_with = "present")]
    #[param(pattern = "^(evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
    after: Option<String>,
    /// Whether to wait for new events at the end.
    #[serde(default = "yes")]
    #[param(default = true)]
    follow: bool,
}

/// One frame of the stream.
#[derive(ToSchema)]
#[expect(dead_code, reason = "it stands for `Frame` in the document")]
pub(super) struct StreamFrame {
    /// The event's ID. `caught_up`, `closed`, `deleted` and `error` have none.
    id: Option<String>,
    /// The event's type, `caught_up`, `closed`, `deleted`, or `error`.
    #[schema(example = "user.message")]
    event: String,
    /// The event as JSON, `{}`, or the error.
    data: String,
}

fn yes() -> bool {
    true
}

/// Stream the events of a session
///
/// As server-sent events: `id` is the event's ID, `event` its type, and `data` the event as in a
/// list. An event `caught_up` without an ID follows once all stored events were sent. A stream ends
/// with an event `closed` or `deleted` when the session is, and with an event `error` that gives
/// the reason when it fails. A comment is sent after every ten seconds of silence.
#[utoipa::path(
    get,
    path = "/v1/sessions/{session_id}/stream",
    operation_id = "stream_session_events",
    params(
        SessionParam,
        (
            "Last-Event-ID" = Option<String>,
            Header,
            description = "Only what comes after this event",
            pattern = "^((evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25})?$",
        ),
        StreamParams,
        FilterParams,
    ),
    responses(
        (
            status = 200,
            description = "The events",
            body = StreamFrame,
            content_type = "text/event-stream",
        ),
        (
            status = 400,
            description = "A bad ID, or one that is not of this session",
            body = ErrorBody,
        ),
        (status = 404, description = "There is no such session", body = ErrorBody),
        (status = 410, description = "The ID is older than what is kept", body = ErrorBody),
        RefusesCall,
    ),
)]
pub(super) async fn stream(
    State(service): State<Arc<Service>>,
    access: Access,
    SessionPath(session): SessionPath,
    InQuery(params): InQuery<StreamParams>,
    InQuery(filter): InQuery<FilterParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let from =
        position_of(&headers, params.after.as_deref())?.map_or(StartAt::Beginning, StartAt::After);
    let place = service.stream_place(&access)?;
    let events = service.stream(session, from).await?;
    let events = if params.follow {
        events
    } else {
        events.until_tail()
    };
    Ok(respond(service, events, filter, place))
}

/// What a stream sends.
pub(super) trait Show: Send + Sync + 'static {
    fn takes(&self, event: &Event) -> bool;

    /// Returns the frame of an event that it takes.
    fn event(&self, event: &Event) -> Frame;

    /// Returns the frame of a change, if it is sent. Only the feed of all sessions has changes.
    fn change(&self, _change: &SessionChange) -> Option<Frame> {
        None
    }
}

impl Show for FilterParams {
    fn takes(&self, event: &Event) -> bool {
        self.has(event.event_type.as_str())
    }

    fn event(&self, event: &Event) -> Frame {
        Frame::default()
            .id(event.id.to_string())
            .event(event.event_type.as_str())
            .data(one_line(&EventBody::from(event)))
    }
}

/// Answers with the items of a stream. It keeps its permit until it ends or the client is gone.
pub(super) fn respond(
    service: Arc<Service>,
    events: EventStream,
    show: impl Show,
    place: StreamPlace,
) -> Response {
    let stopper = service.config.stopper();
    let until = async move { stopper.stopped().await };
    let heartbeat = service.config.heartbeat;
    // Sent at once, since a proxy may hold back the response head until there is data.
    let begin = once(ready(Frame::default().comment("")));
    let frames = begin
        .chain(frames(service, events.into_async(), show, place))
        .map(Ok::<_, Infallible>)
        .take_until(Box::pin(until));
    // Proxies such as nginx must neither buffer nor compress a stream.
    let headers = [
        (X_ACCEL_BUFFERING, "no"),
        (CACHE_CONTROL, "no-store, no-transform"),
    ];
    let stream = Sse::new(frames).keep_alive(KeepAlive::new().interval(heartbeat));
    (headers, stream).into_response()
}

/// Returns the client's position. The header takes precedence over the parameter.
fn position_of(headers: &HeaderMap, after: Option<&str>) -> Result<Option<Cursor>, ApiError> {
    let after = after.map(cursor).transpose()?;
    let last = last_seen(headers)?.map(cursor).transpose()?;
    Ok(last.or(after))
}

/// Returns the header that a reconnecting client sends. An empty one means that it has seen no
/// event.
pub(super) fn last_seen(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let last = headers.get(LAST_EVENT_ID).filter(|last| !last.is_empty());
    last.map(|last| {
        last.to_str()
            .map_err(|_error| ApiError::invalid("the header Last-Event-ID is no event ID"))
    })
    .transpose()
}

/// A stream that goes on, with the memory of the last frame.
type Open<S> = (
    Arc<Service>,
    AsyncEventStream,
    S,
    StreamPlace,
    Option<Share>,
);

/// Returns the frames of a stream. They are made in the span of the request.
fn frames(
    service: Arc<Service>,
    events: AsyncEventStream,
    show: impl Show,
    place: StreamPlace,
) -> impl Stream<Item = Frame> {
    let opened = (service, events, show, place, None);
    let span = Span::current();
    unfold(Some(opened), move |open| {
        next_frame(open).instrument(span.clone())
    })
}

async fn next_frame<S: Show>(open: Option<Open<S>>) -> Option<(Frame, Option<Open<S>>)> {
    let (service, mut events, show, place, last_share) = open?;
    // This frame is polled only once nearly all of the last one is sent.
    drop(last_share);
    let mut passed_over = 0;
    let (frame, share) = loop {
        passed_over += 1;
        if passed_over % YIELD_EVERY == 0 {
            // Stored events come without a wait, and a stream may show none of many.
            tokio::task::yield_now().await;
        }
        match events.next().await? {
            Ok(StreamItem::Event(event)) if show.takes(&event) => {
                let is_large = event.data.len() >= LARGE_EVENT_BYTES;
                let bytes = event.data.len().saturating_mul(EVENT_COPIES);
                let share = if is_large {
                    Some(service.budget.share_in_time(bytes).await)
                } else {
                    None
                };
                break (show.event(&event), share);
            }
            Ok(StreamItem::Event(_)) => {}
            Ok(StreamItem::Change(change)) => {
                if let Some(frame) = show.change(&change) {
                    break (frame, None);
                }
            }
            Ok(StreamItem::CaughtUp) => break (bare_frame("caught_up"), None),
            Ok(StreamItem::Closed) => return Some((bare_frame("closed"), None)),
            Ok(StreamItem::Deleted) => return Some((bare_frame("deleted"), None)),
            Err(error) => {
                let body = json(&ApiError::from(error).into_body());
                return Some((Frame::default().event("error").data(body), None));
            }
        }
    };
    Some((frame, Some((service, events, show, place, share))))
}

/// A frame without an ID, so that a client goes on from the last event.
fn bare_frame(name: &str) -> Frame {
    Frame::default().event(name).data("{}")
}

/// Returns the JSON of a body on one line. Data that the application appended may be JSON on
/// several lines, and a frame holds only one.
pub(super) fn one_line(body: &impl serde::Serialize) -> String {
    let data = json(body);
    if data.contains(['\n', '\r']) {
        compact(&data)
    } else {
        data
    }
}

fn json(body: &impl serde::Serialize) -> String {
    serde_json::to_string(body).expect("these shapes have a JSON form")
}
