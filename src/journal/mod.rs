//! The journal makes batches durable. It is a few pre-written files, which are recycled and
//! overwritten in place, one group at a time.
//!
//! Invariants:
//! * A block that holds acknowledged bytes is not written again before its file is recycled.
//! * At most two groups are in flight, and both are in one file. So only the last two groups of the
//!   journal can lack a later record of their durable LSN. After a group that was alone in flight
//!   comes one that records it.
//! * A group's header names its place, its file's incarnation and the group before. So stale bytes
//!   never continue the chain.

mod group;
mod replay;
mod scan;
mod spares;
mod window;
mod writer;

use std::path::{Path, PathBuf};

pub(crate) use group::{GroupBuffer, GroupSlot, group_bytes};
pub(crate) use replay::{Reached, Replayed, ReplayedFile, follow, holds_group, replay, store_of};
pub(crate) use scan::scan;
pub(crate) use spares::{Spare, Spares};
pub(crate) use writer::{ActiveFile, JournalWriter, Placed, write_image};

/// The size of a journal file's header, in bytes. LSNs count from its end.
pub(crate) const HEADER_BYTES: u64 = crate::disk::BLOCK as u64;

/// The size of a group without records, in bytes.
pub(crate) const WITNESS_BYTES: usize = crate::disk::BLOCK;

const EXTENSION: &str = "journal";

/// Returns the size of a file with room for a group with `record_bytes` of records and a witness
/// after it.
pub(crate) fn file_bytes_for(record_bytes: usize) -> u64 {
    HEADER_BYTES + (group_bytes(record_bytes) + WITNESS_BYTES) as u64
}

/// Returns the length of a file of `bytes` in blocks, as in its header.
pub(crate) fn blocks(bytes: u64) -> u32 {
    u32::try_from(bytes / crate::disk::BLOCK as u64).expect("a journal file is smaller than 16 TiB")
}

pub(crate) fn path(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}.{EXTENSION}"))
}

/// Returns the number in a journal file's name. It is never the largest `u32`, so there is a next
/// number.
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
