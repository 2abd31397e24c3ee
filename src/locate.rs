//! Finds what is sealed: asks the index, checks its answer against the segments, and asks their footers where it falls short.
//!
//! Seqs are dense, so an entry that the index lost in the middle shows as a seq without a run. That a run is a session's
//! last, or that there is none, is confirmed by the filters of all newer segments.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::Record;
use crate::error::{Error, Result};
use crate::event::Seq;
use crate::index::{Asked, Index, IndexEntry};
use crate::segment::{FoundRun, Run, Segment, SegmentSet};
use crate::session::{FIRST_SEQ, Head, SessionId};
use crate::sync::RwLock;

/// For so many seqs the index is asked at once.
const ASKED_SEQS: Seq = 128;

/// No more is fetched ahead: of large events a page may hold few, and reading them takes longer than getting to them.
const PREFETCHED_BYTES_MAX: u64 = 1024 * 1024;

pub(crate) struct Locator {
    segments: RwLock<Arc<SegmentSet>>,
    index: Arc<Index>,
}

/// Reads a session's records from the segments, in either direction.
pub(crate) struct SealedReader<'a> {
    locator: &'a Locator,
    session: &'a SessionId,
    generation: u32,
    /// What the index said last.
    indexed: Option<IndexedRuns>,
}

/// The runs of a range of seqs, as far as the index has them, in the order in which they are read.
struct IndexedRuns {
    asked: Asked,
    range: RangeInclusive<Seq>,
    entries: Vec<IndexEntry>,
    prefetched: bool,
}

impl Locator {
    pub(crate) fn new(segments: SegmentSet, index: Arc<Index>) -> Self {
        Self { segments: RwLock::new(Arc::new(segments)), index }
    }

    /// The segments as they are now.
    pub(crate) fn segments(&self) -> Arc<SegmentSet> {
        Arc::clone(&self.segments.read())
    }

    /// Lets readers see a new segment.
    pub(crate) fn publish(&self, segment: Segment) {
        let number = segment.info.number;
        let mut segments = self.segments.write();
        *segments = Arc::new(segments.with(Arc::new(segment)));
        drop(segments);
        self.index.note_segment(number);
    }

    /// Where a session ends in the segments.
    pub(crate) fn head(&self, session: &SessionId) -> Result<Option<Head>> {
        let asked = self.index.ask();
        let segments = self.segments();
        let indexed = self.indexed_last_run(&segments, session, asked)?;
        let known = indexed.as_ref().map_or(0, |(segment, _)| segment.info.number);
        let newer = segments.last_run(session, known)?;
        if newer.as_ref().is_some_and(|(segment, _)| segment.info.number <= asked.through) {
            self.index.distrust(asked);
        }
        Ok(newer.or(indexed).map(|(_, run)| Head {
            generation: run.generation,
            first: FIRST_SEQ,
            last: run.last(),
            last_id: run.last_id(),
        }))
    }

    /// Reads a session's records from the segments.
    pub(crate) fn reader<'a>(&'a self, session: &'a SessionId, generation: u32) -> SealedReader<'a> {
        SealedReader { locator: self, session, generation, indexed: None }
    }

    /// The record that landed under an idempotency key. Found through the filters alone: proving a key absent, which is the common
    /// case, costs less that way than an entry in the index for every key ever used.
    pub(crate) fn record_of_key(&self, session: &SessionId, generation: u32, key: &str) -> Result<Option<Record>> {
        self.segments().record_of_key(session, generation, key)
    }

    /// The last run as the index has it, if the segment's own footer says the same. Of a segment that is being entered, behind those that are in,
    /// it may have some runs and not the last.
    fn indexed_last_run(&self, segments: &SegmentSet, session: &SessionId, asked: Asked) -> Result<Option<FoundRun>> {
        let Some(entry) = self.index.last_run(session) else { return Ok(None) };
        match segments.by_number(entry.segment) {
            Some(segment) if segment.floor_run(session, u32::MAX, Seq::MAX)? == Some(entry.run) => {
                Ok(Some((Arc::clone(segment), entry.run)))
            }
            Some(_) if entry.segment > asked.through => Ok(None),
            _ => {
                self.index.distrust(asked);
                Ok(None)
            }
        }
    }
}

