//! Saves what is left of a damaged log.
//!
//! The new log has a segment for each segment of the damaged one, and one for its journal. A
//! session whose seqs have a hole gets events in the place of the lost ones, redacted and of a type
//! of their own. So every other event keeps its seq and its ID, and cursors stay valid.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::codec::{Fault, Record, SessionState};
use crate::disk::{Disk, RealDisk, io_error};
use crate::engine::{LogBuilder, Stretch};
use crate::maintain::SessionSink;
use crate::manifest::Manifest;
use crate::model::{Error, EventId, Options, Result, Seq, SessionId};
use crate::read::shared_with;
use crate::repair::part::{Part, free_between, lost_events};
use crate::repair::sessions::missing;
use crate::repair::survey::Survey;
use crate::repair::wanted::{Shared, Wanted, own_first};
use crate::repair::{Loss, Teller, Told};
use crate::segment::{Segment, SegmentSet};

/// What was saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Salvaged {
    /// The number of faults in the damaged log.
    pub findings: u64,
    /// The number of batches that were saved.
    pub records: u64,
    /// The number of events that were saved.
    pub events: u64,
    /// The number of events that are known to be lost.
    pub events_lost: u64,
    /// The number of sessions that have lost something.
    pub sessions_damaged: u64,
    /// The number of sessions in the new log.
    pub sessions: u64,
}

/// Makes a log in `to` out of everything in the damaged log in `from` that validates.
///
/// `to` must be missing or empty. The damaged log is not changed, and no server should write it
/// meanwhile. Faults and losses are passed to `tell`.
///
/// * Events keep their seqs, IDs, times, keys and turns, and sessions their states.
/// * A lost event has a redacted event of type `sessionlog.lost` in its place, with the same seq
///   and an ID of its own. Its ID is between those of the events around it, unless they belong to
///   another session, of which a fork was forked again. The idempotency keys of lost batches are
///   forgotten.
/// * A fork has such events for what is lost of the session that it shares them with. If they have
///   no place there, it begins behind them, as after a trim.
/// * A session whose state is lost has the state that follows from the rest: its title or metadata
///   may be older, and it is not known what was lost at its end. If its beginning is lost too, it
///   begins later, as after a trim.
/// * Removed events stay removed, unless the record and the state that say so are lost. Their bytes
///   are erased from the new log in the background.
///
/// The newest state of each session is in memory. After a salvage that was cut short, the same call
/// goes on.
///
/// # Errors
///
/// [`Error::Io`] if there is no log in `from`, or if a write failed.
/// [`Error::Invalid`] if `to` holds something else.
/// [`Error::Unsupported`] if a later version wrote the log.
pub fn salvage(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: Options,
    mut tell: impl FnMut(Told),
) -> Result<Salvaged> {
    let absolute = |folder: &Path| std::path::absolute(folder).map_err(io_error("find", folder));
    let (from, to) = (absolute(from.as_ref())?, absolute(to.as_ref())?);
    let damaged: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let survey = Survey::of(&damaged, &from)?;
    // A disk keeps to the folder that it has entered.
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    let source = format!("what is left of store {:032x}", survey.store.0);
    let mut builder = LogBuilder::begin(disk, &to, options, &source)?;
    let mut salvager = Salvager::new(&survey, &mut tell);
    for segment in &survey.segments {
        salvager.segment(&mut builder, segment)?;
    }
    salvager.journal(&mut builder, &survey.journal)?;
    salvager.forks(&mut builder)?;
    let is_unmarked =
        |manifest: &Manifest| manifest.marks.is_empty() && manifest.unmarked.is_empty();
    let holds_removed = !survey.manifest.as_ref().is_some_and(is_unmarked);
    if holds_removed || survey.journal.iter().any(Record::removes) {
        builder.mark_all();
    }
    builder.finish()?;
    Ok(salvager.saved())
}

struct Salvager<'a> {
    teller: Teller<'a>,
    /// Where each session ends so far, to see a hole.
    ends: HashMap<SessionId, SessionEnd>,
    saved: Salvaged,
    /// The last ID of the segments so far.
    last_id: EventId,
    /// Whether a session has a retention of its own.
    has_own_retention: bool,
    wanted: Wanted,
    /// The newest states of forks, if there is damage.
    forks: BTreeMap<SessionId, SessionState>,
    /// Whether anything so far could not be read, so that there may be holes behind it.
    is_damaged: bool,
}

#[derive(Debug, Clone, Copy, Default)]
struct SessionEnd {
    generation: u32,
    last: Seq,
    /// Events of the generation before this one have no place, because there is a hole before it.
    hidden_before: Seq,
    is_there: bool,
    is_damaged: bool,
}

