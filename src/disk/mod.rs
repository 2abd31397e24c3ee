//! The only module that makes I/O calls: what the engine asks of a disk, and the real one.
//!
//! Everything the engine stores goes through [`Disk`] and [`DiskFile`], except the index, which is
//! never believed. Nothing here decides what is durable; it says which calls are barriers.
//!
//! Linux is what it is made for. Another unix goes without what Linux alone has, and Windows, or
//! what else there is, without folders that are held open. On Linux `--cfg sessionlog_not_linux`
//! builds the first, and with `--cfg sessionlog_not_unix` the second, so that both can be tested.

mod block_buf;
#[cfg(not(all(target_os = "linux", not(sessionlog_not_linux))))]
mod elsewhere;
mod file;
#[cfg(all(unix, not(sessionlog_not_unix)))]
mod held;
mod layout;
#[cfg(all(target_os = "linux", not(sessionlog_not_linux)))]
mod linux;
mod lock;
#[cfg(not(all(unix, not(sessionlog_not_unix))))]
mod portable;
mod positions;
#[cfg(all(unix, not(sessionlog_not_unix)))]
mod real;
mod refusals;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::model::{Error, Result};
use crate::sync::Instant;

pub(crate) use block_buf::BlockBuf;
pub(crate) use layout::{Layout, TEMPORARY};
#[cfg(not(all(unix, not(sessionlog_not_unix))))]
pub(crate) use portable::RealDisk;
#[cfg(all(unix, not(sessionlog_not_unix)))]
pub(crate) use real::RealDisk;
pub(crate) use refusals::{Halt, Refusals, Work};

#[cfg(not(all(target_os = "linux", not(sessionlog_not_linux))))]
use elsewhere as system;
#[cfg(all(target_os = "linux", not(sessionlog_not_linux)))]
use linux as system;

/// The unit in which the journal is laid out and in which direct I/O is aligned.
pub(crate) const BLOCK: usize = 4096;

/// What zeroes are written in: little enough that a commit beside them does not wait for long.
const ZEROES: usize = 256 * 1024;

/// A folder tree with barriers.
pub(crate) trait Disk: Send + Sync {
    /// Makes the folder, and those above it, if missing. Durable once [`sync_dir`](Disk::sync_dir)
    /// of its parent returned.
    fn make_dir(&self, path: &Path) -> Result<()>;
    /// The files of a folder, with their lengths, in no order. A missing folder is an error; a file
    /// that is removed or renamed meanwhile may be left out.
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>>;
    fn exists(&self, path: &Path) -> Result<bool>;
    fn remove(&self, path: &Path) -> Result<()>;
    fn remove_tree(&self, path: &Path) -> Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// A barrier for the names in a folder.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>>;
    /// Enters the log's folder: takes its lock, or says [`Error::Locked`], and from then on keeps
    /// to this folder, whatever its path comes to mean. Those who only read make no lock file. The
    /// lock is given back when the guard is dropped, or the process ends.
    fn enter(&self, folder: &Path, lock_name: &str, hold: Hold) -> Result<Box<dyn Send + Sync>>;
    /// A path to `path`, for a library that opens files by itself, which leads into the folder that
    /// was entered.
    fn path_for_others(&self, path: &Path) -> Result<PathBuf>;
}

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reading through the page cache.
    Read,
    /// Reading what the device holds, past the page cache where the file system can.
    ReadDevice,
    /// Reading and writing through the page cache; made if missing.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "tests make files of any length")
    )]
    Write,
    /// Writing whole blocks past the page cache where the file system can; made if missing.
    WriteBlocks,
    /// As `WriteBlocks`, and each write is a barrier for its own bytes.
    WriteThrough,
}

