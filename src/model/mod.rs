//! The vocabulary: what goes into a log and comes out of it, how it is opened, and what can go
//! wrong. Plain values; nothing here reads, writes or waits.

mod batch;
mod error;
mod event;
mod ids;
mod options;
mod session;
mod stats;
mod text;

pub(crate) use batch::{Turn, USER_MESSAGE, opens_turn};
pub(crate) use error::{check_limit, may_pass};
pub(crate) use event::EventView;
pub(crate) use ids::{
    IdClock, Stamp, clock_skew, fresh_store_number, now_ms, time_text, timestamp,
};
pub(crate) use options::JOURNAL_FILE_BYTES_CEILING;
pub(crate) use session::FIRST_SEQ;
pub(crate) use stats::Counters;

pub use batch::{Batch, Expected, NewEvent};
pub use error::{CursorProblem, Error, Limit, Result};
pub use event::{Ack, Event, EventType};
pub use ids::{EventId, MessageId, Seq};
pub use options::Options;
pub use session::{Head, SessionId};
pub use stats::{Recovery, Refusal, Stats};
