//! All segments of a store, in commit order, as one reader sees them; and which files of the folder belong.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{Record, StoreId};
use crate::disk::{Disk, Mode};
use crate::error::{Error, Result};
use crate::event::Seq;
use crate::ids::EventId;
use crate::segment::open::read_info;
use crate::segment::{self, Run, Segment, SegmentInfo};
use crate::session::SessionId;

/// An immutable list of segments; sealing makes a new one.
#[derive(Clone, Default)]
pub(crate) struct SegmentSet {
    segments: Vec<Arc<Segment>>,
}

/// A run and the segment it lies in.
pub(crate) type FoundRun = (Arc<Segment>, Run);

impl SegmentSet {
    pub(crate) fn with(&self, segment: Arc<Segment>) -> Self {
        let mut segments = self.segments.clone();
        segments.push(segment);
        Self { segments }
    }

    /// In commit order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.segments.iter()
    }

    pub(crate) fn by_number(&self, number: u64) -> Option<&Arc<Segment>> {
        let at = self.segments.binary_search_by_key(&number, |segment| segment.info.number).ok()?;
        self.segments.get(at)
    }

    pub(crate) fn newest_number(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.info.number)
    }

    /// The run that holds `seq`, asking every segment that may have it, newest first.
    pub(crate) fn run_at(&self, session: &SessionId, generation: u32, seq: Seq) -> Result<Option<FoundRun>> {
        for segment in self.segments.iter().rev() {
            if !segment.may_hold_session(session)? {
                continue;
            }
            let run = segment.floor_run(session, generation, seq)?;
            if let Some(run) = run.filter(|run| run.generation == generation && run.holds(seq)) {
                return Ok(Some((Arc::clone(segment), run)));
            }
        }
        Ok(None)
    }

    /// The last run of a session among the segments numbered above `above`.
    pub(crate) fn last_run(&self, session: &SessionId, above: u64) -> Result<Option<FoundRun>> {
        let newer = self.segments.iter().rev().take_while(|segment| segment.info.number > above);
        for segment in newer {
            if !segment.may_hold_session(session)? {
                continue;
            }
            if let Some(run) = segment.floor_run(session, u32::MAX, Seq::MAX)? {
                return Ok(Some((Arc::clone(segment), run)));
            }
        }
        Ok(None)
    }

    pub(crate) fn record_of_key(&self, session: &SessionId, generation: u32, key: &str) -> Result<Option<Record>> {
        for segment in self.segments.iter().rev() {
            if let Some(record) = segment.record_of_key(session, generation, key)? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// The segment whose range of IDs ends at or above `id`, if any, and those behind it.
    pub(crate) fn ending_at_or_after(&self, id: EventId) -> &[Arc<Segment>] {
        let before = self.segments.partition_point(|segment| segment.info.last_id() < id);
        self.segments.get(before..).unwrap_or_default()
    }
}

/// Checks that every segment that the manifest names is there with its length, and that they follow each other without a gap.
pub(crate) fn check_files(folder: &Path, segments: &[SegmentInfo], files: &[(String, u64)]) -> Result<()> {
    let lengths: HashMap<u64, u64> = files.iter().filter_map(|(name, bytes)| Some((segment::number(name)?, *bytes))).collect();
    let mut end_lsn = None;
    for info in segments {
        let path = segment::path(folder, info.number);
        match lengths.get(&info.number) {
            Some(bytes) if *bytes == info.file_bytes => {}
            Some(bytes) => return Err(Error::corrupt(path, *bytes, format!("the file should have {} bytes", info.file_bytes))),
            None => return Err(Error::corrupt(path, 0, "the segment is missing")),
        }
        if end_lsn.is_some_and(|end_lsn| end_lsn != info.start_lsn) {
            return Err(Error::corrupt(path, 0, "the segment does not follow the one before"));
        }
        end_lsn = Some(info.end_lsn);
    }
    Ok(())
}

/// The whole segments that continue the manifest's but are not named in it: a crash came between their last barrier and the manifest.
pub(crate) fn adopt(
    disk: &dyn Disk,
    folder: &Path,
    store: StoreId,
    known: &[SegmentInfo],
    files: &[(String, u64)],
) -> Result<Vec<SegmentInfo>> {
    let newest = known.last().map_or(0, |info| info.number);
    let mut end_lsn = known.last().map_or(0, |info| info.end_lsn);
    let mut later: Vec<(u64, u64)> =
        files.iter().filter_map(|(name, bytes)| Some((segment::number(name)?, *bytes))).filter(|(n, _)| *n > newest).collect();
    later.sort_unstable();
    let mut adopted = Vec::new();
    for (number, bytes) in later {
        let path = segment::path(folder, number);
        let info = read_info(&*disk.open(&path, Mode::Read)?, number, bytes, store)?;
        if info.start_lsn != end_lsn {
            return Err(Error::corrupt(path, 0, "the segment does not follow the one before"));
        }
        end_lsn = info.end_lsn;
        adopted.push(info);
    }
    Ok(adopted)
}
