//! The answer to a call that failed: a status, and JSON with the reason.

use std::time::Duration;

use axum::Json;
use axum::http::header::{ALLOW, ETAG, RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::{IntoResponses, ToSchema};

use crate::http::etag::etag;
use crate::model::{CursorProblem, Error, Limit, Seq};

/// The seconds after which a client repeats a call that others keep from being served, or that
/// comes while the server restarts.
pub(super) const RETRY_SOON: u32 = 1;

/// The same for a call that waits for a stream or another long call to end.
const RETRY_AFTER_STREAM: u32 = 5;

/// The same for a call that cannot be served until somebody has mended something, such as a full
/// disk. A supervisor restarts a server that is not live in about that time.
const RETRY_AFTER_REPAIR: u32 = 30;

/// The body of every error answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Error)]
pub(super) struct ErrorBody {
    error: ErrorFields,
}

#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ErrorFields)]
struct ErrorFields {
    /// The kind of failure. It depends only on the status.
    #[schema(example = "invalid_request")]
    r#type: &'static str,
    /// The specific failure. Codes are stable.
    #[schema(example = "invalid")]
    code: &'static str,
    /// A description for people.
    message: String,
    /// The limit that was exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,
    /// The actual value where a limit was exceeded.
    #[serde(skip_serializing_if = "Option::is_none")]
    actual: Option<u64>,
    /// The session's last seq, when another one was expected or the session is closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    actual_seq: Option<Seq>,
    /// The first seq that is still kept, when an earlier one was requested.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_kept_seq: Option<Seq>,
    /// The session that exists already.
    #[serde(skip_serializing_if = "Option::is_none")]
    session_id: Option<String>,
    /// The turn that is not over.
    #[serde(skip_serializing_if = "Option::is_none")]
    message_id: Option<String>,
    /// The epoch of the producer that has taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    current_epoch: Option<u64>,
    /// The next number of the producer.
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    /// The number that the producer sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    received: Option<u64>,
    /// The event that came in between.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_id: Option<String>,
    /// Its seq.
    #[serde(skip_serializing_if = "Option::is_none")]
    event_seq: Option<Seq>,
}

/// The answers of every call that takes a key to a request that it cannot serve.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it stands for these answers in the document")]
pub(super) enum RefusesCall {
    /// No token, or a wrong one
    #[response(status = 401)]
    Unauthorized(ErrorBody),
    /// Too many requests with this key, or too many streams and waits
    #[response(status = 429)]
    TooMany(ErrorBody),
    /// The log takes nothing at the moment, or the server is about to stop
    #[response(status = 503)]
    Unavailable(ErrorBody),
    /// A head that is too long, or a fault of the server
    #[response(status = "default")]
    Other(ErrorBody),
}

/// The answers of calls for workers to other callers.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it stands for this answer in the document")]
pub(super) enum RefusesClient {
    /// The key is not one of a worker
    #[response(status = 403)]
    Forbidden(ErrorBody),
}

/// The answers of calls with a body to one that they do not take.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it stands for these answers in the document")]
pub(super) enum RefusesBody {
    /// The body took too long
    #[response(status = 408)]
    Late(ErrorBody),
    /// Too much at once; `limit` says how much is taken
    #[response(status = 413)]
    TooLarge(ErrorBody),
    /// The content type is not JSON, or the body is compressed
    #[response(status = 415)]
    Unsupported(ErrorBody),
}

/// Boxed, since results that may hold it are passed on often.
#[derive(Debug)]
pub(crate) struct ApiError(Box<Failure>);

#[derive(Debug)]
struct Failure {
    status: StatusCode,
    body: ErrorBody,
    /// In seconds. Every error with [such a status](passes) has it.
    retry_after: Option<u32>,
    of_other_session: Option<OfOtherSession>,
}

/// Goes with an answer that an event belongs to another session. It holds the answer for a caller
/// that may not know of that session.
#[derive(Debug, Clone)]
pub(super) struct OfOtherSession(pub Error);

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let error = ErrorFields {
            r#type: kind(status),
            code,
            message: message.into(),
            ..ErrorFields::default()
        };
        Self(Box::new(Failure {
            status,
            body: ErrorBody { error },
            retry_after: passes(status).then_some(RETRY_SOON),
            of_other_session: None,
        }))
    }

    /// Makes an error for a request that breaks a rule.
    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", message)
    }

    pub(super) fn too_large(
        status: StatusCode,
        code: &'static str,
        what: &str,
        actual: usize,
        limit: usize,
    ) -> Self {
        Self::limited(
            status,
            code,
            format!("{what} is {actual}, and at most {limit} is allowed"),
            Some(actual as u64),
            limit as u64,
        )
    }

    pub(super) fn limited(
        status: StatusCode,
        code: &'static str,
        message: impl Into<String>,
        actual: Option<u64>,
        limit: u64,
    ) -> Self {
        let mut error = Self::new(status, code, message);
        error.fields().actual = actual;
        error.fields().limit = Some(limit);
        error
    }

    /// Makes an error for a call that the server cannot serve for some seconds.
    pub(super) fn unavailable(code: &'static str, message: &str, retry_after: u32) -> Self {
        Self::later(
            StatusCode::SERVICE_UNAVAILABLE,
            code,
            message.to_owned(),
            retry_after,
        )
    }

    /// Makes an error for a call beyond the rate of its key. There is room after `wait`.
    pub(super) fn too_many_requests(per_second: u32, wait: Duration) -> Self {
        let message = format!("this key sends more than {per_second} requests per second");
        let whole = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let mut error = Self::later(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_requests",
            message,
            u32::try_from(whole).unwrap_or(u32::MAX),
        );
        error.fields().limit = Some(per_second.into());
        error
    }

    /// Makes an error for a stream or a waiting call beyond `max`. `of` says whose streams count.
    pub(super) fn too_many_streams(of: &str, max: usize) -> Self {
        let message = format!("{max} streams and waits are open {of}, and no more are taken");
        let mut error = Self::later(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_streams",
            message,
            RETRY_AFTER_STREAM,
        );
        error.fields().limit = Some(max as u64);
        error
    }

    fn later(status: StatusCode, code: &'static str, message: String, retry_after: u32) -> Self {
        let mut error = Self::new(status, code, message);
        error.0.retry_after = Some(retry_after);
        error
    }

    /// Returns the body alone, for a stream that fails after its status was sent.
    pub(super) fn into_body(self) -> ErrorBody {
        self.0.body
    }

    fn fields(&mut self) -> &mut ErrorFields {
        &mut self.0.body.error
    }
}

