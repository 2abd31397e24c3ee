//! The index maps a session's seq to its place in a merged segment. This is the only file that
//! names sled.
//!
//! It is one tree with a key range for each session: `(session, generation, first seq) -> (segment,
//! first run)`. The session is its hash. Only merged segments are in it, because the few others are
//! asked one by one.
//!
//! The index only accelerates reads. One thread writes it in the background, after the segments.
//! Readers check its answers against the segments, whose footers tell what it lacks. So nothing
//! here can lose or change anything. Every failure, panics inside sled included, has one remedy:
//! set the folder aside and rebuild it.

mod check;
mod entry;
mod locate;
mod runs_cache;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use entry::IndexEntry;
pub(crate) use locate::{Locator, SealedReader};

use crate::codec::{SessionState, StoreId, decode_bare, encode_bare};
use crate::disk::{Disk, Refusals, Work};
use crate::index::entry::{Coverage, IndexValue, KIND_COVERAGE, entry_key, key_in, session_prefix};
use crate::model::{Error, Result, Seq, SessionId};
use crate::segment::{Run, RunEntry, RunTail, Segment, SegmentSet, split_run_key};
use crate::sync::{AtomicU64, Mailbox, Ordering, RwLock, Stopped};

/// The segment size of sled, in bytes. It is above sled's default, so that no value or consolidated
/// node becomes a file of its own in `blobs/`.
const SLED_SEGMENT_BYTES: usize = 8 * 1024 * 1024;

/// The number of entries in one write.
///
/// Larger batches make the process's memory grow: with 1,000 entries a batch, by 12 MB a second at
/// 10,000 entries a second. Smaller batches make the index fall behind sooner if there are many
/// small sessions.
const BATCH_ENTRIES: usize = 128;

/// The approximate size of an entry in sled's cache, in bytes.
const CACHED_ENTRY_BYTES: u64 = 128;

/// The delay before the next attempt, after sled failed to open or a segment could not be read.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The number of times that the delay doubles while a segment cannot be read or the index cannot be
/// set aside. It doubles because each attempt inserts the runs before the damage again.
const DOUBLINGS_MAX: u32 = 6;

/// The smallest cache for sled, in bytes. sled panics below 256 bytes and thrashes well above that.
const SLED_CACHE_BYTES_MIN: u64 = 1024 * 1024;

/// The reason for setting an index aside after a reader found it wrong.
const UNTRUE: &str = "it said something untrue";

pub(crate) struct Index {
    disk: Arc<dyn Disk>,
    folder: PathBuf,
    store: StoreId,
    cache_bytes: u64,
    refusals: Arc<Refusals>,
    db: RwLock<Option<sled::Db>>,
    covered: RwLock<Arc<[u64]>>,
    rebuilds: AtomicU64,
    mailbox: Mailbox<Orders>,
}

#[derive(Default)]
struct Orders {
    distrusted: bool,
    /// Whether the segments have changed.
    changed: bool,
}

/// The segments that the index covered when it was queried.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    /// The numbers of the segments that were in it.
    covered: Arc<[u64]>,
    rebuilds: u64,
}

impl Asked {
    /// Whether the index should have known the sessions of a segment.
    pub(crate) fn covers(&self, segment: u64) -> bool {
        self.covered.contains(&segment)
    }
}

/// Whether the index holds the sessions of a segment.
pub(crate) fn is_indexed(segment: &Segment) -> bool {
    segment.info.tier > 0
}

/// Why the background thread stopped what it was doing.
enum IndexFailure {
    /// The log is closing.
    Stopped,
    /// The folder is unusable.
    Broken(String),
    /// A segment or the folder could not be read. The index has everything before it.
    Unread(Error),
}

impl From<Stopped> for IndexFailure {
    fn from(_stopped: Stopped) -> Self {
        IndexFailure::Stopped
    }
}

impl From<Error> for IndexFailure {
    fn from(error: Error) -> Self {
        IndexFailure::Unread(error)
    }
}

