//! A group in one flight: what a server knows of a shard from its own last commit to it.
//!
//! As long as nobody else commits to a shard, its row, and the sessions that were read or written,
//! are as this server left them. Then a group is decided by what is remembered, and one statement
//! writes it all, if the shard's row shows that nobody came between. If it does not, the statement
//! writes nothing, and the group takes its [two flights](crate::postgres::commit).
//!
//! The statement moves the shard's row in a part of its own, `held`, if the row still has the
//! `last_id` and the `epoch` that this server saw last. All else that it writes does so only if
//! `held` has a row.
//!
//! Why it writes either nothing, or what the two flights would have written:
//! * *The row is compared under its lock.* An update that finds its row locked waits. It then reads
//!   the row anew, whatever the snapshot of its statement, and compares that. A row that does not
//!   match leaves `held` empty.
//! * *A row that matches shows that the sessions are as remembered.* A transaction that writes
//!   a session or adds a record gives the shard's row a higher `last_id`, under the same lock. IDs
//!   only rise, so a row that has moved never has the old one again. After a failover it can have a
//!   lower one than was seen, but none that was seen here: a commit that was answered is on a
//!   quorum.
//! * *Keys are looked up in the snapshot of the statement*, which may be older than the lock. It is
//!   not older than the last commit of this server, which had returned. Since then nobody has added
//!   a record. Somebody may have erased some under the lock: then a key may be found that is gone,
//!   which leaves `held` empty, and never the other way round. What is erased is in no state, and a
//!   key that is found is always left to the two flights.
//! * *A statement in doubt is over once it was asked for.* It was sent without the lock, so it may
//!   lie in a buffer when the question is asked, and be carried out later. The question is asked
//!   under the lock, and its transaction raises `epoch`. So the statement comes before it, and its
//!   record is found, or it finds another epoch, and writes nothing.
//! * *A shard that moves takes all of that along.* Its row gets the `last_id` and the `epoch` of
//!   the one that it leaves, and that one is not here any more.
//! * *Its time is that of the database.* It is taken from when the server showed it last, and the
//!   time that has passed since. The statement compares it with the clock: IDs are no more than
//!   some milliseconds ahead of that. A step of the clock leaves `held` empty.

use std::collections::HashMap;

use tokio::time::Instant;

use crate::model::{Expected, SessionId};
use crate::postgres::group::{Read, Session};
use crate::postgres::rows::{KeyRows, Shard};
use crate::postgres::sql;
use crate::write::Proposal;

/// The bytes of the sessions that all lanes remember, about.
const BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a session takes beside its name and its details, about.
const SESSION_BYTES: usize = 256;

/// The groups without another server between that are wanted after the last quick one failed.
const WANTED_MAX: u32 = 64;

/// What a lane remembers.
pub(super) struct Memory {
    /// The shard as of the last commit. `None` while it is not known what became of that.
    pub seen: Option<Seen>,
    pub sessions: Remembered,
    /// The groups of this server that came one after the other.
    in_a_row: u32,
    /// How many have to before a quick one is tried.
    wanted: u32,
}

/// A shard as it was left.
pub(super) struct Seen {
    shard: Shard,
    clock: Clock,
}

/// What a quick group is decided by, and what has to hold when it is written.
pub(super) struct Quick {
    /// The shard's row as it has to be, and the database's time by now.
    pub shard: Shard,
    pub read: Read,
    /// What must not be there.
    pub keys: KeyRows,
}

impl Memory {
    /// The memory of one of so many lanes.
    pub(super) fn of_lanes(lanes: usize) -> Self {
        Self {
            seen: None,
            sessions: Remembered::new(BYTES_MAX / lanes),
            in_a_row: 0,
            wanted: 0,
        }
    }

    /// Returns the shard as it was left. It is forgotten, unless the group that begins now comes to
    /// a good end.
    pub(super) fn take(&mut self) -> Option<Seen> {
        self.seen.take()
    }

