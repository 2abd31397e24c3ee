//! Puts into memory what was read from the journal, when a log is opened and when a reader follows
//! the log of another process.

use std::path::Path;
use std::sync::Arc;

use crate::journal::{self, HEADER_BYTES, Replayed, ReplayedFile};
use crate::manifest::Manifest;
use crate::model::{Error, EventId, Result};
use crate::recent::Recent;
use crate::segment::SegmentInfo;
use crate::sync::Waiter;

/// What was put into memory.
#[derive(Default)]
pub(super) struct Restored {
    /// Groups with records. A witness has none.
    pub groups: u64,
    pub events: u64,
}

/// Puts the groups from `from_lsn` on into memory. Adds the waiters for their events to `to_wake`.
pub(super) fn restore(
    recent: &Recent,
    journal: &Path,
    files: Vec<ReplayedFile>,
    from_lsn: u64,
    to_wake: &mut Vec<Arc<Waiter>>,
) -> Result<Restored> {
    let mut restored = Restored::default();
    for file in files {
        recent.restore_file(file.used_as(), file.bytes, file.header.start_lsn);
        for group in file.groups {
            if group.header.lsn < from_lsn {
                continue;
            }
            restored.groups += u64::from(!group.records.is_empty());
            let counts = group.records.iter().map(|record| u64::from(record.count));
            restored.events += counts.sum::<u64>();
            let offset = HEADER_BYTES + group.header.lsn - file.header.start_lsn;
            let mut waiters = recent.restore(group.records).map_err(|_position| {
                let what = "a record that does not follow the one before it in its session";
                Error::corrupt(journal::path(journal, file.number), offset, what)
            })?;
            to_wake.append(&mut waiters);
        }
    }
    Ok(restored)
}

/// Splits the files into those with records from `lsn` on and the others. The last file is kept
/// even if it is empty.
pub(super) fn split_off_before(
    files: Vec<ReplayedFile>,
    lsn: u64,
) -> (Vec<ReplayedFile>, Vec<ReplayedFile>) {
    let last = files.last().map(|file| file.number);
    files
        .into_iter()
        .partition(|file| file.end_lsn > lsn || Some(file.number) == last)
}

/// Checks that the journal begins where the segments end.
pub(super) fn check_begin(journal: &Path, kept: &[ReplayedFile], sealed_lsn: u64) -> Result<()> {
    let begins = kept.first().map_or(0, |file| file.header.start_lsn);
    if begins == sealed_lsn {
        return Ok(());
    }
    let what = format!("the journal begins at LSN {begins}, and the segments end at {sealed_lsn}");
    Err(Error::corrupt(journal, 0, what))
}

/// The position where the log ends.
pub(super) struct LogEnd {
    pub(super) lsn: u64,
    pub(super) last_id: EventId,
}

impl LogEnd {
    pub(super) fn of(replayed: &Replayed, manifest: &Manifest) -> Self {
        let sealed = manifest
            .segments
            .last()
            .map_or(EventId::from_u128(0), SegmentInfo::last_id);
        Self {
            lsn: replayed.end_lsn,
            last_id: replayed.last_id.max(sealed),
        }
    }
}
