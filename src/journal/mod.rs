//! The journal makes batches durable: a few pre-written files, overwritten in place one group at a
//! time and used in turn.
//!
//! Invariants:
//! * A block that holds acknowledged bytes is not written again before its file was recycled.
//! * Two groups are in flight at most, in one file, so only the last two groups of the journal can
//!   lack a durable LSN recorded above them; a group that was alone in flight is followed by one
//!   that records it.
//! * A group's header names its place, its file's incarnation and the group before, so stale bytes
//!   never continue the chain.

mod group;
mod replay;
mod spares;
mod window;
mod writer;

use std::path::{Path, PathBuf};

pub(crate) use group::{GroupBuffer, GroupSlot, group_bytes};
pub(crate) use replay::{Replayed, ReplayedFile, holds_group, replay};
pub(crate) use spares::{Spare, Spares};
pub(crate) use writer::{ActiveFile, JournalWriter, Placed, write_image};

/// What a journal file gives to its header; LSNs count from behind it.
pub(crate) const HEADER_BYTES: u64 = crate::disk::BLOCK as u64;

/// What a group without records takes.
pub(crate) const WITNESS_BYTES: usize = crate::disk::BLOCK;

const EXTENSION: &str = "journal";

/// The size of a file that takes a group with so many bytes of records, and a witness behind it.
pub(crate) fn file_bytes_for(record_bytes: usize) -> u64 {
    HEADER_BYTES + (group_bytes(record_bytes) + WITNESS_BYTES) as u64
}

/// The length of a file of `bytes`, as its header has it.
pub(crate) fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes / crate::disk::BLOCK as u64).expect("a journal file is smaller than 16 TiB")
}

pub(crate) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}.{EXTENSION}"))
}

/// The number in a journal file's name. There is one behind it.
pub(crate) fn number(name: &str) -> Option<u32> {
    let number = name
        .strip_suffix(EXTENSION)?
        .strip_suffix('.')?
        .parse()
        .ok()?;
    (number < u32::MAX && path(Path::new(""), number) == Path::new(name)).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_known_by_its_name_whatever_its_number() {
        for file in [1, 99_999_999, 100_000_000, u32::MAX - 1] {
            assert_eq!(
                number(&path(Path::new(""), file).to_string_lossy()),
                Some(file)
            );
        }
        for name in [
            "1.journal",
            "+0000001.journal",
            "000000001.journal",
            "00000001.journal.tmp",
            "4294967295.journal",
            "99999999999.journal",
        ] {
            assert_eq!(number(name), None);
        }
    }
}
