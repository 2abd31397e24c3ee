//! Segments keep the log: immutable files in which one session's events are stored together.
//!
//! A segment covers a range of LSNs and therefore a range of IDs. Segments follow each other in
//! commit order. Their numbers need not: a merged segment has a new number and the place of its
//! inputs. Invariant: a file with a segment's name is whole, because it got the name after its
//! bytes were durable.

mod cache;
mod check;
mod directory;
mod filter;
mod open;
mod parts;
mod rest;
mod search;
mod set;
mod sink;
mod spool;
mod table;
mod whole;
mod write;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[cfg(fuzzing)]
use crate::codec::{BlockHeader, Coding};
use crate::codec::{ByteReader, Decoded, Salt, StoreId, put_varint};
use crate::disk::Disk;
use crate::model::{EventId, Result, Seq, SessionId};

pub(crate) use cache::BlockCache;
pub(crate) use check::Checked;
pub(crate) use directory::Position;
pub(crate) use filter::FilterRoot;
pub(crate) use open::{Segment, read_info};
pub(crate) use set::{SegmentSet, check_files, unnamed};
pub(crate) use table::TableRoot;
pub(crate) use whole::{Records, Sessions, Uncached};
pub(crate) use write::{SegmentSpec, SegmentWriter, write_segment};

const EXTENSION: &str = "segment";

/// Returns the path of a segment in the folder of segments.
pub(crate) fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016}.{EXTENSION}"))
}

/// Returns the number in a segment's name.
pub(crate) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    (digits.len() == 16).then(|| digits.parse().ok()).flatten()
}

fn salt(store: StoreId, number: u64) -> Salt {
    Salt::new(store, *b"sblk", number)
}

/// The content of a segment and the places of its tables. It is stored in the segment's trailer and
/// in the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentInfo {
    pub number: u64,
    /// The version of the format that the file was written with.
    pub format: u32,
    /// 0 when it was sealed from the journal, and one above its inputs when it was merged. A
    /// segment that is written again alone keeps its tier.
    pub tier: u8,
    pub start_lsn: u64,
    pub end_lsn: u64,
    first_id: u128,
    last_id: u128,
    pub file_bytes: u64,
    pub records: u64,
    pub events: u64,
    /// The size of the bodies of all records: data, types and names as encoded.
    pub body_bytes: u64,
    runs: TableRoot,
    ids: TableRoot,
    keys: Option<TableRoot>,
    filter: FilterRoot,
    /// The number of records that were left out, or of which some events were, because of removals.
    pub dropped: u64,
    /// The number of records that delete a session.
    pub deletions: u64,
    directory: Option<DirectoryRoots>,
}

/// The tables by which sessions are listed, and the list of blocks. A segment of version 1 has
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct DirectoryRoots {
    activity: TableRoot,
    creation: TableRoot,
    forks: TableRoot,
    blocks: TableRoot,
}

/// A [`SegmentInfo`] as version 1 stores it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentInfoV1 {
    number: u64,
    start_lsn: u64,
    end_lsn: u64,
    first_id: u128,
    last_id: u128,
    file_bytes: u64,
    records: u64,
    events: u64,
    body_bytes: u64,
    runs: TableRoot,
    ids: TableRoot,
    keys: Option<TableRoot>,
    filter: FilterRoot,
}

impl From<SegmentInfoV1> for SegmentInfo {
    fn from(info: SegmentInfoV1) -> Self {
        Self {
            number: info.number,
            format: 1,
            tier: 0,
            start_lsn: info.start_lsn,
            end_lsn: info.end_lsn,
            first_id: info.first_id,
            last_id: info.last_id,
            file_bytes: info.file_bytes,
            records: info.records,
            events: info.events,
            body_bytes: info.body_bytes,
            runs: info.runs,
            ids: info.ids,
            keys: info.keys,
            filter: info.filter,
            dropped: 0,
            deletions: 0,
            directory: None,
        }
    }
}

impl SegmentInfo {
    pub(crate) fn first_id(&self) -> EventId {
        EventId::from_u128(self.first_id)
    }

