//! Reads that wait: a long poll, and a stream of server-sent events.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use tokio::time::{Instant, timeout_at};

use crate::durable_streams::cursor::cursor;
use crate::durable_streams::headers::{CURSOR, SSE_ENCODING};
use crate::durable_streams::life::Reader;
use crate::durable_streams::offset::{Offset, Start};
use crate::durable_streams::part::{Part, answer};
use crate::durable_streams::sse::Tail;
use crate::durable_streams::stream::{Streams, unknown};
use crate::http::{ApiError, StreamPlace, blocking};
use crate::model::{Result, SessionId};
use crate::read::{StartAt, StreamItem};

const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// Answers with what comes after an offset, or that nothing came in time.
pub(super) async fn long_poll(
    streams: &Arc<Streams>,
    session: &SessionId,
    start: Start,
    sent_cursor: Option<&str>,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let deadline = Instant::now() + streams.service.config.long_poll_wait;
    let mut part = streams.part(session, start).await?;
    if part.is_empty() && !part.is_closed() {
        let _reader = Reader::of(streams, &part.stream);
        let from = part.next;
        // A waiting call holds no memory of the budget.
        drop(part);
        wait(streams, session, from, deadline).await?;
        part = streams.part(session, Start::Offset(from)).await?;
    }
    let next_cursor = cursor(streams.log().now_ms(), sent_cursor);
    let mut answer = if part.is_empty() {
        nothing(&part)
    } else {
        // The offset that a part begins with is known, also where the end was asked for.
        answer(streams, part, Start::Beginning, headers)
    };
    answer.headers_mut().insert(CURSOR, next_cursor.into());
    Ok(answer)
}

/// Waits until there is an event after an offset, none will come, or the time is over.
async fn wait(
    streams: &Streams,
    session: &SessionId,
    from: Offset,
    deadline: Instant,
) -> Result<(), ApiError> {
    let service = &streams.service;
    let from = StartAt::after(from.seq);
    let mut events = service.stream(session.clone(), from).await?.into_async();
    let comes = async {
        while let Some(item) = events.next().await.transpose()? {
            if !matches!(item, StreamItem::CaughtUp) {
                break;
            }
        }
        Result::<()>::Ok(())
    };
    let stopper = service.config.stopper();
    tokio::select! {
        comes = timeout_at(deadline, comes) => Ok(comes.unwrap_or(Ok(()))?),
        () = stopper.stopped() => Ok(()),
    }
}

fn nothing(part: &Part) -> Response {
    let mut answer = StatusCode::NO_CONTENT.into_response();
    part.describe(answer.headers_mut());
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// Answers with what a stream holds after an offset and what comes, as server-sent events.
pub(super) async fn sse(
    streams: &Arc<Streams>,
    session: &SessionId,
    start: Start,
    sent_cursor: Option<String>,
    place: StreamPlace,
) -> Result<Response, ApiError> {
    let (of_all, named) = (Arc::clone(streams), session.clone());
    let (stream, seq) = blocking(move || {
        let stream = of_all.live(&named)?;
        of_all.note_use(&stream);
        let seq = stream.seq_of(start)?;
        Ok((stream, seq))
    })
    .await?;
    let from = StartAt::after(seq);
    let events = streams
        .service
        .stream(session.clone(), from)
        .await?
        .into_async();
    // They are those of the session that had the name just now.
    let now = streams.live_now(session).await?;
    if now.info.generation != stream.info.generation {
        return Err(unknown(session));
    }
    let is_text = stream.settings.content_type.is_text();
    let reader = Reader::of(streams, &stream);
    let tail = Tail::new(Arc::clone(streams), stream, seq, events, sent_cursor);
    let stopper = streams.service.config.stopper();
    let until = Box::pin(async move { stopper.stopped().await });
    let frames = tail.frames().take_until(until).map(move |frame| {
        // Held as long as the answer goes on.
        let _held = (&place, &reader);
        Ok::<_, Infallible>(frame)
    });
    let mut answer = Response::new(Body::from_stream(frames));
    let headers = answer.headers_mut();
    for (name, value) in [
        (CONTENT_TYPE, "text/event-stream"),
        (CACHE_CONTROL, "no-cache, no-transform"),
        (X_ACCEL_BUFFERING, "no"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if !is_text {
        headers.insert(SSE_ENCODING, HeaderValue::from_static("base64"));
    }
    Ok(answer)
}
