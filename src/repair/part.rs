//! What one segment of a saved log is made from, and the events in the place of lost ones.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::Peekable;
use std::ops::RangeInclusive;

use crate::codec::{BodyParts, EventContent, EventParts, Fault, Record, Seat, SessionState};
use crate::engine::Stretch;
use crate::model::{EventId, Seq, SessionId, Turn};

/// The type of an event that stands for a lost one.
const LOST: &str = "sessionlog.lost";

/// The most events in one record of lost ones.
const LOST_EVENTS_MAX: u64 = 1024;

/// What one segment of the new log is made from.
pub(super) struct Part<R: Iterator<Item = Record>> {
    pub(super) stretch: Stretch,
    /// The number of records that were left out before, because they had been removed.
    pub(super) dropped: u64,
    /// In the order of sessions, generations and seqs.
    pub(super) records: Peekable<R>,
    /// The states that are known.
    pub(super) states: BTreeMap<SessionId, SessionState>,
    /// The ranges of IDs that no record has, by their first. They are known if there is damage.
    pub(super) free_ids: BTreeMap<u128, u128>,
    /// The sessions of which forks miss events that no later segment can have.
    pub(super) owed: BTreeSet<SessionId>,
}

impl<R: Iterator<Item = Record>> Part<R> {
    pub(super) fn next_session(&mut self) -> Option<SessionId> {
        let of_record = self.records.peek().map(|record| &record.session);
        let of_state = self.states.keys().next();
        let next = of_record
            .into_iter()
            .chain(of_state)
            .chain(self.owed.first());
        next.min().map(SessionId::detached)
    }

    /// Takes up to `count` IDs that follow each other, between two others.
    pub(super) fn take_ids(
        &mut self,
        above: EventId,
        below: EventId,
        count: u64,
    ) -> Option<(EventId, u32)> {
        let (above, below) = (above.to_u128(), below.to_u128());
        let before = self.free_ids.range(..=above).next_back();
        let begun = before.filter(|(_, last)| **last > above);
        let next = begun.or_else(|| self.free_ids.range(above + 1..below.max(above + 1)).next());
        let (first, last) = next.map(|(first, last)| (*first, *last))?;
        let from = first.max(above + 1);
        let room = (last + 1).min(below).saturating_sub(from);
        let taken = room.min(count.min(LOST_EVENTS_MAX).into());
        if taken == 0 {
            return None;
        }
        self.free_ids.remove(&first);
        if first < from {
            self.free_ids.insert(first, from - 1);
        }
        if from + taken <= last {
            self.free_ids.insert(from + taken, last);
        }
        let taken = u32::try_from(taken).expect("it is bounded");
        Some((EventId::from_u128(from), taken))
    }
}

/// Returns the ranges between used IDs, from `above` up to `last`.
pub(super) fn free_between(
    above: EventId,
    mut used: Vec<RangeInclusive<EventId>>,
    last: EventId,
) -> BTreeMap<u128, u128> {
    used.sort_unstable_by_key(|ids| *ids.start());
    let (mut next, mut free) = (above.to_u128() + 1, BTreeMap::new());
    for ids in used {
        let first = ids.start().to_u128();
        if next < first {
            free.insert(next, first - 1);
        }
        next = next.max(ids.end().to_u128() + 1);
    }
    if next <= last.to_u128() {
        free.insert(next, last.to_u128());
    }
    free
}

/// Returns a record of events that stand for lost ones.
pub(super) fn lost_events(
    session: &SessionId,
    (generation, first): (u32, Seq),
    base: EventId,
    count: u32,
) -> Result<Record, Fault> {
    let event = || EventParts {
        turn: Turn::None,
        event_type: LOST,
        content: EventContent::Redacted,
    };
    let body = BodyParts {
        session,
        key: None,
        ops: Vec::new(),
        producer: None,
        events: (0..count).map(|_| event()).collect(),
    };
    let seat = Seat {
        generation,
        first,
        base,
        created_ms: base.timestamp_ms(),
    };
    Record::with_body(seat, &body.encode())
}
