//! The index maps a session's seq to a segment and a run in it. This is the only file that names
//! sled.
//!
//! It is one tree with an append-only key range per session: `(session, generation, first seq) ->
//! (segment, run)`. The index only accelerates reads. One thread writes it in the background, after
//! the segments. Readers check its answers against the segments, and find in the segments' footers
//! what it lacks. So nothing here can lose or change anything. Every failure, panics inside sled
//! included, has one remedy: set the folder aside and rebuild it.

mod entry;
mod locate;
mod runs_cache;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub(crate) use entry::IndexEntry;
pub(crate) use locate::{Locator, SealedReader};

use crate::codec::{StoreId, decode_bare, encode_bare};
use crate::disk::{Disk, Refusals, Work};
use crate::index::entry::{IndexValue, KIND_POSITION, Position, run_tree_key, tree_key};
use crate::model::{Error, Result, Seq, SessionId};
use crate::segment::{Run, RunEntry, Segment, SegmentSet, session_key};
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

/// The number of times that the delay doubles after attempts at a damaged segment. It doubles
/// because each attempt inserts the runs before the damage again.
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
    through: AtomicU64,
    rebuilds: AtomicU64,
    mailbox: Mailbox<Orders>,
}

#[derive(Default)]
struct Orders {
    distrusted: bool,
    /// The number of the newest segment.
    newest: u64,
}

/// What the index could know when it was queried.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked {
    /// All segments up to this number are in it.
    pub through: u64,
    rebuilds: u64,
}

/// Why the background thread stopped what it was doing.
enum IndexFailure {
    /// The log is closing.
    Stopped,
    /// The folder is unusable.
    Broken(String),
    /// A segment or the folder could not be read. The index has everything before it.
    Unread(Error),
    /// A segment is damaged. The index has everything before it.
    Damaged(Error),
}

impl From<Stopped> for IndexFailure {
    fn from(_stopped: Stopped) -> Self {
        IndexFailure::Stopped
    }
}

impl From<Error> for IndexFailure {
    fn from(error: Error) -> Self {
        if matches!(error, Error::Corrupt { .. }) {
            IndexFailure::Damaged(error)
        } else {
            IndexFailure::Unread(error)
        }
    }
}

