//! The write path: a batch becomes a request, requests share a commit group, and each caller gets
//! its answer when the group is on stable storage.

mod commit;
mod section;
mod ticket;

pub(crate) use commit::{Appended, Commit, Submitted};
pub(crate) use section::{IN_FLIGHT_MAX, Request, SealedKey};
pub(crate) use ticket::{Answer, Landed, Ticket};
