//! Collects every whole group of damaged journal files, also behind groups that are not whole.
//!
//! A recovery writes the groups of a file again, in another file and under a higher incarnation,
//! and goes on behind them. So a group was discarded if a file of a higher incarnation begins at or
//! before it.

use std::path::{Path, PathBuf};

use crate::codec::{FileHeader, GROUP_HEADER_BYTES, GroupHeader, Record, StoreId};
use crate::disk::{BLOCK, Disk, read_device};
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
    let (mut found, mut begun) = (Vec::new(), Vec::new());
    for (name, bytes) in disk.list(folder)? {
        if journal::number(&name).is_none() {
            continue;
        }
        let path = folder.join(name);
        let length = usize::try_from(bytes).unwrap_or(usize::MAX);
        let header = read_device(disk, &path, BLOCK.min(length)).ok();
        let header = header.and_then(|block| FileHeader::decode(block.as_slice()).ok().flatten());
        begun.extend(header.filter(|header| header.store == store));
        if let Err(error) = scan_file(disk, &path, (store, length), sealed_lsn, &mut found) {
            faults.push(error);
        }
    }
    let is_discarded = |group: &FoundGroup| {
        begun.iter().any(|file: &FileHeader| {
            file.incarnation > group.incarnation && file.start_lsn <= group.lsn
        })
    };
    found.retain(|group| !is_discarded(group));
    found.sort_by_key(|group| (group.lsn, std::cmp::Reverse(group.incarnation)));
    let mut end_lsn = sealed_lsn;
    found.retain(|group| {
        let counts = group.lsn >= end_lsn;
        if counts {
            end_lsn = group.end_lsn;
        }
        counts
    });
    Ok(found)
}

fn scan_file(
    disk: &dyn Disk,
    path: &Path,
    (store, length): (StoreId, usize),
    sealed_lsn: u64,
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
        if header.lsn < sealed_lsn {
            at += bytes;
            continue;
        }
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
