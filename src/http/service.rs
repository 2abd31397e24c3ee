//! The state that all handlers share, and the checks that every request passes before its handler.

use std::sync::Arc;

use axum::extract::{FromRequestParts, Path, Request, State};
use axum::http::header::{HOST, TRANSFER_ENCODING};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Span;

use crate::http::budget::{Budget, Share};
use crate::http::callers::Callers;
use crate::http::config::Config;
use crate::http::error::{ApiError, RETRY_SOON};
use crate::http::key::Access;
use crate::http::metrics::Metrics;
use crate::http::places::{Place, Places};
use crate::log::SessionLog;
use crate::model::{EventId, Result, SessionId};
use crate::read::{EventStream, StartAt};

const READ_AHEAD_BYTES: usize = 64 * 1024;

pub(crate) struct Service {
    pub log: SessionLog,
    pub config: Config,
    pub(super) metrics: Arc<Metrics>,
    pub budget: Budget,
    /// Of appends that are there as a whole.
    pub callers: Callers,
    streams: Places,
}

impl Service {
    pub(crate) fn new(log: SessionLog, config: Config) -> Self {
        let streams = Places::new(config.streams_max);
        let budget = Budget::new(config.memory_bytes_max);
        Self {
            metrics: Arc::new(Metrics::new(log.clone())),
            log,
            config,
            budget,
            callers: Callers::default(),
            streams,
        }
    }

    /// Runs a call that may read from the disk.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&SessionLog) -> Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        let log = self.log.clone();
        blocking(move || read(&log).map_err(ApiError::from)).await
    }

    /// Like [`read`](Self::read) for a page, with a share of memory for its answer.
    pub(super) async fn read_page<T: Send + 'static>(
        &self,
        read: impl FnOnce(&SessionLog) -> Result<T> + Send + 'static,
    ) -> Result<(T, Share), ApiError> {
        // The page as read, the bodies made from it, and their text.
        let share = self
            .budget
            .share(self.config.page_bytes_max.saturating_mul(3))
            .await?;
        Ok((self.read(read).await?, share))
    }

    /// Opens a stream that reads only little ahead: there may be thousands of them, some of them
    /// slow.
    pub(crate) async fn stream(
        &self,
        session: SessionId,
        from: StartAt,
    ) -> Result<EventStream, ApiError> {
        self.read(move |log| log.stream(&session, from))
            .await
            .map(|stream| stream.read_ahead_bytes(READ_AHEAD_BYTES))
    }

    /// Opens the feed of all sessions, which also reads only little ahead.
    pub(super) async fn feed(&self, after: Option<EventId>) -> Result<EventStream, ApiError> {
        self.read(move |log| log.feed_from(after))
            .await
            .map(|feed| feed.read_ahead_bytes(READ_AHEAD_BYTES))
    }

    /// Returns a place for one more stream or waiting call of a caller.
    pub(crate) fn stream_place(&self, access: &Access) -> Result<StreamPlace, ApiError> {
        Ok(StreamPlace {
            _of_all: self.streams.take("on this server")?,
            _of_key: access.stream_place()?,
        })
    }
}

/// Runs a call that may read from the disk, on a thread that may wait.
pub(crate) async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let span = Span::current();
    let called = tokio::task::spawn_blocking(move || span.in_scope(call)).await;
    called.map_err(|_lost| {
        ApiError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "the call was lost",
        )
    })?
}

/// The place of a stream or a waiting call, for as long as it lasts.
pub(crate) struct StreamPlace {
    _of_all: Place,
    _of_key: Option<Place>,
}

/// Refuses a request with a too long head or for another host, and every request once the server is
/// about to stop.
pub(super) async fn check_head(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let (head, body) = request.into_parts();
    check(&head, &service.config)?;
    Ok(next.run(Request::from_parts(head, body)).await)
}

