//! The bounds of recent records in memory, and when the oldest of them are sealed.

use std::sync::Arc;

use crate::codec::Record;
use crate::manifest::JournalUse;
use crate::model::Options;
use crate::recent::{GroupRecords, Recent};
use crate::sync::Ordering;

/// The bounds of recent records, in bytes of memory unless a field says otherwise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// No append proceeds while there is more.
    bytes_max: u64,
    /// No append proceeds while there is more that the segment being written does not hold yet.
    /// This leaves room for that segment. So appends proceed as it grows, rather than only after it
    /// is finished.
    unsealed_bytes_max: u64,
    /// A full journal file is not sealed while there is less, unless the log is idle.
    pub(super) seal_from_bytes: u64,
    /// Full journal files are worth a segment once they take this much on the disk. So a young log
    /// does not leave many small segments.
    worth_file_bytes: u64,
    /// Full journal files are also worth a segment once they take this much in memory. An active
    /// file that takes more is ended, and a segment that would take more gets no further file.
    worth_bytes: u64,
    /// The memory for the heads of idle sessions.
    pub(super) idle_bytes_max: usize,
}

impl Bounds {
    pub(crate) fn of(options: &Options) -> Self {
        let (bytes_max, file_bytes) = (
            options.recent_bytes_max as u64,
            options.journal_file_bytes_max as u64,
        );
        Self {
            bytes_max,
            unsealed_bytes_max: bytes_max / 3 * 2,
            seal_from_bytes: (bytes_max / 2).min(file_bytes + file_bytes / 2),
            worth_file_bytes: file_bytes,
            worth_bytes: bytes_max / 3,
            idle_bytes_max: options.head_cache_bytes_max,
        }
    }
}

/// When full journal files are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timing {
    /// When room is needed. Until then the disk is left to appends.
    Needed,
    /// Now, because the log is idle, or because an earlier attempt failed.
    Now,
    /// Now, and also if the files are not worth a segment, because they have to be erased.
    All,
}

/// The oldest full journal files, ready to be sealed.
pub(crate) struct Sealable {
    pub records: Vec<Arc<Record>>,
    /// The memory that the records take.
    pub memory: u64,
    pub start_lsn: u64,
    pub end_lsn: u64,
    /// The journal files with their sizes.
    pub files: Vec<(JournalUse, u64)>,
}

impl Recent {
    /// Returns whether there is room for another group.
    ///
    /// Without a full journal file nothing can be sealed, so waiting would not help and there is
    /// always room.
    pub(crate) fn has_room(&self) -> bool {
        let (bytes, unsealed) = (self.bytes(), self.unsealed_bytes());
        (bytes <= self.bounds.bytes_max && unsealed <= self.bounds.unsealed_bytes_max)
            || !self.has_full_file()
    }

    /// Returns whether there are records that no segment is known to hold. Every record that was
    /// acknowledged before is in a segment if not.
    pub(crate) fn has_unsealed(&self) -> bool {
        let commits = self.commits.read();
        commits.files.iter().any(|file| !file.groups.is_empty())
    }

    /// Returns whether the active file takes so much memory that it should be ended.
    pub(crate) fn active_is_large(&self) -> bool {
        self.commits
            .read()
            .files
            .back()
            .is_some_and(|file| file.bytes > self.bounds.worth_bytes)
    }

    /// Records how much of the recent bytes the segment being written holds.
    pub(crate) fn note_written(&self, bytes: u64) {
        self.written.store(bytes, Ordering::Relaxed);
    }

    fn unsealed_bytes(&self) -> u64 {
        self.bytes()
            .saturating_sub(self.written.load(Ordering::Relaxed))
    }

    fn has_full_file(&self) -> bool {
        let commits = self.commits.read();
        commits
            .files
            .iter()
            .rev()
            .skip(1)
            .any(|file| !file.groups.is_empty())
    }

    /// Returns the oldest full journal files, once they are worth a segment and it is time to seal.
    ///
    /// The file after them must be begun, since the manifest must name a file for the next records.
    /// While the last file is being begun, that is the one before it.
    pub(crate) fn sealable(&self, timing: Timing) -> Option<Sealable> {
        let Bounds {
            worth_file_bytes,
            worth_bytes,
            seal_from_bytes,
            unsealed_bytes_max,
            ..
        } = self.bounds;
        let commits = self.commits.read();
        let active_at = commits.files.iter().rposition(|file| file.begun)?;
        let active = commits.files.get(active_at)?;
        let full = commits.files.range(..active_at);
        let (file_bytes, memory) = full.clone().fold((0, 0), |(disk, memory), file| {
            (disk + file.file_bytes, memory + file.bytes)
        });
        let is_worth_it = file_bytes >= worth_file_bytes || memory >= worth_bytes;
        let is_time = timing >= Timing::Now || self.bytes() > seal_from_bytes;
        let is_due = timing == Timing::All || (is_worth_it && is_time);
        if !is_due && self.unsealed_bytes() <= unsealed_bytes_max {
            return None;
        }
        let mut memory = 0;
        let taken: Vec<_> = full
            .take_while(|file| {
                let is_first = memory == 0;
                memory += file.bytes;
                is_first || memory <= worth_bytes
            })
            .collect();
        let groups: Vec<GroupRecords> = taken
            .iter()
            .flat_map(|file| &file.groups)
            .map(Arc::clone)
            .collect();
        let mut sealable = Sealable {
            records: Vec::new(),
            memory: taken.iter().map(|file| file.bytes).sum(),
            start_lsn: commits.files.front().unwrap_or(active).start_lsn,
            end_lsn: commits.files.get(taken.len()).unwrap_or(active).start_lsn,
            files: taken
                .iter()
                .map(|file| (file.file, file.file_bytes))
                .collect(),
        };
        drop(commits);
        sealable.records = groups
            .iter()
            .flat_map(|group| group.iter().map(Arc::clone))
            .collect();
        let is_worth_erasing = timing == Timing::All && !sealable.files.is_empty();
        (is_worth_erasing || !sealable.records.is_empty()).then_some(sealable)
    }
}
