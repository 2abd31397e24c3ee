//! Damage to the files of a log, placed by the layout that the format gives.

use std::fs;
use std::path::{Path, PathBuf};

/// The header block of journal files and segments.
const HEADER: usize = 4096;
const GROUP_MAGIC: &[u8] = b"sgrp";
/// Groups begin on block boundaries.
const BLOCK: usize = 4096;
/// Where a group's header has the number of its records.
const RECORDS_AT: usize = 40;
/// A group's header is so long. Its records follow.
const GROUP_HEADER: usize = 64;
/// A block's header is so long. Its records follow.
const BLOCK_HEADER: usize = 16;
/// Where a manifest slot has the format version, and where its value begins.
const VERSION_AT: usize = 8;
const VALUE_AT: usize = 24;

pub(crate) fn manifest(folder: &Path) {
    for slot in slots(folder) {
        flip(&slot, VALUE_AT + 3);
    }
}

pub(crate) fn segment(folder: &Path) {
    for segment in files(&folder.join("segments")) {
        flip(&segment, HEADER + BLOCK_HEADER + 8);
    }
}

/// Damages a record of each group in the journal.
pub(crate) fn journal(folder: &Path) {
    let mut damaged = 0;
    for file in files(&folder.join("journal")) {
        let mut bytes = fs::read(&file).unwrap();
        for group in bytes.chunks_mut(BLOCK) {
            let has_records = group.len() == BLOCK && group[RECORDS_AT..RECORDS_AT + 4] != [0; 4];
            if group.starts_with(GROUP_MAGIC) && has_records {
                group[GROUP_HEADER + 6] ^= 0x55;
                damaged += 1;
            }
        }
        fs::write(&file, bytes).unwrap();
    }
    assert!(damaged > 0, "there is no group in the journal");
}

/// Makes the manifest one of a later version. Its checksum does not cover the version.
pub(crate) fn later_version(folder: &Path) {
    for slot in slots(folder) {
        let mut bytes = fs::read(&slot).unwrap();
        bytes[VERSION_AT..VERSION_AT + 4].copy_from_slice(&77_u32.to_le_bytes());
        fs::write(&slot, bytes).unwrap();
    }
}

fn slots(folder: &Path) -> [PathBuf; 2] {
    ["MANIFEST-0", "MANIFEST-1"].map(|slot| folder.join(slot))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn flip(file: &Path, at: usize) {
    let mut bytes = fs::read(file).unwrap();
    bytes[at] ^= 0x55;
    fs::write(file, bytes).unwrap();
}
