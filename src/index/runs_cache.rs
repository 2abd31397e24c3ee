//! What the index said of the sessions that were read lately, so that it need not be asked again:
//! sled copies a node each time.
//!
//! Runs are immutable and never move, so what was true stays true; but the index may know more by
//! now. So an answer is used for the seqs it has a run for, and for no others. It is believed no
//! more than the index: who finds it untrue has it forgotten.

use std::ops::RangeInclusive;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::{Asked, IndexEntry};
use crate::model::{Seq, SessionId};

/// A typical answer; only an estimate for the size of the cache's own tables.
const ANSWER_BYTES_TYPICAL: usize = 512;

/// Bookkeeping counted with each answer.
const ANSWER_OVERHEAD: usize = 192;

/// Runs of one session, as the index told of them.
#[derive(Debug)]
pub(crate) struct IndexedRuns {
    pub asked: Asked,
    pub generation: u32,
    /// The last first.
    entries: Box<[IndexEntry]>,
}

impl IndexedRuns {
    /// Takes the entries of this generation, the last first.
    pub(crate) fn new(asked: Asked, generation: u32, entries: Vec<IndexEntry>) -> Self {
        let entries = entries
            .into_iter()
            .filter(|entry| entry.run.generation == generation)
            .collect();
        Self {
            asked,
            generation,
            entries,
        }
    }

    /// The entry of the run that holds `seq`.
    pub(crate) fn at(&self, seq: Seq) -> Option<IndexEntry> {
        self.overlapping(&(seq..=seq))
            .first()
            .filter(|entry| entry.run.holds(seq))
            .copied()
    }

    /// The entries of the runs that overlap the range, the last first.
    pub(crate) fn overlapping(&self, range: &RangeInclusive<Seq>) -> &[IndexEntry] {
        let above = self
            .entries
            .partition_point(|entry| entry.run.first > *range.end());
        let through = self
            .entries
            .partition_point(|entry| entry.run.last() >= *range.start());
        self.entries.get(above..through).unwrap_or_default()
    }
}

/// The last answer for each session, bounded in bytes.
pub(crate) struct RunsCache(Cache<SessionId, Arc<IndexedRuns>, ByBytes>);

#[derive(Clone)]
struct ByBytes;

impl Weighter<SessionId, Arc<IndexedRuns>> for ByBytes {
    fn weight(&self, session: &SessionId, runs: &Arc<IndexedRuns>) -> u64 {
        (ANSWER_OVERHEAD + session.as_bytes().len() + size_of_val(&*runs.entries)) as u64
    }
}

impl RunsCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self(Cache::with_weighter(
            bytes_max / ANSWER_BYTES_TYPICAL + 1,
            bytes_max as u64,
            ByBytes,
        ))
    }

    /// What was said of the run that holds `seq`, and of its neighbours.
    pub(crate) fn get(
        &self,
        session: &SessionId,
        generation: u32,
        seq: Seq,
    ) -> Option<Arc<IndexedRuns>> {
        self.0
            .get(session)
            .filter(|runs| runs.generation == generation && runs.at(seq).is_some())
    }

    pub(crate) fn put(&self, session: &SessionId, runs: &Arc<IndexedRuns>) {
        self.0.insert(session.detached(), Arc::clone(runs));
    }

    pub(crate) fn forget(&self, session: &SessionId) {
        self.0.remove(session);
    }
}
