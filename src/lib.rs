//! A durable, ordered event log for agent sessions, embedded in the server that runs them.
//!
//! A server appends a batch of events to a session, and the call returns when the batch is on
//! stable storage. It lists a session page by page, and streams it live without a gap. It reads a
//! turn back as one message: a user's message together with the events that answer it.
//!
//! ```
//! use sessionlog::{Batch, NewEvent, SessionId, SessionLog, StartAt};
//!
//! # let dir = tempfile::tempdir()?;
//! # let path = dir.path();
//! let log = SessionLog::open(path)?;
//! let session = SessionId::new("sess_123")?;
//!
//! let ack = log.append(&session, Batch::new().user_message("Hello").idempotency_key("k1"))?;
//! log.append(&session, NewEvent::new("note", r#"{"text":"seen"}"#))?;
//! assert_eq!((ack.first, log.head(&session)?.last), (1, 2));
//!
//! for event in log.stream(&session, StartAt::after(ack.last))?.until_tail().events() {
//!     println!("{}", event?.event_type);
//! }
//! log.close()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is guaranteed
//!
//! 1. **Durable on return.** An acknowledged batch survives a power cut. No option weakens this.
//! 2. **All or nothing.** A batch is wholly present or wholly absent.
//! 3. **One order.** Seqs are dense in a session. Event IDs rise in commit order.
//! 4. **Readers see durable events only.**
//! 5. **Gapless streams**, from stored events to live ones, across reconnects and restarts.
//! 6. **Safe retries.** An idempotency key lands once. The keys of trimmed or deleted batches are
//!    forgotten.
//! 7. **No silent loss.** Damage is healed or is an error. After a failed write the log accepts no
//!    append until it is reopened.
//! 8. **Gone is gone.** No reader is shown what was deleted, trimmed or redacted, from the moment
//!    that the call returns.
//! 9. **Erased on a deadline.** Removed bytes leave every file of the log within
//!    [`erase_within`](Options::erase_within) while it is open, and at once on
//!    [`compact`](SessionLog::compact). Session IDs, times and reasons of deletions stay in the
//!    feed, so that a removal can be accounted for. So put no personal data into session IDs.
//! 10. **Space comes back** in the background, as segments are written again.
//! 11. **Old logs open.** A log of 0.1 opens, and is converted in the background.
//!
//! # Where to go on
//!
//! * Writing: [`SessionLog::append`], [`Batch`], [`NewEvent`], [`UserMessage`]. Retries, conditions
//!   and fencing: [`Batch::idempotency_key`], [`Expected`], [`Producer`]. Failures: [`Error`].
//! * Reading: [`SessionLog::list`] with [`PageRequest`] and [`Page`], [`SessionLog::stream`] with
//!   [`StartAt`] and [`EventStream`], [`SessionLog::feed`] for all sessions.
//! * Turns: [`SessionLog::message`] and [`Message`].
//! * Sessions: [`SessionLog::create`], [`SessionLog::set_metadata`], [`SessionLog::close_session`],
//!   [`SessionLog::fork`], and [`SessionLog::sessions`] with [`SessionQuery`].
//! * Removing: [`SessionLog::trim`], [`SessionLog::redact`], [`SessionLog::delete`],
//!   [`SessionLog::compact`], [`SessionLog::erasure`].
//! * Operation: [`Options`], [`Stats`], [`SessionLog::health`], [`SessionLog::close`].
//! * Damage: [`repair`]. A log as text: [`transfer`].
//! * HTTP: the module `http`, with the feature of that name. The Durable Streams protocol: the
//!   module `durable_streams`, with its feature. Stores for MCP servers: the module `mcp`, with
//!   the feature of that name.
//!
//! The folder `docs` of the package has a guide, how to build on the log and what is stable, the
//! guarantees in full, the design, costs and tuning, and how all of it is tested.
//!
//! # What it costs to keep open
//!
//! Six threads, and those of the index database: two commit groups, and one each prepares journal
//! files, seals, indexes and merges. They sleep while nothing happens. The one that merges looks
//! every ten seconds whether something has to be erased.
//!
//! Memory is bounded by [`Options`]:
//!
//! * [`recent_bytes_max`](Options::recent_bytes_max) for events that are in no segment,
//! * [`cache_bytes_max`](Options::cache_bytes_max) for blocks,
//! * [`index_cache_bytes_max`](Options::index_cache_bytes_max) for the index,
//! * [`head_cache_bytes_max`](Options::head_cache_bytes_max) for the states of idle sessions.
//!
//! Each segment takes about 200 bytes. A stream takes a few hundred bytes and what it has read
//! ahead. While a segment is written or merged, its tables are in memory.
//!
//! # What blocks
//!
//! [`append`](SessionLog::append) and the calls that change a session block for their barrier, and
//! [`close`](SessionLog::close) for the appends in flight. [`compact`](SessionLog::compact) blocks
//! until everything is erased. Other calls return when they have read what they need, from memory
//! or from the disk. No reader waits for a writer, and no writer for a reader. Only an iterator
//! over a stream waits for new events.

// The examples in these texts are tested as those of the crate are.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
struct Guide;
#[cfg(all(doctest, feature = "http"))]
#[doc = include_str!("../docs/http.md")]
struct Http;
#[cfg(all(doctest, feature = "durable-streams"))]
#[doc = include_str!("../docs/durable-streams.md")]
struct DurableStreams;
#[cfg(doctest)]
#[doc = include_str!("../docs/build-on-it.md")]
struct BuildOnIt;
#[cfg(all(doctest, feature = "mcp"))]
#[doc = include_str!("../docs/mcp.md")]
struct Mcp;

// What campaigns from inside and from outside share names the crate as those outside do.
#[cfg(test)]
extern crate self as sessionlog;

mod backend;
mod codec;
mod disk;
#[cfg(feature = "durable-streams")]
pub mod durable_streams;
mod engine;
#[cfg(fuzzing)]
#[path = "testing/fuzz.rs"]
pub mod fuzz;
#[cfg(feature = "http")]
pub mod http;
mod index;
mod journal;
mod log;
mod maintain;
mod manifest;
#[cfg(any(feature = "mcp-rmcp-3", feature = "mcp-tower-0-25"))]
pub mod mcp;
mod model;
#[cfg(feature = "postgres")]
mod postgres;
mod read;
mod recent;
pub mod repair;
mod segment;
mod sync;
#[cfg(test)]
mod testing;
pub mod transfer;
mod turn;
mod write;

pub use log::SessionLog;
pub use model::{
    Ack, BackupReport, Batch, Change, CompactProgress, Compacted, Compression, Cursor,
    CursorProblem, Delete, Erasure, Error, Event, EventId, EventType, Expected, Fork, Head, Limit,
    MessageId, Metadata, NewEvent, NewSession, Options, ParentInfo, Producer, Recovery, Refusal,
    Removed, Result, Retention, RetentionPlan, Seq, SessionChange, SessionId, SessionInfo,
    SessionPatch, Space, Stats, Tier,
};
#[cfg(feature = "postgres")]
pub use model::{Durability, Moved, Shard};
pub use read::{
    AsyncEventStream, EventStream, Page, PageRequest, RecvTimeout, SessionCursor, SessionPage,
    SessionQuery, StartAt, StreamItem,
};
pub use turn::{ContentBlock, Message, MessageStatus, UserMessage};
