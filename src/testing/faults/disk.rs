//! A disk that refuses calls on demand and counts them.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{BLOCK, Disk, DiskFile, Hold, Mode, RealDisk, io_error};
use crate::model::{Error, Result};
use crate::sync::{AtomicBool, AtomicU64, Condvar, Mutex, Ordering, current};

/// The real disk, with files whose writes fail on demand.
#[derive(Default)]
pub(super) struct FaultyDisk {
    pub real: RealDisk,
    pub plan: Arc<Plan>,
}

/// Returns whether a call to this path is refused.
type Refused = fn(&str) -> bool;

/// Called before a file is opened, without an offset, and before each read at an offset.
pub(super) type Watch = Box<dyn FnMut(&Path, Option<u64>) + Send>;

/// Which calls fail: those to paths that contain a part, after some have passed.
#[derive(Default)]
pub(super) struct Plan {
    /// The part of a path to which writes and barriers are refused.
    part: Mutex<Option<&'static str>>,
    passes: AtomicU64,
    /// The error of a refused call. `None`: as a disk that is full or broken.
    kind: Mutex<Option<io::ErrorKind>>,
    /// The paths that cannot be opened for want of a descriptor.
    opened: Mutex<Option<Refused>>,
    /// The part of a path to which barriers are refused, and the error.
    synced: Mutex<Option<(&'static str, io::ErrorKind)>>,
    watch: Mutex<Option<Watch>>,
    pub refused: AtomicU64,
    /// Writes to the journal that were let through.
    pub passed: AtomicU64,
    /// Bytes read.
    pub read: AtomicU64,
    /// Reads.
    pub reads: AtomicU64,
    /// Reads announced in advance.
    pub announced: AtomicU64,
    /// Writes to the journal that are written halfway.
    pub begun: AtomicU64,
    /// Writes to the journal under way, and their maximum.
    pub under_way: AtomicU64,
    pub under_way_max: AtomicU64,
    /// The name of the thread that began the last of them.
    pub writer: Mutex<Option<String>>,
    /// The next write to the journal panics.
    pub panics: AtomicBool,
    /// The next write to the journal waits until this is false.
    held: Mutex<bool>,
    /// It waits when half of its bytes are written, and not before.
    halfway: AtomicBool,
    released: Condvar,
}

impl Plan {
    pub(super) fn refuse(&self, part: &'static str, passes: u64) {
        self.passes.store(passes, Ordering::SeqCst);
        *self.part.lock() = Some(part);
    }

    /// Works as [`refuse`](Self::refuse), with this kind of error.
    pub(super) fn refuse_as(&self, part: &'static str, kind: io::ErrorKind) {
        *self.kind.lock() = Some(kind);
        self.refuse(part, 0);
    }

    pub(super) fn refuse_to_open(&self, path: Refused) {
        *self.opened.lock() = Some(path);
    }

    pub(super) fn refuse_barriers(&self, part: &'static str, kind: io::ErrorKind) {
        *self.synced.lock() = Some((part, kind));
    }

    pub(super) fn watch(&self, watch: impl FnMut(&Path, Option<u64>) + Send + 'static) {
        *self.watch.lock() = Some(Box::new(watch));
    }

    fn tell(&self, path: &Path, offset: Option<u64>) {
        if let Some(watch) = self.watch.lock().as_mut() {
            watch(path, offset);
        }
    }

    pub(super) fn relent(&self) {
        *self.part.lock() = None;
        *self.kind.lock() = None;
        *self.opened.lock() = None;
        *self.synced.lock() = None;
    }

    /// Blocks the next write to the journal.
    pub(super) fn hold(&self) {
        *self.held.lock() = true;
    }

    /// Blocks the next write to the journal when half of it is written.
    pub(super) fn hold_halfway(&self) {
        self.halfway.store(true, Ordering::SeqCst);
        self.hold();
    }

    pub(super) fn release(&self) {
        *self.held.lock() = false;
        self.released.notify_all();
    }