/// The check alone.
pub(super) fn check(head: &Parts, config: &Config) -> Result<(), ApiError> {
    let Config {
        url_bytes_max,
        head_bytes_max,
        ref hosts,
        ref stopper,
        ..
    } = *config;
    let url_bytes = head
        .uri
        .path_and_query()
        .map_or(0, |url| url.as_str().len());
    if url_bytes > url_bytes_max {
        return Err(ApiError::too_large(
            StatusCode::URI_TOO_LONG,
            "url_too_long",
            "the length in bytes of the URL",
            url_bytes,
            url_bytes_max,
        ));
    }
    let head_bytes = head
        .headers
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum::<usize>();
    if head_bytes > head_bytes_max {
        let (status, what) = (
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            "the size in bytes of the headers",
        );
        return Err(ApiError::too_large(
            status,
            "headers_too_large",
            what,
            head_bytes,
            head_bytes_max,
        ));
    }
    if hosts
        .as_ref()
        .is_some_and(|hosts| !hosts.iter().any(|host| is_for(head, host)))
    {
        return Err(ApiError::new(
            StatusCode::MISDIRECTED_REQUEST,
            "wrong_host",
            "the request is for a host that is not this one",
        ));
    }
    check_framing(&head.headers)?;
    if stopper.is_stopping() {
        return Err(ApiError::unavailable(
            "closed",
            "the server is about to stop",
            RETRY_SOON,
        ));
    }
    Ok(())
}

/// Whether a request is for this host, with any port. Its one `Host` header must name it, and so
/// must its target if that names a host.
fn is_for(request: &Parts, host: &str) -> bool {
    let is_host = |asked: &Authority| {
        asked.host().eq_ignore_ascii_case(host) && !asked.as_str().contains('@')
    };
    let mut named = request
        .headers
        .get_all(HOST)
        .iter()
        .map(|named| named.to_str().ok()?.parse::<Authority>().ok());
    let in_header =
        matches!((named.next(), named.next()), (Some(Some(asked)), None) if is_host(&asked));
    in_header && request.uri.authority().is_none_or(is_host)
}

/// Refuses requests that two servers might parse differently: with several hosts, with a user name
/// in the host, or with a body in an unsupported coding.
fn check_framing(headers: &HeaderMap) -> Result<(), ApiError> {
    let mut hosts = headers.get_all(HOST).iter();
    if hosts
        .next()
        .is_some_and(|host| host.as_bytes().contains(&b'@'))
        || hosts.next().is_some()
    {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "bad_host",
            "the header Host is not one host with an optional port",
        ));
    }
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = codings.next().is_none_or(|coding| {
        coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"chunked")
    });
    if is_chunked && codings.next().is_none() {
        return Ok(());
    }
    let message = "the transfer coding is another than chunked alone";
    Err(ApiError::new(
        StatusCode::NOT_IMPLEMENTED,
        "unsupported_transfer_encoding",
        message,
    ))
}

/// The one parameter of a path, percent-decoded once.
pub(super) struct InPath<T>(pub T);

impl<T: std::str::FromStr<Err = crate::model::Error>, S: Send + Sync> FromRequestParts<S>
    for InPath<T>
{
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(text) = Path::<String>::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(error.body_text()))?;
        in_path(&text).map(Self)
    }
}

/// Reads the parameter of a path.
fn in_path<T: std::str::FromStr<Err = crate::model::Error>>(text: &str) -> Result<T, ApiError> {
    check_names_a_path(text)?;
    Ok(text.parse::<T>()?)
}

/// Refuses the IDs that no path can hold: browsers and clients remove them from a path before they
/// send it, even if they are percent-encoded.
pub(crate) fn check_names_a_path(text: &str) -> Result<(), ApiError> {
    if text != "." && text != ".." {
        return Ok(());
    }
    let message = format!("{text:?} stands for a place in a path and names no session in a URL");
    Err(ApiError::new(
        StatusCode::BAD_REQUEST,
        "dot_segment",
        message,
    ))
}

/// The session in a path. One that the caller may not know of does not exist.
pub(super) struct SessionPath(pub SessionId);

impl SessionPath {
    /// Reads the parameter of a path, in which nothing was percent-encoded.
    pub(super) fn of(text: &str, access: &Access) -> Result<Self, ApiError> {
        let session = in_path(text)?;
        access.check(&session)?;
        Ok(Self(session))
    }
}

impl<S: Send + Sync> FromRequestParts<S> for SessionPath {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let InPath(session) = InPath::<SessionId>::from_request_parts(parts, state).await?;
        let Ok(access) = Access::from_request_parts(parts, state).await;
        access.check(&session)?;
        Ok(Self(session))
    }
}
