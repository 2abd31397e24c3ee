//! Query parameters and their translation for the log.

use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum_extra::extract::Query;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};

use crate::http::error::ApiError;
use crate::model::{Cursor, EventId, MessageId, Result, Seq};
use crate::read::{PageRequest, StartAt};

/// The parameters of a query that `T` knows. Others are ignored.
pub(crate) struct InQuery<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for InQuery<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        Ok(Self(query.0))
    }
}

/// Reads a parameter that is present even if it is empty. A client that sends an empty cursor did
/// not mean to start over.
pub(super) fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    value: D,
) -> Result<Option<T>, D::Error> {
    T::deserialize(value).map(Some)
}

/// The document's description of the session in a path.
/// [`SessionPath`](crate::http::service::SessionPath) reads it.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
#[expect(
    dead_code,
    reason = "it stands for the path's parameter in the document"
)]
pub(super) struct SessionParam {
    /// The session: 1 to 256 bytes without control characters.
    #[param(
        min_length = 1,
        max_length = 256,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    session_id: String,
}

/// The range of a session and its order.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PageParams {
    /// The most items on the page. A page of large items may have fewer.
    #[serde(default, deserialize_with = "present")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// Only items after this event, message or seq. Not together with `before`.
    #[serde(default, deserialize_with = "present")]
    #[param(pattern = "^((evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9]+)$")]
    after: Option<String>,
    /// Only items before this event, message or seq. Not together with `after`.
    #[serde(default, deserialize_with = "present")]
    #[param(pattern = "^((evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}|[0-9]+)$")]
    before: Option<String>,
    /// `asc` for oldest first, or `desc` for newest first.
    #[serde(default)]
    #[param(inline)]
    pub order: Order,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum Order {
    #[default]
    Asc,
    Desc,
}

impl PageParams {
    /// Returns where a page begins that may wait for its first event.
    pub(super) fn waits_after(&self) -> Result<StartAt, ApiError> {
        if self.order == Order::Desc || self.before.is_some() {
            return Err(ApiError::invalid(
                "wait goes with order=asc and without before",
            ));
        }
        let after = self.after.as_deref().map(position).transpose()?;
        Ok(after.map_or(StartAt::Beginning, StartAt::After))
    }

    pub(super) fn page(&self) -> Result<PageRequest, ApiError> {
        let mut page = match (&self.after, &self.before) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "after and before are both given, and only one may be",
                ));
            }
            (Some(after), None) => PageRequest::new().after(position(after)?),
            (None, Some(before)) => PageRequest::new().before(position(before)?),
            (None, None) => PageRequest::new(),
        };
        if let Some(limit) = self.limit {
            page = page.limit(limit);
        }
        Ok(if self.order == Order::Desc {
            page.newest_first()
        } else {
            page
        })
    }
}

/// Returns the position of an event, or of the event that opened a turn.
pub(super) fn cursor(id: &str) -> Result<Cursor> {
    let event = match id.parse::<MessageId>() {
        Ok(message) => message.event_id(),
        Err(_no_message) => id.parse::<EventId>()?,
    };
    Ok(event.into())
}

/// Returns a position that is given by an ID or by a seq.
pub(super) fn position(text: &str) -> Result<Cursor> {
    let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
    match is_number.then(|| text.parse::<Seq>().ok()).flatten() {
        Some(seq) => Ok(seq.into()),
        None => cursor(text),
    }
}

/// The longest wait of a call, in seconds.
const WAIT_MAX: u64 = 60;

/// Returns the time that a call may wait.
pub(super) fn checked_wait(seconds: u64) -> Result<Duration, ApiError> {
    if seconds > WAIT_MAX {
        return Err(ApiError::invalid(format!(
            "wait is {seconds} seconds, and at most {WAIT_MAX} are allowed"
        )));
    }
    Ok(Duration::from_secs(seconds))
}

/// The turns to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct StatusParams {
    /// Only messages whose status is not final. Such a page looks at a bounded part of the session
    /// and may hold few messages or none with `has_more`: continue after `last_id`.
    #[serde(default, deserialize_with = "present")]
    #[param(inline)]
    pub status: Option<StatusFilter>,
}

#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub(super) enum StatusFilter {
    Open,
}

/// The types of the events to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TypeParams {
    /// Only events of this type. May be given several times.
    #[serde(default, rename = "type")]
    pub types: Vec<String>,
}

/// How long a list of events may wait for the first of them.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct NewsParams {
    /// The most seconds to wait until there is an event on the page. Only with `order=asc`, and
    /// without `before`.
    #[serde(default)]
    #[param(minimum = 0, maximum = 60, default = 0)]
    pub wait: u64,
}

/// The types of the events that a stream sends.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct FilterParams {
    /// Only events of this type. May be given several times.
    #[serde(default, rename = "type")]
    types: Vec<String>,
    /// No events of this type. May be given several times.
    #[serde(default)]
    exclude_type: Vec<String>,
}

impl FilterParams {
    /// Whether events of a type are sent.
    pub(super) fn has(&self, event_type: &str) -> bool {
        let has = |types: &[String]| types.iter().any(|named| named == event_type);
        (self.types.is_empty() || has(&self.types)) && !has(&self.exclude_type)
    }
}
