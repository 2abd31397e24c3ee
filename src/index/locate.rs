//! Finds sealed records. It asks the segments that are not in the index, then the index, and checks
//! the answer against the segments. If the index has no right answer, it searches their footers.
//!
//! Seqs are dense, so an entry that the index lost shows as a seq without a run. The filters give a
//! session's state, or show that no segment has any of the session.

use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::codec::{Record, SessionState};
use crate::index::runs_cache::{IndexedRuns, RunsCache};
use crate::index::{Asked, Index, IndexEntry, is_indexed};
use crate::model::{Error, Result, Seq, SessionId};
use crate::segment::{Run, RunEntry, RunTail, Segment, SegmentSet, session_hash};
use crate::sync::RwLock;

/// The segments that are asked one by one, at most.
const UNINDEXED_MAX: usize = 16;

/// The number of seqs in one query of the index.
const ASKED_SEQS: Seq = 128;

/// The most bytes that are prefetched. A page may hold few large events, and reading them takes
/// longer than reaching them.
const PREFETCHED_BYTES_MAX: u64 = 1024 * 1024;

pub(crate) struct Locator {
    segments: RwLock<Arc<SegmentSet>>,
    index: Arc<Index>,
    runs: RunsCache,
}

/// Reads a session's records from the segments, in either direction.
pub(crate) struct SealedReader<'a> {
    locator: &'a Locator,
    session: SessionId,
    generation: u32,
    /// The segments of the last call. They stay while the reader uses them.
    segments: Arc<SegmentSet>,
    /// The segments that are not in the index and may hold the session, newest first.
    unindexed: Option<Vec<Arc<Segment>>>,
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
        Self {
            segments: RwLock::new(Arc::new(segments)),
            index,
            runs: RunsCache::new(runs_bytes_max),
        }
    }

    /// Returns the current segments.
    pub(crate) fn segments(&self) -> Arc<SegmentSet> {
        Arc::clone(&self.segments.read())
    }

    /// Makes other segments visible to readers.
    pub(crate) fn publish(&self, change: impl FnOnce(&SegmentSet) -> SegmentSet) {
        let mut segments = self.segments.write();
        *segments = Arc::new(change(&segments));
        drop(segments);
        self.index.note_segments();
    }

    /// Returns the state of a session as the segments have it.
    ///
    /// It is found through the filters alone, like a [key](Self::record_of_key). They must show in
    /// any case that no newer segment has more of the session.
    pub(crate) fn state(&self, session: &SessionId) -> Result<SessionState> {
        let segments = self.segments();
        let Some((segment, entry)) = segments.last_run(session)? else {
            return Ok(SessionState::default());
        };
        match entry.tail {
            RunTail::State(state) => segment.decode_state(&state),
            RunTail::LastId(_) => self.state_of_v1(session, &entry.run),
            RunTail::None => Err(segment.impossible("run without a state")),
        }
    }

    /// Returns the state of a session whose last segment version 1 wrote: the state in the segments
    /// that were written again since, and the records after these.
    fn state_of_v1(&self, session: &SessionId, last: &Run) -> Result<SessionState> {
        let mut state = self.segments().newest_state(session)?;
        let mut reader = self.reader(session, last.generation);
        let mut next = state.last + 1;
        while next <= last.last() {
            let (_segment, records) = reader.records(next, &(next..=last.last()))?;
            for record in &records {
                state.apply(record);
                next = record.last() + 1;
            }
        }
        Ok(state)
    }

    /// Lets the disk prefetch the runs that the index knows of these seqs.
    ///
    /// It knows no more of a session than its place, so the seqs are taken as those of the newest
    /// generation that it has.
    pub(crate) fn prefetch(&self, session: &SessionId, seqs: &RangeInclusive<Seq>) {
        let Some(generation) = self.index.newest_generation(session) else {
            return;
        };
        let (mut reader, from) = (self.reader(session, generation), *seqs.start());
        // As much as the reader of the page asks for, which then finds the answer.
        reader.ask(from, &(from..=Seq::MAX));
        reader.prefetch(from, seqs);
    }

    /// Reads a session's records from the segments.
    pub(crate) fn reader(&self, session: &SessionId, generation: u32) -> SealedReader<'_> {
        SealedReader {
            locator: self,
            session: session.clone(),
            generation,
            segments: self.segments(),
            unindexed: None,
            indexed: None,
            asked: None,
            prefetched: false,
            near: None,
        }
    }

    /// Returns the newest record appended under an idempotency key.
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

