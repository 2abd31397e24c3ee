//! Reads everything that a log stores and compares it.

use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::disk::{Disk, Hold, Layout, RealDisk, Scratch, io_error};
use crate::index::Index;
use crate::model::{Error, EventId, Options, Result};
use crate::repair::sessions::check_sessions;
use crate::repair::survey::Survey;
use crate::repair::{Teller, Told};
use crate::segment::{Segment, SegmentSet};

/// The memory of the index database.
const INDEX_BYTES: usize = 32 * 1024 * 1024;

/// What was verified.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verified {
    /// The number of faults.
    pub findings: u64,
    /// The number of segments that were read.
    pub segments: u64,
    /// The size of their files.
    pub segment_bytes: u64,
    /// The number of batches in segments and journal.
    pub records: u64,
    /// The number of events in segments and journal, also of sessions that were deleted since.
    pub events: u64,
    /// The number of sessions. `None` if damage kept them from being compared.
    pub sessions: Option<u64>,
    /// The number of events in the journal alone.
    pub unsealed_events: u64,
    /// What became of the index.
    pub index: IndexCheck,
}

/// Whether the index was compared with the segments.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum IndexCheck {
    /// There is none. The next open builds it.
    #[default]
    Absent,
    /// The log is open elsewhere, so that the index changes all the time.
    InUse,
    /// So many entries were compared.
    Compared(u64),
    /// It could not be copied to the system's folder for temporary files.
    NotCopied,
}

/// Reads everything that the log in a folder stores, and passes each fault to `tell`.
///
/// It checks every checksum, the density of seqs and the order of IDs, tables against records,
/// states against tables, what forks share, the journal, both slots of the manifest, and the index
/// against the segments. After a fault it goes on with the next block, page or file. It does not
/// write to the folder, and takes its lock only to copy the index. A server may write
/// the log meanwhile. Then the log is verified as of one moment, without the index.
///
/// # Errors
///
/// [`Error::Io`] if there is no log in the folder, or if it cannot be read at all.
/// [`Error::Unsupported`] if a later version wrote the manifest. Damage is no error here.
pub fn verify(folder: impl AsRef<Path>, mut tell: impl FnMut(Told)) -> Result<Verified> {
    let folder = folder.as_ref();
    let folder = std::path::absolute(folder).map_err(io_error("find", folder))?;
    let disk: Arc<dyn Disk> = Arc::new(RealDisk::default());
    verify_on(&disk, &folder, &mut tell)
}

/// As [`verify`], on a disk that a test may own.
pub(crate) fn verify_on(
    disk: &Arc<dyn Disk>,
    folder: &Path,
    tell: &mut dyn FnMut(Told),
) -> Result<Verified> {
    let mut teller = Teller::new(tell);
    let survey = Survey::of(disk, folder)?;
    survey.faults.iter().for_each(|error| teller.finding(error));
    teller.of = survey.segment_bytes();
    let mut verified = Verified::default();
    let mut is_comparable = !survey.is_incomplete && survey.manifest.is_some();
    let mut last_id = EventId::from_u128(0);
    for segment in &survey.segments {
        let before = teller.findings;
        let (first, last) = (segment.info.first_id(), segment.info.last_id());
        // A stretch without records has the last ID of the one before it.
        if first < last_id {
            let what = "its IDs begin before those of the segment before it end";
            teller.finding(&Error::corrupt(segment.path(), 0, what));
        }
        last_id = last_id.max(last);
        let checked = check_segment(segment, &mut teller);
        verified.segments += 1;
        verified.segment_bytes += segment.info.file_bytes;
        verified.records += checked.records;
        verified.events += checked.events;
        is_comparable &= checked.has_all_runs && (teller.findings == before);
    }
    let journal = &survey.journal;
    verified.records += journal.len() as u64;
    verified.unsealed_events = journal.iter().map(|record| u64::from(record.count)).sum();
    verified.events += verified.unsealed_events;
    if is_comparable && survey.is_journal_sound {
        let compared = check_sessions(&survey.segments, journal, &mut |error| {
            teller.finding(&error);
        });
        match compared {
            Ok(sessions) => verified.sessions = Some(sessions),
            Err(error) => teller.finding(&error),
        }
    }
    verified.index = check_index(&survey, &mut teller)?;
    verified.findings = teller.findings;
    Ok(verified)
}

fn check_segment(segment: &Segment, teller: &mut Teller<'_>) -> crate::segment::Checked {
    // Both callbacks pass on to one teller.
    let teller = std::cell::RefCell::new(teller);
    segment.check(
        &mut |error| teller.borrow_mut().finding(&error),
        &mut |bytes| teller.borrow_mut().progress(bytes),
    )
}

/// Compares the index with the segments, in a copy: its database writes when it is opened.
fn check_index(survey: &Survey, teller: &mut Teller<'_>) -> Result<IndexCheck> {
    let Survey { disk, layout, .. } = survey;
    let is_old = |segment: &Arc<Segment>| segment.info.format == 1;
    // That of version 1 is set aside and built again.
    if !disk.exists(&layout.index)? || survey.segments.iter().any(is_old) {
        return Ok(IndexCheck::Absent);
    }
    let scratch = {
        // Without the file nobody has it locked, and it is not made here.
        let has_lock = disk.exists(&layout.root.join(Layout::LOCK))?;
        let hold = if has_lock { Hold::Alone } else { Hold::Nothing };
        let locking = RealDisk::default();
        let lock = locking.enter(&layout.root, Layout::LOCK, hold);
        if matches!(lock, Err(Error::Locked { .. })) || survey.has_other_segments()? {
            return Ok(IndexCheck::InUse);
        }
        match Scratch::copy_of(&layout.index) {
            Ok(scratch) => scratch,
            Err(_no_room) => return Ok(IndexCheck::NotCopied),
        }
    };
    let index = Index::new(
        Arc::new(RealDisk::default()),
        scratch.path().to_path_buf(),
        survey.store,
        INDEX_BYTES.min(Options::new().index_cache_bytes_max),
        Arc::default(),
    );
    let set = SegmentSet::new(survey.segments.clone());
    let compared = index.check(&set, &mut |error| {
        let Error::Corrupt { what, .. } = error else {
            return;
        };
        teller.finding(&Error::corrupt(&*layout.index, 0, what));
    });
    Ok(IndexCheck::Compared(compared))
}
