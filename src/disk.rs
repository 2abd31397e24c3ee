//! The only file that makes I/O calls: what the engine asks of a disk, and the real one.
//!
//! Everything the engine stores goes through [`Disk`] and [`DiskFile`], except the index, which is never believed. Nothing here
//! decides what is durable; it says which calls are barriers.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::num::NonZero;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::OFlags;

use crate::error::{Error, Result};
use crate::sync::{AtomicBool, Instant, Mutex, Ordering};

/// The unit in which the journal is laid out and in which direct I/O is aligned.
pub(crate) const BLOCK: usize = 4096;

/// What zeroes are written in: little enough that a commit beside them does not wait for long.
const ZEROES: usize = 256 * 1024;

/// A folder tree with barriers.
pub(crate) trait Disk: Send + Sync {
    /// Makes the folder, and those above it, if missing. Durable once [`sync_dir`](Disk::sync_dir) of its parent returned.
    fn make_dir(&self, path: &Path) -> Result<()>;
    /// The files of a folder, with their lengths, in no order. A missing folder is an error; a file that is removed or renamed meanwhile
    /// may be left out.
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>>;
    fn exists(&self, path: &Path) -> Result<bool>;
    fn remove(&self, path: &Path) -> Result<()>;
    fn remove_tree(&self, path: &Path) -> Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// A barrier for the names in a folder.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>>;
    /// Takes the folder's lock, or says [`Error::Locked`]. It is given back when the guard is dropped, or the process ends.
    fn lock(&self, path: &Path, hold: Hold) -> Result<Box<dyn Send + Sync>>;
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reading through the page cache.
    Read,
    /// Reading what the device holds, past the page cache where the file system can.
    ReadDevice,
    /// Reading and writing through the page cache; made if missing.
    Write,
    /// Writing whole blocks past the page cache where the file system can; made if missing.
    WriteBlocks,
    /// As `WriteBlocks`, and each write is a barrier for its own bytes.
    WriteThrough,
}

/// Who may hold the folder's lock beside us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    Alone,
    WithReaders,
}

/// An open file. All offsets are in bytes from its start.
pub(crate) trait DiskFile: Send + Sync {
    fn len(&self) -> Result<u64>;
    /// Fills `buf`, or fails when the file ends before.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Says that these bytes will be read soon, so that the disk may fetch them meanwhile. Waits for nothing; a hint may be of no use.
    fn will_read(&self, _offset: u64, _bytes: u64) {}
    /// Writes all of `bytes`. In the block modes `bytes`, its address and `offset` are multiples of [`BLOCK`]. In
    /// `WriteThrough` the bytes are on stable storage when this returns `Ok`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Reserves room, so that later writes up to `bytes` cannot run out of space on most file systems.
    fn allocate(&self, bytes: u64) -> Result<()>;
    /// A barrier for all written bytes and the length.
    fn sync(&self) -> Result<()>;
    fn path(&self) -> &Path;
}

/// The first `length` bytes of a file as the device holds them, rounded up to whole blocks where the file goes on so far. After a failed
/// barrier the page cache may show what the device never got.
pub(crate) fn read_device(disk: &dyn Disk, path: &Path, length: usize) -> Result<BlockBuf> {
    let length = length - length % BLOCK;
    let file = disk.open(path, Mode::ReadDevice)?;
    let mut buf = BlockBuf::zeroed(length);
    file.read_exact_at(buf.as_mut_slice(), 0)?;
    Ok(buf)
}

/// Writes `bytes` of zeroes and makes them and the name durable: the file appears whole or not at all. Between writes `pause` is
/// told how long the last one took; its error ends it.
pub(crate) fn write_zeroes(disk: &dyn Disk, path: &Path, bytes: u64, pause: impl Fn(Duration) -> Result<()>) -> Result<()> {
    write_whole(disk, path, |unfinished| fill_with_zeroes(disk, unfinished, bytes, pause))
}

/// Gives the file that `write` writes and syncs its name, durably: it appears whole or not at all. After a failure nothing is left of it.
pub(crate) fn write_whole<T>(disk: &dyn Disk, path: &Path, write: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let unfinished = path.with_extension(TEMPORARY);
    let mut left = unfinished.as_path();
    let written = write(&unfinished).and_then(|written| {
        disk.rename(&unfinished, path)?;
        left = path;
        disk.sync_dir(path.parent().expect("a file of the log lies in a folder"))?;
        Ok(written)
    });
    if written.is_err() {
        // What failed is the write; on a full disk the space is given back at once, else on the next open.
        let _removed = disk.remove(left);
    }
    written
}