    /// Called around each write to the journal.
    fn pass_through<T>(&self, begin: impl FnOnce(), write: impl FnOnce() -> T) -> T {
        let now = self.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.under_way_max.fetch_max(now, Ordering::SeqCst);
        *self.writer.lock() = current().name().map(str::to_owned);
        if now == 1 {
            let mut held = self.held.lock();
            if self.halfway.swap(false, Ordering::SeqCst) {
                begin();
                self.begun.fetch_add(1, Ordering::SeqCst);
            }
            while *held {
                self.released.wait(&mut held);
            }
        }
        assert!(
            !self.panics.swap(false, Ordering::SeqCst),
            "a panic, as the test wants it"
        );
        let written = write();
        self.under_way.fetch_sub(1, Ordering::SeqCst);
        self.passed.fetch_add(1, Ordering::SeqCst);
        written
    }

    fn check(&self, path: &Path, kind: io::ErrorKind) -> Result<()> {
        let hit = self.part.lock().is_some_and(|part| is_of(path, part));
        if !hit
            || self
                .passes
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                    left.checked_sub(1)
                })
                .is_ok()
        {
            return Ok(());
        }
        Err(self.refusal("write", path, self.kind.lock().unwrap_or(kind)))
    }

    fn check_open(&self, path: &Path) -> Result<()> {
        let hit = self
            .opened
            .lock()
            .is_some_and(|is_refused| is_refused(&path.to_string_lossy()));
        if hit {
            Err(self.refusal("open", path, io::ErrorKind::Other))
        } else {
            Ok(())
        }
    }

    fn check_sync(&self, path: &Path) -> Result<()> {
        let hit = self.synced.lock().filter(|(part, _)| is_of(path, part));
        hit.map_or(Ok(()), |(_, kind)| Err(self.refusal("sync", path, kind)))
    }

    fn refusal(&self, doing: &'static str, path: &Path, kind: io::ErrorKind) -> Error {
        self.refused.fetch_add(1, Ordering::SeqCst);
        io_error(doing, path)(kind.into())
    }
}

fn is_of(path: &Path, part: &str) -> bool {
    path.to_string_lossy().contains(part)
}

struct FaultyFile {
    real: Arc<dyn DiskFile>,
    plan: Arc<Plan>,
}

impl Disk for FaultyDisk {
    fn make_dir(&self, path: &Path) -> Result<()> {
        self.real.make_dir(path)
    }

    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        self.real.list(dir)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.real.exists(path)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        self.real.remove(path)
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        self.real.remove_tree(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.real.rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.plan.check_open(dir)?;
        self.real.sync_dir(dir)
    }

    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>> {
        self.plan.check_open(path)?;
        self.plan.tell(path, None);
        Ok(Arc::new(FaultyFile {
            real: self.real.open(path, mode)?,
            plan: Arc::clone(&self.plan),
        }))
    }

    fn enter(&self, folder: &Path, lock_name: &str, hold: Hold) -> Result<Box<dyn Send + Sync>> {
        self.real.enter(folder, lock_name, hold)
    }

    fn path_for_others(&self, path: &Path) -> Result<PathBuf> {
        self.real.path_for_others(path)
    }
}

impl DiskFile for FaultyFile {
    fn len(&self) -> Result<u64> {
        self.real.len()
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.plan.tell(self.path(), Some(offset));
        self.plan.reads.fetch_add(1, Ordering::SeqCst);
        self.plan.read.fetch_add(buf.len() as u64, Ordering::SeqCst);
        self.real.read_exact_at(buf, offset)
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        self.plan.announced.fetch_add(1, Ordering::SeqCst);
        self.real.will_read(offset, bytes);
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.plan.check(self.path(), io::ErrorKind::Other)?;
        if self
            .path()
            .extension()
            .is_some_and(|extension| extension == "journal")
        {
            let half = (bytes.len() / 2).next_multiple_of(BLOCK).min(bytes.len());
            return self.plan.pass_through(
                || self.real.write_all_at(&bytes[..half], offset).unwrap(),
                || self.real.write_all_at(bytes, offset),
            );
        }
        self.real.write_all_at(bytes, offset)
    }

    fn allocate(&self, bytes: u64) -> Result<()> {
        self.plan.check(self.path(), io::ErrorKind::StorageFull)?;
        self.real.allocate(bytes)
    }

    fn sync(&self) -> Result<()> {
        self.plan.check(self.path(), io::ErrorKind::Other)?;
        self.plan.check_sync(self.path())?;
        self.real.sync()
    }

    fn check_place(&self) -> Result<()> {
        self.real.check_place()
    }

    fn path(&self) -> &Path {
        self.real.path()
    }
}
