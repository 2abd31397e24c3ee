//! A durable, ordered event log for agent sessions, embedded in the server that runs them.
//!
//! A server appends a batch of events to a session, and the call returns when the batch is on
//! stable storage. It lists a session page by page, streams it live without a gap, and reads a turn
//! back as one message: a user's message together with the events that answer it.
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
//! 6. **Safe retries.** An idempotency key lands once.
//! 7. **No silent loss.** Damage is healed or is an error. After a failed write the log accepts no
//!    append until it is reopened.
//!
//! # Where to go on
//!
//! * Writing: [`SessionLog::append`], [`Batch`], [`NewEvent`], [`UserMessage`]. Retries and
//!   conditions: [`Batch::idempotency_key`], [`Expected`]. Failures: [`Error`].
//! * Reading: [`SessionLog::list`] with [`PageRequest`] and [`Page`], [`SessionLog::stream`] with
//!   [`StartAt`] and [`EventStream`], [`SessionLog::feed`] for all sessions.
//! * Turns: [`SessionLog::message`] and [`Message`].
//! * Operation: [`Options`], [`Stats`], [`SessionLog::health`], [`SessionLog::close`].
//! * HTTP: the module `http`, with the feature of that name.
//!
//! The folder `docs` of the package has a guide, the guarantees in full, the design, costs and
//! tuning, and how all of it is tested.
//!
//! # What it costs to keep open
//!
//! Six threads, asleep while nothing happens, and those of the index. Memory is bounded by
//! [`Options`]: [`recent_bytes_max`](Options::recent_bytes_max) for events that are in no segment,
//! [`cache_bytes_max`](Options::cache_bytes_max) for blocks,
//! [`index_cache_bytes_max`](Options::index_cache_bytes_max) for the index, and
//! [`head_cache_bytes_max`](Options::head_cache_bytes_max) for the heads of idle sessions. Each
//! segment takes about 200 bytes. A stream takes a few hundred bytes and what it has read ahead.
//!
//! # What blocks
//!
//! [`append`](SessionLog::append) blocks for its barrier, and [`close`](SessionLog::close) for the
//! appends in flight. Other calls return when they have read what they need, from memory or from
//! the disk. No reader waits for a writer, and no writer for a reader. Only an iterator over a
//! stream waits for new events.

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

// What campaigns from inside and from outside share names the crate as those outside do.
#[cfg(test)]
extern crate self as sessionlog;

mod codec;
mod disk;
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
mod model;
mod read;
mod recent;
mod segment;
mod sync;
#[cfg(test)]
mod testing;
mod turn;
mod write;

pub use log::SessionLog;
pub use model::{
    Ack, Batch, CursorProblem, Error, Event, EventId, EventType, Expected, Head, Limit, MessageId,
    NewEvent, Options, Recovery, Refusal, Result, Seq, SessionId, Stats,
};
pub use read::{
    AsyncEventStream, Cursor, EventStream, Page, PageRequest, RecvTimeout, SessionQuery, StartAt,
    StreamItem,
};
pub use turn::{ContentBlock, Message, MessageStatus, UserMessage};
