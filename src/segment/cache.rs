//! The bounded cache of what was read from segments and span filters and found whole: blocks,
//! pages, filters. And the open files.

use std::sync::Arc;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::disk::DiskFile;
use crate::model::Result;
use crate::segment::Span;

/// A typical entry; only an estimate for the size of the cache's own tables.
const ENTRY_BYTES_TYPICAL: usize = 16 * 1024;

/// Bookkeeping counted with each entry.
const ENTRY_OVERHEAD: u64 = 128;

/// Files that are kept open; others are opened again when they are read.
const FILES_MAX: usize = 256;

/// Which file a part is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum FileKey {
    Segment(u64),
    /// With its length, which says what is on which page.
    SpanFilter(Span, u64),
}

/// Shared by all segments and span filters of a log. What comes out was checked when it went in.
pub(crate) struct BlockCache {
    parts: Cache<(FileKey, u64), Bytes, ByBytes>,
    files: Cache<FileKey, Arc<dyn DiskFile>>,
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
        }
    }

    /// The part of a file at `offset`, read and checked by `read` unless it is here.
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

    /// Whether a part is here.
    pub(crate) fn holds(&self, file: FileKey, offset: u64) -> bool {
        self.parts.contains_key(&(file, offset))
    }

    /// An open file.
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

    /// Closes a file that another is to take the place of.
    pub(crate) fn close(&self, key: FileKey) {
        self.files.remove(&key);
    }
}
