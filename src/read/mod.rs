//! The read path: pages, single events, streams and lists of sessions.
//!
//! What it reads comes from an engine, through [`Records`]. A reader never waits for a writer.

mod ahead;
mod cursor;
mod directory;
mod feed;
mod item;
mod listing;
mod local;
mod measure;
mod page;
mod query;
mod records;
mod scan;
mod store;
mod stream;
mod walk;

pub(crate) use local::Local;
pub(crate) use scan::Visitor;
pub(crate) use store::{Store, shared_with};
#[cfg(feature = "postgres")]
pub(crate) use {
    listing::PageBuilder,
    query::{Direction, SessionOrder},
    records::{Follower, Piece, RecordSlice, RecordVisitor, Records, fault_in_memory},
};

pub use item::StreamItem;
pub use page::{Page, PageRequest};
pub use query::{SessionCursor, SessionPage, SessionQuery};
pub use stream::{AsyncEventStream, EventStream, RecvTimeout, StartAt};
