//! The request for a page of sessions, and the page itself.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::Serialize;

use crate::codec::SessionState;
use crate::model::{Error, EventId, Metadata, Options, Result, SessionId, SessionInfo};
use crate::read::page::checked_limit;

/// The most metadata pairs that a query may ask for.
const METADATA_PAIRS_MAX: usize = 16;

/// Which sessions to list. Default: the first 100, in the byte order of their IDs.
///
/// ```
/// use sessionlog::{SessionId, SessionQuery};
///
/// let last: SessionId = "sess_123".parse()?;
/// let next = SessionQuery::by_id().after(&last).limit(20);
/// let newest = SessionQuery::by_activity().metadata("agent", "a1").open();
/// # Ok::<(), sessionlog::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a query does nothing until it is passed to `sessions`"]
pub struct SessionQuery {
    pub(super) order: SessionOrder,
    pub(super) direction: Direction,
    pub(super) after: Option<SessionCursor>,
    limit: Option<usize>,
    filter: Filter,
}

/// The order of the sessions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionOrder {
    Id,
    Activity,
    Creation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Ascending,
    Descending,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Filter {
    prefix: Option<String>,
    metadata: Vec<(String, String)>,
    closed: Option<bool>,
    active_since: Option<Timestamp>,
}

/// A position in a list of sessions.
///
/// As text it is a session ID after `id:`, or an event ID after `at:`. It stays valid when the
/// session at it is deleted.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionCursor {
    /// The position of a session by ID. The session need not exist.
    Id(SessionId),
    /// The position of a session by activity or by creation.
    At(EventId),
}

impl From<&SessionId> for SessionCursor {
    fn from(session: &SessionId) -> Self {
        Self::Id(session.clone())
    }
}

impl fmt::Display for SessionCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(session) => write!(f, "id:{session}"),
            Self::At(id) => write!(f, "at:{id}"),
        }
    }
}

impl FromStr for SessionCursor {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(session) = text.strip_prefix("id:") {
            session.parse().map(Self::Id)
        } else if let Some(id) = text.strip_prefix("at:") {
            id.parse().map(Self::At)
        } else {
            Err(Error::invalid(
                "cursor",
                "it begins with neither id: nor at:",
            ))
        }
    }
}

impl Default for SessionQuery {
    fn default() -> Self {
        Self::by_id()
    }
}

impl SessionQuery {
    /// All sessions, in the byte order of their IDs.
    pub fn by_id() -> Self {
        Self::new(SessionOrder::Id, Direction::Ascending)
    }

    /// All sessions, those with the newest event first.
    ///
    /// A session that gets an event while it is listed moves to the front, past the cursor. A walk
    /// [by ID](Self::by_id) loses none.
    pub fn by_activity() -> Self {
        Self::new(SessionOrder::Activity, Direction::Descending)
    }

    /// All sessions, those that were created last first.
    pub fn by_creation() -> Self {
        Self::new(SessionOrder::Creation, Direction::Descending)
    }

    fn new(order: SessionOrder, direction: Direction) -> Self {
        Self {
            order,
            direction,
            after: None,
            limit: None,
            filter: Filter::default(),
        }
    }

    /// Lists in the opposite order.
    pub fn reversed(mut self) -> Self {
        self.direction = match self.direction {
            Direction::Ascending => Direction::Descending,
            Direction::Descending => Direction::Ascending,
        };
        self
    }

    /// Lists only sessions that come after a position, in the order of the query.
    pub fn after(mut self, cursor: impl Into<SessionCursor>) -> Self {
        self.after = Some(cursor.into());
        self
    }

    /// The largest number of sessions. Default: 100. Maximum:
    /// [`page_events_max`](crate::Options::page_events_max).
    pub fn limit(mut self, sessions: usize) -> Self {
        self.limit = Some(sessions);
        self
    }

    /// Lists only sessions whose IDs begin with `prefix`.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.filter.prefix = Some(prefix.into());
        self
    }

    /// Lists only sessions whose metadata has this string at this name, at the top level. Up to 16
    /// such pairs may be asked for.
    pub fn metadata(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.filter.metadata.push((name.into(), value.into()));
        self
    }

    /// Lists only sessions that are closed.
    pub fn closed(mut self) -> Self {
        self.filter.closed = Some(true);
        self
    }

    /// Lists only sessions that are not closed.
    pub fn open(mut self) -> Self {
        self.filter.closed = Some(false);
        self
    }

    /// Lists only sessions that got an event, or were created, at this time or later.
    pub fn active_since(mut self, time: Timestamp) -> Self {
        self.filter.active_since = Some(time);
        self
    }

    pub(super) fn checked_limit(&self, options: &Options) -> Result<usize> {
        if self.filter.metadata.len() > METADATA_PAIRS_MAX {
            let why = format!("it asks for more than {METADATA_PAIRS_MAX} metadata pairs");
            return Err(Error::invalid("query", why));
        }
        let fits = match (&self.after, self.order) {
            (None, _) | (Some(SessionCursor::Id(_)), SessionOrder::Id) => true,
            (Some(SessionCursor::At(_)), order) => order != SessionOrder::Id,
            (Some(SessionCursor::Id(_)), _) => false,
        };
        if !fits {
            return Err(Error::invalid(
                "cursor",
                "it is of another order of sessions",
            ));
        }
        checked_limit(self.limit, options.limits.page_events_max)
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn order(&self) -> SessionOrder {
        self.order
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn direction(&self) -> Direction {
        self.direction
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn cursor(&self) -> Option<&SessionCursor> {
        self.after.as_ref()
    }

    #[cfg(feature = "postgres")]
    pub(crate) fn prefix_text(&self) -> &str {
        self.filter.prefix.as_deref().unwrap_or_default()
    }

    /// The prefix of the IDs to list, which bounds a walk by ID.
    pub(super) fn prefix_bytes(&self) -> &[u8] {
        self.filter.prefix.as_deref().unwrap_or_default().as_bytes()
    }

    pub(super) fn takes(&self, session: &SessionId, state: &SessionState) -> bool {
        let Filter {
            metadata,
            closed,
            active_since,
            ..
        } = &self.filter;
        let active_ms = i64::try_from(state.active_ms).unwrap_or(i64::MAX);
        state.is_there()
            && session.as_bytes().starts_with(self.prefix_bytes())
            && closed.is_none_or(|closed| closed == state.is_closed())
            && active_since.is_none_or(|since| active_ms >= since.as_millisecond())
            && (metadata.is_empty() || has_pairs(&state.metadata(), metadata))
    }
}

fn has_pairs(metadata: &Metadata, pairs: &[(String, String)]) -> bool {
    pairs.iter().all(|(name, value)| {
        let stored = metadata.get(name).and_then(serde_json::Value::as_str);
        stored == Some(value)
    })
}

/// A page of sessions.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SessionPage {
    /// The sessions, in the requested order.
    pub items: Vec<SessionInfo>,
    /// Whether there may be more. A filtered page looks at a bounded number of sessions and may
    /// hold fewer than asked for.
    pub has_more: bool,
    /// The position of the first session.
    #[serde(skip)]
    pub first: Option<SessionCursor>,
    /// The position up to which the page has looked.
    #[serde(skip)]
    pub last: Option<SessionCursor>,
    #[serde(skip)]
    pub(super) query: SessionQuery,
}

impl SessionPage {
    /// The query for the page after this one. `None` when there is no more.
    #[must_use]
    pub fn next_page(&self) -> Option<SessionQuery> {
        let last = self.last.clone().filter(|_| self.has_more)?;
        Some(self.query.clone().after(last))
    }
}
