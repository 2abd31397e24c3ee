//! An open log: the state that its handles and background threads share.
//!
//! All parts of a log are wired together here and nowhere else.

mod backup;
mod beside;
mod build;
mod calls;
mod folder;
mod open;
mod restore;
mod space;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::codec::FORMAT_VERSION;
use crate::disk::{Disk, Layout, Refusals};
use crate::index::{Index, Locator, is_indexed};
use crate::journal::{JournalWriter, Reached, Spares};
use crate::manifest::{Manifest, ManifestFile};
use crate::model::{
    CompactProgress, Compacted, Counters, Erasure, Error, EventId, IdClock, Options, Recovery,
    Result, Stats, Tier, clock_skew, now_ms, timestamp,
};
use crate::read::{Local, Store};
use crate::recent::Recent;
use crate::segment::{BlockCache, SegmentFolder, SegmentSet};
use crate::sync::{AtomicU64, Mailbox, Mutex, Ordering};
use crate::turn::TurnReader;
use crate::write::{Commit, LogState, RetainOrders, SealSignal, Shared};

pub(crate) use beside::{LOADS_MAX, no_log_in, still_names};
pub(crate) use build::{LogBuilder, Stretch};
pub(crate) use open::open;

/// The divisor for the index's memory: this part of it caches recent lookups, and sled gets the
/// rest.
const RUNS_SHARE: usize = 4;

/// An open log.
pub(crate) struct Engine {
    pub store: Arc<Store>,
    pub recent: Arc<Recent>,
    pub locator: Arc<Locator>,
    pub turns: TurnReader,
    pub writer: Option<Writer>,
    pub index: Arc<Index>,
    pub refusals: Arc<Refusals>,
    pub segments: SegmentFolder,
    pub layout: Layout,
    counters: Arc<Counters>,
    recovery: Recovery,
    /// Where a reader stands in the journal. `None` before it has read anything.
    reached: Mutex<Option<Reached>>,
    /// The manifest that a reader has followed last.
    followed: Mutex<Option<Manifest>>,
    /// Released on close.
    lock: Mutex<Option<FolderLock>>,
}

/// Holds the log's folder until it is dropped.
pub(crate) type FolderLock = Box<dyn Send + Sync>;

/// The parts that a read-only log lacks.
pub(crate) struct Writer {
    pub commit: Commit,
    pub shared: Arc<Shared>,
    pub manifest: Mutex<ManifestFile>,
    /// The merging thread's mailbox: whether the segments have changed.
    pub merge: Mailbox<MergeOrders>,
    /// Journal files before this LSN were sealed, and given back or removed.
    pub recycled: Mailbox<u64>,
    /// The highest number of a segment, also of one that is being written.
    segment_number: AtomicU64,
}

/// The orders for the merging thread.
#[derive(Default)]
pub(crate) struct MergeOrders {
    /// Whether the segments have changed.
    pub changed: bool,
    /// The number of requests to erase everything at once.
    pub asked: u64,
    /// The number of these that have been answered.
    pub answered: u64,
    /// The answer to the last one.
    pub answer: Option<Result<Compacted>>,
    /// The number of waiting callers.
    pub waiting: usize,
    pub progress: CompactProgress,
}

/// The result of opening a log, to be [assembled](Engine::assemble).
pub(crate) struct Parts {
    pub disk: Arc<dyn Disk>,
    pub layout: Layout,
    pub options: Options,
    pub refusals: Arc<Refusals>,
    pub manifest: ManifestFile,
    pub recent: Arc<Recent>,
    pub recovery: Recovery,
    pub lock: FolderLock,
    /// `None` for a read-only log.
    pub writer: Option<WriterParts>,
}

pub(crate) struct WriterParts {
    pub journal: JournalWriter,
    pub clock: IdClock,
    pub spares: Spares,
}

impl Writer {
    fn new(
        commit: Commit,
        shared: Arc<Shared>,
        manifest: ManifestFile,
        segment_number: u64,
    ) -> Self {
        // Full journal files from before need not wait for the first append.
        shared.seal.notify_idle();
        Self {
            commit,
            shared,
            manifest: Mutex::new(manifest),
            merge: Mailbox::default(),
            recycled: Mailbox::default(),
            segment_number: AtomicU64::new(segment_number),
        }
    }
}

