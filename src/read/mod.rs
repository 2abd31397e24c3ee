//! The read path: pages, single events, streams and lists of sessions, from memory and from the
//! segments. A reader never waits for a writer.

mod feed;
mod store;
mod stream;

#[cfg(feature = "http")]
pub(crate) use feed::NewestSessions;
#[cfg(feature = "http")]
pub(crate) use store::PAGE_EVENTS_DEFAULT;
pub(crate) use store::{Store, Visitor};

pub use feed::After;
pub use store::{Cursor, EventPage, Page};
pub use stream::{AsyncEventStream, EventStream, From, StreamItem};
