//! The vocabulary: what goes into a log and comes out of it, how it is opened, and what can go
//! wrong. Plain values; nothing here reads, writes or waits.

mod batch;
mod bounded;
mod change;
mod error;
mod event;
mod ids;
mod lifecycle;
mod options;
mod retention;
mod session;
#[cfg(feature = "postgres")]
mod shard;
mod stats;
mod text;

pub(crate) use batch::{Turn, USER_MESSAGE, opens_turn};
pub(crate) use bounded::{read_list, read_text, read_text_if_any};
pub(crate) use change::{Lineage, METADATA_BYTES_MAX, Op, Piece, merge};
#[cfg(feature = "postgres")]
pub(crate) use error::in_one_line;
pub(crate) use error::{check_limit, may_pass};
pub(crate) use event::EventView;
pub(crate) use ids::{
    IdClock, Stamp, clock_skew, fresh_store_number, now_ms, time_text, timestamp,
};
#[cfg(feature = "http")]
pub(crate) use ids::{WallClock, system_clock};
pub(crate) use lifecycle::ForkPoint;
#[cfg(feature = "postgres")]
pub(crate) use options::SHARDS_MAX;
pub(crate) use options::{JOURNAL_FILE_BYTES_CEILING, Limits};
pub(crate) use session::FIRST_SEQ;
pub(crate) use stats::Counters;

pub use batch::{Batch, Expected, NewEvent};
pub use change::{Change, Metadata, SessionChange, SessionPatch};
pub use error::{CursorProblem, Error, Limit, Result};
pub use event::{Ack, Event, EventType};
pub use ids::{EventId, MessageId, Seq};
pub use lifecycle::{
    BackupReport, CompactProgress, Compacted, Delete, Erasure, Fork, NewSession, ParentInfo,
    Producer, Removed, SessionInfo,
};
#[cfg(feature = "postgres")]
pub use options::Durability;
pub use options::{Compression, Options};
pub use retention::{Retention, RetentionPlan};
pub use session::{Cursor, Head, SessionId};
#[cfg(feature = "postgres")]
pub use shard::{Moved, Shard};
pub use stats::{Recovery, Refusal, Space, Stats, Tier};
