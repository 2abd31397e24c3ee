//! Lists the sessions of a store.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

use crate::http::error::{ApiError, ErrorBody, RefusesCall};
use crate::http::key::Access;
use crate::http::query::{InQuery, present};
use crate::http::service::Service;
use crate::http::wire::{SessionBody, Sessions};
use crate::log::SessionLog;
use crate::model::SessionId;
use crate::read::{SessionCursor, SessionQuery};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct SessionParams {
    /// The most sessions on the page.
    #[serde(default, deserialize_with = "present")]
    #[param(minimum = 1, maximum = 1000, default = 100)]
    limit: Option<usize>,
    /// `recent` for newest activity first, `created` for those created last first, or `id` for the
    /// order of IDs.
    #[serde(default)]
    #[param(inline)]
    order: SessionOrder,
    /// Only sessions after this position: the `last_cursor` of a page in this order. With
    /// `order=id` also a session ID that begins with neither `id:` nor `at:`. Such a session need
    /// not exist.
    #[serde(default, deserialize_with = "present")]
    #[param(
        min_length = 1,
        max_length = 259,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    after: Option<String>,
    /// The sessions in front of this position: the `first_cursor` of a page in this order. Not
    /// together with `after`.
    #[serde(default, deserialize_with = "present")]
    #[param(
        min_length = 1,
        max_length = 259,
        pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$"
    )]
    before: Option<String>,
    /// Only sessions whose IDs begin so.
    #[serde(default)]
    prefix: Option<String>,
    /// Only sessions that are closed, or that are not.
    #[serde(default, deserialize_with = "present")]
    closed: Option<bool>,
    /// Only sessions with an event since then, or created since then.
    #[serde(default, deserialize_with = "present")]
    #[param(value_type = String, required = false, format = DateTime)]
    active_since: Option<Timestamp>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum SessionOrder {
    #[default]
    Recent,
    Id,
    Created,
}

impl SessionParams {
    /// Returns the query, and whether it walks against the order of the list.
    fn query(&self) -> Result<(SessionQuery, bool), ApiError> {
        let mut query = match self.order {
            SessionOrder::Recent => SessionQuery::by_activity(),
            SessionOrder::Id => SessionQuery::by_id(),
            SessionOrder::Created => SessionQuery::by_creation(),
        };
        let position = match (&self.after, &self.before) {
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid(
                    "after and before are both given, and only one may be",
                ));
            }
            (after, before) => after.as_ref().or(before.as_ref()),
        };
        if let Some(position) = position {
            query = query.after(self.cursor(position)?);
        }
        let is_reversed = self.before.is_some();
        if is_reversed {
            query = query.reversed();
        }
        if let Some(limit) = self.limit {
            query = query.limit(limit);
        }
        if let Some(closed) = self.closed {
            query = if closed { query.closed() } else { query.open() };
        }
        if let Some(time) = self.active_since {
            query = query.active_since(time);
        }
        Ok((query, is_reversed))
    }

    /// Reads a position. A session ID by itself is one in the order of IDs.
    fn cursor(&self, text: &str) -> Result<SessionCursor, ApiError> {
        let is_id =
            self.order == SessionOrder::Id && !text.starts_with("id:") && !text.starts_with("at:");
        Ok(if is_id {
            SessionCursor::from(&SessionId::new(text)?)
        } else {
            text.parse()?
        })
    }
}

/// What the document says of the parameters `metadata[name]=value`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[expect(dead_code, reason = "it stands for these parameters in the document")]
struct MetadataParams {
    /// Only sessions whose metadata has these strings at these names: `metadata[agent]=a1`. Up to
    /// 16 of them.
    #[param(style = DeepObject, explode, value_type = Object, required = false)]
    metadata: Option<std::collections::BTreeMap<String, String>>,
}

/// Adds the parameters `metadata[name]=value` to a query.
fn with_metadata(mut query: SessionQuery, params: Vec<(String, String)>) -> SessionQuery {
    for (name, value) in params {
        let within = name.strip_prefix("metadata[");
        if let Some(name) = within.and_then(|name| name.strip_suffix(']')) {
            query = query.metadata(name, value);
        }
    }
    query
}

/// Returns the prefix of all sessions that a caller may list and asks for. `None` if there are
/// none.
fn common_prefix<'a>(asked: &'a str, allowed: &'a str) -> Option<&'a str> {
    if asked.starts_with(allowed) {
        Some(asked)
    } else {
        allowed.starts_with(asked).then_some(allowed)
    }
}

/// List sessions
///
/// By newest event, by creation, or in the order of their IDs, page by page in both directions. A
/// session that gets an event while the list is read by activity moves past the cursor. A walk in
/// the order of IDs loses none.
#[utoipa::path(
    get,
    path = "/v1/sessions",
    operation_id = "list_sessions",
    params(SessionParams, MetadataParams),
    responses(
        (status = 200, description = "A page", body = Sessions),
        (
            status = 400,
            description = "A bad limit, time or filter, or a cursor of another order",
            body = ErrorBody,
        ),
        RefusesCall,
    ),
)]
pub(super) async fn list(
    State(service): State<Arc<Service>>,
    access: Access,
    InQuery(params): InQuery<SessionParams>,
    InQuery(all): InQuery<Vec<(String, String)>>,
) -> Result<Json<Sessions>, ApiError> {
    let (mut query, is_reversed) = params.query()?;
    query = with_metadata(query, all);
    let asked = params.prefix.as_deref().unwrap_or_default();
    let Some(prefix) = common_prefix(asked, access.prefix()) else {
        return Ok(Json(Sessions::default()));
    };
    if !prefix.is_empty() {
        query = query.prefix(prefix);
    }
    let read = move |log: &SessionLog| {
        let mut page = log.sessions(query)?;
        if is_reversed {
            page.items.reverse();
            std::mem::swap(&mut page.first, &mut page.last);
        }
        let body = |info| SessionBody::new(info, &access);
        Ok(Sessions {
            sessions: page.items.into_iter().map(body).collect(),
            has_more: page.has_more,
            first_cursor: page.first.map(|cursor| cursor.to_string()),
            last_cursor: page.last.map(|cursor| cursor.to_string()),
        })
    };
    Ok(Json(service.read(read).await?))
}
