//! Segments keep the log: immutable files in which one session's events are stored together.
//!
//! A segment covers a range of LSNs and therefore a range of event IDs. Segments are numbered, and
//! follow each other, in commit order. Invariant: a file with a segment's name is whole, because it
//! got the name after its bytes were durable.

mod cache;
mod filter;
mod open;
mod parts;
mod search;
mod set;
mod span_filter;
mod table;
mod write;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::codec::{ByteReader, Decoded, Salt, StoreId, put_varint};
use crate::model::{EventId, Seq, SessionId};

pub(crate) use cache::BlockCache;
pub(crate) use filter::FilterRoot;
pub(crate) use open::Segment;
pub(crate) use set::{SegmentSet, adopt, check_files};
pub(crate) use span_filter::{FilterDir, Span, SpanFilter};
pub(crate) use table::TableRoot;
pub(crate) use write::{SegmentPlan, write_segment};

const EXTENSION: &str = "segment";

fn path(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("{number:016}.{EXTENSION}"))
}

/// Returns the number in a segment's name.
fn number(name: &str) -> Option<u64> {
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
}

impl SegmentInfo {
    pub(crate) fn last_id(&self) -> EventId {
        EventId::from_u128(self.last_id)
    }
}

/// The place of a record: its block, and the offset within the block's records.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RunEntry {
    pub run: Run,
    pub last_id: EventId,
}

impl Run {
    /// Returns whether the run has events and its seqs do not overflow.
    pub(crate) fn is_possible(&self) -> bool {
        self.events > 0 && self.first.checked_add(self.events.into()).is_some()
    }

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
        out.extend_from_slice(&self.last_id.to_u128().to_le_bytes());
    }

    fn read(generation: u32, first: Seq, value: &[u8]) -> Decoded<Self> {
        let mut reader = ByteReader::new(value);
        let address = Address::read(&mut reader)?;
        let run = Run {
            generation,
            first,
            events: reader.varint_u32()?,
            address,
        };
        let last_id = EventId::from_u128(reader.u128()?);
        if run.is_possible() {
            Ok(Self { run, last_id })
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
fn session_hash(session: &[u8]) -> ItemHash {
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
        RunEntry::read(1, 1, bytes),
    );
    if filter::check(Salt::NONE, bytes).is_ok() {
        let _maybe = filter::may_hold(bytes, [7; 16]);
    }
    table::decode_page(bytes);
}
