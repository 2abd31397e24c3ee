//! The headers of the protocol: those of requests, read and checked, and those of answers.

use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::http::{HeaderMap, HeaderValue};
use jiff::Timestamp;

use crate::durable_streams::settings::ContentType;
use crate::http::{ApiError, only};
use crate::model::Producer;

pub(super) const NEXT_OFFSET: HeaderName = HeaderName::from_static("stream-next-offset");
pub(super) const UP_TO_DATE: HeaderName = HeaderName::from_static("stream-up-to-date");
pub(super) const CLOSED: HeaderName = HeaderName::from_static("stream-closed");
pub(super) const CURSOR: HeaderName = HeaderName::from_static("stream-cursor");
pub(super) const TTL: HeaderName = HeaderName::from_static("stream-ttl");
pub(super) const EXPIRES_AT: HeaderName = HeaderName::from_static("stream-expires-at");
pub(super) const SSE_ENCODING: HeaderName = HeaderName::from_static("stream-sse-data-encoding");
pub(super) const PRODUCER_EPOCH: HeaderName = HeaderName::from_static("producer-epoch");
pub(super) const PRODUCER_SEQ: HeaderName = HeaderName::from_static("producer-seq");
pub(super) const EXPECTED_SEQ: HeaderName = HeaderName::from_static("producer-expected-seq");
pub(super) const RECEIVED_SEQ: HeaderName = HeaderName::from_static("producer-received-seq");

const SEQ: HeaderName = HeaderName::from_static("stream-seq");
const PRODUCER_ID: HeaderName = HeaderName::from_static("producer-id");
const FORKED_FROM: HeaderName = HeaderName::from_static("stream-forked-from");
const FORK_OFFSET: HeaderName = HeaderName::from_static("stream-fork-offset");
const FORK_SUB_OFFSET: HeaderName = HeaderName::from_static("stream-fork-sub-offset");

pub(super) const TRUE: HeaderValue = HeaderValue::from_static("true");

/// The largest number that a client in JavaScript can send.
const NUMBER_MAX: u64 = (1 << 53) - 1;

/// The longest `Stream-Seq`, in bytes. It is part of the metadata of a session.
const SEQ_BYTES_MAX: usize = 1024;

/// Whether a request closes its stream. Any other value than `true` counts as no header.
pub(super) fn closes(headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(CLOSED).iter();
    values.any(|value| value.as_bytes().eq_ignore_ascii_case(b"true"))
}

pub(super) fn content_type(headers: &HeaderMap) -> Result<Option<ContentType>, ApiError> {
    let Some(text) = only(headers, &CONTENT_TYPE)?.filter(|text| !text.trim().is_empty()) else {
        return Ok(None);
    };
    ContentType::parse(text)
        .map(Some)
        .map_err(|why| ApiError::invalid(format!("the header content-type: {why}")))
}

/// Returns the `Stream-Seq` of an append.
pub(super) fn stream_seq(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let seq = only(headers, &SEQ)?;
    if seq.is_some_and(|seq| seq.len() > SEQ_BYTES_MAX) {
        return Err(ApiError::invalid(format!(
            "the header {SEQ} is longer than {SEQ_BYTES_MAX} bytes"
        )));
    }
    Ok(seq)
}

/// When a stream ends by itself.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Lifetime {
    pub ttl: Option<u64>,
    pub expires_at: Option<Timestamp>,
}

pub(super) fn lifetime(headers: &HeaderMap) -> Result<Lifetime, ApiError> {
    let ttl = number(headers, &TTL)?;
    let expires_at = only(headers, &EXPIRES_AT)?
        .map(|text| {
            text.parse::<Timestamp>().map_err(|error| {
                ApiError::invalid(format!("the header {EXPIRES_AT} is no time: {error}"))
            })
        })
        .transpose()?;
    if ttl.is_some() && expires_at.is_some() {
        return Err(ApiError::invalid(format!(
            "the headers {TTL} and {EXPIRES_AT} are both given, and only one may be"
        )));
    }
    Ok(Lifetime { ttl, expires_at })
}

/// The producer of an append, with its epoch and its number, which the answer repeats.
#[derive(Debug, Clone)]
pub(super) struct Sender {
    pub id: String,
    pub epoch: u64,
    pub seq: u64,
}

impl Sender {
    pub(super) fn producer(&self) -> Producer {
        Producer::new(self.id.as_str())
            .epoch(self.epoch)
            .seq(self.seq)
    }
}

pub(super) fn sender(headers: &HeaderMap) -> Result<Option<Sender>, ApiError> {
    let id = only(headers, &PRODUCER_ID)?;
    let epoch = number(headers, &PRODUCER_EPOCH)?;
    let seq = number(headers, &PRODUCER_SEQ)?;
    match (id, epoch, seq) {
        (None, None, None) => Ok(None),
        (Some(""), ..) => Err(ApiError::invalid(format!(
            "the header {PRODUCER_ID} is empty"
        ))),
        (Some(id), Some(epoch), Some(seq)) => Ok(Some(Sender {
            id: id.to_owned(),
            epoch,
            seq,
        })),
        _ => Err(ApiError::invalid(format!(
            "the headers {PRODUCER_ID}, {PRODUCER_EPOCH} and {PRODUCER_SEQ} are given together \
             or not at all"
        ))),
    }
}

/// A fork as it is asked for.
pub(super) struct ForkOf<'a> {
    pub from: &'a str,
    pub offset: Option<&'a str>,
    pub sub_offset: u64,
}

pub(super) fn fork(headers: &HeaderMap) -> Result<Option<ForkOf<'_>>, ApiError> {
    let offset = only(headers, &FORK_OFFSET)?;
    let sub_offset = number(headers, &FORK_SUB_OFFSET)?;
    let Some(from) = only(headers, &FORKED_FROM)? else {
        if offset.is_some() || sub_offset.is_some() {
            return Err(ApiError::invalid(format!(
                "the header {FORKED_FROM} is missing beside the point of the fork"
            )));
        }
        return Ok(None);
    };
    let sub_offset = sub_offset.unwrap_or_default();
    if sub_offset > 0 && offset.is_none() {
        return Err(ApiError::invalid(format!(
            "the header {FORK_OFFSET} is missing beside {FORK_SUB_OFFSET}"
        )));
    }
    Ok(Some(ForkOf {
        from,
        offset,
        sub_offset,
    }))
}

/// Reads a number of digits alone, without leading zeros.
fn number(headers: &HeaderMap, name: &HeaderName) -> Result<Option<u64>, ApiError> {
    let Some(text) = only(headers, name)? else {
        return Ok(None);
    };
    let is_plain =
        text.bytes().all(|digit| digit.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    let number = is_plain.then(|| text.parse().ok()).flatten();
    number
        .filter(|number| *number <= NUMBER_MAX)
        .map(Some)
        .ok_or_else(|| {
            ApiError::invalid(format!(
                "the header {name} is {text:?}, and no whole number up to {NUMBER_MAX}"
            ))
        })
}
