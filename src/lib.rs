#![doc = include_str!("../README.md")]
//!
//! # Where to go on
//!
//! * Writing: [`SessionLog::append`], [`Batch`], [`NewEvent`], [`UserMessage`]; retries and
//!   expectations: [`Batch::idempotency_key`], [`Expected`]; what may go wrong: [`Error`].
//! * Reading: [`SessionLog::list`] and [`Page`], [`SessionLog::stream`] and [`EventStream`],
//!   [`SessionLog::feed`] for all sessions.
//! * Turns: [`SessionLog::message`] and [`Message`], with the rules of the fold.
//! * Running it: [`Options`], [`Stats`], [`SessionLog::close`].
//!
//! # What it costs to keep open
//!
//! Five threads, which sleep while nothing happens, and those of the index. Memory: up to
//! [`recent_bytes_max`](Options::recent_bytes_max) for what is not yet in a segment,
//! [`cache_bytes_max`](Options::cache_bytes_max) for what was read,
//! [`index_cache_bytes_max`](Options::index_cache_bytes_max) for the index,
//! [`head_cache_bytes_max`](Options::head_cache_bytes_max) for where idle sessions stand, which
//! otherwise cost none, 16 MiB for turns without an end, about 200 bytes a segment, and 16 KiB at
//! the most for each thread that appends. A stream costs a few hundred bytes and no thread, plus
//! what it has read ahead: a megabyte of events at the most, with the blocks or batches they lie
//! in.
//!
//! # What blocks
//!
//! [`append`](SessionLog::append) blocks for its barrier. Everything else returns as soon as it has
//! read what it needs, from memory or with a few reads from the disk; no reader waits for a writer
//! and no writer for a reader. Only an iterator over a stream waits for what is not there yet.
//!
#![doc = include_str!("../docs/performance.md")]

// What campaigns from inside and from outside share names the crate as those outside do.
#[cfg(test)]
extern crate self as sessionlog;

mod codec;
mod disk;
mod engine;
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
#[cfg(any(test, fuzzing))]
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
#[cfg(fuzzing)]
pub use testing::fuzz;
pub use turn::{ContentBlock, Message, MessageStatus, UserMessage};
