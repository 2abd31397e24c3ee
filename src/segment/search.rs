//! Finds the run that holds a seq without the index.
//!
//! The seqs of a session rise from segment to segment. So a segment that holds any of the session
//! shows whether the run is in an older or in a newer one. The number of probed segments grows with
//! the logarithm of the distance from the start of the search. Filters tell which segments to
//! probe. The search reads each filter at most once.
//!
//! A segment that cannot be read shows nothing, so the search continues around it. It fails with
//! that segment's error unless it finds the run elsewhere. A run that it finds is correct, because
//! it is a checked entry for this very seq.

use std::ops::Range;
use std::sync::Arc;

use crate::model::{Error, Result, Seq, SessionId};
use crate::segment::set::{FoundRun, SegmentSet};
use crate::segment::{ItemHash, RunEntry, session_hash};

/// A search for one run.
pub(super) struct RunSearch<'a> {
    set: &'a SegmentSet,
    session: &'a SessionId,
    item: ItemHash,
    generation: u32,
    seq: Seq,
    /// The positions of the segments that may hold the run.
    left: Range<usize>,
    /// The first error of a probed segment.
    unread: Option<Error>,
}

/// The side on which the run is, seen from a segment that holds some of the session.
enum Side {
    Here(RunEntry),
    Older,
    Newer,
}

/// The next segment to probe among those that are left. Steps from an end double until one goes too
/// far.
enum Next {
    UpFromOldest(usize),
    DownFromNewest(usize),
    Middle,
}

impl SegmentSet {
    /// Returns the run that holds `seq`.
    ///
    /// The search begins at segment number `near`, where the caller found a run next to it, or else
    /// at the newest.
    ///
    /// # Errors
    ///
    /// The first error of a segment that may hold the run and cannot be read.
    pub(crate) fn run_at(
        &self,
        session: &SessionId,
        (generation, seq): (u32, Seq),
        near: Option<u64>,
    ) -> Result<Option<FoundRun>> {
        let near = near.and_then(|number| self.position(number));
        RunSearch::new(self, session, generation, seq).run(near)
    }
}

impl<'a> RunSearch<'a> {
    pub(super) fn new(
        set: &'a SegmentSet,
        session: &'a SessionId,
        generation: u32,
        seq: Seq,
    ) -> Self {
        let (item, left) = (session_hash(session.as_bytes()), 0..set.segments.len());
        Self {
            set,
            session,
            item,
            generation,
            seq,
            left,
            unread: None,
        }
    }

    /// Searches from the segment at position `near`, or from the newest.
    pub(super) fn run(mut self, near: Option<usize>) -> Result<Option<FoundRun>> {
        let found = match near.and_then(|near| Some((near, self.ask(near)?))) {
            Some((near, Side::Here(entry))) => self.found(near, entry),
            Some((near, Side::Newer)) => {
                self.left.start = near + 1;
                self.narrow(Next::UpFromOldest(1))
            }
            Some((near, Side::Older)) => {
                self.left.end = near;
                self.narrow(Next::DownFromNewest(1))
            }
            None => self.narrow(Next::DownFromNewest(1)),
        };
        if found.is_some() {
            Ok(found)
        } else {
            self.unread.map_or(Ok(None), Err)
        }
    }

    /// Probes segment after segment until one has the run, or none is left.
    fn narrow(&mut self, mut next: Next) -> Option<FoundRun> {
        while !self.left.is_empty() {
            let at = next.place_in(&self.left);
            match self.newest_through(at) {
                Some((holder, Side::Here(entry))) => return self.found(holder, entry),
                Some((holder, Side::Older)) => {
                    self.left.end = holder;
                    next = next.after_older();
                }
                // The segments between the holder and `at` hold none of the session.
                Some((_, Side::Newer)) | None => {
                    self.left.start = at + 1;
                    next = next.after_newer();
                }
            }
        }
        None
    }

    /// Returns the newest segment, of those left up to a position, that holds some of the session.
    fn newest_through(&mut self, position: usize) -> Option<(usize, Side)> {
        let mut end = position + 1;
        while end > self.left.start {
            let at = end - 1;
            if let Some(side) = self.ask(at) {
                return Some((at, side));
            }
            end = at;
        }
        None
    }

