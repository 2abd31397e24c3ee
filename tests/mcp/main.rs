//! The stores for MCP servers, with the libraries that they are for.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod killed;
mod rmcp_3;
mod support;
mod tower_0_25;
