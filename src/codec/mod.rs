//! The on-disk format and its codec. This page is the specification of the format.
//!
//! # Format, version 2
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
//! | `index/` | the index |
//! | `index.set-aside/` | the last index that was found to be wrong; nothing reads it |
//! | `UNFINISHED` | an [import](#unfinished-import) that is not complete |
//! | `*.tmp` | an unfinished file; removed on open |
//!
//! * The manifest slots are written one after the other. The valid slot with the higher sequence
//!   counts.
//! * A journal file is pre-written with zeroes and recycled. Its number has 8 digits, or more if it
//!   needs more.
//! * A segment is immutable. Its number has 16 digits. A new segment has a number above all named
//!   ones.
//! * Segments follow each other by LSN: each begins where the one before it ends. Their numbers
//!   need not rise, because merging replaces neighbours by a segment with a new number.
//! * The index can be deleted at any time while the log is closed.
//! * Version 1 had a folder `filters/`. It is removed on open.
//!
//! The manifest names the segments. A segment file that it does not name is one of these:
//!
//! * *Adopted*, if its number is above all named ones and it begins at the LSN where the named ones
//!   end. Sealing was cut short before the manifest.
//! * A *leftover*, if its number is lower than a named one or named segments cover its LSNs. It is
//!   removed on open. It was merged, or its merge was cut short, or the journal has its records.
//! * Damage, in any other case.
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
//! | 56 | 16 | the highest ID assigned before this file |
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
//! | 48 | 16 | the highest ID assigned, this group's included |
//!
//! The records follow, then zeroes up to the next block boundary. The checksum of each body is in
//! its record's head.
//!
//! A file that version 1 began may hold records of version 2.
//!
//! ## Record
//!
//! A record is one batch: events of a session, changes of the session, or both. It has the same
//! bytes in a journal group and, before compression, in a segment block: its head, then its body.
//! A segment may hold a record [reduced](#reduced-record).
//!
//! | size | record head |
//! |---|---|
//! | 4 | bytes of the body |
//! | 4 | checksum of the body |
//! | 1 | bytes of the head |
//! | 1 | kind: 1 = batch |
//! | 1 | flags: 1 = an extension area ends the head |
//! | 16 | the first ID |
//! | varint | generation of the session |
//! | varint | seq of the first event; without events, the seq that the next event gets |
//! | zigzag | milliseconds of the wall clock at commit minus those of the ID |
//!
//! The IDs of a record follow each other. Event *i* has the first ID plus *i*. Change *i* has the
//! first ID plus the number of events plus *i*. Event IDs and IDs of changes share one order.
//!
//! | size | body of a batch |
//! |---|---|
//! | 1 | flags: 1 = keyed, 2 = an extension area precedes the number of events |
//! | varint, bytes | session ID |
//! | varint, bytes | keyed only: the idempotency key |
//! | 32 | keyed only: the fingerprint |
//! | varint, bytes | flag 2 only: the extension area |
//! | varint | number of events; 0 only if the extension area holds a change |
//! | | the events |
//!
//! The *fingerprint* is BLAKE3 of the body behind it: the extension area with its length, the
//! number of events, and the events. So it covers the changes and the producer.
//!
//! | size | event |
//! |---|---|
//! | 1 | flags: 1 = opens a turn, 2 = belongs to a turn, 4 = an extension area precedes the type, 8 = redacted |
//! | 16 | belongs to a turn only: the message ID |
//! | varint, bytes | flag 4 only: the extension area |
//! | varint, bytes | type |
//! | varint, bytes | data; empty if the event is redacted |
//!
//! Flag 8 stands in segments alone. Until its segment is written again, a redacted event keeps its
//! data there, and the state of its session names it.
//!
//! ### Extension area
//!
//! An extension area holds entries of (varint tag, varint length, bytes). A reader skips an even
//! tag that it does not know and refuses an odd one. This version writes extension areas in bodies
//! alone, with these entries:
//!
//! | tag | change | value |
//! |---|---|---|
//! | 1 | create the session | |
//! | 3 | describe it | a [patch](#patch), as JSON |
//! | 5 | close it | |
//! | 7 | reopen it | |
//! | 9 | trim it | first kept seq (varint), bytes of the removed events (varint) |
//! | 11 | redact an event | its ID (16), bytes of its data (varint), reason |
//! | 13 | delete the session | reason, number of ancestors (varint), their session IDs (varint, bytes) |
//! | 15 | fork another session into it | a [lineage](#lineage) |
//! | 17 | none: the producer | its ID (varint, bytes), epoch (varint), 1 if numbered or 0 (1), number or 0 (varint) |
//!
//! * The changes apply in their order, before the events of the record. A closing therefore does
//!   not refuse the events beside it. A body has one producer at most.
//! * A *reason* is a byte, 0 or 1, and after a 1 the text (varint, bytes).
//! * The *ancestors* are the sessions that a deleted fork shared events with.
//! * The record of a redaction belongs to the session that the event was appended to, which may
//!   have been deleted since.
//! * The first seq of a fork's own record is the seq at which it branches off, plus 1.
//!
//! #### Patch
//!
//! A JSON object with up to three members. `title` is a text or null, `metadata` is a merge patch
//! (RFC 7396), `hold` is a boolean. A member that is absent changes nothing. A null `title` removes
//! the title.
//!
//! #### Lineage
//!
//! A bare value in [bincode](#framed-value), with these fields in order:
//!
//! | field | type |
//! |---|---|
//! | parent | text: a session ID |
//! | generation of the parent | `u32` |
//! | first shared seq | `u64` |
//! | pieces | list of (session ID as text, generation `u32`, last seq of the piece `u64`) |
//! | seq at which the fork branches off | `u64` |
//! | ID of the last shared event; nil if none is shared | text: an event ID |
//! | bytes of the shared events | `u64` |
//!
//! The pieces are in the order of their seqs, and each begins where the one before it ends. A piece
//! names the session that its events were appended to, so a fork of a fork names both.
//!
//! ### Reduced record
//!
//! A segment leaves out what was removed. A record of which a part is kept is written with the
//! seqs from the first kept event to the last. Its first ID and its number of events are those of
//! this part. Redacted events, and events in between that nobody keeps, get flag 8 and lose their
//! data. The extension area stays. A record that has lost an event has no key.
//!
//! ## State
//!
//! The state of a session is a fold over its records. A run table holds it, encoded:
//!
//! | size | state |
//! |---|---|
//! | 1 | flags: 1 = closed, 2 = deleted, 4 = has details, 8, 16, 32 = has an ID of its own, see below |
//! | varint | generation |
//! | varint | first kept seq; the last seq plus 1 if no event is kept |
//! | varint | last seq; 0 before the first event |
//! | varint | bytes of the kept events |
//! | varint | revision: the number of records with changes in this generation |
//! | 16 | activity: the ID of the newest event of its own, or of the record that created it |
//! | 16 | flag 8 only: the ID of the event at the last seq |
//! | 16 | flag 16 only: the last ID of the last record in the state |
//! | 16, or varint | creation: with flag 32 an ID, else the distance to it from the activity |
//! | zigzag | milliseconds of the wall clock at the activity minus those of its ID |
//! | zigzag | milliseconds of the wall clock at the creation minus those of its ID |
//! | | flag 4 only: the details |
//!
//! Without flag 8 or 16 the ID is that of the activity. The details are a bare value in
//! [bincode](#framed-value), with these fields in order:
//!
//! | field | type |
//! |---|---|
//! | title | optional text |
//! | metadata | text of a JSON object; empty if it has no member |
//! | hold | `bool` |
//! | lineage | optional [lineage](#lineage) |
//! | IDs of redacted events, in order | list of `u128` |
//! | producers, the one used last at the end | list of (ID as text, epoch `u64`, optional number `u64`, first seq `u64`, last seq `u64`) |
//! | deletion | optional (optional reason as text, milliseconds of the wall clock `u64`) |
//!
//! The number of a producer is that of its last numbered batch in the epoch, and the seqs are those
//! of that batch. The details of a deleted session are its redactions and its deletion alone.
//! Redactions stay when a generation ends, because forks may share the events.
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
//! 6. The key table, unless no record is keyed.
//! 7. The tables of activity, creation, forks and blocks. Version 1 has none. Zeroes follow the
//!    last table up to the next multiple of 4096 bytes.
//! 8. The trailer, the last 4096 bytes: a framed value with counts, ranges and the roots of the
//!    tables.
//!
//! The *tier* of a segment is 0 when it is sealed from the journal. Merging neighbours of one tier
//! makes a segment of the next. A segment that is written again alone keeps its tier. A merged
//! segment covers the LSNs and the IDs of its inputs, also where records were left out.
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
//! | 0 | 4 | length of the records before compression |
//! | 4 | 4 | checksum |
//! | 8 | 4 | number of records |
//! | 12 | 4 | flags: 1 = the records are compressed |
//! | 16 | | the records, sorted by session, generation and seq |
//!
//! A block is closed at about 64 KiB of records, and from 16 KiB on where another session begins.
//!
//! Compressed records are one LZ4 block, without a frame. They are shorter than the records were,
//! which had at most 16 MiB. The checksum covers the bytes in the file. Version 1 has no compressed
//! blocks.
//!
//! A *run* is a stretch of one session's records in one block, without a gap in their seqs. A
//! *place* is block offset, block length in the file, and offset within the block's records before
//! compression, as varints.
//!
//! | table | key | value |
//! |---|---|---|
//! | run table | session ID, 0, generation (4), first seq (8) | place, events (varint), state |
//! | ID table | first ID of a record (16) | place |
//! | key table | item hash (16), first ID of the record (16) | place |
//! | activity | activity (16) | session ID |
//! | creation | creation (16) | session ID |
//! | forks | ancestor's session ID, 0, its generation (4), session ID of the fork | |
//! | blocks | block offset (8) | block length in the file (varint) |
//!
//! * The integers in keys are big-endian, so that keys sort as their fields do.
//! * An *item hash* is the first 16 bytes of a BLAKE3 hash. For a session it is the hash of the
//!   session ID. For a key of the key table it is the hash of `session ID, 0, idempotency key`.
//! * The [state](#state) is that of the session as of the end of the segment. It stands in the last
//!   run of the session alone, and takes the rest of the value.
//! * In version 1 each run ends with the ID of its last event (16), and has no state.
//! * A session without events in the segment has one run of 0 events, for its state. Its first seq
//!   is the session's last seq plus 1. Its place is that of a block without meaning.
//! * The tables of activity and creation hold the positions in the state. Sessions that are deleted
//!   as of the segment's end are in neither.
//! * The tables of creation and forks hold the sessions that were created within the segment's
//!   range of IDs. The table of forks has an entry for each piece of a lineage.
//! * A table without entries is one page of level 0 without entries.
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
//! | unfinished import | `slogbild` | `bild` | 0 |
//!
//! The salts of a manifest slot and of an unfinished import have a zero store ID.
//!
//! A *bare value* is a value in the same encoding without a frame. Session IDs and event IDs in
//! values are texts unless a table says otherwise.
//!
//! ### Trailer
//!
//! The manifest holds the same value for each segment. A *root* is the offset (`u64`) and the
//! length (`u32`) of a part.
//!
//! | field | type |
//! |---|---|
//! | segment number | `u64` |
//! | format version of the file (not in version 1) | `u32` |
//! | tier (not in version 1) | `u8` |
//! | start LSN, end LSN | `u64`, `u64` |
//! | first ID, last ID: the range that the segment covers | `u128`, `u128` |
//! | length of the file | `u64` |
//! | records, events, bytes of all bodies | `u64`, `u64`, `u64` |
//! | run table, ID table | root, root |
//! | key table | optional root |
//! | filter | root |
//! | records that were left out because they had been removed (not in version 1) | `u64` |
//! | tables of activity, creation, forks and blocks (not in version 1) | optional (root, root, root, root) |
//!
//! ### Manifest
//!
//! | field | type |
//! |---|---|
//! | sequence: rises with every write of a slot | `u64` |
//! | store ID | `u128` |
//! | segments, in the order of their LSNs | list of trailers |
//! | journal files in use, in commit order | list of (number `u32`, incarnation `u64`) |
//! | durable LSN: everything before it was on stable storage | `u64` |
//! | the highest incarnation of any journal file | `u64` |
//! | whether the log was closed with its end at the durable LSN | `bool` |
//! | marks, at most one a segment (not in version 1) | list of (segment `u64`, removed events by estimate `u64`, removal `u64`) |
//! | removal in the journal (not in version 1) | optional `u64` |
//!
//! A *mark* says that a segment may hold what was removed. A *removal* is when the first such
//! removal was committed, in milliseconds of the wall clock. That of the journal also counts for
//! files that are not in use, which hold what they held before.
//!
//! ### Unfinished import
//!
//! Importing and salvaging write segments first, and the manifest last. Until then the folder holds
//! this value, and does not open as a log.
//!
//! | field | type |
//! |---|---|
//! | store ID | `u128` |
//! | what the log is made from | text |
//!
//! ## Index
//!
//! The index is a sled database. It is derived from the segments and is checked on every use, so
//! another version may give it another form. It covers segments from tier 1 on.
//!
//! | key | value, in bincode |
//! |---|---|
//! | 4, item hash of the session (16), generation (4), first seq (8) | segment `u64`, events `u64`, events of the first run `u32`, place of the first run (`u64`, `u32`, `u32`) |
//! | 5 | store ID `u128`, list of the numbers of the covered segments `u64` |
//!
//! An entry is the stretch of a session in one segment. An index without key 5 is set aside and
//! built again, as those of version 1 are. No session ID stands in the index.
//!
//! ## Versions
//!
//! | version | since | change |
//! |---|---|---|
//! | 1 | 0.1.0 | the first |
//! | 2 | 0.2.0 | see below |
//!
//! A log of version 1 is read as it is. Opening it for writing makes it one of version 2, which
//! earlier crates refuse. Its segments become segments of version 2 as they are merged.
//!
//! Version 2 changes:
//!
//! * The records of a block may be compressed.
//! * A body may hold changes and a producer, and need not hold events. The fingerprint covers them.
//! * An event may be redacted.
//! * The last run of a session has its state. A run may be without events.
//! * A segment has a tier and four more tables. Segment numbers are no longer in commit order.
//! * The manifest has marks, and when something was removed that the journal may hold.
//! * The folder `filters/` is gone.
//! * The index has one entry for a session and merged segment, under a hash of the session ID.