impl IndexFailure {
    fn what(self) -> String {
        match self {
            IndexFailure::Stopped => "it is closed".to_owned(),
            IndexFailure::Broken(why) => why,
            IndexFailure::Unread(error) => error.with_sources(),
        }
    }

    fn broken(why: impl Into<String>) -> Self {
        IndexFailure::Broken(why.into())
    }
}

impl Index {
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        folder: PathBuf,
        store: StoreId,
        cache_bytes: usize,
        refusals: Arc<Refusals>,
    ) -> Self {
        Self {
            disk,
            folder,
            store,
            cache_bytes: (cache_bytes as u64).max(SLED_CACHE_BYTES_MIN),
            refusals,
            db: RwLock::new(None),
            covered: RwLock::new(Arc::from([])),
            rebuilds: AtomicU64::new(0),
            mailbox: Mailbox::default(),
        }
    }

    /// Returns the known entries of `session` that hold the seqs `from..=to` of `generation`.
    ///
    /// The last comes first. The entries may be wrong. The tree is walked downwards in one pass,
    /// because sled copies a node for each query of a neighbour.
    pub(crate) fn stretches_down(
        &self,
        session: &SessionId,
        generation: u32,
        (from, to): (Seq, Seq),
    ) -> (Asked, Vec<IndexEntry>) {
        let db = self.db.read();
        // What the index covers is read first: it may come to cover more during the query.
        let (asked, Some(db)) = (self.ask(), db.as_ref()) else {
            return (self.ask(), Vec::new());
        };
        let prefix = session_prefix(session.as_bytes());
        let mut above = entry_key(session, generation, to);
        above.push(0);
        let read = || {
            let mut entries = Vec::new();
            for found in db.range(prefix..above).rev() {
                let (key, value) = found.ok()?;
                let entry = IndexEntry::read(&key, &value)?;
                entries.push(entry);
                if entry.run.generation != generation || entry.run.first <= from {
                    break;
                }
            }
            Some(entries)
        };
        let entries = guarded(read).flatten().unwrap_or_else(|| {
            self.distrust(&asked);
            Vec::new()
        });
        (asked, entries)
    }

    /// Returns the newest generation of a session that is in the index.
    pub(crate) fn newest_generation(&self, session: &SessionId) -> Option<u32> {
        let (_, newest) = self.stretches_down(session, u32::MAX, (Seq::MAX, Seq::MAX));
        newest.first().map(|entry| entry.run.generation)
    }

    /// Returns the numbers of the segments whose sessions are in the index.
    pub(crate) fn covered(&self) -> Arc<[u64]> {
        Arc::clone(&self.covered.read())
    }

    fn ask(&self) -> Asked {
        // The order matters. What an index covered that was set aside must not count for its
        // successor.
        Asked {
            rebuilds: self.rebuilds(),
            covered: self.covered(),
        }
    }

    /// Returns how often the folder was set aside and rebuilt since the log was opened.
    pub(crate) fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Acquire)
    }

    /// Reports that the index gave an untrue answer.
    ///
    /// The report does not count if the index that answered was already set aside.
    pub(crate) fn distrust(&self, asked: &Asked) {
        self.mailbox.update(|orders| {
            // The count is read under the lock, as it is raised under it.
            orders.distrusted |= asked.rebuilds == self.rebuilds();
        });
    }

    /// Notifies the background thread that the segments have changed.
    pub(crate) fn note_segments(&self) {
        self.mailbox.update(|orders| orders.changed = true);
    }

    pub(crate) fn stop(&self) {
        self.mailbox.stop();
    }

    /// Runs the background thread: keeps the index up to date with `segments` until
    /// [`stop`](Index::stop).
    pub(crate) fn run(&self, segments: impl Fn() -> Arc<SegmentSet>) {
        let mut failures = 0;
        while self.wait_for_work().is_ok() {
            // The segments are let go before a pause, because erasing waits for their last holder.
            let caught_up = self.catch_up(&segments());
            let refused = match caught_up {
                Ok(()) => {
                    failures = 0;
                    self.refusals.note(Work::Indexing, None);
                    continue;
                }
                Err(IndexFailure::Stopped) => break,
                Err(IndexFailure::Broken(why)) => self.set_aside(&why).err(),
                Err(IndexFailure::Unread(error)) => Some(error),
            };
            // The cause, such as a full disk, may break it again. The segments answer in the
            // meantime.
            let Some(refused) = refused else {
                self.retry_after(RETRY_AFTER, |_orders| false);
                continue;
            };
            self.refusals.note(Work::Indexing, Some(&refused));
            let was_distrusted = self.mailbox.with(|orders| orders.distrusted);
            let time = RETRY_AFTER * 2_u32.pow(failures);
            self.retry_after(time, |orders| orders.distrusted && !was_distrusted);
            failures = DOUBLINGS_MAX.min(failures + 1);
        }
        self.close();
    }

    fn wait_for_work(&self) -> Result<(), Stopped> {
        self.mailbox.wait_for(|orders| {
            (orders.distrusted || std::mem::take(&mut orders.changed)).then_some(())
        })
    }

    fn catch_up(&self, segments: &SegmentSet) -> Result<(), IndexFailure> {
        self.check_trust()?;
        let db = self.opened(segments)?;
        for segment in segments.iter().filter(|segment| is_indexed(segment)) {
            if !self.covered().contains(&segment.info.number) {
                self.insert(&db, segments, segment)?;
                self.cover(&db, segments, segment.info.number)?;
            }
        }
        Ok(())
    }

    /// Returns the open database. Opening it reads what it covers.
    fn opened(&self, segments: &SegmentSet) -> Result<sled::Db, IndexFailure> {
        if let Some(db) = self.db.read().as_ref() {
            return Ok(db.clone());
        }
        self.remove_unfinished_snapshots()
            .map_err(|error| IndexFailure::Broken(error.with_sources()))?;
        let path = self.disk.path_for_others(&self.folder)?;
        let config = sled::Config::new()
            .path(path)
            .cache_capacity(self.cache_bytes)
            .segment_size(SLED_SEGMENT_BYTES)
            .flush_every_ms(None);
        let db = whole(guarded(|| config.open()))?;
        let coverage = whole(guarded(|| db.get([KIND_COVERAGE])))?;
        let coverage: Coverage = match coverage {
            Some(bytes) => decode_bare(&bytes)
                .ok_or_else(|| IndexFailure::broken("what it covers is damaged"))?,
            None if db.is_empty() => Coverage {
                store: self.store,
                segments: Vec::new(),
            },
            None => return Err(IndexFailure::broken("it does not say what it covers")),
        };
        let is_known = |number: &u64| *number <= segments.highest_number();
        if coverage.store != self.store || !coverage.segments.iter().all(is_known) {
            return Err(IndexFailure::broken(
                "it is of another store, or of a later state of this one",
            ));
        }
        // The order matters. A reader must not see a segment covered whose entries it cannot
        // query.
        *self.db.write() = Some(db.clone());
        *self.covered.write() = coverage.segments.into();
        self.read_ahead(&db)?;
        Ok(db)
    }

    /// Reads entries until the cache is full or there is other work. Returns the number of entries
    /// read.
    ///
    /// Without it, each of the first pages after opening a log would wait for the disk.
    fn read_ahead(&self, db: &sled::Db) -> Result<u64, IndexFailure> {
        let mut entries = db.iter();
        let mut read_some = || {
            entries
                .by_ref()
                .take(BATCH_ENTRIES)
                .try_fold(0, |read, entry| entry.map(|_in_cache| read + 1))
        };
        let has_time = || self.check_trust().is_ok() && !self.mailbox.with(|orders| orders.changed);
        let mut read = 0;
        while read < self.cache_bytes / CACHED_ENTRY_BYTES && has_time() {
            match whole(guarded(&mut read_some))? {
                0 => break,
                more => read += more,
            }
        }
        Ok(read)
    }

    /// Checks that the log is open and that no reader has found the index wrong.
    fn check_trust(&self) -> Result<(), IndexFailure> {
        self.mailbox.check_stop()?;
        if self.mailbox.with(|orders| orders.distrusted) {
            Err(IndexFailure::broken(UNTRUE))
        } else {
            Ok(())
        }
    }

    /// Inserts the sessions of a segment. Entries of segments that it was merged from go, and so do
    /// those of sessions that were deleted.
    fn insert(
        &self,
        db: &sled::Db,
        segments: &SegmentSet,
        segment: &Segment,
    ) -> Result<(), IndexFailure> {
        let mut inserter = Inserter {
            index: self,
            db,
            segments,
            segment,
            batch: sled::Batch::default(),
            entries: 0,
            open: None,
        };
        for run in segment.runs()? {
            let (key, entry) = run?;
            inserter.run(&key, &entry)?;
        }
        inserter.close_stretch()?;
        self.apply(db, inserter.batch)
    }

    fn apply(&self, db: &sled::Db, batch: sled::Batch) -> Result<(), IndexFailure> {
        self.check_trust()?;
        whole(guarded(|| db.apply_batch(batch)))
    }

    /// Records that a segment is in the index, beside those of `segments` that were before.
    fn cover(&self, db: &sled::Db, segments: &SegmentSet, number: u64) -> Result<(), IndexFailure> {
        let covered = self.covered();
        let still_there = covered
            .iter()
            .copied()
            .filter(|number| segments.by_number(*number).is_some());
        let coverage = Coverage {
            store: self.store,
            segments: still_there.chain([number]).collect(),
        };
        whole(guarded(|| {
            db.insert([KIND_COVERAGE], encode_bare(&coverage))
        }))?;
        // The index does not need this flush for safety. It leaves less to write on close.
        whole(guarded(|| db.flush()))?;
        *self.covered.write() = coverage.segments.into();
        Ok(())
    }

    /// Moves the folder aside for inspection, replaces an earlier one there, and begins anew.
    fn set_aside(&self, why: &str) -> Result<()> {
        *self.covered.write() = Arc::from([]);
        self.close();
        let aside = self.folder.with_extension("set-aside");
        self.move_to(&aside)?;
        tracing::warn!(target: "sessionlog", why, "the index is set aside and built again");
        self.mailbox.with(|orders| {
            self.rebuilds.fetch_add(1, Ordering::Release);
            orders.distrusted = false;
        });
        Ok(())
    }

    /// Removes the last index that was set aside.
    pub(crate) fn remove_set_aside(&self) -> Result<()> {
        let aside = self.folder.with_extension("set-aside");
        if self.disk.exists(&aside)? {
            self.disk.remove_tree(&aside)?;
        }
        Ok(())
    }

    /// Moves the folder, unless there is none.
    fn move_to(&self, aside: &Path) -> Result<()> {
        if !self.disk.exists(&self.folder)? {
            return Ok(());
        }
        if self.disk.exists(aside)? {
            self.disk.remove_tree(aside)?;
        }
        self.disk.rename(&self.folder, aside)
    }

    /// Removes unfinished snapshots that sled left behind, since it does not open a folder with
    /// one.
    ///
    /// A folder that cannot be listed, such as a link that leads elsewhere, is not opened either.
    fn remove_unfinished_snapshots(&self) -> Result<()> {
        if !self.disk.exists(&self.folder)? {
            return Ok(());
        }
        let files = self.disk.list(&self.folder)?;
        let mut unfinished = files
            .iter()
            .filter(|(name, _)| name.starts_with("snap.") && name.ends_with(".generating"));
        unfinished.try_for_each(|(name, _)| self.disk.remove(&self.folder.join(name)))
    }

    fn close(&self) {
        let db = self.db.write().take();
        // sled writes when it is dropped. A panic in it changes nothing that is trusted.
        let _dropped = guarded(move || drop(db));
    }

    /// Pauses after a failure. All of the work is then to be done again. The next wait for it
    /// reports a stop.
    fn retry_after(&self, time: Duration, ends: impl Fn(&Orders) -> bool) {
        let _stopped = self.mailbox.pause(time, ends);
        self.mailbox.with(|orders| orders.changed = true);
    }
}

