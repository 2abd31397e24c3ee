//! Query parameters and their translation for the log.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum_extra::extract::Query;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use utoipa::{IntoParams, ToSchema};

use crate::http::error::ApiError;
use crate::model::{EventId, MessageId, Result};
use crate::read::{Cursor, PageRequest};

/// The parameters of a query that `T` knows. Others are ignored.
pub(super) struct InQuery<T>(pub T);

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
    /// Only items after this event or message. Not together with `before`.
    #[serde(default, deserialize_with = "present")]
    #[param(pattern = "^(evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
    after: Option<String>,
    /// Only items before this event or message. Not together with `after`.
    #[serde(default, deserialize_with = "present")]
    #[param(pattern = "^(evt|msg)_[0-7][0-9A-HJKMNP-TV-Z]{25}$")]
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
    pub(super) fn page(&self) -> Result<PageRequest, ApiError> {
        let mut page = match (&self.after, &self.before) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "after and before are both given, and only one may be",
                ));
            }
            (Some(after), None) => PageRequest::new().after(cursor(after)?),
            (None, Some(before)) => PageRequest::new().before(cursor(before)?),
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

/// The types of the events to list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct TypeParams {
    /// Only events of this type. May be given several times.
    #[serde(default, rename = "type")]
    pub types: Vec<String>,
}