    pub(crate) fn last_id(&self) -> EventId {
        EventId::from_u128(self.last_id)
    }
}

/// The folder of a store's segments, with the means to read and write them.
#[derive(Clone)]
pub(crate) struct SegmentFolder {
    pub disk: Arc<dyn Disk>,
    pub path: PathBuf,
    pub store: StoreId,
    pub cache: Arc<BlockCache>,
}

impl SegmentFolder {
    /// Makes a set of segments of this folder. Nothing is read.
    pub(crate) fn set(&self, infos: &[SegmentInfo]) -> SegmentSet {
        let segments = infos.iter().cloned().map(|info| self.segment(info));
        SegmentSet::new(segments.map(Arc::new).collect())
    }

    /// Makes a segment of this folder that stays readable when a writer beside removes it.
    pub(crate) fn pinned(&self, info: SegmentInfo) -> Result<Segment> {
        let mut segment = self.segment(info);
        segment.pin()?;
        Ok(segment)
    }

    /// Makes a segment of this folder. Nothing is read.
    pub(crate) fn segment(&self, info: SegmentInfo) -> Segment {
        let (disk, cache) = (Arc::clone(&self.disk), Arc::clone(&self.cache));
        Segment::new(info, self.store, &self.path, disk, cache)
    }
}

/// The place of a record: its block, and the offset within the block's records.
///
/// The length of the block is its length in the file. The offset is among the records as they were
/// before compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Address {
    pub block_offset: u64,
    pub block_bytes: u32,
    pub at: u32,
}

/// A stretch of one session's records in one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub generation: u32,
    pub first: Seq,
    pub events: u32,
    pub address: Address,
}

/// A run with its entry in the run table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunEntry {
    pub run: Run,
    pub tail: RunTail,
}

/// The last part of a run's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RunTail {
    /// Nothing: the session has a later run in the segment.
    None,
    /// The encoded state of the session as of the end of the segment.
    State(Bytes),
    /// The ID of the run's last event. A segment of version 1 holds no state.
    LastId(EventId),
}

impl Run {
    /// Returns whether the run's seqs are possible.
    pub(crate) fn is_possible(&self) -> bool {
        self.first > 0 && self.first.checked_add(self.events.into()).is_some()
    }

    /// Returns the last seq. Without events it is the one before the first.
    pub(crate) fn last(&self) -> Seq {
        self.first + u64::from(self.events) - 1
    }

    pub(crate) fn holds(&self, seq: Seq) -> bool {
        (self.first..=self.last()).contains(&seq)
    }
}

impl RunEntry {
    fn put(&self, out: &mut Vec<u8>) {
        self.run.address.put(out);
        put_varint(out, self.run.events.into());
        match &self.tail {
            RunTail::None => {}
            RunTail::State(state) => out.extend_from_slice(state),
            RunTail::LastId(id) => out.extend_from_slice(&id.to_u128().to_le_bytes()),
        }
    }

    fn read(format: u32, generation: u32, first: Seq, value: &Bytes) -> Decoded<Self> {
        let mut reader = ByteReader::new(value);
        let address = Address::read(&mut reader)?;
        let run = Run {
            generation,
            first,
            events: reader.varint_u32()?,
            address,
        };
        let tail = if format == 1 {
            RunTail::LastId(EventId::from_u128(reader.u128()?))
        } else if reader.left() == 0 {
            RunTail::None
        } else {
            RunTail::State(value.slice(reader.position()..))
        };
        // A run without events is there for the state of its session.
        if run.is_possible() && (run.events > 0 || matches!(tail, RunTail::State(_))) {
            Ok(Self { run, tail })
        } else {
            Err(reader.damaged("an impossible run"))
        }
    }
}

impl Address {
    fn put(&self, out: &mut Vec<u8>) {
        put_varint(out, self.block_offset);
        put_varint(out, self.block_bytes.into());
        put_varint(out, self.at.into());
    }

