//! Stores for MCP servers, so that streams and sessions outlive the server. Feature `mcp`.
//!
//! A client of an MCP server names the last event that it has seen, and the server sends what came
//! after it. A [`Store`] keeps these events, and the sessions of clients, in a log. So this works
//! after a crash of the server too.
//!
//! | feature | library | traits of [`Store`] |
//! |---|---|---|
//! | `mcp-rmcp-3` | `rmcp` 3 | `EventStore`, `SessionStore` |
//! | `mcp-tower-0-25` | `tower-mcp` 0.25 | `EventStore`, `SessionStore` |
//!
//! The feature `mcp` has both. A version of a library that breaks its traits gets a feature of its
//! own here.
//!
//! ```
//! # #[cfg(feature = "mcp-rmcp-3")]
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let dir = tempfile::tempdir()?;
//! use std::sync::Arc;
//!
//! use rmcp::transport::streamable_http_server::StreamableHttpServerConfig;
//! use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
//! use sessionlog::{SessionLog, mcp};
//!
//! let log = SessionLog::open(dir.path())?;
//! let store = Arc::new(mcp::Store::new(log));
//! let manager = LocalSessionManager::default().with_event_store(store.clone());
//! let mut config = StreamableHttpServerConfig::default();
//! config.session_store = Some(store);
//! # drop((manager, config));
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "mcp-rmcp-3"))]
//! # fn main() {}
//! ```
//!
//! # What is stored
//!
//! Each stream and each session of a client is a session of the log:
//!
//! | session of the log | its events |
//! |---|---|
//! | `mcp/rmcp/streams/{stream}` | `mcp.event`, and `mcp.answer` for a response or an error: `{"message", "retry_ms"}` |
//! | `mcp/rmcp/sessions/{session}` | `mcp.session`: the parameters of `initialize` |
//! | `mcp/tower/events/{session}` | `mcp.event`: an `EventRecord` |
//! | `mcp/tower/sessions/{session}` | `mcp.session`: a `SessionRecord` |
//!
//! They are sessions like any other: the HTTP API lists and streams them, and a backup has them.
//! Each has a [retention](crate::SessionPatch::retention) of its own, so the log removes old ones
//! by itself.
//!
//! # What is guaranteed
//!
//! - An event is durable before its ID is given to a client, and so is a session.
//! - A replay yields every later event of the stream, in order, once, and no event of another
//!   stream. With `rmcp` it then goes on with new events, until the answer to the request.
//! - An event ID of `rmcp` names its stream. It ends with a tag that is made of the stream's ID, so
//!   that nobody can guess the ID of an event of another client.

#[cfg(feature = "mcp-rmcp-3")]
mod handed;
#[cfg(feature = "mcp-rmcp-3")]
mod rmcp_3;
mod store;
#[cfg(feature = "mcp-tower-0-25")]
mod tower_0_25;

#[cfg(feature = "mcp-rmcp-3")]
pub use rmcp_3::Unanswered;
pub use store::Store;
