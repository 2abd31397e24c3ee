//! A cache of the index's answers for recently read sessions. It saves queries, in each of which
//! sled copies a node.
//!
//! A merge moves runs, and the index may know more by now. So an answer serves only the seqs that
//! it has an entry for, and only while the entry's segment is there. It is trusted no more than the
//! index: a reader that finds it untrue removes it.

use std::ops::RangeInclusive;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::index::{Asked, IndexEntry};
use crate::model::{Seq, SessionId};

/// The typical size of an answer, in bytes. It only serves to size the cache's own tables.
const ANSWER_BYTES_TYPICAL: usize = 512;

/// The bookkeeping that counts with each answer, in bytes.
const ANSWER_OVERHEAD: usize = 192;

/// The entries of one session in an answer of the index.
#[derive(Debug)]
pub(crate) struct IndexedRuns {
    pub asked: Asked,
    pub generation: u32,
    /// The entries, the last first.
    entries: Box<[IndexEntry]>,
}

impl IndexedRuns {
    /// Keeps the entries of this generation. The last comes first.
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

    /// Returns the entry that holds `seq`.
    pub(crate) fn at(&self, seq: Seq) -> Option<IndexEntry> {
        self.overlapping(&(seq..=seq))
            .first()
            .filter(|entry| entry.holds(seq))
            .copied()
    }

    /// Returns the entries that overlap the range, the last first.
    pub(crate) fn overlapping(&self, range: &RangeInclusive<Seq>) -> &[IndexEntry] {
        let above = self
            .entries
            .partition_point(|entry| entry.run.first > *range.end());
        let through = self
            .entries
            .partition_point(|entry| entry.last >= *range.start());
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

    /// Returns the cached answer if it has the entry that holds `seq`.
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
