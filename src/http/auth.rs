//! Who may call: the bearer of one of the keys.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::Response;

use crate::http::error::ApiError;
use crate::http::service::Service;

pub(super) async fn check(
    State(service): State<Arc<Service>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let Some(tokens) = &service.config.tokens else {
        return Ok(next.run(request).await);
    };
    let (code, message) = match bearer(request.headers()) {
        Some(token) if is_known(token, tokens) => return Ok(next.run(request).await),
        Some(_wrong) => ("wrong_token", "the bearer token is not known here"),
        None => (
            "missing_token",
            "the header Authorization: Bearer <key> is missing",
        ),
    };
    Err(ApiError::new(StatusCode::UNAUTHORIZED, code, message))
}

fn is_known(token: &[u8], tokens: &[blake3::Hash]) -> bool {
    // Hashes are compared in constant time, and every one of them, so that the time taken says
    // nothing about any key.
    let given = blake3::hash(token);
    tokens.iter().filter(|token| **token == given).count() > 0
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
