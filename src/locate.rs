//! Finds what is sealed: asks the index, checks its answer against the segments, and asks their footers where it falls short.
//!
//! Seqs are dense, so an entry that the index lost in the middle shows as a seq without a run. That a run is a session's
//! last, or that there is none, is confirmed by the filters of all newer segments.

use std::sync::Arc;

use crate::codec::Record;
use crate::error::{Error, Result};
use crate::event::Seq;
use crate::index::{Asked, Index};
use crate::segment::{FoundRun, Segment, SegmentSet};
use crate::session::{FIRST_SEQ, Head, SessionId};
use crate::sync::RwLock;

pub(crate) struct Locator {
    segments: RwLock<Arc<SegmentSet>>,
    index: Arc<Index>,
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

    /// The records of the run that holds `seq`, as far as they overlap `range`; in order, at least one.
    pub(crate) fn records(
        &self,
        session: &SessionId,
        generation: u32,
        seq: Seq,
        range: (Seq, Seq),
    ) -> Result<(Arc<Segment>, Vec<Record>)> {
        let asked = self.index.ask();
        let segments = self.segments();
        let indexed = self.indexed_run(&segments, session, generation, seq);
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
            self.index.distrust(asked);
        }
        let records = overlapping(&segment, session, &run, range)?;
        Ok((segment, records))
    }

    /// The record that landed under an idempotency key. Found through the filters alone: proving a key absent, which is the common
    /// case, costs less that way than an entry in the index for every key ever used.
    pub(crate) fn record_of_key(&self, session: &SessionId, generation: u32, key: &str) -> Result<Option<Record>> {
        self.segments().record_of_key(session, generation, key)
    }

    /// The last run as the index has it, if the segment's own footer says the same. Of a segment that is being entered, behind those that are in,
    /// it may have some runs and not the last.
    fn indexed_last_run(&self, segments: &SegmentSet, session: &SessionId, asked: Asked) -> Result<Option<FoundRun>> {
        let Some(entry) = self.index.floor(session, u32::MAX, Seq::MAX) else { return Ok(None) };
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

    fn indexed_run(&self, segments: &SegmentSet, session: &SessionId, generation: u32, seq: Seq) -> Option<FoundRun> {
        let entry = self.index.floor(session, generation, seq)?;
        let segment = segments.by_number(entry.segment)?;
        let fits = entry.run.generation == generation && entry.run.holds(seq);
        fits.then(|| (Arc::clone(segment), entry.run))
    }
}

fn overlapping(segment: &Segment, session: &SessionId, run: &crate::segment::Run, range: (Seq, Seq)) -> Result<Vec<Record>> {
    let (from, to) = range;
    let mut records = Vec::new();
    for record in segment.run_records(session, run)? {
        let record = record?;
        if record.first > to {
            break;
        }
        if record.last() >= from {
            records.push(record);
        }
    }
    Ok(records)
}
