//! Bytes and values: everything that reaches the disk is laid out here, and this page is its
//! specification.
//!
//! # Format, version 1
//!
//! Integers are little-endian. `varint` is LEB128 of at most 10 bytes; `zigzag` is a signed integer
//! folded into a varint. A checksum is CRC32C (Castagnoli). A *salt* is the checksum of store ID, a
//! four-byte purpose and a number; a salted checksum starts from it, so bytes of another store, of
//! an earlier use of the same file, or from another place never pass. Reserved bytes are zero.
//! Whatever does not fit is damage, except a version, kind or required extension above those
//! listed: that is unsupported.
//!
//! ## Files of a log
//!
//! | name | what |
//! |---|---|
//! | `LOCK` | empty; its file lock is held while the log is open |
//! | `MANIFEST-0`, `MANIFEST-1` | the two manifest slots, written one after the other; the valid one with the higher sequence counts |
//! | `journal/<8 digits, or as many as it takes>.journal` | a journal file, pre-written with zeroes and used again and again |
//! | `segments/<16 digits>.segment` | a segment: immutable, numbered in commit order |
//! | `filters/<16 digits>-<level>.filter` | a span filter, which can be deleted at any time; named by the last segment it is over |
//! | `index/` | the index, which can be deleted at any time while the log is closed |
//! | `index.set-aside/` | the last index that was found to be wrong; nothing reads it |
//! | `*.tmp` | not finished; removed on open |
//!
//! ## Journal file
//!
//! A header block of 4096 bytes, then groups, each on a block boundary. A position in the journal
//! is an LSN: the file's start LSN plus the distance from the end of its header block.
//!
//! | offset | size | file header |
//! |---|---|---|
//! | 0 | 8 | `slogjrnl` |
//! | 8 | 4 | format version |
//! | 12 | 4 | checksum of bytes 16..72, salted (`jfil`, 0) |
//! | 16 | 16 | store ID |
//! | 32 | 8 | incarnation: rises with every use of any journal file of the store |
//! | 40 | 8 | start LSN, which is the end LSN of the file before |
//! | 48 | 4 | chain value: the checksum of the last group header before this file |
//! | 52 | 4 | length of the file in blocks of 4096 bytes |
//! | 56 | 16 | the highest event ID given out before this file |
//!
//! | offset | size | group header |
//! |---|---|---|
//! | 0 | 4 | `sgrp` |
//! | 4 | 4 | checksum of bytes 8..64, salted (`grup`, incarnation) |
//! | 8 | 8 | incarnation |
//! | 16 | 8 | LSN of this header |
//! | 24 | 8 | durable LSN: everything before it was on stable storage when this was written |
//! | 32 | 4 | chain value: the checksum of the group header before |
//! | 36 | 4 | bytes of records that follow |
//! | 40 | 4 | number of records; 0 in a *witness*, which only records the durable LSN |
//! | 44 | 4 | checksum of the record heads in order |
//! | 48 | 16 | the highest event ID given out, this group's included |
//!
//! The records follow, then zeroes up to the next block boundary. A body is covered by its own
//! checksum, which stands in its head.
//!
//! ## Record
//!
//! The same bytes in a journal group and in a segment block.
//!
//! | size | record head |
//! |---|---|
//! | 4 | bytes of the body |
//! | 4 | checksum of the body |
//! | 1 | bytes of the head |
//! | 1 | kind: 1 = batch |
//! | 1 | flags: 1 = an extension area ends the head |
//! | 16 | event ID of the first event; event *i* has this plus *i* |
//! | varint | generation of the session |
//! | varint | seq of the first event |
//! | zigzag | milliseconds of the wall clock at commit minus those of the ID |
//!
//! | size | body of a batch |
//! |---|---|
//! | 1 | flags: 1 = keyed, 2 = an extension area follows the key |
//! | varint, bytes | session ID |
//! | varint, bytes, 32 | keyed only: idempotency key, and BLAKE3 of the body from the event count on |
//! | varint | number of events |
//! | | the events |
//!
//! | size | event |
//! |---|---|
//! | 1 | flags: 1 = opens a turn, 2 = belongs to a turn, 4 = an extension area follows the message ID |
//! | 16 | belongs to a turn only: the message ID |
//! | varint, bytes | type |
//! | varint, bytes | data |
//!
//! An extension area is a varint length, then (varint tag, varint length, bytes) until it is used
//! up. A reader passes over an even tag it does not know and refuses an odd one. This version
//! writes none.
//!
//! ## Segment
//!
//! | part | what |
//! |---|---|
//! | header | 4096 bytes: `slogsegm`, version (4), checksum of bytes 16..64 salted (`sfil`, number) (4), store ID (16), number (8), start LSN (8), end LSN (8), reserved |
//! | blocks | 16 bytes: length of the records (4), checksum (4), number of records (4), flags (1, none known), reserved (3); then records, sorted by session, generation and seq; closed at about 64 KiB, and from 4 KiB on where another session begins |
//! | run table | key `session ID, 0, generation (4, big-endian), first seq (8, big-endian)` → place, number of events, last event ID |
//! | ID table | key: event ID of a record (16, big-endian) → place |
//! | key table | key: 16 bytes of BLAKE3 of `session ID, 0, idempotency key`, then event ID of the record (16, big-endian) → place |
//! | filter | a Bloom filter over the session IDs and the keys of the key table |
//! | trailer | 4096 bytes, the last block of the file: a framed value with counts, ranges and the roots of the tables |
//!
//! A *run* is a stretch of one session's records in one block. A *place* is block offset, block
//! length, and offset within the block's records, as varints; the run table adds the number of
//! events (varint) and the last event ID (16).
//!
//! A table is a tree of pages. A page is 9 bytes: length of the entries (4), checksum (4), level
//! (1); then entries in ascending order: varint, key, varint, value. Level 0 holds the table's
//! entries; above it the key is the first key of a page below and the value its offset and length
//! as varints. Pages of one level follow each other. Checksums of blocks, pages and filter are
//! salted (`sblk`, segment number) and cover the part's offset in the file (8), then all its bytes
//! but the checksum.
//!
//! The filter is 16 bytes (number of 64-bit words (4), checksum (4), probes per item (4), reserved
//! (4)), then the words.
//!
//! ## Span filter
//!
//! A filter of level *l* is over the items of 16 to the power of *l* segments, the last of which
//! has a number that is a multiple of that. It is a file of pages of 4096 bytes, each such a filter
//! with 510 words. The last 8 bytes of an item's hash, times the number of pages, divided by 2 to
//! the power of 64, is the number of its page. The salt (`mflt`, number of the last segment) goes
//! on over level (1), length of the file (8), and of each segment in order the first 8 bytes of its
//! filter; checksums cover the page's offset too.
//!
//! ## Framed value
//!
//! Trailer and manifest slot: magic (8), format version (4), checksum salted by purpose and number
//! (4), length (4), reserved (4), then a value in bincode 2, standard configuration (little-endian,
//! variable-length integers). The checksum covers length and value. Magic, purpose and number are
//! `slogtrlr`, `trlr`, segment number; `slogmani`, `mani`, 0. The salt of a manifest slot has a
//! zero store ID, and zeroes follow it up to a multiple of 4096 bytes.
//!
//! ## Versions
//!
//! | version | since | what changed |
//! |---|---|---|
//! | 1 | 0.1.0 | the first |

