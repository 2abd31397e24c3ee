//! The read path: pages, single events, streams and lists of sessions.
//!
//! It reads from memory and from the segments. A reader never waits for a writer.

mod cursor;
mod directory;
mod feed;
mod item;
mod measure;
mod page;
mod query;
mod scan;
mod store;
mod stream;

pub(crate) use scan::Visitor;
pub(crate) use store::{Store, shared_with};

pub use item::StreamItem;
pub use page::{Page, PageRequest};
pub use query::{SessionCursor, SessionPage, SessionQuery};
pub use stream::{AsyncEventStream, EventStream, RecvTimeout, StartAt};
