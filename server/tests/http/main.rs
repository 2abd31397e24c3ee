//! The HTTP contract: what each call takes and answers, called on the router, and a server as a
//! process of its own.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, says why it is skipped, and waits with the wall clock"
)]

mod append;
mod arbitrary;
mod campaign;
mod document;
mod figures;
mod hostile;
mod in_process;
mod list;
mod messages;
mod odd;
mod page;
mod process;
mod proxy;
mod security;
mod server;
mod stream;
mod support;