impl SessionEnd {
    /// Whether the last event that a fork shares comes after this end.
    fn lacks(&self, shared: &Shared) -> bool {
        (self.generation, self.last) < (shared.generation, *shared.seqs.end())
    }

    /// Returns the seq that follows in a generation, and begins it if it is a new one.
    fn enter(&mut self, generation: u32) -> Seq {
        if generation > self.generation {
            (self.generation, self.last, self.hidden_before) = (generation, 0, 0);
        }
        self.last + 1
    }
}

impl<'a> Salvager<'a> {
    fn new(survey: &Survey, tell: &'a mut dyn FnMut(Told)) -> Self {
        let wanted = Wanted::of(survey);
        let mut teller = Teller::new(tell);
        survey.faults.iter().for_each(|error| teller.finding(error));
        teller.of = survey.segment_bytes();
        Self {
            teller,
            ends: HashMap::new(),
            saved: Salvaged::default(),
            last_id: EventId::from_u128(0),
            has_own_retention: false,
            wanted,
            forks: BTreeMap::new(),
            is_damaged: !survey.faults.is_empty(),
        }
    }

    fn saved(&self) -> Salvaged {
        let count = |is: fn(&SessionEnd) -> bool| self.ends.values().filter(|end| is(end)).count();
        Salvaged {
            findings: self.teller.findings,
            sessions: count(|end| end.is_there) as u64,
            sessions_damaged: count(|end| end.is_damaged) as u64,
            ..self.saved
        }
    }

    fn segment(&mut self, builder: &mut LogBuilder, segment: &Segment) -> Result<()> {
        let info = &segment.info;
        let mut rest = match segment.rest() {
            Ok(rest) => rest,
            Err(error) => {
                self.is_damaged = true;
                self.teller.finding(&error);
                return Ok(());
            }
        };
        self.is_damaged |= !rest.faults.is_empty();
        let used = match rest.ids.take() {
            Some(ids) => ids,
            // All of its own are needed only where something before it is lost.
            None if self.is_damaged => segment.ids()?,
            None => Vec::new(),
        };
        let free_ids = if self.is_damaged {
            free_between(self.last_id, used, info.last_id())
        } else {
            BTreeMap::new()
        };
        let mut part = Part {
            stretch: Stretch {
                // Events that are lost at the end of the segment before may get their IDs here.
                first_id: info.first_id().min(self.last_id.plus(1)),
                last_id: info.last_id(),
                tier: info.tier,
                items_max: segment.filter_items(),
            },
            dropped: info.dropped,
            states: std::mem::take(&mut rest.states),
            free_ids,
            owed: self.owed(info.last_id()),
            records: rest.by_ref().peekable(),
        };
        self.part(builder, &mut part)?;
        drop(part);
        rest.faults
            .iter()
            .for_each(|error| self.teller.finding(error));
        self.teller.progress(info.file_bytes);
        Ok(())
    }

    /// Saves the records of the journal, which are in commit order.
    fn journal(&mut self, builder: &mut LogBuilder, records: &[Record]) -> Result<()> {
        let last_id = self.last_id;
        let new = || records.iter().filter(|record| record.base > last_id);
        let (Some(first), Some(last)) = (new().next(), new().last()) else {
            return Ok(());
        };
        let used = new().map(|record| record.base..=record.last_id());
        let free_ids = free_between(last_id, used.collect(), last.last_id());
        let mut by_session: BTreeMap<&SessionId, Vec<&Record>> = BTreeMap::new();
        for record in new() {
            by_session.entry(&record.session).or_default().push(record);
        }
        let mut part = Part {
            stretch: Stretch {
                first_id: first.base.min(self.last_id.plus(1)),
                last_id: last.last_id(),
                tier: 0,
                items_max: 2 * new().count() as u64,
            },
            dropped: 0,
            states: BTreeMap::new(),
            free_ids,
            owed: self.owed(last.last_id()),
            records: by_session.into_values().flatten().cloned().peekable(),
        };
        self.part(builder, &mut part)
    }

    /// Returns the sessions that lack what a fork shares, where the fork was made by this ID.
    fn owed(&self, last_id: EventId) -> BTreeSet<SessionId> {
        if !self.is_damaged {
            return BTreeSet::new();
        }
        let lacks = |session: &SessionId, of: &[Shared]| {
            let end = self.ends.get(session).copied().unwrap_or_default();
            of.iter()
                .any(|shared| shared.forked <= last_id && end.lacks(shared))
        };
        let owed = self.wanted.shared.iter().filter(|(id, of)| lacks(id, of));
        owed.map(|(id, _)| id.clone()).collect()
    }

