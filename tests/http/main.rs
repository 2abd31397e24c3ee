//! The HTTP contract: what each call takes and answers, called on the router, and a server as a process of its own.

mod append;
mod arbitrary;
mod document;
mod list;
mod messages;
mod security;
mod server;
mod stream;
mod support;