fn fill_with_zeroes(disk: &dyn Disk, path: &Path, bytes: u64, pause: impl Fn(Duration) -> Result<()>) -> Result<()> {
    let file = disk.open(path, Mode::WriteBlocks)?;
    file.allocate(bytes)?;
    let zeroes = BlockBuf::zeroed(usize::try_from(bytes).unwrap_or(ZEROES).min(ZEROES));
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(ZEROES).min(ZEROES);
        let began = Instant::now();
        file.write_all_at(zeroes.as_slice().get(..left).expect("a part of a chunk is within it"), at)?;
        at += left as u64;
        if at < bytes {
            pause(began.elapsed())?;
        }
    }
    file.sync()
}

/// The extension of a file that is not finished; nothing in it counts.
pub(crate) const TEMPORARY: &str = "tmp";

/// The operating system's file system.
#[derive(Default)]
pub(crate) struct RealDisk {
    /// Set once the file system refused direct I/O (older tmpfs, some network file systems).
    cannot_bypass_cache: Arc<AtomicBool>,
}

impl Disk for RealDisk {
    fn make_dir(&self, path: &Path) -> Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("create", path))
    }

    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>> {
        let read = || -> io::Result<Vec<(String, u64)>> {
            let mut files = Vec::new();
            for entry in fs::read_dir(dir)? {
                let entry = entry?;
                let (Ok(name), true) = (entry.file_name().into_string(), entry.file_type()?.is_file()) else { continue };
                match entry.metadata() {
                    Ok(metadata) => files.push((name, metadata.len())),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(files)
        };
        read().map_err(io_error("list", dir))
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        path.try_exists().map_err(io_error("look for", path))
    }

    fn remove(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(io_error("remove", path))
    }

    fn remove_tree(&self, path: &Path) -> Result<()> {
        fs::remove_dir_all(path).map_err(io_error("remove", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(io_error("rename", from))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io_error("sync folder", dir))
    }

    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>> {
        if mode.bypasses_cache() && !self.cannot_bypass_cache.load(Ordering::Relaxed) {
            match open_file(path, mode, OFlags::DIRECT | mode.write_through()) {
                Ok(file) if accepts_blocks(&file) => return Ok(RealFile::wrap(file, path, Bypass::Yes)),
                Ok(_) => {}
                Err(error) if refuses_direct(&error) => {}
                Err(error) => return Err(io_error("open", path)(error)),
            }
            self.cannot_bypass_cache.store(true, Ordering::Relaxed);
        }
        let file = open_file(path, mode, OFlags::empty()).map_err(io_error("open", path))?;
        let barrier = if mode == Mode::WriteThrough { Bypass::NoAndSync } else { Bypass::No };
        Ok(RealFile::wrap(file, path, barrier))
    }

    fn lock(&self, path: &Path, hold: Hold) -> Result<Box<dyn Send + Sync>> {
        let mode = if hold == Hold::Alone { Mode::Write } else { Mode::Read };
        let file = open_file(path, mode, OFlags::empty()).map_err(io_error("open", path))?;
        let taken = if hold == Hold::Alone { file.try_lock() } else { file.try_lock_shared() };
        match taken {
            Ok(()) => Ok(Box::new(FolderLock(file))),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: path.parent().unwrap_or(path).to_path_buf() }),
            Err(TryLockError::Error(error)) => Err(io_error("lock", path)(error)),
        }
    }
}

/// A lock on a file belongs to the open file, which a child process shares between its fork and its exec; so it is given back, not
/// just closed.
struct FolderLock(File);

impl Drop for FolderLock {
    fn drop(&mut self) {
        // Should this fail, closing the file gives the lock back a moment later.
        let _given_back = self.0.unlock();
    }
}

impl Mode {
    fn bypasses_cache(self) -> bool {
        matches!(self, Mode::ReadDevice | Mode::WriteBlocks | Mode::WriteThrough)
    }

    pub(crate) fn writes(self) -> bool {
        !matches!(self, Mode::Read | Mode::ReadDevice)
    }

    fn write_through(self) -> OFlags {
        if self == Mode::WriteThrough { OFlags::DSYNC } else { OFlags::empty() }
    }
}

fn open_file(path: &Path, mode: Mode, flags: OFlags) -> io::Result<File> {
    let flags = i32::try_from(flags.bits()).expect("open flags fit the system call's argument");
    OpenOptions::new().read(true).write(mode.writes()).create(mode.writes()).mode(0o600).custom_flags(flags).open(path)
}

fn refuses_direct(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput || error.kind() == io::ErrorKind::Unsupported
}