mod assemble;
mod batch;
mod block;
mod chunk;
mod event;
mod frame;
mod op;
mod record;
mod reduce;
mod state;
mod stored_state;
mod value;

use std::path::Path;

use bytes::BufMut;

use crate::model::Error;

pub(crate) use assemble::{BodyParts, EventContent, EventParts, Seat};
pub(crate) use batch::EncodedBatch;
pub(crate) use block::{BLOCK_HEADER_BYTES, BlockCompressor, BlockHeader, Coding};
pub(crate) use event::EventFrame;
pub(crate) use frame::{
    FileHeader, GROUP_HEADER_BYTES, GroupHeader, PAGE_HEADER_BYTES, SegmentHeader,
};
pub(crate) use record::{RawRecord, Record, RecordFrame};
pub(crate) use state::{
    Details, ProducerState, REDACTIONS_MAX, Removal, SessionState, Standing, Version,
};
pub(crate) use value::{
    FRAMED_BYTES_MAX, MANIFEST, TRAILER, UNFINISHED, decode_bare, encode_bare, encode_value,
    open_value,
};

/// The format version that this crate writes, and the highest that it reads.
pub(crate) const FORMAT_VERSION: u32 = 2;

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

impl Fault {
    /// Returns the error for a record in memory, which was checked when it got there.
    pub(crate) fn in_memory(self) -> Error {
        self.at(Path::new("memory"), 0)
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