impl SealedReader<'_> {
    /// The records of the run that holds `seq`, as far as they overlap `range`, which `seq` begins or ends; in order, at least one.
    pub(crate) fn records(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> Result<(Arc<Segment>, Vec<Record>)> {
        let Self { locator: Locator { index, .. }, session, generation, .. } = *self;
        let (asked, entry) = self.ask(seq, range);
        let segments = self.locator.segments();
        let indexed = entry.and_then(|entry| Some((Arc::clone(segments.by_number(entry.segment)?), entry.run)));
        if let Some((segment, run)) = &indexed
            && !segment.is_at_hand(run)
        {
            self.prefetch(&segments);
        }
        if let Some((segment, run)) = &indexed
            && let Ok(records) = overlapping(segment, session, run, range)
        {
            return Ok((Arc::clone(segment), records));
        }
        let Some((segment, run)) = segments.run_at(session, generation, seq)? else {
            let file = segments.iter().next_back().map(|segment| segment.path().to_path_buf()).unwrap_or_default();
            return Err(Error::corrupt(file, 0, format!("seq {seq} of session {session} is in no segment")));
        };
        // Where the index says the same as the footer, it is the segment that cannot be read.
        let is_indexed = indexed.is_some_and(|(indexed, said)| (indexed.info.number, said) == (segment.info.number, run));
        if segment.info.number <= asked.through && !is_indexed {
            index.distrust(asked);
        }
        let records = overlapping(&segment, session, &run, range)?;
        Ok((segment, records))
    }

    /// Lets the disk fetch what the index has told of at the same time, since a page's runs are read one after the other.
    fn prefetch(&mut self, segments: &SegmentSet) {
        let Some(indexed) = self.indexed.as_mut().filter(|indexed| !indexed.prefetched) else { return };
        indexed.prefetched = true;
        let mut bytes = 0;
        for entry in &indexed.entries {
            bytes += u64::from(entry.run.place.block_bytes);
            if bytes > PREFETCHED_BYTES_MAX {
                break;
            }
            if let Some(segment) = segments.by_number(entry.segment) {
                segment.prefetch(&entry.run);
            }
        }
    }

    /// What the index says of `seq`: for all of a page it is asked once or a few times.
    fn ask(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> (Asked, Option<IndexEntry>) {
        let Self { locator: Locator { index, .. }, session, generation, .. } = *self;
        let known = self.indexed.take().filter(|known| known.range.contains(&seq));
        let known = known.unwrap_or_else(|| {
            let asked = index.ask();
            let is_upwards = seq == *range.start();
            let (from, to) = if is_upwards {
                (seq, (*range.end()).min(seq.saturating_add(ASKED_SEQS - 1)))
            } else {
                ((*range.start()).max(seq.saturating_sub(ASKED_SEQS - 1)), seq)
            };
            let mut entries = index.runs_down(session, generation, (from, to));
            if is_upwards {
                entries.reverse();
            }
            IndexedRuns { asked, range: from..=to, entries, prefetched: false }
        });
        let holds = |entry: &&IndexEntry| entry.run.generation == generation && entry.run.holds(seq);
        let found = known.entries.iter().find(holds).copied();
        (self.indexed.insert(known).asked, found)
    }
}

fn overlapping(segment: &Segment, session: &SessionId, run: &Run, range: &RangeInclusive<Seq>) -> Result<Vec<Record>> {
    let mut records = Vec::new();
    for record in segment.run_records(session, run)? {
        let record = record?;
        if record.first > *range.end() {
            break;
        }
        if record.last() >= *range.start() {
            records.push(record);
        }
    }
    Ok(records)
}
