//! Collects every whole group of damaged journal files, also behind groups that are not whole.
//!
//! A recovery writes the groups of a file again, in another file and under a higher incarnation,
//! and goes on behind them. So of the groups at one LSN the one with the highest incarnation
//! counts, and a group whose incarnation is lower than that of one before it was discarded.

use std::path::{Path, PathBuf};

use crate::codec::{GROUP_HEADER_BYTES, GroupHeader, Record, StoreId};
use crate::disk::{BLOCK, Disk};
use crate::journal::window::{decode_records, is_whole, open_window};
use crate::journal::{self, group_bytes};
use crate::model::{Error, EventId, Result};

/// A group that was found.
pub(crate) struct FoundGroup {
    pub path: PathBuf,
    /// Its place in the file.
    pub offset: u64,
    pub lsn: u64,
    pub end_lsn: u64,
    pub records: Vec<Record>,
    incarnation: u64,
}

/// Returns the groups from `sealed_lsn` on, in the order of their LSNs. Adds the errors of files
/// that cannot be read to `faults`.
pub(crate) fn scan(
    disk: &dyn Disk,
    folder: &Path,
    store: StoreId,
    sealed_lsn: u64,
    faults: &mut Vec<Error>,
) -> Result<Vec<FoundGroup>> {
    let mut found = Vec::new();
    for (name, bytes) in disk.list(folder)? {
        if journal::number(&name).is_none() {
            continue;
        }
        let path = folder.join(name);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        if let Err(error) = scan_file(disk, &path, (store, length), &mut found) {
            faults.push(error);
        }
    }
    found.retain(|group| group.lsn >= sealed_lsn);
    found.sort_by_key(|group| (group.lsn, std::cmp::Reverse(group.incarnation)));
    let (mut end_lsn, mut incarnation) = (sealed_lsn, 0);
    found.retain(|group| {
        let counts = group.lsn >= end_lsn && group.incarnation >= incarnation;
        if counts {
            (end_lsn, incarnation) = (group.end_lsn, group.incarnation);
        }
        counts
    });
    Ok(found)
}

fn scan_file(
    disk: &dyn Disk,
    path: &Path,
    (store, length): (StoreId, usize),
    found: &mut Vec<FoundGroup>,
) -> Result<()> {
    let mut window = open_window(disk, path, length)?;
    let mut at = BLOCK;
    loop {
        let bytes = window.from(at, GROUP_HEADER_BYTES)?;
        if bytes.is_empty() {
            return Ok(());
        }
        let Some((header, _)) = GroupHeader::decode(store, bytes) else {
            at += BLOCK;
            continue;
        };
        let record_bytes = header.record_bytes as usize;
        let records = window.from(at + GROUP_HEADER_BYTES, record_bytes)?;
        let whole = records
            .get(..record_bytes)
            .filter(|records| is_whole(&header, records));
        let decoded = whole.and_then(|records| decode_records(records, EventId::from_u128(0)).ok());
        let Some(records) = decoded else {
            at += BLOCK;
            continue;
        };
        let bytes = group_bytes(record_bytes);
        found.push(FoundGroup {
            path: path.to_path_buf(),
            offset: at as u64,
            lsn: header.lsn,
            end_lsn: header.lsn + bytes as u64,
            records,
            incarnation: header.incarnation,
        });
        at += bytes;
    }
}
