//! Finds what is sealed: asks the index, checks its answer against the segments, and asks their
//! footers where it falls short.
//!
//! Seqs are dense, so an entry that the index lost shows as a seq without a run. Where a session
//! ends, or that there is none, is what the filters say.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::Record;
use crate::index::runs_cache::{IndexedRuns, RunsCache};
use crate::index::{Asked, Index, IndexEntry};
use crate::model::{Error, FIRST_SEQ, Head, Result, Seq, SessionId};
use crate::segment::{FilterDir, RunEntry, Segment, SegmentSet, SpanFilter};
use crate::sync::{Mutex, RwLock};

/// For so many seqs the index is asked at once.
const ASKED_SEQS: Seq = 128;

/// No more is fetched ahead: of large events a page may hold few, and reading them takes longer
/// than getting to them.
const PREFETCHED_BYTES_MAX: u64 = 1024 * 1024;

pub(crate) struct Locator {
    segments: RwLock<Arc<SegmentSet>>,
    index: Arc<Index>,
    runs: RunsCache,
    unadopted: Mutex<Option<Unadopted>>,
}

/// Span filters that no background work adopts.
struct Unadopted {
    dir: FilterDir,
    /// How many segments lookups have passed.
    passed: u64,
}

/// Reads a session's records from the segments, in either direction.
pub(crate) struct SealedReader<'a> {
    locator: &'a Locator,
    session: &'a SessionId,
    generation: u32,
    /// What the index said last.
    indexed: Option<Arc<IndexedRuns>>,
    /// The seqs that this reader asked it for, so that it does not ask again for what is not there.
    asked: Option<RangeInclusive<Seq>>,
    /// What it said last was fetched ahead.
    prefetched: bool,
    /// The segment of the last run. The next run that is asked for lies in it or beside it.
    near: Option<u64>,
}

impl Locator {
    /// Finds what lies in `segments`, with so much memory for what the index said.
    pub(crate) fn new(segments: SegmentSet, index: Arc<Index>, runs_bytes_max: usize) -> Self {
        let (segments, runs) = (
            RwLock::new(Arc::new(segments)),
            RunsCache::new(runs_bytes_max),
        );
        Self {
            segments,
            index,
            runs,
            unadopted: Mutex::default(),
        }
    }

    /// Has lookups adopt the filters of this folder, once they are worth it.
    pub(crate) fn adopt_later(&self, dir: FilterDir) {
        *self.unadopted.lock() = Some(Unadopted { dir, passed: 0 });
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

    /// Lets readers use filters over many segments.
    pub(crate) fn publish_filters(&self, filters: impl IntoIterator<Item = SpanFilter>) {
        let mut segments = self.segments.write();
        *segments = Arc::new(segments.with_filters(filters));
    }

    /// Where a session ends in the segments. Found through the filters alone, as a
    /// [key](Self::record_of_key) is: they have to say in any case that no newer segment has more
    /// of it.
    pub(crate) fn head(&self, session: &SessionId) -> Result<Option<Head>> {
        let segments = self.segments();
        let last = segments.last_run(session)?;
        let holder = last.as_ref().map_or(0, |(segment, _)| segment.info.number);
        self.note_passed(segments.newest_number().saturating_sub(holder), &segments);
        Ok(last.map(|(_, RunEntry { run, last_id })| Head {
            generation: run.generation,
            first: FIRST_SEQ,
            last: run.last(),
            last_id,
        }))
    }

    /// Adopts the span filters once lookups have passed as many segments as there are: that
    /// reads a little of each.
    fn note_passed(&self, passed: u64, segments: &SegmentSet) {
        let mut unadopted = self.unadopted.lock();
        let Some(waiting) = unadopted.as_mut() else {
            return;
        };
        waiting.passed += passed;
        let is_time = waiting.passed > segments.newest_number();
        let taken = if is_time { unadopted.take() } else { None };
        drop(unadopted);
        if let Some(Unadopted { dir, .. }) = taken {
            let filters = SpanFilter::list::<Error>(&dir, segments, || Ok(()));
            // Where they cannot be listed, each segment is asked.
            self.publish_filters(filters.unwrap_or_default());
        }
    }

    /// Reads a session's records from the segments.
    pub(crate) fn reader<'a>(
        &'a self,
        session: &'a SessionId,
        generation: u32,
    ) -> SealedReader<'a> {
        SealedReader {
            locator: self,
            session,
            generation,
            indexed: None,
            asked: None,
            prefetched: false,
            near: None,
        }
    }

    /// The record that landed under an idempotency key. Found through the filters alone: proving a
    /// key absent, which is the common case, costs less that way than an entry in the index for
    /// every key ever used.
    pub(crate) fn record_of_key(
        &self,
        session: &SessionId,
        generation: u32,
        key: &str,
    ) -> Result<Option<Record>> {
        self.segments().record_of_key(session, generation, key)
    }
}