impl Mode {
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Mode::Read | Mode::ReadDevice)
    }
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
    /// Says that these bytes will be read soon, so that the disk may fetch them meanwhile. Waits
    /// for nothing; a hint may be of no use.
    fn will_read(&self, _offset: u64, _bytes: u64) {}
    /// Writes all of `bytes`. In the block modes `bytes`, its address and `offset` are multiples of
    /// [`BLOCK`]. In `WriteThrough` the bytes are on stable storage when this returns `Ok`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Reserves room, so that later writes up to `bytes` cannot run out of space on most file
    /// systems.
    fn allocate(&self, bytes: u64) -> Result<()>;
    /// A barrier for all written bytes and the length.
    fn sync(&self) -> Result<()>;
    /// Says [`Error::Displaced`] when the path leads to another file by now, or to none.
    fn check_place(&self) -> Result<()>;
    fn path(&self) -> &Path;
}

/// The first `length` bytes of a file as the device holds them, rounded up to whole blocks where
/// the file goes on so far. After a failed barrier the page cache may show what the device never
/// got.
pub(crate) fn read_device(disk: &dyn Disk, path: &Path, length: usize) -> Result<BlockBuf> {
    let length = length - length % BLOCK;
    let file = disk.open(path, Mode::ReadDevice)?;
    let mut buf = BlockBuf::zeroed(length);
    file.read_exact_at(buf.as_mut_slice(), 0)?;
    Ok(buf)
}

/// Writes `bytes` of zeroes and makes them and the name durable: the file appears whole or not at
/// all. Between writes `pause` is told how long the last one took; its error ends it.
pub(crate) fn write_zeroes<E: From<Error>>(
    disk: &dyn Disk,
    path: &Path,
    bytes: u64,
    pause: impl Fn(Duration) -> Result<(), E>,
) -> Result<(), E> {
    write_whole(disk, path, |unfinished| {
        fill_with_zeroes(disk, unfinished, bytes, pause)
    })
}

/// Gives the file that `write` writes and syncs its name, durably: it appears whole or not at all.
/// After a failure nothing is left of it.
pub(crate) fn write_whole<T, E: From<Error>>(
    disk: &dyn Disk,
    path: &Path,
    write: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let unfinished = path.with_extension(TEMPORARY);
    let mut left = unfinished.as_path();
    let written = write(&unfinished).and_then(|written| {
        disk.rename(&unfinished, path)?;
        left = path;
        disk.sync_dir(path.parent().expect("a file of the log lies in a folder"))?;
        Ok(written)
    });
    if written.is_err() {
        // What failed is the write; on a full disk the space is given back at once, else on the
        // next open.
        let _removed = disk.remove(left);
    }
    written
}

fn fill_with_zeroes<E: From<Error>>(
    disk: &dyn Disk,
    path: &Path,
    bytes: u64,
    pause: impl Fn(Duration) -> Result<(), E>,
) -> Result<(), E> {
    let file = disk.open(path, Mode::WriteBlocks)?;
    file.allocate(bytes)?;
    let zeroes = BlockBuf::zeroed(usize::try_from(bytes).unwrap_or(ZEROES).min(ZEROES));
    let mut at = 0;
    while at < bytes {
        let left = usize::try_from(bytes - at).unwrap_or(ZEROES).min(ZEROES);
        let began = Instant::now();
        file.write_all_at(
            zeroes
                .as_slice()
                .get(..left)
                .expect("a part of a chunk is within it"),
            at,
        )?;
        at += left as u64;
        if at < bytes {
            pause(began.elapsed())?;
        }
    }
    Ok(file.sync()?)
}

/// Gives an error of the system its place.
pub(crate) fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    move |source| Error::Io {
        doing,
        path: path.to_path_buf(),
        source: Arc::new(source),
    }
}

/// What is said of a symbolic link below the log's folder.
fn is_a_link(path: &Path) -> Error {
    let why =
        "it is a symbolic link, and a log keeps to its own folder; a mount may take its place";
    io_error("use", path)(io::Error::new(io::ErrorKind::InvalidInput, why))
}
