//! Finds sealed records. It queries the index, checks the answer against the segments, and searches
//! their footers if the index has no right answer.
//!
//! Seqs are dense, so an entry that the index lost shows as a seq without a run. The filters give a
//! session's head, or show that the session has none.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::Record;
use crate::index::runs_cache::{IndexedRuns, RunsCache};
use crate::index::{Asked, Index, IndexEntry};
use crate::model::{Error, FIRST_SEQ, Head, Result, Seq, SessionId};
use crate::segment::{FilterDir, RunEntry, Segment, SegmentSet, SpanFilter};
use crate::sync::{Mutex, RwLock};

/// The number of seqs in one query of the index.
const ASKED_SEQS: Seq = 128;

/// The most bytes that are prefetched. A page may hold few large events, and reading them takes
/// longer than reaching them.
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
    /// The number of segments that lookups have passed.
    passed: u64,
}

/// Reads a session's records from the segments, in either direction.
pub(crate) struct SealedReader<'a> {
    locator: &'a Locator,
    session: &'a SessionId,
    generation: u32,
    /// The last answer of the index.
    indexed: Option<Arc<IndexedRuns>>,
    /// The seqs that this reader queried, so that it does not query again for missing ones.
    asked: Option<RangeInclusive<Seq>>,
    /// Whether the runs of the last answer were prefetched.
    prefetched: bool,
    /// The segment of the last run. The next run is in it or near it.
    near: Option<u64>,
}

impl Locator {
    /// Returns a locator for `segments`, with `runs_bytes_max` of memory for answers of the index.
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

    /// Makes lookups adopt the filters of this folder, once that is worth it.
    pub(crate) fn adopt_later(&self, dir: FilterDir) {
        *self.unadopted.lock() = Some(Unadopted { dir, passed: 0 });
    }

    /// Returns the current segments.
    pub(crate) fn segments(&self) -> Arc<SegmentSet> {
        Arc::clone(&self.segments.read())
    }

    /// Makes a new segment visible to readers.
    pub(crate) fn publish(&self, segment: Segment) {
        let number = segment.info.number;
        let mut segments = self.segments.write();
        *segments = Arc::new(segments.with(Arc::new(segment)));
        drop(segments);
        self.index.note_segment(number);
    }

    /// Makes span filters available to readers.
    pub(crate) fn publish_filters(&self, filters: impl IntoIterator<Item = SpanFilter>) {
        let mut segments = self.segments.write();
        *segments = Arc::new(segments.with_filters(filters));
    }

    /// Returns the head of a session in the segments.
    ///
    /// It is found through the filters alone, like a [key](Self::record_of_key). They must show in
    /// any case that no newer segment has more of the session.
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

    /// Adopts the span filters once lookups have passed as many segments as there are, because
    /// adopting reads a little of each segment.
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
            // Without a list of filters, each segment is probed.
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

    /// Returns the record appended under an idempotency key.
    ///
    /// It is found through the filters alone. The common case is a key that is absent. The filters
    /// prove that at a lower cost than an index entry for every key ever used.
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
    /// Returns the records of the run that holds `seq` which overlap `range`, in order.
    ///
    /// `seq` must be the start or the end of `range`. There is at least one record.
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
        // If the index and the footer agree, the segment is unreadable and the index is right.
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

    /// Lets the disk prefetch the runs of the last answer in parallel, since a page reads its runs
    /// one after the other.
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

    /// Returns the entry of the index for `seq`, from a recent answer or from a query. A page needs
    /// only one query or a few.
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

/// Returns whether a range is read upwards, given that `seq` is its start or its end.
fn is_upwards(seq: Seq, range: &RangeInclusive<Seq>) -> bool {
    seq == *range.start()
}
