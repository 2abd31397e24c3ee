//! Writes the parts of a segment one after the other, in large writes of whole blocks.

use std::sync::Arc;

use crate::disk::{BLOCK, BlockBuf, DiskFile};
use crate::model::Result;

/// The size of one write, in bytes.
const WRITE_BYTES: usize = 256 * 1024;

/// A sink for the bytes of parts, which knows the offset of the next one in the file.
pub(crate) trait Sink {
    fn offset(&self) -> u64;
    fn put(&mut self, bytes: &[u8]) -> Result<()>;
}

/// A sink that turns parts of any length into large writes of whole blocks.
pub(super) struct BlockSink {
    file: Arc<dyn DiskFile>,
    written: u64,
    buf: BlockBuf,
}

impl Sink for BlockSink {
    fn offset(&self) -> u64 {
        self.written + self.buf.len() as u64
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.buf.len()));
            self.buf.extend(now);
            bytes = later;
            if self.buf.len() == WRITE_BYTES {
                self.flush()?;
            }
        }
        Ok(())
    }
}

impl BlockSink {
    pub(super) fn new(file: Arc<dyn DiskFile>) -> Self {
        Self {
            file,
            written: 0,
            buf: BlockBuf::with_capacity(WRITE_BYTES),
        }
    }

    /// Returns the number of bytes that were written to the file.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    pub(super) fn pad_to_block(&mut self) {
        self.buf.pad_to_block();
    }

    /// Writes everything so far. What comes next begins in a new block.
    pub(super) fn end_part(&mut self) -> Result<()> {
        self.buf.pad_to_block();
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(self.buf.as_slice(), self.written)?;
        self.written += self.buf.len() as u64;
        self.buf.clear();
        Ok(())
    }

    /// Writes the last block and makes the file durable.
    pub(super) fn finish(&mut self, trailer: &[u8]) -> Result<()> {
        const {
            assert!(
                WRITE_BYTES.is_multiple_of(BLOCK),
                "a full buffer is whole blocks"
            );
        };
        self.buf.extend(trailer);
        self.end_part()?;
        self.file.sync()
    }
}
