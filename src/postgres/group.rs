//! The decision on a commit group, from what was read under the shard's lock. It does no I/O.

use std::collections::HashMap;
use std::sync::Arc;

use crate::codec::{Record, SessionState};
use crate::model::{EventId, IdClock, Op, Result, Seq, SessionId};
use crate::postgres::sql::Id;
use crate::write::{Decision, Known, Landed, Outcome, Proposal, decide};

/// What was read under the lock.
#[derive(Default)]
pub(super) struct Read {
    pub sessions: HashMap<SessionId, Session>,
    /// The newest record under the key of each member that has one.
    pub keys: HashMap<usize, Vec<Arc<Record>>>,
    /// The records that came after the scan of each member that made one.
    pub since: HashMap<usize, Vec<Arc<Record>>>,
    /// What is known of the parents of forks that are in another database.
    pub apart: Apart,
}

/// What is known of the parent of a fork that is not under the locks of the group.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Apart {
    /// There is none.
    #[default]
    None,
    /// It was as it has to be under its own lock, and what the fork shares is
    /// [pinned](crate::postgres::pins).
    Pinned,
    /// That is so no more.
    Lost,
}

/// A session while a group is decided.
#[derive(Default)]
pub(super) struct Session {
    /// Its number. `None` while it was never begun.
    pub number: Option<i64>,
    pub state: SessionState,
    /// The records that the group adds, in order.
    pub added: Vec<Arc<Record>>,
    /// Whether its row has to be written.
    pub has_changed: bool,
}

impl Session {
    /// Returns it as a later group finds it.
    pub(super) fn unchanged(&self) -> Self {
        Self {
            number: self.number,
            state: self.state.clone(),
            ..Self::default()
        }
    }
}

/// A decided group.
pub(super) struct Decided {
    /// The answer to each member, once the group is durable.
    pub answers: Vec<Result<Landed>>,
    /// The records, in commit order.
    pub records: Vec<Arc<Record>>,
    /// What has to be erased, besides what the records themselves are of.
    pub removals: Vec<Removal>,
}

/// Something removed from a session.
pub(super) struct Removal {
    pub session: SessionId,
    pub id: EventId,
    pub at_ms: u64,
    pub events: u64,
}

/// What is [pinned](crate::postgres::pins) for a fork.
pub(super) struct Pins {
    pub ticket: Id,
    /// The shards that its commit locks, which are in its own database.
    pub locks: Vec<i32>,
    /// Whether its parent is in another one, and was as it has to be.
    pub has_parent: bool,
}

/// What a group has changed, for its waiters.
#[derive(Default)]
pub(super) struct News {
    pub sessions: Vec<SessionId>,
    /// The last ID of each record.
    pub ids: Vec<EventId>,
    pub removals: u64,
    pub records: u64,
    pub bytes: u64,
    /// Whether a session was given a retention of its own.
    pub retains: bool,
}

impl News {
    pub(super) fn of(decided: &Decided) -> Self {
        let mut sessions: Vec<_> = decided
            .records
            .iter()
            .map(|record| record.session.detached())
            .collect();
        sessions.sort_unstable();
        sessions.dedup();
        let removals = decided.records.iter().filter(|record| record.removes());
        let bytes = decided
            .records
            .iter()
            .map(|record| record.body().len() as u64);
        Self {
            sessions,
            ids: decided
                .records
                .iter()
                .map(|record| record.last_id())
                .collect(),
            removals: removals.count() as u64,
            records: decided.records.len() as u64,
            bytes: bytes.sum(),
            retains: decided.records.iter().any(|record| record.retains()),
        }
    }
}

/// Decides the members in their order. Each counts for those behind it.
///
/// `created_ms` is the time of each member's batch. `clock` goes on after the newest ID of the
/// shard.
pub(super) fn decide_all<'a>(
    members: impl Iterator<Item = (&'a Proposal, u64)>,
    read: &mut Read,
    clock: &mut IdClock,
) -> Decided {
    let mut decided = Decided {
        answers: Vec::new(),
        records: Vec::new(),
        removals: Vec::new(),
    };
    for (nth, (proposal, created_ms)) in members.enumerate() {
        let answer = decide_one(nth, proposal, created_ms, read, clock);
        if let Ok(Landed {
            outcome: Outcome::Stored(record),
            before,
            state,
        }) = &answer
        {
            decided.records.push(Arc::clone(record));
            decided.removals.extend(removals(record, *before, state));
        }
        decided.answers.push(answer);
    }
    decided
}

