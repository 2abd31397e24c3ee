//! The content of the index: one entry per run, and the position that the index has reached.

use serde::{Deserialize, Serialize};

use crate::codec::{StoreId, decode_bare};
use crate::model::{Seq, SessionId};
use crate::segment::{Address, Run, run_key, split_run_key};

pub(super) const KIND_RUN: u8 = 1;

/// The key of the position. It is raised when the form of an entry changes: an index without this
/// position is rebuilt.
pub(super) const KIND_POSITION: u8 = 3;

/// An entry of the index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub segment: u64,
    pub run: Run,
}

/// The value under a run's key.
///
/// It repeats nothing from the key, and holds nothing that only the segment is queried for. sled
/// stores up to 22 bytes without an allocation for each entry.
#[derive(Serialize, Deserialize)]
pub(super) struct IndexValue {
    pub(super) segment: u64,
    pub(super) events: u32,
    pub(super) address: Address,
}

/// The position that the index has reached. It is stored in the index itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub(super) store: StoreId,
    /// All segments up to this number are in the index.
    pub(super) through: u64,
}

impl IndexEntry {
    /// Decodes a key and its value; `None` if they were not written as an entry.
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