impl Engine {
    /// Wires the parts of a log together.
    pub(crate) fn assemble(parts: Parts) -> Self {
        let Parts {
            disk,
            layout,
            options,
            refusals,
            manifest,
            recent,
            recovery,
            lock,
            writer,
        } = parts;
        let counters: Arc<Counters> = Arc::default();
        let segments = SegmentFolder {
            disk,
            path: layout.segments.clone(),
            store: manifest.value.store,
            cache: Arc::new(BlockCache::new(options.cache_bytes_max)),
        };
        let set = segments.set(&manifest.value.segments);
        let runs_bytes_max = options.index_cache_bytes_max / RUNS_SHARE;
        let index = Arc::new(Index::new(
            Arc::clone(&segments.disk),
            layout.index.clone(),
            segments.store,
            options.index_cache_bytes_max - runs_bytes_max,
            Arc::clone(&refusals),
        ));
        index.note_segments();
        let segment_number = set.highest_number();
        let has_own_retention = manifest.value.has_own_retention || recent.has_own_retention();
        let locator = Arc::new(Locator::new(set, Arc::clone(&index), runs_bytes_max));
        let writer = writer.map(|parts| {
            let shared = Arc::new(Shared {
                state: LogState::new(parts.journal.end_lsn()),
                recent: Arc::clone(&recent),
                locator: Arc::clone(&locator),
                spares: parts.spares,
                seal: SealSignal::default(),
                retain: Mailbox::new(RetainOrders {
                    has_own: has_own_retention,
                    look: true,
                }),
                counters: Arc::clone(&counters),
                refusals: Arc::clone(&refusals),
            });
            let commit = Commit::new(parts.journal, parts.clock, Arc::clone(&shared), &options);
            Writer::new(commit, shared, manifest, segment_number)
        });
        let records = Arc::new(Local::new(Arc::clone(&recent), Arc::clone(&locator)));
        let store = Arc::new(Store::new(records, Arc::clone(&counters), options));
        Self {
            turns: TurnReader::new(Arc::clone(&store)),
            store,
            recent,
            locator,
            writer,
            index,
            refusals,
            segments,
            layout,
            counters,
            recovery,
            reached: Mutex::default(),
            followed: Mutex::default(),
            lock: Mutex::new(Some(lock)),
        }
    }

    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(Error::ReadOnly)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let recent = &self.recent;
        let segments = self.locator.segments();
        // Read once, so that all segments are compared with the same list.
        let covered = self.index.covered();
        let groups = self.counters.groups();
        let (barrier_time, barrier_time_max) = self.counters.barrier_time();
        let last_id = recent.last_id();
        Stats {
            store_id: format!("{:032x}", self.segments.store.0),
            format: self.format(),
            last_id: (last_id > EventId::from_u128(0)).then_some(last_id),
            events: recent.events(),
            batches: count(&self.counters.batches),
            groups,
            journal_bytes: count(&self.counters.journal_bytes),
            barrier_time,
            barrier_time_max,
            segments: segments.iter().count() as u64,
            segment_bytes: segments.iter().map(|segment| segment.info.file_bytes).sum(),
            tiers: tiers(&segments),
            seals: count(&self.counters.seals),
            merges: count(&self.counters.merges),
            recent_bytes: recent.bytes(),
            index_lag: segments
                .iter()
                .filter(|segment| is_indexed(segment) && !covered.contains(&segment.info.number))
                .count() as u64,
            index_rebuilds: self.index.rebuilds(),
            streams: count(&self.counters.streams),
            refusals: self.refusals.count(),
            refused: self.refusals.standing(),
            space: self.space(&segments),
            clock_skew: clock_skew(&self.store.options.clock, last_id),
            recovery: self.recovery.clone(),
        }
    }

    /// Returns what was removed and is not erased yet.
    pub(crate) fn erasure(&self) -> Erasure {
        let options = &self.store.options;
        let (stored, in_journal, events) = self.with_manifest((None, None, 0), |manifest| {
            let marks = &manifest.marks;
            let stored = marks.iter().map(|mark| mark.removal_ms).min();
            let events = marks.iter().map(|mark| mark.events).sum();
            (stored, manifest.journal_removal_ms, events)
        });
        let in_memory = self.recent.oldest_removal_ms();
        let oldest = [stored, in_memory, in_journal].into_iter().flatten().min();
        let within = u64::try_from(options.erase_within.as_millis()).unwrap_or(u64::MAX);
        let due_ms = oldest.map(|removed| removed.saturating_add(within));
        Erasure {
            due: due_ms.map(timestamp),
            overdue: due_ms.is_some_and(|due| due < now_ms(&options.clock)),
            events,
        }
    }

    /// Reads the manifest of the writer, or the one that a reader has followed last.
    fn with_manifest<T>(&self, without: T, read: impl FnOnce(&Manifest) -> T) -> T {
        match &self.writer {
            Some(writer) => read(&writer.manifest.lock().value),
            None => self.followed.lock().as_ref().map_or(without, read),
        }
    }

    /// Returns the version of the format of the folder.
    fn format(&self) -> u32 {
        if self.writer.is_some() {
            return FORMAT_VERSION;
        }
        self.with_manifest(FORMAT_VERSION, |manifest| manifest.read_in)
    }

    /// Releases the log's folder.
    pub(crate) fn unlock(&self) {
        drop(self.lock.lock().take());
    }
}

/// Returns the segments by tier.
fn tiers(segments: &SegmentSet) -> Vec<Tier> {
    let mut tiers = BTreeMap::<u8, Tier>::new();
    for segment in segments.iter() {
        let info = &segment.info;
        let tier = tiers.entry(info.tier).or_default();
        tier.tier = info.tier;
        tier.segments += 1;
        tier.bytes += info.file_bytes;
    }
    tiers.into_values().collect()
}

impl Writer {
    /// Returns the number of the next segment. No other has it.
    pub(crate) fn next_segment(&self) -> u64 {
        self.segment_number.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Records in the manifest that the log ends here. No append may follow.
    pub(crate) fn record_clean_stop(&self) -> Result<()> {
        self.commit.check_place()?;
        let durable_lsn = self.commit.write_witness()?;
        let mut manifest = self.manifest.lock();
        self.shared.state.check_poison()?;
        let sealed_lsn = manifest.value.sealed_lsn();
        manifest.value.journal = self.shared.recent.files_in_use(sealed_lsn);
        manifest.value.durable_lsn = durable_lsn;
        manifest.value.clean = true;
        manifest.store()
    }
}