/// Inserts the sessions of one segment in batches.
struct Inserter<'a> {
    index: &'a Index,
    db: &'a sled::Db,
    segments: &'a SegmentSet,
    segment: &'a Segment,
    batch: sled::Batch,
    entries: usize,
    /// The stretch that the last runs belong to: its key and its value.
    open: Option<(Vec<u8>, IndexValue)>,
}

impl Inserter<'_> {
    fn run(&mut self, key: &[u8], entry: &RunEntry) -> Result<(), IndexFailure> {
        let Some((session, generation, first)) = split_run_key(key) else {
            return Ok(());
        };
        let prefix = session_prefix(session);
        let Run {
            events, address, ..
        } = entry.run;
        let continues = self.open.as_ref().is_some_and(|(open, _)| {
            let (of_generation, _first) = open.split_at(open.len() - size_of::<Seq>());
            of_generation.starts_with(&prefix) && of_generation.ends_with(&generation.to_be_bytes())
        });
        match &mut self.open {
            Some((_, value)) if continues => value.events += u64::from(events),
            _ if events > 0 => {
                self.close_stretch()?;
                let value = IndexValue {
                    segment: self.segment.info.number,
                    events: events.into(),
                    run_events: events,
                    address,
                };
                self.open = Some((key_in(prefix.clone(), generation, first), value));
            }
            _ => {}
        }
        if let RunTail::State(state) = &entry.tail
            && SessionState::is_deleted(state)
        {
            self.close_stretch()?;
            self.remove_stale(&prefix)?;
        }
        Ok(())
    }

    /// Inserts the open stretch.
    fn close_stretch(&mut self) -> Result<(), IndexFailure> {
        let Some((key, value)) = self.open.take() else {
            return Ok(());
        };
        // The lowest merged tier replaces nothing that was in the index.
        if self.segment.info.tier > 1
            && let Some(entry) = IndexEntry::read(&key, &encode_bare(&value))
        {
            let prefix = key.get(..key.len() - size_of::<Seq>()).unwrap_or_default();
            let mut last = prefix.to_vec();
            last.extend_from_slice(&entry.last.to_be_bytes());
            self.remove(key.clone()..=last, Some(&key))?;
        }
        self.batch.insert(key, encode_bare(&value));
        self.count_entry()
    }

    /// Removes the entries of a deleted session whose segments are gone. A fork may still read the
    /// others.
    fn remove_stale(&mut self, prefix: &[u8]) -> Result<(), IndexFailure> {
        let found = whole(guarded(|| {
            let entries = self.db.scan_prefix(prefix);
            entries.collect::<sled::Result<Vec<_>>>()
        }))?;
        for (key, value) in found {
            let segment = IndexEntry::read(&key, &value).map(|entry| entry.segment);
            let is_there = |number| self.segments.by_number(number).is_some();
            if !segment.is_some_and(is_there) {
                self.batch.remove(key);
                self.count_entry()?;
            }
        }
        Ok(())
    }

    /// Removes the entries with keys in a range, but for one.
    fn remove(
        &mut self,
        range: std::ops::RangeInclusive<Vec<u8>>,
        kept: Option<&[u8]>,
    ) -> Result<(), IndexFailure> {
        let found = whole(guarded(|| {
            let keys = self.db.range(range).keys();
            keys.collect::<sled::Result<Vec<_>>>()
        }))?;
        for key in found.into_iter().filter(|key| Some(&**key) != kept) {
            self.batch.remove(key);
            self.count_entry()?;
        }
        Ok(())
    }

    fn count_entry(&mut self) -> Result<(), IndexFailure> {
        self.entries += 1;
        if self.entries < BATCH_ENTRIES {
            return Ok(());
        }
        self.entries = 0;
        self.index.apply(self.db, std::mem::take(&mut self.batch))
    }
}