/// Whether a status says that the same call may be answered later. Such an answer says when to
/// repeat it.
fn passes(status: StatusCode) -> bool {
    status == StatusCode::TOO_MANY_REQUESTS || status == StatusCode::SERVICE_UNAVAILABLE
}

/// The seconds after which a call that failed so may succeed.
fn retry_after(error: &Error) -> Option<u32> {
    match error {
        Error::Poisoned { .. }
        | Error::Displaced { .. }
        | Error::Forked { .. }
        | Error::NoSpace { .. }
        | Error::Refused { .. }
        | Error::ReadOnly => Some(RETRY_AFTER_REPAIR),
        Error::Closed => Some(RETRY_SOON),
        error => error.is_retryable().then_some(RETRY_SOON),
    }
}

/// The `type` of an error with this status.
fn kind(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "unauthorized",
        StatusCode::FORBIDDEN => "forbidden",
        StatusCode::NOT_FOUND => "not_found",
        StatusCode::METHOD_NOT_ALLOWED => "method_not_allowed",
        StatusCode::REQUEST_TIMEOUT => "timeout",
        StatusCode::CONFLICT => "conflict",
        StatusCode::GONE => "gone",
        StatusCode::PRECONDITION_FAILED => "precondition_failed",
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => "too_large",
        StatusCode::UNSUPPORTED_MEDIA_TYPE => "unsupported_media_type",
        StatusCode::TOO_MANY_REQUESTS => "too_many_requests",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        StatusCode::MISDIRECTED_REQUEST => "misdirected",
        StatusCode::NOT_IMPLEMENTED => "not_implemented",
        status if status.is_server_error() => "internal",
        _ => "invalid_request",
    }
}

