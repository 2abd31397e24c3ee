//! The on-disk format and its codec. This page is the specification of the format.
//!
//! # Format, version 1
//!
//! Integers are little-endian unless a field says otherwise. Numbers in parentheses are sizes in
//! bytes.
//!
//! * `varint` is LEB128 of at most 10 bytes.
//! * `zigzag` is a signed integer folded into a varint.
//! * A checksum is CRC32C (Castagnoli).
//! * A *salt* is the checksum of the store ID, a four-byte purpose and a number. It is written as
//!   "salted (purpose, number)". A salted checksum starts from its salt. So bytes of another store,
//!   of an earlier use of the same file, or from another place never pass.
//! * Reserved bytes are zero.
//!
//! A reader refuses anything else as damage, with one exception. An unknown version, record kind,
//! flag, number of filter probes or required extension is unsupported. Version 0 was never written,
//! so it is damage.
//!
//! ## Files of a log
//!
//! | name | content |
//! |---|---|
//! | `LOCK` | empty; its file lock is held while the log is open |
//! | `MANIFEST-0`, `MANIFEST-1` | the two slots of the manifest |
//! | `journal/<number>.journal` | a journal file |
//! | `segments/<number>.segment` | a segment |
//! | `filters/<number>-<level>.filter` | a span filter |
//! | `index/` | the index |
//! | `index.set-aside/` | the last index that was found to be wrong; nothing reads it |
//! | `*.tmp` | an unfinished file; removed on open |
//!
//! * The manifest slots are written one after the other. The valid slot with the higher sequence
//!   counts.
//! * A journal file is pre-written with zeroes and recycled. Its number has 8 digits, or more if it
//!   needs more.
//! * A segment is immutable. Segments are numbered in commit order, with 16 digits.
//! * A span filter is named by the number of its last segment, with 16 digits. It can be deleted at
//!   any time.
//! * The index can be deleted at any time while the log is closed.
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
//! | 56 | 16 | the highest event ID assigned before this file |
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
//! | 48 | 16 | the highest event ID assigned, this group's included |
//!
//! The records follow, then zeroes up to the next block boundary. The checksum of each body is in
//! its record's head.
//!
//! ## Record
//!
//! A record has the same bytes in a journal group and in a segment block: its head, then its body.
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
//! | 1 | flags: 1 = keyed, 2 = an extension area precedes the number of events |
//! | varint, bytes | session ID |
//! | varint, bytes | keyed only: the idempotency key |
//! | 32 | keyed only: BLAKE3 of the body from the number of events on |
//! | varint | number of events |
//! | | the events |
//!
//! | size | event |
//! |---|---|
//! | 1 | flags: 1 = opens a turn, 2 = belongs to a turn, 4 = an extension area precedes the type |
//! | 16 | belongs to a turn only: the message ID |
//! | varint, bytes | type |
//! | varint, bytes | data |
//!
//! An extension area is a varint length, then that number of bytes. They hold entries of (varint
//! tag, varint length, bytes). A reader skips an even tag that it does not know and refuses an odd
//! one. This version writes no extension area.
//!
//! ## Segment
//!
//! The parts of the file, in order:
//!
//! 1. The header, one block of 4096 bytes.
//! 2. The blocks of records.
//! 3. The filter: a Bloom filter over the session IDs and the keys of the key table.
//! 4. The run table.
//! 5. The ID table.
//! 6. The key table, unless no record is keyed. Zeroes follow the last table up to the next
//!    multiple of 4096 bytes.
//! 7. The trailer, the last 4096 bytes: a framed value with counts, ranges and the roots of the
//!    tables.
//!
//! | offset | size | segment header |
//! |---|---|---|
//! | 0 | 8 | `slogsegm` |
//! | 8 | 4 | format version |
//! | 12 | 4 | checksum of bytes 16..64, salted (`sfil`, segment number) |
//! | 16 | 16 | store ID |
//! | 32 | 8 | segment number |
//! | 40 | 8 | start LSN |
//! | 48 | 8 | end LSN |
//! | 56 | 8 | reserved |
//!
//! Zeroes follow up to the end of the block.
//!
//! | offset | size | block |
//! |---|---|---|
//! | 0 | 4 | length of the records |
//! | 4 | 4 | checksum |
//! | 8 | 4 | number of records |
//! | 12 | 4 | flags, none of which is known |
//! | 16 | | the records, sorted by session, generation and seq |
//!
//! A block is closed at about 64 KiB, and from 4 KiB on where another session begins.
//!
//! A *run* is a stretch of one session's records in one block. A *place* is block offset, block
//! length, and offset within the block's records, as varints.
//!
//! | table | key | value |
//! |---|---|---|
//! | run table | session ID, 0, generation (4), first seq (8) | place, events, last event ID |
//! | ID table | event ID of a record's first event (16) | place |
//! | key table | item hash (16), event ID of the record's first event (16) | place |
//!
//! * The integers in keys are big-endian, so that keys sort as their fields do.
//! * In the run table's values, the number of events is a varint and the last event ID takes 16
//!   bytes.
//! * An *item hash* is the first 16 bytes of a BLAKE3 hash. For a session it is the hash of the
//!   session ID. For a key of the key table it is the hash of `session ID, 0, idempotency key`.
//!
//! A table is a tree of pages. Pages of one level follow each other.
//!
//! | offset | size | page |
//! |---|---|---|
//! | 0 | 4 | length of the entries |
//! | 4 | 4 | checksum |
//! | 8 | 1 | level |
//! | 9 | | entries in ascending order: varint, key, varint, value |
//!
//! Level 0 holds the table's entries. Above it the key is the first key of a page below, and the
//! value is that page's offset and length as varints.
//!
//! | offset | size | filter |
//! |---|---|---|
//! | 0 | 4 | number of 64-bit words |
//! | 4 | 4 | checksum |
//! | 8 | 4 | probes per item: 6 |
//! | 12 | 4 | reserved |
//! | 16 | | the words |
//!
//! An item sets one bit for each probe *i* from 0 on. The number of the bit is `low + i × high`,
//! modulo 2 to the power of 64, modulo the number of bits. `low` is the first half of the item hash
//! and `high` is the second half with its lowest bit set, both as 64-bit integers. Bit *n* is bit
//! *n* modulo 64, from the lowest, of word *n* divided by 64.
//!
//! Checksums of blocks, pages and filter are salted (`sblk`, segment number). They cover the part's
//! offset in the file (8), then all its bytes except the checksum.
//!
//! ## Span filter
//!
//! A filter of level *l*, from 1 to 3, is over the items of 16 to the power of *l* segments. The
//! number of its last segment is a multiple of that count. The file consists of pages of 4096
//! bytes, each such a filter with 510 words. An item's page is the second half of its hash, times
//! the number of pages, divided by 2 to the power of 64.
//!
//! The salt (`mflt`, number of the last segment) continues over:
//!
//! 1. the level (1),
//! 2. the length of the file (8),
//! 3. of each segment in order, the first 8 bytes of its filter.
//!
//! Checksums cover the page's offset too, as in a segment.
//!
//! ## Framed value
//!
//! A framed value is a trailer or the content of a manifest slot.
//!
//! | offset | size | framed value |
//! |---|---|---|
//! | 0 | 8 | magic |
//! | 8 | 4 | format version |
//! | 12 | 4 | checksum of length and value, salted by purpose and number |
//! | 16 | 4 | length of the value |
//! | 20 | 4 | reserved |
//! | 24 | | the value |
//!
//! The value is in bincode 2, standard configuration (little-endian, variable-length integers).
//! Zeroes follow it up to a multiple of 4096 bytes.
//!
//! | | magic | purpose | number |
//! |---|---|---|---|
//! | trailer | `slogtrlr` | `trlr` | segment number |
//! | manifest slot | `slogmani` | `mani` | 0 |
//!
//! The salt of a manifest slot has a zero store ID.
//!
//! ## Versions
//!
//! | version | since | change |
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

