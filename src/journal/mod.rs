//! The journal makes batches durable: a few pre-written files, overwritten in place one group at a time and used in turn.
//!
//! Invariants:
//! * A block that holds acknowledged bytes is not written again before its file was recycled.
//! * One group is in flight at most, so only the last group of the journal can lack a durable LSN recorded above it.
//! * A group's header names its place, its file's incarnation and the group before, so stale bytes never continue the chain.

mod group;
mod replay;
mod spares;
mod writer;

use std::path::{Path, PathBuf};

pub(crate) use group::{GroupBuffer, GroupPlace, group_bytes};
pub(crate) use replay::{Replayed, ReplayedFile, ReplayedGroup, holds_group, replay};
pub(crate) use spares::{Spare, Spares};
pub(crate) use writer::{ActiveFile, JournalWriter};

/// What a journal file gives to its header; LSNs count from behind it.
pub(crate) const HEADER_BYTES: u64 = crate::disk::BLOCK as u64;

const EXTENSION: &str = "journal";

/// The folder of the journal files.
pub(crate) fn folder(log: &Path) -> PathBuf {
    log.join("journal")
}

pub(crate) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}.{EXTENSION}"))
}

/// The number in a journal file's name.
pub(crate) fn number(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(EXTENSION)?.strip_suffix('.')?;
    (digits.len() == 8).then(|| digits.parse().ok()).flatten()
}