/// A run, with its segment.
type Located = (Arc<Segment>, Run);

impl SealedReader<'_> {
    /// Takes the segments of now. A record that left memory since the last call is in one of them.
    pub(crate) fn look_again(&mut self) {
        let segments = self.locator.segments();
        if !Arc::ptr_eq(&segments, &self.segments) {
            self.segments = segments;
            self.unindexed = None;
        }
    }

    /// Returns the records of the run that holds `seq` which overlap `range`, in order.
    ///
    /// `seq` must be the start or the end of `range`. There is at least one record.
    pub(crate) fn records(
        &mut self,
        seq: Seq,
        range: &RangeInclusive<Seq>,
    ) -> Result<(Arc<Segment>, Vec<Record>)> {
        self.look_again();
        if let Some(located) = self.in_unindexed(seq, range)? {
            if !located.0.is_cached(&located.1) {
                self.prefetch_unindexed(range);
            }
            return self.read(located, range);
        }
        let (asked, entry) = self.ask(seq, range);
        let indexed = entry.and_then(|entry| self.run_of(&entry, seq));
        if let Some((segment, run)) = &indexed
            && self.answers_in(range) > 1
            && !segment.is_cached(run)
        {
            self.prefetch(seq, range);
        }
        if let Some(located) = &indexed
            && let Ok(read) = self.read(located.clone(), range)
        {
            return Ok(read);
        }
        let found = self
            .segments
            .run_at(&self.session, (self.generation, seq), self.near)?;
        let Some((segment, RunEntry { run, .. })) = found else {
            return Err(self.missing(seq));
        };
        // If the index and the footer agree, the segment is unreadable and the index is right.
        let is_indexed = indexed.as_ref().is_some_and(|(indexed, said)| {
            (indexed.info.number, *said) == (segment.info.number, run)
        });
        if asked.covers(segment.info.number) && !is_indexed {
            self.locator.index.distrust(&asked);
        }
        if entry.is_some() && !is_indexed {
            self.locator.runs.forget(&self.session);
        }
        self.read((segment, run), range)
    }

    fn read(
        &mut self,
        (segment, run): Located,
        range: &RangeInclusive<Seq>,
    ) -> Result<(Arc<Segment>, Vec<Record>)> {
        let records = segment
            .run_records(&self.session, &run, range)?
            .collect::<Result<_>>()?;
        self.near = Some(segment.info.number);
        Ok((segment, records))
    }

    /// Returns the run of a segment that is not in the index.
    ///
    /// A segment that cannot be read is passed over here. If the run is in it, the search in all
    /// segments reports the error.
    fn in_unindexed(&mut self, seq: Seq, range: &RangeInclusive<Seq>) -> Result<Option<Located>> {
        let unindexed = self.segments.iter().filter(|segment| !is_indexed(segment));
        // So many are there only if merging has fallen behind. A search asks fewer of them.
        if unindexed.count() > UNINDEXED_MAX {
            let found = self
                .segments
                .run_at(&self.session, (self.generation, seq), self.near)?;
            return Ok(found.map(|(segment, entry)| (segment, entry.run)));
        }
        let item = session_hash(self.session.as_bytes());
        let unindexed = self.unindexed.get_or_insert_with(|| {
            let all = self.segments.iter().rev();
            let may_hold = |segment: &&Arc<Segment>| {
                !is_indexed(segment) && segment.may_hold(item).unwrap_or(false)
            };
            all.filter(may_hold).map(Arc::clone).collect()
        });
        // The next run is in the segment of the last one, or further in the direction of the read.
        let mut order: Vec<&Arc<Segment>> = unindexed.iter().collect();
        if is_upwards(seq, range) {
            order.reverse();
        }
        let is_near = |segment: &&Arc<Segment>| Some(segment.info.number) == self.near;
        let near = order.iter().position(is_near).unwrap_or(0);
        order.rotate_left(near);
        for segment in order {
            let found = segment.floor_run(&self.session, self.generation, seq);
            if let Ok(Some(RunEntry { run, .. })) = found
                && run.generation == self.generation
                && run.holds(seq)
            {
                return Ok(Some((Arc::clone(segment), run)));
            }
        }
        Ok(None)
    }

    /// Lets the disk prefetch the last run of the range in each segment that is not in the index.
    /// Most segments hold one.
    fn prefetch_unindexed(&mut self, range: &RangeInclusive<Seq>) {
        if std::mem::replace(&mut self.prefetched, true) {
            return;
        }
        for segment in self.unindexed.iter().flatten() {
            let found = segment.floor_run(&self.session, self.generation, *range.end());
            if let Ok(Some(RunEntry { run, .. })) = found
                && run.generation == self.generation
                && run.last() >= *range.start()
            {
                segment.prefetch(&run);
            }
        }
    }

    /// Returns the run that holds `seq` in the stretch of an entry, if its segment is there.
    fn run_of(&self, entry: &IndexEntry, seq: Seq) -> Option<Located> {
        let segment = self.segments.by_number(entry.segment)?;
        let run = if entry.run.holds(seq) {
            entry.run
        } else {
            let found = segment.floor_run(&self.session, self.generation, seq);
            let run = found.ok().flatten()?.run;
            (run.generation == self.generation && run.holds(seq)).then_some(run)?
        };
        Some((Arc::clone(segment), run))
    }

    /// Returns how many entries of the last answer overlap a range.
    fn answers_in(&self, range: &RangeInclusive<Seq>) -> usize {
        let indexed = self.indexed.as_ref();
        indexed.map_or(0, |indexed| indexed.overlapping(range).len())
    }

    fn missing(&self, seq: Seq) -> Error {
        let file = self
            .segments
            .iter()
            .next_back()
            .map(|segment| segment.path().to_path_buf())
            .unwrap_or_default();
        let what = format!("seq {seq} of session {} is in no segment", self.session);
        Error::corrupt(file, 0, what)
    }

    /// Lets the disk prefetch the runs of the last answer in parallel, since a page reads its runs
    /// one after the other.
    fn prefetch(&mut self, seq: Seq, range: &RangeInclusive<Seq>) {
        let Some(indexed) = self.indexed.as_ref().filter(|_| !self.prefetched) else {
            return;
        };
        let mut bytes = 0;
        let fetch = |entry: &IndexEntry| {
            bytes += u64::from(entry.run.address.block_bytes);
            if let Some(segment) = self
                .segments
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
        let Locator { index, runs, .. } = self.locator;
        let is_known = |indexed: &Arc<IndexedRuns>| {
            indexed
                .at(seq)
                .is_some_and(|entry| self.segments.by_number(entry.segment).is_some())
        };
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
            if let Some(known) = runs.get(&self.session, self.generation, seq)
                && is_known(&known)
            {
                return known;
            }
            let (from, to) = if is_upwards(seq, range) {
                (seq, (*range.end()).min(seq.saturating_add(ASKED_SEQS - 1)))
            } else {
                (
                    (*range.start()).max(seq.saturating_sub(ASKED_SEQS - 1)),
                    seq,
                )
            };
            let (asked, entries) = index.stretches_down(&self.session, self.generation, (from, to));
            let indexed = Arc::new(IndexedRuns::new(asked, self.generation, entries));
            if is_known(&indexed) {
                runs.put(&self.session, &indexed);
            }
            self.asked = Some(from..=to);
            indexed
        });
        let indexed = self.indexed.insert(indexed);
        (indexed.asked.clone(), indexed.at(seq))
    }
}

/// Returns whether a range is read upwards, given that `seq` is its start or its end.
fn is_upwards(seq: Seq, range: &RangeInclusive<Seq>) -> bool {
    seq == *range.start()
}