mod batch;
mod chunk;
mod frame;
mod record;
mod value;

use std::path::Path;

use bytes::BufMut;

use crate::model::Error;

pub(crate) use batch::EncodedBatch;
pub(crate) use frame::{
    BLOCK_HEADER_BYTES, BlockHeader, FileHeader, GROUP_HEADER_BYTES, GroupHeader,
    PAGE_HEADER_BYTES, SegmentHeader,
};
pub(crate) use record::{EventFrame, RawRecord, Record, RecordFrame};
pub(crate) use value::{
    FRAMED_BYTES_MAX, MANIFEST, TRAILER, decode_bare, decode_list, decode_value, encode_bare,
    encode_value,
};

/// The format this version writes and the highest it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The random name of a store, in every file that belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub(crate) struct StoreId(pub u128);

/// Why bytes were refused. [`at`](Fault::at) turns it into an error that names the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    Damaged {
        at: usize,
        what: &'static str,
    },
    Unknown {
        what: &'static str,
        found: u64,
        supported: u64,
    },
}

impl Fault {
    /// The error for bytes that begin at `base` in `file`.
    pub(crate) fn at(self, file: &Path, base: u64) -> Error {
        match self {
            Fault::Damaged { at, what } => {
                Error::corrupt(file, base.saturating_add(at as u64), what)
            }
            Fault::Unknown {
                what,
                found,
                supported,
            } => Error::Unsupported {
                file: file.to_path_buf(),
                what,
                found,
                supported,
            },
        }
    }
}

