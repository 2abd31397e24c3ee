//! Authorization: a caller must send one of the keys as its bearer token.

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
    // All hashes are compared, each in constant time, so that the time reveals nothing about a key.
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
