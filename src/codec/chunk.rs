//! Memory for the bodies of batches.
//!
//! Small bodies share a chunk from which their thread takes pieces. The sealing thread frees them.
//! If each were an allocation of its own, frees from another thread would cost the allocator its
//! locks.

use std::cell::Cell;

use bytes::BytesMut;

/// The largest chunk, in bytes. A chunk stays in memory until the last body in it is freed, and its
/// unused rest until the thread ends.
const CHUNK_BYTES_MAX: usize = 16 * 1024;

/// The largest body that shares a chunk, in bytes. Larger bodies get memory of their own, so that
/// little is left over at a chunk's end.
const SHARED_BYTES_MAX: usize = CHUNK_BYTES_MAX / 16;

/// The chunk that a thread takes pieces from.
///
/// A thread's chunks grow with what it appends, because many threads append only once. So a thread
/// never keeps more than it used.
#[derive(Default)]
struct Chunk {
    rest: BytesMut,
    next_bytes: usize,
}

thread_local! {
    static CHUNK: Cell<Chunk> = Cell::default();
}

/// Returns a buffer with a capacity of exactly `bytes`.
pub(super) fn room_for(bytes: usize) -> BytesMut {
    let shared = if bytes > SHARED_BYTES_MAX {
        None
    } else {
        CHUNK.try_with(|chunk| take(chunk, bytes)).ok()
    };
    // A thread that is ending no longer has a chunk.
    shared.unwrap_or_else(|| BytesMut::with_capacity(bytes))
}

fn take(chunk: &Cell<Chunk>, bytes: usize) -> BytesMut {
    let Chunk {
        rest: mut room,
        mut next_bytes,
    } = chunk.take();
    if room.capacity() < bytes {
        room = BytesMut::with_capacity(next_bytes.max(bytes));
        next_bytes = (2 * room.capacity()).min(CHUNK_BYTES_MAX);
    }
    chunk.set(Chunk {
        rest: room.split_off(bytes),
        next_bytes,
    });
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
        let bodies: Vec<_> = (0..200)
            .map(|nth| fill(usize::from(nth) + 1, nth))
            .collect();
        for (nth, body) in (0..200).zip(&bodies) {
            assert!(
                body.len() == usize::from(nth) + 1 && body.iter().all(|byte| *byte == nth),
                "body {nth} is another's"
            );
        }
        let follow = bodies
            .windows(2)
            .filter(|pair| pair[0].as_ptr_range().end == pair[1].as_ptr())
            .count();
        let (chunks, bytes) = (
            bodies.len() - follow,
            bodies.iter().map(Bytes::len).sum::<usize>(),
        );
        assert!(
            chunks <= bytes / CHUNK_BYTES_MAX + 16,
            "{chunks} chunks for {bytes} bytes"
        );
        let (large, small) = (fill(SHARED_BYTES_MAX + 1, 1), fill(8, 2));
        assert!(large.is_unique() && !small.is_unique());
    }

    #[test]
    fn a_thread_keeps_no_more_than_it_used() {
        for appends in [1, 2, 3, 10, 100, 1_000] {
            let chunk = Cell::default();
            let used = (0..appends)
                .map(|_| take(&chunk, 200).capacity())
                .sum::<usize>();
            let kept = chunk.take().rest.capacity();
            assert!(
                kept <= used && kept < CHUNK_BYTES_MAX,
                "{kept} bytes kept, {used} used"
            );
        }
    }
}