pub(crate) type Decoded<T> = std::result::Result<T, Fault>;

/// Where a checksum starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Salt(u32);

impl Salt {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn new(store: StoreId, purpose: [u8; 4], number: u64) -> Self {
        let salt = crc32c::crc32c(&store.0.to_le_bytes());
        let salt = crc32c::crc32c_append(salt, &purpose);
        Self(crc32c::crc32c_append(salt, &number.to_le_bytes()))
    }

    /// The same salt for the part of a file at `offset`.
    pub(crate) fn at(self, offset: u64) -> Self {
        self.over(&offset.to_le_bytes())
    }

    /// The state after `bytes`, from which a checksum may go on.
    pub(crate) fn over(self, bytes: &[u8]) -> Self {
        Self(crc32c::crc32c_append(self.0, bytes))
    }

    pub(crate) fn checksum(self, bytes: &[u8]) -> u32 {
        self.over(bytes).0
    }

    pub(crate) fn value(self) -> u32 {
        self.0
    }
}

/// Reads front to back and never past the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ByteReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// A reader that begins at `at`, which may be the end.
    pub(crate) fn from(bytes: &'a [u8], at: usize) -> Decoded<Self> {
        if at > bytes.len() {
            return Err(Fault::Damaged {
                at,
                what: "a place beyond the end",
            });
        }
        Ok(Self { bytes, at })
    }

    pub(crate) fn position(&self) -> usize {
        self.at
    }

    pub(crate) fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(crate) fn damaged(&self, what: &'static str) -> Fault {
        Fault::Damaged { at: self.at, what }
    }

    pub(crate) fn take(&mut self, count: usize) -> Decoded<&'a [u8]> {
        let end = self.at.checked_add(count);
        let Some(taken) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            return Err(self.damaged("a length beyond the end"));
        };
        self.at += count;
        Ok(taken)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Decoded<[u8; N]> {
        self.take(N).map(|bytes| {
            bytes
                .try_into()
                .expect("take returns as many bytes as asked for")
        })
    }

    pub(crate) fn u8(&mut self) -> Decoded<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(crate) fn u32(&mut self) -> Decoded<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Decoded<u64> {
        self.array().map(u64::from_le_bytes)
    }

    pub(crate) fn u128(&mut self) -> Decoded<u128> {
        self.array().map(u128::from_le_bytes)
    }

    pub(crate) fn varint(&mut self) -> Decoded<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.damaged("a varint that does not end"))
    }

    pub(crate) fn varint_u32(&mut self) -> Decoded<u32> {
        u32::try_from(self.varint()?)
            .map_err(|_too_large| self.damaged("a number too large for its field"))
    }

    pub(crate) fn zigzag(&mut self) -> Decoded<i64> {
        let folded = self.varint()?;
        Ok((folded >> 1).cast_signed() ^ -(folded & 1).cast_signed())
    }

    /// Bytes after their varint length.
    pub(crate) fn prefixed(&mut self) -> Decoded<&'a [u8]> {
        let length = self.varint()?;
        self.take(
            usize::try_from(length)
                .map_err(|_too_large| self.damaged("a length beyond the end"))?,
        )
    }

    /// Passes over an extension area, refusing what a reader must know and does not.
    pub(crate) fn extensions(&mut self) -> Decoded<()> {
        let mut area = ByteReader::new(self.prefixed()?);
        while area.left() > 0 {
            let tag = area.varint()?;
            area.prefixed()?;
            if tag % 2 == 1 {
                return Err(Fault::Unknown {
                    what: "required extension",
                    found: tag,
                    supported: 0,
                });
            }
        }
        Ok(())
    }
}

