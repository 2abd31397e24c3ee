//! The shards of a log: which of them a session is in, what a group locks, and how the feed over
//! all of them is closed.
//!
//! A log has one shard or several, and the number is fixed when its tables are made. A session is
//! in the shard that the hash of its name says. Each shard is a sequencer of its own: the lock on
//! its row makes the order of its commits. So several commit at the same time, also those of one
//! server, and one that is held up holds up its own sessions alone.
//!
//! Invariants:
//! * *A record is decided under the locks of all that it rests on.* That is the shard of its
//!   session and, for a fork, those of its parent and of each session that it shares events with.
//!   Erasing takes the lock of the session that is erased from. So no fork shares what is going.
//!   Several locks are taken in the order of shards, and what closes shards waits for none, so
//!   nobody waits in a circle.
//! * *IDs rise in each shard.* `last_id` of its row is at least the ID of all its records, and all
//!   that comes later is above it.
//! * *The feed shows what is closed.* The lowest `last_id` of all shards is an ID up to which
//!   nothing comes any more, in any of them. The feed shows the records up to it, of the same
//!   snapshot. A shard at rest would hold it back, so it is first closed: its `last_id` becomes the
//!   highest of all. It is not closed while somebody commits to it: what is on its way may get a
//!   lower ID. A group that writes nothing closes the shards that it has locked, so they are
//!   closed although repeated appends hold their locks all the time.
//! * *What follows has a higher ID.* An append to one shard that is called after a server has
//!   answered one to another gets a higher ID from that server. Over another server it may get a
//!   lower one, within the milliseconds of their commits.
//! * *No two records share an ID, nor lie within each other.* Two shards may go on from the same
//!   `last_id`, after they were closed or imported. So each group passes over a random number of up
//!   to 2^76 IDs, or begins at one of 2^79 of a new millisecond. Two groups of a million events
//!   each that begin from one ID meet with a probability of 2^-55. Two in different milliseconds do
//!   so only if one has run ahead of its clock, with no higher one.

use crate::model::{EventId, IdClock, Op, SessionId};
use crate::postgres::connect::Site;
use crate::postgres::sql;
use crate::write::Proposal;

/// The bits of the number of IDs that a group passes over.
const APART_BITS: u32 = 40;
const APART_BITS_OF_SEVERAL: u32 = 76;

/// The bits of a session's number within its shard.
const NTH_BITS: u32 = 40;

/// Returns the shard of a session.
pub(super) fn shard_of(session: &SessionId, shards: u32) -> i32 {
    if shards <= 1 {
        return 0;
    }
    let hash = blake3::hash(session.as_str().as_bytes());
    let (head, _) = hash.as_bytes().split_at(8);
    let head = head.try_into().map_or(0, u64::from_be_bytes);
    i32::try_from(head % u64::from(shards)).unwrap_or(0)
}

/// Returns the number of the session that is the how-many-th of its shard.
pub(super) fn session_number(shard: i32, nth: i64) -> i64 {
    i64::from(shard) << NTH_BITS | nth
}

impl Site {
    pub(super) fn shard_of(&self, session: &SessionId) -> i32 {
        shard_of(session, self.shards())
    }

    /// The lanes of a server: one for each shard and, of several, one for what needs several locks.
    pub(super) fn lanes(&self) -> usize {
        match self.shards() as usize {
            1 => 1,
            several => several + 1,
        }
    }

    /// Returns the shards whose locks a proposal is decided under, in their order.
    pub(super) fn locks(&self, proposal: &Proposal) -> Vec<i32> {
        let mut locks = vec![self.shard_of(proposal.session())];
        if self.shards() > 1 {
            let parent = proposal.parent.iter().map(|parent| &parent.session);
            let shared = proposal.batch.ops().iter().flat_map(|op| match op {
                Op::Fork(lineage) => lineage.pieces.as_slice(),
                _ => &[],
            });
            let others = parent.chain(shared.map(|piece| &piece.session));
            locks.extend(others.map(|session| self.shard_of(session)));
            locks.sort_unstable();
            locks.dedup();
        }
        locks
    }

    /// Returns what gives the IDs of a group in a shard, after the last one of it and after all
    /// that this server has told of.
    pub(super) fn ids_after(&self, last_id: EventId) -> IdClock {
        if self.shards() == 1 {
            return IdClock::apart(last_id, APART_BITS);
        }
        IdClock::apart(last_id.max(*self.told.lock()), APART_BITS_OF_SEVERAL)
    }

    /// Notes IDs that callers are told of now.
    pub(super) fn note_told(&self, ids: &[EventId]) {
        let mut told = self.told.lock();
        *told = ids.iter().copied().fold(*told, EventId::max);
    }

    /// Returns the statement that shows, once it is committed, that what is seen is on a quorum.
    ///
    /// One shard takes its own lock for it. Of several, one that is held up is not waited for.
    pub(super) fn barrier(&self) -> String {
        if self.shards() > 1 {
            sql::BARRIER.to_owned()
        } else {
            barrier_of(0)
        }
    }
}

/// Returns the same under the lock of a shard.
pub(super) fn barrier_of(shard: i32) -> String {
    format!("UPDATE shard SET epoch = epoch + 1 WHERE shard = {shard}")
}

/// Returns what closes shards, under their locks.
pub(super) fn close_of(shards: &[i32]) -> String {
    let shards: Vec<_> = shards.iter().map(i32::to_string).collect();
    let shards = shards.join(", ");
    format!("{} AND shard.shard IN ({shards})", sql::CLOSE_LOCKED)
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn sessions_spread_evenly_and_stay_where_they_are() {
        let mut of = [0; 16];
        for nth in 0..16_000 {
            let session = SessionId::new(format!("session {nth}")).unwrap();
            of[shard_of(&session, 16).unsigned_abs() as usize] += 1;
            assert_eq!(shard_of(&session, 1), 0);
        }
        assert!(
            of.iter().all(|sessions| (850..1150).contains(sessions)),
            "{of:?}"
        );
        // Stored logs rest on it.
        let of = |name: &str| shard_of(&SessionId::new(name).unwrap(), 64);
        assert_eq!([of("a"), of("b"), of("sess_123")], [19, 31, 15]);
    }

    #[test]
    fn groups_that_go_on_from_one_id_are_apart() {
        let last = EventId::from_u128(u128::from(now()) << 80 | 1 << 79);
        let mut bases: Vec<_> = (0..10_000)
            .map(|_| {
                let mut ids = IdClock::apart(last, APART_BITS_OF_SEVERAL);
                ids.stamp(1, now()).base.to_u128()
            })
            .collect();
        bases.sort_unstable();
        let nearest = bases.windows(2).map(|pair| pair[1] - pair[0]).min();
        // Of 2^26.6 pairs over 2^76 IDs; below this with a probability of 2^-20.
        assert!(nearest.unwrap() > 1 << 29, "{nearest:?}");
        assert!(bases[0] > last.to_u128());
    }

    fn now() -> u64 {
        1_800_000_000_000
    }
}
