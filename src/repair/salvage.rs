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
use crate::model::{EventId, Options, Result, Seq, SessionId, Turn};
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
/// * What was removed stays removed, and its bytes are erased from the new log in the background.
///
/// After a salvage that was cut short, the same call goes on.
///
/// # Errors
///
/// [`Error::Io`](crate::Error::Io) if there is no log in `from`, or if a write failed.
/// [`Error::Invalid`](crate::Error::Invalid) if `to` holds something else.
/// [`Error::Unsupported`](crate::Error::Unsupported) if a later version wrote the log.
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
}

#[derive(Debug, Clone, Copy, Default)]
struct SessionEnd {
    generation: u32,
    /// The first seq that was saved of the generation, without a hole up to the last one.
    first: Seq,
    last: Seq,
    is_there: bool,
    is_damaged: bool,
}

/// What one segment of the new log is made from.
struct Part<R: Iterator<Item = Record>> {
    stretch: Stretch,
    /// In the order of sessions, generations and seqs.
    records: Peekable<R>,
    /// The states that are known.
    states: BTreeMap<SessionId, SessionState>,
    /// IDs that lost events may get.
    free_ids: Vec<RangeInclusive<EventId>>,
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

    /// Takes IDs between two others for lost events: free ones if there are any, otherwise from the
    /// middle, where another record is unlikely.
    fn take_ids(&mut self, above: EventId, below: EventId, count: u32) -> Option<EventId> {
        let (above, below) = (above.to_u128(), below.to_u128());
        let count = u128::from(count);
        for free in &mut self.free_ids {
            let first = free.start().to_u128().max(above + 1);
            let end = (free.end().to_u128() + 1).min(below);
            if first + count <= end {
                *free = EventId::from_u128(first + count)..=*free.end();
                return Some(EventId::from_u128(first));
            }
        }
        let middle = above + (below.saturating_sub(above)) / 2;
        (middle > above && middle + count <= below).then(|| EventId::from_u128(middle))
    }
}

impl<'a> Salvager<'a> {
    fn new(survey: &Survey, tell: &'a mut dyn FnMut(Told)) -> Self {
        let mut teller = Teller::new(tell);
        survey.faults.iter().for_each(|error| teller.finding(error));
        teller.of = survey.segment_bytes();
        Self {
            teller,
            ends: HashMap::new(),
            saved: Salvaged::default(),
            last_id: EventId::from_u128(0),
            has_own_retention: false,
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
        let mut part = Part {
            stretch: Stretch {
                // The IDs of what is lost at the end of the segment before may be needed here.
                first_id: info.first_id().min(self.last_id.plus(1)),
                last_id: info.last_id(),
                tier: info.tier,
                items_max: segment.filter_items(),
            },
            states: std::mem::take(&mut rest.states),
            free_ids: std::mem::take(&mut rest.free_ids),
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
        let between = new().zip(new().skip(1));
        let before = |id: EventId| EventId::from_u128(id.to_u128() - 1);
        let free_ids = between.map(|(one, next)| one.last_id().plus(1)..=before(next.base));
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
            states: BTreeMap::new(),
            free_ids: free_ids.filter(|free| !free.is_empty()).collect(),
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
            builder.add(stretch, |out| self.sessions(part, &older, out))?;
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
        let expected = self.expected(record);
        if record.generation < self.end.generation || record.first < expected {
            return Ok(());
        }
        if record.generation > self.end.generation {
            (self.end.generation, self.end.first) = (record.generation, expected);
        }
        if record.first > expected {
            let hole = (record.generation, expected..=record.first - 1);
            self.fill(hole, record.base, part, out)?;
        }
        out.put(record)?;
        if !self.is_known {
            let is_new = record.generation > self.state.generation;
            self.state.apply(record);
            if is_new && record.first > 1 && self.state.lineage().is_none() {
                self.lose((record.generation, 1..=record.first - 1));
            }
        }
        self.above = record.last_id();
        self.end.last = record.last();
        self.salvager.saved.records += 1;
        self.salvager.saved.events += u64::from(record.count);
        Ok(())
    }

    /// Returns the seq that a record should have.
    fn expected(&self, record: &Record) -> Seq {
        if record.generation == self.end.generation {
            return self.end.last + 1;
        }
        let is_current = self.is_known && record.generation == self.state.generation;
        if is_current && self.state.is_there() {
            self.own_first().min(record.first)
        } else {
            record.first
        }
    }

    /// Returns the first seq of the state that belongs to the session itself.
    fn own_first(&self) -> Seq {
        let branched = self.state.lineage().map_or(0, |lineage| lineage.at);
        self.state.first.max(branched + 1)
    }

    /// Fills what the state says was there behind the last record.
    fn finish<R: Iterator<Item = Record>>(
        &mut self,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let state = &self.state;
        if self.is_known && state.is_there() {
            let mut first = self.own_first();
            if self.end.generation == state.generation {
                first = first.max(self.end.last + 1);
            } else {
                (self.end.generation, self.end.first) = (state.generation, first);
            }
            let hole = (state.generation, first..=state.last);
            if !hole.1.is_empty() {
                let below = part.stretch.last_id.plus(1);
                self.fill(hole, below, part, out)?;
            }
        }
        // What is lost before that cannot be put there any more.
        let is_same = self.end.generation == self.state.generation && self.state.is_there();
        if is_same && self.end.first > self.own_first() {
            self.state.first = self.end.first;
        }
        self.end.is_there = self.state.is_there();
        self.end.generation = self.end.generation.max(self.state.generation);
        Ok(())
    }

    /// Puts events in the place of lost ones, with IDs below `below`.
    fn fill<R: Iterator<Item = Record>>(
        &mut self,
        (generation, seqs): (u32, RangeInclusive<Seq>),
        below: EventId,
        part: &mut Part<R>,
        out: &mut dyn SessionSink,
    ) -> Result<()> {
        let (first, last) = (*seqs.start(), *seqs.end());
        let mut next = first;
        while next <= last {
            let count = (last + 1 - next).min(LOST_EVENTS_MAX);
            let count = u32::try_from(count).expect("it is bounded");
            let Some(base) = part.take_ids(self.above, below, count) else {
                // There is no room, so the session begins behind the hole.
                self.end.first = last + 1;
                break;
            };
            let record = lost_events(self.session, (generation, next), base, count);
            out.put(&record.map_err(Fault::in_memory)?)?;
            self.above = record_end(base, count);
            next += u64::from(count);
        }
        self.end.last = last;
        // What forks do not share of an earlier generation may have been removed.
        if generation >= self.state.generation {
            self.lose((generation, first..=last));
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
