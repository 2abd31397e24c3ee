//! Turns: what a user sent, and the message that the events of its turn add up to. The typed layer
//! over events, whose data the rest of the log never looks into.

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
