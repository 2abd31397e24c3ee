//! The command `sessionlog`, run as a program, on folders in every state and on a server.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits with the wall clock"
)]

mod append;
mod conditions;
mod copies;
mod damage;
#[cfg(target_os = "linux")]
mod full_disk;
#[path = "../support/further.rs"]
mod further;
mod output;
mod place;
mod postgres;
mod reading;
mod repair;
mod serve;
mod server;
mod support;
mod tail;
mod transfer;
