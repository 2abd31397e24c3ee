//! How long sessions and their events are kept.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::model::error::{Error, Result};

/// Which sessions and events are removed by themselves. Default: none.
///
/// It is a limit for every session of a log, as an [option](crate::Options::retention), or for one
/// session, in a [`SessionPatch`](crate::SessionPatch::retention). A session on
/// [hold](crate::SessionPatch::hold) is exempt.
///
/// ```
/// use std::time::Duration;
/// use sessionlog::Retention;
///
/// let days = |days: u64| Duration::from_secs(days * 24 * 60 * 60);
/// let retention = Retention::new().idle(days(90)).max_age(days(365));
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[must_use = "it does nothing until it is an option or part of a patch"]
#[non_exhaustive]
pub struct Retention {
    /// A session that got no event for so long is deleted.
    pub idle: Option<Duration>,
    /// Older events are trimmed.
    pub max_age: Option<Duration>,
    /// The events that a session keeps at most. Earlier ones are trimmed.
    pub max_events: Option<u64>,
    /// The bytes that a session keeps at most, as [`SessionInfo::bytes`](crate::SessionInfo::bytes)
    /// counts them. Earlier events are trimmed. The newest event is kept in any case.
    pub max_bytes: Option<u64>,
}

impl Retention {
    /// Keeps everything.
    pub fn new() -> Self {
        Self::default()
    }

    /// Deletes a session that got no event for so long.
    pub fn idle(mut self, time: Duration) -> Self {
        self.idle = Some(time);
        self
    }

    /// Trims events that are older.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = Some(age);
        self
    }

    /// Trims a session to its newest events.
    pub fn max_events(mut self, events: u64) -> Self {
        self.max_events = Some(events);
        self
    }

    /// Trims a session to its newest events that take so many bytes.
    pub fn max_bytes(mut self, bytes: u64) -> Self {
        self.max_bytes = Some(bytes);
        self
    }

    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    pub(crate) fn check(&self) -> Result<()> {
        let times = [self.idle, self.max_age];
        let counts = [self.max_events, self.max_bytes];
        if times.contains(&Some(Duration::ZERO)) || counts.contains(&Some(0)) {
            return Err(Error::invalid("retention", "a limit of it is 0"));
        }
        Ok(())
    }
}

/// What a [`Retention`] would remove at this moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RetentionPlan {
    /// Sessions that would be deleted.
    pub sessions_deleted: u64,
    /// Sessions that would be trimmed.
    pub sessions_trimmed: u64,
    /// Events that would be removed.
    pub events: u64,
    /// Bytes of these events. Those of trimmed events are estimated by their number.
    pub bytes: u64,
}
