//! An open log: the state that its handles and background threads share.
//!
//! All parts of a log are wired together here and nowhere else.

mod folder;
mod open;

use std::sync::Arc;

use crate::disk::{Disk, Layout, Refusals};
use crate::index::{Index, Locator};
use crate::journal::{JournalWriter, Spares};
use crate::manifest::ManifestFile;
use crate::model::{
    Batch, Counters, Error, IdClock, Options, Recovery, Result, SessionId, Stats, clock_skew,
};
use crate::read::Store;
use crate::recent::Recent;
use crate::segment::{BlockCache, FilterDir, Segment, SegmentInfo, SegmentSet};
use crate::sync::{AtomicU64, Mailbox, Mutex, Ordering};
use crate::turn::TurnReader;
use crate::write::{Commit, LogState, Request, SealSignal, Shared, Ticket};

pub(crate) use open::open;

/// The divisor for the index's memory: this part of it caches recent lookups, and sled gets the
/// rest.
const RUNS_SHARE: usize = 4;

/// An open log.
pub(crate) struct Engine {
    pub store: Arc<Store>,
    pub turns: TurnReader,
    pub writer: Option<Writer>,
    pub index: Arc<Index>,
    pub refusals: Arc<Refusals>,
    /// The span filters' folder. Segments are opened with the same disk, store and cache.
    pub filter_dir: FilterDir,
    pub layout: Layout,
    counters: Arc<Counters>,
    recovery: Recovery,
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
    /// Whether there is a segment that the filters thread has not seen.
    pub new_segment: Mailbox<bool>,
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
        let filter_dir = FilterDir {
            disk,
            folder: layout.filters.clone(),
            store: manifest.value.store,
            cache: Arc::new(BlockCache::new(options.cache_bytes_max)),
        };
        let segments = manifest.value.segments.iter().map(|info| {
            let segment = segment(&filter_dir, &layout, info.clone());
            Arc::new(segment)
        });
        let segments = SegmentSet::new(segments.collect());
        let runs_bytes_max = options.index_cache_bytes_max / RUNS_SHARE;
        let index = Arc::new(Index::new(
            Arc::clone(&filter_dir.disk),
            layout.index.clone(),
            filter_dir.store,
            options.index_cache_bytes_max - runs_bytes_max,
            Arc::clone(&refusals),
        ));
        index.note_segment(segments.newest_number());
        let locator = Arc::new(Locator::new(segments, Arc::clone(&index), runs_bytes_max));
        if writer.is_none() {
            locator.adopt_later(filter_dir.clone());
        }
        let writer = writer.map(|parts| {
            let shared = Arc::new(Shared {
                state: LogState::new(parts.journal.end_lsn()),
                recent: Arc::clone(&recent),
                locator: Arc::clone(&locator),
                spares: parts.spares,
                seal: SealSignal::default(),
                counters: Arc::clone(&counters),
                refusals: Arc::clone(&refusals),
            });
            // Full journal files from before need not wait for the first append.
            shared.seal.notify_idle();
            let commit = Commit::new(parts.journal, parts.clock, Arc::clone(&shared), &options);
            Writer {
                commit,
                shared,
                manifest: Mutex::new(manifest),
                new_segment: Mailbox::default(),
            }
        });
        let store = Arc::new(Store::new(recent, locator, Arc::clone(&counters), options));
        Self {
            turns: TurnReader::new(Arc::clone(&store)),
            store,
            writer,
            index,
            refusals,
            filter_dir,
            layout,
            counters,
            recovery,
            lock: Mutex::new(Some(lock)),
        }
    }

    pub(crate) fn writer(&self) -> Result<&Writer> {
        self.writer.as_ref().ok_or(Error::ReadOnly)
    }

    /// Checks and encodes a batch, and loads the state that the commit section decides by.
    pub(crate) fn request(
        &self,
        session: &SessionId,
        batch: Batch,
        ticket: &Arc<Ticket>,
    ) -> Result<Request> {
        let shared = &self.writer()?.shared;
        self.store.check_open()?;
        Request::new(shared, &self.store.options, session, batch, ticket)
    }

    /// Makes a segment of this log.
    pub(crate) fn segment(&self, info: SegmentInfo) -> Segment {
        segment(&self.filter_dir, &self.layout, info)
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let recent = &self.store.recent;
        let segments = self.store.locator.segments();
        // Read once, so that all segments are compared with the same number.
        let indexed = self.index.through();
        let groups = self.counters.groups();
        let (barrier_time, barrier_time_max) = self.counters.barrier_time();
        Stats {
            events: recent.events(),
            batches: count(&self.counters.batches),
            groups,
            journal_bytes: count(&self.counters.journal_bytes),
            barrier_time,
            barrier_time_max,
            segments: segments.iter().count() as u64,
            segment_bytes: segments.iter().map(|segment| segment.info.file_bytes).sum(),
            recent_bytes: recent.bytes(),
            index_lag: segments
                .iter()
                .filter(|segment| segment.info.number > indexed)
                .count() as u64,
            index_rebuilds: self.index.rebuilds(),
            streams: count(&self.counters.streams),
            refusals: self.refusals.count(),
            refused: self.refusals.standing(),
            clock_skew: clock_skew(&self.store.options.clock, recent.last_id()),
            recovery: self.recovery.clone(),
        }
    }

    /// Releases the log's folder.
    pub(crate) fn unlock(&self) {
        drop(self.lock.lock().take());
    }
}

impl Writer {
    /// Records in the manifest that the log ends here. No append may follow.
    pub(crate) fn record_clean_stop(&self) -> Result<()> {
        self.commit.check_place()?;
        let durable_lsn = self.commit.write_witness()?;
        let mut manifest = self.manifest.lock();
        manifest.value.journal = self.shared.recent.files_in_use(0);
        manifest.value.durable_lsn = durable_lsn;
        manifest.value.clean = true;
        manifest.store()
    }
}

fn segment(dir: &FilterDir, layout: &Layout, info: SegmentInfo) -> Segment {
    let (disk, cache) = (Arc::clone(&dir.disk), Arc::clone(&dir.cache));
    Segment::new(info, dir.store, &layout.segments, disk, cache)
}
