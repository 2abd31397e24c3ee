//! The content of the index: one entry per session and merged segment, and what the index covers.

use serde::{Deserialize, Serialize};

use crate::codec::{StoreId, decode_bare};
use crate::model::{Seq, SessionId, read_list};
use crate::segment::{Address, ItemHash, Run, session_hash};

const KIND_SESSION: u8 = 4;

/// The key of the [`Coverage`]. It is raised when the form of an entry changes, because an index
/// without this key is rebuilt.
pub(super) const KIND_COVERAGE: u8 = 5;

/// The stretch of a session in one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub segment: u64,
    /// The first run of the stretch. Its generation and first seq are those of the stretch.
    pub run: Run,
    /// The last seq of the stretch.
    pub last: Seq,
}

/// The value under the key of an entry. It repeats nothing from the key.
#[derive(Serialize, Deserialize)]
pub(super) struct IndexValue {
    pub(super) segment: u64,
    /// The events of the stretch.
    pub(super) events: u64,
    /// The events of its first run.
    pub(super) run_events: u32,
    pub(super) address: Address,
}

/// The segments that the index covers. It is stored in the index itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Coverage {
    pub(super) store: StoreId,
    /// The numbers of the segments whose sessions are in the index, in no order.
    #[serde(deserialize_with = "read_list")]
    pub(super) segments: Vec<u64>,
}

impl IndexEntry {
    /// Decodes a key and its value. Returns `None` if they were not written as an entry.
    pub(crate) fn read(key: &[u8], value: &[u8]) -> Option<Self> {
        let rest = key.get(1 + size_of::<ItemHash>()..)?;
        let (generation, first) = rest.split_at_checked(4)?;
        let IndexValue {
            segment,
            events,
            run_events,
            address,
        } = decode_bare(value)?;
        let run = Run {
            generation: u32::from_be_bytes(generation.try_into().ok()?),
            first: u64::from_be_bytes(first.try_into().ok()?),
            events: run_events,
            address,
        };
        let last = run.first.checked_add(events.checked_sub(1)?)?;
        (run.is_possible() && run.events > 0 && run.last() <= last).then_some(Self {
            segment,
            run,
            last,
        })
    }

    pub(crate) fn holds(&self, seq: Seq) -> bool {
        (self.run.first..=self.last).contains(&seq)
    }
}

/// Returns the prefix of the keys of a session.
///
/// It has the hash of the session's ID. So nothing in the index names a session.
pub(super) fn session_prefix(session: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + size_of::<ItemHash>() + 12);
    key.push(KIND_SESSION);
    key.extend_from_slice(&session_hash(session));
    key
}

pub(super) fn entry_key(session: &SessionId, generation: u32, first: Seq) -> Vec<u8> {
    key_in(session_prefix(session.as_bytes()), generation, first)
}

pub(super) fn key_in(mut prefix: Vec<u8>, generation: u32, first: Seq) -> Vec<u8> {
    prefix.extend_from_slice(&generation.to_be_bytes());
    prefix.extend_from_slice(&first.to_be_bytes());
    prefix
}
