//! Memory for direct I/O.

use crate::disk::BLOCK;

const ZEROES: &[u8] = &[0; BLOCK];

/// A growing buffer whose first byte is on a block boundary, as direct I/O requires.
///
/// Safe code cannot request such memory from the allocator. So the buffer allocates one more block
/// and begins at the first boundary.
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

    /// Returns a buffer of `len` zeroes. The memory comes zeroed from the system and is not written
    /// here.
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
        self.bytes
            .get(self.start..)
            .expect("the buffer never shrinks below its start")
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        self.bytes
            .get_mut(self.start..)
            .expect("the buffer never shrinks below its start")
    }

    pub(crate) fn extend(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    /// Adds `count` zeroes. They are copied, because a build for tests resizes byte by byte.
    pub(crate) fn pad(&mut self, count: usize) {
        self.reserve(count);
        let mut left = count;
        while left > 0 {
            let zeroes = ZEROES.get(..left).unwrap_or(ZEROES);
            self.bytes.extend_from_slice(zeroes);
            left -= zeroes.len();
        }
    }

    /// Adds zeroes up to the next block boundary.
    pub(crate) fn pad_to_block(&mut self) {
        self.pad(self.len().next_multiple_of(BLOCK) - self.len());
    }

    /// Grows the buffer by hand. A vector that grew by itself would move to an address of any
    /// alignment.
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