fn decide_one(
    nth: usize,
    proposal: &Proposal,
    created_ms: u64,
    read: &mut Read,
    clock: &mut IdClock,
) -> Result<Landed> {
    let nothing = SessionState::default();
    let parent = proposal.parent.as_ref();
    let parent = parent.map(|parent| read.sessions.get(&parent.session));
    let parent = parent.map(|session| session.map_or(&nothing, |session| &session.state));
    let parent_has_changed = match read.apart {
        Apart::None => parent.is_some_and(|state| proposal.parent_has_changed(state)),
        Apart::Pinned => false,
        Apart::Lost => true,
    };
    let Read {
        sessions,
        keys,
        since,
        apart: _,
    } = read;
    let session = sessions.entry(proposal.session().clone()).or_default();
    let known = UnderLock {
        proposal,
        session,
        keyed: keys.get(&nth).map_or(&[], Vec::as_slice),
        since: since.get(&nth).map_or(&[], Vec::as_slice),
    };
    match decide(proposal, &known) {
        Decision::Tell(answer) => answer,
        Decision::Append if parent_has_changed => {
            Ok(Landed::without_record(Outcome::Outdated, &session.state))
        }
        Decision::Append => {
            let batch = &proposal.batch;
            let stamp = clock.stamp(batch.ids(), created_ms);
            let before = session.state.extent();
            let (generation, first) = batch.place_in(&session.state);
            let record = batch.stamped_copy(generation, first, stamp);
            session.state.apply(&record);
            session.added.push(Arc::clone(&record));
            session.has_changed = true;
            Ok(Landed {
                outcome: Outcome::Stored(record),
                before,
                state: session.state.clone(),
            })
        }
    }
}

/// Returns the sessions of which something is to be erased after a record: its own, and those that
/// it shared events with.
fn removals(record: &Record, before: (u64, u64), state: &SessionState) -> Vec<Removal> {
    if !record.removes() {
        return Vec::new();
    }
    let after = if state.is_there() { state.events() } else { 0 };
    let removal = |session: &SessionId, events| Removal {
        session: session.detached(),
        id: record.last_id(),
        at_ms: record.created_ms,
        events,
    };
    let mut removals = vec![removal(&record.session, before.0.saturating_sub(after))];
    let deleted = record.ops().iter().flat_map(|op| match op {
        Op::Delete { ancestors, .. } => ancestors.as_slice(),
        _ => &[],
    });
    let shared = state.pieces().iter().map(|piece| &piece.session);
    let mut others: Vec<_> = deleted.chain(shared).collect();
    others.sort_unstable();
    others.dedup();
    others.retain(|other| **other != record.session);
    removals.extend(others.into_iter().map(|other| removal(other, 0)));
    removals
}

/// What the decision on a member rests on.
struct UnderLock<'a> {
    proposal: &'a Proposal,
    session: &'a Session,
    keyed: &'a [Arc<Record>],
    since: &'a [Arc<Record>],
}

impl Known for UnderLock<'_> {
    fn state(&self) -> &SessionState {
        &self.session.state
    }

    fn record_of_key(&self) -> Option<&Arc<Record>> {
        let text = &self.proposal.batch.key()?.text;
        let generation = self.session.state.generation;
        // The newest of them: an older one may have been trimmed.
        let mut all = self.keyed.iter().chain(&self.session.added).rev();
        all.find(|record| {
            let stored = record.key.as_ref();
            record.generation == generation && stored.is_some_and(|key| key.text == *text)
        })
    }

    fn records_after(&self, seq: Seq) -> Option<impl Iterator<Item = &Arc<Record>>> {
        let generation = self.session.state.generation;
        let is_whole = self.proposal.scanned_through() == Some((generation, seq));
        let records = self.since.iter().chain(&self.session.added);
        is_whole.then(|| {
            records.filter(move |record| record.generation == generation && record.last() > seq)
        })
    }
}
