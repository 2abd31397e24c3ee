//! Reads a stream from an offset, and describes it.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;

use crate::durable_streams::headers::{CLOSED, EXPIRES_AT, NEXT_OFFSET, TRUE, TTL};
use crate::durable_streams::live;
use crate::durable_streams::offset::Start;
use crate::durable_streams::part::answer;
use crate::durable_streams::stream::{InPath, Streams};
use crate::http::{Access, ApiError, InQuery, blocking};
use crate::model::time_text;

#[derive(Deserialize)]
pub(super) struct ReadParams {
    #[serde(default)]
    offset: Vec<String>,
    #[serde(default)]
    live: Option<Live>,
    #[serde(default)]
    cursor: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Live {
    LongPoll,
    Sse,
}

impl ReadParams {
    fn start(&self) -> Result<Option<Start>, ApiError> {
        match self.offset.as_slice() {
            [] => Ok(None),
            [one] => Start::parse(one).map(Some),
            _several => Err(ApiError::invalid("offset is given more than once")),
        }
    }
}

/// Returns what a stream holds after an offset, at once or when there is something.
pub(super) async fn read(
    State(streams): State<Arc<Streams>>,
    access: Access,
    InPath(session): InPath,
    InQuery(params): InQuery<ReadParams>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let start = params.start()?;
    let (Some(live), Some(start)) = (params.live, start) else {
        if params.live.is_some() {
            return Err(ApiError::invalid("offset is missing beside live"));
        }
        let start = start.unwrap_or(Start::Beginning);
        let part = streams.part(&session, start).await?;
        return Ok(answer(&streams, part, start, &headers));
    };
    let place = streams.service.stream_place(&access)?;
    match live {
        Live::LongPoll => {
            live::long_poll(
                &streams,
                &session,
                start,
                params.cursor.as_deref(),
                &headers,
            )
            .await
        }
        Live::Sse => live::sse(&streams, &session, start, params.cursor, place).await,
    }
}

/// Describes a stream. This is no use of it.
pub(super) async fn head(
    State(streams): State<Arc<Streams>>,
    InPath(session): InPath,
) -> Result<Response, ApiError> {
    let stream = blocking(move || streams.live(&session)).await?;
    let mut answer = StatusCode::OK.into_response();
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, stream.settings.content_type.header());
    headers.insert(NEXT_OFFSET, stream.tail().header());
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(ttl) = stream.settings.ttl {
        headers.insert(TTL, ttl.into());
    }
    if let Some(at) = stream.settings.expires_at.map(time_text) {
        let at = HeaderValue::try_from(at).expect("a time is a header value");
        headers.insert(EXPIRES_AT, at);
    }
    if stream.info.closed {
        headers.insert(CLOSED, TRUE);
    }
    Ok(answer)
}
