//! An immutable file that is read part by part through the cache. Every part is checked when it is
//! read from the disk.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

use crate::codec::{Decoded, Salt};
use crate::disk::{BLOCK, Disk, DiskFile, Mode, Window};
use crate::model::{Error, Result};
use crate::segment::BlockCache;
use crate::segment::cache::FileKey;
use crate::sync::{AtomicBool, Ordering};

/// How much is read at once of a file whose parts are read in order. The disk needs that much to be
/// fast.
const WINDOW_BYTES: usize = 256 * 1024;

pub(super) struct Parts {
    pub key: FileKey,
    pub path: PathBuf,
    pub file_bytes: u64,
    pub salt: Salt,
    pub disk: Arc<dyn Disk>,
    pub cache: Arc<BlockCache>,
    pub pinned: Option<Pinned>,
}

/// A file that stays open, so that it can be read after its name is gone.
pub(super) struct Pinned {
    pub(super) file: Arc<dyn DiskFile>,
    admitted: AtomicBool,
}

impl Parts {
    /// Returns a part of the file.
    ///
    /// On a cache miss the part is read from `file()`. Then `admit` verifies it, and may decompress
    /// it or append lookup data before it is cached.
    pub(super) fn part(
        &self,
        offset: u64,
        bytes: u32,
        file: impl FnOnce() -> Result<Arc<dyn DiskFile>>,
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        self.cache.part(self.key, offset, || {
            self.check_has(offset, bytes)?;
            self.read(offset, bytes, &file()?, admit)
        })
    }

    /// Reads a part past the cache.
    pub(super) fn read(
        &self,
        offset: u64,
        bytes: u32,
        file: &Arc<dyn DiskFile>,
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        self.check_has(offset, bytes)?;
        let mut part = vec![0; bytes as usize];
        file.read_exact_at(&mut part, offset)
            .map_err(|error| self.shortened(offset, error))?;
        self.admit(offset, part, admit)
    }

    /// Opens the file to read many parts of it before `end` in the order of their offsets: by its
    /// name, unless it is pinned. The name of a pinned file may be gone.
    pub(super) fn window(&self, end: u64) -> Result<Window> {
        let end = end.next_multiple_of(BLOCK as u64).min(self.file_bytes);
        let length = usize::try_from(end).unwrap_or(usize::MAX);
        if let Some(Pinned { file, .. }) = &self.pinned {
            return Ok(Window::over(Arc::clone(file), length, WINDOW_BYTES));
        }
        Window::open(&*self.disk, &self.path, length, WINDOW_BYTES)
    }

    /// Reads a part past every cache, or from `file` if it is larger than a window.
    pub(super) fn read_in(
        &self,
        window: &mut Window,
        file: &Arc<dyn DiskFile>,
        (offset, bytes): (u64, u32),
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        if bytes as usize > WINDOW_BYTES {
            return self.read(offset, bytes, file, admit);
        }
        self.check_has(offset, bytes)?;
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        let found = window.from(at, bytes as usize);
        let found = found.map_err(|error| self.shortened(offset, error))?;
        let Some(part) = found.get(..bytes as usize) else {
            return Err(self.beyond_end(offset));
        };
        self.admit(offset, part.to_vec(), admit)
    }

    fn admit(
        &self,
        offset: u64,
        mut part: Vec<u8>,
        admit: impl FnOnce(Salt, &mut Vec<u8>) -> Decoded<()>,
    ) -> Result<Bytes> {
        admit(self.salt.at(offset), &mut part).map_err(|fault| fault.at(&self.path, offset))?;
        Ok(Bytes::from(part))
    }

    /// Refuses bytes beyond the end of the file, before any memory is taken for them.
    fn check_has(&self, offset: u64, bytes: u32) -> Result<()> {
        if self.has(offset, bytes) {
            Ok(())
        } else {
            Err(self.beyond_end(offset))
        }
    }

    fn beyond_end(&self, offset: u64) -> Error {
        Error::corrupt(&self.path, offset, "a part beyond the end of the file")
    }

    /// Opens the file and keeps it open. It is checked when it is read.
    pub(super) fn pin(&mut self) -> Result<()> {
        let file = self.disk.open(&self.path, Mode::Read)?;
        let admitted = AtomicBool::new(false);
        self.pinned = Some(Pinned { file, admitted });
        Ok(())
    }

    /// Closes the file, unless it is pinned.
    pub(super) fn close(&self) {
        self.cache.close(self.key);
    }

    /// Returns the open file. When it is opened, or read for the first time, `admit` checks it.
    pub(super) fn file(
        &self,
        admit: impl FnOnce(&dyn DiskFile) -> Result<()>,
    ) -> Result<Arc<dyn DiskFile>> {
        if let Some(Pinned { file, admitted }) = &self.pinned {
            if !admitted.load(Ordering::Acquire) {
                admit(&**file)?;
                admitted.store(true, Ordering::Release);
            }
            return Ok(Arc::clone(file));
        }
        self.cache.file(self.key, || {
            let file = self.disk.open(&self.path, Mode::Read)?;
            admit(&*file)?;
            Ok(file)
        })
    }

    /// Returns whether these bytes are within the file.
    pub(super) fn has(&self, offset: u64, bytes: u32) -> bool {
        offset
            .checked_add(bytes.into())
            .is_some_and(|end| end <= self.file_bytes)
    }

    pub(super) fn is_cached(&self, offset: u64) -> bool {
        self.cache.holds(self.key, offset)
    }

    /// Turns the error of a file that ends before a part of it into damage.
    fn shortened(&self, offset: u64, error: Error) -> Error {
        match error {
            Error::Io { source, .. } if source.kind() == std::io::ErrorKind::UnexpectedEof => {
                Error::corrupt(&self.path, offset, "the file ends too early")
            }
            other => other,
        }
    }
}
