//! Authorization: a caller must send one of the keys as its bearer token.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::error::{ApiError, OfOtherSession};
use crate::http::key::{Access, Key, Scope};
use crate::http::service::Service;

pub(super) async fn check(
    State(service): State<Arc<Service>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let access = access(request.headers(), &service)?;
    access.check_rate()?;
    let is_bound = access.is_bound();
    request.extensions_mut().insert(access);
    let answer = next.run(request).await;
    Ok(if is_bound { hidden(answer) } else { answer })
}

/// For the caller of a bound key, an event of another session might as well not exist.
pub(super) fn hidden(mut answer: Response) -> Response {
    match answer.extensions_mut().remove() {
        Some(OfOtherSession(unknown)) => ApiError::from(unknown).into_response(),
        None => answer,
    }
}

/// Returns what the sender of a request may do.
pub(crate) fn access(headers: &HeaderMap, service: &Service) -> Result<Access, ApiError> {
    let token = bearer(headers);
    if let Some(access) = token.and_then(|token| Key::access_of(token, &service.config.keys)) {
        return Ok(access);
    }
    if service.config.open {
        return Ok(Access::everywhere(Scope::Client));
    }
    let (code, message) = match token {
        Some(_wrong) => ("wrong_token", "the bearer token is not known here"),
        None => (
            "missing_token",
            "the header Authorization: Bearer <key> is missing",
        ),
    };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, code, message))
}

fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers
        .get(AUTHORIZATION)?
        .as_bytes()
        .split_at_checked("Bearer ".len())?;
    scheme
        .eq_ignore_ascii_case(b"Bearer ")
        .then(|| token.trim_ascii())
}