/// Appends a varint.
pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(u8::try_from(value & 0x7F).expect("seven bits fit a byte") | 0x80);
        value >>= 7;
    }
    out.put_u8(u8::try_from(value).expect("seven bits fit a byte"));
}

/// How many bytes [`put_varint`] appends for a length.
pub(crate) fn varint_bytes(value: usize) -> usize {
    let bits = usize::BITS - value.leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

/// How many bytes [`put_prefixed`] appends for so many.
pub(crate) fn prefixed_bytes(length: usize) -> usize {
    varint_bytes(length) + length
}

pub(crate) fn put_zigzag(out: &mut impl BufMut, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Appends bytes after their varint length.
pub(crate) fn put_prefixed(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Refuses a version that is not known. Version 0 was never written, so it is damage.
fn check_version(version: u32, at: usize) -> Decoded<()> {
    match version {
        0 => Err(Fault::Damaged {
            at,
            what: "format version 0",
        }),
        1..=FORMAT_VERSION => Ok(()),
        _ => Err(Fault::Unknown {
            what: "format version",
            found: version.into(),
            supported: FORMAT_VERSION.into(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn varints_read_back_as_written(value: u64, signed: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            put_zigzag(&mut out, signed);
            let mut reader = ByteReader::new(&out);
            prop_assert_eq!(reader.varint(), Ok(value));
            prop_assert_eq!(reader.zigzag(), Ok(signed));
            prop_assert_eq!(reader.left(), 0);
            let mut alone = Vec::new();
            put_varint(&mut alone, value);
            prop_assert_eq!(alone.len(), varint_bytes(usize::try_from(value).unwrap()));
        }

        #[test]
        fn a_reader_never_passes_the_end(bytes: Vec<u8>) {
            let mut reader = ByteReader::new(&bytes);
            while reader.left() > 0 && reader.prefixed().is_ok() {}
            prop_assert!(reader.position() <= bytes.len());
        }
    }

    #[test]
    fn a_varint_of_more_than_64_bits_is_damage() {
        assert!(ByteReader::new(&[0xFF; 11]).varint().is_err());
        assert_eq!(
            ByteReader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01]).varint(),
            Ok(u64::MAX)
        );
        assert!(
            ByteReader::new(&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x02])
                .varint()
                .is_err()
        );
    }

    #[test]
    fn an_unknown_extension_passes_when_even_and_is_refused_when_odd() {
        assert_eq!(ByteReader::new(&[4, 2, 2, 9, 9]).extensions(), Ok(()));
        assert!(matches!(
            ByteReader::new(&[2, 3, 0]).extensions(),
            Err(Fault::Unknown { found: 3, .. })
        ));
        assert!(matches!(
            ByteReader::new(&[2, 2, 9]).extensions(),
            Err(Fault::Damaged { .. })
        ));
    }

    #[test]
    fn salts_of_other_stores_purposes_numbers_and_offsets_differ() {
        let salt = |store, purpose, number, offset| {
            Salt::new(StoreId(store), purpose, number)
                .at(offset)
                .checksum(b"bytes")
        };
        let one = salt(1, *b"grup", 1, 0);
        for other in [
            salt(2, *b"grup", 1, 0),
            salt(1, *b"sblk", 1, 0),
            salt(1, *b"grup", 2, 0),
            salt(1, *b"grup", 1, 8),
        ] {
            assert_ne!(one, other);
        }
    }
}