fn status(error: &Error) -> StatusCode {
    match error {
        Error::TooLarge {
            limit: Limit::EventBytes | Limit::BatchBytes | Limit::BatchEvents,
            ..
        } => StatusCode::PAYLOAD_TOO_LARGE,
        Error::Cursor {
            problem: CursorProblem::Trimmed { .. },
            ..
        } => StatusCode::GONE,
        Error::Invalid { .. } | Error::TooLarge { .. } | Error::Cursor { .. } => {
            StatusCode::BAD_REQUEST
        }
        Error::UnknownSession { .. }
        | Error::UnknownEvent { .. }
        | Error::UnknownMessage { .. } => StatusCode::NOT_FOUND,
        Error::ExpectedMismatch { .. } | Error::ConditionFailed { .. } => {
            StatusCode::PRECONDITION_FAILED
        }
        Error::IdempotencyConflict { .. }
        | Error::SessionExists { .. }
        | Error::SessionClosed { .. }
        | Error::Held { .. }
        | Error::TurnOpen { .. }
        | Error::ProducerGap { .. } => StatusCode::CONFLICT,
        Error::Fenced { .. } => StatusCode::FORBIDDEN,
        Error::Poisoned { .. }
        | Error::Displaced { .. }
        | Error::Forked { .. }
        | Error::NoSpace { .. }
        | Error::Stalled { .. }
        | Error::Unconfirmed { .. }
        | Error::Refused { .. }
        | Error::ReadOnly
        | Error::Closed => StatusCode::SERVICE_UNAVAILABLE,
        Error::Corrupt { .. }
        | Error::Unsupported { .. }
        | Error::LookupFailed { .. }
        | Error::Io { .. }
        | Error::Locked { .. } => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        let status = status(&error);
        let message = if status.is_server_error() {
            // The details of a fault in the server's files are for its operators only.
            tracing::error!(
                target: "sessionlog::http",
                error = &error as &dyn std::error::Error,
                code = error.code(),
                "the log refused"
            );
            of_server(&error)
        } else {
            error.to_string()
        };
        let mut answer = Self::new(status, error.code(), message);
        if let Some(seconds) = retry_after(&error) {
            answer.0.retry_after = Some(seconds);
        }
        match error {
            Error::TooLarge { actual, max, .. } => {
                answer.fields().actual = Some(actual);
                answer.fields().limit = Some(max);
            }
            Error::ExpectedMismatch { actual, .. } => answer.fields().actual_seq = Some(actual),
            Error::Cursor {
                problem: CursorProblem::Trimmed { first },
                ..
            } => {
                answer.fields().first_kept_seq = Some(first);
            }
            Error::Cursor {
                session,
                problem: CursorProblem::OtherSession(id),
            } => {
                let problem = CursorProblem::Unknown(id);
                answer.0.of_other_session =
                    Some(OfOtherSession(Error::Cursor { session, problem }));
            }
            Error::SessionExists { session } => {
                answer.fields().session_id = Some(session.id.to_string());
            }
            Error::SessionClosed { last, .. } => answer.fields().actual_seq = Some(last),
            Error::TurnOpen { message, .. } => {
                answer.fields().message_id = Some(message.to_string());
            }
            Error::Fenced { current, .. } => answer.fields().current_epoch = Some(current),
            Error::ProducerGap {
                expected, received, ..
            } => {
                answer.fields().expected = Some(expected);
                answer.fields().received = Some(received);
            }
            Error::ConditionFailed { event, seq, .. } => {
                answer.fields().event_id = Some(event.to_string());
                answer.fields().event_seq = Some(seq);
            }
            _ => {}
        }
        answer
    }
}

