//! The items of streams and of the feed.

use crate::model::{Event, SessionChange};

/// An item of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamItem {
    /// The next event.
    Event(Event),
    /// The reader has caught up: every durable event has been yielded.
    ///
    /// This item comes once each time the reader catches up.
    CaughtUp,
    /// A session has changed otherwise. Only the feed of all sessions yields this.
    Change(Box<SessionChange>),
    /// The session is closed, and every event has been yielded. The stream ends.
    Closed,
    /// The session was deleted. The stream ends.
    Deleted,
}

impl StreamItem {
    /// Returns the event. `None` for any other item.
    #[must_use]
    pub fn into_event(self) -> Option<Event> {
        match self {
            StreamItem::Event(event) => Some(event),
            _ => None,
        }
    }
}
