//! The bounded cache of verified parts of segments: blocks, pages and filters. A block is held, and
//! counted, as it was before compression. The cache also keeps files open.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::disk::DiskFile;
use crate::model::Result;
use crate::sync::{AtomicU64, Ordering};

/// The typical size of an entry, in bytes. It only serves to size the cache's own tables.
const ENTRY_BYTES_TYPICAL: usize = 16 * 1024;

/// The bookkeeping that counts with each entry, in bytes.
const ENTRY_OVERHEAD: u64 = 128;

/// The number of files that are kept open. Others are opened again when they are read.
const FILES_MAX: usize = 256;

/// The name of a file in the cache. It is not the segment's number, which a writer that recovers
/// beside a reader may use again.
pub(crate) type FileKey = u64;

/// The cache that all segments of a log share. Every part in it was checked before
/// it was inserted.
pub(crate) struct BlockCache {
    parts: Cache<(FileKey, u64), Bytes, ByBytes>,
    files: Cache<FileKey, Arc<dyn DiskFile>>,
    keys: AtomicU64,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(FileKey, u64), Bytes> for ByBytes {
    fn weight(&self, _place: &(FileKey, u64), part: &Bytes) -> u64 {
        ENTRY_OVERHEAD + part.len() as u64
    }
}

impl BlockCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let parts = Cache::with_weighter(
            bytes_max / ENTRY_BYTES_TYPICAL + 1,
            bytes_max as u64,
            ByBytes,
        );
        Self {
            parts,
            files: Cache::new(FILES_MAX),
            keys: AtomicU64::new(0),
        }
    }

    /// Returns a key that no other file has.
    pub(crate) fn new_key(&self) -> FileKey {
        self.keys.fetch_add(1, Ordering::Relaxed)
    }

    /// Returns the part of a file at `offset`. On a cache miss, `read` reads and checks it.
    pub(crate) fn part(
        &self,
        file: FileKey,
        offset: u64,
        read: impl FnOnce() -> Result<Bytes>,
    ) -> Result<Bytes> {
        if let Some(part) = self.parts.get(&(file, offset)) {
            return Ok(part);
        }
        let part = read()?;
        self.parts.insert((file, offset), part.clone());
        Ok(part)
    }

    /// Returns whether a part is cached.
    pub(crate) fn holds(&self, file: FileKey, offset: u64) -> bool {
        self.parts.contains_key(&(file, offset))
    }

    /// Returns an open file, which `open` opens on a cache miss.
    pub(crate) fn file(
        &self,
        key: FileKey,
        open: impl FnOnce() -> Result<Arc<dyn DiskFile>>,
    ) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.files.get(&key) {
            return Ok(file);
        }
        let file = open()?;
        self.files.insert(key, Arc::clone(&file));
        Ok(file)
    }

    /// Closes a file that will be replaced by another.
    pub(crate) fn close(&self, key: FileKey) {
        self.files.remove(&key);
    }
}
