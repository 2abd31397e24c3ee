//! What calls and the background work share.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout_at;

use crate::backend::{Call, passing_over, proposal};
use crate::codec::StoreId;
use crate::model::{Counters, Error, Result};
use crate::postgres::connect::deadline_after;
use crate::postgres::lane::{Request, Sender, Signal, own_time};
use crate::postgres::pool::Ask;
use crate::postgres::reads::{ShardRow, Shared};
use crate::sync::{Gate, Mutex};
use crate::turn::TurnReader;
use crate::write::{Answer, Joined, Proposal, Ticket};

/// The groups that may wait for their turn.
const GROUPS_WAITING: usize = 4;

/// The bytes that one permit stands for.
const PERMIT_BYTES: usize = 1024;

/// More than memory has room for, and fewer than a semaphore can have.
const PERMITS_MAX: u32 = u32::MAX >> 3;

/// An open log.
pub(super) struct Core {
    pub turns: TurnReader,
    pub tables: Shared,
    pub counters: Arc<Counters>,
    pub store: StoreId,
    /// What leads to each lane. There are none once the log is closed.
    pub requests: Mutex<Vec<Sender>>,
    pub signal: Arc<Signal>,
    /// The room for each lane, so that one that is held up takes none from the others.
    pub rooms: Vec<Room>,
}

/// The room for proposals that wait for their turn. A proposal that finds none waits outside, and
/// one whose task is dropped there leaves nothing behind.
pub(super) struct Room {
    permits: Arc<Semaphore>,
    /// How many there are.
    of_all: u32,
}

impl Room {
    /// Returns the rooms for so many lanes. Each has room for a group, and all of them for some
    /// more.
    pub(super) fn of_lanes(lanes: usize, group_bytes_max: usize) -> Vec<Self> {
        let groups = (GROUPS_WAITING / lanes).max(1);
        let bytes = group_bytes_max.saturating_mul(groups);
        (0..lanes).map(|_| Self::new(bytes)).collect()
    }

    fn new(bytes: usize) -> Self {
        let of_all = permits(bytes).min(PERMITS_MAX);
        Self {
            permits: Arc::new(Semaphore::new(of_all as usize)),
            of_all,
        }
    }

    /// Waits for room for some bytes. What is larger than all of it waits for all of it.
    async fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit> {
        let permits = permits(bytes).min(self.of_all);
        let taken = Arc::clone(&self.permits).acquire_many_owned(permits);
        taken.await.map_err(|_closed| Error::Closed)
    }
}

/// Returns the permits for some bytes.
fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes.div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX)
}

impl Core {
    /// Gives a proposal to its lane, once there is room for it.
    pub(super) async fn submit(&self, proposal: Proposal, ticket: &Arc<Ticket>) -> Result<Joined> {
        let store = self.turns.store();
        store.check_open()?;
        let options = &store.options;
        let deadline = deadline_after(options.stall_wait);
        let databases = &self.tables.0.databases;
        let lane = match *databases.first().site.locks(&proposal) {
            [shard] => usize::try_from(shard).unwrap_or(usize::MAX),
            // The last one, which takes what needs several locks.
            _ => databases.shards() as usize,
        };
        let room = self.rooms.get(lane).ok_or(Error::Closed)?;
        let waiting = {
            // For the timer, which is then one of any task.
            let _entered = self.tables.0.runtime.handle.enter();
            timeout_at(deadline, room.take(proposal.batch.stored_bytes_max()))
        };
        let room = waiting.await.map_err(|_elapsed| Error::Stalled {
            waited: options.stall_wait,
            source: None,
        })??;
        let gate: Arc<Gate> = Arc::default();
        let joined = Joined {
            opening: gate.next(),
            gate: Arc::clone(&gate),
        };
        let request = Request {
            proposal,
            created_ms: own_time(options),
            deadline,
            answer: Some(Answer::owed_to(ticket)),
            gate,
            _room: room,
        };
        let requests = self.requests.lock();
        let requests = requests.get(lane).ok_or(Error::Closed)?;
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
            let databases = &self.tables.0.databases;
            let joined = databases.block_on(self.submit(proposal, &ticket))?;
            submitted.push((ticket, joined));
        }
        for (ticket, joined) in submitted {
            passing_over(ticket.wait(&joined))?;
        }
        Ok(())
    }

    pub(super) fn shard(&self) -> Result<ShardRow> {
        self.tables.0.shard()
    }

    /// Returns the bytes of the tables.
    pub(super) fn size(&self) -> Result<u64> {
        let mut bytes = 0;
        for database in self.tables.0.databases.all() {
            let rows = database.pool.rows(Ask::Size, &[])?;
            let size = rows.first().map(|row| row.get::<_, i64>(0));
            bytes += size.unwrap_or_default().unsigned_abs();
        }
        Ok(bytes)
    }
}
