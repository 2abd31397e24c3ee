//! Decides which records of a session are kept when a segment is written, and which are left out.
//!
//! Invariant: nothing is left out that a reader may still be shown. A record is left out only if
//! its removal is durable, and if no session that shares it with its owner keeps it.

use std::ops::RangeInclusive;

use crate::codec::{Decoded, Record, SessionState};
use crate::model::{EventView, Result, Seq, SessionId};
use crate::read::{Store, shared_with};

/// The most generations of a session whose forks are looked up to tell whether all of it is gone.
const GENERATIONS_MAX: u32 = 8;

/// Tells what of one session's records is kept.
pub(crate) struct Keep {
    state: SessionState,
    /// The seqs of a generation that other sessions share, once they were looked up.
    shared: Vec<(u32, Vec<RangeInclusive<Seq>>)>,
}

/// The part of a record that is kept.
pub(crate) enum Kept {
    Whole,
    /// It is kept without some of its events or of their data.
    Part(Box<Record>),
    Nothing,
}

impl Keep {
    /// Looks up the durable state of a session.
    pub(crate) fn of(store: &Store, session: &SessionId) -> Result<Self> {
        Ok(Self {
            state: store.state(session)?,
            shared: Vec::new(),
        })
    }

    /// Returns what is kept of a record of the session.
    pub(crate) fn record(&mut self, store: &Store, record: &Record) -> Result<Decoded<Kept>> {
        let is_current = self.state.is_there() && record.generation == self.state.generation;
        if is_current && record.first >= self.state.first && self.state.redacted().is_empty() {
            return Ok(Ok(Kept::Whole));
        }
        if record.count == 0 {
            let is_kept = is_current || record.deletes();
            return Ok(Ok(if is_kept { Kept::Whole } else { Kept::Nothing }));
        }
        let mut kept = Vec::new();
        if is_current {
            kept.push(self.state.first..=Seq::MAX);
        }
        if !is_current || record.first < self.state.first {
            kept.extend_from_slice(self.shared(store, &record.session, record.generation)?);
        }
        let part = self.part(record, &kept);
        if is_current && !record.ops().is_empty() && matches!(part, Ok(Kept::Nothing)) {
            // What else the batch changed was not removed, and the feed goes on showing it.
            let none = record.last() + 1..=record.last();
            let changes = record.reduced(&none, |_view| false);
            return Ok(changes.map(|record| Kept::Part(Box::new(record))));
        }
        Ok(part)
    }

    /// Returns what is kept of a record's events, given the seqs that some session keeps.
    fn part(&self, record: &Record, kept: &[RangeInclusive<Seq>]) -> Decoded<Kept> {
        let is_kept = |seq: &Seq| kept.iter().any(|range| range.contains(seq));
        let mut seqs = (record.first..=record.last()).filter(is_kept);
        let Some(first) = seqs.next() else {
            return Ok(Kept::Nothing);
        };
        let last = seqs.next_back().unwrap_or(first);
        let redacted = self.state.redacted();
        let ids = record.base..=record.last_id();
        let is_redacted = |view: &EventView<'_>| redacted.binary_search(&view.id).is_ok();
        let loses_data = |view: &EventView<'_>| is_redacted(view) || !is_kept(&view.seq);
        if (first..=last) == (record.first..=record.last()) {
            let has_gap = (first..=last).any(|seq| !is_kept(&seq));
            // What was erased before is as it has to be.
            let mut has_data_to_lose = false;
            if has_gap || redacted.iter().any(|id| ids.contains(id)) {
                for frame in record.events() {
                    let view = frame?.view;
                    has_data_to_lose |= loses_data(&view) && !view.redacted;
                }
            }
            if !has_data_to_lose {
                return Ok(Kept::Whole);
            }
        }
        let reduced = record.reduced(&(first..=last), loses_data);
        reduced.map(|record| Kept::Part(Box::new(record)))
    }

    /// Whether nothing is kept of the session but a record that deletes it.
    ///
    /// `false` says nothing about a session that began often.
    pub(super) fn is_gone(&mut self, store: &Store, session: &SessionId) -> Result<bool> {
        if self.state.is_there() || self.state.generation > GENERATIONS_MAX {
            return Ok(false);
        }
        for generation in 1..=self.state.generation {
            if !self.shared(store, session, generation)?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns the seqs of a generation that other sessions share and keep.
    fn shared(
        &mut self,
        store: &Store,
        session: &SessionId,
        generation: u32,
    ) -> Result<&[RangeInclusive<Seq>]> {
        let known = self.shared.iter().position(|(of, _)| *of == generation);
        let place = if let Some(place) = known {
            place
        } else {
            let shared = shared_of(store, session, generation)?;
            self.shared.push((generation, shared));
            self.shared.len() - 1
        };
        Ok(self
            .shared
            .get(place)
            .map(|(_, shared)| shared.as_slice())
            .unwrap_or_default())
    }
}

/// Returns the seqs of a generation that other sessions share and keep.
///
/// A fork of a fork may be made and the first one deleted while they are looked at. So they are
/// looked at again until no fork was made meanwhile.
fn shared_of(
    store: &Store,
    session: &SessionId,
    generation: u32,
) -> Result<Vec<RangeInclusive<Seq>>> {
    loop {
        let published = store.records.forks_published();
        let forks = store.forks(session, generation)?;
        let shared = forks
            .iter()
            .filter_map(|(_, state)| shared_with(state, session, generation))
            .collect();
        if store.records.forks_published() == published {
            return Ok(shared);
        }
    }
}
