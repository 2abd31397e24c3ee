//! What the index stores: one entry a run, and the position that it has reached.

use serde::{Deserialize, Serialize};

use crate::codec::{StoreId, decode_bare};
use crate::model::{Seq, SessionId};
use crate::segment::{Address, Run, run_key, split_run_key};

pub(super) const KIND_RUN: u8 = 1;

/// Raised when the form of an entry changes: an index without this position is built again.
pub(super) const KIND_POSITION: u8 = 3;

/// What an entry says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub segment: u64,
    pub run: Run,
}

/// What stands under a run's key. What the key says is not said again, nor what only the segment is
/// asked for: sled keeps up to 22 bytes without an allocation for each entry.
#[derive(Serialize, Deserialize)]
pub(super) struct IndexValue {
    pub(super) segment: u64,
    pub(super) events: u32,
    pub(super) address: Address,
}

/// How far the index has got; it stands in the index itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) store: StoreId,
    /// All segments up to this number are in.
    pub(super) through: u64,
}

impl IndexEntry {
    /// What a key and its value say; `None` when they were not written so.
    pub(crate) fn read(key: &[u8], value: &[u8]) -> Option<Self> {
        let (_kind, key) = key.split_first()?;
        let (_session, generation, first) = split_run_key(key)?;
        let IndexValue {
            segment,
            events,
            address,
        } = decode_bare(value)?;
        let run = Run {
            generation,
            first,
            events,
            address,
        };
        run.is_possible().then_some(Self { segment, run })
    }
}

pub(super) fn run_tree_key(session: &SessionId, generation: u32, first: Seq) -> Vec<u8> {
    tree_key(&run_key(session, generation, first))
}

pub(super) fn tree_key(run_key: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(run_key.len() + 2);
    key.push(KIND_RUN);
    key.extend_from_slice(run_key);
    key
}
