//! Memory for the bodies of batches. Small ones share a chunk that their thread takes pieces of: a body is freed by the thread that seals,
//! and memory that comes back one by one from another thread costs an allocator its locks.

use std::cell::Cell;

use bytes::BytesMut;

/// It stays in memory until the last body in it goes, and is what a thread that appended keeps at the most.
const CHUNK_BYTES: usize = 16 * 1024;

/// Larger bodies get memory of their own.
const SHARED_BYTES_MAX: usize = CHUNK_BYTES / 8;

thread_local! {
    /// What is left of the thread's chunk.
    static REST: Cell<BytesMut> = Cell::default();
}

/// Memory for so many bytes and no more.
pub(super) fn room_for(bytes: usize) -> BytesMut {
    if bytes > SHARED_BYTES_MAX {
        return BytesMut::with_capacity(bytes);
    }
    let mut room = REST.take();
    if room.capacity() < bytes {
        room = BytesMut::with_capacity(CHUNK_BYTES);
    }
    REST.set(room.split_off(bytes));
    room
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn small_bodies_lie_together_and_large_ones_alone() {
        let fill = |bytes: usize, with: u8| {
            let mut room = room_for(bytes);
            assert_eq!((room.len(), room.capacity()), (0, bytes));
            room.resize(bytes, with);
            room.freeze()
        };
        let bodies: Vec<_> = (0..200).map(|nth| fill(usize::from(nth) + 1, nth)).collect();
        for (nth, body) in (0..200).zip(&bodies) {
            assert!(body.len() == usize::from(nth) + 1 && body.iter().all(|byte| *byte == nth), "body {nth} is another's");
        }
        let follow = bodies.windows(2).filter(|pair| pair[0].as_ptr_range().end == pair[1].as_ptr()).count();
        let chunks = bodies.len() - follow;
        assert!(chunks <= bodies.iter().map(Bytes::len).sum::<usize>() / CHUNK_BYTES + 2, "{chunks} chunks");
        let (large, small) = (fill(SHARED_BYTES_MAX + 1, 1), fill(8, 2));
        assert!(large.is_unique() && !small.is_unique());
    }
}
