//! The HTTP API: what each call accepts and answers, called on the router and on a server as a
//! process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits with the wall clock"
)]

mod append;
mod arbitrary;
mod connection;
mod direct;
mod document;
mod durable_streams;
#[path = "../../support/engine.rs"]
mod engine;
mod feed;
mod figures;
mod here;
mod hostile;
mod keys;
mod lifecycle;
mod limits;
mod list;
mod messages;
mod mounted;
#[allow(dead_code, reason = "the tests with clients use the rest")]
#[path = "../process/mod.rs"]
mod process;
mod removal;
#[allow(dead_code, reason = "the campaigns use the rest")]
#[path = "../../support/report.rs"]
mod report;
mod security;
mod server;
mod sessions;
mod stream;
mod support;
mod tls;
mod traces;
mod worker;
