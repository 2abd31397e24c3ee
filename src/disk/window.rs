//! Reads a file from front to back, past the page cache.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::disk::{BLOCK, BlockBuf, Disk, DiskFile, Mode};
use crate::model::Result;

/// A file as the device holds it, read from front to back.
///
/// It holds as little of the file at once as its reader allows. So the reader works in the CPU's
/// cache, and the buffer is reused.
pub(crate) struct Window {
    file: Arc<dyn DiskFile>,
    /// The length of the part of the file that is read.
    length: usize,
    /// How much is read at once, unless more is asked for.
    bytes: usize,
    buf: BlockBuf,
    /// The range of the file that is at the start of the buffer.
    held: Range<usize>,
}

impl Window {
    /// Opens the first `length` bytes of a file, rounded down to whole blocks, to read about
    /// `bytes` of them at once.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, length: usize, bytes: usize) -> Result<Self> {
        let file = disk.open(path, Mode::ReadDevice)?;
        Ok(Self::over(file, length, bytes))
    }

    /// Reads an open file in the same way.
    pub(crate) fn over(file: Arc<dyn DiskFile>, length: usize, bytes: usize) -> Self {
        Self {
            file,
            length: length - length % BLOCK,
            bytes,
            buf: BlockBuf::zeroed(0),
            held: 0..0,
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }

    /// Returns the bytes from `at` on, at least `count` unless the file ends before.
    ///
    /// What was released is read again.
    pub(crate) fn from(&mut self, at: usize, count: usize) -> Result<&[u8]> {
        let end = at.saturating_add(count).min(self.length);
        if at < end && (at < self.held.start || end > self.held.end) {
            self.advance(at - at % BLOCK, end)?;
        }
        let held = self
            .buf
            .as_slice()
            .get(..self.held.len())
            .unwrap_or_default();
        let from = at.checked_sub(self.held.start);
        Ok(from.and_then(|from| held.get(from..)).unwrap_or_default())
    }

    /// Releases the bytes before `start` and reads at least up to `end`.
    fn advance(&mut self, start: usize, end: usize) -> Result<()> {
        let end = end
            .max(start.saturating_add(self.bytes))
            .next_multiple_of(BLOCK)
            .min(self.length);
        let kept = if self.held.contains(&start) {
            self.held.end - start
        } else {
            0
        };
        let bytes = end - start;
        if self.buf.len() < bytes {
            self.buf.pad(bytes - self.buf.len());
        }
        let buf = self.buf.as_mut_slice();
        buf.copy_within(self.held.len() - kept..self.held.len(), 0);
        self.held = start..start + kept;
        let unread = buf.get_mut(kept..bytes).expect("it has room for all");
        self.file.read_exact_at(unread, self.held.end as u64)?;
        self.held.end = end;
        Ok(())
    }
}