    /// Returns what some proposals are decided by, if all of it is remembered.
    pub(super) fn quick<'a>(
        &self,
        seen: &Seen,
        shard: i32,
        proposals: impl Iterator<Item = &'a Proposal>,
    ) -> Option<Quick> {
        if seen.shard.number != shard || self.in_a_row < self.wanted {
            return None;
        }
        let mut read = Read::default();
        let mut keys = KeyRows::default();
        for proposal in proposals {
            if !is_plain(proposal) {
                return None;
            }
            let name = proposal.session();
            let session = self.sessions.get(name)?;
            if let Some(key) = proposal.batch.key() {
                keys.put(session.number?, sql::key_hash(&key.text));
            }
            let read = read.sessions.entry(name.clone());
            read.or_insert_with(|| session.unchanged());
        }
        let now_ms = seen.clock.now_ms();
        let shard = Shard {
            now_ms,
            ..seen.shard
        };
        Some(Quick { shard, read, keys })
    }

    /// Notes that a quick group was written, at a time by the database's clock.
    pub(super) fn note_quick(
        &mut self,
        seen: &Seen,
        shard: Shard,
        now_ms: u64,
        sessions: HashMap<SessionId, Session>,
    ) {
        self.wanted /= 2;
        self.note(shard, seen.clock.or_later(now_ms), sessions);
    }

    /// Notes that a quick group was not written.
    pub(super) fn note_missed(&mut self) {
        self.in_a_row = 0;
        self.wanted = (self.wanted * 2).clamp(1, WANTED_MAX);
    }

    /// Notes the shard as it was locked. Sessions are forgotten if somebody came between.
    pub(super) fn note_locked(&mut self, seen: Option<&Seen>, locked: &Shard) {
        let is_as_left = seen.is_some_and(|seen| {
            (seen.shard.number, seen.shard.last_id) == (locked.number, locked.last_id)
        });
        if is_as_left {
            self.in_a_row = self.in_a_row.saturating_add(1);
        } else {
            self.in_a_row = 0;
            self.sessions.clear();
        }
    }

    /// Notes the shard and the sessions as a group has left them. It showed the time at an instant.
    pub(super) fn note_committed(
        &mut self,
        shard: Shard,
        at: Instant,
        sessions: HashMap<SessionId, Session>,
    ) {
        let shown_ms = shard.now_ms;
        self.note(shard, Clock { shown_ms, at }, sessions);
    }

    fn note(&mut self, shard: Shard, clock: Clock, sessions: HashMap<SessionId, Session>) {
        for (name, session) in sessions {
            // One that was never begun may be begun without its name being looked up here.
            if session.number.is_some() {
                self.sessions.put(&name, session.unchanged());
            }
        }
        self.seen = Some(Seen { shard, clock });
    }
}

/// Whether a proposal is decided by the state of its session, and by its key, and changes nothing
/// but that session.
fn is_plain(proposal: &Proposal) -> bool {
    let scans = matches!(proposal.expected, Expected::NothingSince { .. });
    !scans && proposal.parent.is_none() && proposal.batch.ops().is_empty()
}

/// A time that the database's clock showed, and when it had come here.
#[derive(Clone, Copy)]
struct Clock {
    shown_ms: u64,
    at: Instant,
}

impl Clock {
    /// Returns the time by now, a little late.
    fn now_ms(self) -> u64 {
        let since = u64::try_from(self.at.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.shown_ms.saturating_add(since)
    }

    /// Returns this clock, or that of a time that came now. The later one was less late.
    fn or_later(self, now_ms: u64) -> Self {
        if now_ms > self.now_ms() {
            Self {
                shown_ms: now_ms,
                at: Instant::now(),
            }
        } else {
            self
        }
    }
}

/// Sessions with their numbers and states. What was not used for long is forgotten.
pub(super) struct Remembered {
    new: HashMap<SessionId, Session>,
    /// What was new before that had so many bytes.
    old: HashMap<SessionId, Session>,
    bytes: usize,
    bytes_max: usize,
}

impl Remembered {
    fn new(bytes_max: usize) -> Self {
        Self {
            new: HashMap::new(),
            old: HashMap::new(),
            bytes: 0,
            bytes_max,
        }
    }

    fn get(&self, name: &SessionId) -> Option<&Session> {
        self.new.get(name).or_else(|| self.old.get(name))
    }

    fn put(&mut self, name: &SessionId, session: Session) {
        let bytes = |session: &Session| {
            let state = &session.state;
            let details = state.details.as_ref().map(|_| sql::stored_state(state));
            SESSION_BYTES + name.as_str().len() + details.map_or(0, |details| details.len())
        };
        self.bytes += bytes(&session);
        if let Some(before) = self.new.insert(name.detached(), session) {
            self.bytes -= bytes(&before);
        }
        if self.bytes > self.bytes_max / 2 {
            self.old = std::mem::take(&mut self.new);
            self.bytes = 0;
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::new(self.bytes_max);
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use super::*;

    #[test]
    fn what_is_remembered_has_a_bound() {
        let name = |nth: usize| SessionId::new(format!("s{nth}")).unwrap();
        let mut sessions = Remembered::new(100 * SESSION_BYTES);
        for nth in 0..1_000 {
            for _again in 0..3 {
                sessions.put(&name(nth), Session::default());
            }
            assert!(nth < 40 || sessions.get(&name(nth - 40)).is_some(), "{nth}");
            assert!(
                nth < 100 || sessions.get(&name(nth - 100)).is_none(),
                "{nth}"
            );
        }
    }
}
