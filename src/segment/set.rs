//! All segments of a store, in commit order, as one reader sees them. Also decides which files of
//! the folder belong to the store.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::codec::{Record, SessionState, StoreId};
use crate::disk::{Disk, Mode};
use crate::model::{Error, EventId, Result, Seq, SessionId};
use crate::segment::open::read_info;
use crate::segment::{
    self, ItemHash, RunEntry, RunTail, Segment, SegmentInfo, key_hash, session_hash,
};

/// An immutable list of segments. Sealing and merging make a new one.
#[derive(Clone)]
pub(crate) struct SegmentSet {
    pub(super) segments: Vec<Arc<Segment>>,
    positions: HashMap<u64, usize>,
}

/// A run's entry and its segment.
pub(crate) type FoundRun = (Arc<Segment>, RunEntry);

impl SegmentSet {
    /// Returns a set of these segments, in commit order.
    pub(crate) fn new(segments: Vec<Arc<Segment>>) -> Self {
        let numbers = segments.iter().map(|segment| segment.info.number);
        let positions = numbers.zip(0..).collect();
        Self {
            segments,
            positions,
        }
    }

    /// Returns the set with a segment after the others.
    pub(crate) fn with(&self, segment: Arc<Segment>) -> Self {
        let mut segments = self.segments.clone();
        segments.push(segment);
        Self::new(segments)
    }

