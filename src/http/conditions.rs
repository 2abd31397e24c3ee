//! The headers that a change depends on: its idempotency key, its producer, and `If-Match`.

use std::future::Future;

use axum::http::header::IF_MATCH;
use axum::http::{HeaderMap, HeaderName};
use utoipa::IntoParams;

use crate::http::error::ApiError;
use crate::model::{Error, Expected, Producer, Result};

pub(super) const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const PRODUCER_ID: HeaderName = HeaderName::from_static("producer-id");
const PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
const PRODUCER_SEQ: HeaderName = HeaderName::from_static("producer-seq");

/// Returns the writer of a request.
pub(super) fn producer(headers: &HeaderMap) -> Result<Option<Producer>, ApiError> {
    let epoch = number(headers, &PRODUCER_EPOCH)?;
    let seq = number(headers, &PRODUCER_SEQ)?;
    let Some(id) = only(headers, &PRODUCER_ID)? else {
        if epoch.or(seq).is_some() {
            return Err(ApiError::invalid(
                "the header Producer-Id is missing beside Producer-Epoch or Producer-Seq",
            ));
        }
        return Ok(None);
    };
    let mut producer = Producer::new(id);
    if let Some(epoch) = epoch {
        producer = producer.epoch(epoch);
    }
    if let Some(seq) = seq {
        producer = producer.seq(seq);
    }
    Ok(Some(producer))
}

fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, ApiError> {
    let Some(text) = only(headers, name)? else {
        return Ok(None);
    };
    let is_number = text.bytes().all(|digit| digit.is_ascii_digit());
    let number = is_number.then(|| text.parse().ok()).flatten();
    number
        .map(Some)
        .ok_or_else(|| ApiError::invalid(format!("the header {name} is no number")))
}

/// Returns the value of a header that is given once at most.
pub(crate) fn only<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        let message = format!("the header {name} is given more than once");
        return Err(ApiError::invalid(message));
    }
    value.to_str().map(Some).map_err(|_error| {
        ApiError::invalid(format!(
            "the header {name} holds other than visible ASCII characters"
        ))
    })
}

/// Returns the key under which a request is stored once.
pub(super) fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    only(headers, &IDEMPOTENCY_KEY)
}

/// The document's description of the header that [`expected`] reads.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it stands for the header in the document")]
pub(super) struct IfMatchParam {
    /// Only if the session's last seq is this, in quotes, as the header `ETag` says it, or one of
    /// several; 0 for a new session, * for one that is there.
    #[param(
        rename = "If-Match",
        pattern = r#"^(\*|(W/)?("[0-9]{1,18}"|[0-9]{1,18})(, ?(W/)?("[0-9]{1,18}"|[0-9]{1,18}))*)$"#
    )]
    if_match: Option<String>,
}

/// Returns the seqs of which any one may be the session's last. Without the header any is accepted.
pub(super) fn expected(headers: &HeaderMap) -> Result<Vec<Expected>, ApiError> {
    let mut expected = Vec::new();
    for tags in headers.get_all(IF_MATCH) {
        for tag in tags.to_str().unwrap_or_default().split(',') {
            expected.push(expected_by(tag.trim())?);
        }
    }
    if expected.is_empty() {
        expected.push(Expected::Any);
    }
    if expected.len() > 1 && expected.contains(&Expected::Exists) {
        return Err(ApiError::invalid(
            "the header If-Match has * beside something else",
        ));
    }
    Ok(expected)
}

/// Does the same for a call that is refused without the session in any case, where `*` asks for
/// nothing more. The session may be without events.
pub(super) fn expected_of_existing(headers: &HeaderMap) -> Result<Vec<Expected>, ApiError> {
    let places = expected(headers)?;
    let is_anywhere = places.contains(&Expected::Exists);
    Ok(if is_anywhere {
        vec![Expected::Any]
    } else {
        places
    })
}

fn expected_by(tag: &str) -> Result<Expected, ApiError> {
    if tag == "*" {
        return Ok(Expected::Exists);
    }
    // A proxy that compresses an answer makes its tag weak. The seq in it is still the session's.
    let tag = tag.strip_prefix("W/").unwrap_or(tag);
    // Many clients forget the quotes, and the meaning is clear without them.
    let seq = tag
        .strip_prefix('"')
        .and_then(|tag| tag.strip_suffix('"'))
        .unwrap_or(tag);
    let seq = Some(seq)
        .filter(|seq| seq.bytes().all(|digit| digit.is_ascii_digit()))
        .and_then(|seq| seq.parse().ok());
    seq.map(Expected::Seq)
        .ok_or_else(|| ApiError::invalid("the header If-Match is neither seqs in quotes nor *"))
}

/// Makes a change if the session is at one of `places`. It is tried at each place once at most.
pub(super) async fn at_one_of<T, F: Future<Output = Result<T>>>(
    mut places: Vec<Expected>,
    change: impl Fn(Expected) -> F,
) -> Result<T> {
    let mut next = places.pop().unwrap_or_default();
    loop {
        match change(next).await {
            Err(Error::ExpectedMismatch { actual, .. })
                if places.contains(&Expected::Seq(actual)) =>
            {
                next = Expected::Seq(actual);
                places.retain(|place| *place != next);
            }
            answer => return answer,
        }
    }
}