    /// Returns on which side of a segment the run is. Returns `None` if the segment holds none of
    /// the session or cannot be read.
    fn ask(&mut self, at: usize) -> Option<Side> {
        let side = self.look_into(at);
        side.unwrap_or_else(|error| {
            self.unread.get_or_insert(error);
            None
        })
    }

    fn look_into(&self, at: usize) -> Result<Option<Side>> {
        let Some(segment) = self.set.segments.get(at) else {
            return Ok(None);
        };
        if !segment.may_hold(self.item)? {
            return Ok(None);
        }
        if let Some(entry) = segment.floor_run(self.session, self.generation, self.seq)? {
            let is_here = entry.run.generation == self.generation && entry.run.holds(self.seq);
            return Ok(Some(if is_here {
                Side::Here(entry)
            } else {
                Side::Newer
            }));
        }
        let last = segment.floor_run(self.session, u32::MAX, Seq::MAX)?;
        Ok(last.map(|_| Side::Older))
    }

    fn found(&self, at: usize, entry: RunEntry) -> Option<FoundRun> {
        self.set
            .segments
            .get(at)
            .map(|segment| (Arc::clone(segment), entry))
    }
}

impl Next {
    fn place_in(&self, left: &Range<usize>) -> usize {
        let newest = left.end - 1;
        match self {
            Next::UpFromOldest(step) => newest.min(left.start + step - 1),
            Next::DownFromNewest(step) => left.start.max(left.end.saturating_sub(*step)),
            Next::Middle => left.start + left.len() / 2,
        }
    }

    fn after_older(self) -> Self {
        if let Next::DownFromNewest(step) = self {
            Next::DownFromNewest(step * 2)
        } else {
            Next::Middle
        }
    }