    /// Returns the set with one segment in the place of neighbours that it was merged from.
    pub(crate) fn merged(&self, inputs: &[Arc<Segment>], merged: Arc<Segment>) -> Self {
        let mut merged = Some(merged);
        let mut segments = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            let is_input = inputs
                .iter()
                .any(|input| input.info.number == segment.info.number);
            if is_input {
                segments.extend(merged.take());
            } else {
                segments.push(Arc::clone(segment));
            }
        }
        Self::new(segments)
    }

    /// Returns the highest number of a segment. It may not be the newest one's.
    pub(crate) fn highest_number(&self) -> u64 {
        self.positions.keys().copied().max().unwrap_or(0)
    }

    /// Returns the segments in commit order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.segments.iter()
    }

    pub(crate) fn by_number(&self, number: u64) -> Option<&Arc<Segment>> {
        self.segments.get(self.position(number)?)
    }

    pub(super) fn position(&self, number: u64) -> Option<usize> {
        self.positions.get(&number).copied()
    }

    /// Returns the last run of a session.
    pub(crate) fn last_run(&self, session: &SessionId) -> Result<Option<FoundRun>> {
        for segment in self.that_may_hold(session_hash(session.as_bytes())) {
            let segment = segment?;
            if let Some(entry) = segment.floor_run(session, u32::MAX, Seq::MAX)? {
                return Ok(Some((Arc::clone(segment), entry)));
            }
        }
        Ok(None)
    }

    /// Returns the state of a session as of the end of the segment before this one.
    pub(crate) fn state_before(
        &self,
        session: &SessionId,
        segment: &Segment,
    ) -> Result<SessionState> {
        let place = self.position(segment.info.number).unwrap_or(0);
        newest_state(self.segments.get(..place).unwrap_or_default(), session)
    }

    /// Returns the newest state of a session in a segment. Segments of version 1 hold none.
    pub(crate) fn newest_state(&self, session: &SessionId) -> Result<SessionState> {
        newest_state(&self.segments, session)
    }

    pub(crate) fn record_of_key(
        &self,
        session: &SessionId,
        generation: u32,
        key: &str,
    ) -> Result<Option<Record>> {
        let hash = key_hash(session, key);
        for segment in self.that_may_hold(hash) {
            if let Some(record) = segment?.record_of_key(session, generation, (key, hash))? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    /// Returns the sessions that share events with a generation of this one. They may have been
    /// deleted since.
    pub(crate) fn forks(&self, session: &SessionId, generation: u32) -> Result<Vec<SessionId>> {
        let mut forks = Vec::new();
        for segment in &self.segments {
            segment.collect_forks(session, generation, &mut forks)?;
        }
        Ok(forks)
    }

    /// Returns the segments that may hold the item, newest first.
    fn that_may_hold(&self, item: ItemHash) -> impl Iterator<Item = Result<&Arc<Segment>>> {
        self.segments
            .iter()
            .rev()
            .filter_map(move |segment| match segment.may_hold(item) {
                Ok(true) => Some(Ok(segment)),
                Ok(false) => None,
                Err(error) => Some(Err(error)),
            })
    }

    /// Returns the segments from the first whose range of IDs ends at or above `id`.
    pub(crate) fn ending_at_or_after(&self, id: EventId) -> &[Arc<Segment>] {
        let before = self
            .segments
            .partition_point(|segment| segment.info.last_id() < id);
        self.segments.get(before..).unwrap_or_default()
    }
}

fn newest_state(segments: &[Arc<Segment>], session: &SessionId) -> Result<SessionState> {
    let item = session_hash(session.as_bytes());
    for segment in segments.iter().rev() {
        if segment.may_hold(item)?
            && let Some(entry) = segment.floor_run(session, u32::MAX, Seq::MAX)?
            && let RunTail::State(state) = entry.tail
        {
            return segment.decode_state(&state);
        }
    }
    Ok(SessionState::default())
}

/// Checks that every segment in the manifest exists with its length, and that they follow each
/// other without a gap.
pub(crate) fn check_files(
    folder: &Path,
    segments: &[SegmentInfo],
    files: &[(String, u64)],
) -> Result<()> {
    let lengths: HashMap<u64, u64> = files
        .iter()
        .filter_map(|(name, bytes)| Some((segment::number(name)?, *bytes)))
        .collect();
    let mut end_lsn = None;
    for info in segments {
        let path = segment::path(folder, info.number);
        match lengths.get(&info.number) {
            Some(bytes) if *bytes == info.file_bytes => {}
            Some(bytes) => {
                return Err(Error::corrupt(
                    path,
                    *bytes,
                    format!("the file should have {} bytes", info.file_bytes),
                ));
            }
            None => return Err(Error::corrupt(path, 0, "the segment is missing")),
        }
        if end_lsn.is_some_and(|end_lsn| end_lsn != info.start_lsn) {
            return Err(Error::corrupt(
                path,
                0,
                "the segment does not follow the one before",
            ));
        }
        end_lsn = Some(info.end_lsn);
    }
    Ok(())
}

/// The segment files in the folder that the manifest does not name.
#[derive(Default)]
pub(crate) struct Unnamed {
    /// Whole segments that continue the named ones. Such a segment remains if a crash came between
    /// its last barrier and the manifest.
    pub adopted: Vec<SegmentInfo>,
    /// Files that named segments cover: inputs of a merge, or its result.
    pub leftovers: Vec<PathBuf>,
}

/// Looks at the segments that the manifest does not name.
pub(crate) fn unnamed(
    disk: &dyn Disk,
    folder: &Path,
    store: StoreId,
    known: &[SegmentInfo],
    files: &[(String, u64)],
) -> Result<Unnamed> {
    let highest = known.iter().map(|info| info.number).max().unwrap_or(0);
    let start_lsn = known.first().map_or(0, |info| info.start_lsn);
    let mut end_lsn = known.last().map_or(0, |info| info.end_lsn);
    let mut others: Vec<(u64, u64)> = files
        .iter()
        .filter_map(|(name, bytes)| Some((segment::number(name)?, *bytes)))
        .filter(|(number, _)| known.iter().all(|info| info.number != *number))
        .collect();
    others.sort_unstable();
    let mut found = Unnamed::default();
    for (number, bytes) in others {
        let path = segment::path(folder, number);
        if number < highest {
            // Numbers rise. So it was merged, or the journal still has its records.
            found.leftovers.push(path);
            continue;
        }
        let info = read_info(&*disk.open(&path, Mode::Read)?, number, bytes, store)?;
        if info.start_lsn >= start_lsn && info.end_lsn <= end_lsn {
            found.leftovers.push(path);
        } else if info.start_lsn == end_lsn {
            end_lsn = info.end_lsn;
            found.adopted.push(info);
        } else {
            let what = "the segment does not follow the one before";
            return Err(Error::corrupt(path, 0, what));
        }
    }
    Ok(found)
}
