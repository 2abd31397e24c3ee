//! All segments of a store, in commit order, as one reader sees them. Also decides which files of
//! the folder belong to the store.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::codec::{Record, StoreId};
use crate::disk::{Disk, Mode};
use crate::model::{Error, EventId, Result, Seq, SessionId};
use crate::segment::open::read_info;
use crate::segment::{
    self, ItemHash, RunEntry, Segment, SegmentInfo, Span, SpanFilter, key_hash, session_hash,
};

/// An immutable list of segments, with their span filters. Sealing makes a new one.
#[derive(Clone)]
pub(crate) struct SegmentSet {
    pub(super) segments: Vec<Arc<Segment>>,
    filters: HashMap<Span, Arc<SpanFilter>>,
}

/// A run's entry and its segment.
pub(crate) type FoundRun = (Arc<Segment>, RunEntry);

impl SegmentSet {
    /// Returns a set of these segments, in commit order.
    pub(crate) fn new(segments: Vec<Arc<Segment>>) -> Self {
        Self {
            segments,
            filters: HashMap::new(),
        }
    }

    pub(crate) fn with(&self, segment: Arc<Segment>) -> Self {
        let mut set = self.clone();
        set.segments.push(segment);
        set
    }

    /// Returns the set with these span filters, which replace filters over the same spans.
    pub(crate) fn with_filters(&self, filters: impl IntoIterator<Item = SpanFilter>) -> Self {
        let mut set = self.clone();
        set.filters.extend(
            filters
                .into_iter()
                .map(|filter| (filter.span, Arc::new(filter))),
        );
        set
    }

    /// Returns whether there is a usable filter over this span.
    pub(crate) fn has_filter(&self, span: Span) -> bool {
        self.filters
            .get(&span)
            .is_some_and(|filter| !filter.is_broken())
    }

    /// Returns the segments of a span if all of them are in the set.
    pub(crate) fn of_span(&self, span: Span) -> Option<&[Arc<Segment>]> {
        let before = self
            .segments
            .partition_point(|segment| segment.info.number <= span.before());
        let through = self
            .segments
            .partition_point(|segment| segment.info.number <= span.last);
        self.segments
            .get(before..through)
            .filter(|segments| segments.len() as u64 == span.segments())
    }

    /// Returns the segments in commit order.
    pub(crate) fn iter(&self) -> impl DoubleEndedIterator<Item = &Arc<Segment>> {
        self.segments.iter()
    }

    pub(crate) fn by_number(&self, number: u64) -> Option<&Arc<Segment>> {
        self.segments.get(self.position(number)?)
    }

    pub(super) fn position(&self, number: u64) -> Option<usize> {
        self.segments
            .binary_search_by_key(&number, |segment| segment.info.number)
            .ok()
    }

    pub(crate) fn newest_number(&self) -> u64 {
        self.segments
            .last()
            .map_or(0, |segment| segment.info.number)
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

    /// Returns the segments that may hold the item, newest first.
    ///
    /// The filters of segments that a span filter rules out are not probed.
    fn that_may_hold(&self, item: ItemHash) -> impl Iterator<Item = Result<&Arc<Segment>>> {
        let mut left = self.segments.as_slice();
        std::iter::from_fn(move || {
            while let Some((newest, older)) = left.split_last() {
                if let Some(ruled_out) = self.ruled_out(item, newest.info.number) {
                    let kept = (left.len() as u64)
                        .checked_sub(ruled_out.segments())
                        .and_then(|kept| usize::try_from(kept).ok());
                    left = kept
                        .and_then(|kept| left.get(..kept))
                        .expect("a span filter is over segments that are there");
                    continue;
                }
                left = older;
                match newest.may_hold(item) {
                    Ok(true) => return Some(Ok(newest)),
                    Ok(false) => {}
                    Err(error) => return Some(Err(error)),
                }
            }
            None
        })
    }

    /// Returns the widest span that ends with segment `through` and whose filter rules out the
    /// item.
    pub(super) fn ruled_out(&self, item: ItemHash, through: u64) -> Option<Span> {
        Span::ending_with(through)
            .filter_map(|span| self.filters.get(&span))
            .find(|filter| filter.rules_out(item))
            .map(|filter| filter.span)
    }

    /// Returns the segments from the first whose range of IDs ends at or above `id`.
    pub(crate) fn ending_at_or_after(&self, id: EventId) -> &[Arc<Segment>] {
        let before = self
            .segments
            .partition_point(|segment| segment.info.last_id() < id);
        self.segments.get(before..).unwrap_or_default()
    }
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

/// Returns the whole segments that continue the manifest's but are not named in it.
///
/// Such a segment remains if a crash came between its last barrier and the manifest.
pub(crate) fn adopt(
    disk: &dyn Disk,
    folder: &Path,
    store: StoreId,
    known: &[SegmentInfo],
    files: &[(String, u64)],
) -> Result<Vec<SegmentInfo>> {
    let newest = known.last().map_or(0, |info| info.number);
    let mut end_lsn = known.last().map_or(0, |info| info.end_lsn);
    let mut later: Vec<(u64, u64)> = files
        .iter()
        .filter_map(|(name, bytes)| Some((segment::number(name)?, *bytes)))
        .filter(|(n, _)| *n > newest)
        .collect();
    later.sort_unstable();
    let mut adopted = Vec::new();
    for (number, bytes) in later {
        let path = segment::path(folder, number);
        let info = read_info(&*disk.open(&path, Mode::Read)?, number, bytes, store)?;
        if info.start_lsn != end_lsn {
            return Err(Error::corrupt(
                path,
                0,
                "the segment does not follow the one before",
            ));
        }
        end_lsn = info.end_lsn;
        adopted.push(info);
    }
    Ok(adopted)
}