/// The message to clients when the server is at fault.
fn of_server(error: &Error) -> String {
    let text = match error {
        Error::Poisoned { .. } => {
            "a write has failed, and nothing more is taken until the server is started anew"
        }
        Error::Displaced { .. } => {
            "the server's folder was moved or replaced; \
             nothing was written, and nothing more is taken"
        }
        Error::Forked { .. } => "this is a copy of the server's process, which takes nothing",
        Error::NoSpace { .. } => "the server's disk is full; nothing was written",
        Error::Stalled { .. } => "the server's disk does not keep up; nothing was written",
        Error::Unconfirmed { .. } => {
            "it is not known whether this was stored: repeat it with the same idempotency key"
        }
        Error::Refused { .. } => {
            "the server's disk refuses what the log needs, until somebody mends that; \
             nothing was written"
        }
        Error::ReadOnly => "the log is open for reading only",
        Error::Closed => "the server is about to stop",
        Error::LookupFailed { .. } => "what is stored could not be read; nothing was written",
        Error::Io { .. } => {
            "the server's disk refused a call; \
             a batch that was sent may or may not be there afterwards"
        }
        _ => "what is stored cannot be read",
    };
    text.to_owned()
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let Failure {
            status,
            body,
            retry_after,
            of_other_session,
        } = *self.0;
        let mut headers = HeaderMap::new();
        if let Some(seconds) = retry_after {
            headers.insert(RETRY_AFTER, seconds.into());
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seq) = body.error.actual_seq {
            headers.insert(ETAG, etag(seq));
        }
        let mut answer = (status, headers, Json(body)).into_response();
        if let Some(instead) = of_other_session {
            answer.extensions_mut().insert(instead);
        }
        answer
    }
}

pub(super) async fn not_found(uri: Uri) -> ApiError {
    ApiError::new(
        StatusCode::NOT_FOUND,
        "unknown_path",
        format!("there is nothing at {}", uri.path()),
    )
}

pub(super) async fn method_not_allowed(method: Method, uri: Uri) -> ApiError {
    let message = format!(
        "{} does not take {method}; the header {ALLOW} says what it takes",
        uri.path()
    );
    ApiError::new(
        StatusCode::METHOD_NOT_ALLOWED,
        "method_not_allowed",
        message,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn retry_after(answer: ApiError) -> Option<HeaderValue> {
        let mut answer = answer.into_response();
        answer.headers_mut().remove(RETRY_AFTER)
    }

    #[test]
    fn every_refusal_that_may_pass_says_when_to_come_again() {
        for status in 100..1000 {
            let status = StatusCode::from_u16(status).unwrap();
            let answer = ApiError::new(status, "code", "");
            let passes = [429, 503].contains(&status.as_u16());
            assert_eq!(retry_after(answer).is_some(), passes, "{status}");
        }
    }

    #[test]
    fn an_error_of_the_log_says_when_somebody_may_have_mended_it() {
        let source = || std::sync::Arc::new(std::io::Error::other("x"));
        let full = Error::NoSpace {
            path: "x".into(),
            source: source(),
        };
        let busy = Error::LookupFailed {
            doing: "read",
            path: "x".into(),
            source: source(),
        };
        let stalled = Error::Stalled {
            waited: Duration::ZERO,
            source: None,
        };
        let poisoned = Error::Poisoned {
            source: std::sync::Arc::new(full.clone()),
        };
        let refused = Error::Refused {
            source: std::sync::Arc::new(full.clone()),
        };
        for (error, seconds) in [
            (full, "30"),
            (poisoned, "30"),
            (refused, "30"),
            (Error::Forked { opened_by: 1 }, "30"),
            (Error::ReadOnly, "30"),
            (Error::Closed, "1"),
            (stalled, "1"),
            (busy, "1"),
        ] {
            let code = error.code();
            let after = retry_after(ApiError::from(error));
            assert_eq!(after.unwrap(), seconds, "{code}");
        }
    }

    #[test]
    fn a_wait_of_a_part_of_a_second_is_a_whole_one() {
        for (millis, seconds) in [(1, "1"), (1_000, "1"), (1_001, "2")] {
            let wait = Duration::from_millis(millis);
            let after = retry_after(ApiError::too_many_requests(1, wait));
            assert_eq!(after.unwrap(), seconds);
        }
    }
}
