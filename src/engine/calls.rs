//! How proposals get to the commit group.

use std::sync::Arc;

use crate::backend::{Call, passing_over, proposal};
use crate::engine::Engine;
use crate::model::Result;
use crate::sync::Deadline;
use crate::write::{Proposal, Request, Submitted, Ticket};

impl Engine {
    /// Submits calls together and waits until all are decided. A call that is refused, or whose
    /// session has changed meanwhile, is passed over.
    ///
    /// # Errors
    ///
    /// The first error that is none of a single session: the log takes no more batches.
    pub(crate) fn call_all(&self, calls: Vec<Call>) -> Result<()> {
        let commit = &self.writer()?.commit;
        let mut last = None;
        for mut call in calls {
            let ticket: Arc<Ticket> = Arc::default();
            let made = proposal(&self.turns, &mut call);
            let made = made.and_then(|proposal| self.request(proposal, &ticket));
            let Some(mut request) = passing_over(made)? else {
                continue;
            };
            let joined = loop {
                match commit.submit(request)? {
                    Submitted::Joined(joined) => break joined,
                    Submitted::NoRoom(full, room) => {
                        room.wait(Deadline::NEVER);
                        request = *full;
                    }
                }
            };
            last = Some((ticket, joined));
        }
        // Groups are answered in the order in which requests joined.
        match last {
            Some((ticket, joined)) => passing_over(ticket.wait(&joined)).map(drop),
            None => Ok(()),
        }
    }

    /// Loads what the commit section decides a proposal by.
    pub(crate) fn request(&self, proposal: Proposal, ticket: &Arc<Ticket>) -> Result<Request> {
        let shared = &self.writer()?.shared;
        self.store.check_open()?;
        Request::new(shared, &self.store.options, proposal, ticket)
    }
}