/// Calls into sled, which panics on some kinds of damage, and catches the panic.
fn guarded<T>(call: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(call)).ok()
}

fn whole<T>(answer: Option<sled::Result<T>>) -> Result<T, IndexFailure> {
    match answer {
        Some(Ok(value)) => Ok(value),
        Some(Err(error)) => Err(IndexFailure::Broken(error.to_string())),
        None => Err(IndexFailure::broken("sled panicked")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::RealDisk;
    use crate::sync::{Instant, scope, yield_now};

    #[test]
    fn what_fits_the_cache_is_read_ahead_unless_the_log_is_closed_meanwhile() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::new(
            Arc::new(RealDisk::default()),
            folder.path().join("index"),
            StoreId::default(),
            0,
            Arc::default(),
        );
        let Ok(db) = index.opened(&SegmentSet::new(Vec::new())) else {
            panic!("the index opens")
        };
        let mut batch = sled::Batch::default();
        (0..10_000_u32).for_each(|nth| batch.insert(&nth.to_be_bytes(), vec![0; 40]));
        db.apply_batch(batch).unwrap();
        let fitting = SLED_CACHE_BYTES_MIN / CACHED_ENTRY_BYTES;
        assert!(matches!(index.read_ahead(&db), Ok(read) if read == fitting));
        index.stop();
        assert!(matches!(index.read_ahead(&db), Ok(0)));
    }

    /// Else erasing would wait for as long as an index that does not open is tried again.
    #[test]
    fn an_index_that_waits_to_be_tried_again_holds_no_segment() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("not a folder").join("index");
        std::fs::write(folder.path().join("not a folder"), "").unwrap();
        let disk = Arc::new(RealDisk::default());
        let index = Index::new(disk, path, StoreId::default(), 0, Arc::default());
        let segments = Arc::new(SegmentSet::new(Vec::new()));
        index.note_segments();
        scope(|scope| {
            scope.spawn(|| index.run(|| Arc::clone(&segments)));
            while index.rebuilds() == 0 && index.refusals.count() == 0 {
                yield_now();
            }
            let began = Instant::now();
            while Arc::strong_count(&segments) > 1 {
                assert!(
                    began.elapsed() < RETRY_AFTER / 2,
                    "the index holds segments"
                );
                yield_now();
            }
            index.stop();
        });
    }

    #[test]
    fn an_index_that_could_not_be_opened_is_tried_again_without_an_order() {
        let folder = tempfile::tempdir().unwrap();
        let parent = folder.path().join("parent");
        std::fs::write(&parent, "no folder").unwrap();
        let disk = Arc::new(RealDisk::default());
        let index = Index::new(
            disk,
            parent.join("index"),
            StoreId::default(),
            0,
            Arc::default(),
        );
        index.note_segments();
        scope(|scope| {
            scope.spawn(|| index.run(|| Arc::new(SegmentSet::new(Vec::new()))));
            let is_refused = || !index.refusals.standing().is_empty();
            while !is_refused() {
                yield_now();
            }
            std::fs::remove_file(&parent).unwrap();
            std::fs::create_dir(&parent).unwrap();
            let began = Instant::now();
            while is_refused() && began.elapsed() < RETRY_AFTER * 60 {
                yield_now();
            }
            let is_over = !is_refused();
            index.stop();
            assert!(is_over, "nobody tries again");
        });
    }

    /// A slow reader may report an untrue answer after the index that gave it is gone.
    #[test]
    fn what_an_index_said_is_not_held_against_the_next_one() {
        let folder = tempfile::tempdir().unwrap();
        let index = Index::new(
            Arc::new(RealDisk::default()),
            folder.path().join("index"),
            StoreId::default(),
            0,
            Arc::default(),
        );
        assert!(index.opened(&SegmentSet::new(Vec::new())).is_ok());
        let asked = index.ask();
        index.distrust(&asked);
        assert!(index.mailbox.with(|orders| orders.distrusted));
        index.set_aside("a test").unwrap();
        index.distrust(&asked);
        assert!(
            !index.mailbox.with(|orders| orders.distrusted),
            "the index that is to be built is blamed"
        );
        // It does not stay distrusted if there is nothing to set aside, either.
        index.distrust(&index.ask());
        index.set_aside("a test").unwrap();
        assert!(
            !index.mailbox.with(|orders| orders.distrusted),
            "an index that is not there stays distrusted"
        );
    }
}
