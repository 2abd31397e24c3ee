//! The bounded cache of what was read from segments and found whole: blocks, pages, filters. And the open files.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::disk::DiskFile;
use crate::error::Result;

/// A typical entry; only an estimate for the size of the cache's own tables.
const ENTRY_BYTES_TYPICAL: usize = 16 * 1024;

/// Bookkeeping counted with each entry.
const ENTRY_OVERHEAD: u64 = 128;

/// Segments that are kept open; others are opened again when they are read.
const FILES_MAX: usize = 256;

/// Shared by all segments of a log. What comes out was checked when it went in.
pub(crate) struct BlockCache {
    parts: Cache<(u64, u64), Bytes, ByBytes>,
    files: Cache<u64, Arc<dyn DiskFile>>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<(u64, u64), Bytes> for ByBytes {
    fn weight(&self, _place: &(u64, u64), part: &Bytes) -> u64 {
        ENTRY_OVERHEAD + part.len() as u64
    }
}

impl BlockCache {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let parts = Cache::with_weighter(bytes_max / ENTRY_BYTES_TYPICAL + 1, bytes_max as u64, ByBytes);
        Self { parts, files: Cache::new(FILES_MAX) }
    }

    /// The part of segment `number` at `offset`, read and checked by `read` unless it is here.
    pub(crate) fn part(&self, number: u64, offset: u64, read: impl FnOnce() -> Result<Bytes>) -> Result<Bytes> {
        if let Some(part) = self.parts.get(&(number, offset)) {
            return Ok(part);
        }
        let part = read()?;
        self.parts.insert((number, offset), part.clone());
        Ok(part)
    }

    /// Whether a part is here.
    pub(crate) fn holds(&self, number: u64, offset: u64) -> bool {
        self.parts.contains_key(&(number, offset))
    }

    /// The open file of segment `number`.
    pub(crate) fn file(&self, number: u64, open: impl FnOnce() -> Result<Arc<dyn DiskFile>>) -> Result<Arc<dyn DiskFile>> {
        if let Some(file) = self.files.get(&number) {
            return Ok(file);
        }
        let file = open()?;
        self.files.insert(number, Arc::clone(&file));
        Ok(file)
    }
}
