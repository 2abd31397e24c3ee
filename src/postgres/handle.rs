//! What calls and the background work share.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::backend::{Call, passing_over, proposal};
use crate::codec::StoreId;
use crate::model::{Counters, Error, Result};
use crate::postgres::lane::{Request, Signal};
use crate::postgres::pool::Ask;
use crate::postgres::reads::{ShardRow, Shared};
use crate::sync::{Gate, Mutex};
use crate::turn::TurnReader;
use crate::write::{Answer, Joined, Proposal, Ticket};

/// An open log.
pub(super) struct Core {
    pub turns: TurnReader,
    pub tables: Shared,
    pub counters: Arc<Counters>,
    pub store: StoreId,
    pub requests: Mutex<Option<mpsc::UnboundedSender<Request>>>,
    pub signal: Arc<Signal>,
}

impl Core {
    /// Gives a proposal to the lane.
    pub(super) fn submit(&self, proposal: Proposal, ticket: &Arc<Ticket>) -> Result<Joined> {
        let store = self.turns.store();
        store.check_open()?;
        let gate: Arc<Gate> = Arc::default();
        let joined = Joined {
            opening: gate.next(),
            gate: Arc::clone(&gate),
        };
        let request = {
            let _entered = self.tables.0.runtime.handle.enter();
            Request::new(proposal, &store.options, Answer::owed_to(ticket), &gate)
        };
        let requests = self.requests.lock();
        let requests = requests.as_ref().ok_or(Error::Closed)?;
        // The lane ends only after the last sender. One that panicked has answered with an error.
        drop(requests.send(request));
        Ok(joined)
    }

    /// Submits calls together and waits until all are decided. A call that is refused, or whose
    /// session has changed meanwhile, is passed over.
    pub(super) fn call_all(&self, calls: Vec<Call>) -> Result<()> {
        let mut submitted = Vec::with_capacity(calls.len());
        for mut call in calls {
            let Some(proposal) = passing_over(proposal(&self.turns, &mut call))? else {
                continue;
            };
            let ticket: Arc<Ticket> = Arc::default();
            let joined = self.submit(proposal, &ticket)?;
            submitted.push((ticket, joined));
        }
        for (ticket, joined) in submitted {
            passing_over(ticket.wait(&joined))?;
        }
        Ok(())
    }

    pub(super) fn shard(&self) -> Result<Option<ShardRow>> {
        self.tables.0.shard()
    }

    /// Returns the bytes of the tables.
    pub(super) fn size(&self) -> Result<u64> {
        let rows = self.tables.0.pool.rows(Ask::Size, &[])?;
        let size = rows.first().map(|row| row.get::<_, i64>(0));
        Ok(size.unwrap_or_default().unsigned_abs())
    }
}
