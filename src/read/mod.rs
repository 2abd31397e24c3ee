//! The read path: pages, single events, streams and lists of sessions.
//!
//! It reads from memory and from the segments. A reader never waits for a writer.

mod feed;
mod page;
mod scan;
mod store;
mod stream;

#[cfg(feature = "http")]
pub(crate) use feed::NewestSessions;
#[cfg(feature = "http")]
pub(crate) use page::PAGE_EVENTS_DEFAULT;
pub(crate) use scan::Visitor;
pub(crate) use store::Store;

pub use feed::SessionQuery;
pub use page::{Cursor, Page, PageRequest};
pub use stream::{AsyncEventStream, EventStream, RecvTimeout, StartAt, StreamItem};