    /// Writes a segment, unless an earlier run has written it.
    fn part<R: Iterator<Item = Record>>(
        &mut self,
        builder: &mut LogBuilder,
        part: &mut Part<R>,
    ) -> Result<()> {
        let (stretch, older) = (part.stretch, builder.segments().clone());
        if builder.has_next(&stretch)? {
            self.sessions(part, &older, &mut Nowhere)?;
        } else {
            let dropped = part.dropped;
            builder.add(stretch, |out| {
                self.sessions(part, &older, out)?;
                out.note_dropped(dropped);
                Ok::<_, Error>(())
            })?;
        }
        self.last_id = self.last_id.max(stretch.last_id);
        if self.has_own_retention {
            builder.note_own_retention();
        }
        Ok(())
    }

    fn sessions<R: Iterator<Item = Record>>(
        &mut self,
        part: &mut Part<R>,
        older: &SegmentSet,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        while let Some(session) = part.next_session() {
            let known = part.states.remove(&session);
            part.owed.remove(&session);
            let mut saving = Saving {
                end: self.ends.get(&session).copied().unwrap_or_default(),
                state: match &known {
                    Some(state) => state.clone(),
                    None => older.newest_state(&session)?,
                },
                is_known: known.is_some(),
                above: EventId::from_u128(part.stretch.first_id.to_u128().saturating_sub(1)),
                session: &session,
                salvager: self,
            };
            while let Some(record) = part.records.next_if(|record| record.session == session) {
                saving.record(&record, part, out)?;
            }
            saving.finish(part, out)?;
            let Saving { end, state, .. } = saving;
            self.has_own_retention |= state.retention().is_some();
            out.end_session(&session, &state)?;
            self.ends.insert(session.clone(), end);
            if self.is_damaged && !state.pieces().is_empty() {
                self.forks.insert(session, state);
            } else {
                self.forks.remove(&session);
            }
        }
        Ok(())
    }

    /// Lets forks begin behind what has no place in the sessions that they share it with.
    ///
    /// There was no ID for it, or the state of the fork was lost, which says what it shares.
    fn forks(&mut self, builder: &mut LogBuilder) -> Result<()> {
        let mut cut = Vec::new();
        for (fork, mut state) in std::mem::take(&mut self.forks) {
            let mut last_missing = None;
            for piece in state.pieces() {
                let of = (&piece.session, piece.generation);
                if let Some(seqs) = shared_with(&state, of.0, of.1) {
                    let holes = missing(builder.segments().iter(), &[], of, &seqs)?;
                    last_missing = last_missing.max(holes.last().map(|hole| *hole.end()));
                }
            }
            if let Some(last) = last_missing {
                self.lose(&fork, (state.generation, state.first..=last));
                state.first = last + 1;
                cut.push((fork, state));
            }
        }
        if cut.is_empty() {
            return Ok(());
        }
        let next_id = self.last_id.plus(1);
        let stretch = Stretch {
            first_id: next_id,
            last_id: next_id,
            tier: 0,
            items_max: cut.len() as u64,
        };
        if builder.has_next(&stretch)? {
            return Ok(());
        }
        builder.add(stretch, |out| {
            let mut states = cut.iter();
            states.try_for_each(|(fork, state)| out.end_session(fork, state))
        })
    }

    /// Tells of lost events.
    fn lose(&mut self, session: &SessionId, (generation, seqs): (u32, RangeInclusive<Seq>)) {
        let (first, last) = (*seqs.start(), *seqs.end());
        self.ends.entry(session.clone()).or_default().is_damaged = true;
        self.saved.events_lost += last + 1 - first;
        self.teller.loss(Loss {
            session: session.clone(),
            generation,
            first,
            last,
        });
    }
}

/// A session of which a segment is written.
struct Saving<'a, 'b> {
    session: &'a SessionId,
    end: SessionEnd,
    state: SessionState,
    /// Whether the state was read, or follows from the records.
    is_known: bool,
    /// The last ID of the session's records so far.
    above: EventId,
    salvager: &'a mut Salvager<'b>,
}

impl Saving<'_, '_> {
    fn record<R: Iterator<Item = Record>>(
        &mut self,
        record: &Record,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let is_new = record.generation > self.end.generation;
        if record.generation < self.end.generation || (!is_new && record.first <= self.end.last) {
            return Ok(());
        }
        self.fill_shared(Some(record.generation), record.base, part, out)?;
        let next = self.end.enter(record.generation);
        if !is_new || self.is_expected(record.generation) {
            let hole = next..=record.first - 1;
            self.fill_wanted(record.generation, &hole, record.base, part, out)?;
        }
        out.put(record)?;
        if !self.is_known {
            let begins = record.generation > self.state.generation;
            self.state.apply(record);
            if begins
                && !self.is_expected(record.generation)
                && record.first > 1
                && self.state.lineage().is_none()
            {
                self.state.first = record.first;
                self.lose((record.generation, 1..=record.first - 1));
            }
        }
        self.above = record.last_id();
        self.end.last = record.last();
        self.salvager.saved.records += 1;
        self.salvager.saved.events += u64::from(record.count);
        Ok(())
    }

