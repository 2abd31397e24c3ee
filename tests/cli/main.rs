//! The command `sessionlog`, run as a program.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and waits with the wall clock"
)]

mod serve;
