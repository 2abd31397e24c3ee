//! The promises of the log, each as a test named after it, through the public API alone.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits with the wall clock"
)]

mod append;
mod backup;
mod beside;
mod concurrency;
mod damage;
#[path = "../support/engine.rs"]
mod engine;
mod erasure;
#[cfg(feature = "postgres")]
mod failover;
mod feed;
mod idempotency;
mod index;
mod lifecycle;
mod limits;
mod list;
mod message;
mod model;
mod old_format;
mod options;
// Elsewhere a log is not protected from its folder being moved.
#[cfg(all(unix, not(sessionlog_not_unix)))]
mod place;
#[cfg(feature = "postgres")]
mod postgres;
mod reopen;
mod repair;
#[allow(dead_code, reason = "campaigns use the rest")]
#[path = "../support/report.rs"]
mod report;
mod retention;
mod sessions;
mod stats;
mod stream;
mod support;
mod tidy;
mod transfer;
mod values;