    fn after_newer(self) -> Self {
        if let Next::UpFromOldest(step) = self {
            Next::UpFromOldest(step * 2)
        } else {
            Next::Middle
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;
    use crate::codec::{EncodedBatch, Record, StoreId};
    use crate::disk::{Disk, Layout, Mode, RealDisk};
    use crate::model::{Batch, Compression, EventId, NewEvent, Stamp};
    use crate::segment::write::tests::write_records;
    use crate::segment::{self, BlockCache, Segment, SegmentFolder, SegmentInfo};

    const STORE: StoreId = StoreId(0);
    const SESSIONS: usize = 4;
    /// Two of these do not fit into a block, so they are two runs.
    const LARGE: usize = 50 * 1024;

    fn session(nth: usize) -> SessionId {
        SessionId::new(["a", "ab", "b", "c"][nth]).unwrap()
    }

    /// Segments in a folder, and the segment of each seq.
    struct Scene {
        folder: tempfile::TempDir,
        disk: Arc<dyn Disk>,
        cache: Arc<BlockCache>,
        infos: Vec<SegmentInfo>,
        places: BTreeMap<(usize, Seq), u64>,
    }

    impl Scene {
        /// Makes a segment for each list, with a record for each session in the list.
        fn new(segments: &[Vec<usize>]) -> Self {
            let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::new(RealDisk::default()));
            let cache = Arc::new(BlockCache::new(0));
            let mut scene = Self {
                folder,
                disk,
                cache,
                infos: Vec::new(),
                places: BTreeMap::new(),
            };
            scene.disk.make_dir(&scene.segments()).unwrap();
            let mut tails = [0; SESSIONS];
            let mut id = 0;
            for (number, members) in (1..).zip(segments) {
                // A segment has at least one record.
                let records = members
                    .iter()
                    .chain(members.is_empty().then_some(&(SESSIONS - 1)));
                let records = records.map(|&nth| {
                    (tails[nth], id) = (tails[nth] + 1, id + 1);
                    scene.places.insert((nth, tails[nth]), number);
                    record(nth, tails[nth], id)
                });
                let records = records.collect();
                let info =
                    write_records(&scene.segments(), number, records, Compression::default());
                scene.infos.push(info);
            }
            scene
        }

        fn segments(&self) -> std::path::PathBuf {
            Layout::of(self.folder.path()).segments
        }

        fn set(&self) -> SegmentSet {
            let segment = |info: &SegmentInfo| {
                let (disk, cache) = (Arc::clone(&self.disk), Arc::clone(&self.cache));
                Arc::new(Segment::new(
                    info.clone(),
                    STORE,
                    &self.segments(),
                    disk,
                    cache,
                ))
            };
            SegmentSet::new(self.infos.iter().map(segment).collect())
        }

        fn folder(&self) -> SegmentFolder {
            SegmentFolder {
                disk: Arc::clone(&self.disk),
                path: self.segments(),
                store: STORE,
                cache: Arc::clone(&self.cache),
            }
        }

        fn damage(&self, number: u64) {
            let file = self
                .disk
                .open(&segment::path(&self.segments(), number), Mode::Write)
                .unwrap();
            let bytes = usize::try_from(file.len().unwrap()).unwrap();
            file.write_all_at(&vec![0xFF; bytes], 0).unwrap();
        }

        /// Checks that every seq is found in its segment, from any start, unless the segment is
        /// damaged. No other seq is found.
        fn check(&self, set: &SegmentSet, damaged: &BTreeSet<u64>) {
            let nears = [
                None,
                Some(1),
                Some(set.highest_number() / 2 + 1),
                Some(set.highest_number()),
                Some(1_000),
            ];
            for (nth, near) in (0..SESSIONS).flat_map(|nth| nears.map(|near| (nth, near))) {
                for seq in
                    (0..).take_while(|seq| *seq < 2 || self.places.contains_key(&(nth, seq - 1)))
                {
                    self.check_one(set, damaged, (nth, seq), near);
                }
            }
        }

        fn check_one(
            &self,
            set: &SegmentSet,
            damaged: &BTreeSet<u64>,
            place: (usize, Seq),
            near: Option<u64>,
        ) {
            let found = set.run_at(&session(place.0), (1, place.1), near);
            let found = found.map(|found| {
                found.map(|(segment, entry)| (segment.info.number, entry.run.holds(place.1)))
            });
            match self
                .places
                .get(&place)
                .filter(|number| !damaged.contains(number))
            {
                Some(&number) => assert_eq!(
                    found.unwrap(),
                    Some((number, true)),
                    "{place:?} from {near:?}"
                ),
                None if damaged.is_empty() => {
                    assert_eq!(found.unwrap(), None, "{place:?} from {near:?}");
                }
                None if self.places.contains_key(&place) => {
                    assert!(found.is_err(), "{place:?} from {near:?}");
                }
                None => assert!(!matches!(found, Ok(Some(_))), "{place:?} from {near:?}"),
            }
        }
    }

    fn record(nth: usize, seq: Seq, id: u128) -> Arc<Record> {
        let data = vec![7; if seq.is_multiple_of(3) { LARGE } else { 10 }];
        let batch = Batch::new().event(NewEvent::new("note", data));
        EncodedBatch::new(&session(nth), batch).stamped(
            1,
            seq,
            Stamp {
                base: EventId::from_u128(id),
                created_ms: 0,
            },
        )
    }

    /// A writer that recovers beside a reader may give a number again that the reader has seen.
    #[test]
    fn a_pinned_segment_stays_what_it_is_when_its_number_is_used_again() {
        let mut scene = Scene::new(&[vec![0]]);
        scene.cache = Arc::new(BlockCache::new(1024 * 1024));
        let folder = scene.folder();
        let first = folder.pinned(scene.infos.remove(0)).unwrap();
        let path = segment::path(&folder.path, 1);
        let read = |segment: &Segment| {
            let records = segment.records_from(EventId::from_u128(0)).unwrap();
            let sessions = records.map(|record| record.unwrap().session.to_string());
            sessions.collect::<Vec<_>>()
        };
        scene.disk.remove(&path).unwrap();
        let records = vec![record(2, 1, 1)];
        let info = write_records(&folder.path, 1, records, Compression::default());
        let again = folder.pinned(info).unwrap();
        for _ in 0..2 {
            assert_eq!(
                (read(&first), read(&again)),
                (vec!["a".into()], vec!["b".into()])
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn a_run_is_found_where_it_lies_and_damage_hides_no_other(
            segments in proptest::collection::vec(
                proptest::collection::vec(0..SESSIONS, 0..5),
                1..40,
            ),
            damaged in proptest::collection::btree_set(1_u64..40, 0..4),
        ) {
            let scene = Scene::new(&segments);
            let set = scene.set();
            scene.check(&set, &BTreeSet::new());
            let damaged: BTreeSet<u64> = damaged
                .into_iter()
                .filter(|number| *number <= set.highest_number())
                .collect();
            for number in &damaged {
                scene.damage(*number);
            }
            scene.check(&set, &damaged);
        }
    }
}