    fn read(reader: &mut ByteReader<'_>) -> Decoded<Self> {
        Ok(Self {
            block_offset: reader.varint()?,
            block_bytes: reader.varint_u32()?,
            at: reader.varint_u32()?,
        })
    }
}

/// Returns the key of a run in the run table and in the index.
///
/// Keys are ordered by session ID, generation and seq. Session IDs hold no NUL. So the NUL after
/// the ID ends it, and sorts an ID before longer IDs that begin with it.
pub(crate) fn run_key(session: &SessionId, generation: u32, first: Seq) -> Vec<u8> {
    let mut key = session_key(session);
    key.extend_from_slice(&generation.to_be_bytes());
    key.extend_from_slice(&first.to_be_bytes());
    key
}

/// Returns the prefix of the keys of a session's runs.
pub(crate) fn session_key(session: &SessionId) -> Vec<u8> {
    let mut key = Vec::with_capacity(session.as_bytes().len() + 13);
    key.extend_from_slice(session.as_bytes());
    key.push(0);
    key
}

/// Returns the key of a fork in the fork table: the ancestor, and the session that shares events
/// with it.
fn fork_key(ancestor: &SessionId, generation: u32, fork: &SessionId) -> Vec<u8> {
    let mut key = fork_prefix(ancestor, generation);
    key.extend_from_slice(fork.as_bytes());
    key
}

/// Returns the prefix of the keys of an ancestor's forks.
fn fork_prefix(ancestor: &SessionId, generation: u32) -> Vec<u8> {
    let mut key = session_key(ancestor);
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

/// Returns the parts of a run's key, the session ID as bytes.
pub(crate) fn split_run_key(key: &[u8]) -> Option<(&[u8], u32, Seq)> {
    let (session, rest) = key.split_at_checked(key.len().checked_sub(13)?)?;
    let (nul, rest) = rest.split_first()?;
    let (generation, first) = rest.split_at_checked(4)?;
    let generation = u32::from_be_bytes(generation.try_into().ok()?);
    (*nul == 0).then_some((
        session,
        generation,
        u64::from_be_bytes(first.try_into().ok()?),
    ))
}

/// The hash of a session or an idempotency key in filters.
pub(crate) type ItemHash = [u8; 16];

/// Returns the hash of a session's idempotency key, for the key table and for filters.
fn key_hash(session: &SessionId, key: &str) -> ItemHash {
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(session.as_bytes())
        .update(&[0])
        .update(key.as_bytes());
    hasher
        .finalize()
        .as_bytes()
        .first_chunk()
        .copied()
        .expect("a BLAKE3 hash has 32 bytes")
}

/// Returns the hash of a session's ID, for filters.
pub(crate) fn session_hash(session: &[u8]) -> ItemHash {
    blake3::hash(session)
        .as_bytes()
        .first_chunk()
        .copied()
        .expect("a BLAKE3 hash has 32 bytes")
}

/// Decodes bytes as each part of a segment, without the checksums that protect it.
#[cfg(fuzzing)]
pub(crate) fn decode_parts(bytes: &bytes::Bytes) {
    let _refused_or_not = (
        table::admit_page(Salt::NONE, &mut bytes.to_vec()),
        split_run_key(bytes),
        RunEntry::read(1, 1, 1, bytes),
        RunEntry::read(2, 1, 1, bytes),
    );
    if filter::check(Salt::NONE, bytes).is_ok() {
        let _maybe = filter::may_hold(bytes, [7; 16]);
    }
    table::decode_page(bytes);
    decompress(bytes);
}

/// Decompresses bytes as the records of a block. Their length is taken from the bytes too, within a
/// small multiple of them.
#[cfg(fuzzing)]
fn decompress(bytes: &[u8]) {
    let Some(length) = bytes.first_chunk() else {
        return;
    };
    let header = BlockHeader {
        record_bytes: u32::from_le_bytes(*length) % (2 * bytes.len() as u32),
        records: 1,
        coding: Coding::Lz4,
    };
    let _refused_or_not = header.decompress(&mut bytes.to_vec());
}
