//! Turns: a user message, and the one message that its turn's events fold into.
//!
//! This is a typed layer over events. The rest of the log never interprets their data.

mod fold;
mod json_text;
pub(crate) mod lenient;
mod message;
mod read;
mod tool_calls;
mod user_message;

pub(crate) use fold::Fold;
#[cfg(feature = "http")]
pub(crate) use fold::{TurnText, may_end_turn};
#[cfg(feature = "http")]
pub(crate) use json_text::{CheckedBlock, CheckedMap, JsonText, Sent, each_item};
#[cfg(feature = "http")]
pub(crate) use lenient::LEVELS_MAX;
pub(crate) use read::TurnReader;

pub use message::{Message, MessageStatus};
pub use user_message::{ContentBlock, UserMessage};
