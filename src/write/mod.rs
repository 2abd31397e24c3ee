//! The write path: from a batch to an answer on stable storage.
//!
//! A batch becomes a request, requests share a commit group, and each caller gets its answer when
//! the group is durable.

mod commit;
mod decide;
mod proposal;
mod request;
mod section;
mod shared;
mod signal;
mod state;
mod ticket;

pub(crate) use commit::{Commit, Submitted};

#[cfg(feature = "postgres")]
pub(crate) use decide::{Decision, Known, decide};
pub(crate) use proposal::{Parent, Proposal, Scanned};
pub(crate) use request::Request;
pub(crate) use section::IN_FLIGHT_MAX;
#[cfg(all(test, shuttle))]
pub(crate) use section::lands_again;
pub(crate) use shared::Shared;
pub(crate) use signal::{RetainOrders, SealSignal};
pub(crate) use state::LogState;
#[cfg(feature = "postgres")]
pub(crate) use ticket::{Answer, Joined};
pub(crate) use ticket::{Landed, Outcome, Ticket};
