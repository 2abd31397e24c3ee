//! Saves what is left of a damaged log.
//!
//! The new log has a segment for each segment of the damaged one, and one for its journal. A
//! session whose seqs have a hole gets events in the place of the lost ones, redacted and of a type
//! of their own. So every other event keeps its seq and its ID, and cursors stay valid.

use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::codec::{BodyParts, EventContent, EventParts, Fault, Record, Seat, SessionState};
use crate::disk::{Disk, RealDisk, io_error};
use crate::engine::{LogBuilder, Stretch};
use crate::maintain::SessionSink;
use crate::manifest::Manifest;
use crate::model::{Error, EventId, Options, Result, Seq, SessionId, Turn};
use crate::read::shared_with;
use crate::repair::survey::Survey;
use crate::repair::{Loss, Teller, Told};
use crate::segment::{Segment, SegmentSet};

/// The type of an event that stands for a lost one.
const LOST: &str = "sessionlog.lost";

/// The most events in one record of lost ones.
const LOST_EVENTS_MAX: u64 = 1024;

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
///   and an ID of its own. The idempotency keys of lost batches are forgotten.
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
    /// Whether anything so far could not be read, so that there may be holes behind it.
    is_damaged: bool,
}

/// What the states and the journal say that sessions keep.
#[derive(Default)]
struct Wanted {
    newest: BTreeMap<SessionId, SessionState>,
    /// The seqs of a generation that forks share.
    shared: HashMap<SessionId, Vec<(u32, RangeInclusive<Seq>)>>,
}

impl Wanted {
    fn of(survey: &Survey) -> Self {
        let mut newest: BTreeMap<SessionId, SessionState> = BTreeMap::new();
        for segment in &survey.segments {
            // A segment without a table that can be read is told of later.
            newest.extend(segment.states().unwrap_or_default());
        }
        for record in &survey.journal {
            newest
                .entry(record.session.detached())
                .or_default()
                .apply(record);
        }
        let mut shared: HashMap<SessionId, Vec<_>> = HashMap::new();
        for state in newest.values() {
            for piece in state.pieces() {
                let seqs = shared_with(state, &piece.session, piece.generation);
                let of = shared.entry(piece.session.clone()).or_default();
                of.extend(seqs.map(|seqs| (piece.generation, seqs)));
            }
        }
        Self { newest, shared }
    }

    /// Returns the parts of a hole that the session or a fork keeps, in order.
    fn parts(
        &self,
        session: &SessionId,
        generation: u32,
        hole: &RangeInclusive<Seq>,
    ) -> Vec<RangeInclusive<Seq>> {
        let newest = self.newest.get(session);
        let own = match newest {
            Some(state) if state.generation == generation => {
                state.is_there().then(|| own_first(state)..=Seq::MAX)
            }
            Some(state) if state.generation > generation => None,
            // Nothing says that it was removed.
            _ => Some(0..=Seq::MAX),
        };
        let shared = self.shared.get(session).into_iter().flatten();
        let shared = shared.filter(|(of, _)| *of == generation);
        let mut kept: Vec<_> = shared.map(|(_, seqs)| seqs.clone()).chain(own).collect();
        kept.sort_unstable_by_key(|seqs| *seqs.start());
        let (mut next, mut parts) = (*hole.start(), Vec::new());
        for seqs in kept {
            let part = next.max(*seqs.start())..=(*seqs.end()).min(*hole.end());
            if !part.is_empty() {
                next = *part.end() + 1;
                parts.push(part);
            }
        }
        parts
    }

    /// Returns the last seq of a generation that forks share.
    fn shared_through(&self, session: &SessionId, generation: u32) -> Seq {
        let shared = self.shared.get(session).into_iter().flatten();
        let of = shared.filter(|(of, _)| *of == generation);
        of.map(|(_, seqs)| *seqs.end()).max().unwrap_or(0)
    }
}

/// Returns the first seq of a state that belongs to the session itself.
fn own_first(state: &SessionState) -> Seq {
    let branched = state.lineage().map_or(0, |lineage| lineage.at);
    state.first.max(branched + 1)
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

/// What one segment of the new log is made from.
struct Part<R: Iterator<Item = Record>> {
    stretch: Stretch,
    /// The number of records that were left out before, because they had been removed.
    dropped: u64,
    /// In the order of sessions, generations and seqs.
    records: Peekable<R>,
    /// The states that are known.
    states: BTreeMap<SessionId, SessionState>,
    /// The ranges of IDs that no record has, by their first. They are known if there is damage.
    free_ids: BTreeMap<u128, u128>,
}

impl<R: Iterator<Item = Record>> Part<R> {
    fn next_session(&mut self) -> Option<SessionId> {
        let of_record = self.records.peek().map(|record| &record.session);
        let of_state = self.states.keys().next();
        of_record
            .into_iter()
            .chain(of_state)
            .min()
            .map(SessionId::detached)
    }

    /// Takes up to `count` IDs that follow each other, between two others.
    fn take_ids(&mut self, above: EventId, below: EventId, count: u64) -> Option<(EventId, u32)> {
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
fn free_between(
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
            records: by_session.into_values().flatten().cloned().peekable(),
        };
        self.part(builder, &mut part)
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
            self.ends.insert(session, end);
        }
        Ok(())
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
        let next = if is_new { 1 } else { self.end.last + 1 };
        if record.generation < self.end.generation || record.first < next {
            return Ok(());
        }
        if is_new {
            (self.end.generation, self.end.hidden_before) = (record.generation, 0);
        }
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

    /// Whether a state says what the session keeps of a generation.
    fn is_expected(&self, generation: u32) -> bool {
        let newest = self.salvager.wanted.newest.get(self.session);
        newest.is_some_and(|newest| newest.generation >= generation)
    }

    /// Fills what the state says was there behind the last record.
    fn finish<R: Iterator<Item = Record>>(
        &mut self,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let (generation, mut last) = (self.state.generation, self.state.last);
        if !self.state.is_there() {
            last = self
                .salvager
                .wanted
                .shared_through(self.session, generation);
        }
        if self.is_known && self.is_expected(generation) {
            let is_new = generation > self.end.generation;
            let next = if is_new { 1 } else { self.end.last + 1 };
            if is_new {
                (self.end.generation, self.end.last) = (generation, 0);
                self.end.hidden_before = 0;
            }
            let below = part.stretch.last_id.plus(1);
            self.fill_wanted(generation, &(next..=last), below, part, out)?;
        }
        let hidden_before = self.end.hidden_before;
        let is_same = self.end.generation == generation && self.state.is_there();
        if is_same && hidden_before > own_first(&self.state) {
            self.lose((generation, own_first(&self.state)..=hidden_before - 1));
            self.state.first = hidden_before;
        }
        self.end.is_there = self.state.is_there();
        self.end.generation = self.end.generation.max(self.state.generation);
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
                out.put(&record.map_err(Fault::in_memory)?)?;
                self.above = record_end(base, count);
                next += u64::from(count);
            }
            self.end.last = *seqs.end();
            self.lose((generation, seqs));
        }
        Ok(())
    }

    fn lose(&mut self, (generation, seqs): (u32, RangeInclusive<Seq>)) {
        let (first, last) = (*seqs.start(), *seqs.end());
        self.end.is_damaged = true;
        self.salvager.saved.events_lost += last + 1 - first;
        self.salvager.teller.loss(Loss {
            session: self.session.clone(),
            generation,
            first,
            last,
        });
    }
}

fn record_end(base: EventId, count: u32) -> EventId {
    base.plus(count - 1)
}

/// Returns a record of events that stand for lost ones.
fn lost_events(
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