impl IndexFailure {
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
            through: AtomicU64::new(0),
            rebuilds: AtomicU64::new(0),
            mailbox: Mailbox::default(),
        }
    }

    /// Returns the known entries for the runs of `session` that hold the seqs `from..=to` of
    /// `generation`.
    ///
    /// The last comes first. The entries may be wrong. The tree is walked downwards in one pass,
    /// because sled copies a node for each query of a neighbour.
    pub(crate) fn runs_down(
        &self,
        session: &SessionId,
        generation: u32,
        (from, to): (Seq, Seq),
    ) -> Vec<IndexEntry> {
        let db = self.db.read();
        let (asked, Some(db)) = (self.ask(), db.as_ref()) else {
            return Vec::new();
        };
        let mut above = run_tree_key(session, generation, to);
        above.push(0);
        let read = || {
            let mut entries = Vec::new();
            // A run has at least one event.
            let runs_max = usize::try_from(to - from)
                .unwrap_or(usize::MAX)
                .saturating_add(1);
            for found in db
                .range(tree_key(&session_key(session))..above)
                .rev()
                .take(runs_max)
            {
                let (key, value) = found.ok()?;
                let entry = IndexEntry::read(&key, &value)?;
                entries.push(entry);
                if entry.run.generation != generation || entry.run.first <= from {
                    break;
                }
            }
            Some(entries)
        };
        guarded(read).flatten().unwrap_or_else(|| {
            self.distrust(asked);
            Vec::new()
        })
    }

    /// Returns the segment number up to which all segments are in the index.
    pub(crate) fn through(&self) -> u64 {
        self.through.load(Ordering::Acquire)
    }

    /// Returns what the index covers. This must be called before a query, since the answer may lack
    /// what the index comes to cover during the query.
    pub(crate) fn ask(&self) -> Asked {
        // The order matters. What an index covered that was set aside must not count for its
        // successor.
        Asked {
            rebuilds: self.rebuilds(),
            through: self.through(),
        }
    }

    /// Returns how often the folder was set aside and rebuilt since the log was opened.
    pub(crate) fn rebuilds(&self) -> u64 {
        self.rebuilds.load(Ordering::Acquire)
    }

    /// Reports that the index gave an untrue answer.
    ///
    /// The report does not count if the index that answered was already set aside.
    pub(crate) fn distrust(&self, asked: Asked) {
        self.mailbox.update(|orders| {
            // The count is read under the lock, as it is raised under it.
            orders.distrusted |= asked.rebuilds == self.rebuilds();
        });
    }

    /// Notifies the background thread that there are segments up to `number`.
    pub(crate) fn note_segment(&self, number: u64) {
        self.mailbox
            .update(|orders| orders.newest = orders.newest.max(number));
    }

    pub(crate) fn stop(&self) {
        self.mailbox.stop();
    }

    /// Runs the background thread: keeps the index up to date with `segments` until
    /// [`stop`](Index::stop).
    pub(crate) fn run(&self, segments: impl Fn() -> Arc<SegmentSet>) {
        let mut damaged = 0;
        while self.wait_for_work().is_ok() {
            match self.catch_up(&segments()) {
                Ok(()) => {
                    damaged = 0;
                    self.refusals.note(Work::Indexing, None);
                }
                Err(IndexFailure::Stopped) => break,
                Err(IndexFailure::Broken(why)) => self.set_aside(&why),
                Err(IndexFailure::Unread(error)) => {
                    self.refusals.note(Work::Indexing, Some(&error));
                    self.pause(RETRY_AFTER, |_orders| false);
                }
                Err(IndexFailure::Damaged(error)) => {
                    self.refusals.note(Work::Indexing, Some(&error));
                    self.pause(RETRY_AFTER * 2_u32.pow(damaged), |orders| orders.distrusted);
                    damaged = DOUBLINGS_MAX.min(damaged + 1);
                }
            }
        }
        self.close();
    }

    fn wait_for_work(&self) -> Result<(), Stopped> {
        self.mailbox
            .wait_for(|orders| (orders.distrusted || orders.newest > self.through()).then_some(()))
    }

    fn catch_up(&self, segments: &SegmentSet) -> Result<(), IndexFailure> {
        self.check_trust()?;
        let db = self.opened()?;
        for segment in segments
            .iter()
            .filter(|segment| segment.info.number > self.through())
        {
            self.insert(&db, segment)?;
            self.set_position(&db, segment.info.number)?;
        }
        Ok(())
    }

    /// Returns the open database. Opening it sets `through` to the position that it holds.
    fn opened(&self) -> Result<sled::Db, IndexFailure> {
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
        let position = whole(guarded(|| db.get([KIND_POSITION])))?;
        let position = match position {
            Some(bytes) => decode_bare(&bytes)
                .ok_or_else(|| IndexFailure::broken("its position is damaged"))?,
            None if db.is_empty() => Position {
                store: self.store,
                through: 0,
            },
            None => return Err(IndexFailure::broken("it has no position")),
        };
        if position.store != self.store || position.through > self.newest() {
            return Err(IndexFailure::broken(
                "it is of another store, or of a later state of this one",
            ));
        }
        // The order matters. A reader must not see a position whose entries it cannot query.
        *self.db.write() = Some(db.clone());
        self.through.store(position.through, Ordering::Release);
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
        let newest = self.newest();
        let has_time = || self.check_trust().is_ok() && self.newest() == newest;
        let mut read = 0;
        while read < self.cache_bytes / CACHED_ENTRY_BYTES && has_time() {
            match whole(guarded(&mut read_some))? {
                0 => break,
                more => read += more,
            }
        }
        Ok(read)
    }

    fn newest(&self) -> u64 {
        self.mailbox.with(|orders| orders.newest)
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

    fn insert(&self, db: &sled::Db, segment: &Segment) -> Result<(), IndexFailure> {
        let mut batch = sled::Batch::default();
        let mut entries = 0;
        for run in segment.runs()? {
            let (
                key,
                RunEntry {
                    run: Run {
                        events, address, ..
                    },
                    ..
                },
            ) = run?;
            let value = IndexValue {
                segment: segment.info.number,
                events,
                address,
            };
            batch.insert(tree_key(&key), encode_bare(&value));
            entries += 1;
            if entries == BATCH_ENTRIES {
                self.apply(db, std::mem::take(&mut batch))?;
                entries = 0;
            }
        }
        self.apply(db, batch)
    }

    fn apply(&self, db: &sled::Db, batch: sled::Batch) -> Result<(), IndexFailure> {
        self.check_trust()?;
        whole(guarded(|| db.apply_batch(batch)))
    }

    fn set_position(&self, db: &sled::Db, through: u64) -> Result<(), IndexFailure> {
        let position = Position {
            store: self.store,
            through,
        };
        whole(guarded(|| {
            db.insert([KIND_POSITION], encode_bare(&position))
        }))?;
        // The index does not need this flush for safety. It leaves less to write on close.
        whole(guarded(|| db.flush()))?;
        self.through.store(through, Ordering::Release);
        Ok(())
    }

    /// Moves the folder aside for inspection, replaces an earlier one there, and begins anew.
    fn set_aside(&self, why: &str) {
        tracing::warn!(target: "sessionlog", why, "the index is set aside and built again");
        self.through.store(0, Ordering::Release);
        self.close();
        let aside = self.folder.with_extension("set-aside");
        match self.move_to(&aside) {
            Err(refused) => self.refusals.note(Work::Indexing, Some(&refused)),
            Ok(()) => self.mailbox.with(|orders| {
                self.rebuilds.fetch_add(1, Ordering::Release);
                orders.distrusted = false;
            }),
        }
        // The cause, such as a full disk, may break it again. The segments answer in the meantime.
        self.pause(RETRY_AFTER, |_orders| false);
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

    /// Pauses. The next wait for work reports a stop.
    fn pause(&self, time: Duration, ends: impl Fn(&Orders) -> bool) {
        let _stopped = self.mailbox.pause(time, ends);
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
        let Ok(db) = index.opened() else {
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
        // A stopped index does not pause before it retries.
        index.stop();
        assert!(index.opened().is_ok());
        let asked = index.ask();
        index.distrust(asked);
        assert!(index.mailbox.with(|orders| orders.distrusted));
        index.set_aside("a test");
        index.distrust(asked);
        assert!(
            !index.mailbox.with(|orders| orders.distrusted),
            "the index that is to be built is blamed"
        );
        // It does not stay distrusted if there is nothing to set aside, either.
        index.distrust(index.ask());
        index.set_aside("a test");
        assert!(
            !index.mailbox.with(|orders| orders.distrusted),
            "an index that is not there stays distrusted"
        );
    }
}