/// The format version that this crate writes, and the highest that it reads.
pub(crate) const FORMAT_VERSION: u32 = 1;

/// The random ID of a store, in every file that belongs to it.
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
    /// Returns the error for bytes that begin at `base` in `file`.
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

/// The state that a checksum starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Salt(u32);

impl Salt {
    pub(crate) const NONE: Self = Self(0);

    pub(crate) fn new(store: StoreId, purpose: [u8; 4], number: u64) -> Self {
        let salt = crc32c::crc32c(&store.0.to_le_bytes());
        let salt = crc32c::crc32c_append(salt, &purpose);
        Self(crc32c::crc32c_append(salt, &number.to_le_bytes()))
    }

    /// Returns the salt for the part of a file at `offset`.
    pub(crate) fn at(self, offset: u64) -> Self {
        self.over(&offset.to_le_bytes())
    }

    /// Returns the state after `bytes`, from which a checksum may continue.
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

/// A reader that moves from front to back and never past the end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteReader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> ByteReader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Returns a reader that begins at `at`, which may be the end.
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

    /// Reads bytes after their varint length.
    pub(crate) fn prefixed(&mut self) -> Decoded<&'a [u8]> {
        let length = self.varint()?;
        self.take(
            usize::try_from(length)
                .map_err(|_too_large| self.damaged("a length beyond the end"))?,
        )
    }

    /// Skips an extension area and refuses a required extension that is unknown.
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

/// Returns the number of bytes that [`put_varint`] appends for a length.
pub(crate) fn varint_bytes(value: usize) -> usize {
    let bits = usize::BITS - value.leading_zeros();
    bits.div_ceil(7).max(1) as usize
}

/// Returns the number of bytes that [`put_prefixed`] appends for `length` bytes.
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

/// Refuses an unknown version. Version 0 was never written, so it is damage.
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
