//! The JSON bodies of requests, within the limits of size and time.

use axum::body::{Body, Bytes};
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use http_body_util::BodyExt;
use serde::Deserialize;
use tokio::time::timeout;

use crate::http::budget::Share;
use crate::http::config::Config;
use crate::http::error::ApiError;
use crate::http::service::Service;

const JSON: &str = "application/json";

/// The type of a JSON merge patch.
const MERGE_PATCH: &str = "application/merge-patch+json";

/// The byte order mark, which software on Windows may put before UTF-8.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// The text of a body, and the memory for what is made from it.
pub(super) struct JsonBody {
    text: Bytes,
    pub share: Share,
}

impl JsonBody {
    /// Reads the JSON body of a request.
    pub(super) async fn of(
        headers: &HeaderMap,
        body: Body,
        service: &Service,
    ) -> Result<Self, ApiError> {
        check_json(headers)?;
        Self::received(headers, body, service).await
    }

    /// Reads a JSON merge patch, which may also be sent as plain JSON.
    pub(super) async fn of_patch(
        headers: &HeaderMap,
        body: Body,
        service: &Service,
    ) -> Result<Self, ApiError> {
        check_content_type(headers, Some(MERGE_PATCH))?;
        Self::received(headers, body, service).await
    }

    /// Reads a JSON body that may be left out, which then is an empty object.
    pub(super) async fn of_any(
        headers: &HeaderMap,
        body: Body,
        service: &Service,
    ) -> Result<Self, ApiError> {
        if headers.contains_key(CONTENT_TYPE) {
            check_json(headers)?;
        }
        let mut read = Self::received(headers, body, service).await?;
        if read.text.is_empty() || read.text == BYTE_ORDER_MARK {
            read.text = Bytes::from_static(b"{}");
        }
        Ok(read)
    }

    async fn received(
        headers: &HeaderMap,
        body: Body,
        service: &Service,
    ) -> Result<Self, ApiError> {
        let (text, share) = received(headers, body, service).await?;
        Ok(Self { text, share })
    }

    /// Reads the body as an object of this shape.
    pub(super) fn parsed<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ApiError> {
        parsed(&self.text)
    }
}

/// Reads the text of a body as an object of this shape.
pub(super) fn parsed<'a, T: Deserialize<'a>>(text: &'a [u8]) -> Result<T, ApiError> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    // An array would be taken for the values of the object's fields.
    if text.trim_ascii_start().starts_with(b"[") {
        return Err(ApiError::invalid("the body: it is an array and no object"));
    }
    serde_json::from_slice(text).map_err(|error| in_body(&error))
}

/// Passes a request whose body is plain JSON.
pub(super) fn check_json(headers: &HeaderMap) -> Result<(), ApiError> {
    check_content_type(headers, None)
}

pub(super) fn in_body(error: &serde_json::Error) -> ApiError {
    ApiError::invalid(format!("the body: {error}"))
}

fn check_content_type(headers: &HeaderMap, also: Option<&str>) -> Result<(), ApiError> {
    check_encoding(headers)?;
    let given = headers
        .get(CONTENT_TYPE)
        .and_then(|given| given.to_str().ok())
        .unwrap_or_default();
    let essence = given.split(';').next().unwrap_or_default().trim();
    let is_taken = |taken: &str| essence.eq_ignore_ascii_case(taken);
    if is_taken(JSON) || also.is_some_and(is_taken) {
        return Ok(());
    }
    let message = format!("the content type is {given:?}, and only application/json is taken");
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media_type",
        message,
    ))
}

/// Refuses a compressed body.
pub(crate) fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let is_plain = |coding: &HeaderValue| {
        coding
            .as_bytes()
            .trim_ascii()
            .eq_ignore_ascii_case(b"identity")
    };
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let Some(coding) = codings.find(|coding| !is_plain(coding)) else {
        return Ok(());
    };
    let message =
        format!("the content encoding is {coding:?}, and bodies are taken as they are alone");
    Err(ApiError::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_encoding",
        message,
    ))
}

/// The memory that an append takes for each byte of its body: the body, its events, their batch,
/// and the answer.
pub(crate) const BODY_COPIES: usize = 4;

/// Reads a body within the limits of size and time. The returned share covers the memory of
/// everything made from it.
pub(crate) async fn received(
    headers: &HeaderMap,
    mut body: Body,
    service: &Service,
) -> Result<(Bytes, Share), ApiError> {
    let Config {
        body_bytes_max: max,
        body_wait,
        ..
    } = service.config;
    let too_large = |actual| {
        let message = format!("the body is longer than the {max} bytes that are taken");
        ApiError::limited(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            message,
            actual,
            max as u64,
        )
    };
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|bytes| bytes.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|bytes| bytes > max as u64) {
        return Err(too_large(announced));
    }
    let receive = async {
        let (mut received, mut share) = (Vec::new(), service.budget.share(0).await?);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::invalid(format!("the body could not be read: {error}"))
            })?;
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if received.len() + data.len() > max {
                return Err(too_large(None));
            }
            received.extend_from_slice(&data);
            service.budget.grow(&mut share, received.capacity()).await?;
        }
        service
            .budget
            .grow(&mut share, received.len().saturating_mul(BODY_COPIES))
            .await?;
        Ok((received.into(), share))
    };
    timeout(body_wait, receive)
        .await
        .unwrap_or_else(|_elapsed| {
            Err(ApiError::new(
                StatusCode::REQUEST_TIMEOUT,
                "body_timeout",
                format!("the body took longer than {body_wait:?}"),
            ))
        })
}