/// Some file systems open for direct I/O and then refuse the transfer, or want larger blocks; a read of the first block tells.
fn accepts_blocks(file: &File) -> bool {
    let mut block = BlockBuf::zeroed(BLOCK);
    !file.read_at(block.as_mut_slice(), 0).is_err_and(|error| refuses_direct(&error))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Bypass {
    Yes,
    No,
    /// Through the cache, with a barrier of its own after each write.
    NoAndSync,
}

struct RealFile {
    file: File,
    path: PathBuf,
    bypass: Bypass,
    /// Held from a write to its own barrier. The system reports a failed write-back once for an open file, so of two barriers at once
    /// one might be told of the other's failure, and the other of none.
    barrier: Mutex<()>,
}

impl RealFile {
    fn wrap(file: File, path: &Path, bypass: Bypass) -> Arc<dyn DiskFile> {
        Arc::new(Self { file, path: path.to_path_buf(), bypass, barrier: Mutex::default() })
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> Result<u64> {
        self.file.metadata().map(|metadata| metadata.len()).map_err(io_error("stat", &self.path))
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.file.read_exact_at(buf, offset).map_err(io_error("read", &self.path))
    }

    fn will_read(&self, offset: u64, bytes: u64) {
        // Without a length the call would mean all that follows.
        if let Some(bytes) = NonZero::new(bytes) {
            let _of_use = rustix::fs::fadvise(&self.file, offset, Some(bytes), rustix::fs::Advice::WillNeed);
        }
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let _alone = (self.bypass == Bypass::NoAndSync).then(|| self.barrier.lock());
        self.file.write_all_at(bytes, offset).map_err(io_error("write", &self.path))?;
        if self.bypass == Bypass::NoAndSync {
            self.file.sync_data().map_err(io_error("sync", &self.path))?;
        }
        Ok(())
    }

    fn allocate(&self, bytes: u64) -> Result<()> {
        match rustix::fs::fallocate(&self.file, rustix::fs::FallocateFlags::empty(), 0, bytes) {
            Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => Ok(()),
            Err(error) => Err(io_error("allocate", &self.path)(error.into())),
        }
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(io_error("sync", &self.path))
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// Gives an error of the system its place.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io { doing, path: path.to_path_buf(), source: Arc::new(source) }
}

/// A growing buffer whose first byte lies on a block boundary, as direct I/O demands. Safe code cannot ask the allocator for
/// that, so it asks for a block more and begins where it suits.
pub(crate) struct BlockBuf {
    bytes: Vec<u8>,
    start: usize,
}

impl BlockBuf {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        let bytes: Vec<u8> = Vec::with_capacity(capacity + BLOCK);
        let start = bytes.as_ptr().align_offset(BLOCK);
        let mut buf = Self { bytes, start };
        buf.clear();
        buf
    }

    /// So many zeroes, which the system hands out as it is: nothing is filled in here.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut bytes = vec![0; len + BLOCK];
        let start = bytes.as_ptr().align_offset(BLOCK);
        bytes.truncate(start + len);
        Self { bytes, start }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(self.start, 0);
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        self.bytes.get(self.start..).expect("the buffer never shrinks below its start")
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..).expect("the buffer never shrinks below its start")
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds `count` zeroes.
    pub(crate) fn pad(&mut self, count: usize) {
        self.reserve(count);
        self.bytes.resize(self.bytes.len() + count, 0);
    }

    /// Adds zeroes up to the next block boundary.
    pub(crate) fn pad_to_block(&mut self) {
        self.pad(self.len().next_multiple_of(BLOCK) - self.len());
    }

    /// A vector that grew by itself would move to an address of any alignment.
    fn reserve(&mut self, more: usize) {
        if self.bytes.len() + more > self.bytes.capacity() {
            let mut larger = Self::with_capacity((self.len() + more).max(self.len() * 2));
            larger.bytes.extend_from_slice(self.as_slice());
            *self = larger;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_buffer_stays_aligned_and_keeps_its_bytes_while_it_grows() {
        let mut buf = BlockBuf::with_capacity(10);
        let mut expected = Vec::new();
        for round in 0..200_u8 {
            let piece = vec![round; usize::from(round) * 7];
            buf.extend(&piece);
            expected.extend_from_slice(&piece);
            assert_eq!(buf.as_slice().as_ptr().align_offset(BLOCK), 0);
        }
        assert_eq!(buf.as_slice(), expected);
        buf.pad_to_block();
        assert_eq!(buf.len() % BLOCK, 0);
        buf.clear();
        assert_eq!(buf.len(), 0);
    }
}
