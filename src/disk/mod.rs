//! The I/O calls that the engine needs from a disk, and the real disk. No other module makes I/O
//! calls.
//!
//! Everything the engine stores goes through [`Disk`] and [`DiskFile`], except the index, which is
//! never trusted. Nothing here decides what is durable. This module only states which calls are
//! barriers.

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
mod scratch;
mod window;

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
pub(crate) use scratch::Scratch;
pub(crate) use window::Window;

#[cfg(not(all(target_os = "linux", not(sessionlog_not_linux))))]
use elsewhere as system;
#[cfg(all(target_os = "linux", not(sessionlog_not_linux)))]
use linux as system;

/// The block size, in bytes: the unit of the journal's layout and the alignment of direct I/O.
pub(crate) const BLOCK: usize = 4096;

/// The size of one write of zeroes, in bytes. It is small enough that a commit at the same time
/// does not wait long.
const ZEROES: usize = 256 * 1024;

/// A folder tree with barriers.
pub(crate) trait Disk: Send + Sync {
    /// Makes the folder and its parents if they are missing. The folder is durable once
    /// [`sync_dir`](Disk::sync_dir) of its parent returned.
    fn make_dir(&self, path: &Path) -> Result<()>;
    /// Returns the files of a folder with their lengths, in no order. A missing folder is an error.
    /// A file that is removed or renamed in the meantime may be left out.
    fn list(&self, dir: &Path) -> Result<Vec<(String, u64)>>;
    fn exists(&self, path: &Path) -> Result<bool>;
    /// Gives a file a second name, if the disk can. `from` may lie outside the entered folder.
    fn link(&self, _from: &Path, to: &Path) -> Result<()> {
        let unsupported = std::io::Error::from(std::io::ErrorKind::Unsupported);
        Err(io_error("link a file to", to)(unsupported))
    }
    fn remove(&self, path: &Path) -> Result<()>;
    fn remove_tree(&self, path: &Path) -> Result<()>;
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> Result<()>;
    fn open(&self, path: &Path, mode: Mode) -> Result<Arc<dyn DiskFile>>;
    /// Enters the log's folder and takes what `hold` says of its lock, or fails with
    /// [`Error::Locked`].
    ///
    /// From then on the disk keeps to this folder, even if its path comes to lead elsewhere. The
    /// lock is released when the guard is dropped or the process ends.
    fn enter(&self, folder: &Path, lock_name: &str, hold: Hold) -> Result<Box<dyn Send + Sync>>;
    /// Returns a path to `path` that leads into the entered folder, for a library that opens files
    /// itself.
    fn path_for_others(&self, path: &Path) -> Result<PathBuf>;
}

/// The purpose for which a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Reading through the page cache.
    Read,
    /// Reading what the device holds, past the page cache where the file system can.
    ReadDevice,
    /// Reading and writing through the page cache. The file is made if missing.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "tests make files of any length")
    )]
    Write,
    /// Writing whole blocks past the page cache where the file system can. The file is made if
    /// missing.
    WriteBlocks,
    /// Like `WriteBlocks`, and each write is a barrier for its own bytes.
    WriteThrough,
}

impl Mode {
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Mode::Read | Mode::ReadDevice)
    }
}

/// How much of the folder's lock is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hold {
    /// All of it, for a writer.
    Alone,
    /// Nothing, for a reader: a shared lock would keep the next writer out. No lock file is made.
    Nothing,
}

/// An open file. All offsets are in bytes from its start.
pub(crate) trait DiskFile: Send + Sync {
    fn len(&self) -> Result<u64>;
    /// Fills `buf`, or fails if the file ends too early.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> Result<()>;
    /// Hints that these bytes will be read soon, so that the disk may prefetch them. It does not
    /// block, and the hint may have no effect.
    fn will_read(&self, _offset: u64, _bytes: u64) {}
    /// Writes all of `bytes`. In the block modes `bytes`, its address and `offset` are multiples of
    /// [`BLOCK`]. In `WriteThrough` the bytes are on stable storage when this returns `Ok`.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()>;
    /// Reserves room, so that later writes up to `bytes` cannot run out of space on most file
    /// systems.
    fn allocate(&self, bytes: u64) -> Result<()>;
    /// Makes all written bytes and the length durable.
    fn sync(&self) -> Result<()>;
    /// Fails with [`Error::Displaced`] if the path no longer leads to this file.
    fn check_place(&self) -> Result<()>;
    fn path(&self) -> &Path;
}

/// Reads the first `length` bytes of a file as the device holds them.
///
/// `length` is rounded down to whole blocks. After a failed barrier the page cache may show what
/// the device never received.
pub(crate) fn read_device(disk: &dyn Disk, path: &Path, length: usize) -> Result<BlockBuf> {
    let length = length - length % BLOCK;
    let file = disk.open(path, Mode::ReadDevice)?;
    let mut buf = BlockBuf::zeroed(length);
    file.read_exact_at(buf.as_mut_slice(), 0)?;
    Ok(buf)
}

/// Writes a file of `bytes` zeroes and makes it and its name durable.
///
/// The file appears whole or not at all. Between writes `pause` is called with the duration of the
/// last one, and may end the work with an error.
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

/// Gives the file that `write` writes and syncs its name, durably.
///
/// The file appears whole or not at all. A failure leaves no file.
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
        // The error of the write is returned, not the one of this removal. Removing the file frees
        // its space on a full disk at once. If that fails, the next open removes it.
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

/// Makes a log's folder and any missing folders above it. Each name is made durable.
pub(crate) fn make_root(disk: &dyn Disk, root: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for folder in root
        .ancestors()
        .take_while(|folder| !folder.as_os_str().is_empty())
    {
        if disk.exists(folder)? {
            break;
        }
        missing.push(folder);
    }
    disk.make_dir(root)?;
    missing
        .into_iter()
        .try_for_each(|folder| disk.sync_dir(parent(folder)))
}

/// Returns the folder that a folder lies in.
pub(crate) fn parent(folder: &Path) -> &Path {
    folder
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."))
}

/// Returns a function that adds the action and the path to an I/O error.
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