impl SealedReader<'_> {
    /// The records of the run that holds `seq`, as far as they overlap `range`, which `seq` begins
    /// or ends; in order, at least one.
    pub(crate) fn records(
        &mut self,
        seq: Seq,
        range: &RangeInclusive<Seq>,
    ) -> Result<(Arc<Segment>, Vec<Record>)> {
        let Self {
            locator,
            session,
            generation,
            ..
        } = *self;
        let (asked, entry) = self.ask(seq, range);
        let segments = locator.segments();
        let indexed = entry.and_then(|entry| Some((segments.by_number(entry.segment)?, entry.run)));
        if let Some((segment, run)) = &indexed
            && !segment.is_cached(run)
        {
            self.prefetch(seq, range, &segments);
        }
        if let Some((segment, run)) = &indexed
            && let Ok(records) = segment.run_records(session, run, range)
            && let Ok(records) = records.collect()
        {
            self.near = Some(segment.info.number);
            return Ok((Arc::clone(segment), records));
        }
        let Some((segment, RunEntry { run, .. })) =
            segments.run_at(session, (generation, seq), self.near)?
        else {
            let file = segments
                .iter()
                .next_back()
                .map(|segment| segment.path().to_path_buf())
                .unwrap_or_default();
            return Err(Error::corrupt(
                file,
                0,
                format!("seq {seq} of session {session} is in no segment"),
            ));
        };
        self.near = Some(segment.info.number);
        // Where the index says the same as the footer, it is the segment that cannot be read.
        let is_indexed = indexed.is_some_and(|(indexed, said)| {
            (indexed.info.number, said) == (segment.info.number, run)
        });
        if segment.info.number <= asked.through && !is_indexed {
            locator.index.distrust(asked);
        }
        if indexed.is_some() && !is_indexed {
            locator.runs.forget(session);
        }
        let records = segment
            .run_records(session, &run, range)?
            .collect::<Result<_>>()?;
        Ok((segment, records))
    }

    /// Lets the disk fetch what the index has told of at the same time, since a page's runs are
    /// read one after the other.
    fn prefetch(&mut self, seq: Seq, range: &RangeInclusive<Seq>, segments: &SegmentSet) {
        let Some(indexed) = self.indexed.as_ref().filter(|_| !self.prefetched) else {
            return;
        };
        let mut bytes = 0;
        let fetch = |entry: &IndexEntry| {
            bytes += u64::from(entry.run.address.block_bytes);
            if let Some(segment) = segments
                .by_number(entry.segment)
                .filter(|_| bytes <= PREFETCHED_BYTES_MAX)
            {
                segment.prefetch(&entry.run);
            }
        };
        let entries = indexed.overlapping(range).iter();
        if is_upwards(seq, range) {
            entries.rev().for_each(fetch);
        } else {
            entries.for_each(fetch);
        }
        self.prefetched = true;
    }

    /// What the index says, or said lately, of `seq`: for all of a page it is asked once or a few
    /// times.
    fn ask(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> (Asked, Option<IndexEntry>) {
        let Self {
            locator: Locator { index, runs, .. },
            session,
            generation,
            ..
        } = *self;
        let is_known = |indexed: &Arc<IndexedRuns>| indexed.at(seq).is_some();
        let was_asked = self
            .asked
            .as_ref()
            .is_some_and(|asked| asked.contains(&seq));
        let indexed = self
            .indexed
            .take()
            .filter(|indexed| was_asked || is_known(indexed));
        let indexed = indexed.unwrap_or_else(|| {
            (self.asked, self.prefetched) = (None, false);
            if let Some(known) = runs.get(session, generation, seq) {
                return known;
            }
            let asked = index.ask();
            let (from, to) = if is_upwards(seq, range) {
                (seq, (*range.end()).min(seq.saturating_add(ASKED_SEQS - 1)))
            } else {
                (
                    (*range.start()).max(seq.saturating_sub(ASKED_SEQS - 1)),
                    seq,
                )
            };
            let entries = index.runs_down(session, generation, (from, to));
            let indexed = Arc::new(IndexedRuns::new(asked, generation, entries));
            if is_known(&indexed) {
                runs.put(session, &indexed);
            }
            self.asked = Some(from..=to);
            indexed
        });
        (indexed.asked, self.indexed.insert(indexed).at(seq))
    }
}

/// Which way a range is read that `seq` begins or ends.
fn is_upwards(seq: Seq, range: &RangeInclusive<Seq>) -> bool {
    seq == *range.start()
}