    /// Whether a state says what the session, or a fork, keeps of a generation.
    fn is_expected(&self, generation: u32) -> bool {
        let wanted = &self.salvager.wanted;
        let newest = wanted.newest.get(self.session);
        let mut shared = wanted.shared_of(self.session).iter();
        newest.is_some_and(|newest| newest.generation >= generation)
            || shared.any(|shared| shared.generation == generation)
    }

    /// Fills what the state says was there behind the last record.
    fn finish<R: Iterator<Item = Record>>(
        &mut self,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let below = part.stretch.last_id.plus(1);
        let (generation, last) = (self.state.generation, self.state.last);
        if self.is_known && self.state.is_there() && self.is_expected(generation) {
            self.fill_shared(Some(generation), below, part, out)?;
            let next = self.end.enter(generation);
            self.fill_wanted(generation, &(next..=last), below, part, out)?;
        }
        self.fill_shared(None, below, part, out)?;
        let hidden_before = self.end.hidden_before;
        let is_same = self.end.generation == generation && self.state.is_there();
        if is_same && hidden_before > own_first(&self.state) {
            self.lose((generation, own_first(&self.state)..=hidden_before - 1));
            self.state.first = hidden_before;
        }
        self.end.is_there = self.state.is_there();
        self.end.enter(self.state.generation);
        Ok(())
    }

    /// Fills what forks share and no later segment can have, of the generations before `until` if
    /// there is such a one.
    fn fill_shared<R: Iterator<Item = Record>>(
        &mut self,
        until: Option<u32>,
        below: EventId,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let shared = self.salvager.wanted.shared_of(self.session).iter();
        let due = shared.filter(|shared| match until {
            Some(until) => shared.generation < until,
            None => shared.forked <= part.stretch.last_id,
        });
        let due: Vec<_> = due
            .filter(|shared| self.end.lacks(shared))
            .map(|shared| (shared.generation, *shared.seqs.end(), shared.forked))
            .collect();
        for (generation, last, forked) in due {
            let next = self.end.enter(generation);
            self.fill_wanted(generation, &(next..=last), below.min(forked), part, out)?;
        }
        Ok(())
    }

    /// Puts events in the place of those of a hole that are kept, with IDs below `below`.
    fn fill_wanted<R: Iterator<Item = Record>>(
        &mut self,
        generation: u32,
        hole: &RangeInclusive<Seq>,
        below: EventId,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let session = self.session;
        for seqs in self.salvager.wanted.parts(session, generation, hole) {
            let mut next = *seqs.start();
            while next <= *seqs.end() {
                let left = *seqs.end() + 1 - next;
                let Some((base, count)) = part.take_ids(self.above, below, left) else {
                    // There is no room, so the session begins behind the hole.
                    self.end.hidden_before = *seqs.end() + 1;
                    break;
                };
                let record = lost_events(session, (generation, next), base, count);
                let record = record.map_err(Fault::in_memory)?;
                out.put(&record)?;
                self.note_lost(&record);
                self.above = record_end(base, count);
                next += u64::from(count);
            }
            self.end.last = *seqs.end();
            self.lose((generation, seqs));
        }
        Ok(())
    }

    /// Lets a state that is not known follow from events that stand for lost ones.
    fn note_lost(&mut self, record: &Record) {
        let is_new = record.generation > self.state.generation;
        let is_more = record.generation == self.state.generation && self.state.is_there();
        if !self.is_known && (is_new || is_more) {
            self.state.apply(record);
        }
    }

    fn lose(&mut self, lost: (u32, RangeInclusive<Seq>)) {
        self.end.is_damaged = true;
        self.salvager.lose(self.session, lost);
    }
}

fn record_end(base: EventId, count: u32) -> EventId {
    base.plus(count - 1)
}

/// Takes sessions that were written before.
struct Nowhere;

impl SessionSink for Nowhere {
    fn put(&mut self, _record: &Record) -> Result<()> {
        Ok(())
    }

    fn end_session(&mut self, _session: &SessionId, _state: &SessionState) -> Result<()> {
        Ok(())
    }

    fn note_dropped(&mut self, _records: u64) {}
}
